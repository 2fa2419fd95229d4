"""Uniform draws, and orders by loss."""

import numpy as np

from clusterucb.selection.share import top
from clusterucb.steps.baselines import loss_scores, random_scores


def test_random_rows_are_drawn_uniformly():
    """Pearson's statistic of 4000 draws of 3 of 10 rows: 9 degrees of freedom."""
    draws = [top(random_scores(10, seed), 3) for seed in range(4000)]
    assert all(len(set(rows.tolist())) == 3 for rows in draws)
    counts = np.bincount(np.concatenate(draws), minlength=10)
    assert ((counts - 1200) ** 2 / 1200).sum() < 40


def test_random_pairs_are_drawn_uniformly():
    """Rows do not come together more often than 2 of 5 do: each of the 10 pairs 200 times of 2000."""
    pairs = [tuple(top(random_scores(5, seed), 2).tolist()) for seed in range(2000)]
    counts = np.array([pairs.count((i, j)) for j in range(5) for i in range(j)])
    assert counts.sum() == 2000
    assert ((counts - 200) ** 2 / 200).sum() < 40


def test_the_seed_decides():
    assert np.array_equal(random_scores(50, 3), random_scores(50, 3))
    assert not np.array_equal(random_scores(50, 3), random_scores(50, 4))


def test_equal_losses_go_by_row_both_ways():
    losses = np.array([2.0, 1.0, 3.0, 1.0, 3.0, 3.0])
    assert top(loss_scores(losses, "highest"), 2).tolist() == [2, 4]
    assert top(loss_scores(losses, "lowest"), 1).tolist() == [1]
    assert top(loss_scores(losses, "lowest"), 3).tolist() == [0, 1, 3]
