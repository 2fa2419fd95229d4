"""select() against a plain quadratic reference, and every defect of the published bandit."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import ConfigError, InputError
from clusterucb.selection.arms import Arms
from clusterucb.selection.bandit import select
from clusterucb.selection.policies import STD_FLOOR, UCB1, Random, UCBBeta, UCBThreshHard, UCBThreshNormal

POLICIES = (
    UCBBeta(),
    UCBBeta(beta=0.3),
    UCB1(),
    UCBThreshHard(),
    UCBThreshHard(ucb_p=0.6),
    UCBThreshNormal(),
    UCBThreshNormal(ucb_p=0.1),
    Random(),
)


# ---------------------------------------------------------------- the reference: slow, plain, exact


def floor_of(fraction, n):
    return int(Decimal(str(fraction)) * n)


def arm_score(policy, own, everything, imagined=0, imagined_of_all=0):
    """The published score of an arm with draws `own`, recomputed from all draws so far.

    `imagined`: further draws of the arm at its mean, as in a batch over many arms.
    """
    mean = float(sum(map(Fraction, own)) / len(own))
    exact = sum(map(Fraction, own)) / len(own)
    std = math.sqrt(sum((Fraction(x) - exact) ** 2 for x in own) / len(own))
    for n in range(len(own), len(own) + imagined):
        std *= math.sqrt(n / (n + 1))
    match policy:
        case UCBBeta():
            return mean + policy.beta * std
        case UCB1():
            return mean + math.sqrt(2 * math.log(len(everything) + imagined_of_all) / (len(own) + imagined))
        case UCBThreshHard():
            tau = np.quantile(everything, 1 - policy.ucb_p)
            return sum(x >= tau for x in own) / (len(own) + imagined)
        case UCBThreshNormal():  # ordered by -z, as 1 - Phi(z) is, but without saturation
            tau = np.quantile(everything, 1 - policy.ucb_p)
            return -(tau - mean) / max(std, STD_FLOOR)
    raise AssertionError(policy)


def quadratic_select(
    clusters, scores, policy, *, budget, cold_start, top_p, draw_batch, draw_batch_arms, estimate, seed
):
    """(drawn rows in order, kept rows), every statistic recomputed from history at every draw."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clusters)).tolist()
    if estimate is not None:
        order.sort(key=lambda row: -estimate[row])
    unseen = {c: [row for row in order if clusters[row] == c] for c in sorted(set(clusters))}
    drawn = []

    def draw(c, count):
        for _ in range(min(count, len(unseen[c]))):
            drawn.append((c, unseen[c].pop(0)))

    def best(imagined):
        open_arms = [c for c in unseen if len(unseen[c]) > imagined.get(c, 0)]
        if isinstance(policy, Random):
            return open_arms[rng.integers(len(open_arms))]
        everything = [scores[row] for _, row in drawn]
        value = {}
        for c in open_arms:
            own = [scores[row] for arm, row in drawn if arm == c]
            value[c] = arm_score(policy, own, everything, imagined.get(c, 0), sum(imagined.values()))
        if isinstance(policy, UCBThreshHard) and not any(value.values()):
            value = {c: max(scores[row] for arm, row in drawn if arm == c) for c in open_arms}
        return max(open_arms, key=lambda c: (value[c], -c))

    for c in unseen:
        draw(c, max(1, floor_of(cold_start, len(unseen[c]))))
    while (left := floor_of(budget, len(clusters)) - len(drawn)) > 0:
        picks = {}
        if draw_batch_arms == "one":
            picks[best({})] = min(draw_batch, left)
        else:
            for _ in range(min(draw_batch, left)):
                arm = best(picks)
                picks[arm] = picks.get(arm, 0) + 1
        for arm, count in picks.items():
            draw(arm, count)
    rows = [row for _, row in drawn]
    kept = sorted(rows, key=lambda row: (-scores[row], row))[: floor_of(top_p, len(clusters))]
    return rows, sorted(kept)


@st.composite
def problems(draw):
    """Small pools: gaps in the labels, singletons, ties, negative scores, arms that run dry."""
    sizes = draw(st.lists(st.sampled_from([1, 1, 2, 3, 7, 20]), min_size=1, max_size=7))
    names = draw(st.lists(st.integers(0, 40), min_size=len(sizes), max_size=len(sizes), unique=True))
    n = sum(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    clusters = rng.permutation(np.repeat(names, sizes))
    kinds = {
        "integers": rng.integers(-3, 4, n).astype(float),
        "negative integers": rng.integers(-9, -4, n).astype(float),
        "sixty-fourths": rng.integers(-64, 65, n) / 64,
        "normal": rng.normal(size=n),
        "far from zero": rng.normal(-1000, 0.01, n),
        "tiny": rng.normal(-1, 1, n) * 1e-5,
    }
    scores = kinds[draw(st.sampled_from(sorted(kinds)))]
    spend = draw(st.integers(len(sizes), n))
    keep = draw(st.integers(1, spend))
    shares = {"budget": round_up(spend, n), "top_p": round_up(keep, n)}
    cold = draw(st.sampled_from([0.0, 0.01, 0.1, 0.29]))
    first = sum(max(1, floor_of(cold, size)) for size in sizes)
    cold = cold if cold <= shares["budget"] and first <= spend else 0.0
    batch = {"draw_batch": draw(st.integers(1, 9)), "draw_batch_arms": draw(st.sampled_from(["one", "many"]))}
    estimate = draw(st.sampled_from([None, rng.normal(size=n), rng.integers(0, 3, n)]))
    return clusters, scores, {**shares, "cold_start": cold, **batch, "estimate": estimate}


def round_up(part, n):
    """A fraction of four digits whose share of n <= 140 rows is `part`."""
    return math.ceil(part / n * 10_000) / 10_000


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(POLICIES), st.integers(0, 99))
def test_select_draws_and_keeps_what_the_quadratic_reference_does(problem, policy, seed):
    clusters, scores, options = problem
    drawn, kept = quadratic_select(clusters.tolist(), scores.tolist(), policy, seed=seed, **options)
    found = select(clusters, lambda rows: scores[rows], policy, seed=seed, **options)
    assert found.drawn.tolist() == drawn
    assert found.rows.tolist() == kept


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from(POLICIES))
def test_a_selection_is_consistent_in_itself(problem, policy):
    clusters, scores, options = problem
    asked, told = [], []

    def influence(rows):
        asked.append(rows.tolist())
        return scores[rows]

    found = select(clusters, influence, policy, on_draw=told.append, **options)
    assert found.spent == floor_of(options["budget"], len(clusters)) == len(set(found.drawn.tolist()))
    assert found.drawn.tolist() == [row for rows in asked for row in rows]
    assert found.drawn_scores.tolist() == scores[found.drawn].tolist()
    assert found.drawn_clusters.tolist() == clusters[found.drawn].tolist()
    assert found.cold == len(asked[0])
    assert len(found.rows) == floor_of(options["top_p"], len(clusters))
    assert (np.diff(found.rows) > 0).all()
    assert found.scores.tolist() == scores[found.rows].tolist()
    assert found.clusters.tolist() == clusters[found.rows].tolist()
    assert found.threshold == found.scores.min()
    assert [draw.step for draw in told] == list(range(len(told)))
    assert np.concatenate([draw.rows for draw in told]).tolist() == found.drawn.tolist()
    assert sum(len(draw.rows) for draw in told if draw.cold) == found.cold
    assert all((clusters[draw.rows] == draw.arm).all() for draw in told)
    assert all(1 <= len(draw.rows) <= options["draw_batch"] for draw in told if not draw.cold)


# ---------------------------------------------------------------- a batch of draws over many arms


def many_arms(k, n):
    """Arms of different means and deviations, float32 scores as a live model gives."""
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.arange(n) % k)
    scores = rng.normal(size=k)[clusters] + rng.lognormal(0, 0.5, k)[clusters] * rng.normal(size=n)
    return clusters, (0.08 + 0.03 * scores).astype(np.float32).astype(float)


def test_a_batch_over_many_arms_is_one_call_of_the_influence():
    calls = []
    clusters, scores = many_arms(20, 1000)
    batch = {"draw_batch": 50, "draw_batch_arms": "many"}
    found = select(clusters, lambda r: calls.append(r) or scores[r], cold_start=0.05, **batch)
    assert [len(rows) for rows in calls] == [found.cold, 50, 50, 50, 10]
    assert len(set(clusters[calls[1]])) > 1


# ---------------------------------------------------------------- defects of the published code


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_an_exhausted_cluster_is_never_chosen_while_all_live_scores_are_negative(policy):
    clusters = np.repeat([3, 5, 8], [4, 40, 60])
    scores = np.where(clusters == 3, -0.001, -1.0) - np.arange(104) / 1e6
    found = select(clusters, lambda r: scores[r], policy, budget=0.9, draw_batch=3)
    assert found.spent == len(set(found.drawn.tolist())) == 93


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_singleton_emptied_by_the_cold_start_is_never_chosen_again(policy):
    clusters = np.r_[np.arange(20), np.full(80, 77)]
    scores = np.where(clusters < 20, 5.0, -7.0)
    found = select(clusters, lambda r: scores[r], policy, budget=0.5)
    assert found.cold == 21
    assert set(found.drawn_clusters[21:].tolist()) == {77}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_failing_row_is_named_and_not_scored_as_zero(bad):
    scores = np.zeros(100)
    scores[42] = bad
    with pytest.raises(InputError, match=r"influence of row 42 is -?(nan|inf): expected a finite number"):
        select(np.arange(100) % 3, lambda r: scores[r], budget=1.0)


@pytest.mark.parametrize("policy", [UCBThreshHard(), UCBThreshNormal(), UCBBeta(), UCB1()], ids=str)
def test_no_draw_is_read_twice_however_long_the_history(policy):
    class Counted(list):
        reads = 0

        def __getitem__(self, at):
            assert isinstance(at, int)
            Counted.reads += 1
            return super().__getitem__(at)

        def __iter__(self):
            raise AssertionError("the history was scanned")

    rng = np.random.default_rng(0)
    arms = Arms(dict.fromkeys(range(10), 10_000), rng)
    arms._scores, arms._slots = Counted(), Counted()
    for t in range(1500):
        arms.record(t % 10, rng.normal(size=2))
        if t >= 9:
            policy(arms)
    thresholds = 1 if hasattr(policy, "ucb_p") else 0
    assert Counted.reads == thresholds * 2 * arms.total


# ---------------------------------------------------------------- draws


def test_the_same_seed_gives_the_same_selection_and_another_seed_another():
    scores = np.random.default_rng(0).normal(size=500)
    runs = [select(np.arange(500) % 9, lambda r: scores[r], seed=s).drawn.tolist() for s in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]


def test_draws_within_an_arm_are_uniform_without_replacement():
    times = np.zeros((6, 6))  # row x place in the order of draws
    for seed in range(1500):
        clusters, options = np.repeat([0, 1], [6, 2]), {"budget": 1.0, "top_p": 0.5}
        drawn = select(clusters, lambda r: r % 2 * 1.0, seed=seed, **options).drawn
        own = drawn[drawn < 6]
        times[own, np.arange(6)] += 1
    assert abs(times / 1500 - 1 / 6).max() < 0.05  # five standard deviations


def test_an_estimate_that_is_right_finds_more_than_uniform_draws_of_the_same_arms():
    rng = np.random.default_rng(3)
    clusters, scores = rng.integers(0, 5, 1000), rng.normal(size=1000)
    best = np.argsort(-scores)[:50]

    def recall(estimate):
        found = select(clusters, lambda rows: scores[rows], budget=0.1, top_p=0.05, estimate=estimate)
        return np.isin(best, found.rows).mean()

    assert recall(scores + rng.normal(size=1000)) > 2 * recall(None)


def test_any_function_of_the_open_arms_is_a_policy():
    seen = []

    def fewest_draws(arms):
        seen.append(arms.ids.tolist())
        return -arms.n

    clusters = np.repeat([2, 6, 7], [2, 10, 30])
    found = select(clusters, lambda r: r * 1.0, fewest_draws, budget=0.5, draw_batch=1)
    assert np.unique(found.drawn_clusters, return_counts=True)[1].tolist() == [2, 10, 9]
    assert seen[0] == [2, 6, 7]
    assert seen[-1] == [6, 7]


@pytest.mark.parametrize("policy", [UCBBeta(), UCBThreshHard(), UCBThreshNormal()], ids=str)
def test_the_policy_finds_one_good_cluster_among_many_and_random_does_not(policy):
    def recall(policy, seed):
        rng = np.random.default_rng(seed)
        clusters = rng.permutation(np.arange(2000) % 20)
        scores = rng.normal(size=2000) + 3 * (clusters == 13)
        best = np.argsort(-scores)[:100]
        return np.isin(best, select(clusters, lambda r: scores[r], policy, seed=seed).rows).mean()

    found = np.mean([recall(policy, seed) for seed in range(5)])
    blind = np.mean([recall(Random(), seed) for seed in range(5)])
    assert blind < 0.3
    assert found > 0.7


def test_the_influence_cannot_change_the_order_of_draws():
    def spoiling(rows):
        scores = rows * 1.0
        rows[:] = -1
        return scores

    plain = select(np.arange(100) % 3, lambda r: r * 1.0)
    assert select(np.arange(100) % 3, spoiling).drawn.tolist() == plain.drawn.tolist()


def test_float32_scores_and_lists_are_taken():
    scores = np.random.default_rng(0).normal(size=100).astype(np.float32)
    a = select([i % 4 for i in range(100)], lambda r: scores[r])
    b = select(np.arange(100, dtype=np.uint8) % 4, lambda r: scores[r].tolist())
    assert a.rows.tolist() == b.rows.tolist()
    assert a.scores.dtype == np.float64
    assert a.rows.dtype == a.clusters.dtype == np.int64


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.1, "top_p": 0.2}, r"budget 0\.1 is below top_p 0\.2"),
        ({"top_p": 0.001}, r"top_p is 0\.001: selects none of 100 rows; raise it to 0\.01"),
        ({"clusters": np.arange(100) % 30}, r"budget 0\.2 is 20 of 100 rows, but the cold start takes 30"),
        ({"draw_batch": 0}, r"draw_batch is 0: must be at least 1"),
        ({"draw_batch_arms": "all"}, r"draw_batch_arms is 'all': must be 'one' or 'many'"),
        ({"seed": -1}, r"seed is -1: must be 0 or more"),
        ({"policy": "ucb1"}, r"policy is 'ucb1': must be a policy such as UCBBeta"),
        ({"policy": lambda arms: np.zeros(3)}, r"returned shape \(3,\): expected \(2,\)"),
        ({"policy": lambda arms: np.full(len(arms.ids), np.nan)}, r"gave NaN for cluster 0"),
        ({"clusters": []}, r"clusters are empty"),
        ({"clusters": np.zeros((2, 3), int)}, r"clusters of shape \(2, 3\): must be one label a row"),
        ({"clusters": np.zeros(100)}, r"clusters of type float64: must be integers"),
        ({"clusters": np.r_[np.zeros(9, int), -1]}, r"row 9 has label -1: must be 0 or more"),
        ({"estimate": [1.0, 2.0]}, r"estimate of shape \(2,\) for 100 rows.*: expected \(100,\)"),
        ({"estimate": np.r_[np.zeros(99), np.nan]}, r"estimate of row 99 is nan: expected a finite number"),
        ({"influence": lambda rows: np.zeros(1)}, r"influence of shape \(1,\) for 2 rows from row \d+ on"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_it(options, message):
    arguments = {"clusters": np.arange(100) % 2, "influence": lambda rows: rows * 1.0, **options}
    with pytest.raises((ConfigError, InputError), match=message) as error:
        select(**arguments)
    assert "\n" not in str(error.value)
