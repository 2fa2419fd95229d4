import json

import numpy as np
import pyarrow
import pyarrow.parquet
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


def test_a_file_whose_name_no_other_file_could_hold_is_refused(tmp_path):
    path = write(tmp_path / "a\udcff.jsonl", [chat_record()])
    assert "the name has half a surrogate pair, or a byte that is not UTF-8, '\\udcff'" in refusal(
        Pool.read, path
    )


def test_each_row_of_a_file_is_read_by_its_own_shape(tmp_path):
    records = [chat_record("q", "a"), {"prompt": "q", "completion": "a"}]
    one, other = Pool.read(write(tmp_path / "a.jsonl", records))
    assert one.messages == other.messages


@pytest.mark.parametrize("own", ["x", 3, ["x", 1]])
def test_a_row_whose_id_an_earlier_one_of_its_file_has_costs_that_row(tmp_path, own):
    records = [chat_record(str(i), id=i + 100) for i in range(6)]
    records[1]["id"] = records[4]["id"] = records[5]["id"] = own
    pool = Pool.read(write(tmp_path / "a.jsonl", records))
    assert [pool.id(i) for i in range(len(pool))] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    assert [row.id for row in pool.refused] == ["a.jsonl:5", "a.jsonl:6"]
    assert f"id {own!r} is that of a.jsonl, line 2 too" in pool.refused[0].reason


def test_ids_may_repeat_across_files_and_differ_by_type_or_be_absent(tmp_path):
    records = [chat_record(str(i), id=own) for i, own in enumerate(["1", 1, None, None])]
    paths = [write(tmp_path / name, records) for name in ("a.jsonl", "b.jsonl")]
    assert len(Pool.read(paths)) == 8


def test_ids_of_equal_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "digest8", lambda data: 7)
    records = [chat_record(str(i), id=i) for i in range(4)]
    assert len(Pool.read(write(tmp_path / "a.jsonl", records))) == 4


BAD = {
    "{": "unfinished JSON",
    "[1, 2]": "a JSON list, expected an object",
    '"text"': "a JSON str, expected an object",
    '{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}': "more than one JSON",
    '{"prompt": "\udcff", "completion": "x"}': "not UTF-8 (byte 0xff",
    '{"prompt": "x\\ud83d", "completion": "x"}': "column prompt has half a surrogate pair",
    '{"dataset": "x\\ud83d", "prompt": "x", "completion": "x"}': "column dataset has half a surrogate pair",
    '{"text": "x"}': "unknown columns 'text'",
    '{"messages": 3}': "messages is 3",
    '{"prompt": "", "completion": "x"}': "column prompt is empty",
    '{"tools": [1], "prompt": "x", "completion": "x"}': "tools is [1]",
}


@pytest.mark.parametrize(("line", "said"), BAD.items(), ids=BAD.values())
@pytest.mark.parametrize("at", [0, 1, 3])
def test_one_bad_row_costs_one_row_wherever_it_stands(tmp_path, line, said, at):
    good = [json.dumps(chat_record(f"q{i}", dataset=f"s{i}")) for i in range(3)]
    pool = Pool.read(write(tmp_path / "a.jsonl", "\n".join([*good[:at], "", line, *good[at:]])))
    (row,) = pool.refused
    assert (row.id, row.where) == (f"a.jsonl:{at + 2}", f"a.jsonl, line {at + 2}")
    assert said in row.reason
    assert not row.reason.startswith("a.jsonl")
    assert [row.messages[0].content for row in pool] == ["q0", "q1", "q2"]
    assert [row.source for row in pool] == ["s0", "s1", "s2"]
    assert [json.loads(row.raw)["dataset"] for row in pool] == ["s0", "s1", "s2"]
    assert len(pool.text_digests()) == 3
    pool.write(range(3), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text().splitlines() == good


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_without_a_row_of_a_known_shape_is_of_another_kind_and_ends_the_run(tmp_path, count):
    good = write(tmp_path / "a.jsonl", [chat_record()])
    message = refusal(Pool.read, [good, write(tmp_path / "b.jsonl", "\n" + '{"text": "x"}\n' * count)])
    assert message.startswith("b.jsonl, line 2: unknown columns 'text'")
    assert ("nor can any other of 3 rows" in message) == (count == 3)


def test_a_file_whose_rows_are_all_bad_costs_these_rows_as_long_as_others_are_left(tmp_path):
    bad = write(tmp_path / "b.jsonl", [chat_record("q", ""), {"tools": [1], **chat_record()}])
    paths = [write(tmp_path / name, [chat_record(name)]) for name in ("a.jsonl", "c.jsonl")]
    pool = Pool.read([paths[0], bad, paths[1]])
    assert [row.id for row in pool] == ["a.jsonl:1", "c.jsonl:1"]
    assert [row.id for row in pool.refused] == ["b.jsonl:1", "b.jsonl:2"]
    assert "b.jsonl, line 1: content of message 2" in refusal(Pool.read, bad)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[\n {"prompt": "a", "completion": "b"},\n {"prompt": "c", "completion": "d"}\n]\n',
            "one JSON array",
        ),
        ('[{"prompt": "a", "completion": "b"}]', "one JSON array"),
        ('[{"prompt": "a",\n "completion": "b"}]', "one JSON array"),
        ('{\n "prompt": "a",\n "completion": "b"\n}', "JSON objects over several lines"),
        (
            '\n{"prompt":\n "a", "completion": "b"}\n{"prompt": "c",\n "completion": "d"}',
            "objects over several lines",
        ),
    ],
    ids=["array", "array on one line", "array of long rows", "an object", "objects"],
)
def test_json_that_is_not_one_object_a_line_is_called_what_it_is(tmp_path, name, text, said):
    path = write(tmp_path / name, text)
    if name == "a.json" and text.startswith("["):
        assert Pool.read(path)[0].messages == talk("user: a", "assistant: b")
    else:
        assert said in refusal(Pool.read, path)


@pytest.mark.parametrize("nested", [False, True], ids=["columns", "nested"])
def test_bytes_in_a_parquet_file_that_are_not_utf8_cost_their_row(tmp_path, nested):
    texts = pyarrow.array([b"a", b"b\xff", "é".encode()], pyarrow.binary())
    if nested:
        roles = pyarrow.array(["assistant"] * 3)
        turns = pyarrow.StructArray.from_arrays([roles, texts], ["role", "content"])
        columns = {"messages": pyarrow.ListArray.from_arrays([0, 1, 2, 3], turns)}
    else:
        columns = {"prompt": ["q"] * 3, "completion": texts}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    pool = Pool.read(tmp_path / "a.parquet")
    assert [row.messages[-1].content for row in pool] == ["a", "é"]
    (row,) = pool.refused
    assert row.where == "a.parquet, row 2"
    assert "a byte that is not UTF-8, '\\udcff', at character 2" in row.reason


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
