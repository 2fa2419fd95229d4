"""Whole runs whose target is a benchmark by its name, on small files of the official shapes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from task_helpers import write_all

from builders import sentence
from cli_helpers import clusterucb, done, kept_out, lines, options, read, result
from clusterucb.config import load
from clusterucb.run.session import Session
from clusterucb.sources.conversion import prepare
from clusterucb.tasks import TASKS
from file_helpers import write

ROWS = 30  # of GSM8K's train file here


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Every benchmark, with problems of GSM8K's that share no words in order."""
    rng, folder = np.random.default_rng(5), write_all(tmp_path_factory.mktemp("official"))
    problems = [
        {"question": f"{sentence(rng, 14, 18)}?", "answer": f"{sentence(rng, 2, 5)}.\n#### {n}"}
        for n in range(ROWS)
    ]
    write(folder / "gsm8k/train.jsonl", problems)
    return folder


@pytest.fixture(scope="module")
def named_settings(shared_settings, official, tmp_path_factory):
    """Four rows of GSM8K as the target; the pool has all 30 of its train file, and 40 others."""
    pool = tmp_path_factory.mktemp("pool")
    prepare("gsm8k", official, pool)
    return {
        **shared_settings,
        "pool": [str(pool / "gsm8k.jsonl"), shared_settings["pool"][1]],
        "target": "gsm8k",
        "target_rows": 4,
        "data_dir": str(official),
        "subtask": None,
        "holdout": None,
        "gradient_length": 256,
        "train_length": 256,
    }


@pytest.fixture(scope="module")
def finished(named_settings, tmp_path_factory):
    """A finished run's directory: not to be changed."""
    out = tmp_path_factory.mktemp("named") / "run"
    done("run", *options(named_settings, out=out))
    return out


@pytest.fixture
def begun(finished, tmp_path):
    """A copy of a run that has its warmup checkpoint and no more."""
    later = ("features", "rounds", "adapter", "clusters.*", "evaluation.json", "summary.json")
    return shutil.copytree(finished, tmp_path / "begun", ignore=shutil.ignore_patterns(*later))


@pytest.fixture
def settings(named_settings, tmp_path):
    return {**named_settings, "out": str(tmp_path / "run")}


@pytest.fixture
def session(settings):
    """A session for other targets."""

    def session(*target, **changes):
        own = {name: value for name, value in settings.items() if value is not None}
        own.pop("target_rows")
        return Session(load(None, {**own, "target": list(target), **changes}))

    return session


def targets(name, settings):
    return TASKS[name].targets(Path(settings["data_dir"]), settings["target_rows"], 0)


def test_the_targets_own_rows_are_kept_out_of_the_pool_with_the_reason(finished, named_settings):
    reason = "nearly repeats {} of the target: 100% of its words in order"
    assert kept_out(finished) == [
        {"id": f"gsm8k.jsonl:{int(name.rsplit('/')[-1]) + 1}", "reason": reason.format(name)}
        for name in (question.id for question in targets("gsm8k", named_settings))
    ]


def test_no_period_selects_or_draws_a_row_of_the_target(finished):
    unwanted = {row["id"] for row in kept_out(finished)}
    assert len(unwanted) == 4
    for n in (1, 2, 3):
        selected = {row["id"] for row in lines(finished / f"rounds/{n}/selected.ids.jsonl")}
        drawn = {row for draw in lines(finished / f"rounds/{n}/draws.jsonl") for row in draw["ids"]}
        assert selected
        assert not (selected | drawn) & unwanted


def test_rows_kept_out_do_not_count_in_the_shares(finished):
    summary = read(finished / "summary.json")
    assert (summary["rows"], summary["excluded"]) == (66, 4)
    assert [found["drawn"] for found in summary["selected"]] == [66, 13, 13]  # floor(0.2 * 66)
    assert [len(lines(finished / f"rounds/{n}/selected.jsonl")) for n in (1, 2, 3)] == [6, 6, 6]


@pytest.mark.whole
def test_over_an_index_it_keeps_the_same_rows_out_and_ends_the_same(finished, named_settings, tmp_path):
    """Though the index has all rows."""
    own = {name: named_settings[name] for name in ("target", "target_rows", "data_dir")}
    done("index", *options({**named_settings, **dict.fromkeys(own)}, out=tmp_path / "index"))
    done("run", "--index", tmp_path / "index", *options(own, out=tmp_path / "run"))
    assert result(tmp_path / "run") == result(finished)


def test_the_run_keeps_the_target_as_a_file_of_its_own(finished, named_settings):
    expected = [question.to_row() for question in targets("gsm8k", named_settings)]
    assert lines(finished / "target/gsm8k.jsonl") == expected
    assert len(load_file(finished / "directions/1.safetensors")["directions"]) == 1


def test_the_adapter_says_which_questions_it_was_selected_for(finished, named_settings):
    digests = [question.digest for question in targets("gsm8k", named_settings)]
    assert read(finished / "adapter" / "checkpoint.json")["target_questions"] == digests
    assert "target_questions" not in read(finished / "warmup" / "checkpoint.json")  # which serves any target


def test_the_digests_are_those_by_which_an_evaluation_knows_its_questions(session, settings):
    """HumanEval has one split, so its evaluation leaves the target's problems out."""
    found = session("humaneval", target_rows=3).inputs.target_questions
    asked = {q.digest: q.id for q in TASKS["humaneval"].questions(Path(settings["data_dir"]), 0)}
    rows = lines(f"{settings['out']}/target/humaneval.jsonl")
    assert [asked[digest] for digest in found] == [row["id"] for row in rows]
    assert len(found) == 3


def test_an_adapter_for_a_file_names_no_question(finished_settings):
    assert read(f"{finished_settings['out']}/adapter/checkpoint.json")["target_questions"] == []


def test_every_subject_and_task_is_a_subtask_with_a_direction(settings):
    changes = {"target": ["mmlu", "bbh"], "target_rows": None}
    for step in ("warmup", "gradients"):
        done(step, *options(settings, **changes))
    session = Session(load(Path(settings["out"]) / "config.yaml"))
    assert session.inputs.target.subtasks == ["anatomy", "sorting", "sums", "world_religions"]
    assert np.bincount(session.inputs.target.codes).tolist() == [1, 3, 3, 2]
    directions = load_file(f"{settings['out']}/directions/1.safetensors")["directions"]
    assert len(np.unique(directions, axis=0)) == 4


@pytest.mark.parametrize(
    ("name", "wanted", "end"), [*((name, "auto", "") for name in TASKS), ("gsm8k", "learn", "<|im_end|>")]
)
def test_a_target_learns_what_follows_the_given_beginning_and_no_more(session, settings, name, wanted, end):
    """Not even its end, as LESS has it, unless that is asked for."""
    made = session(name, target_end=wanted).inputs
    questions = TASKS[name].targets(Path(settings["data_dir"]), None, 0)
    assert made.targeted.ids == [f"{name}.jsonl:{n + 1}" for n in range(len(questions))]
    for question, encoded in zip(questions, made.targeted.tokens, strict=True):
        assert made.tokenizer.decode(encoded.ids[encoded.labels]) == f"{question.answer}{end}"
        prompt = made.tokenizer.decode(encoded.ids[: encoded.labels.argmax()])
        assert prompt.endswith(f"{question.ask}<|im_end|>\n<|im_start|>assistant\n{question.opening}")


@pytest.mark.parametrize(("wanted", "learnt"), [("auto", True), ("learn", True), ("leave", False)])
def test_the_end_of_a_target_row_of_ones_own_is_learnt_unless_left(session, data_folder, wanted, learnt):
    made = session(str(data_folder / "target.jsonl"), target_end=wanted).inputs
    for encoded in made.targeted.tokens:
        text = made.tokenizer.decode(encoded.ids[encoded.labels])
        assert text.endswith("<|im_end|>") == learnt


# --- What a person can get wrong


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": ["gsm8k", "target.jsonl"]}, "so neither files nor --subtask go with them; make two runs"),
        ({"subtask": "subtask"}, "so neither files nor --subtask go with them; make two runs"),
        ({"target": ["gsm8k", "gsm8k"]}, "gsm8k.jsonl: given twice; expected each file once"),
        ({"target": "gsm8"}, "gsm8: no such file; check the path"),
        ({"target_rows": 31}, "gsm8k: 31 target rows were asked for; expected 1 to 30"),
        ({"target_rows": 0}, "target_rows is '0': input should be greater than or equal to 1"),
        ({"data_dir": "none"}, "no such folder; expected one that holds gsm8k/train.jsonl"),
        ({"data_dir": "."}, "no train.jsonl for gsm8k (looked in gsm8k/, gsm/ and the folder itself)"),
    ],
)
def test_a_target_that_cannot_be_is_one_line(settings, data_folder, monkeypatch, changes, said):
    monkeypatch.chdir(data_folder)
    assert said in clusterucb("run", *options(settings, **changes)).complaint
    assert not (Path(settings["out"]) / "config.yaml").exists()


@pytest.mark.parametrize(("option", "old", "new"), [("target_rows", 4, 5), ("seed", 0, 1)])
def test_what_decides_the_target_may_not_change(begun, option, old, new):
    flag = f"--{option.replace('_', '-')}"
    said = clusterucb("gradients", "--out", begun, flag, new).complaint
    assert said.startswith(f"{option}: this run directory was made with {old} (")


def test_where_the_files_lie_and_what_is_evaluated_may_change(begun, tmp_path):
    """The target stands by itself from its first run on, so its files may even be gone."""
    target = (begun / "target/gsm8k.jsonl").read_bytes()
    outcome = done("gradients", "--out", begun, "--data-dir", tmp_path / "gone", "--tasks", "gsm8k")
    assert (begun / "target/gsm8k.jsonl").read_bytes() == target
    assert outcome.err.count("the pool was not checked against gsm8k when this run began") == 1


def test_what_a_failed_beginning_left_is_made_again(settings):
    """The settings are the run's only from where all of them have held."""
    said, out = clusterucb("warmup", *options(settings, target_modules="query")), Path(settings["out"])
    assert said.complaint.startswith("target_modules query: ")
    assert (out / "target/gsm8k.jsonl").exists()
    assert (out / "pool").exists()
    done("warmup", *options(settings, target_rows=6))
    assert len(lines(out / "target/gsm8k.jsonl")) == 6
    assert len(kept_out(out)) == 6


def test_a_runs_settings_draw_its_target_again(finished, tmp_path):
    done("warmup", finished / "config.yaml", "--out", tmp_path / "other")
    for name in ("target/gsm8k.jsonl", "warmup/adapter_model.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() == (finished / name).read_bytes()


def test_a_folder_of_the_benchmarks_name_does_not_stand_for_it(settings, tmp_path, monkeypatch):
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.chdir(tmp_path)
    done("warmup", *options(settings))
    assert load(Path(settings["out"]) / "config.yaml").target == ["gsm8k"]
    assert len(lines(f"{settings['out']}/target/gsm8k.jsonl")) == 4
