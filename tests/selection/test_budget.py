"""A budget refuses what cannot hold: its shares when it is made, their rows when those are asked."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import select
from clusterucb.selection.budget import Budget
from clusterucb.selection.linear_ucb import linear_ucb


@given(st.integers(1, 10**4), st.integers(1, 10**4), st.integers(1, 10**6))
def test_rows_are_the_floor_of_the_shares_and_at_least_one(spent, kept, rows):
    budget = Budget(max(spent, kept) / 10**4, 0.0, min(spent, kept) / 10**4)
    for parts, count in ((max(spent, kept), budget.spend), (min(spent, kept), budget.keep)):
        if parts * rows < 10**4:
            with pytest.raises(ConfigError, match=f"none of {rows} rows; raise it to"):
                count(rows)
        else:
            assert count(rows) == parts * rows // 10**4


def test_the_cold_start_is_the_floor_of_each_cluster_and_at_least_one_row():
    sizes = [100, 34, 10, 1, 0]
    assert Budget(0.3, cold_start=0.29).cold_draws(sizes) == [29, 9, 2, 1, 0]
    assert Budget(0.3, cold_start=0.0).cold_draws(sizes) == [1, 1, 1, 1, 0]
    assert Budget(0.01, by_row=True).cold_draws(sizes) == [0] * 5


def test_by_row_a_budget_may_be_less_than_what_is_kept_and_than_one_row_of_each_cluster():
    budget = Budget(0.01, top_p=0.05, by_row=True)
    budget.check_clusters(100, 100)
    assert (budget.spend(100), budget.keep(100)) == (1, 5)


RANGE = "must be above 0 and at most 1, of the pool"
CSP, TOP_P = "the cold start is part of the budget", "only rows that were drawn can be kept"
LOW = "budget 0.1 is below {}: {}; raise budget or lower {}"
ROOM = "budget 0.2 is 20 of 100 rows, but the cold start takes {0}: 0.02 (--csp) of each of k={0} clusters, "
ROOM += "at least 1; raise budget or lower k"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Budget(0.0), f"Budget(budget=0.0): {RANGE}"),
        (lambda: Budget(1.5), f"Budget(budget=1.5): {RANGE}"),
        (lambda: Budget(math.nan), f"Budget(budget=nan): {RANGE}"),
        (lambda: Budget(top_p=-0.1), f"Budget(top_p=-0.1): {RANGE}"),
        (lambda: Budget(0.2, 2), "Budget(cold_start=2): must be between 0 and 1, of every cluster (--csp)"),
        (lambda: Budget(0.1, 0.2), LOW.format("csp 0.2", CSP, "cold_start (--csp)")),
        (lambda: Budget(0.1, top_p=0.2), LOW.format("top_p 0.2", TOP_P, "top_p")),
        (lambda: Budget().spend(3), "budget is 0.2: draws none of 3 rows; raise it to 0.34"),
        (lambda: Budget().keep(10), "top_p is 0.05: selects none of 10 rows; raise it to 0.1"),
        (lambda: Budget().keep(0), "top_p is 0.05: selects none of 0 rows; raise it to 1.0"),
        (lambda: Budget().cold_draws([3] * 30 + [10, 0]), ROOM.format(31)),
        (lambda: Budget().check_clusters(21, 100), ROOM.format(21)),
        (lambda: Budget(by_row=True).check_clusters(9, 8), "k is 9, but the pool has 8 usable rows; lower k"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_line(ask, message):
    with pytest.raises(ConfigError) as error:
        ask()
    assert str(error.value) == message


def test_who_takes_shares_has_the_defaults_of_the_budget():
    for function in (select, linear_ucb):
        given = inspect.signature(function).parameters
        for name in {"budget", "cold_start", "top_p"} & set(given):
            assert given[name].default == getattr(Budget(), name)


def test_shares_of_numpy_are_taken():
    assert Budget(np.float64(0.29), 0.0, np.float32(0.25)).spend(100) == 29
