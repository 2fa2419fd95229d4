"""An evaluation as a whole: questions, chunks, resuming, memory, results."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_helpers import TULU, FakeEngine, common, evaluation, wide_model, with_adapter

from builders import build_tokenizer
from clusterucb.data.chat import Template
from clusterucb.errors import ConfigError, InputError
from clusterucb.evaluation import benchmarks as module
from clusterucb.evaluation.harness import HuggingFace
from clusterucb.tasks import TASKS

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def one_by_one(monkeypatch):
    """Chunks of a single question, so that there are several."""
    monkeypatch.setattr(module, "_SMALLEST_CHUNK", 1)
    monkeypatch.setattr(module, "_CHUNK_BATCHES", 1)


def guess(who, prompt, _times):
    """The base is right about odd pens, the adapter also about none."""
    pens = int(prompt.rsplit("Question: ", 1)[1].split()[0])
    return f" {pens + 1}" if pens % 2 or (who == "adapter" and pens == 0) else " no number"


def folders(out):
    return {path for path in (out / "benchmarks").iterdir() if path.is_dir()}


def contents(out):
    """All that an evaluation has computed, without the time that it took."""
    found = {
        str(path.relative_to(out)): path.read_bytes()
        for path in (out / "benchmarks").rglob("*")
        if path.is_file() and path.name != "results.json"
    }
    results = json.loads((out / "benchmarks/results.json").read_text())
    results.pop("seconds")
    return {**found, "results": results}


def test_results_are_means_of_both_models_and_of_their_paired_differences(data, tmp_path):
    results = evaluation(common(data, tmp_path, ["gsm8k"]), FakeEngine(guess)).run()
    found = results["benchmarks"]["gsm8k"]
    metric = found["metrics"]["exact_match"]
    error = math.sqrt(1 / 9)  # of (1, 0, 0), (0, 1, 0) or (1, 1, 0), alike
    assert metric == {
        "base": {"value": 1 / 3, "standard_error": pytest.approx(error), "questions": 3},
        "adapter": {"value": 2 / 3, "standard_error": pytest.approx(error), "questions": 3},
        "difference": {"value": 1 / 3, "standard_error": pytest.approx(error), "questions": 3},
    }
    assert (found["questions"], found["shots"], found["left_out"], found["cut"]) == (3, 1, [], 0)
    assert json.loads((tmp_path / "benchmarks/results.json").read_text()) == results


def test_where_the_answers_agree_the_difference_has_no_error(data, tmp_path):
    """Two independent runs would leave one."""
    engine = FakeEngine(lambda _who, prompt, times: guess("base", prompt, times))
    metric = evaluation(common(data, tmp_path, ["gsm8k"]), engine).run()["benchmarks"]["gsm8k"]["metrics"]
    assert metric["exact_match"]["difference"] == {"value": 0.0, "standard_error": 0.0, "questions": 3}
    assert metric["exact_match"]["base"]["standard_error"] > 0.3


def test_bbh_and_tydiqa_weigh_their_subtasks_alike_and_mmlu_its_questions(data, tmp_path):
    """Right in one subtask only: sums (2 of 3), finnish (2 of 3), law (1 of 4)."""
    replies = {"Do sums": " 4+4: the answer is 8. no", "Kissa": " kissa", "about  law": " B"}

    def reply(_who, prompt, _times):
        return next((text for key, text in replies.items() if key in prompt), " A")

    found = evaluation(common(data, tmp_path, ["bbh", "tydiqa", "mmlu"]), FakeEngine(reply)).run()
    assert found["benchmarks"]["bbh"]["by_subtask"]["exact_match"]["base"]["sums"]["value"] == 0.5
    values = {name: one["metrics"] for name, one in found["benchmarks"].items()}
    assert values["bbh"]["exact_match"]["base"]["value"] == 1 / 4  # over questions, 1 / 3
    assert values["tydiqa"]["f1"]["base"]["value"] == 1 / 2  # over questions, 2 / 3
    assert values["mmlu_0shot"]["acc"]["base"]["value"] == 1 / 4  # over subjects, 1 / 2


def test_base_and_adapter_are_asked_the_same_questions_within_the_limit(data, tmp_path):
    asked = set()
    for seed in range(4):
        engine = FakeEngine()
        config = common(data, tmp_path / str(seed), ["mmlu_0shot"], limit=1, seed=seed)
        results = evaluation(config, engine).run()
        base, adapter = (frozenset(p for w, p in engine.prompts if w == who) for who in ("base", "adapter"))
        assert base == adapter
        assert results["benchmarks"]["mmlu_0shot"]["questions"] == len(base) == 2
        asked.add(base)
    assert len(asked) > 1


def test_questions_of_the_target_are_not_asked_and_the_results_say_which(data, tmp_path):
    taken, kept = TASKS["humaneval"].targets(data, 2, 0)
    engine = FakeEngine()
    config = common(data, tmp_path, ["humaneval_pass1"], samples=1)
    found = evaluation(config, engine, leave_out=[taken.digest]).run()["benchmarks"]["humaneval_pass1"]
    assert (found["left_out"], found["questions"]) == ([taken.id], 1)
    assert not any(taken.core in prompt for _, prompt in engine.prompts)
    assert set(found["sandbox"]) >= {"network", "files"}
    nothing_left = evaluation(config, FakeEngine(), leave_out=[taken.digest, kept.digest])
    with pytest.raises(ConfigError, match=r"humaneval_pass1: no question is left .* lower --target-rows"):
        nothing_left.run()


def test_the_models_are_not_asked_for_before_the_questions_are_read(tmp_path):
    engine = SimpleNamespace()  # has nothing to tell
    with pytest.raises(InputError, match=r"gsm8k/test\.jsonl"):
        evaluation(common(tmp_path / "nothing", tmp_path / "out", ["gsm8k"]), engine).run()


def publishing(monkeypatch, stop_at=None, when="before"):
    """What gets its name by being renamed; stops before or after one of these times."""
    replace, done = Path.replace, []

    def replacing(path, target):
        done.append(path)
        if len(done) == stop_at and when == "before":
            if path.is_file():
                path.write_bytes(path.read_bytes()[:9])  # as a kill within a write leaves it
            raise KeyboardInterrupt
        replace(path, target)
        if len(done) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", replacing)
    return done


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_any_publication_it_goes_on_and_ends_with_the_same_bytes(
    when, data, tmp_path, one_by_one, monkeypatch
):
    """Three chunks a model. Only a question whose answer was not on the disk yet is asked again."""
    whole = FakeEngine(guess)
    with monkeypatch.context() as patch:
        times = publishing(patch)
        evaluation(common(data, tmp_path / "whole", ["gsm8k"], eval_batch=1), whole).run()
    assert (len(whole.prompts), len(times)) == (6, 11)
    for moment in range(1, 12):
        out, first, second = tmp_path / str(moment), FakeEngine(guess), FakeEngine(guess)
        config = common(data, out, ["gsm8k"], eval_batch=1)
        with monkeypatch.context() as patch:
            publishing(patch, moment, when)
            with pytest.raises(KeyboardInterrupt):
                evaluation(config, first).run()
        evaluation(config, second).run()
        lost = when == "before" and "chunk" in times[moment - 1].name
        assert first.prompts[: len(first.prompts) - lost] + second.prompts == whole.prompts
        assert contents(out) == contents(tmp_path / "whole")
        assert list(out.rglob("*.part")) == []


def test_an_evaluation_that_is_there_is_not_asked_again(data, tmp_path):
    config = common(data, tmp_path, ["mmlu", "bbh", "tydiqa", "humaneval_pass1"], samples=2)
    evaluation(config, FakeEngine()).run()
    before = contents(tmp_path)
    again = FakeEngine()
    evaluation(config, again).run()
    assert (again.prompts, again.batches) == ([], [])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"limit": 1}, {"seed": 1}, {"engine": "vllm"}, {"eval_batch": 1}], ids=str
)
def test_other_settings_have_other_folders_and_lose_nothing(change, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "require_harness", lambda _engine: None)
    evaluation(common(data, tmp_path, ["gsm8k"]), FakeEngine(guess)).run()
    before = folders(tmp_path)
    engine = FakeEngine(guess)
    evaluation(common(data, tmp_path, ["gsm8k"], **change), engine).run()
    assert before < folders(tmp_path)
    assert len(folders(tmp_path)) == 4
    assert {who for who, _ in engine.prompts} == {"base", "adapter"}


def test_another_chat_or_tokenizer_has_another_folder(data, tmp_path):
    tokenizer, other = build_tokenizer(), build_tokenizer()
    other.add_tokens(["pens"])
    config = common(data, tmp_path, ["gsm8k"])
    for chat, used in ((TULU, tokenizer), (Template(tokenizer), tokenizer), (TULU, other)):
        engine = FakeEngine(guess)
        evaluation(config, engine, chat=chat, tokenizer=used).run()
        assert len(engine.prompts) == 6
    assert len(folders(tmp_path)) == 6


def test_answers_and_documents_are_kept_in_the_order_of_the_questions(data, tmp_path):
    """They are asked in another: the longest first, which are Finnish here."""
    engine = FakeEngine(lambda _who, prompt, _times: f" {prompt}")
    found = evaluation(common(data, tmp_path, ["tydiqa"]), engine).run()["benchmarks"]["tydiqa"]
    folder = tmp_path / "benchmarks" / found["answers"]["adapter"]
    samples, documents = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("samples.jsonl", "documents.jsonl")
    )
    ids = [question.id for question in TASKS["tydiqa"].questions(data, 1)]
    assert [s["id"] for s in samples] == [d["id"] for d in documents] == ids
    assert [s["subtask"] for s in samples] == [d["subtask"] for d in documents]
    prompts = [document["context"] for document in documents]
    assert [s["responses"] for s in samples] == [[f" {prompt}"] for prompt in prompts]
    assert {"f1", "exact_match"} < set(samples[0])
    asked = [prompt for who, prompt in engine.prompts if who == "adapter"]
    assert sorted(asked) == sorted(prompts)
    assert asked != prompts


def test_out_of_memory_the_batch_is_halved_until_it_fits(data, tmp_path, monkeypatch):
    """And stays so for the chunks that follow, of this model and benchmark."""
    error = torch.OutOfMemoryError("CUDA out of memory")

    def batches(name, *failures):
        engine = FakeEngine(guess, failures=failures)
        evaluation(common(data, tmp_path / name, ["gsm8k"], eval_batch=8), engine).run()
        return engine.batches

    monkeypatch.setattr(module, "_SMALLEST_CHUNK", 1)
    assert batches("whole") == [8, 8]
    assert batches("halved", error, error) == [8, 4, 2, 8]
    assert contents(tmp_path / "halved") == contents(tmp_path / "whole")
    monkeypatch.setattr(module, "_CHUNK_BATCHES", 0)
    assert batches("chunks", error) == [8, 4, 4, 4, 8, 8, 8]
    with pytest.raises(ConfigError, match=r"gsm8k/test/\d: out of memory with a single question"):
        batches("none fits", *[error] * 4)


def test_prompts_that_are_longer_than_the_window_are_counted(data, tmp_path):
    tokenizer, engine, room = build_tokenizer(), FakeEngine(), 6
    evaluation(common(data, tmp_path, ["gsm8k"]), engine).run()
    asked = [prompt for who, prompt in engine.prompts if who == "base"]
    lengths = [len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]
    longest = max(lengths)
    for window, cut in (
        (longest + room, 0),
        (longest + room - 1, lengths.count(longest)),
        (room + 1, 3),
    ):
        config = common(data, tmp_path / str(window), ["gsm8k"])
        found = evaluation(config, FakeEngine(window=window)).run()
        assert found["benchmarks"]["gsm8k"]["cut"] == cut
    with pytest.raises(ConfigError, match="gsm8k: an answer may have 6 tokens, but the model holds 6"):
        evaluation(common(data, tmp_path / "none", ["gsm8k"]), FakeEngine(window=room)).run()


def test_batches_and_chunks_depend_on_the_lengths_of_their_prompts():
    """A long prompt does not make the batches of short ones small."""
    lengths = np.array([100] * 300 + [8000] * 2)
    variant = TASKS["mmlu"].variants["mmlu_0shot"]
    chunks = list(module._chunks(lengths, variant, None))
    assert [batch for _, batch in chunks] == [2, 64, 64]
    assert [len(places) for places, _ in chunks] == [16, 256, 30]
    assert sorted(np.concatenate([places for places, _ in chunks]).tolist()) == list(range(302))
    assert {batch for _, batch in module._chunks(lengths, variant, 5)} == {5}
    programs = TASKS["humaneval"].variants["humaneval_pass10"]
    chunks = list(module._chunks(lengths[:30], programs, 20))
    assert {len(places) for places, _ in chunks[:-1]} == {4}  # 80 programs, 20 a question


def test_a_real_model_is_asked_and_a_tokenizer_without_a_padding_token_stays_the_same(data, tmp_path):
    """Llama 2's has none: its folders must have the same name before and after the model is made."""
    tokenizer, model = build_tokenizer(), with_adapter(wide_model())
    tokenizer.pad_token = None
    config = common(data, tmp_path, ["gsm8k", "mmlu_0shot"])
    engine = HuggingFace(lambda: model, tokenizer, TULU)
    first = evaluation(config, engine, tokenizer=tokenizer).run()
    assert tokenizer.pad_token is None
    silent = SimpleNamespace(base=engine.base)  # cannot be asked
    again = evaluation(config, silent, tokenizer=tokenizer).run()
    assert again["benchmarks"] == first["benchmarks"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"allow_code_execution": False}, "in a sandbox; .* --allow-code-execution"),
        ({"samples": 9}, "samples is 9: pass@10 needs at least 10; raise --samples"),
        ({"tasks": ["gsm8"]}, "unknown benchmark 'gsm8'; did you mean 'gsm8k'"),
        ({"tasks": ["zzz"]}, "unknown benchmark 'zzz'; there are mmlu, bbh"),
        ({"tasks": ["humaneval_pass1"], "samples": 1}, None),
        ({"tasks": [], "allow_code_execution": False}, None),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes, said, data, tmp_path):
    config = common(data, tmp_path, **{"tasks": ["humaneval"], **changes})
    if said is None:
        module.check_settings(config)
    else:
        with pytest.raises(ConfigError, match=said):
            module.check_settings(config)
