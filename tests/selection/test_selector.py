"""A selection as a value: the bandit's is `select`'s, and a budget of all rows is the full method."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_helpers import check_consistent

from clusterucb.selection.bandit import select
from clusterucb.selection.policies import UCB1
from clusterucb.selection.selector import ClusterUCB, FullScoring, RowUCB


class Scores:
    """Influence that remembers what it was asked."""

    def __init__(self, values):
        self.values, self.asked = np.asarray(values, np.float64), []

    def __call__(self, rows):
        self.asked.append(rows.tolist())
        return self.values[rows]


def same(one, other):
    return all(np.array_equal(field, vars(other)[name]) for name, field in vars(one).items())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_full_scoring_keeps_the_best_rows_of_all(values, data):
    """Against sorting by hand; the values are few, so that many are equal."""
    keep = data.draw(st.integers(1, len(values)))
    scores, clusters = Scores(values), np.arange(len(values)) % 3
    found = FullScoring(clusters, min(1, (keep + 0.5) / len(values)))(scores)
    best = sorted(range(len(values)), key=lambda row: (-values[row], row))
    assert found.rows.tolist() == sorted(best[:keep])
    assert found.drawn.tolist() == best
    assert found.cold == 0
    check_consistent(found, [], clusters, scores.values)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(0, 9))
def test_a_budget_of_all_rows_is_the_full_method_with_one_call(seed, draws_seed):
    rng = np.random.default_rng(seed)
    clusters, values = rng.integers(0, 6, 50), rng.normal(size=50)
    full = FullScoring(clusters, 0.1)(Scores(values))
    for kind in (ClusterUCB, RowUCB):
        asked = Scores(values)
        assert same(kind(clusters, budget=1.0, top_p=0.1)(asked, draws_seed), full)
        assert asked.asked == [list(range(50))]
    drawn = select(clusters, Scores(values), budget=1.0, top_p=0.1, seed=draws_seed)
    assert np.array_equal(full.rows, drawn.rows)  # what is kept is what drawing one by one would keep


def test_the_bandit_as_a_value_is_select_with_its_settings():
    rng = np.random.default_rng(5)
    clusters, values = rng.integers(0, 6, 90), rng.normal(size=90)
    given = {"budget": 0.5, "cold_start": 0.1, "top_p": 0.2, "draw_batch": 3, "draw_batch_arms": "many"}
    draws, expected = [], []
    value = ClusterUCB(clusters, UCB1(), **given)
    found = value(Scores(values), 7, draws.append)
    assert same(found, select(clusters, Scores(values), UCB1(), seed=7, on_draw=expected.append, **given))
    assert [draw.rows.tolist() for draw in draws] == [draw.rows.tolist() for draw in expected]
    assert value.spend == found.spent == 45
