"""An evaluation as a whole: questions, chunks, resuming, memory, results."""

import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_helpers import TOKENIZER, TULU, FakeEngine, common, evaluation, wide_model, with_adapter

from builders import build_tokenizer
from cli_helpers import lines, read
from clusterucb.config import Evaluation
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


@pytest.fixture
def ask(data, tmp_path):
    """Asks an engine in the folder of a name; what it returns of each benchmark, and the engine."""

    def asked(*tasks, engine=None, out="out", given=(), **changes):
        engine = engine or FakeEngine(guess)
        config = common(data, tmp_path / out, list(tasks or ["gsm8k"]), **changes)
        return evaluation(config, engine, **dict(given)).run()["benchmarks"], engine

    return asked


def folders(out):
    return {path for path in (out / "benchmarks").iterdir() if path.is_dir()}


def contents(out):
    """All that an evaluation has computed, without the time that it took."""
    found = {
        str(path.relative_to(out)): path.read_bytes()
        for path in (out / "benchmarks").rglob("*")
        if path.is_file() and path.name not in ("results.json", "cost.json")
    }
    results = read(out / "benchmarks/results.json")
    results.pop("seconds")
    return {**found, "results": results}


def test_results_are_means_of_both_models_and_of_their_paired_differences(ask, tmp_path):
    """Two independent runs would leave more of an error in the differences."""
    results, _ = ask()
    found = results["gsm8k"]
    error = pytest.approx(math.sqrt(1 / 9))  # of (1, 0, 0), (0, 1, 0) or (1, 1, 0), alike
    assert found["metrics"]["exact_match"] == {
        who: {"value": value, "standard_error": error, "questions": 3}
        for who, value in {"base": 1 / 3, "adapter": 2 / 3, "difference": 1 / 3}.items()
    }
    assert (found["questions"], found["shots"], found["left_out"], found["cut"]) == (3, 1, [], 0)
    assert read(tmp_path / "out/benchmarks/results.json")["benchmarks"] == results


def test_bbh_and_tydiqa_weigh_their_subtasks_alike_and_mmlu_its_questions(ask):
    """Right in one subtask only: sums (2 of 3), finnish (2 of 3), law (1 of 4)."""
    replies = {"Add numbers": " 4+4: the answer is 8. no", "Kissa": " kissa", "about  law": " B"}

    def reply(_who, prompt, _times):
        return next((text for key, text in replies.items() if key in prompt), " A")

    found, _ = ask("bbh", "tydiqa", "mmlu", engine=FakeEngine(reply))
    assert found["bbh"]["by_subtask"]["exact_match"]["base"]["sums"]["value"] == 0.5
    values = {name: one["metrics"] for name, one in found.items()}
    assert values["bbh"]["exact_match"]["base"]["value"] == 1 / 4  # over questions, 1 / 3
    assert values["tydiqa"]["f1"]["base"]["value"] == 1 / 2  # over questions, 2 / 3
    assert values["mmlu_0shot"]["acc"]["base"]["value"] == 1 / 4  # over subjects, 1 / 2


def test_base_and_adapter_are_asked_the_same_questions_within_the_limit(ask):
    asked = set()
    for seed in range(4):
        results, engine = ask("mmlu_0shot", engine=FakeEngine(), out=str(seed), limit=1, seed=seed)
        base, adapter = (frozenset(p for w, p in engine.prompts if w == who) for who in ("base", "adapter"))
        assert base == adapter
        assert results["mmlu_0shot"]["questions"] == len(base) == 2
        asked.add(base)
    assert len(asked) > 1


def test_questions_of_the_target_are_not_asked_and_the_results_say_which(ask, data):
    name, (taken, kept) = "humaneval_pass1", TASKS["humaneval"].targets(data, 2, 0)
    results, engine = ask(name, engine=FakeEngine(), samples=1, given={"leave_out": [taken.digest]})
    found = results[name]
    assert (found["left_out"], found["questions"]) == ([taken.id], 1)
    assert not any(taken.core in prompt for _, prompt in engine.prompts)
    assert set(found["sandbox"]) >= {"network", "files"}
    with pytest.raises(ConfigError, match=r"humaneval_pass1: no question is left .* lower --target-rows"):
        ask(name, samples=1, given={"leave_out": [taken.digest, kept.digest]})


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
    when, ask, tmp_path, one_by_one, monkeypatch
):
    """Three chunks a model. Only a question whose answer was not on the disk yet is asked again."""
    with monkeypatch.context() as patch:
        times = publishing(patch)
        _, whole = ask(out="whole", eval_batch=1)
    assert (len(whole.prompts), len(times)) == (6, 13)
    for moment in range(1, 14):
        first = FakeEngine(guess)
        with monkeypatch.context() as patch:
            publishing(patch, moment, when)
            with pytest.raises(KeyboardInterrupt):
                ask(engine=first, out=str(moment), eval_batch=1)
        _, second = ask(out=str(moment), eval_batch=1)
        lost = when == "before" and "chunk" in times[moment - 1].name
        assert first.prompts[: len(first.prompts) - lost] + second.prompts == whole.prompts
        assert contents(tmp_path / str(moment)) == contents(tmp_path / "whole")
        assert list((tmp_path / str(moment)).rglob("*.part")) == []


def test_an_evaluation_that_is_there_is_not_asked_again(ask, tmp_path):
    tasks = ("mmlu", "bbh", "tydiqa", "humaneval_pass1")
    ask(*tasks, engine=FakeEngine(), samples=2)
    before = contents(tmp_path / "out")
    _, again = ask(*tasks, engine=FakeEngine(), samples=2)
    assert (again.prompts, again.batches) == ([], [])
    assert contents(tmp_path / "out") == before


def test_evaluations_that_share_a_folder_ask_the_base_once_though_they_run_at_once(ask, tmp_path):
    shared, second, others = {"base_answers": tmp_path / "shared"}, FakeEngine(guess), []

    def reply(who, prompt, times):
        if not others:
            given = {"engine": second, "out": "b", "given": shared}
            others.append(threading.Thread(target=ask, kwargs=given))
            others[0].start()
            time.sleep(0.3)
        elif who == "adapter":
            others[0].join()
        return guess(who, prompt, times)

    _, first = ask(engine=FakeEngine(reply), out="a", given=shared)
    assert {who for who, _ in first.prompts} == {"base", "adapter"}
    assert {who for who, _ in second.prompts} == {"adapter"}
    for out in ("a", "b"):
        answers = read(tmp_path / out / "benchmarks/results.json")["benchmarks"]["gsm8k"]["answers"]
        base, adapter = ((tmp_path / out / "benchmarks" / answers[who]).resolve() for who in answers)
        assert (base.parent, adapter.parent) == (tmp_path / "shared", tmp_path / out / "benchmarks")
        assert len(lines(base / "samples.jsonl")) == len(lines(adapter / "samples.jsonl")) == 3


def test_what_is_asked_otherwise_has_other_folders_and_loses_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "require_harness", lambda _engine: None)
    other = build_tokenizer()
    other.add_tokens(["pens"])
    plain = ({}, {"limit": 1}, {"seed": 1}, {"engine": "vllm"}, {"eval_batch": 1})
    asked = [*((one, {}) for one in plain), ({}, {"chat": Template(TOKENIZER)}), ({}, {"tokenizer": other})]
    for number, (changes, given) in enumerate(asked, 1):
        engine = FakeEngine(guess)
        evaluation(common(data, tmp_path, ["gsm8k"], **changes), engine, **given).run()
        assert {who for who, _ in engine.prompts} == {"base", "adapter"}
        assert len(folders(tmp_path)) == 2 * number, (changes, given)


def test_answers_and_documents_are_kept_in_the_order_of_the_questions(ask, data, tmp_path):
    """They are asked in another: the longest first, which are Finnish here."""
    found, engine = ask("tydiqa", engine=FakeEngine(lambda _who, prompt, _times: f" {prompt}"))
    folder = tmp_path / "out/benchmarks" / found["tydiqa"]["answers"]["adapter"]
    samples, documents = lines(folder / "samples.jsonl"), lines(folder / "documents.jsonl")
    ids = [question.id for question in TASKS["tydiqa"].questions(data, 1)]
    assert [s["id"] for s in samples] == [d["id"] for d in documents] == ids
    assert [s["subtask"] for s in samples] == [d["subtask"] for d in documents]
    prompts = [document["context"] for document in documents]
    assert [s["responses"] for s in samples] == [[f" {prompt}"] for prompt in prompts]
    assert {"f1", "exact_match"} < set(samples[0])
    asked = [prompt for who, prompt in engine.prompts if who == "adapter"]
    assert sorted(asked) == sorted(prompts)
    assert asked != prompts


def test_out_of_memory_the_batch_is_halved_until_it_fits(ask, tmp_path, monkeypatch):
    """And stays so for all that follows."""
    error = torch.OutOfMemoryError("CUDA out of memory")

    def batches(out, *failures):
        return ask(engine=FakeEngine(guess, failures=failures), out=out, eval_batch=8)[1].batches

    monkeypatch.setattr(module, "_SMALLEST_CHUNK", 1)
    assert batches("whole") == [8, 8]
    assert batches("halved", error, error) == [8, 4, 2, 2]
    assert contents(tmp_path / "halved") == contents(tmp_path / "whole")
    monkeypatch.setattr(module, "_CHUNK_BATCHES", 0)
    assert batches("chunks", error) == [8, *[4] * 6]
    with pytest.raises(InputError, match=r"^gsm8k/test/\d: out of memory on cpu for this row alone"):
        batches("none fits", *[error] * 4)


def test_prompts_that_are_longer_than_the_window_are_counted(ask):
    _, engine = ask()
    asked, room = [prompt for who, prompt in engine.prompts if who == "base"], 6
    lengths = [len(ids) for ids in TOKENIZER(asked, add_special_tokens=False)["input_ids"]]
    longest = max(lengths)
    counts = {longest + room: 0, longest + room - 1: lengths.count(longest), room + 1: 3}
    for window, cut in counts.items():
        found, _ = ask(engine=FakeEngine(window=window), out=str(window))
        assert found["gsm8k"]["cut"] == cut
    with pytest.raises(ConfigError, match="gsm8k: an answer may have 6 tokens, but the model holds 6"):
        ask(engine=FakeEngine(window=room), out="none")


def test_batches_and_chunks_depend_on_the_lengths_of_their_prompts():
    """A long prompt does not make the batches of short ones small; vLLM, which makes its own, gets many."""

    def chunks(name, lengths, **settings):
        variant = next(task.variants[name] for task in TASKS.values() if name in task.variants)
        found = list(module._chunks(lengths, variant, Evaluation(**settings)))
        assert sorted(np.concatenate([places for places, _ in found]).tolist()) == list(range(len(lengths)))
        return [(len(places), batch) for places, batch in found]

    lengths = np.array([100] * 300 + [8000] * 2)
    assert chunks("mmlu_0shot", lengths) == [(16, 2), (256, 64), (30, 64)]
    assert {batch for _, batch in chunks("mmlu_0shot", lengths, eval_batch=5)} == {5}
    assert chunks("mmlu_0shot", lengths, engine="vllm") == [(302, 512)]
    programs = chunks("humaneval_pass10", lengths[:30], eval_batch=20)
    assert {size for size, _ in programs[:-1]} == {4}  # 80 programs, 20 a question


def test_a_real_model_is_asked_and_a_tokenizer_without_a_padding_token_stays_the_same(ask):
    """Llama 2's has none: its folders must have the same name before and after the model is made."""
    tokenizer, model = build_tokenizer(), with_adapter(wide_model())
    tokenizer.pad_token = None
    engine = HuggingFace(lambda: model, tokenizer, TULU)
    first, _ = ask("gsm8k", "mmlu_0shot", engine=engine, given={"tokenizer": tokenizer})
    assert tokenizer.pad_token is None
    silent = SimpleNamespace(base=engine.base, ready=engine.ready)  # cannot be asked
    again, _ = ask("gsm8k", "mmlu_0shot", engine=silent, given={"tokenizer": tokenizer})
    assert again == first


def test_pass_at_k_needs_k_programs(data, tmp_path):
    for tasks in (["humaneval_pass1"], []):
        module.check_settings(common(data, tmp_path, tasks, samples=1))
    with pytest.raises(ConfigError, match="samples is 9: pass@10 needs at least 10; raise --samples"):
        module.check_settings(common(data, tmp_path, ["humaneval"], samples=9))


def test_what_asking_took_is_kept_whatever_stopped_it(ask, tmp_path, one_by_one, monkeypatch):
    """By the tokens of the prompts; a chunk that was answered before a kill counts with its own seconds."""
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with monkeypatch.context() as patch:
        publishing(patch, 2, "after")
        with pytest.raises(KeyboardInterrupt):
            ask(engine=FakeEngine(guess), eval_batch=1)
    ask(eval_batch=1)
    costs = [read(path)["cost"] for path in sorted((tmp_path / "out/benchmarks").rglob("cost.json"))]
    assert [cost["rows"] for cost in costs] == [3, 3]
    assert costs[0]["tokens"] == costs[1]["tokens"] > 3
    assert [cost["seconds"] for cost in costs] == [3.0, 3.0]
