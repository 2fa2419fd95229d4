"""Keep rules, against sums over rows written out one by one."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.bandit import select
from clusterucb.selection.keep import Earlier, kept
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import linear_ucb
from clusterucb.selection.selector import FullScoring

N, KEEP, PERIODS = 30, 6, 4
LABELS = np.arange(N) % 4


def periods(seed, by_row=False):
    """Selections of several periods, with influence that changes."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(PERIODS, N)).cumsum(0).round(1)  # so that some are equal
    for scores in truth:
        if by_row:
            known = Known.estimates(scores + rng.normal(size=N))
            yield linear_ucb(LABELS, known, scores.take, budget=0.3, top_p=0.2, seed=seed)
        else:
            yield select(LABELS, scores.take, budget=0.3, top_p=0.2, seed=int(rng.integers(99)))


def run(rule, selections):
    """Each period's selection by the rule, as a run makes them one after the other."""
    found, earlier = [], []
    for selection in selections:
        found.append(kept(rule, selection, LABELS, earlier))
        now = found[-1]
        earlier.append(Earlier(now.rows, now.drawn, now.drawn_scores, now.learned))
    return found


def slowly_learned(selections):
    """I_p of each row, for each period, by looking at one row at a time."""
    last, found = {}, []
    for selection in selections:
        last |= dict(zip(selection.drawn.tolist(), selection.drawn_scores.tolist(), strict=True))
        thought = []
        for row in range(N):
            if row in selection.drawn or (selection.learned is None and row in last):
                thought.append(last[row])
            elif selection.learned is not None:
                thought.append(float(selection.learned[row]))
            else:
                own = selection.drawn_scores[selection.drawn_clusters == LABELS[row]]
                thought.append(sum(own.tolist()) / len(own))
        found.append(thought)
    return found


def slowly_kept(rule, selections):
    trained, found, smooth = dict.fromkeys(range(N), 0), [], None
    history = slowly_learned(selections)
    for period, now in enumerate(history, start=1):
        smooth = now if smooth is None else [(m + i) / 2 for m, i in zip(smooth, now, strict=True)]
        mean = [sum(column) / period for column in zip(*history[:period], strict=True)]
        scores = {"sum": mean, "mean": smooth, "once": now}[rule]
        times = trained if rule == "once" else dict.fromkeys(range(N), 0)
        rows = sorted(range(N), key=lambda row: (times[row], -scores[row], row))[:KEEP]
        for row in rows:
            trained[row] += 1
        found.append((sorted(rows), [scores[row] for row in sorted(rows)]))
    return found


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("rule", ["sum", "mean", "once"])
def test_rules_keep_what_their_formulas_say(rule, by_row):
    for seed in range(8):
        selections = list(periods(seed, by_row))
        for selection, (rows, scores) in zip(
            run(rule, selections), slowly_kept(rule, selections), strict=True
        ):
            assert selection.rows.tolist() == rows
            assert selection.scores == pytest.approx(scores)
            assert selection.clusters.tolist() == LABELS[rows].tolist()


@pytest.mark.parametrize("rule", ["now", "static"])
def test_now_and_static_keep_what_was_selected(rule):
    for selection, found in zip(periods(0), run(rule, periods(0)), strict=True):
        assert found.rows.tolist() == selection.rows.tolist()
        assert found.learned is None


@pytest.mark.parametrize("rule", ["now", "sum", "mean", "once", "static"])
def test_no_rule_changes_what_is_drawn(rule):
    for selection, found in zip(periods(3), run(rule, periods(3)), strict=True):
        assert found.drawn.tolist() == selection.drawn.tolist()


def test_a_row_that_was_trained_on_leaves_until_all_others_were():
    selections = list(periods(1))
    trained = [found.rows.tolist() for found in run("once", [*selections, *selections])]
    assert sorted(chain(*trained[: N // KEEP])) == list(range(N))


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.sampled_from(["sum", "mean"]))
def test_where_influence_stays_the_rules_that_remember_keep_the_best(scores, rule):
    scores = np.array(scores)
    keep = FullScoring(np.zeros(8, np.int64), 0.25)
    best = keep(scores.take)
    labels, earlier = np.zeros(8, np.int64), []
    for _ in range(3):
        found = kept(rule, best, labels, earlier)
        assert found.rows.tolist() == best.rows.tolist()
        earlier.append(Earlier(found.rows, found.drawn, found.drawn_scores, found.learned))


def test_a_row_that_has_been_learned_is_still_kept_by_the_sum():
    """Its influence falls once it is trained on, and with it the row leaves a selection that looks at now."""
    before, after = np.array([1.0, 0.2, 0.1, 0.0]), np.array([0.1, 0.3, 0.1, 0.0])
    keep, labels = FullScoring(np.zeros(4, np.int64), 0.25), np.zeros(4, np.int64)
    first = kept("sum", keep(before.take), labels, [])
    earlier = [Earlier(first.rows, first.drawn, first.drawn_scores, first.learned)]
    rows = {
        rule: kept(rule, keep(after.take), labels, earlier).rows.tolist() for rule in ("now", "sum", "mean")
    }
    assert rows == {"now": [1], "sum": [0], "mean": [0]}
