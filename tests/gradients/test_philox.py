"""Philox against the values its authors published, and against its definition in plain integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.gradients.philox import philox, signs

WORD = st.integers(0, 2**32 - 1)
ONES = 2**32 - 1
PUBLISHED = [  # counter, key, words: the known answers of Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def slow(counter, key):
    """Ten rounds in integers without bounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        w0, w1 = (k0 + i * 0x9E3779B9) % 2**32, (k1 + i * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = b // 2**32 ^ c1 ^ w0, b % 2**32, a // 2**32 ^ c3 ^ w1, a % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_the_published_answers(counter, key, words):
    assert tuple(philox(torch.tensor([counter]), key)[0].tolist()) == words


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=5), st.tuples(WORD, WORD))
def test_equal_to_integers_without_bounds(counters, key):
    assert philox(torch.tensor(counters), key).tolist() == [slow(counter, key) for counter in counters]


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**40), st.integers(1, 3))
def test_signs_are_the_words_bits_from_the_lowest_up(key, start, count):
    made = signs(key, start, count, torch.device("cpu"))
    for i, row in enumerate(made.tolist()):
        number = start + i
        counter = (number % 2**32, number // 2**32, (key >> 64) % 2**32, key >> 96)
        words = slow(counter, (key % 2**32, (key >> 32) % 2**32))
        assert row == [1.0 if word >> bit & 1 else -1.0 for word in words for bit in range(32)]


@pytest.mark.gpu
def test_the_signs_of_a_gpu_are_those_of_the_cpu():
    gpu = signs(2**100 + 5, 2**33, 64, torch.device("cuda"))
    assert torch.equal(gpu.cpu(), signs(2**100 + 5, 2**33, 64, torch.device("cpu")))
