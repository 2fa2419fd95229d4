"""Takers take rows in turn, each its best that is left: tasks by the best of their own directions."""

from collections import Counter

import numpy as np

from clusterucb.selection.bandit import Selection
from clusterucb.selection.turns import Turns

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
