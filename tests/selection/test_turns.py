"""Tasks take rows in turn, each its best that is left, by their shares."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.bandit import Selection
from clusterucb.selection.turns import Tasks, in_turns

NAMES = ["art", "law", "zoo"]


def slow(scores, count, shares):
    """One turn after the other, each with a look at all rows."""
    taken = {}
    for _ in range(count):
        have = Counter(taken.values())
        task = min(range(len(shares)), key=lambda t: ((have[t] + 1) / shares[t], t))
        left = [row for row in range(scores.shape[1]) if row not in taken]
        taken[max(left, key=lambda row: (scores[task, row], -row))] = task
    return taken


@given(st.integers(1, 4), st.integers(1, 30), st.data())
def test_turns_are_those_of_a_slow_reference(tasks, rows, data):
    numbers = st.lists(st.integers(0, 5), min_size=rows, max_size=rows)
    scores = np.array([data.draw(numbers) for _ in range(tasks)], float)
    shares = data.draw(st.lists(st.sampled_from([1.0, 2.0, 0.5]), min_size=tasks, max_size=tasks))
    count = data.draw(st.integers(1, rows))
    assert in_turns(scores, count, shares) == slow(scores, count, shares)


def test_a_loud_task_takes_no_more_than_its_share():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.random(100), 10 + rng.random(100), rng.random(100)])
    assert Counter(in_turns(scores, 30).values()) == {0: 10, 1: 10, 2: 10}
    assert Counter(in_turns(scores, 30, [1, 1, 3]).values()) == {0: 6, 1: 6, 2: 18}


def test_scores_of_a_task_are_the_best_over_its_own_directions():
    rng = np.random.default_rng(1)
    features, directions, codes = rng.random((7, 5)), rng.random((4, 5)), np.array([0, 1, 1, 2])
    products = directions @ features.T
    expected = np.stack([products[0], np.maximum(products[1], products[2]), products[3]])
    np.testing.assert_allclose(Tasks(NAMES, codes).scores(features, directions), expected, rtol=1e-6)


def test_a_selection_has_the_rows_that_were_taken_with_whom_each_is_for():
    rows, labels = np.array([2, 5, 7, 8]), np.arange(10)
    empty = np.empty(0)
    selection = Selection(rows[:2], empty, rows[:2], rows, np.zeros(4), rows, 0)
    scores = np.array([[0.1, 0.9, 0.2, 0.8], [0.3, 0.7, 0.6, 0.1]])
    found = Tasks(NAMES[:2], np.array([0, 1])).select(selection, rows, scores, labels)
    assert (found.rows.tolist(), found.targets) == ([5, 7], ["art", "law"])
    assert (found.scores.tolist(), found.clusters.tolist()) == ([0.9, 0.6], [5, 7])
