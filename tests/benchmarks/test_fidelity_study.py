"""The fidelity study's features, recall and tables, on a tiny model and on scores made up."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from fidelity_cost import cheapest, loss_curves, recall_curves, total_cost, write_svg
from fidelity_features import (
    DIRECTIONS,
    fresh_folder,
    fresh_periods,
    read_features,
    read_warmup,
    take_features,
)
from fidelity_recall import STALE_FIRST, Case, cases, drift, evaluated, recall_results
from fidelity_report import (
    cost_share,
    cost_table,
    downstream_table,
    drift_tables,
    recall_tables,
    where_not_most,
)
from fidelity_rows import HIDDEN, LINEAR_HIDDEN
from safetensors.numpy import load_file

from clusterucb.config import load
from clusterucb.errors import InputError, MismatchError
from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureWriter
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.run.session import Session
from clusterucb.runtime.screen import Screen
from clusterucb.selection.policies import POLICIES
from clusterucb.studies.simulate.grid import Grid
from clusterucb.studies.simulate.simulate import Problem
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import last_whole_checkpoint
from clusterucb.training.moments import import_moments

SVG = "{http://www.w3.org/2000/svg}"
QUIET = Screen(quiet=True)
GRID = Grid((0.25, 0.5, 1.0), (3, 6), seeds=(0, 1, 2), top_p=0.1)


@pytest.fixture(scope="module")
def new_session(shared_settings):
    """A session in a folder of its own: 60 rows, four periods, several batches of gradients in each."""
    settings = {**shared_settings, "pool": shared_settings["pool"][:1], "periods": 4, "batch_tokens": 256}
    return lambda out: Session(load(None, {**settings, "out": str(out)}))


@pytest.fixture(scope="module")
def taken(new_session, tmp_path_factory):
    session = new_session(tmp_path_factory.mktemp("taken") / "run")
    take_features(session)
    return session


def stores(session):
    """All features and directions, by file."""
    folders = [fresh_folder(session, period) for period in fresh_periods(session)]
    found = {
        at / "features.f16": (at / "features.f16").read_bytes() for at in (session.dir.features, *folders)
    }
    for path in (session.dir.directions_at(1), *(folder / DIRECTIONS for folder in folders)):
        found[path] = load_file(path)["directions"].tobytes()
    return {path.relative_to(session.dir.path): stored for path, stored in found.items()}


@pytest.mark.whole
class TestFeatures:
    def test_fresh_ones_are_those_at_the_checkpoint_that_training_had_reached(self, taken):
        """Row by row, alone in its batch, at the state that the trainer saved at the end of period 3."""
        last = int(last_whole_checkpoint(taken.dir.training)[0].name.split("-")[1])
        before_last, pooled, target = (
            taken.dir.training / f"checkpoint-{last * 3 // 4}",
            taken.inputs.pooled,
            taken.inputs.targeted,
        )
        model = taken.model
        load_adapter(model, before_last)
        featurize = Featurizer(model, taken.projection, import_moments(before_last, model))
        store, directions = read_features(fresh_folder(taken, 4))
        for row in (0, 7, 41):
            alone, _ = featurize([pooled.tokens[row]])
            np.testing.assert_allclose(store.features[row : row + 1], alone, atol=2e-3)
        plain = Featurizer(model, taken.projection)
        for code in (0, 1):
            rows = np.flatnonzero(target.codes == code)
            mean = np.mean([plain([target.tokens[i]])[0][0].astype(float) for i in rows], axis=0)
            np.testing.assert_allclose(directions[code], mean, atol=2e-3)

    def test_they_differ_between_checkpoints_and_cost_a_gradient_a_row(self, taken):
        found = [stored for path, stored in stores(taken).items() if path.suffix == ".f16"]
        assert len(set(found)) == 3
        costs = lines(cost_table(taken))[2:]
        assert [cost[1:3] for cost in costs] == [["60", "6"]] * 3

    def test_interrupted_it_goes_on_to_the_same_bytes(self, taken, new_session, tmp_path, monkeypatch):
        write, written = FeatureWriter.write, []

        def interrupted(self, rows, *found):
            if self.folder.name == "4.part":
                if written:
                    raise KeyboardInterrupt
                written.append(rows)
            write(self, rows, *found)

        with monkeypatch.context() as patch:
            patch.setattr(FeatureWriter, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                take_features(new_session(tmp_path / "run"))
        again = new_session(tmp_path / "run")
        assert [fresh_folder(again, period).exists() for period in (2, 4)] == [True, False]
        take_features(again)
        assert stores(again) == stores(taken)

    def test_cases_score_each_target_by_itself(self, taken):
        found = {(case.period, case.target): case for case in cases(taken)}
        assert list(found) == [(2, "s0"), (2, "s1"), (4, "s0"), (4, "s1")]
        case, (store, directions) = found[4, "s1"], read_features(fresh_folder(taken, 4))
        direction = directions[1].astype(float)
        features = np.asarray(store.features).astype(np.float64)
        np.testing.assert_allclose(case.problem.scores, features @ direction, atol=1e-6)
        stale, before = read_warmup(taken)
        expected = stored_influence(stale.features, before[1:2])
        np.testing.assert_array_equal(case.problem.stale_scores, expected)
        half = np.asarray(stale.features).astype(np.float64) @ direction
        np.testing.assert_allclose(case.half_fresh, half, atol=1e-6)

    def test_recall_is_kept_and_refused_for_another_grid(self, taken, tmp_path):
        path, budgets = tmp_path / "recall.json", (0.25,)
        found = recall_results(path, taken, Grid(budgets, (3,), seeds=(0,), top_p=0.1), QUIET)
        written = path.read_bytes()
        assert recall_results(path, taken, Grid(budgets, (3,), seeds=(0,), top_p=0.1), QUIET) == found
        assert path.read_bytes() == written
        with pytest.raises(MismatchError, match="seeds"):
            recall_results(path, taken, Grid(budgets, (3,), seeds=(1,), top_p=0.1), QUIET)


def test_recall_without_features_names_the_stage_to_run(new_session, tmp_path):
    with pytest.raises(InputError, match="run the stage features first"):
        recall_results(tmp_path / "recall.json", new_session(tmp_path / "run"), GRID, QUIET)


def made_up(seed, period=2, target="t", noise=0.5, rows=80):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    fresh = 1 + features[:, 0].astype(float)
    stale = fresh + noise * rng.normal(size=rows)
    problem = Problem(f"{target}, period {period}", fresh, features, stale)
    half_fresh, likeness = (stale + noise * rng.normal(size=rows) for _ in range(2))
    return Case(period, target, problem, half_fresh, likeness)


def best(scores, count):
    return set(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count])


def test_evaluated_has_every_run_and_the_whole_budget_finds_all():
    runs = evaluated([made_up(0), made_up(1, 4)], GRID, QUIET)["runs"]
    kinds = Counter((run["policy"], run["period"]) for run in runs)
    assert all(kinds[name, period] == 3 * 2 * 3 for name in POLICIES for period in (2, 4))
    assert len({(*(r[n] for n in ("policy", "period", "budget", "k", "seed")),) for r in runs}) == len(runs)
    assert {(run["recall"], run["captured"]) for run in runs if run["budget"] == 1.0} == {(1.0, 1.0)}


def kept(looked_at, fresh):
    """Recall and captured influence where the best 8 of the rows that are looked at are kept."""
    chosen, top = sorted(looked_at, key=lambda row: (-fresh[row], row))[:8], best(fresh, 8)
    return len(top & set(chosen)) / 8, pytest.approx(fresh[chosen].mean() / fresh[list(top)].mean())


def test_stale_first_finds_what_the_highest_stale_rows_hold():
    case = made_up(3)
    runs = [run for run in evaluated([case], GRID, QUIET)["runs"] if run["policy"] == STALE_FIRST]
    assert [run["spent"] for run in runs] == [20, 40, 80]
    for run in runs:
        looked_at = best(case.problem.stale_scores, run["spent"])
        assert (run["recall"], run["captured"]) == kept(looked_at, case.problem.scores)


def test_drift_counts_what_old_scores_would_have_selected():
    case = made_up(5)
    found = drift(case, 0.1)
    known = {"stale": case.problem.stale_scores, "half_fresh": case.half_fresh, "hidden": case.likeness}
    for name, scores in known.items():
        expected = kept(best(scores, 8), case.problem.scores)
        assert (found[name]["recall"], found[name]["captured"]) == expected
    same = drift(made_up(5, noise=0.0), 0.1)["stale"]
    assert (same["spearman"], same["recall"], same["captured"]) == (pytest.approx(1), 1, 1)


def lines(tables):
    text = "\n".join(tables)
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def test_tables_hold_means_and_deviations_over_seeds_and_name_what_finds_more():
    """The mean over targets of each seed; old scores that are the fresh ones find all."""
    grid = Grid((0.25,), seeds=(0, 1, 2), top_p=0.1)
    found = evaluated([made_up(0, 2, "a", noise=0.0), made_up(1, 2, "b", noise=0.0)], grid, QUIET)
    row = next(line for line in lines(recall_tables(found, 4)) if line[0] == "ucb_beta")
    runs = [run for run in found["runs"] if run["policy"] == "ucb_beta"]
    means = [np.mean([run["recall"] for run in runs if run["seed"] == seed]) for seed in (0, 1, 2)]
    assert row[1] == f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
    named = lines(where_not_most(found))[-1]
    assert named[:3] == ["25%", "2", "b"]
    assert "stale alone 1.000" in named[4]
    assert "stale first 1.000" in named[4]
    assert lines(drift_tables(found["drift"]))[2][:4] == ["a", "2", "stale features, stale target", "1.000"]


def test_downstream_table_names_what_beats_the_reference_and_what_failed():
    cost = {"pool_gradients": 160, "pool_forwards": 0, "tokens": 7000, "seconds": 5.0}
    shared = {"finished": 3, "failed": 0, "cost": cost, "of_full_dynamic": {"pool_gradients": 0.4}}

    def estimate(mean):
        return {"mean": mean, "error": 0.01, "over": "rows"}

    def method(loss, against):
        found = {"loss": estimate(loss), "against_base": estimate(loss - 2), "against_reference": against}
        return {**shared, **found}

    methods = {
        "clusterucb": method(1.5, None),
        "random": method(1.4, estimate(-0.1)),
        "less": {"finished": 0, "failed": 2, "unfinished": 0},
    }
    compared = {"rows": 60, "base": {"loss": estimate(2.0)}, "reference": "clusterucb", "methods": methods}
    tables = list(downstream_table("gsm8k", compared))
    ours, _, less = lines(tables)[3:6]
    assert [*ours[:4], *ours[5:7]] == ["clusterucb", "3", "1.5000 ± 0.0100", "-0.5000 ± 0.0100", "160", "40%"]
    assert less[:2] == ["less", "0 (2 failed)"]
    assert tables[-1] == "Lower loss than clusterucb: random."


@pytest.mark.parametrize(
    ("policy", "budget", "cost"),
    [
        ("ucb_beta", 0.2, 1.6),
        ("linear_ucb", 0.05, 1.15),
        (HIDDEN, 0.2, 1 / 3 + 0.8),
        (LINEAR_HIDDEN, 0.05, 1 / 3 + 0.2),
        ("uniform", 0.2, 0.8),
        ("ucb_beta", 1.0, 4.0),
    ],
)
def test_total_cost_is_that_of_four_periods(policy, budget, cost):
    assert total_cost(policy, budget, 1_000, 4) == pytest.approx(cost)
    if policy == "ucb_beta":
        assert cost_share(budget, 1_000, 4) == pytest.approx(cost / 4)


def test_a_recall_curve_is_the_mean_of_all_runs_by_cost():
    runs = [("a", 0.4, 0.9), ("a", 0.1, 0.2), ("a", 0.1, 0.4), ("b", 0.1, 0.5)]
    runs = [dict(zip(("policy", "budget", "recall"), run, strict=True)) for run in runs]
    curves = recall_curves(runs, ["a", "b"], 100, 4)
    assert [(pytest.approx(x), pytest.approx(y)) for x, y in curves["a"]] == [(1.3, 0.3), (2.2, 0.9)]
    assert [name for name, *_ in cheapest(curves, 0.5)] == ["a", "b"]
    assert list(cheapest(curves, 0.6)) == [("a", *curves["a"][1])]


def test_a_method_at_several_budgets_is_one_curve():
    losses = {"m": (0.4, 1.5), "m@0.05": (0.1, 1.9), "rds": (0.1, 1.8)}
    methods = {n: {"of_full_dynamic": {"cost": cost}, "loss": {"mean": y}} for n, (cost, y) in losses.items()}
    found = loss_curves({"methods": {**methods, "less": {}}}, 4)
    assert found == {"m": [(0.4, 1.9), (1.6, 1.5)], "rds": [(0.4, 1.8)]}


def test_the_plot_has_each_curve_with_its_points_in_their_places(tmp_path):
    curves = {"a <b>": [(0.5, 0.1), (1.0, 0.9), (2.0, 0.95)], "c": [(1.0, 0.5)]}
    write_svg(tmp_path / "plot.svg", curves, "title & more", "recall")
    tree = ElementTree.parse(tmp_path / "plot.svg").getroot()
    lines = [line.get("points").split() for line in tree.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [3, 1]
    spots = [tuple(map(float, point.split(","))) for point in lines[0]]
    assert spots == sorted(spots, key=lambda spot: (spot[0], -spot[1]))  # down is larger
    assert spots[2][0] - spots[1][0] == pytest.approx(2 * (spots[1][0] - spots[0][0]), abs=0.2)
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"a <b>", "c", "title & more", "recall"} <= set(texts)
