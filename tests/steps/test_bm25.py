"""BM25 against its formula, word by word."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.steps.bm25 import bm25_scores

K1, B = 1.5, 0.75
TEXT = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "elk"]), max_size=9).map(" ".join)


def slow_score(document, query, documents):
    """Lucene's BM25 of one document for one query, both lists of words."""
    mean = sum(map(len, documents)) / len(documents)
    score = 0.0
    for word in query:
        having = sum(word in other for other in documents)
        weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        found = document.count(word)
        if found:
            score += weight * found / (found + K1 * (1 - B + B * len(document) / mean))
    return score


def slow_scores(documents, queries, codes):
    documents, queries = [d.split() for d in documents], [q.split() for q in queries]
    scores = []
    for document in documents:
        means = []
        for code in range(max(codes) + 1):
            own = [query for query, other in zip(queries, codes, strict=True) if other == code]
            means.append(sum(slow_score(document, query, documents) for query in own) / len(own))
        scores.append(max(means))
    return scores


@given(st.lists(TEXT, min_size=1, max_size=8), st.lists(TEXT, min_size=1, max_size=5), st.data())
def test_scores_are_the_formulas(documents, queries, data):
    """The largest over subtasks of the mean over a subtask's queries, subtasks in any order."""
    documents, queries = ["cat emu", *documents], ["cat cat", *queries]
    drawn = data.draw(st.lists(st.integers(0, 2), min_size=len(queries), max_size=len(queries)))
    codes = np.unique(drawn, return_inverse=True)[1]
    found = bm25_scores(documents, queries, codes)
    np.testing.assert_allclose(found, slow_scores(documents, queries, codes.tolist()), rtol=1e-5)


def test_a_rare_word_weighs_more_and_a_long_document_less():
    documents = ["the cat", "the dog", "the dog", "the cat and all that is in the house"]
    scores = bm25_scores(documents, ["the cat"], np.zeros(1, np.int64))
    assert scores[0] > scores[3] > scores[1] == scores[2] > 0


def test_case_marks_and_scripts_do_not_matter():
    """Chinese has no spaces, and its words are found within a text all the same."""
    documents = ["Émile, ÄRGER!", "我喜欢猫", "nothing"]
    scores = bm25_scores(documents, ["émile ärger", "猫"], np.array([0, 1]))
    assert scores[0] > 0 < scores[1]
    assert scores[2] == 0


def test_documents_are_read_once_and_counted():
    seen = []
    texts = iter(["cat", "", "dog cat"])
    scores = bm25_scores(texts, ["cat"], np.zeros(1, np.int64), seen.append)
    assert seen == [1, 1, 1]
    assert scores[1] == 0


@pytest.mark.parametrize("query", ["emu", "?"])
def test_a_target_that_shares_no_word_is_refused(query):
    with pytest.raises(InputError, match="bm25: no row of the pool has a word of the target"):
        bm25_scores(["cat", "dog"], [query], np.zeros(1, np.int64))
