"""What the sections compute, against slow references and theorems."""

import html
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.features.principal import principal_axes
from clusterucb.report.course import course
from clusterucb.report.examples import CHARACTERS, Example, explored, shown_rows
from clusterucb.report.feature_map import map_features, sampled
from clusterucb.report.markup import escape, script_json, visible
from clusterucb.report.trust import rank_correlation

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
def test_escaped_text_is_read_back_as_it_is_shown(text):
    assert html.unescape(escape(text)) == visible(text)
    assert not set("<>\"'") & set(escape(text))


@given(st.dictionaries(st.text(), st.lists(st.text(), max_size=3), max_size=3))
def test_json_in_a_script_element_cannot_end_it_and_is_read_back(content):
    written = script_json(content)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == content


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=80), st.data())
def test_a_course_of_draws_is_what_counting_each_window_finds(draws, data):
    arms, scores = np.array([d[0] for d in draws]), np.array([float(d[1]) for d in draws])
    cold = data.draw(st.integers(0, len(draws)))
    keep = data.draw(st.integers(1, len(draws)))
    found = course(arms, scores, cold, keep, leading=2)
    assert found.ends[-1] == len(draws)
    assert cold in (0, *found.ends)
    np.testing.assert_allclose(found.shares.sum(0), 1)
    start, final = 0, sorted(scores)[-keep]
    for i, end in enumerate(found.ends.tolist()):
        window = slice(start, end)
        for j, arm in enumerate(found.arms):
            assert found.shares[j, i] == pytest.approx((arms[window] == arm).sum() / (end - start))
        assert found.mean[i] == pytest.approx(scores[window].mean())
        assert found.kept[i] == pytest.approx((scores[window] >= final).mean())
        best = sorted(scores[:end])[-keep:]
        if len(best) == keep:
            assert found.threshold[i] == best[0]
        else:
            assert np.isnan(found.threshold[i])
        assert 1 - 1e-9 <= found.breadth[i] <= len(set(arms[window].tolist())) + 1e-9
        start = end


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (3, 30), (2, 5)])
def test_the_axes_of_the_map_are_the_principal_ones(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * np.geomspace(9, 0.1, shape[1])
    x -= x.mean(0)
    axes, explained = principal_axes(x.astype(np.float32))
    _, lengths, right = np.linalg.svd(x, full_matrices=False)
    shares = lengths**2 / (lengths**2).sum()
    np.testing.assert_allclose(explained, shares[:2], atol=1e-5)
    for i in range(2 if shares[1] > 1e-6 else 1):
        assert abs(float(axes[:, i] @ right[i])) == pytest.approx(1, abs=1e-3)
        assert axes[np.abs(axes[:, i]).argmax(), i] > 0


def test_the_map_puts_features_and_directions_where_the_axes_say():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 20)).astype(np.float16)
    directions = rng.normal(size=(3, 20)).astype(np.float32)
    found = map_features(x, directions, np.zeros(50, np.int64), np.array([3]))
    axes, _ = principal_axes(x.astype(np.float32) - x.astype(np.float32).mean(0))
    np.testing.assert_array_equal(found.rows, np.arange(50))
    np.testing.assert_allclose(found.points, (x - x.astype(np.float32).mean(0)) @ axes, atol=1e-4)
    np.testing.assert_allclose(found.influence, (x.astype(float) @ directions.T).max(1), atol=1e-5)
    cosines = directions @ axes / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(found.arrows, cosines, atol=1e-5)


@given(st.integers(1, 400), st.integers(1, 12), st.integers(2, 120), st.integers(0, 60))
def test_a_sample_has_the_selected_rows_and_each_clusters_share(rows, k, limit, chosen):
    rng = np.random.default_rng(rows)
    clusters, selected = rng.integers(0, k, rows), rng.integers(0, rows, chosen)
    found = sampled(clusters, selected, limit)
    assert len(found) <= max(limit, 0) or len(found) == rows <= limit
    assert np.array_equal(found, np.unique(found))
    wanted = np.unique(selected)
    if len(wanted) <= limit // 5 or rows <= limit:
        assert np.isin(wanted, found).all()
        others, left = np.setdiff1d(found, wanted), np.setdiff1d(np.arange(rows), wanted)
        for c in range(k) if rows > limit else ():
            fair = (clusters[left] == c).mean() * len(others)
            assert abs((clusters[others] == c).sum() - fair) <= 2


def scored(scores, kept):
    rows = np.arange(len(scores))
    order = np.argsort(-scores, kind="stable")
    best = np.sort(order[:kept])
    return best, scores[best], rows[order], scores[order]


def test_the_shown_rows_are_the_selected_and_both_ends():
    scores = np.random.default_rng(0).normal(size=2000)
    shown = shown_rows(scored(scores, 100), 1)
    order = np.argsort(-scores, kind="stable").tolist()
    assert {row for row, _ in shown} == {*order[:100], *order[-50:]}
    assert [score for _, score in shown] == sorted((score for _, score in shown), reverse=True)
    assert len({row for row, _ in shown_rows(scored(scores, 1000), 1)}) == 350
    assert all(len(shown_rows(scored(scores, 1000), rounds)) * rounds <= 1700 for rounds in (1, 4, 10, 100))


def test_texts_stay_within_the_bytes_that_are_allowed():
    """Also where each character takes six bytes as JSON."""
    scores = np.random.default_rng(0).normal(size=400)
    examples = {row: Example(f"{row}", "s", (("user", "<" * 5000),)) for row in range(400)}
    found = explored([(1, scored(scores, 400))], examples, None, allowed=1_000_000)
    assert 500_000 < len(script_json(found["texts"])) <= 1_000_000
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
