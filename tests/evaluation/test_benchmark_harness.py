"""What lm-evaluation-harness is given and gives back, with a tiny real model and with models of a table."""

import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from benchmark_helpers import (
    TOKENIZER,
    TULU,
    FakeLM,
    FakeVLLM,
    common,
    of_variant,
    vllm_wrapper,
    wide_model,
    with_adapter,
)
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


of_each_tokenizer = pytest.mark.parametrize(
    "tokenizer", [TOKENIZER, beginning_tokenizer()], ids=["plain", "begins"]
)


def hf(model, tokenizer=TOKENIZER, chat=TULU):
    return HuggingFace(lambda: model, tokenizer, chat)


def answers(engine, name, data, who="base", batch=4, chat=TULU, seed=0, **changes):
    _, variant, found = of_variant(name, data, chat)
    variant = replace(variant, **changes)
    with engine.asked(who, batch) as lm:
        return ask(lm, variant, [d["context"] for d in found], stops(variant, chat), seed)


def ids_of(text, tokenizer=TOKENIZER):
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


@of_each_tokenizer
@pytest.mark.parametrize("form", ["tulu", "template"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_generating_model_is_fed_our_own_tokens(tokenizer, form, batch, data):
    """With padding on the left, and no second begin token."""
    chat, model = chat_format(form, tokenizer), with_adapter(wide_model())
    own = [ids_of(document["context"], tokenizer) for document in of_variant("gsm8k", data, chat)[2]]
    if form == "tulu" and tokenizer.bos_token:
        assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in own)
    assert fed(model, hf(model, tokenizer, chat), "gsm8k", data, chat, batch) == sorted(own)


@of_each_tokenizer
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
    model = with_adapter(wide_model())
    found = answers(hf(model), name, data, who)
    plain = model if who == "adapter" else wide_model()
    for document, likelihoods in zip(of_variant(name, data)[2], found, strict=True):
        slow = [likelihood(plain, document["context"], choice) for choice in document["choices"]]
        assert likelihoods == pytest.approx(slow, abs=1e-4)


def likelihood(model, context, choice):
    """Log-probability of the choice's tokens, one at a time."""
    before, ids = ids_of(context), ids_of(context + choice)
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
    model = with_adapter(wide_model())
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    found = answers(hf(model), "gsm8k", data, "adapter", batch=1)
    _, variant, asked = of_variant("gsm8k", data)
    for document, responses in zip(asked, found, strict=True):
        ids = ids_of(document["context"])
        prompt = len(ids)
        with torch.no_grad():
            for _ in range(variant.max_new_tokens):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        written = TOKENIZER.decode(ids[prompt:])
        assert responses == [written.split(IM_END)[0].split("\n\nQuestion:")[0]]


def test_what_a_model_writes_after_the_end_of_its_answer_does_not_count(data):
    """Even where the template's end token is not the tokenizer's, and others of the batch go on."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    chat, model = Template(tokenizer), with_adapter(wide_model())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    end = tokenizer.convert_tokens_to_ids(IM_END)
    (yes,), (no,) = ids_of("a"), ids_of("b")
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
    thinking.chat_template = thinking.chat_template.replace(content, f"<think>\n</think>\n{content}")
    for chat in (TULU, Template(TOKENIZER), Template(thinking)):
        assert stops(variant, chat) == ["\n\nQuestion:", IM_END]
    assert stops(variant, Template(endless)) == ["\n\nQuestion:"]


@pytest.mark.parametrize("samples", [1, 3])
def test_as_many_programs_are_written_as_were_asked_for_in_the_order_of_the_prompts(samples, data):
    _, variant, _ = of_variant("humaneval_pass1", data)
    lm = FakeLM(lambda prompt, times: f"{prompt}{times}")
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
        ask(FakeLM(fail), variant, ["?"], [], 0)
    assert (logging.getLogger("lm_eval").level, (sys.stdout, sys.stderr)) == (level, streams)


# ---------------------------------------------------------------- vLLM


@pytest.fixture
def fake(monkeypatch):
    return FakeVLLM(monkeypatch)


@pytest.fixture
def vllm(tmp_path, model_folder):
    """An engine for an adapter with the given settings, and a device."""

    def engine(device="auto", **settings):
        content = {"peft_type": "LORA", "r": 8, **settings}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        given = {"model": str(model_folder), "dtype": "bfloat16", "seed": 5, "device": device}
        return VLLM(common(tmp_path, tmp_path, [], **given), tmp_path)

    return engine


def test_one_vllm_engine_answers_for_the_base_without_and_for_the_adapter_with_a_request(
    fake, vllm, tmp_path, model_folder, monkeypatch
):
    """It starts by a spawn when it is first asked, and is gone after its use, which may fail."""
    monkeypatch.delenv("VLLM_WORKER_MULTIPROCESSING_METHOD", raising=False)
    engine, requests = vllm(r=100), []
    with suppress(KeyError), engine.ready(300):
        assert fake.settings == []
        for who in ("base", "adapter", "base"):
            with engine.asked(who, 4) as lm:
                requests.append(lm.lora_request)
        assert engine.window == 300
        assert len(fake.running) == 1
        del lm
        raise KeyError
    assert requests == [None, "request", None]
    assert os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] == "spawn"
    assert len(fake.running) == 0
    given = {"pretrained": str(model_folder), "lora_local_path": str(tmp_path), "dtype": "bfloat16"}
    sizes = {"max_lora_rank": 128, "max_model_len": 300, "tensor_parallel_size": 1}
    (settings,) = fake.settings
    assert settings == {**given, **sizes, "seed": 5, "trust_remote_code": False, "add_bos_token": False}


def test_vllm_is_asked_with_the_request_that_we_set():
    """In its wrapper's own source: vLLM itself is not installed here."""
    text = {name: text for name, (_, text) in vllm_wrapper().items()}
    assert '"enable_lora": bool(lora_local_path)' in text["__init__"]
    assert "lora_request=self.lora_request" in text["_model_generate"]
    assert all("self._model_generate(" in text[name] for name in ("generate_until", "_loglikelihood_tokens"))


def window(engine, tokens=9999):
    with engine.ready(tokens):
        return engine.window


def test_vllm_has_room_for_the_adapters_rank_and_for_no_more_tokens_than_the_model(fake, vllm):
    for rank in (1, 8, 9, 128, 257, 512):
        assert window(vllm(r=rank)) == window(vllm(r=1, rank_pattern={"q_proj": rank})) == 512
    rooms = [settings["max_lora_rank"] for settings in fake.settings]
    assert rooms == [8, 8, 8, 8, 16, 16, 128, 128, 320, 320, 512, 512]


@pytest.mark.parametrize(
    ("there", "device", "used"),
    [(0, "auto", 1), (2, "cuda", 2), (3, "auto", 2), (5, "auto", 4), (8, "auto", 4), (8, "cuda:1", 1)],
)
def test_vllm_takes_the_gpus_that_four_heads_can_be_shared_by(there, device, used, fake, vllm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    window(vllm(device))
    assert [settings["tensor_parallel_size"] for settings in fake.settings] == [used]


@pytest.mark.parametrize(("visible", "number"), [(None, "1"), ("4,6", "6")])
def test_vllm_sees_the_gpu_that_is_named_and_no_other(visible, number, fake, vllm, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    window(vllm("cuda:1"))
    window(vllm("cuda"))
    assert fake.seen == [number, visible]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_what_vllm_cannot_run_and_a_vllm_that_does_not_start_are_one_line(fake, vllm, monkeypatch):
    def fail(**_settings):
        raise ValueError("No available memory\nfor the cache blocks.")

    with pytest.raises(ConfigError, match="rank 513 is more than vLLM's 512; use --engine hf"):
        window(vllm(r=513))
    with pytest.raises(ConfigError, match="LoRA adapters only; use --engine hf"):
        window(vllm(peft_type="IA3"))
    monkeypatch.setattr(sys.modules["lm_eval.models.vllm_causallms"], "VLLM", fail)
    with pytest.raises(ConfigError, match=r"vLLM does not start with \S+ \(No available memory for the"):
        window(vllm())


def test_a_missing_harness_is_said_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ConfigError, match=r"pip install 'clusterucb\[eval\]'"):
        require_harness("hf")
