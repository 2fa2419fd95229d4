"""Exact shares, the plain top, and what the selection may import."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.selection.share import share, smallest_share, top


@given(st.integers(0, 10**4), st.integers(0, 10**6))
def test_a_share_is_the_floor_of_the_decimal(parts, n):
    assert share(parts / 10**4, n) == parts * n // 10**4


def test_a_share_does_not_fall_short_by_binary_rounding():
    assert int(0.29 * 100) == 28
    assert share(0.29, 100) == share(np.float64(0.29), 100) == 29
    assert share(1e-05, 100_000) == 1


@given(st.integers(1, 10**7))
def test_the_smallest_share_is_one_row_and_hardly_more_than_needed(n):
    assert share(smallest_share(n), n) == 1
    assert Fraction(smallest_share(n)) <= Fraction(2, n)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.data())
def test_top_takes_the_largest_and_of_equals_the_lower_row(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    rows = top(np.array(scores), count)
    assert rows.tolist() == sorted(sorted(range(len(scores)), key=lambda r: (-scores[r], r))[:count])
    assert rows.dtype == np.int64


def test_the_selection_needs_neither_torch_nor_another_part_of_the_package():
    code = (
        "import sys, clusterucb.selection.bandit\n"
        "own = [m for m in sys.modules if m.startswith('clusterucb.')"
        " and not m.startswith(('clusterucb.selection', 'clusterucb.errors', 'clusterucb.version'))]\n"
        "assert 'torch' not in sys.modules and not own, own"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
