"""Several targets in one run are kept apart: each takes its best rows in turn, and is named with them."""

from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file
from step_helpers import selection, summary

from builders import write_rows
from cli_helpers import clusterucb, done, lines, options
from clusterucb.features.store import FeatureStore


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Two tasks of their own."""
    folder = tmp_path_factory.mktemp("targets")
    write_rows(folder / "art.jsonl", 3, 31)
    write_rows(folder / "law.jsonl", 6, 32, subtasks=2)
    return [f"{name}={folder / name}.jsonl" for name in ("law", "art")]


def selected(folder, number):
    return lines(folder / f"rounds/{number}/selected.ids.jsonl")


def test_every_period_selects_for_each_and_says_for_whom(finished_run, targets, tmp_path):
    out = tmp_path / "run"
    own = {"subtask": None, "holdout": None, "periods": 2, "out": out, "target": targets}
    done("run", "--index", finished_run("clusterucb").folder, *options(own))
    for number in (1, 2):
        assert Counter(row["target"] for row in selected(out, number)) == {"art": 5, "law": 5}
        assert summary(out, number)["targets"] == {"art": 5, "law": 5}
    drawn = {name for draw in lines(out / "rounds/2/draws.jsonl") for name in draw["ids"]}
    assert {row["id"] for row in selected(out, 2)} <= drawn


def test_the_first_selection_is_of_each_targets_best_rows(finished_run, targets, tmp_path):
    """By hand: unit directions, and rows taken in turn; art comes first, by its name."""
    there, out = finished_run("clusterucb").folder, tmp_path / "run"
    done("select", "--index", there, "--target", *targets, "--target-shares", "1,3", "--out", out)
    aims = load_file(out / "directions/1.safetensors")["directions"].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(aims, axis=1), 1, atol=1e-6)
    scores = aims @ np.asarray(FeatureStore(there / "features").features, np.float64).T
    best = dict(zip(("art", "law"), np.argsort(-scores, kind="stable").tolist(), strict=True))
    taken = {}
    for name in ["law", "law", "law", "art", "law", "law", "law", "art", "law", "law"]:
        taken[next(row for row in best[name] if row not in taken)] = name
    found = selection(out)["rows"].tolist()
    assert dict(zip(found, [row["target"] for row in selected(out, 1)], strict=True)) == taken


def test_under_a_budget_of_less_drawn_rows_are_taken_in_turn(finished_run, targets, tmp_path):
    index, out = finished_run("less_clusterucb").folder, tmp_path / "run"
    done("select", "--index", index, "--target", *targets, "--out", out)
    assert Counter(row["target"] for row in selected(out, 1)) == {"art": 5, "law": 5}


def test_a_row_policy_keeps_for_targets_only_what_it_drew(finished_run, targets, tmp_path):
    """It ends early by default, and keeps what it expects much of, undrawn; here it does neither."""
    index, out = finished_run("linear_ucb_hidden").folder, tmp_path / "run"
    done("select", "--index", index, "--target", *targets, "--out", out, "--budget", "auto")
    rows = selected(out, 1)
    assert Counter(row["target"] for row in rows) == {"art": 5, "law": 5}
    assert not any("drawn" in row for row in rows)
    assert summary(out)["drawn"] == 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--aim", "nearest"], "aim nearest: several targets are kept apart by the mean of the rows of each"),
        (["--keep", "sum"], "keep sum: rows taken in turn, by aim round_robin or for several targets"),
        (["--policy", "linear_ucb", "--budget", 0.05], "budget 0.05 is below top_p 0.1: only rows that were"),
    ],
)
def test_what_has_no_meaning_for_several_is_refused(finished_run, targets, tmp_path, given, said):
    index = ["--index", finished_run("clusterucb").folder, "--out", tmp_path / "run"]
    assert clusterucb("select", *index, "--target", *targets, *given).complaint.startswith(said)


def test_names_that_do_not_fit_are_refused(finished_run, targets, tmp_path):
    index = ["--index", finished_run("clusterucb").folder, "--out", tmp_path / "run"]
    _, path = targets[0].split("=")
    said = clusterucb("select", *index, "--target", targets[1], path).complaint
    assert said.endswith("some have a name (NAME=FILE), some none; name all, or none")
    for target, shares in (([path], "1"), (targets, "1"), (targets, "1,0")):
        said = clusterucb("select", *index, "--target", *target, "--target-shares", shares).complaint
        assert said.startswith("target_shares 1.0")
        assert "expected a number above 0 for each of several targets" in said
