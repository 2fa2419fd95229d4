"""Turns against the plainest way to take them: each its best that is left, tasks by the best of their own."""

import tracemalloc
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.bandit import Selection
from clusterucb.selection.round_robin import round_robin
from clusterucb.selection.turns import Turns


def slow_round_robin(similarities, count, shares):
    """Each taker looks through the whole pool at each turn."""
    order = []
    while len(order) < count:
        have = Counter(taker for *_, taker in order)
        taker = min(range(len(shares)), key=lambda t: ((have[t] + 1) / shares[t], t))
        left = set(range(similarities.shape[1])) - {row for row, *_ in order}
        best = max(left, key=lambda row: (similarities[taker, row], -row))
        order.append((best, similarities[taker, best], taker))
    return order


@st.composite
def problems(draw):
    """Similarities with many ties, cut into blocks anywhere, how many rows to take, and shares."""
    targets, rows = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    flat = draw(st.lists(st.integers(-3, 3), min_size=targets * rows, max_size=targets * rows))
    cuts = sorted(draw(st.sets(st.integers(1, rows), max_size=6)) - {rows})
    shares = draw(st.lists(st.sampled_from([1.0, 2.0, 0.5]), min_size=targets, max_size=targets))
    return np.array(flat, np.float32).reshape(targets, rows), cuts, draw(st.integers(1, rows)), shares


@given(problems())
def test_each_in_turn_takes_its_most_similar_row_that_is_left(problem):
    similarities, cuts, count, shares = problem
    blocks = np.split(similarities, cuts, axis=1)
    for given_shares, meant in (((), [1.0] * len(similarities)), (shares, shares)):
        taken = (column.tolist() for column in round_robin(blocks, count, given_shares))
        assert list(zip(*taken, strict=True)) == slow_round_robin(similarities, count, meant)


def test_memory_holds_the_best_rows_only():
    """16 MB of similarities, of which 16 kB are wanted."""

    def blocks():
        rng = np.random.default_rng(0)
        for _ in range(100):
            yield rng.random((20, 2_000), np.float32)

    tracemalloc.start()
    taken = round_robin(blocks(), 100).rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(taken.tolist())) == 100
    assert peak < 4e6


NAMES = ["art", "law", "zoo"]


def selection(count):
    """Of so many rows, whichever."""
    rows, empty = np.arange(count), np.empty(0)
    return Selection(rows, empty, rows, rows, np.zeros(count), rows, 0)


def test_a_loud_task_takes_no_more_than_its_share():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.random(100), 10 + rng.random(100), rng.random(100)]).astype(np.float32)
    for shares, rows in (((), [10, 10, 10]), ((1, 1, 3), [6, 6, 18])):
        turns = Turns(NAMES, np.arange(3), shares)
        found = turns.select(selection(30), np.arange(100), [scores], np.zeros(100, np.int64))
        assert Counter(found.targets) == dict(zip(NAMES, rows, strict=True))


def test_scores_of_a_task_are_the_best_over_its_own_directions():
    products = np.random.default_rng(1).random((4, 7), np.float32)
    expected = np.stack([products[0], np.maximum(products[1], products[2]), products[3]])
    np.testing.assert_array_equal(Turns(NAMES, np.array([0, 1, 1, 2])).scores(products), expected)
    np.testing.assert_array_equal(Turns().scores(products), products)


def test_a_selection_has_the_rows_that_were_taken_with_whom_each_is_for():
    rows, labels = np.array([2, 5, 7, 8]), np.arange(10)
    scores = np.array([[0.1, 0.9, 0.2, 0.8], [0.3, 0.7, 0.6, 0.1]], np.float32)
    for turns, names in ((Turns(NAMES[:2], np.array([0, 1])), ["art", "law"]), (Turns(), ())):
        found = turns.select(selection(2), rows, np.split(scores, [1], axis=1), labels)
        assert (found.rows.tolist(), found.targets) == ([5, 7], names)
        assert found.clusters.tolist() == [5, 7]
        np.testing.assert_allclose(found.scores, [0.9, 0.6])
