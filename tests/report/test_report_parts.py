"""What the sections compute, against slow references and theorems."""

import html
import itertools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.rows import Message, Row
from clusterucb.features.principal import principal_axes
from clusterucb.report.feature_map import map_features, sampled
from clusterucb.report.page import environment
from clusterucb.report.run_data import RoundData
from clusterucb.report.section import script_json, visible
from clusterucb.report.selected import CHARACTERS, cut_texts, shown_rows
from clusterucb.report.trust import rank_correlation
from clusterucb.report.why import course
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import Round, Scored

TEXT = st.text(st.characters(codec=None, exclude_categories=[])) | st.text("<>&\u2028\u202e\x00\\\"'/! -")


@given(TEXT)
def test_visible_text_has_nothing_unseen_and_is_stable(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not [
        c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI")
    ]


@given(TEXT)
def test_a_template_shows_text_as_text(text):
    written = environment().from_string("{{ text }}").render(text=text)
    assert html.unescape(written) == visible(text)
    assert not set("<>\"'") & set(written)


@given(st.dictionaries(st.text(), st.lists(st.text(), max_size=3), max_size=3))
def test_json_in_a_script_element_cannot_end_it_and_is_read_back(content):
    written = script_json(content)
    assert not set("<>&") & set(written)
    assert json.loads(written) == content


def selection(scores, kept, arms=(), cold=0):
    """Of rows drawn in their order, as a report reads it, the best `kept` ones selected."""
    rows = np.arange(len(scores))
    best = np.sort(np.argsort(-scores, kind="stable")[:kept])
    chosen = Round(1, best, scores[best], Cost(), {"cold_start": cold})
    return RoundData(**vars(chosen), scored=Scored(rows, scores, np.array(arms)), ids=[], sources=[])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=80), st.data())
def test_a_course_of_draws_is_what_counting_each_window_finds(draws, data):
    arms, scores = np.array([d[0] for d in draws]), np.array([float(d[1]) for d in draws])
    cold = data.draw(st.integers(0, len(draws)))
    keep = data.draw(st.integers(1, len(draws)))
    selected = selection(scores, keep, arms, cold)
    found = course(selected, [3, 1])
    assert found.ends[-1] == len(draws)
    assert cold in (0, *found.ends)
    np.testing.assert_allclose(found.shares.sum(0), 1)
    for i, (start, end) in enumerate(itertools.pairwise([0, *found.ends])):
        window = slice(start, end)
        for j, arm in enumerate([3, 1]):
            assert found.shares[j, i] == pytest.approx(np.mean(arms[window] == arm))
        assert found.mean[i] == pytest.approx(scores[window].mean())
        assert found.kept[i] == pytest.approx(np.mean([n in selected.rows for n in range(start, end)]))
        best = sorted(scores[:end])[-keep:]
        np.testing.assert_equal(found.threshold[i], best[0] if len(best) == keep else np.nan)


def test_the_map_puts_features_and_directions_where_the_axes_say():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 20)).astype(np.float16)
    directions = rng.normal(size=(3, 20)).astype(np.float32)
    found = map_features(x, directions, np.array([3]))
    axes, _ = principal_axes(x.astype(np.float32) - x.astype(np.float32).mean(0))
    np.testing.assert_array_equal(found.rows, np.arange(50))
    np.testing.assert_allclose(found.points, (x - x.astype(np.float32).mean(0)) @ axes, atol=1e-4)
    np.testing.assert_allclose(found.influence, (x.astype(float) @ directions.T).max(1), atol=1e-5)
    cosines = directions @ axes / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(found.arrows, cosines, atol=1e-5)


@given(st.integers(1, 400), st.integers(2, 120), st.integers(0, 60))
def test_a_sample_is_even_and_has_the_selected_rows_up_to_a_fifth(rows, limit, chosen):
    selected = np.random.default_rng(rows).integers(0, rows, chosen)
    found = sampled(rows, selected, limit)
    assert np.array_equal(found, np.unique(found))
    assert len(found) == min(rows, limit)
    assert np.isin(found, selected).sum() >= min(len(np.unique(selected)), limit // 5)


def test_the_shown_rows_are_the_selected_and_both_ends():
    scores = np.random.default_rng(0).normal(size=2000)
    shown = shown_rows(selection(scores, 100), 1)
    order = np.argsort(-scores, kind="stable").tolist()
    assert set(shown) == {*order[:100], *order[-50:]}
    assert [*shown.values()] == sorted(shown.values(), reverse=True)
    many = selection(scores, 1000)
    assert len(shown_rows(many, 1)) == 350
    assert all(len(shown_rows(many, rounds)) * rounds <= 1700 for rounds in (1, 4, 10, 100))


def test_texts_stay_within_the_bytes_that_are_allowed():
    """Also where each character takes six bytes as JSON."""
    rows = [Row(f"{n}", "s", (Message("user", "<" * 5000),), b"") for n in range(400)]
    found = cut_texts(rows, 1_000_000)
    assert 500_000 < len(script_json(found["texts"]).encode()) <= 1_000_000
    assert found["characters"] < CHARACTERS
    assert all(len(t["turns"][0][1]) + t["left_out"] == 5000 for t in found["texts"])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    a, b = (np.array([pair[i] for pair in pairs], float) for i in (0, 1))

    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    found = rank_correlation(a, b)
    if len(pairs) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
