import json

import numpy as np
import pytest
from data_helpers import chat_record, talk

from clusterucb.data import pool as pool_module
from clusterucb.data.pool import Pool
from clusterucb.errors import StorageError
from file_helpers import refusal, write


@pytest.fixture
def two_files(tmp_path):
    a = write(tmp_path / "a.jsonl", [chat_record(f"q{i}", "x") for i in range(4)])
    alpaca = [{"instruction": f"i{i}", "output": "y", "dataset": "dolly" if i else None} for i in range(3)]
    return a, write(tmp_path / "b.v2.jsonl.gz", alpaca)


def test_a_row_has_id_source_messages_and_raw_line(two_files):
    pool = Pool.read(two_files)
    assert len(pool) == 7
    row = pool[5]
    assert (row.id, row.source) == ("b.v2.jsonl.gz:2", "dolly")
    assert row.messages == talk("user: i1", "assistant: y")
    assert json.loads(row.raw)["instruction"] == "i1"
    assert [r.id for r in pool] == [pool.id(i) for i in range(7)]
    record, where = list(pool.records())[5]
    assert (record, where) == (json.loads(row.raw), "b.v2.jsonl.gz, line 2")
    for i in (-1, 7):
        with pytest.raises(IndexError):
            pool[i]


def test_a_source_is_the_dataset_column_or_the_file_name(two_files):
    pool = Pool.read(two_files)
    assert pool.sources == ["a", "b.v2", "dolly"]
    assert pool.source_codes.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert pool.source_codes.dtype == np.int32
    assert [pool.source(i) for i in (0, 4, 6)] == ["a", "b.v2", "dolly"]


def test_ids_take_parent_folders_where_base_names_collide(tmp_path):
    paths = [
        write(tmp_path / name, [chat_record(name)])
        for name in ("x/one/train.jsonl", "y/one/train.jsonl", "y/two/train.jsonl", "other.jsonl")
    ]
    pool = Pool.read(paths)
    assert pool.sources == ["x/one/train", "y/one/train", "two/train", "other"]
    assert [pool.id(i) for i in range(4)] == [f"{source}.jsonl:1" for source in pool.sources]


def test_the_same_file_given_twice_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [chat_record()])
    (tmp_path / "link.jsonl").symlink_to(path)
    assert "given twice" in refusal(Pool.read, [path, tmp_path / "link.jsonl"])
    monkeypatch.chdir(tmp_path)
    assert "given twice" in refusal(Pool.read, [str(path), "a.jsonl"])
    assert "no pool file" in refusal(Pool.read, [])


def test_a_file_that_mixes_shapes_is_refused_with_both_lines(tmp_path):
    records = [chat_record(), {"prompt": "q", "completion": "a"}]
    message = refusal(Pool.read, write(tmp_path / "a.jsonl", records))
    assert "a.jsonl, line 2: columns of shape prompt/completion" in message
    assert "a.jsonl, line 1 has shape messages" in message


@pytest.mark.parametrize("own", ["x", 3, ["x", 1]])
def test_an_own_id_that_occurs_twice_in_a_file_is_refused_with_both_lines(tmp_path, own):
    records = [chat_record(str(i), id=i + 100) for i in range(6)]
    records[1]["id"] = records[4]["id"] = records[5]["id"] = own
    message = refusal(Pool.read, write(tmp_path / "a.jsonl", records))
    assert f"a.jsonl, line 5: id {own!r} is that of a.jsonl, line 2 too" in message


def test_ids_may_repeat_across_files_and_differ_by_type_or_be_absent(tmp_path):
    records = [chat_record(str(i), id=own) for i, own in enumerate(["1", 1, None, None])]
    paths = [write(tmp_path / name, records) for name in ("a.jsonl", "b.jsonl")]
    assert len(Pool.read(paths)) == 8


def test_ids_of_equal_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "digest8", lambda data: 7)
    records = [chat_record(str(i), id=i) for i in range(4)]
    assert len(Pool.read(write(tmp_path / "a.jsonl", records))) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "unfinished JSON"),
        ('{"text": "x"}', "unknown columns 'text'"),
        ('{"messages": 3}', "messages is 3"),
        ('{"prompt": "", "completion": "x"}', "column prompt is empty"),
    ],
)
def test_a_bad_row_anywhere_is_refused_when_the_pool_is_read(tmp_path, line, said):
    good = write(tmp_path / "a.jsonl", [chat_record()])
    message = refusal(Pool.read, [good, write(tmp_path / "b.jsonl", f"\n{line}\n")])
    assert message.startswith("b.jsonl, line 2: ")
    assert said in message


def test_written_rows_are_the_input_lines_byte_for_byte_in_pool_order(tmp_path):
    odd = [
        b'{"prompt":"\xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x98\x80",  "completion" : "a"}\r',
        b'\t{"completion": "b", "prompt": "\\u00e9"}  ',
        b'{"prompt": "last", "completion": "no newline", "big": 1e400}',
    ]
    plain = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\n\n".join(odd))
    pool = Pool.read([plain, write(tmp_path / "b.jsonl.gz", b"\n".join(odd))])
    pool.write(np.array([5, 0, 2, 4, 0]), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(odd[i] + b"\n" for i in (0, 2, 1, 2))
    pool.write([], tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_a_place_that_cannot_be_written_is_a_storage_error(two_files, tmp_path):
    with pytest.raises(StorageError, match=r"out\.jsonl"):
        Pool.read(two_files).write([0], tmp_path / "none" / "out.jsonl")


def test_the_fingerprint_follows_every_byte_every_name_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.jsonl", [chat_record("q"), chat_record("r")])
    before = Pool.read(path).fingerprint
    assert Pool.read(str(path)).fingerprint == before
    path.write_bytes(path.read_bytes().replace(b'"q"', b'"p"'))
    changed = Pool.read(path).fingerprint
    path.write_bytes(path.read_bytes() + b"\n\n")
    assert Pool.read(path).fingerprint == changed
    renamed = Pool.read(path.rename(tmp_path / "b.jsonl")).fingerprint
    assert len({before, changed, renamed}) == 3
    assert len(before) == 64


def test_a_parquet_pool_is_written_as_json_lines(tmp_path):
    records = [chat_record(f"é{i}", "a", extra=[1.5, None]) for i in range(3)]
    pool = Pool.read(write(tmp_path / "a.parquet", records))
    pool.write([2, 1], tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == records[1:]
    assert pool.id(2) == "a.parquet:3"


def test_a_source_that_no_file_could_hold_is_refused_when_the_pool_is_read(tmp_path):
    line = '{"dataset": "half \\ud83d", "prompt": "q", "completion": "a"}\n'
    said = refusal(Pool.read, write(tmp_path / "p.jsonl", line))
    assert "p.jsonl, line 1: column dataset has half a surrogate pair" in said
