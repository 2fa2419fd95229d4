"""A selection as a value: the bandit's is `select`'s, and a budget of all rows is the full method."""

from unittest.mock import Mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_helpers import check_consistent

from clusterucb.selection.bandit import select
from clusterucb.selection.policies import UCB1
from clusterucb.selection.selector import ClusterUCB, FullScoring, RowUCB


def same(one, other):
    return all(np.array_equal(field, vars(other)[name]) for name, field in vars(one).items())


@settings(max_examples=60)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_full_scoring_keeps_the_best_rows_of_all(values, data):
    """Against sorting by hand; the values are few, so that many are equal."""
    keep = data.draw(st.integers(1, len(values)))
    scores, clusters = np.array(values, float), np.arange(len(values)) % 3
    found = FullScoring(clusters, min(1, (keep + 0.5) / len(values)))(scores.take)
    best = sorted(range(len(values)), key=lambda row: (-values[row], row))
    assert found.rows.tolist() == sorted(best[:keep])
    assert found.drawn.tolist() == best
    assert found.cold == 0
    check_consistent(found, [], clusters, scores)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(0, 9))
def test_a_budget_of_all_rows_is_the_full_method_with_one_call(seed, draws_seed):
    rng = np.random.default_rng(seed)
    clusters, values = rng.integers(0, 6, 50), rng.normal(size=50)
    full = FullScoring(clusters, 0.1)(values.take)
    for kind in (ClusterUCB, RowUCB):
        influence = Mock(side_effect=values.take)
        assert same(kind(clusters, budget=1.0, top_p=0.1)(influence, draws_seed), full)
        (asked,) = influence.call_args.args
        assert asked.tolist() == list(range(50))
        assert influence.call_count == 1
    drawn = select(clusters, values.take, budget=1.0, top_p=0.1, seed=draws_seed)
    assert np.array_equal(full.rows, drawn.rows)  # what is kept is what drawing one by one would keep


def test_the_bandit_as_a_value_is_select_with_its_settings():
    rng = np.random.default_rng(5)
    clusters, values = rng.integers(0, 6, 90), rng.normal(size=90)
    given = {"budget": 0.5, "cold_start": 0.1, "top_p": 0.2, "draw_batch": 3, "draw_batch_arms": "many"}
    draws, expected = [], []
    value = ClusterUCB(clusters, UCB1(), **given)
    found = value(values.take, 7, draws.append)
    assert same(found, select(clusters, values.take, UCB1(), seed=7, on_draw=expected.append, **given))
    assert [draw.rows.tolist() for draw in draws] == [draw.rows.tolist() for draw in expected]
    assert value.spend == found.spent == 45
