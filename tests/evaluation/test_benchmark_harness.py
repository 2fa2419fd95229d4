"""What lm-evaluation-harness is given and gives back, with a tiny real model and with models of a table."""

import ast
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_helpers import TULU, common, fake_lm, of_variant, wide_model, with_adapter
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import BloomConfig, BloomForCausalLM

from builders import build_tokenizer
from clusterucb.data.chat import Template, chat_format
from clusterucb.errors import ConfigError
from clusterucb.evaluation.harness import VLLM, HuggingFace, ask, require_harness, stops
from clusterucb.tasks import TASKS

pytestmark = pytest.mark.usefixtures("small")
IM_END = "<|im_end|>"


def beginning_tokenizer():
    """One that puts a begin token before every text by itself, as Llama's does."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    first = ("<|endoftext|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[first]
    )
    return tokenizer


def hf(model, tokenizer=None, chat=TULU):
    return HuggingFace(lambda: model, tokenizer or build_tokenizer(), chat)


def answers(engine, name, data, who="base", batch=4, chat=TULU, seed=0, **changes):
    _, variant, found = of_variant(name, data, chat)
    variant = replace(variant, **changes)
    with engine.asked(who, batch) as lm:
        return ask(lm, variant, [d["context"] for d in found], stops(variant, chat), seed)


def ids_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fed(model, engine, name, data, chat, batch=1):
    """The ids that the model is given first in each call, without padding."""
    seen = []

    def note(_module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        if ids.shape[1] > 1:  # a later step of a generation has a single token
            seen.extend(row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True))

    hook = model.get_base_model().register_forward_pre_hook(note, with_kwargs=True)
    answers(engine, name, data, batch=batch, chat=chat)
    hook.remove()
    return sorted(seen)


@pytest.mark.parametrize("tokenizer", [build_tokenizer(), beginning_tokenizer()], ids=["plain", "begins"])
@pytest.mark.parametrize("form", ["tulu", "template"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_generating_model_is_fed_our_own_tokens(tokenizer, form, batch, data):
    """With padding on the left, and no second begin token."""
    chat, model = chat_format(form, tokenizer), with_adapter(wide_model())
    own = [ids_of(document["context"], tokenizer) for document in of_variant("gsm8k", data, chat)[2]]
    if form == "tulu" and tokenizer.bos_token:
        assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in own)
    assert fed(model, hf(model, tokenizer, chat), "gsm8k", data, chat, batch) == sorted(own)


@pytest.mark.parametrize("tokenizer", [build_tokenizer(), beginning_tokenizer()], ids=["plain", "begins"])
def test_a_choosing_model_is_fed_our_own_tokens(tokenizer, data):
    """A choice's tokens but the last, which nothing follows; the same input is not computed twice."""
    chat, model = chat_format("tulu", tokenizer), with_adapter(wide_model())
    _, _, found = of_variant("mmlu_0shot", data, chat)
    own = {tuple(ids_of(d["context"] + choice, tokenizer)[:-1]) for d in found for choice in d["choices"]}
    begun = sum(ids.count(tokenizer.bos_token_id) for ids in own)
    assert begun == (len(own) if tokenizer.bos_token else 0)
    seen = fed(model, hf(model, tokenizer, chat), "mmlu_0shot", data, chat)
    assert {tuple(ids) for ids in seen} == own


@pytest.mark.parametrize("name", ["mmlu_0shot", "mmlu_5shot"])
@pytest.mark.parametrize("who", ["base", "adapter"])
def test_a_choice_has_the_log_likelihood_of_the_models_own_logits(name, who, data):
    tokenizer, model = build_tokenizer(), with_adapter(wide_model())
    found = answers(hf(model, tokenizer), name, data, who)
    plain = model if who == "adapter" else wide_model()
    for document, likelihoods in zip(of_variant(name, data)[2], found, strict=True):
        slow = [likelihood(plain, tokenizer, document["context"], c) for c in document["choices"]]
        assert likelihoods == pytest.approx(slow, abs=1e-4)


def likelihood(model, tokenizer, context, choice):
    """Log-probability of the choice's tokens, one at a time."""
    before, ids = ids_of(context, tokenizer), ids_of(context + choice, tokenizer)
    with torch.no_grad():
        steps = [
            torch.log_softmax(model(torch.tensor([ids[:i]])).logits[0, -1], -1)[ids[i]]
            for i in range(len(before), len(ids))
        ]
    return float(sum(steps))


@pytest.mark.parametrize("name", ["mmlu_0shot", "gsm8k"])
def test_the_base_answers_as_a_model_without_adapter_and_the_adapter_otherwise(name, data):
    model = with_adapter(wide_model())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    engine = hf(model)
    base, adapted, again = (answers(engine, name, data, who) for who in ("base", "adapter", "base"))
    untouched = hf(with_adapter(wide_model(), scale=0.0))  # its adapter adds nothing
    assert base == again == answers(untouched, name, data, "adapter")
    assert adapted != base
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_generation_takes_the_likeliest_token_each_time_whatever_the_model_prefers(data):
    """A penalty or a temperature in the model's generation_config is not the benchmark's."""
    model, tokenizer = with_adapter(wide_model()), build_tokenizer()
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    found = answers(hf(model, tokenizer), "gsm8k", data, "adapter", batch=1)
    _, variant, asked = of_variant("gsm8k", data)
    for document, responses in zip(asked, found, strict=True):
        ids = ids_of(document["context"], tokenizer)
        prompt = len(ids)
        with torch.no_grad():
            for _ in range(variant.max_new_tokens):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        written = tokenizer.decode(ids[prompt:])
        assert responses == [written.split(IM_END)[0].split("\n\nQuestion:")[0]]


def test_what_a_model_writes_after_the_end_of_its_answer_does_not_count(data):
    """Even where the template's end token is not the tokenizer's, and others of the batch go on."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    chat, model = Template(tokenizer), with_adapter(wide_model())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    end = tokenizer.convert_tokens_to_ids(IM_END)
    yes, no = ids_of("a", tokenizer)[0], ids_of("b", tokenizer)[0]
    scripts, step = [[yes, end, no, no, no, no], [no] * 6, [yes] * 6], iter(range(100))

    def dictate(_module, _args, logits):
        now = next(step)
        for row, script in enumerate(scripts):
            logits[row, -1] = 0
            logits[row, -1, script[now]] = 1000
        return logits

    model.get_base_model().lm_head.register_forward_hook(dictate)
    found = answers(hf(model, tokenizer, chat), "gsm8k", data, chat=chat, batch=3)
    assert sorted(found) == [["a"], ["aaaaaa"], ["bbbbbb"]]


def test_an_answer_ends_where_the_chat_format_ends_it_or_the_benchmark():
    variant = replace(TASKS["gsm8k"].variants["gsm8k"], stop=("\n\nQuestion:",))
    endless, thinking = build_tokenizer(), build_tokenizer()
    endless.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    content = "{{ m['content'] }}"
    thought = thinking.chat_template.replace(content, f"<think>\n</think>\n{content}")
    thinking.chat_template = thought
    for chat in (TULU, Template(build_tokenizer()), Template(thinking)):
        assert stops(variant, chat) == ["\n\nQuestion:", IM_END]
    assert stops(variant, Template(endless)) == ["\n\nQuestion:"]


@pytest.mark.parametrize("samples", [1, 3])
def test_as_many_programs_are_written_as_were_asked_for_in_the_order_of_the_prompts(samples, data):
    _, variant, _ = of_variant("humaneval_pass1", data)
    lm = fake_lm(lambda prompt, times: f"{prompt}{times}")
    found = ask(lm, replace(variant, samples=samples), ["b", "a", "c"], [], 0)
    assert found == [[f"{prompt}{times}" for times in range(samples)] for prompt in "bac"]


def test_programs_depend_on_the_seed_alone(data):
    """Not on what the model's own settings say: with top_k 1 there would be no choice."""
    model = with_adapter(wide_model())
    model.generation_config.top_k = 1
    engine = hf(model)
    first, again, other = (
        answers(engine, "humaneval_pass10", data, seed=seed, samples=4) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first[0])) > 1


def test_every_token_can_be_drawn_that_top_p_leaves(data):
    """Not only the 50 likeliest, as transformers has it: here all 320 are alike."""
    model, drawn = with_adapter(wide_model()), set()

    def level(_module, _args, logits):
        return logits * 0 + torch.arange(logits.shape[-1]) * 1e-6

    def note(_module, args, kwargs):
        ids = kwargs["input_ids"]
        drawn.update(ids[:, 0].tolist() if ids.shape[1] == 1 else ())

    base = model.get_base_model()
    base.lm_head.register_forward_hook(level)
    base.register_forward_pre_hook(note, with_kwargs=True)
    answers(hf(model), "humaneval_pass10", data, samples=20, batch=40, top_p=1.0)
    assert len(drawn) > 80


def test_a_model_that_names_no_window_has_the_tokenizers_or_the_harnesss():
    tokenizer = build_tokenizer()
    assert hf(with_adapter(wide_model())).window == 4096
    endless = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=8, n_layer=1, n_head=2))
    model = get_peft_model(endless, LoraConfig(target_modules=["dense"]))  # of no task type, besides
    assert hf(model).window == 2048
    tokenizer.model_max_length = 777
    assert hf(model, tokenizer).window == 777


def test_an_error_in_the_harness_comes_through_and_leaves_nothing_silenced(data):
    def fail(_prompt, _times):
        logging.getLogger("lm_eval").warning("not to be seen")
        raise ValueError("no such tensor")

    _, variant, _ = of_variant("gsm8k", data)
    level, streams = logging.getLogger("lm_eval").level, (sys.stdout, sys.stderr)
    with pytest.raises(ValueError, match="no such tensor"):
        ask(fake_lm(fail), variant, ["?"], [], 0)
    assert (logging.getLogger("lm_eval").level, (sys.stdout, sys.stderr)) == (level, streams)


# ---------------------------------------------------------------- vLLM


@pytest.fixture
def started(monkeypatch):
    """A stand-in for vLLM; the settings that it was started with."""
    found = []

    def start(**settings):
        found.append(settings)
        return SimpleNamespace(lora_request=f"request for {settings['lora_local_path']}", max_length=321)

    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", SimpleNamespace(VLLM=start))
    return found


@pytest.fixture
def vllm(tmp_path):
    """An engine for an adapter with the given settings."""

    def engine(**settings):
        content = {"peft_type": "LORA", "r": 8, **settings}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        return VLLM(common(tmp_path, tmp_path, [], dtype="bfloat16", seed=5), tmp_path)

    return engine


def test_one_vllm_engine_answers_for_the_base_without_and_for_the_adapter_with_a_request(
    started, vllm, tmp_path
):
    engine, requests = vllm(r=100), []
    assert started == []
    for who in ("base", "adapter", "base"):
        with engine.asked(who, 4) as lm:
            requests.append(lm.lora_request)
    assert requests == [None, f"request for {tmp_path}", None]
    assert engine.window == 321
    assert started == [
        {
            "pretrained": "a/model",
            "dtype": "bfloat16",
            "seed": 5,
            "trust_remote_code": False,
            "add_bos_token": False,
            "lora_local_path": str(tmp_path),
            "max_lora_rank": 128,
        }
    ]


def test_vllm_takes_the_arguments_that_we_give_and_asks_with_the_request_that_we_set():
    """In its wrapper's own source: vLLM itself is not installed here."""
    import lm_eval.models

    source = (Path(lm_eval.models.__file__).parent / "vllm_causallms.py").read_text()
    (wrapper,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "VLLM")
    methods = {n.name: n for n in wrapper.body if isinstance(n, ast.FunctionDef)}
    text = {name: ast.get_source_segment(source, method) for name, method in methods.items()}
    names = {argument.arg for argument in methods["__init__"].args.args}
    assert {"pretrained", "dtype", "seed", "trust_remote_code", "add_bos_token"} <= names
    assert {"lora_local_path", "max_lora_rank"} <= names
    assert '"enable_lora": bool(lora_local_path)' in text["__init__"]
    assert "lora_request=self.lora_request" in text["_model_generate"]
    assert all("self._model_generate(" in text[name] for name in ("generate_until", "_loglikelihood_tokens"))


def test_vllm_has_room_for_the_adapters_rank(started, vllm):
    for rank in (1, 8, 9, 128, 257, 512):
        _ = vllm(r=rank).window
        _ = vllm(r=1, rank_pattern={"q_proj": rank}).window
    rooms = [settings["max_lora_rank"] for settings in started]
    assert rooms == [8, 8, 8, 8, 16, 16, 128, 128, 320, 320, 512, 512]


def test_what_vllm_cannot_run_and_a_vllm_that_does_not_start_are_one_line(started, vllm, monkeypatch):
    def fail(**_settings):
        raise ValueError("No available memory\nfor the cache blocks.")

    with pytest.raises(ConfigError, match="rank 513 is more than vLLM's 512; use --engine hf"):
        _ = vllm(r=513).window
    with pytest.raises(ConfigError, match="LoRA adapters only; use --engine hf"):
        _ = vllm(peft_type="IA3").window
    monkeypatch.setattr(sys.modules["lm_eval.models.vllm_causallms"], "VLLM", fail)
    with pytest.raises(ConfigError, match=r"vLLM does not start with a/model \(No available memory for the"):
        _ = vllm().window


@pytest.mark.parametrize(
    ("module", "engine", "said"),
    [
        ("lm_eval.models.huggingface", "hf", r"pip install 'clusterucb\[eval\]'"),
        ("vllm", "vllm", r"--engine vllm needs vLLM .*pip install 'clusterucb\[vllm\]'"),
    ],
)
def test_what_is_not_installed_is_said_with_how_to_install_it(module, engine, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=said):
        require_harness(engine)
