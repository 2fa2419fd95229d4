"""Turns against the plainest way to take them."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.round_robin import round_robin


def slow_round_robin(similarities, count):
    """Each target row looks through the whole pool at each turn."""
    order, turn = [], 0
    while len(order) < count:
        left = [row for row in range(similarities.shape[1]) if row not in [taken for taken, _ in order]]
        best = max(left, key=lambda row: (similarities[turn, row], -row))
        order.append((best, similarities[turn, best]))
        turn = (turn + 1) % len(similarities)
    return order


@st.composite
def problems(draw):
    """Similarities with many ties, cut into blocks anywhere, and how many rows to take."""
    targets, rows = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    flat = draw(st.lists(st.integers(-3, 3), min_size=targets * rows, max_size=targets * rows))
    cuts = sorted(draw(st.sets(st.integers(1, rows), max_size=6)) - {rows})
    return np.array(flat, np.float32).reshape(targets, rows), cuts, draw(st.integers(1, rows))


@given(problems())
def test_each_in_turn_takes_its_most_similar_row_that_is_left(problem):
    similarities, cuts, count = problem
    taken, found = round_robin(np.split(similarities, cuts, axis=1), count)
    assert list(zip(taken.tolist(), found.tolist(), strict=True)) == slow_round_robin(similarities, count)


def test_memory_holds_the_best_rows_only():
    """16 MB of similarities, of which 16 kB are wanted."""

    def blocks():
        rng = np.random.default_rng(0)
        for _ in range(100):
            yield rng.random((20, 2_000), np.float32)

    tracemalloc.start()
    taken, _ = round_robin(blocks(), 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(taken.tolist())) == 100
    assert peak < 4e6
