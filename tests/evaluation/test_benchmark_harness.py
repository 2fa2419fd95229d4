"""What lm-evaluation-harness is given and gives back, with a tiny real model and with models of a table."""

import json
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from benchmark_helpers import ALL, TULU, fake_lm, short, wide_model, with_adapter, write_data
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import BloomConfig, BloomForCausalLM

from builders import build_tokenizer
from clusterucb.data.chat import Template, chat_format, encode
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError
from clusterucb.evaluation.harness import (
    TASK_FILES,
    VLLM,
    HuggingFace,
    adapter_for_vllm,
    ask,
    documents,
    require_harness,
    stops,
)
from clusterucb.tasks import TASKS

IM_END = "<|im_end|>"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("official"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    short(monkeypatch)


def beginning_tokenizer():
    """One that puts a begin token before every text by itself, as Llama's does."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    first = ("<|endoftext|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[first]
    )
    return tokenizer


def questions(name, data, chat=TULU, limit=None):
    variant = VARIANTS[name]
    task = TASKS[variant]
    found, _ = documents(task, task.variants[name], chat, data, limit=limit)
    return task.name, task.variants[name], found


VARIANTS = {name: task.name for task in TASKS.values() for name in task.variants}


def answers(engine, name, data, who="base", batch=4, chat=TULU, seed=0, **changes):
    task, variant, found = questions(name, data, chat)
    variant = replace(variant, **changes)
    with engine.asked(who, batch) as lm:
        return ask(lm, task, variant, found, stops(variant, chat), seed)


def fed(model, engine, name, data, chat, batch=1):
    """The ids that the model is given first in each call, without padding."""
    seen = []

    def note(_module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        if ids.shape[1] > 1:  # a later step of a generation has a single token
            seen.extend(row[row_mask.bool()] for row, row_mask in zip(ids, _like(mask, ids), strict=True))

    hook = model.get_base_model().register_forward_pre_hook(note, with_kwargs=True)
    answers(engine, name, data, batch=batch, chat=chat)
    hook.remove()
    return sorted(row.tolist() for row in seen)


def _like(mask, ids):
    return torch.ones_like(ids) if mask is None else mask


@pytest.mark.parametrize("tokenizer", [build_tokenizer(), beginning_tokenizer()], ids=["plain", "begins"])
@pytest.mark.parametrize("form", ["tulu", "template"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_generating_model_is_fed_our_own_tokens(tokenizer, form, batch, data):
    """With padding on the left, and no second begin token."""
    chat, model = chat_format(form, tokenizer), with_adapter(wide_model())
    _, _, found = questions("gsm8k", data, chat)
    own = [encode_text(document["context"], tokenizer) for document in found]
    if form == "tulu" and tokenizer.bos_token:
        assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in own)
    assert fed(model, HuggingFace(model, tokenizer, chat), "gsm8k", data, chat, batch) == sorted(own)


@pytest.mark.parametrize("tokenizer", [build_tokenizer(), beginning_tokenizer()], ids=["plain", "begins"])
def test_a_choosing_model_is_fed_our_own_tokens(tokenizer, data):
    """A choice's tokens but the last, which nothing follows; the same input is not computed twice."""
    chat, model = chat_format("tulu", tokenizer), with_adapter(wide_model())
    _, _, found = questions("mmlu_0shot", data, chat)
    whole = [encode_text(d["context"] + choice, tokenizer) for d in found for choice in d["choices"]]
    own = sorted({tuple(ids[:-1]) for ids in whole})
    assert sum(ids.count(tokenizer.bos_token_id) for ids in map(list, own)) == (
        len(own) if tokenizer.bos_token else 0
    )
    seen = fed(model, HuggingFace(model, tokenizer, chat), "mmlu_0shot", data, chat)
    assert sorted({tuple(ids) for ids in seen}) == own


def encode_text(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_tokens_of_a_prompt_are_those_that_its_row_is_trained_on(data):
    """The opening and the answer do not merge into other tokens."""
    tokenizer = build_tokenizer()
    for question in TASKS["gsm8k"].targets(data, 3, 0):
        found = replace(TASKS["gsm8k"], questions=lambda _d, _s, q=question: iter([q]))
        (document,), _ = documents(found, TASKS["gsm8k"].variants["gsm8k"], TULU, data)
        messages = [Message("user", question.ask)]
        messages.append(Message("assistant", question.opening + question.answer, question.opening))
        row = encode(messages, tokenizer, TULU, "row")
        given = row.ids[: int(row.labels.argmax())].tolist()
        assert given == encode_text(document["context"], tokenizer)


@pytest.mark.parametrize("name", ["mmlu_0shot", "mmlu_5shot"])
@pytest.mark.parametrize("who", ["base", "adapter"])
def test_the_chosen_letter_is_the_likeliest_by_the_models_own_logits(name, who, data):
    tokenizer, model = build_tokenizer(), with_adapter(wide_model())
    found = answers(HuggingFace(model, tokenizer, TULU), name, data, who)
    _, _, asked = questions(name, data)
    plain = model if who == "adapter" else wide_model()
    for document, answered in zip(asked, found, strict=True):
        slow = [likelihood(plain, tokenizer, document["context"], c) for c in document["choices"]]
        assert answered["responses"] == pytest.approx(slow, abs=1e-4)
        assert answered["acc"] == float(slow.index(max(slow)) == document["label"])
        assert (answered["id"], answered["subtask"]) == (document["id"], document["subtask"])


def likelihood(model, tokenizer, context, choice):
    """Log-probability of the choice's tokens, one at a time."""
    before, ids = encode_text(context, tokenizer), encode_text(context + choice, tokenizer)
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
    engine = HuggingFace(model, build_tokenizer(), TULU)
    base, adapted, again = (answers(engine, name, data, who) for who in ("base", "adapter", "base"))
    untouched = with_adapter(wide_model(), scale=0.0)  # its adapter adds nothing
    assert base == again == answers(HuggingFace(untouched, build_tokenizer(), TULU), name, data, "adapter")
    assert [a["responses"] for a in adapted] != [a["responses"] for a in base]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_generation_takes_the_likeliest_token_each_time_whatever_the_model_prefers(data):
    """A penalty or a temperature in the model's generation_config is not the benchmark's."""
    model, tokenizer = with_adapter(wide_model()), build_tokenizer()
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    found = answers(HuggingFace(model, tokenizer, TULU), "gsm8k", data, "adapter", batch=1)
    _, variant, asked = questions("gsm8k", data)
    for document, answered in zip(asked, found, strict=True):
        ids = encode_text(document["context"], tokenizer)
        prompt = len(ids)
        with torch.no_grad():
            for _ in range(variant.max_new_tokens):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        written = tokenizer.decode(ids[prompt:])
        assert answered["responses"] == [written.split(IM_END)[0].split("\n\nQuestion:")[0]]


def test_what_a_model_writes_after_the_end_of_its_answer_does_not_count(data):
    """Even where the template's end token is not the tokenizer's, and others of the batch go on."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    chat, model = Template(tokenizer), with_adapter(wide_model())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    end = tokenizer.convert_tokens_to_ids(IM_END)
    yes, no = encode_text("a", tokenizer)[0], encode_text("b", tokenizer)[0]
    scripts, step = [[yes, end, no, no, no, no], [no] * 6, [yes] * 6], iter(range(100))

    def dictate(_module, _args, logits):
        now = next(step)
        for row, script in enumerate(scripts):
            logits[row, -1] = 0
            logits[row, -1, script[now]] = 1000
        return logits

    hook = model.get_base_model().lm_head.register_forward_hook(dictate)
    found = answers(HuggingFace(model, tokenizer, chat), "gsm8k", data, chat=chat, batch=3)
    hook.remove()
    assert sorted(a["responses"][0] for a in found) == ["a", "aaaaaa", "bbbbbb"]


def test_an_answer_ends_where_the_chat_format_ends_it_or_the_benchmark():
    variant = replace(TASKS["gsm8k"].variants["gsm8k"], stop=("\n\nQuestion:",))
    assert stops(variant, TULU) == ["\n\nQuestion:", IM_END]
    assert stops(variant, Template(build_tokenizer())) == ["\n\nQuestion:", IM_END]
    endless = build_tokenizer()
    endless.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert stops(variant, Template(endless)) == ["\n\nQuestion:"]
    thinking = build_tokenizer()
    thinking.chat_template = thinking.chat_template.replace(
        "{{ m['content'] }}", "<think>\n</think>\n{{ m['content'] }}"
    )
    assert stops(variant, Template(thinking)) == ["\n\nQuestion:", IM_END]


def right(document):
    gold = json.loads(document["gold"])
    return {
        "mmlu": document["answer"],
        "bbh": f" Let's think step by step.\nSo the answer is {gold.get('target')}.",
        "tydiqa": f" {gold.get('answers', [''])[0]}",
        "gsm8k": f" 1 + 1, and so on. The answer is {gold.get('number')}.",
        "humaneval": document["answer"],
    }


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "humaneval_pass10"])
def test_right_answers_score_one_and_wrong_ones_zero(name, data):
    task, variant, found = questions(name, data)
    variant = replace(variant, samples=min(variant.samples, 2))
    by_prompt = {document["context"]: right(document)[task] for document in found}
    for reply, expected in ((by_prompt.get, 1.0), ((lambda _prompt: " A"), 0.0)):
        lm = fake_lm(lambda prompt, _times, reply=reply: reply(prompt))
        scored = ask(lm, task, variant, found, [], 0)
        assert [s["id"] for s in scored] == [document["id"] for document in found]
        for metric in variant.metrics:
            assert [s[metric] for s in scored] == [expected] * len(found)


def test_a_part_of_the_words_has_its_f1(data):
    """ "the big cat" against "The Cat sat" and "cat": articles do not count, so 2/3 for the second."""
    task, variant, found = questions("tydiqa", data)
    english = [document for document in found if document["subtask"] == "english"]
    (scored,) = ask(fake_lm(lambda _prompt, _times: " the big cat\nno"), task, variant, english, [], 0)
    assert scored["f1"] == pytest.approx(2 / 3)
    assert scored["exact_match"] == 0.0
    assert scored["responses"] == [" the big cat\nno"]


def test_pass_at_k_counts_the_programs_that_pass(data):
    """Of 12 programs 2 pass: pass@10 is 1 - C(10, 10) / C(12, 10), pass@1 is 2 / 12."""
    _, _, (problem, _) = questions("humaneval_pass10", data)

    def reply(_prompt, times):
        return problem["answer"] if times in (3, 7) else "    return None\n"

    for name, expected in {"humaneval_pass10": 1 - 1 / 66, "humaneval_pass1": 2 / 12}.items():
        task, variant, _ = questions(name, data)
        (scored,) = ask(fake_lm(reply), task, replace(variant, samples=12), [problem], [], 0)
        assert scored[variant.metrics[0]] == pytest.approx(expected)
        assert len(scored["responses"]) == 12


@pytest.mark.parametrize("samples", [1, 3])
def test_as_many_programs_are_written_as_were_asked_for(samples, data):
    task, variant, found = questions("humaneval_pass1", data)
    asked = []

    def reply(prompt, _times):
        asked.append(prompt)
        return found[0]["answer"]

    scored = ask(fake_lm(reply), task, replace(variant, samples=samples), found, [], 0)
    assert len(asked) == samples * len(found)
    assert [s["pass@1"] for s in scored] == [1.0, 0.0]  # the first problem's solution solves no other


def test_programs_depend_on_the_seed_alone(data):
    """Not on what the model's own settings say: with top_k 1 there would be no choice."""
    model = with_adapter(wide_model())
    model.generation_config.top_k = 1
    engine = HuggingFace(model, build_tokenizer(), TULU)
    first, again, other = (
        [a["responses"] for a in answers(engine, "humaneval_pass10", data, seed=seed, samples=4)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first[0])) > 1


def test_the_tokenizer_is_not_changed(data):
    """The harness gives one without a padding token one: ours would have another fingerprint then."""
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    found = answers(HuggingFace(with_adapter(wide_model()), tokenizer, TULU), "gsm8k", data, batch=3)
    assert tokenizer.pad_token is None
    assert found == answers(HuggingFace(with_adapter(wide_model()), build_tokenizer(), TULU), "gsm8k", data)


def test_a_model_that_names_no_window_has_the_tokenizers_or_the_harnesss(data):
    tokenizer = build_tokenizer()
    assert HuggingFace(with_adapter(wide_model()), tokenizer, TULU).window == 4096
    endless = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=8, n_layer=1, n_head=2))
    model = get_peft_model(endless, LoraConfig(target_modules=["dense"]))  # of no task type, besides
    assert HuggingFace(model, tokenizer, TULU).window == 2048
    tokenizer.model_max_length = 777
    assert HuggingFace(model, tokenizer, TULU).window == 777


def test_an_error_in_the_harness_comes_through_and_leaves_nothing_silenced(data):
    def fail(_prompt, _times):
        logging.getLogger("lm_eval").warning("not to be seen")
        raise ValueError("no such tensor")

    task, variant, found = questions("gsm8k", data)
    level, streams = logging.getLogger("lm_eval").level, (sys.stdout, sys.stderr)
    with pytest.raises(ValueError, match="no such tensor"):
        ask(fake_lm(fail), task, variant, found, [], 0)
    assert (logging.getLogger("lm_eval").level, (sys.stdout, sys.stderr)) == (level, streams)


def test_our_task_files_work_in_the_harness_by_themselves(data, tmp_path):
    """As their heads say: include_path, and the documents that an evaluation has left."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    assert sorted(path.stem for path in TASK_FILES.glob("*.yaml")) == sorted(ALL)
    for name in ALL:
        task, variant, found = questions(next(iter(TASKS[name].variants)), data)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(document) + "\n" for document in found))
        by_prompt = {document["context"]: right(document)[task] for document in found}
        manager = TaskManager(
            include_path=str(TASK_FILES), include_defaults=False, metadata={"documents": str(path)}
        )
        loaded = (getattr(manager, "load", None) or manager.load_task_or_group)([f"clusterucb_{name}"])
        lm = fake_lm(lambda prompt, _times, by_prompt=by_prompt: by_prompt[prompt])
        results = evaluate(lm, loaded, bootstrap_iters=0, confirm_run_unsafe_code=True)
        scores = results["results"][f"clusterucb_{name}"]
        assert next(v for key, v in scores.items() if key.startswith(f"{variant.metrics[0]},")) == 1.0


def test_every_token_can_be_drawn_that_top_p_leaves(data):
    """Not only the 50 likeliest, as transformers has it: here all 320 are alike."""
    tokenizer, model = build_tokenizer(), with_adapter(wide_model())
    engine, drawn = HuggingFace(model, tokenizer, TULU), set()

    def level(_module, _args, logits):
        return logits * 0 + torch.arange(logits.shape[-1]) * 1e-6

    def note(_module, args, kwargs):
        ids = kwargs["input_ids"]
        drawn.update(ids[:, 0].tolist() if ids.shape[1] == 1 else ())

    base = model.get_base_model()
    hooks = [base.lm_head.register_forward_hook(level)]
    hooks.append(base.register_forward_pre_hook(note, with_kwargs=True))
    answers(engine, "humaneval_pass10", data, samples=20, batch=40, top_p=1.0)
    for hook in hooks:
        hook.remove()
    assert len(drawn) > 80


class FakeVLLM:
    """Notes how it was started and what request goes with each question."""

    started: ClassVar[list] = []

    def __init__(self, **settings):
        FakeVLLM.started.append(settings)
        self.lora_request = f"request for {settings['lora_local_path']}"
        self.max_length = 321


@pytest.fixture
def vllm(monkeypatch):
    fake = SimpleNamespace(VLLM=FakeVLLM)
    FakeVLLM.started = []
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", fake)
    return fake


def write_adapter(folder, **settings):
    folder.mkdir(exist_ok=True)
    content = {"peft_type": "LORA", "r": 8, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def test_one_vllm_engine_answers_for_the_base_without_and_for_the_adapter_with_a_request(vllm, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", r=100)
    engine = VLLM("a/model", adapter, dtype="bfloat16", seed=5, trust_remote_code=False)
    assert FakeVLLM.started == []
    requests = []
    for who in ("base", "adapter", "base"):
        with engine.asked(who, 4) as lm:
            requests.append(lm.lora_request)
    assert requests == [None, f"request for {adapter}", None]
    assert engine.window == 321
    assert FakeVLLM.started == [
        {
            "pretrained": "a/model",
            "dtype": "bfloat16",
            "seed": 5,
            "trust_remote_code": False,
            "add_bos_token": False,
            "lora_local_path": str(adapter),
            "max_lora_rank": 128,
        }
    ]


def test_vllm_takes_the_arguments_that_we_give_and_asks_with_the_request_that_we_set():
    """In its wrapper's own source: vLLM itself is not installed here."""
    import ast
    from pathlib import Path

    import lm_eval.models

    source = (Path(lm_eval.models.__file__).parent / "vllm_causallms.py").read_text()
    (wrapper,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "VLLM")
    methods = {n.name: n for n in wrapper.body if isinstance(n, ast.FunctionDef)}
    names = {argument.arg for argument in methods["__init__"].args.args}
    assert {"pretrained", "dtype", "seed", "trust_remote_code", "add_bos_token"} <= names
    assert {"lora_local_path", "max_lora_rank"} <= names
    assert '"enable_lora": bool(lora_local_path)' in ast.get_source_segment(source, methods["__init__"])
    generate = ast.get_source_segment(source, methods["_model_generate"])
    assert "lora_request=self.lora_request" in generate
    assert "self._model_generate(" in ast.get_source_segment(source, methods["generate_until"])
    assert "self._model_generate(" in ast.get_source_segment(source, methods["_loglikelihood_tokens"])


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (128, 128), (257, 320), (512, 512)])
def test_vllm_has_room_for_the_adapters_rank(rank, room, tmp_path):
    assert adapter_for_vllm(write_adapter(tmp_path, r=rank))["max_lora_rank"] == room
    pattern = write_adapter(tmp_path, r=1, rank_pattern={"q_proj": rank})
    assert adapter_for_vllm(pattern)["max_lora_rank"] == room


def test_what_vllm_cannot_run_is_refused(vllm, tmp_path):
    with pytest.raises(ConfigError, match="rank 513 is more than vLLM's 512; use --engine hf"):
        adapter_for_vllm(write_adapter(tmp_path, r=513))
    with pytest.raises(ConfigError, match="LoRA adapters only; use --engine hf"):
        adapter_for_vllm(write_adapter(tmp_path, peft_type="IA3"))


def test_a_vllm_that_does_not_start_is_one_line(vllm, tmp_path, monkeypatch):
    def fail(**_settings):
        raise ValueError("No available memory\nfor the cache blocks.")

    monkeypatch.setattr(vllm, "VLLM", fail)
    engine = VLLM("a/model", write_adapter(tmp_path), dtype="auto", seed=0, trust_remote_code=False)
    with pytest.raises(ConfigError, match=r"vLLM does not start with a/model \(No available memory for the"):
        _ = engine.window


@pytest.mark.parametrize(
    ("module", "engine", "said"),
    [
        ("lm_eval.evaluator", "hf", r"pip install 'clusterucb\[eval\]'"),
        ("vllm", "vllm", r"--engine vllm needs vLLM .*pip install 'clusterucb\[vllm\]'"),
    ],
)
def test_what_is_not_installed_is_said_with_how_to_install_it(module, engine, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=said):
        require_harness(engine)
