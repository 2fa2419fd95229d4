"""Whole runs over a pool in which every row is there twice."""

import numpy as np
import pytest
from step_helpers import selection, summary

from cli_helpers import clusterucb, done, lines, options
from file_helpers import write

pytestmark = pytest.mark.whole


@pytest.fixture
def twice(run_settings, tmp_path):
    """Settings of a run over fifty rows, each twice."""
    pool = write(tmp_path / "pool.jsonl", 2 * lines(run_settings["pool"][0])[:50])
    return {**run_settings, "pool": pool, "out": tmp_path / "run", "k": 4}


KINDS = [
    {"policy": "ucb_beta"},
    {"policy": "linear_ucb"},
    {"policy": "linear_ucb", "features": "hidden", "keep": "sum"},
    {"policy": "linear_ucb", "keep": "static"},
    {"policy": "cluster_less", "keep": "once"},
    {"bandit": "none"},
    {"method": "less"},
    {"method": "less", "bandit": "none"},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(settings.values()))
def test_of_two_copies_one_is_selected_as_long_as_there_are_others(settings, twice, tmp_path):
    done("run", *options(twice, **settings, near_duplicates=0.995))
    rounds = [1] if {"static", "less"} & {*settings.values()} else [1, 2, 3]
    assert sorted(int(folder.name) for folder in (tmp_path / "run/rounds").iterdir()) == rounds
    for number in rounds:
        arrays = selection(tmp_path / "run", number)
        known = arrays["drawn"] if settings.get("policy") == "ucb_beta" else np.arange(100)
        assert len(arrays["rows"]) == 10
        assert len(set((arrays["rows"] % 50).tolist())) == min(10, len(set((known % 50).tolist())))
    assert summary(tmp_path / "run")["selected"] == 10


def test_both_copies_are_among_the_best_unless_it_is_asked_for(twice, tmp_path):
    for step in ("warmup", "gradients", "select"):
        done(step, *options(twice, bandit="none"))
        done(step, *options(twice, bandit="none", near_duplicates=0.995, out=tmp_path / "apart"))
    first, apart = selection(tmp_path / "run"), selection(tmp_path / "apart")
    assert len(set((first["rows"] % 50).tolist())) == 5
    best = np.argsort(-first["drawn_scores"], kind="stable")
    order = first["drawn"][best].tolist()
    kinds = list(dict.fromkeys(row % 50 for row in order))[:10]
    assert sorted((apart["rows"] % 50).tolist()) == sorted(kinds)


@pytest.mark.parametrize("of", ["turns", "tasks"])
def test_beside_turns_it_is_refused(of, twice):
    tasks = [f"{name}={twice['target'][0]}" for name in ("a", "b")]
    settings = {"target": tasks} if of == "tasks" else {"aim": "round_robin"}
    said = clusterucb("run", *options({**twice, **settings}, near_duplicates=0.9)).complaint
    assert said == (
        "near_duplicates 0.9: rows taken in turn, by aim round_robin or for several targets, have no one "
        "order of best rows; use --near-duplicates 1"
    )
