"""Small official-shaped files of all five benchmarks, and language models that answer from a table."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from builders import build_model, build_tokenizer
from clusterucb.config import Common, load_as
from clusterucb.data.chat import Tulu
from clusterucb.evaluation.benchmarks import Benchmarks
from clusterucb.evaluation.documents import documents
from clusterucb.runtime.screen import Screen
from clusterucb.tasks import TASKS

ALL = ["mmlu", "bbh", "tydiqa", "gsm8k", "humaneval"]
TULU = Tulu("<|im_end|>")
TOKENIZER = build_tokenizer()


def write_data(folder):
    """MMLU: 3 + 1 questions of two subjects, BBH 2 + 1 of two tasks, TyDi 2 + 1, GSM8K 3, HumanEval 2."""
    mmlu = {"anatomy": ["toe", "ear", "eye"], "law": ["sum"]}
    for subject, words in mmlu.items():
        _csv(folder / f"mmlu/dev/{subject}_dev.csv", [[f"dev {n}?", *"pqrs", "ABCDA"[n]] for n in range(5)])
        rows = [[f"Is it {word}?", "no", word, "x y", "4", "B"] for word in words]
        _csv(folder / f"mmlu/test/{subject}_test.csv", rows)
    for task, examples in {"sums": [("4 + 4", "8"), ("1 - 6", "-5")], "order": [("h g", "g h")]}.items():
        shot = "Q: {n}\nA: Let's think step by step.\nSo the answer is {n}."
        shots = "\n\n".join(shot.format(n=n) for n in range(3))
        _text(folder / f"bbh/cot-prompts/{task}.txt", f"canary\n-----\nDo {task}.\n\n{shots}")
        found = [{"input": given, "target": target} for given, target in examples]
        _text(folder / f"bbh/{task}.json", json.dumps({"examples": found}))
    train = [(f"{language}-1-0", "A train.", "Where?", ["here"]) for language in ("english", "finnish")]
    dev = [("english-2-0", "The cat sat.", "Who?", ["The Cat sat", "cat"])]
    dev += [(f"finnish-{n}-0", f"Kissa {n} on.", "Kuka?", ["kissa"]) for n in (2, 3)]
    for split, items in {"train": train, "dev": dev}.items():
        _text(folder / f"tydiqa/tydiqa-goldp-v1.1-{split}.json", json.dumps({"data": _squad(items)}))
    for split in ("train", "test"):
        rows = [{"question": f"{n} {split} pens?", "answer": f"{n}+1=\n#### {n + 1}"} for n in range(3)]
        _text(folder / f"gsm8k/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _text(folder / "humaneval/HumanEval.jsonl", "".join(json.dumps(_problem(n)) + "\n" for n in range(2)))
    return folder


def _problem(n):
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f'\n\ndef add{n}(x):\n    """Add {n}."""\n',
        "entry_point": f"add{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(f):\n    assert f(1) == {n + 1}\n",
    }


def _squad(items):
    return [
        {"paragraphs": [{"context": context, "qas": [{"id": key, "question": question, "answers": spans}]}]}
        for key, context, question, answers in items
        for spans in [[{"text": text, "answer_start": 0} for text in answers]]
    ]


def _text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


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


def save_model(folder, **options):
    wide_model(**options).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder, model_folder, model=None, **options):
    model = model or wide_model()
    model.name_or_path = str(model_folder)
    adapted = with_adapter(model, **options)
    adapted.peft_config["default"].base_model_name_or_path = str(model_folder)
    adapted.save_pretrained(folder)
    return folder


def common(data, out, tasks, **changes):
    """Settings of an evaluation without a run."""
    given = {"model": "a/model", "out": str(out), "tasks": tasks, "data_dir": str(data), "samples": 10}
    return load_as(Common, None, {**given, "allow_code_execution": True, **changes})


def evaluation(config, engine, chat=TULU, tokenizer=None, adapter="a", leave_out=()):
    """The benchmarks of `config`, asked of an engine."""
    tokenizer, folder = tokenizer or TOKENIZER, Path(config.out) / "benchmarks"
    unwanted = frozenset(leave_out)
    return Benchmarks(config, engine, adapter, tokenizer, chat, folder, unwanted, Screen(quiet=True))


def of_variant(name, data, chat=TULU):
    """A benchmark by the name of its variant: the task, the variant, and its questions as documents."""
    task = next(task for task in TASKS.values() if name in task.variants)
    found, _ = documents(task, task.variants[name], chat, data)
    return task, task.variants[name], found


class FakeEngine:
    """Models that answer by a function: (who, prompt, how often it was asked before) -> text.

    Of choices, the one that the function gives is the likeliest.
    """

    def __init__(self, reply=lambda _who, _prompt, _times: " A", window=10**6, failures=()):
        self.reply, self.window, self.base = reply, window, {"model": "m"}
        self.batches, self.prompts, self.failures = [], [], iter(failures)

    @contextmanager
    def asked(self, who, batch):
        self.batches.append(batch)
        if failure := next(self.failures, None):
            raise failure
        yield fake_lm(lambda prompt, times: self._reply(who, prompt, times))

    def _reply(self, who, prompt, times):
        self.prompts.append((who, prompt))
        return self.reply(who, prompt, times)


def fake_lm(reply):
    """A model of the harness that answers by a function of the prompt and of how often it was asked."""
    from lm_eval.api.model import LM

    class Fake(LM):
        def generate_until(self, requests):
            asked = {}
            return [reply(context, _count(asked, context)) for context, _ in (r.args for r in requests)]

        def loglikelihood(self, requests):
            return [(float(reply(c, 0) == choice), False) for c, choice in (r.args for r in requests)]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    return Fake()


def _count(asked, key):
    asked[key] = asked.get(key, -1) + 1
    return asked[key]
