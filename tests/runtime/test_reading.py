"""A file read past the system's cache is the same file."""

import os

import numpy as np
import pytest

from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.store import StoredFeatures
from clusterucb.runtime import reading
from clusterucb.runtime.reading import PAGE, reader

RNG = np.random.default_rng(0)


@pytest.fixture
def no_cache(monkeypatch):
    """As if the machine had no memory, and only a file that no cache would hold."""
    monkeypatch.setattr(reading, "LARGE", 0.0)
    monkeypatch.setattr(reading, "_by_cache", lambda *_: pytest.fail("by the cache"))


def without_direct(tmp_path):
    """Whether the tests' own file system cannot do it."""
    (tmp_path / "any").write_bytes(b"1")
    return not reading._can_pass_cache(tmp_path / "any")


def test_any_piece_is_what_was_written(no_cache, tmp_path):
    if without_direct(tmp_path):
        pytest.skip("this file system knows the cache alone")
    content = RNG.bytes(3 * PAGE + 77)
    (tmp_path / "file").write_bytes(content)
    read = reader(tmp_path / "file", once=True)
    for start in (0, 1, PAGE - 1, PAGE, 2 * PAGE + 5, 3 * PAGE + 76):
        for size in (0, 1, PAGE, PAGE + 1, 2 * PAGE):
            assert read(start, size).tobytes() == content[start : start + size]


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_a_large_store_has_the_same_rows(dtype, tmp_path, request):
    features, encoding = RNG.standard_normal((300, 37)).astype(np.float16), ENCODINGS[dtype]
    file = tmp_path / "features"
    file.write_bytes(encoding.encode(features).tobytes())
    small = StoredFeatures(file, 300, 37, encoding)
    if not without_direct(tmp_path):
        request.getfixturevalue("no_cache")
    large = small.in_one_pass
    for rows in (slice(0, 300), slice(7, 8), slice(111, 290), slice(300, 300)):
        np.testing.assert_array_equal(large[rows], small[rows])


def test_where_the_file_system_knows_the_cache_alone_it_is_read_by_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    monkeypatch.setattr(reading, "LARGE", 0.0)

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    read = reader(tmp_path / "file", once=True)
    monkeypatch.undo()
    assert read(1, 3).tobytes() == b"ont"
