"""Texts that training must not see are found in the pool before anything is computed."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from task_helpers import install

from builders import sentence
from cli_helpers import clusterucb, done, kept_out, options, read
from clusterucb.config import load
from clusterucb.evaluation import benchmarks
from clusterucb.run import screening
from clusterucb.run.session import Session
from clusterucb.steps import evaluate as steps
from file_helpers import write

RNG = np.random.default_rng(11)
QUESTIONS = [sentence(RNG, 20, 21) for _ in range(6)]  # 13 runs of 8 words each
OTHERS = [sentence(RNG, 12, 18) for _ in range(40)]
SOLVED = [f"red sun {QUESTIONS[2]} keep", f"{' '.join(QUESTIONS[4].split()[:14])} lamp lamp"]  # all; 7 of 13
LESS = " ".join(QUESTIONS[5].split()[:13])  # 6 of 13 runs


def chat(asked, answered="sun"):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def hit(row, whose, probe, share=1.0, kept_out=False):
    found = {"row": row, "whose": whose, "probe": probe, "share": share, "kept_out": kept_out}
    return {**found, "id": f"pool.jsonl:{row + 1}"}


@pytest.fixture(autouse=True)
def _harness(tmp_path, monkeypatch):
    """The shots of lm-eval; the rest of it is not needed before questions are asked."""
    shots = [{"question": f"{n} and {n}?", "target": f"The answer is {2 * n}."} for n in range(8)]
    known = {"fewshot_config": {"samples": shots}}
    write(tmp_path / "lm_eval/tasks/gsm8k/gsm8k-cot.yaml", json.dumps(known))  # JSON is YAML
    install(monkeypatch, lm_eval=tmp_path / "lm_eval")
    monkeypatch.setattr(benchmarks, "require_harness", lambda engine: None)


@pytest.fixture
def data(tmp_path):
    """A folder with GSM8K's official files."""
    for split, questions in (("test", QUESTIONS), ("train", OTHERS[:9])):
        rows = [{"question": question, "answer": "so\n#### 7"} for question in questions]
        write(tmp_path / "data" / "gsm8k" / f"{split}.jsonl", rows)
    return tmp_path / "data"


@pytest.fixture
def begin(settings, tmp_path, data):
    """Begin a run on these pool rows, by default 40 of no use to a cheat, then three that hold questions."""

    def begin(*flags, rows=None, **changes):
        rows = [chat(text) for text in (*OTHERS, *SOLVED, LESS)] if rows is None else rows
        own = {"pool": write(tmp_path / "pool.jsonl", rows), "holdout": None, "data_dir": data}
        own |= {"warmup_steps": 1, "train_length": 256}
        return clusterucb("warmup", *options({**settings, **own, **changes}), *flags)

    return begin


@pytest.fixture
def hits(begin, settings):
    """What is found in a pool of these rows after the usual 40."""

    def hits(*rows, flags=(), **changes):
        outcome = begin(*flags, rows=[*map(chat, OTHERS), *rows], **changes)
        assert outcome.status == 0, outcome
        return contamination(settings)["hits"]

    return hits


def contamination(settings):
    return read(f"{settings['out']}/contamination.json")


def excluded(settings):
    return {row["id"]: row["reason"] for row in kept_out(settings["out"])}


# --- Questions of the evaluation


@pytest.mark.parametrize("kept_out", [False, True])
def test_rows_that_hold_a_question_are_reported_and_kept_out_on_demand(begin, settings, kept_out):
    outcome = begin(*["--decontaminate"] * kept_out, tasks="gsm8k")
    assert contamination(settings)["hits"] == [
        hit(40, "gsm8k", "gsm8k/test/2", kept_out=kept_out),
        hit(41, "gsm8k", "gsm8k/test/4", 7 / 13, kept_out=kept_out),
    ]
    reasons = {
        "pool.jsonl:41": "nearly repeats gsm8k/test/2 of gsm8k: 100% of its words in order",
        "pool.jsonl:42": "nearly repeats gsm8k/test/4 of gsm8k: 54% of its words in order",
    }
    assert excluded(settings) == (reasons if kept_out else {})
    chosen_from = Session(load(f"{settings['out']}/config.yaml")).inputs.pooled.rows.tolist()
    assert chosen_from == [*range(40), *([] if kept_out else [40, 41]), 42]
    assert np.load(f"{settings['out']}/pool/rows.npy").tolist() == [*range(43)]  # those of the index
    said = "are kept out" if kept_out else "are in use; --decontaminate keeps them out"
    assert f"training must not see (gsm8k 2) {said}; each is in " in outcome.err


def test_the_screen_shows_counts_by_source_before_the_model_is_loaded(begin, settings, tmp_path):
    held = write(tmp_path / "held.jsonl", [chat(OTHERS[3], "moon")])
    shown = begin(tasks="gsm8k", holdout=held).err.splitlines()
    told = (
        "pool rows that nearly repeat what training must not see (gsm8k 2, holdout 1) are in use; "
        f"--decontaminate keeps them out; each is in {settings['out']}/contamination.json"
    )
    assert told in shown
    assert shown.index(told) < shown.index(f"load {settings['model']}")
    assert "gsm8k/test/" not in "\n".join(shown)
    for name in ("target", "holdout", "evaluation"):
        assert [line for line in shown if line.startswith(f"check against {name}: 43/43 rows, ")]


def test_the_file_says_what_was_checked_against(begin, settings, tmp_path, data):
    rows = [{"question": text, "answer": "#### 7"} for text in (*QUESTIONS, "red sun", "red moon?")]
    write(data / "gsm8k/test.jsonl", rows)
    begin(tasks="gsm8k", holdout=write(tmp_path / "held.jsonl", [chat("add"), chat(sentence(RNG, 9, 10))]))
    said = contamination(settings)
    assert said["checked_against"] == {"target": 6, "holdout": 2, "gsm8k": 8}
    assert said["too_short_or_common"]["evaluation"] == 2
    assert said["too_short_or_common"]["holdout"] == 1


def test_rows_kept_out_do_not_count_among_the_rows_that_settings_are_checked_by(begin):
    said = begin("--decontaminate", tasks="gsm8k", k=42, budget=1.0).complaint
    assert said == "k is 42, but the pool has 41 usable rows; lower k"


def test_all_files_that_an_evaluation_needs_are_asked_for_at_once(begin, data):
    write(data / "mmlu/test/anatomy_test.csv", "Where is it?,a,b,c,d,A\n")
    assert begin(tasks="mmlu_0shot").status == 0
    for tasks in ("mmlu_5shot,mmlu_0shot", "mmlu_0shot,mmlu_5shot"):
        assert "no dev/*_dev.csv for mmlu" in begin(tasks=tasks, out=data.parent / "other").complaint


# --- Rows of the target and held-out rows


def test_held_out_rows_in_the_pool_are_refused_or_kept_out_however_short(begin, settings, tmp_path):
    """Too short to be found by runs of words: "add", and "two"."""
    rows = [*map(chat, OTHERS), chat("add", "two"), chat(f"{QUESTIONS[0]}?", "one")]
    held = write(tmp_path / "held.jsonl", [chat("add", " two"), chat(f"{QUESTIONS[0]}?", "one")])
    said = begin(rows=rows, holdout=held).complaint
    assert said.startswith("held.jsonl:1: this held-out row is also in the pool (pool.jsonl:41, 2 such rows")
    assert said.endswith("or keep such rows out with --decontaminate")
    assert begin("--decontaminate", rows=rows, holdout=held).status == 0
    reason = "nearly repeats held.jsonl:{} of the held-out rows: 100% of its words in order"
    assert excluded(settings) == {f"pool.jsonl:{n + 40}": reason.format(n) for n in (1, 2)}


def test_a_held_out_question_with_another_answer_is_found_too(hits, tmp_path):
    held = write(tmp_path / "held.jsonl", [chat(QUESTIONS[0], "one"), chat(QUESTIONS[0], "two")])
    assert hits(chat(QUESTIONS[0], "three"), holdout=held) == [hit(40, "holdout", "held.jsonl:1")]


@pytest.mark.parametrize("kept_out", [False, True])
def test_rows_of_an_own_target_are_reported_and_kept_out_on_demand(hits, settings, tmp_path, kept_out):
    target = write(tmp_path / "target.jsonl", [chat(QUESTIONS[0]), chat("add", "two"), chat(QUESTIONS[1])])
    rows = [chat("add", "two"), chat(f"keep: {QUESTIONS[1]}", "nine")]
    flags = ["--decontaminate"] * kept_out
    assert hits(*rows, flags=flags, target=target, subtask=None) == [
        hit(40, "target", "target.jsonl:2", kept_out=kept_out),
        hit(41, "target", "target.jsonl:3", kept_out=kept_out),
    ]
    assert list(excluded(settings)) == ["pool.jsonl:41", "pool.jsonl:42"] * kept_out


def test_an_instruction_that_few_target_rows_share_is_no_hit(hits, tmp_path):
    instruction = sentence(RNG, 60, 61)
    asked = [f"{instruction} {sentence(RNG, 10, 11)}" for _ in range(7)]
    target = write(tmp_path / "target.jsonl", [*map(chat, asked[:4])])
    others = [chat(text) for text in asked[4:]]
    found = hits(*others, chat(asked[2], "dog"), target=target, subtask=None)
    assert found == [hit(43, "target", "target.jsonl:3")]


def test_a_column_of_the_persons_own_does_not_stand_for_the_question(hits, tmp_path):
    """Only a benchmark's row has its question in `core`."""
    own = {"core": OTHERS[0], "digest": 7}
    target = write(tmp_path / "target.jsonl", [{**chat(QUESTIONS[0]), **own}])
    assert hits(chat(QUESTIONS[0], "x"), target=target, subtask=None) == [hit(40, "target", "target.jsonl:1")]


def test_a_target_row_that_is_a_question_of_the_evaluation_is_refused(begin, settings, tmp_path):
    rows = [chat(SOLVED[1]), chat(f"five {QUESTIONS[1].upper()}!")]  # half of a question, and all of one
    target = write(tmp_path / "target.jsonl", rows)
    said = begin(target=target, subtask=None, tasks="gsm8k").complaint
    assert said == (
        "target.jsonl:2: this target row holds gsm8k/test/1, a question of the evaluation; "
        "take it out of the target, or evaluate on something else than gsm8k"
    )
    assert not Path(settings["out"], "config.yaml").exists()


def test_a_row_of_a_named_target_is_kept_out_even_if_it_holds_more_than_that(hits):
    """What comes first is the reason: the target's rows are kept out in any case, questions only if asked."""
    changes = {"target": "gsm8k", "target_rows": 9, "subtask": None, "tasks": "gsm8k"}
    found = hits(chat(f"{QUESTIONS[0]}\n{OTHERS[8]}"), chat(QUESTIONS[1]), **changes)
    assert found[:9] == [hit(n, "target", f"gsm8k/train/{n}", kept_out=True) for n in range(9)]
    assert found[9:] == [hit(40, "target", "gsm8k/train/8", kept_out=True), hit(41, "gsm8k", "gsm8k/test/1")]


# --- Going on


def test_a_run_that_goes_on_is_not_checked_again(begin, settings, monkeypatch):
    first = begin(tasks="gsm8k").err
    before = Path(settings["out"], "contamination.json").read_bytes()
    monkeypatch.setattr(screening, "contaminated", lambda *_, **__: pytest.fail("looked through again"))
    shown = done("gradients", "--out", settings["out"], "--tasks", "gsm8k").err
    assert Path(settings["out"], "contamination.json").read_bytes() == before
    (told,) = [line for line in first.splitlines() if "nearly repeat" in line]
    assert told in shown.splitlines()
    assert "not checked" not in shown


def test_a_beginning_that_failed_is_checked_again(begin, settings):
    assert "target_modules query" in begin(target_modules="query").complaint
    assert contamination(settings)["hits"] == []
    assert begin("--decontaminate", tasks="gsm8k").status == 0
    assert list(excluded(settings)) == ["pool.jsonl:41", "pool.jsonl:42"]


def test_a_clean_pool_is_not_told_and_may_not_change(begin, settings):
    clean = [*map(chat, OTHERS)]
    assert "nearly repeat" not in begin(rows=clean, tasks="gsm8k").err
    assert contamination(settings)["hits"] == []
    said = begin(rows=clean[:-1], tasks="gsm8k").complaint
    assert said.startswith(f"{settings['out']}/contamination.json was made with pool '")


def test_directions_for_other_rows_kept_out_are_refused(begin, settings, data):
    """As rows of a run are numbered without these."""
    assert begin("--decontaminate").status == 0
    done("gradients", "--out", settings["out"])
    Path(settings["out"], "contamination.json").unlink()
    said = clusterucb("gradients", "--out", settings["out"], "--tasks", "gsm8k").complaint
    assert said.startswith(f"{settings['out']}/directions/1.safetensors was made with rows kept out '")


def test_an_evaluation_that_the_pool_was_not_checked_against_is_told_once(
    finished_settings, tmp_path, monkeypatch
):
    out = shutil.copytree(finished_settings["out"], tmp_path / "copy")
    write(out / "benchmarks/results.json", '{"benchmarks": {}}')
    answers = Mock(run=Mock(return_value={}))
    monkeypatch.setattr(steps, "benchmarks", lambda *_: answers)
    for command in ("evaluate", "run"):
        outcome = done(command, "--out", out, "--tasks", "gsm8k,mmlu_0shot")
        told = "the pool was not checked against mmlu, gsm8k when this run began"
        assert outcome.err.count("not checked") == outcome.err.count(told) == 1
    assert answers.run.call_count == 2
    assert "not checked" not in clusterucb("evaluate", "--out", out).err
