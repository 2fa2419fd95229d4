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
from clusterucb.selection import shortlist
from clusterucb.selection.arms import Arms
from clusterucb.selection.bandit import Draw, select
from clusterucb.selection.policies import (
    STD_FLOOR,
    UCB1,
    Random,
    UCBBeta,
    UCBThreshHard,
    UCBThreshNormal,
)

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
    clusters,
    scores,
    policy,
    *,
    budget,
    cold_start,
    top_p,
    draw_batch,
    seed,
    draw_batch_arms="one",
    estimate=None,
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
    scores = {
        "integers": rng.integers(-3, 4, n).astype(float),
        "negative integers": rng.integers(-9, -4, n).astype(float),
        "sixty-fourths": rng.integers(-64, 65, n) / 64,
        "normal": rng.normal(size=n),
        "far from zero": rng.normal(-1000, 0.01, n),
        "tiny": rng.normal(-1, 1, n) * 1e-5,
    }[
        draw(
            st.sampled_from(
                ["integers", "negative integers", "sixty-fourths", "normal", "far from zero", "tiny"]
            )
        )
    ]
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


# ---------------------------------------------------------------- a shortlist of arms


@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from(POLICIES[:-1]), st.integers(1, 3), st.integers(0, 99))
def test_a_shortlist_chooses_the_arms_that_the_plain_policy_does(problem, policy, size, seed):
    clusters, scores, options = problem
    plain = select(clusters, lambda rows: scores[rows], lambda arms: policy(arms), seed=seed, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist, "SIZE", size)
        patch.setattr(shortlist, "ALL", 0)
        short = select(clusters, lambda rows: scores[rows], policy, seed=seed, **options)
    assert short.drawn.tolist() == plain.drawn.tolist()


def many_arms(k, n, scale=0.03):
    """Arms of different means and deviations, float32 scores as a live model gives."""
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.arange(n) % k)
    scores = rng.normal(size=k)[clusters] + rng.lognormal(0, 0.5, k)[clusters] * rng.normal(size=n)
    return clusters, (0.08 + scale * scores).astype(np.float32).astype(float)


@pytest.mark.parametrize("batch", [(1, "one"), (30, "many")], ids=str)
@pytest.mark.parametrize("policy", POLICIES[:-1], ids=str)
def test_a_shortlist_of_hundreds_chooses_what_the_plain_policy_does(policy, batch):
    clusters, scores = many_arms(1500, 12_000)
    options = dict(zip(("draw_batch", "draw_batch_arms"), batch, strict=True)) | {"budget": 0.4}
    found = [
        select(clusters, lambda rows: scores[rows], chosen, **options)
        for chosen in (policy, lambda arms: policy(arms))
    ]
    assert found[0].drawn.tolist() == found[1].drawn.tolist()


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=str)
def test_few_draws_score_every_arm(policy):
    clusters, scores = many_arms(3000, 30_000)
    seen = []

    class Watched(type(policy)):
        def __call__(self, arms):
            seen.append(len(arms.ids))
            return super().__call__(arms)

    select(clusters, lambda rows: scores[rows], Watched(**vars(policy)), draw_batch=1)
    assert len(seen) >= 3000
    assert sum(n > 600 for n in seen) < 0.05 * len(seen)


# ---------------------------------------------------------------- a batch of draws over many arms


def test_a_batch_over_many_arms_is_one_call_of_the_influence():
    calls = []
    clusters, scores = many_arms(20, 1000)
    found = select(
        clusters,
        lambda r: calls.append(r) or scores[r],
        draw_batch=50,
        draw_batch_arms="many",
        cold_start=0.05,
    )
    assert [len(rows) for rows in calls] == [found.cold, 50, 50, 50, 10]
    assert len(set(clusters[calls[1]])) > 1


def test_without_a_deviation_to_shrink_a_batch_goes_to_the_arm_with_the_best_mean():
    clusters = np.repeat([3, 5], [60, 60])
    found = select(
        clusters, lambda r: 1.0 * (r >= 60), draw_batch=20, draw_batch_arms="many", budget=0.3, cold_start=0
    )
    assert found.drawn_clusters.tolist() == [3] + [5] * 35


@pytest.mark.parametrize("draw_batch", [2, 64, 1000])
def test_random_draws_the_same_rows_in_batches_over_many_arms_as_one_by_one(draw_batch):
    clusters, scores = many_arms(20, 1000)
    single, batched = (
        select(clusters, lambda r: scores[r], Random(), draw_batch=b, draw_batch_arms="many", budget=0.7)
        for b in (1, draw_batch)
    )
    assert sorted(single.drawn.tolist()) == sorted(batched.drawn.tolist())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_batches_of_one_over_many_arms_are_single_draws(policy):
    clusters, scores = many_arms(20, 1000)
    one, many = (
        select(clusters, lambda r: scores[r], policy, draw_batch=1, draw_batch_arms=arms).drawn.tolist()
        for arms in ("one", "many")
    )
    assert one == many


# ---------------------------------------------------------------- budget and cold start


@pytest.mark.parametrize(
    ("n", "budget", "spent"),
    [(100, 0.29, 29), (1000, 0.57, 570), (7, 0.3, 2), (999, 0.2, 199), (50, 1.0, 50)],
)
@pytest.mark.parametrize("draw_batch", [1, 7, 8, 1000])
def test_the_budget_is_spent_exactly(n, budget, spent, draw_batch):
    scores = np.random.default_rng(0).normal(size=n)
    found = select(
        np.arange(n) % 2, lambda r: scores[r], budget=budget, top_p=0.2, cold_start=0.1, draw_batch=draw_batch
    )
    assert found.spent == spent


def test_the_cold_start_draws_the_floor_of_each_cluster_and_at_least_one_row():
    clusters = np.repeat([0, 1, 2, 9], [100, 34, 10, 1])
    cold = []
    select(clusters, lambda r: -r.astype(float), cold_start=0.29, budget=0.3, on_draw=cold.append)
    assert {d.arm: len(d.rows) for d in cold if d.cold} == {0: 29, 1: 9, 2: 2, 9: 1}


def test_the_cold_start_is_one_call_of_the_influence():
    calls = []
    found = select(np.arange(200) % 10, lambda r: calls.append(len(r)) or -1.0 * r, cold_start=0.1)
    assert calls[0] == found.cold == 20
    assert max(calls[1:]) == 8


def test_a_cold_start_of_zero_still_draws_one_row_of_each_cluster():
    assert select(np.arange(200) % 10, lambda r: -1.0 * r, cold_start=0).cold == 10


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_whole_budget_gives_the_top_of_all_rows(policy):
    scores = np.random.default_rng(1).integers(-20, 0, 300).astype(float)
    found = select(np.arange(300) % 17, lambda r: scores[r], policy, budget=1.0, top_p=0.1)
    assert found.rows.tolist() == sorted(sorted(range(300), key=lambda r: (-scores[r], r))[:30])
    assert sorted(found.drawn.tolist()) == list(range(300))


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


def test_ucb1_and_random_can_be_chosen():
    scores = np.random.default_rng(0).normal(size=200)
    for policy in (UCB1(), Random()):
        assert len(select(np.arange(200) % 5, lambda r: scores[r], policy).rows) == 10


def test_threshnormal_is_finite_for_arms_of_a_single_draw():
    arms = Arms({0: 5, 1: 5, 2: 5}, np.random.default_rng(0))
    for arm, score in enumerate([-1.0, 0.5, -3.0]):
        arms.record(arm, np.array([score]))
    scores = UCBThreshNormal()(arms)
    assert np.isfinite(scores).all()
    assert scores.argsort().tolist() == [2, 0, 1]


def test_a_cold_start_above_the_budget_is_refused():
    with pytest.raises(ConfigError, match=r"budget=0\.1, cold_start=0\.2.*raise budget or lower cold_start"):
        select(np.zeros(100, int), lambda r: r, budget=0.1, cold_start=0.2)


def test_fewer_draws_than_kept_rows_are_refused():
    with pytest.raises(ConfigError, match=r"budget=0\.1, top_p=0\.2.*raise budget or lower top_p"):
        select(np.zeros(100, int), lambda r: r, budget=0.1, top_p=0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_failing_row_is_named_and_not_scored_as_zero(bad):
    scores = np.zeros(100)
    scores[42] = bad
    with pytest.raises(InputError, match=r"row 42 scored -?(nan|inf).*finite"):
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
        drawn = select(
            np.repeat([0, 1], [6, 2]), lambda r: r % 2 * 1.0, seed=seed, budget=1.0, top_p=0.5
        ).drawn
        own = drawn[drawn < 6]
        times[own, np.arange(6)] += 1
    assert abs(times / 1500 - 1 / 6).max() < 0.05  # five standard deviations


def test_with_an_estimate_each_arm_is_drawn_from_its_best_row_down():
    rng = np.random.default_rng(3)
    clusters, scores, estimate = rng.integers(0, 5, 80), rng.normal(size=80), rng.normal(size=80)
    result = select(clusters, lambda rows: scores[rows], budget=0.6, estimate=estimate, seed=1)
    for arm in range(5):
        best_first = sorted(np.flatnonzero(clusters == arm), key=lambda row: -estimate[row])
        drawn = result.drawn[result.drawn_clusters == arm].tolist()
        assert drawn == best_first[: len(drawn)]


def test_an_estimate_that_is_right_finds_more_than_uniform_draws_of_the_same_arms():
    rng = np.random.default_rng(3)
    clusters, scores = rng.integers(0, 5, 1000), rng.normal(size=1000)
    best = np.argsort(-scores)[:50]

    def recall(estimate):
        found = select(clusters, lambda rows: scores[rows], budget=0.1, top_p=0.05, estimate=estimate)
        return np.isin(best, found.rows).mean()

    assert recall(scores + rng.normal(size=1000)) > 2 * recall(None)


def test_random_draws_every_open_arm_equally_often_whatever_its_size():
    clusters = np.repeat([0, 4, 5, 9], [4000, 3000, 2500, 2500])
    drawn = select(
        clusters, lambda r: r * 1.0, Random(), budget=0.5, draw_batch=1, cold_start=0
    ).drawn_clusters
    counts = np.unique(drawn, return_counts=True)[1]
    assert abs(counts / 6000 - 0.25).max() < 0.03


def test_any_function_of_the_open_arms_is_a_policy():
    seen = []

    def fewest_draws(arms):
        seen.append(arms.ids.tolist())
        return -arms.n

    found = select(
        np.repeat([2, 6, 7], [2, 10, 30]), lambda r: r * 1.0, fewest_draws, budget=0.5, draw_batch=1
    )
    assert np.unique(found.drawn_clusters, return_counts=True)[1].tolist() == [2, 10, 9]
    assert seen[0] == [2, 6, 7]
    assert seen[-1] == [6, 7]


def test_of_equal_arms_the_first_in_id_order_is_drawn():
    found = select(
        np.repeat([9, 4, 6], 10),
        lambda r: np.zeros(len(r)),
        budget=0.8,
        top_p=0.1,
        cold_start=0,
        draw_batch=2,
    )
    assert found.drawn_clusters.tolist() == [4, 6, 9] + [4] * 9 + [6] * 9 + [9] * 3


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


def test_a_draw_says_what_was_drawn():
    told: list[Draw] = []
    select(np.zeros(40, int), lambda r: r * 0.5, budget=0.5, cold_start=0.1, on_draw=told.append)
    assert [(d.step, d.arm, len(d.rows), d.cold) for d in told] == [
        (0, 0, 4, True),
        (1, 0, 8, False),
        (2, 0, 8, False),
    ]
    assert all((d.scores == d.rows * 0.5).all() for d in told)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, r"select\(budget=0\.0\): must be above 0 and at most 1"),
        ({"budget": 1.5}, r"select\(budget=1\.5\)"),
        ({"budget": math.nan}, r"select\(budget=nan\)"),
        ({"top_p": 0.0}, r"select\(top_p=0\.0\): must be above 0 and at most 1"),
        ({"top_p": -0.1}, r"select\(top_p=-0\.1\)"),
        ({"cold_start": -0.1}, r"select\(cold_start=-0\.1\): must be between 0 and 1"),
        ({"cold_start": 1.1}, r"select\(cold_start=1\.1\)"),
        ({"draw_batch": 0}, r"select\(draw_batch=0\): must be at least 1"),
        ({"draw_batch_arms": "all"}, r"select\(draw_batch_arms='all'\): must be 'one' or 'many'"),
        ({"seed": -1}, r"select\(seed=-1\): must be 0 or more"),
        ({"policy": "ucb1"}, r"select\(policy='ucb1'\): must be a policy such as UCBBeta"),
        ({"estimate": [1.0, 2.0]}, r"select\(estimate=array of shape \(2,\)\): must be one .*, \(100,\)"),
        ({"estimate": np.r_[np.zeros(99), np.nan]}, r"row 99 has nan: must be finite"),
        ({"top_p": 0.001}, r"select\(top_p=0\.001\): .* the smallest top_p is 0\.01"),
        ({"clusters": []}, r"select\(clusters=\[\]\)"),
        ({"clusters": np.zeros((2, 3), int)}, r"select\(clusters=array of shape \(2, 3\)\)"),
        ({"clusters": np.zeros(100)}, r"select\(clusters=array of float64\): must be integers"),
        ({"clusters": np.r_[np.zeros(9, int), -1]}, r"row 9 has label -1: must be 0 or more"),
        (
            {"clusters": np.arange(100) % 30},
            r"budget=0\.2\): is 20 of 100 rows.* takes 30: .* k=30 clusters.*raise budget or lower k",
        ),
        ({"policy": lambda arms: np.zeros(3)}, r"returned shape \(3,\): expected \(2,\)"),
        ({"policy": lambda arms: np.full(len(arms.ids), np.nan)}, r"gave NaN for cluster 0"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_that_names_it(options, message):
    arguments = {"clusters": np.arange(100) % 2, "policy": UCBBeta(), **options}
    with pytest.raises(ConfigError, match=message) as error:
        select(arguments.pop("clusters"), lambda r: r * 1.0, **arguments)
    assert "\n" not in str(error.value)


def test_an_influence_of_another_shape_is_refused():
    with pytest.raises(
        InputError, match=r"returned shape \(1,\) for 4 rows from row \d+ on: expected \(4,\)"
    ):
        select(np.arange(100) % 4, lambda r: np.zeros(1))
