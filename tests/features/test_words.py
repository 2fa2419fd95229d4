"""Words: tf-idf of tokens and pairs, hashed, along the axes of the pool; and what they tell of a task."""

import itertools
from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.data.chat import Encoded
from clusterucb.features.influence import among_themselves, influence, means, own_rows
from clusterucb.features.words import AXES, COUNTED, NEAR, SKETCH, Words, sketches, width

MASK = 2**64 - 1


def row(*tokens):
    return Encoded(np.array(tokens, np.int32), np.ones(len(tokens), bool))


def mixed(number):
    """Splitmix64 of one number, in Python's integers."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def counted(tokens):
    """How often a row has each token and each pair of neighbours, by their hashes."""
    hashes = [mixed(token) for token in tokens.tolist()]
    pairs = [mixed((mixed(a) + b) & MASK) for a, b in itertools.pairwise(hashes)]
    return Counter(hashes + pairs)


def slow_sketches(rows, pool):
    """Of rows, by the words of a pool, (n, SKETCH)."""
    having = Counter(number for each in pool for number in {gram % COUNTED for gram in counted(each.ids)})
    found = np.zeros((len(rows), SKETCH))
    for sketch, each in zip(found, rows, strict=True):
        for gram, times in counted(each.ids).items():
            having_it = having[gram % COUNTED]
            weight = log(len(pool) / having_it) if having_it > 1 else 0.0
            sketch[(gram >> 32) % SKETCH] += (-1 if gram >> 63 else 1) * (1 + log(times)) * weight
        sketch /= np.linalg.norm(sketch) or 1
    return found


def task(kind, count, seed=0, about=5):
    """Rows that pose their questions in the same words, about things of their own."""
    rng, words = np.random.default_rng([kind, seed]), [*range(20 * kind, 20 * kind + 10)]
    texts = ([*words[:6], *rng.integers(5000, 9000, about).tolist(), *words[6:]] for _ in range(count))
    return [row(*text) for text in texts]


def near(words, pool, target, codes):
    """Whether a row is near, by all words."""
    directions = means(words.whole(target), codes)
    return own_rows(words.whole(pool), directions, np.bincount(codes), share=NEAR)[1]


KINDS = range(20)
POOL = [each for kind in KINDS for each in task(kind, 8)]


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_sketch_is_the_tf_idf_of_tokens_and_pairs_hashed(texts):
    rows = [row(*text) for text in texts]
    weights = Words.of(rows).weights
    np.testing.assert_allclose(sketches(rows, weights), slow_sketches(rows, rows), atol=1e-6)


def test_features_are_the_pools_sketches_along_their_largest_axes():
    """As a singular value decomposition of all of them has it."""
    words = Words.of(POOL)
    sketch = slow_sketches(POOL, POOL)
    sketch -= sketch.mean(0)
    axes = np.linalg.svd(sketch, full_matrices=False)[2][:AXES]
    for rows in (POOL, task(3, 10, seed=1)):
        apart = (slow_sketches(rows, POOL) - slow_sketches(POOL, POOL).mean(0)) @ axes.T
        expected = apart / np.linalg.norm(apart, axis=1, keepdims=True)
        found = words(rows)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
        cosines, ours = expected @ expected.T, found @ found.T  # whatever the axes' signs and order
        assert np.abs(cosines - ours).mean() < 0.03


def test_a_rows_feature_depends_on_nothing_but_the_row_and_the_pool():
    words = Words.of(POOL)
    together = words(POOL).astype(np.float16)
    alone = np.concatenate([words([each]).astype(np.float16) for each in POOL])
    assert np.array_equal(together, alone)
    assert np.array_equal(Words.of(POOL).axes, words.axes)


def test_what_is_known_of_a_pool_comes_back_as_it_was_written(tmp_path):
    words = Words.of(POOL)
    words.save(tmp_path / "words.npz")
    assert np.array_equal(Words.load(tmp_path / "words.npz")(POOL), words(POOL))


def test_rows_of_no_known_word_lie_together_and_say_nothing():
    """As far from the pool's mean as that is from them, whatever they are."""
    found = Words.of(POOL)([row(7001, 7002), row(9000)])
    np.testing.assert_allclose(found[0], found[1])


@pytest.mark.parametrize("rows", [2, 3, 20, 64, 1000])
def test_a_feature_has_no_more_numbers_than_half_of_the_rows(rows):
    pool = task(4, rows)
    assert Words.of(pool)(pool[:2]).shape[1] == width(rows) == min(AXES, rows // 2)


@pytest.mark.parametrize("kind", [0, 7, 19])
def test_rows_of_a_task_are_nearest_and_a_pool_without_it_is_far(kind):
    target, codes = task(kind, 12, seed=1), np.zeros(12, np.int64)
    words, own = Words.of(POOL), slice(8 * kind, 8 * kind + 8)
    directions = means(words(target), codes)
    likeness = influence(words(POOL).astype(np.float16), directions)
    enough = likeness >= 0.75 * among_themselves(directions, np.array([12]))[0]
    assert enough[own].all()
    assert enough.sum() == 8
    assert near(words, POOL[own], target, codes)
    others = [*POOL[: own.start], *POOL[own.stop :]]
    assert not near(Words.of(others), others, target, codes)


def test_single_rows_and_unlike_ones_which_tell_nothing_are_taken_to_be_near():
    words, target = Words.of(POOL), [POOL[0], POOL[50], POOL[100]]
    assert near(words, POOL, target, np.arange(3))
    assert near(words, POOL, target, np.zeros(3, np.int64))
