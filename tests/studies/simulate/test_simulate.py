"""What a simulation says, against slow references and against the bandit run by itself."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.errors import ConfigError, InputError
from clusterucb.selection.policies import POLICIES, policy
from clusterucb.studies.simulate.outcomes import SETTING, spreads

EVERY = {name: policy(name) for name in POLICIES}
GRID = cu.Grid(budgets=(0.3, 0.15, 1.0), ks=(4, 7), csps=(0.0, 0.05), seeds=(3, 1), top_p=0.1, draw_batch=4)
REFERENCES = ("uniform", "stale")


def problem(seed=0, n=200, groups=5, name="p", shift=0.0, stale=False):
    """Rows around a few directions, whose influence depends on the direction."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    features = rng.normal(size=(groups, 16))[group] + 0.3 * rng.normal(size=(n, 16))
    scores = rng.normal(size=groups)[group] + 0.5 * rng.normal(size=n) + shift
    old = scores + rng.normal(size=n) if stale else None
    return cu.Problem(name, scores, features.astype(np.float32), old)


def best_rows(scores, count):
    """The `count` best rows, of equal ones the lowest."""
    return set(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count])


@pytest.fixture(scope="module")
def solved():
    """Problems and their outcomes."""
    problems = [problem(0, name="a"), problem(1, name="b", shift=-9, stale=True)]
    return {p.name: p for p in problems}, cu.simulate(problems, EVERY, GRID)


@cache
def clusters(problem, k):
    return cu.spherical_kmeans(problem.features, k, seed=0, centre=True).labels


def bandit(problem, outcome):
    """The rows that `select` draws and keeps in the run of an outcome, at its own budget."""
    labels = clusters(problem, outcome.k)
    limits = {"budget": outcome.budget, "cold_start": outcome.csp, "top_p": 0.1, "draw_batch": 4}
    policy = EVERY[outcome.policy]
    return labels, cu.select(labels, problem.scores.take, policy, **limits, seed=outcome.seed)


def test_every_combination_is_there_once_in_the_order_that_is_promised(solved):
    _, outcomes = solved
    runs = [o for o in outcomes if o.policy not in REFERENCES]
    found = [(o.problem, o.k, o.csp, o.policy, o.seed, o.budget) for o in runs]
    assert found == list(itertools.product("ab", (4, 7), (0.0, 0.05), POLICIES, (3, 1), (0.15, 0.3, 1.0)))


def test_outcomes_are_those_of_the_bandit_run_at_each_budget_by_itself(solved):
    """So a smaller budget may be read off a larger one's draws, and a seed changes draws, not clusters."""
    problems, outcomes = solved
    for outcome in [o for o in outcomes if o.policy not in REFERENCES]:
        scores = problems[outcome.problem].scores
        labels, selection = bandit(problems[outcome.problem], outcome)
        drawn, arms = selection.drawn_clusters, range(outcome.k)
        assert outcome.spent == selection.spent
        assert outcome.draws.tolist() == [np.count_nonzero(drawn == c) for c in arms]
        assert outcome.arms.sizes.tolist() == [np.count_nonzero(labels == c) for c in arms]
        assert outcome.arms.influence == pytest.approx([scores[labels == c].mean() for c in arms])
        best, chosen = best_rows(scores, 20), set(selection.rows.tolist())
        assert outcome.recall == len(best & chosen) / 20
        mean, top = scores[list(chosen)].mean(), scores[list(best)].mean()
        assert outcome.advantage == pytest.approx((mean - scores.mean()) / (top - scores.mean()))
        captured = mean / top if top > 0 else math.nan
        assert outcome.captured == pytest.approx(captured, nan_ok=True)
    assert {math.isnan(o.captured) for o in outcomes} == {True, False}  # in problem b none is above 0


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(POLICIES),
    n=st.integers(40, 120),
    k=st.integers(1, 6),
    ties=st.booleans(),
    draw_batch=st.integers(1, 9),
)
def test_nothing_found_is_lost_as_the_budget_grows(seed, name, n, k, ties, draw_batch):
    random = problem(seed, n=n, shift=2)
    if ties:
        random = replace(random, scores=np.round(random.scores))
    budgets = np.linspace(0.2, 1, 9).tolist()
    grid = cu.Grid(budgets, (k,), seeds=(seed,), top_p=0.1, draw_batch=draw_batch)
    outcomes = cu.simulate([random], {name: policy(name)}, grid)
    for which in (name, "uniform"):
        run = [o for o in outcomes if o.policy == which]
        for measure in ("spent", "recall", "captured", "advantage"):
            values = [getattr(o, measure) for o in run]
            assert values == sorted(values)
        assert all((one.draws <= more.draws).all() for one, more in itertools.pairwise(run))


def test_uniform_draws_find_the_budgets_share_of_the_best():
    """Of `keep` best rows, a uniform draw without replacement holds a hypergeometric number."""
    n, keep, seeds = 400, 40, 300
    grid = cu.Grid(budgets=(0.1, 0.25, 0.5), ks=(1,), csps=(0,), seeds=range(seeds), top_p=keep / n)
    outcomes = cu.simulate([problem(0, n=n)], {"alone": cu.UCB1()}, grid)
    for budget in grid.budgets:
        spent = n * budget
        variance = spent * (keep / n) * (1 - keep / n) * (n - spent) / (n - 1)
        error = math.sqrt(variance / seeds) / keep
        for name in ("uniform", "alone"):  # one cluster: whatever the policy likes is drawn uniformly
            recall = np.mean([o.recall for o in outcomes if o.policy == name and o.budget == budget])
            assert abs(recall - budget) < 4 * error


def test_stale_is_what_the_old_ranking_finds_without_a_look(solved):
    problems, outcomes = solved
    (stale,) = [o for o in outcomes if o.policy == "stale"]  # problem a has no stale scores
    b = problems["b"]
    best, chosen = best_rows(b.scores, 20), best_rows(b.stale_scores, 20)
    assert (stale.problem, stale.budget, stale.spent, stale.k, len(stale.draws)) == ("b", 0.0, 0, 0, 0)
    assert stale.recall == len(best & chosen) / 20
    assert 0 < stale.recall < 1
    fresh = cu.simulate([replace(b, stale_scores=b.scores)], {"r": cu.Random()}, GRID)
    assert [(o.recall, o.advantage) for o in fresh if o.policy == "stale"] == [(1.0, 1.0)]


def test_equal_rows_leave_nothing_to_gain():
    same = replace(problem(), scores=np.full(200, 0.1))
    outcomes = cu.simulate([same], {"r": cu.Random()}, cu.Grid(budgets=(0.2,), seeds=(0,)))
    assert {(o.captured, o.advantage) for o in outcomes} == {(1.0, 1.0)}


def test_k_is_the_square_root_of_the_rows_unless_the_smallest_budget_is_too_small():
    def ks(**more):
        return {o.k for o in cu.simulate([problem()], {"r": cu.Random()}, cu.Grid(seeds=(0,), **more))}

    assert ks(budgets=(0.4, 0.2)) == {14, 1}  # 1 is that of the reference
    assert ks(budgets=(0.4, 0.05)) == {5, 1}
    assert ks(budgets=(0.4,), ks=(None, 14)) == {14, 1}


def test_spreads_are_means_and_deviations_over_seeds(solved):
    _, outcomes = solved
    panels = dict(list(spreads(outcomes).groupby(SETTING, sort=False)))
    assert list(panels) == list(itertools.product("ab", (4, 7), (0.0, 0.05)))
    for setting, panel in panels.items():
        measures = ["recall", "captured", "advantage"] if setting[0] == "a" else ["recall", "advantage"]
        assert panel["measure"].unique().tolist() == measures
        recall = panel[panel["measure"] == "recall"].set_index(["policy", "budget"])
        stale = [("stale", 0.0)] if setting[0] == "b" else []
        assert list(recall.index) == [*itertools.product((*POLICIES, "uniform"), (0.15, 0.3, 1.0)), *stale]
        for name in POLICIES:
            run = (*setting, name, 0.3)
            one, other = (o.recall for o in outcomes if (o.problem, o.k, o.csp, o.policy, o.budget) == run)
            found = recall.loc[name, 0.3]
            assert found["mean"] == pytest.approx((one + other) / 2)
            assert found["std"] == pytest.approx(abs(one - other) / math.sqrt(2))
            assert found["count"] == 2


def tried(count=1, policies=EVERY, **grid):
    cu.simulate([problem()] * count, policies, cu.Grid(**{"budgets": (0.1, 0.9), **grid}))


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda: cu.Grid(budgets=()), r"Grid\(budgets=\[\]\): must hold at least one value"),
        (lambda: cu.Grid(budgets=(0.2, 0.2)), "none twice"),
        (lambda: cu.Grid(budgets=(0.2, 1.2)), r"budget=1.2\): must be above 0 and at most 1"),
        (lambda: cu.Grid(budgets=(0.03,)), "raise budget or lower top_p"),
        (lambda: cu.Grid(csps=(0.3,)), "raise budget or lower cold_start"),
        (lambda: cu.Grid(ks=(0,)), "must be at least 1"),
        (lambda: cu.Grid(seeds=(-1,)), "must be 0 or more"),
        (lambda: cu.Grid(draw_batch=0), "at least 1 row a draw"),
        (lambda: tried(ks=(30,)), "the cold start takes 30.*raise budget or lower k"),
        (lambda: tried(ks=(201,)), "at most the number of rows, 200"),
        (lambda: tried(top_p=0.001), "top_p 0.001: is less than one of the 200 rows of p"),
        (lambda: tried(policies={"rows": cu.LinearUCB()}), "rows: needs what is known .* --clusters-from"),
        (lambda: tried(2), "'p' is there twice"),
        (lambda: tried(policies={}), "at least one"),
        (lambda: tried(policies={"stale": cu.UCB1()}), "'stale' is the name of a reference"),
    ],
)
def test_what_cannot_be_tried_is_refused_of_a_grid_when_it_is_made(attempt, said):
    with pytest.raises(ConfigError, match=said):
        attempt()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scores": np.zeros(3)}, r"scores of shape \(3,\): expected \(200,\)"),
        ({"stale_scores": np.zeros(3)}, r"stale_scores of shape \(3,\)"),
        ({"scores": np.r_[np.zeros(7), np.nan, np.zeros(192)]}, "row 7 has scores nan"),
    ],
)
def test_a_problem_has_one_finite_number_a_row(wrong, said):
    with pytest.raises(InputError, match=f"problem p: .*{said}|{said}"):
        replace(problem(), **wrong)
