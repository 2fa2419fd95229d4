"""Whole runs whose rows are drawn by what is known of each: --draw-order stale, --policy linear_ucb."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from step_helpers import going_on, selection, summary

from cli_helpers import done, options
from clusterucb.config import load
from clusterucb.features.drawn import DrawnFeatures
from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureStore
from clusterucb.run.session import Session
from clusterucb.steps.select import knowledge

ROUNDS = (2, 3)


@pytest.fixture(scope="module")
def row_level(finished_run):
    """A run with linear_ucb."""
    return finished_run("linear_ucb").folder


def test_linear_ucb_computes_the_budgets_gradients_and_keeps_the_best_it_expects(row_level):
    for number in ROUNDS:
        found, said = selection(row_level, number), summary(row_level, number)
        assert said["cost"]["pool_gradients"] == said["drawn"] == len(found["drawn"]) == 20
        assert len(set(found["rows"].tolist())) == said["selected"] == 10
        scores = dict(zip(found["drawn"].tolist(), found["drawn_scores"].tolist(), strict=True))
        kept = zip(found["rows"].tolist(), found["scores"].tolist(), strict=True)
        assert all(scores.get(row, score) == score for row, score in kept)
        assert said["expected_change"] >= 0


def test_features_of_drawn_rows_are_kept_and_used_in_the_next_period(row_level):
    """The rows of round 2 have an estimate by their feature there: the exact influence of it in round 3."""
    session, rounds = Session(load(row_level / "config.yaml")), row_level / "rounds"
    directions = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    known = knowledge(session).at(directions, [rounds / "1", rounds / "2"])
    newest, age = session.index.store().features[:].astype(np.float64), np.full(100, 2)
    for rows, features in DrawnFeatures(rounds / "2").blocks():
        newest[rows], age[rows] = features, 0
    np.testing.assert_allclose(known.estimate, (newest @ directions.T).max(1), atol=1e-6)
    assert known.age.tolist() == age.tolist()
    assert np.flatnonzero(age == 0).tolist() == sorted(selection(row_level, 2)["drawn"].tolist())


def test_published_policies_keep_no_features_of_drawn_rows(finished_settings):
    assert not list(Path(finished_settings["out"]).glob("rounds/*/drawn.*"))


def test_stale_draw_order_draws_each_cluster_from_its_best_estimate_down(finished_run, tmp_path):
    """At the warmup checkpoint, where the directions are those that are stored."""
    folder = tmp_path / "run"
    given = going_on(finished_run("clusterucb"), folder, draw_order="stale")
    done("select", *given, "--checkpoint", folder / "warmup")
    (chosen,) = folder.glob("selections/*/1/selection.safetensors")
    drawn = load_file(chosen)["drawn"]
    directions = load_file(folder / "directions/1.safetensors")["directions"]
    estimate = stored_influence(FeatureStore(folder / "features").features, directions)
    labels = load_file(folder / "clusters.safetensors")["labels"]
    for cluster in range(5):
        best_first = sorted(np.flatnonzero(labels == cluster), key=lambda row: -estimate[row])
        own = [row for row in drawn.tolist() if labels[row] == cluster]
        assert own == best_first[: len(own)]


@pytest.mark.whole
def test_budget_auto_stops_once_little_is_expected_to_change_and_never_exceeds_its_cap(
    run_settings, tmp_path
):
    auto, easy, hard = {"policy": "linear_ucb", "budget": "auto"}, tmp_path / "easy", tmp_path / "hard"
    own = {**run_settings, **auto, "periods": 2}
    done("run", *options(own, out=easy, budget_cap=0.6, auto_change=0.5, rounds=20))
    assert summary(easy, 2)["drawn"] < 60
    assert summary(easy, 2)["expected_change"] <= 0.5
    done("run", *options(own, out=hard, budget_cap=0.12, auto_change=0.001))
    assert summary(hard, 2)["drawn"] == 12
    assert "budget: auto" in (hard / "config.yaml").read_text()


@pytest.mark.parametrize("how", [{"draw_order": "stale"}, {"policy": "linear_ucb"}])
def test_less_draws_by_what_is_known_at_its_first_checkpoint(finished_run, tmp_path, how):
    done("select", *going_on(finished_run("less_clusterucb"), tmp_path / "run", **how))
    assert summary(tmp_path / "run")["drawn"] == 20
