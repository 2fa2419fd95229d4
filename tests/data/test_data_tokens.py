from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.chat import Encoded
from clusterucb.data.tokens import Tokens
from clusterucb.errors import InputError
from file_helpers import refusal

PATTERNS = [".AA", "", "..", ".A..AAA.", "....AAAA"]


def rows(patterns):
    labels = [np.array([c == "A" for c in pattern], bool) for pattern in patterns]
    return [Encoded(np.arange(len(label), dtype=np.int32) + 7 * i, label) for i, label in enumerate(labels)]


def same(tokens, expected):
    assert len(tokens) == len(expected)
    for one, other in zip(tokens, expected, strict=True):
        assert one.ids.dtype == np.int32
        assert one.labels.dtype == np.bool_
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("patterns", [PATTERNS, [], ["", ""]])
def test_rows_come_back_as_they_were_written(tmp_path, patterns):
    Tokens.write(tmp_path / "new" / "tokens", iter(rows(patterns)))
    same(Tokens.open(tmp_path / "new" / "tokens"), rows(patterns))


@given(st.lists(st.text("A.", max_size=6), max_size=8))
def test_lengths_are_those_of_the_rows(patterns):
    with TemporaryDirectory() as folder:
        Tokens.write(Path(folder), rows(patterns))
        tokens = Tokens.open(Path(folder))
    assert tokens.lengths.tolist() == [len(p) for p in patterns]
    assert tokens.lengths.dtype == np.int64


def test_no_row_beyond_the_last_or_before_the_first(tmp_path):
    Tokens.write(tmp_path, rows(PATTERNS))
    for i in (-1, len(PATTERNS)):
        with pytest.raises(IndexError):
            Tokens.open(tmp_path)[i]


@pytest.mark.parametrize("name", ["ids.bin", "labels.bin", "offsets.npy"])
def test_damaged_tokens_are_refused(tmp_path, name):
    Tokens.write(tmp_path, rows(PATTERNS))
    path = tmp_path / name
    data = path.read_bytes()
    for damaged in (data[:-3], data[:-4], b""):
        path.write_bytes(damaged)
        assert "delete the folder" in refusal(Tokens.open, tmp_path)
    path.unlink()
    assert "delete the folder" in refusal(Tokens.open, tmp_path)


def test_a_row_that_fails_leaves_no_tokens_that_open(tmp_path):
    def failing():
        yield rows(PATTERNS)[0]
        raise InputError("pool.jsonl:2: bad")

    assert "bad" in refusal(Tokens.write, tmp_path, failing())
    assert "delete the folder" in refusal(Tokens.open, tmp_path)
