import numpy as np
import pytest
from data_helpers import byte_tokenizer, chat_record, write_lines
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data.chat import Encoded, Tulu, encode, fit
from clusterucb.data.pool import Pool
from clusterucb.data.tokens import Excluded, Tokens, encode_rows, fitted
from clusterucb.errors import InputError

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
def test_rows_come_back_from_memory_and_from_disk(tmp_path, patterns):
    same(Tokens.build(iter(rows(patterns))), rows(patterns))
    Tokens.write(tmp_path / "new" / "tokens", iter(rows(patterns)))
    same(Tokens.open(tmp_path / "new" / "tokens"), rows(patterns))


@given(st.lists(st.text("A.", max_size=6), max_size=8))
def test_lengths_and_label_counts_are_those_of_the_rows(patterns):
    tokens = Tokens.build(rows(patterns))
    assert tokens.lengths.tolist() == [len(p) for p in patterns]
    assert tokens.label_counts.tolist() == [p.count("A") for p in patterns]
    assert tokens.lengths.dtype == tokens.label_counts.dtype == np.int64


def test_tokens_cannot_be_changed(tmp_path):
    Tokens.write(tmp_path, rows(PATTERNS))
    for tokens in (Tokens.build(rows(PATTERNS)), Tokens.open(tmp_path)):
        with pytest.raises(ValueError, match="read-only"):
            tokens[0].ids[0] = 1
        for i in (-1, len(PATTERNS)):
            with pytest.raises(IndexError):
                tokens[i]


@pytest.mark.parametrize("name", ["ids.bin", "labels.bin", "offsets.npy"])
def test_damaged_tokens_are_refused(tmp_path, name):
    Tokens.write(tmp_path, rows(PATTERNS))
    path = tmp_path / name
    data = path.read_bytes()
    for damaged in (data[:-3], data[:-4], b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="delete the folder"):
            Tokens.open(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="delete the folder"):
        Tokens.open(tmp_path)


def test_a_row_that_fails_leaves_no_tokens_that_open(tmp_path):
    def failing():
        yield rows(PATTERNS)[0]
        raise InputError("pool.jsonl:2: bad")

    with pytest.raises(InputError, match="bad"):
        Tokens.write(tmp_path, failing())
    with pytest.raises(InputError, match="delete the folder"):
        Tokens.open(tmp_path)


def test_rows_without_labels_or_with_too_long_an_answer_are_excluded_with_the_reason():
    usable, excluded = fitted(Tokens.build(rows(PATTERNS)), 4)
    assert usable.tolist() == [0, 3]
    assert usable.dtype == np.int64
    assert excluded == [
        Excluded(1, "no label token"),
        Excluded(2, "no label token"),
        Excluded(4, "answer of 4 tokens does not fit into 4"),
    ]


@given(st.lists(st.text("A.", max_size=8).map(lambda p: "." + p), max_size=8), st.integers(1, 10))
def test_fitted_agrees_with_fitting_row_by_row(patterns, length):
    tokens = Tokens.build(rows(patterns))
    usable, excluded = fitted(tokens, length)
    reasons = {i: fit(row, length) for i, row in enumerate(tokens)}
    assert usable.tolist() == [i for i, row in reasons.items() if isinstance(row, Encoded)]
    assert {e.index: e.reason for e in excluded} == {i: r for i, r in reasons.items() if isinstance(r, str)}


def test_a_pool_is_encoded_row_by_row(tmp_path):
    pool = Pool.read(write_lines(tmp_path / "a.jsonl", [chat_record(f"q{i}", "a" * i) for i in range(1, 4)]))
    tokenizer, chat = byte_tokenizer(), Tulu("</s>")
    tokens = Tokens.build(encode_rows(pool, tokenizer, chat))
    same(tokens, [encode(row.messages, tokenizer, chat, row.id) for row in pool])


def test_a_row_that_cannot_be_encoded_is_named(tmp_path):
    class Refusing(Tulu):
        def render(self, messages):
            raise InputError("no")

    pool = Pool.read(write_lines(tmp_path / "a.jsonl", [chat_record()]))
    with pytest.raises(InputError, match=r"a\.jsonl:1: no"):
        list(encode_rows(pool, byte_tokenizer(), Refusing("</s>")))
