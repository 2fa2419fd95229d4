"""Runs whose rows are compared by words: the first period takes no gradient, and there is no warmup."""

import numpy as np
import pytest
from step_helpers import going_on, selection, summary

from cli_helpers import clusterucb, done, options, read, result
from clusterucb.config import load
from clusterucb.features.store import FeatureStore
from clusterucb.features.words import Words
from clusterucb.run.session import Session
from file_helpers import write


@pytest.fixture(scope="module")
def words(finished_run):
    return finished_run("linear_ucb_words")


@pytest.mark.parametrize(
    ("name", "taking"),
    [("linear_ucb_words", {"train"}), ("clusterucb_hidden", {"warmup", "select", "train"})],
)
def test_no_gradient_is_taken_before_it_decides(finished_run, backwards, tmp_path, name, taking):
    """Step by step it is the same as `run`; a warmup that is asked for, and not needed, is none."""
    finished, folder = finished_run(name), tmp_path / "run"
    for step in ("warmup", "gradients", "cluster", "select", "train", "evaluate"):
        backwards.clear()
        done(step, *(options(finished.elsewhere(folder)) if step == "warmup" else ["--out", folder]))
        assert bool(backwards) == (step in taking)
    assert (folder / "warmup").exists() == ("warmup" in taking)
    assert result(folder) == result(finished.folder)


def test_the_first_round_has_the_rows_whose_words_are_nearest_to_a_subtasks(words):
    """As many of the task itself as half of it, if so many lie together."""
    session = Session(load(words.folder / "config.yaml"))
    rows, target = session.inputs.pooled.tokens, session.inputs.targeted
    pool = Words.of(rows)
    features = pool([*rows])
    stored = np.asarray(FeatureStore(words.folder / "features").features, np.float64)
    np.testing.assert_allclose(stored, features, atol=1e-3)  # kept as float16
    of_target = pool(target.tokens)
    by_subtask = [(features @ of_target[target.codes == code].T).mean(1) for code in (0, 1)]
    likeness, found = np.max(by_subtask, axis=0), selection(words.folder)
    np.testing.assert_allclose(found["scores"], likeness[found["rows"]], atol=5e-3)
    best = set(np.argsort(-likeness)[: len(found["rows"]) - len(found["rows"]) // 2].tolist())
    assert len(best - set(found["rows"].tolist())) <= 1  # of equal ones to float16
    assert (len(found["drawn"]), summary(words.folder)["drawn"]) == (0, 0)
    assert "learned" not in found
    assert "in period 1 it is the likeness of its words" in (words.folder / "report.html").read_text()


def test_later_rounds_draw_the_budget_and_the_bill_has_nothing_before_them(words):
    for number in (2, 3):
        assert summary(words.folder, number)["drawn"] == 20
    parts = read(words.folder / "summary.json")["bill"]["parts"]
    assert parts["warmup"]["passes"] == 0
    assert 0.4 < parts["selecting"]["passes"] < 0.75  # two times a fifth, and the target's rows


def test_a_rule_that_remembers_begins_with_the_first_influence(words, tmp_path):
    """What words tell is none: in round 2 there is nothing to remember, in round 3 there is round 2."""
    out = tmp_path / "run"
    done("run", *options(words.elsewhere(out, keep="mean")))
    second, third = selection(out, 2), selection(out, 3)
    rows = np.sort(np.argsort(-second["learned"], kind="stable")[:10])
    assert np.array_equal(second["rows"], rows)
    mean = (second["learned"] + third["learned"]) / 2
    assert np.array_equal(third["rows"], np.sort(np.argsort(-mean, kind="stable")[:10]))


def test_one_selection_for_all_periods_is_by_gradients(words, tmp_path):
    """Of which words tell where to look."""
    out = tmp_path / "run"
    done("run", *options(words.elsewhere(out, keep="static")))
    assert (out / "warmup").exists()
    assert summary(out)["drawn"] == 20
    assert not (out / "rounds/2").exists()


def test_an_index_of_words_serves_a_run_and_grows_by_new_rows_alone(words, tmp_path):
    index, grown, out = tmp_path / "index", tmp_path / "grown", tmp_path / "run"
    given = options(words.elsewhere(index, target=None, holdout=None, subtask=None))
    done("index", *given)
    done(
        "select",
        "--index",
        index,
        "--target",
        *words.settings["target"],
        "--subtask",
        "subject",
        "--out",
        out,
    )
    ours, theirs = (folder / "rounds/1/selected.ids.jsonl" for folder in (out, words.folder))
    assert ours.read_bytes() == theirs.read_bytes()
    more = write(tmp_path / "more.jsonl", [{"prompt": "red lamp", "completion": "blue sun"}])
    done("index", index, "--pool", *words.settings["pool"], more, "--out", grown)
    before, after = (np.asarray(FeatureStore(folder / "features").features) for folder in (index, grown))
    assert np.array_equal(after[:100], before)
    assert (grown / "features/words.npz").read_bytes() == (index / "features/words.npz").read_bytes()


def test_rows_that_are_all_alike_have_no_words_of_their_own(words, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [{"prompt": "lamp", "completion": "red sun"}] * 12)
    given = options(words.elsewhere(tmp_path / "run", pool=pool, k=2, budget=0.5))
    assert clusterucb("run", *given).complaint == (
        "pool.jsonl:1: its words are those of all rows, or of none; take it out of the file, or use "
        "--features hidden"
    )


def test_gradients_and_words_are_not_mixed(finished_run, tmp_path):
    copy = tmp_path / "copy"
    given = going_on(finished_run("clusterucb"), copy, features="words")
    assert clusterucb("select", *given).complaint.startswith(
        f"{copy / 'features'} was made with features 'gradients', this run has 'words'; "
    )
