"""Whole runs over a pool in which every row is there twice."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_helpers import clusterucb, done, lines, options, read

pytestmark = pytest.mark.whole


@pytest.fixture
def twice(run_settings, tmp_path):
    """Settings of a run over fifty rows, each twice."""
    rows = [row for path in run_settings["pool"] for row in lines(path)][:50]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    return {**run_settings, "pool": [str(pool)], "out": tmp_path / "run", "k": 4}


def selections(folder):
    return [load_file(path) for path in sorted(folder.glob("rounds/*/selection.safetensors"))]


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
    found = selections(tmp_path / "run")
    assert len(found) == (1 if "static" in settings.values() or "less" in settings.values() else 3)
    for arrays in found:
        known = arrays["drawn"] if settings.get("policy") == "ucb_beta" else np.arange(100)
        assert len(arrays["rows"]) == 10
        assert len(set((arrays["rows"] % 50).tolist())) == min(10, len(set((known % 50).tolist())))
    assert read(tmp_path / "run/rounds/1/summary.json")["selected"] == 10


def test_both_copies_are_among_the_best_unless_it_is_asked_for(twice, tmp_path):
    done("run", *options(twice, bandit="none"))
    first = selections(tmp_path / "run")[0]
    assert len(set((first["rows"] % 50).tolist())) == 5
    done("run", *options(twice, bandit="none", near_duplicates=0.995, out=tmp_path / "apart"))
    apart = selections(tmp_path / "apart")[0]
    best = np.argsort(-first["drawn_scores"], kind="stable")
    order = first["drawn"][best].tolist()
    kinds = list(dict.fromkeys(row % 50 for row in order))[:10]
    assert sorted((apart["rows"] % 50).tolist()) == sorted(kinds)


@pytest.mark.parametrize("settings", [{"aim": "round_robin"}, {"target": ["a", "b"]}], ids=["turns", "tasks"])
def test_beside_turns_it_is_refused(settings, twice):
    if "target" in settings:
        settings = {"target": [f"{name}={twice['target'][0]}" for name in settings["target"]]}
    said = clusterucb("run", *options(twice, **settings, near_duplicates=0.9)).complaint
    assert said == (
        "near_duplicates 0.9: rows taken in turn, by aim round_robin or for several targets, have no one "
        "order of best rows; use --near-duplicates 1"
    )
