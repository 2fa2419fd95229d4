"""What a selection, its policy and what is known of rows refuse: one line that names it."""

import math

import numpy as np
import pytest

from clusterucb.errors import ConfigError, InputError
from clusterucb.selection.bandit import select
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB, linear_ucb
from clusterucb.selection.policies import UCBBeta, UCBThreshHard, UCBThreshNormal
from clusterucb.selection.selector import ClusterUCB, RowUCB, named_policy
from clusterucb.selection.share import top

ZEROS = np.zeros(20, int)


def drawn(**options):
    """What select() draws of 100 rows in two clusters."""
    return select(**{"clusters": np.arange(100) % 2, "influence": lambda rows: rows * 1.0, **options})


def row_42(score):
    """Influence that fails for one row."""
    return lambda rows: np.where(rows == 42, score, 0.0)


def alike(n, score=0.0, **shares):
    """What linear_ucb() draws of rows that are all alike."""
    known = Known.estimates(np.zeros(n))
    return linear_ucb(np.zeros(n, int), known, lambda rows: np.full(len(rows), score), **shares)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: drawn(clusters=np.arange(100) % 30), r"is 20 of 100 rows, but the cold start takes 30"),
        (lambda: drawn(draw_batch=0), r"draw_batch is 0: must be at least 1"),
        (lambda: drawn(draw_batch_arms="all"), r"draw_batch_arms is 'all': must be 'one' or 'many'"),
        (lambda: drawn(seed=-1), r"seed is -1: must be 0 or more"),
        (lambda: drawn(policy="ucb1"), r"policy is 'ucb1': must be a policy such as UCBBeta"),
        (lambda: drawn(policy=lambda arms: np.zeros(3)), r"returned shape \(3,\): expected \(2,\)"),
        (lambda: drawn(policy=lambda arms: [np.nan, 1]), r"gave NaN for cluster 0"),
        (lambda: drawn(clusters=[]), r"clusters are empty"),
        (lambda: drawn(clusters=np.zeros((2, 3), int)), r"clusters of shape \(2, 3\): must be one label"),
        (lambda: drawn(clusters=np.zeros(100)), r"clusters of type float64: must be integers"),
        (lambda: drawn(clusters=np.r_[ZEROS, -1]), r"row 20 has label -1: must be 0 or more"),
        (lambda: drawn(estimate=[1, 2]), r"estimate of shape \(2,\) for 100 rows.*: expected \(100,\)"),
        (lambda: drawn(estimate=np.r_[np.zeros(99), np.nan]), r"estimate of row 99 is nan: expected"),
        (lambda: drawn(influence=lambda rows: [0.0]), r"influence of shape \(1,\) for 2 rows from row"),
        (lambda: drawn(influence=row_42(np.nan), budget=1), r"row 42 is nan: expected a finite number; excl"),
        (lambda: drawn(influence=row_42(np.inf), budget=1), r"row 42 is inf: expected a finite number"),
        (lambda: drawn(influence=row_42(-np.inf), budget=1), r"row 42 is -inf: expected a finite number"),
        (lambda: alike(9, budget=0.1), r"budget is 0\.1: draws none of 9 rows; raise it to 0\.12"),
        (lambda: alike(20, np.inf), r"influence of row \d+ is inf"),
        (lambda: linear_ucb([0, 1], Known.estimates(np.zeros(3)), len), r"clusters of 2 rows, known of 3"),
        (lambda: Known.estimates(np.array([0, np.nan])), r"estimate of row 1 is nan: expected a finite"),
        (lambda: Known(np.zeros(3), np.zeros((2, 4)), np.zeros(3, int)), r"must be \(3, D\) and \(3,\)"),
        (lambda: Known(np.zeros(1), np.full((1, 2), np.inf), np.zeros(1, int)), r"row 0 has a number"),
        (lambda: RowUCB(ZEROS)(len), r"RowUCB: needs features of all rows; give what is known"),
        (lambda: ClusterUCB(ZEROS, draw_order="stale")(len), r"ClusterUCB: needs estimates of all rows"),
        (lambda: named_policy("linear_usb"), r"must be one of .*landmarks; did you mean 'linear_ucb'\?"),
        (lambda: LinearUCB(beta=-1), r"LinearUCB\(beta=-1\): must be a finite number, 0 or more"),
        (lambda: LinearUCB(rounds=0), r"LinearUCB\(rounds=0\): must be at least 1"),
        (lambda: LinearUCB(stop=1), r"LinearUCB\(stop=1\): must be at least 0 and below 1"),
        (lambda: LinearUCB(uniform=0), r"LinearUCB\(uniform=0\): must be above 0 and at most 1"),
        (lambda: UCBBeta(-1), r"UCBBeta\(beta=-1\): must be a finite number, 0 or more"),
        (lambda: UCBBeta(math.nan), r"UCBBeta\(beta=nan\)"),
        (lambda: UCBThreshHard(1.5), r"UCBThreshHard\(ucb_p=1\.5\): must be between 0 and 1"),
        (lambda: UCBThreshNormal(0), r"UCBThreshNormal\(ucb_p=0\): must be between 0 and 1"),
        (lambda: top([1, 2], 3), r"top\(count=3\): must be between 1 and the number of rows, 2"),
        (lambda: top([1, 2], 0), r"top\(count=0\)"),
        (lambda: top([1, np.nan], 1), r"row 1 has score nan"),
        (lambda: top([[1, 2]], 1), r"shape \(1, 2\)"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_it(make, message):
    with pytest.raises((ConfigError, InputError), match=message) as error:
        make()
    assert "\n" not in str(error.value)
