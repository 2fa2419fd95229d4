"""Keep rules, against sums over rows written out one by one."""

from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection import keep as keep_module
from clusterucb.selection.bandit import select
from clusterucb.selection.keep import Apart, Earlier, kept
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


def run(rule, selections, apart=None, labels=LABELS):
    """Each period's selection by the rule, as a run makes them one after the other."""
    found = []
    for selection in selections:
        found.append(kept(rule, selection, labels, [*map(left_by, found)], apart))
    return found


def left_by(found):
    return Earlier(found.rows, found.drawn, found.drawn_scores, found.learned)


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
def test_rules_keep_what_their_formulas_say_and_change_nothing_that_is_drawn(rule, by_row):
    for seed in range(8):
        selections = list(periods(seed, by_row))
        expected = slowly_kept(rule, selections)
        for selection, found, (rows, scores) in zip(selections, run(rule, selections), expected, strict=True):
            assert found.rows.tolist() == rows
            assert found.scores == pytest.approx(scores)
            assert found.clusters.tolist() == LABELS[rows].tolist()
            assert found.drawn.tolist() == selection.drawn.tolist()


@pytest.mark.parametrize("by_row", [False, True])
def test_half_of_what_is_kept_is_of_the_task_itself_if_as_many_such_rows_are_known(by_row):
    for seed, selection in product(range(8), periods(1, by_row)):
        own = np.random.default_rng(seed).random(N) < 0.1 * seed
        known = dict(zip(selection.drawn.tolist(), selection.drawn_scores.tolist(), strict=True))
        known = dict(enumerate(selection.learned.tolist())) if by_row else known
        chosen = set(selection.rows.tolist())
        order = sorted(known, key=lambda row: (-known[row], row not in chosen, row))
        stay = [row for row in order if own[row]][: KEEP // 2]
        expected = sorted([*stay, *(row for row in order if row not in stay)][:KEEP])
        found = kept("now", selection, LABELS, [], own=own)
        assert found.rows.tolist() == expected
        assert found.scores.tolist() == [known[row] for row in expected]


@pytest.mark.parametrize("rule", ["now", "static"])
def test_now_and_static_keep_what_was_selected(rule):
    for selection, found in zip(periods(0), run(rule, periods(0)), strict=True):
        assert found.rows.tolist() == selection.rows.tolist()
        assert found.drawn.tolist() == selection.drawn.tolist()
        assert found.learned is None


def test_a_row_that_was_trained_on_leaves_until_all_others_were():
    selections = list(periods(1))
    trained = [found.rows.tolist() for found in run("once", [*selections, *selections])]
    assert sorted(chain(*trained[: N // KEEP])) == list(range(N))


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.sampled_from(["sum", "mean"]))
def test_where_influence_stays_the_rules_that_remember_keep_the_best(scores, rule):
    labels = np.zeros(8, np.int64)
    best = FullScoring(labels, 0.25)(np.array(scores).take)
    for found in run(rule, [best] * 3, labels=labels):
        assert found.rows.tolist() == best.rows.tolist()


def test_a_row_that_has_been_learned_is_still_kept_by_the_sum():
    """Its influence falls once it is trained on, and with it the row leaves a selection that looks at now."""
    before, after = np.array([1.0, 0.2, 0.1, 0.0]), np.array([0.1, 0.3, 0.1, 0.0])
    keep, labels = FullScoring(np.zeros(4, np.int64), 0.25), np.zeros(4, np.int64)
    for rule, rows in {"now": [1], "sum": [0], "mean": [0]}.items():
        _, found = run(rule, [keep(before.take), keep(after.take)], labels=labels)
        assert found.rows.tolist() == rows


def slowly_apart(order, vectors, near, count):
    """One row after the other; those that gave way come last."""
    first, others = [], []
    for row in order:
        cosines = [
            vectors[row] @ vectors[j] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[j])
            for j in first
        ]
        (others if max(cosines, default=-1.0) > near else first).append(row)
    return [*first, *others][:count]


SIGNS = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (-1, 1)], np.float16)
NEAR = (0.3, 0.6, 0.75, 0.9)  # no cosine of two of them is within 0.04 of any


@given(
    st.lists(st.integers(0, len(SIGNS) - 1), min_size=1, max_size=24),
    st.sampled_from(NEAR),
    st.integers(1, 5),
    st.data(),
)
def test_near_duplicates_come_after_all_others(kinds, near, block, data):
    vectors, n = SIGNS[kinds], len(kinds)
    order = np.array(data.draw(st.permutations(range(n))))
    count = data.draw(st.integers(1, n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep_module, "BLOCK", block)
        found = Apart(near, lambda rows: vectors[rows]).first(order, count)
    assert found.tolist() == slowly_apart(order.tolist(), vectors.astype(float), near, count)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("rule", ["now", "static", "sum", "mean", "once"])
def test_where_no_two_rows_are_alike_the_selection_is_the_plain_one(rule, by_row):
    apart = Apart(0.5, np.eye(N, dtype=np.float16).__getitem__)
    for seed in range(4):
        selections = list(periods(seed, by_row))
        for plain, found in zip(run(rule, selections), run(rule, selections, apart), strict=True):
            for name in ("rows", "scores", "clusters", "drawn", "drawn_scores"):
                assert getattr(found, name).tolist() == getattr(plain, name).tolist()
            assert (found.learned is None) == (plain.learned is None)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("rule", ["now", "sum", "mean", "once"])
def test_a_row_gives_way_to_the_next_best_of_those_of_which_as_much_is_known(rule, by_row):
    """Three rows of each kind: of six that are kept no two are alike, while the best of each kind is in."""
    kinds = np.arange(N) // 3
    apart = Apart(0.9, lambda rows: np.eye(10, dtype=np.float16)[kinds[rows]])
    for seed in range(6):
        selections = list(periods(seed, by_row))
        for selection, found in zip(selections, run(rule, selections, apart), strict=True):
            if rule == "now":
                known = dict(zip(selection.drawn.tolist(), selection.drawn_scores.tolist(), strict=True))
                known = known if selection.learned is None else dict(enumerate(selection.learned.tolist()))
                chosen = set(selection.rows.tolist())
                order = sorted(known, key=lambda row: (-known[row], row not in chosen, row))
                expected = slowly_apart(order, np.eye(10)[kinds], 0.9, KEEP)
                assert found.rows.tolist() == sorted(expected)
                assert found.scores.tolist() == [known[row] for row in sorted(expected)]
            assert len(set(kinds[found.rows].tolist())) == KEEP
            assert found.clusters.tolist() == LABELS[found.rows].tolist()


def test_identical_rows_are_both_kept_only_where_no_others_are_left():
    scores, kinds = np.array([5.0, 4.0, 4.0, 3.0, 2.0, 1.0]), np.array([0, 0, 1, 1, 1, 2])
    labels, vectors = np.zeros(6, np.int64), np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)
    apart = Apart(0.999, lambda rows: vectors[kinds[rows]])
    rows = {}
    for count in range(1, 7):
        best = FullScoring(labels, min(1.0, count / 6 + 0.01))(scores.take)
        rows[count] = kept("now", best, labels, [], apart).rows.tolist()
    assert rows == {
        1: [0],
        2: [0, 2],
        3: [0, 2, 5],
        4: [0, 1, 2, 5],  # of those that gave way the best comes first
        5: [0, 1, 2, 3, 5],
        6: [0, 1, 2, 3, 4, 5],
    }


def test_of_identical_rows_of_one_score_the_lower_is_kept():
    labels, scores = np.zeros(6, np.int64), np.ones(6)
    apart = Apart(0.9, lambda rows: np.eye(3)[rows % 3])
    assert kept("now", FullScoring(labels, 0.5)(scores.take), labels, [], apart).rows.tolist() == [0, 1, 2]


def test_features_are_asked_for_of_no_more_rows_than_it_takes():
    rng, asked = np.random.default_rng(0), []

    def features(rows):
        asked.extend(rows.tolist())
        return rng.normal(size=(len(rows), 64))

    found = Apart(0.99, features).first(rng.permutation(10_000), 1500)
    assert len(found) == 1500
    assert len(asked) == 2 * keep_module.BLOCK
