"""Turns against the plainest way to take them."""

import tracemalloc
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.round_robin import round_robin


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
