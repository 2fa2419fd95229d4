"""Arms, the running threshold and the published policies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import ConfigError
from clusterucb.selection.arms import Arms, Threshold
from clusterucb.selection.policies import (
    POLICIES,
    UCB1,
    Random,
    UCBBeta,
    UCBThreshHard,
    UCBThreshNormal,
    policy,
)


def arms_of(draws, size=100):
    """Arms that drew exactly `draws`, a dict of id -> scores."""
    arms = Arms(dict.fromkeys(draws, size), np.random.default_rng(0))
    for arm, scores in draws.items():
        arms.record(arm, np.array(scores, dtype=float))
    return arms


values = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 0.1, np.nextafter(0.1, 1)]),
)


def check_threshold(draws, p, slots, every=1):
    """Against numpy's quantile, and a count of all draws that reach it."""
    running = Threshold(p, slots)
    for t, (slot, value) in enumerate(draws, start=1):
        running.add(slot, value)
        if t % every == 0:
            tau = np.quantile([v for _, v in draws[:t]], 1 - p)
            assert running.value == tau
            reached = [s for s, v in draws[:t] if v >= tau]
            assert running.reach.tolist() == np.bincount(reached, minlength=slots).tolist()


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 4), values), min_size=1, max_size=40), st.floats(0.01, 1))
def test_the_threshold_is_numpys_quantile_and_ties_are_counted_exactly(draws, p):
    check_threshold(draws, p, 5)


def test_the_threshold_follows_thousands_of_draws_with_ties():
    rng = np.random.default_rng(0)
    draws = np.round(rng.normal(size=4000), 2).tolist()
    check_threshold(list(zip(rng.integers(0, 7, 4000).tolist(), draws, strict=True)), 0.25, 7, every=97)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(values, min_size=1, max_size=5)), max_size=25))
def test_arm_statistics_equal_those_of_the_history(batches):
    sizes = {i * 10: 1 + sum(len(b) for a, b in batches if a == i) for i in range(4)}
    arms = Arms(sizes, np.random.default_rng(0))
    for arm, batch in batches:
        arms.record(arm * 10, np.array(batch))
    history = {i: [x for a, b in batches if a == i for x in b] for i in range(4)}
    assert arms.total == sum(map(len, history.values()))
    assert arms.ids.tolist() == [0, 10, 20, 30]
    for i, own in history.items():
        assert arms.n[i] == len(own)
        assert arms.unseen[i] == 1
        if own:
            scale = 1 + np.abs(own).max()
            assert arms.mean[i] == pytest.approx(np.mean(own), abs=1e-12 * scale)
            assert arms.std[i] == pytest.approx(np.std(own), abs=1e-7 * scale)
            assert arms.largest[i] == max(own)


@pytest.mark.parametrize(("centre", "spread"), [(0, 1), (1e6, 1), (-1, 1e-7), (1e-9, 1e-12)])
def test_the_deviation_stays_accurate_far_from_zero_and_over_many_draws(centre, spread):
    draws = np.random.default_rng(0).normal(centre, spread, 20_000)
    draws[0] += 100 * spread  # the first draw, an outlier, is what deviations are taken from
    assert arms_of({0: draws}, 10**6).std[0] == pytest.approx(np.std(draws), rel=1e-8)


def test_equal_draws_in_another_order_tie_exactly():
    rng = np.random.default_rng(0)
    draws = rng.integers(-64, 65, 50) / 64
    arms = arms_of({i: rng.permutation(draws) for i in range(50)})
    assert len(set(arms.mean)) == len(set(arms.std)) == 1


def test_an_exhausted_arm_leaves_every_array_but_stays_in_the_totals():
    arms = Arms({3: 2, 5: 4, 9: 1}, np.random.default_rng(0))
    arms.record(9, np.array([9.0]))
    arms.record(3, np.array([1.0, 2.0]))
    arms.record(5, np.array([-1.0]))
    for column in (arms.ids, arms.n, arms.unseen, arms.mean, arms.std, arms.largest, arms.share_above(0.5)):
        assert len(column) == 1
    assert (arms.ids[0], arms.unseen[0], arms.total) == (5, 3, 4)
    assert arms.threshold(0.5) == 1.5
    assert arms.share_above(0.5).tolist() == [0.0]


def test_a_policy_cannot_change_what_it_is_shown():
    arms = arms_of({0: [1.0], 1: [2.0]})
    for column in (arms.ids, arms.n, arms.unseen, arms.mean, arms.std, arms.largest):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 7


def test_draws_are_imagined_in_a_copy_only():
    arms = arms_of({0: [1.0, 3.0], 1: [2.0, 2.0]}, size=4)
    imagined = arms.copy()
    for _ in range(2):
        imagined.imagine(0)
    assert (arms.ids.tolist(), arms.n.tolist(), arms.std.tolist(), arms.total) == ([0, 1], [2, 2], [1, 0], 4)
    assert (imagined.ids.tolist(), imagined.total) == ([1], 6)


def test_two_thresholds_may_be_followed_at_once():
    arms = arms_of({0: range(101)}, 1000)
    assert (arms.threshold(0.25), arms.threshold(0.1)) == (75.0, 90.0)
    arms.record(0, np.arange(101.0, 201.0))
    assert (arms.threshold(0.25), arms.threshold(0.1)) == (150.0, 180.0)
    assert arms.share_above(0.1).tolist() == [21 / 201]


def test_ucb_threshnormal_orders_arms_as_one_minus_phi_does():
    rng = np.random.default_rng(0)
    arms = arms_of({i: rng.normal(rng.normal(), 1, 9) for i in range(30)})
    z = (arms.threshold(0.25) - arms.mean) / arms.std
    published = [math.erfc(x / math.sqrt(2)) / 2 for x in z]
    assert UCBThreshNormal()(arms).argsort().tolist() == np.argsort(published).tolist()


def test_ucb_threshnormal_tells_arms_apart_where_one_minus_phi_is_zero():
    arms = arms_of({0: [-9, -9.001], 1: [-8, -8.001], 2: [5] * 6, 3: [-7, -7.001]})
    assert UCBThreshNormal()(arms).argsort().tolist() == [0, 1, 3, 2]


def test_random_is_uniform_over_open_arms():
    arms = Arms({0: 1, 1: 5, 2: 50, 3: 500, 4: 2}, np.random.default_rng(0))
    arms.record(0, np.array([1.0]))
    chosen = np.bincount([int(Random()(arms).argmax()) for _ in range(8000)], minlength=4)
    assert abs(chosen / 8000 - 0.25).max() < 0.025


def test_every_name_makes_its_policy_with_its_own_option():
    made = [policy(name, beta=2.0, ucb_p=0.5) for name in POLICIES]
    assert made == [UCBBeta(2.0), UCB1(), UCBThreshHard(0.5), UCBThreshNormal(0.5), Random()]


@pytest.mark.parametrize(
    ("name", "near"),
    [("ucb_betta", "ucb_beta"), ("threshhard", "ucb_threshhard"), ("UCB1", "ucb1"), ("zzz", "")],
)
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(name, near):
    with pytest.raises(ConfigError) as error:
        policy(name)
    assert str(error.value).startswith(f"policy('{name}'): must be one of {', '.join(POLICIES)}")
    assert str(error.value).endswith(f"; did you mean {near!r}?" if near else "random")
