"""select() against a reference, plain, quadratic and exact, and every defect of the published bandit."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_helpers import check_consistent

from clusterucb.selection.arms import Arms
from clusterucb.selection.bandit import select
from clusterucb.selection.policies import STD_FLOOR, UCB1, Random, UCBBeta, UCBThreshHard, UCBThreshNormal

THRESHOLDS = (UCBThreshHard(), UCBThreshHard(ucb_p=0.6), UCBThreshNormal(), UCBThreshNormal(ucb_p=0.1))
POLICIES = (UCBBeta(), UCBBeta(beta=0.3), UCB1(), *THRESHOLDS, Random())


def floor_of(fraction, n):
    return int(Decimal(str(fraction)) * n)


def arm_score(policy, own, everything, imagined=0, imagined_of_all=0):
    """The published score of an arm with draws `own`, recomputed from all draws so far.

    `imagined`: further draws of the arm at its mean, as in a batch over many arms.
    """
    exact = sum(map(Fraction, own)) / len(own)
    mean = float(exact)
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


@settings(max_examples=200)
@given(problems(), st.sampled_from(POLICIES), st.integers(0, 99))
def test_select_draws_and_keeps_what_the_quadratic_reference_does(problem, policy, seed):
    clusters, scores, options = problem
    drawn, kept = quadratic_select(clusters.tolist(), scores.tolist(), policy, seed=seed, **options)
    asked, told = [], []
    found = select(
        clusters, lambda r: asked.append(r) or scores[r], policy, seed=seed, on_draw=told.append, **options
    )
    assert found.drawn.tolist() == drawn == np.concatenate(asked).tolist()
    assert found.rows.tolist() == kept
    assert found.cold == len(asked[0])
    assert all(1 <= len(draw.rows) <= options["draw_batch"] for draw in told if not draw.cold)
    check_consistent(found, told, clusters, scores)


def test_a_batch_over_many_arms_is_one_call_of_the_influence():
    calls = []
    clusters, scores = np.arange(1000) % 20, np.random.default_rng(0).normal(size=1000)
    batch = {"draw_batch": 50, "draw_batch_arms": "many"}
    found = select(clusters, lambda r: calls.append(r) or scores[r], cold_start=0.05, **batch)
    assert [len(rows) for rows in calls] == [found.cold, 50, 50, 50, 10]
    assert len(set(clusters[calls[1]])) > 1


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("sizes", [{3: 4, 5: 40, 8: 60}, {**dict.fromkeys(range(20), 1), 77: 84}], ids=str)
def test_an_emptied_cluster_is_never_chosen_however_low_the_others_score(policy, sizes):
    """Emptied by the policy, or, where it has one row, by the cold start."""
    clusters = np.repeat(list(sizes), list(sizes.values()))
    scores = np.where(clusters < 20, -1.0, -7.0) + (clusters == 3) - np.arange(104) / 1e6
    found = select(clusters, lambda r: scores[r], policy, budget=0.9, draw_batch=3)
    assert found.spent == len(set(found.drawn.tolist())) == 93


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
