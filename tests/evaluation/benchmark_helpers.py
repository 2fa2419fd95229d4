"""Small official-shaped files of all five benchmarks, and language models that answer from a table."""

from __future__ import annotations

import ast
import os
import sys
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lm_eval.models
import torch
from lm_eval.api.model import LM
from peft import LoraConfig, get_peft_model
from task_helpers import HUMANEVAL, write_bbh, write_mmlu, write_tydiqa

from builders import build_model, build_tokenizer
from clusterucb.config import Common, load_as
from clusterucb.data.chat import Tulu
from clusterucb.evaluation.benchmarks import Benchmarks
from clusterucb.evaluation.documents import documents
from clusterucb.runtime.files import write_lines
from clusterucb.runtime.screen import Screen
from clusterucb.tasks import TASKS

ALL = ["mmlu", "bbh", "tydiqa", "gsm8k", "humaneval"]
TULU = Tulu("<|im_end|>")
TOKENIZER = build_tokenizer()


def write_data(folder):
    """MMLU: 3 + 1 questions of two subjects, BBH 2 + 1 of two tasks, TyDi 2 + 1, GSM8K 3, HumanEval 2."""
    mmlu = {"anatomy": ["toe", "ear", "eye"], "law": ["sum"]}
    dev = [[f"dev {n}?", *"pqrs", "ABCDA"[n]] for n in range(5)]
    write_mmlu(folder / "mmlu", "dev", dict.fromkeys(mmlu, dev))
    test = {name: [[f"Is it {word}?", "no", word, "x y", "4", "B"] for word in mmlu[name]] for name in mmlu}
    write_mmlu(folder / "mmlu", "test", test)
    write_bbh(folder / "bbh")
    train = [(f"{language}-1-0", "A train.", "Where?", ["here"]) for language in ("english", "finnish")]
    dev = [("english-2-0", "The cat sat.", "Who?", ["The Cat sat", "cat"])]
    dev += [(f"finnish-{n}-0", f"Kissa {n} on.", "Kuka?", ["kissa"]) for n in (2, 3)]
    write_tydiqa(folder / "tydiqa", train, dev)
    for split in ("train", "test"):
        rows = [{"question": f"{n} {split} pens?", "answer": f"{n}+1=\n#### {n + 1}"} for n in range(3)]
        (folder / "gsm8k").mkdir(exist_ok=True)
        write_lines(folder / f"gsm8k/{split}.jsonl", rows)
    (folder / "humaneval").mkdir()
    write_lines(folder / "humaneval/HumanEval.jsonl", HUMANEVAL[:2])
    return folder


def short(monkeypatch, tokens=6, **changes):
    """Let answers have few tokens, and prompts few shots."""
    for task in TASKS.values():
        for name, variant in task.variants.items():
            few = replace(variant, max_new_tokens=tokens if variant.max_new_tokens else 0)
            few = replace(few, shots=min(few.shots, 1) if name != "mmlu_5shot" else 5)
            monkeypatch.setitem(task.variants, name, replace(few, **changes))


def wide_model(seed=0, layers=2):
    """The tiny model, for long prompts."""
    model = build_model(seed, layers)
    model.config.max_position_embeddings = 4096
    return model


def with_adapter(model, seed=1, scale=0.3, rank=4):
    """The model with a LoRA adapter that changes what it says."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, scale)
    return adapted.eval()


def save_adapter(folder, model_folder, model=None, seed=1):
    model = model or wide_model()
    model.name_or_path = str(model_folder)
    with_adapter(model, seed).save_pretrained(folder)
    return folder


def common(data, out, tasks, **changes):
    """Settings of an evaluation without a run."""
    given = {"model": "a/model", "out": str(out), "tasks": tasks, "data_dir": str(data), "samples": 10}
    return load_as(Common, None, {**given, "allow_code_execution": True, **changes})


def evaluation(config, engine, chat=TULU, tokenizer=TOKENIZER, leave_out=(), base_answers=None):
    """The benchmarks of `config`, asked of an engine."""
    folder = Path(config.out) / "benchmarks"
    unwanted, screen = frozenset(leave_out), Screen(quiet=True)
    return Benchmarks(config, engine, "a", tokenizer, chat, folder, base_answers or folder, unwanted, screen)


def of_variant(name, data, chat=TULU):
    """A benchmark by the name of its variant: the task, the variant, and its questions as documents."""
    task = next(task for task in TASKS.values() if name in task.variants)
    found, _ = documents(task, task.variants[name], chat, common(data, "out", []))
    return task, task.variants[name], found


class FakeEngine:
    """Models that answer by a function: (who, prompt, how often it was asked before) -> text.

    Of choices, the one that the function gives is the likeliest.
    """

    def __init__(self, reply=lambda _who, _prompt, _times: " A", window=10**6, failures=()):
        self.reply, self.window, self.base = reply, window, {"model": "m"}
        self.batches, self.prompts, self.failures = [], [], iter(failures)

    def ready(self, _tokens):
        return nullcontext()

    @contextmanager
    def asked(self, who, batch):
        self.batches.append(batch)
        if failure := next(self.failures, None):
            raise failure
        yield FakeLM(lambda prompt, times: self._reply(who, prompt, times))

    def _reply(self, who, prompt, times):
        self.prompts.append((who, prompt))
        return self.reply(who, prompt, times)


class FakeLM(LM):
    """A model of the harness that answers by a function of the prompt and of how often it was asked."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def generate_until(self, requests):
        asked, found = Counter(), []
        for prompt in (request.args[0] for request in requests):
            found.append(self.reply(prompt, asked[prompt]))
            asked[prompt] += 1
        return found

    def loglikelihood(self, requests):
        return [
            (float(self.reply(prompt, 0) == choice), False) for prompt, choice in (r.args for r in requests)
        ]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


class FakeVLLM:
    """Stands for lm_eval's wrapper of vLLM: takes no argument that the wrapper does not name.

    An answer shows whether the adapter's request was with the question.
    """

    def __init__(self, monkeypatch):
        self.settings, self.seen, self.running = [], [], weakref.WeakSet()
        self.names = {argument.arg for argument in vllm_wrapper()["__init__"][0].args.args}
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", SimpleNamespace(VLLM=self.start))

    def start(self, **settings):
        assert settings.keys() <= self.names
        assert sys.stdout.fileno() != sys.__stdout__.fileno()  # vLLM asks for it, and nothing is seen of it
        self.settings.append(settings)
        self.seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        lm = FakeLM(lambda _prompt, _times: f" {1 if lm.lora_request else 2}")
        lm.lora_request, lm.max_length = "request", settings["max_model_len"]
        self.running.add(lm)
        return lm


def vllm_wrapper():
    """The methods of lm_eval's wrapper of vLLM, parsed and as text: it cannot be imported without vLLM."""
    text = Path(lm_eval.models.__file__).with_name("vllm_causallms.py").read_text()
    (wrapper,) = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == "VLLM")
    methods = [node for node in wrapper.body if isinstance(node, ast.FunctionDef)]
    return {node.name: (node, ast.get_source_segment(text, node)) for node in methods}
