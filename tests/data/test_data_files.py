import errno
import io
import json
import tracemalloc
from datetime import date

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import chat_record
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.data import files
from clusterucb.data.files import Lines, stem
from clusterucb.errors import StorageError
from file_helpers import Hub, refusal, write

RECORDS = [chat_record(f"Frage {i} – naïve 😀?", f"Antwort {i}\nzwei", id=i) for i in range(5)]


def records(source):
    return [record for record, _ in Lines.open(source).records()]


@pytest.mark.parametrize(
    ("suffix", "unit"),
    [(".jsonl", "line"), (".json", "row"), (".parquet", "row"), (".jsonl.gz", "line"), (".json.gz", "row"),
     (".parquet.gz", "row"), (".JSONL", "line")],
)  # fmt: skip
def test_every_format_gives_the_same_records_in_any_order(tmp_path, suffix, unit):
    lines = Lines.open(write(tmp_path / f"pool{suffix}", RECORDS))
    assert [lines.record(i) for i in reversed(range(len(lines)))] == RECORDS[::-1]
    assert [json.loads(line) for line in lines] == RECORDS
    assert lines.where(2) == f"{tmp_path}/pool{suffix}, {unit} 3"


def test_json_lines_named_json_are_read_as_lines(tmp_path):
    lines = Lines.open(write(tmp_path / "a.jsonl", RECORDS).rename(tmp_path / "a.json"))
    assert [where for _, where in lines.records()] == [f"{tmp_path}/a.json, line {i}" for i in range(1, 6)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
    ("data", "kept", "numbers"),
    [
        (b'\n{"a": 1}\n  \n\n{"b": "\xc3\xa9"}', [b'{"a": 1}', b'{"b": "\xc3\xa9"}'], [2, 5]),
        (
            b'\xef\xbb\xbf{ "a":1 }\r\n\r\n{"b": "\xc3\xa9"}\r\n',
            [b'{ "a":1 }\r', b'{"b": "\xc3\xa9"}\r'],
            [1, 3],
        ),
    ],
    ids=["blank lines", "carriage returns and a byte order mark"],
)
def test_lines_are_the_persons_bytes_and_have_the_persons_numbers(tmp_path, suffix, data, kept, numbers):
    lines = Lines.open(write(tmp_path / f"a{suffix}", data))
    assert list(lines) == kept
    assert [lines.number(i) for i in range(len(lines))] == numbers
    assert lines.record(1) == {"b": "é"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[\n {"a":\n 1},\n\n {"b": 2}, {"c": 3}]\n', [{"a": 1}, {"b": 2}, {"c": 3}]),
        ('\ufeff[{"a": 1}]', [{"a": 1}]),
        ('[{"a": "x\\ud83d"}]', [{"a": "x\ud83d"}]),
        ('[{"a": Infinity, "b": 1e400, "c": 12345678901234567890123, "d": 1.50}]',
         [{"a": float("inf"), "b": float("inf"), "c": 12345678901234567890123, "d": 1.5}]),
    ],
    ids=["over lines", "byte order mark", "half a surrogate pair", "numbers"],
)  # fmt: skip
def test_the_objects_of_an_array_are_rows_as_python_reads_them(tmp_path, text, expected):
    found = [*Lines.open(write(tmp_path / "a.json", text)).records()]
    assert found == [(record, f"{tmp_path}/a.json, row {i}") for i, record in enumerate(expected, 1)]


OBJECTS = st.dictionaries(
    st.text(max_size=4), st.text(max_size=99) | st.floats(allow_nan=False) | st.lists(st.booleans())
)


@settings(max_examples=25)
@given(st.lists(OBJECTS), st.sampled_from([None, 1, 3]), st.sampled_from([1, 5, 7, 40, 64]), st.booleans())
def test_an_array_is_read_the_same_in_chunks_of_any_size(objects, indent, chunk, ascii_only):
    stream = io.BytesIO(json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode())
    assert list(files._Array(stream, "a.json", chunk)) == objects


def test_a_long_array_on_one_line_never_stands_in_memory_whole():
    data = json.dumps([{"text": f"{i}" * 200} for i in range(8_000)]).encode()
    tracemalloc.start()
    rows = sum(1 for _ in files._Array(io.BytesIO(data), "a.json"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 8_000
    assert most < 1_000_000 < len(data) / 5


ARRAYS = {
    '[{"a": 1},\n {"b": }]': "line 2, row 2: broken JSON: Expecting value",
    '[{"a": 1}\n {"b": 1}]': "line 2, row 2: broken JSON: expected ','",
    '[{"a": 1},\n {"b": "x': "line 2, row 2: broken JSON: Unterminated string",
    '[{"a": 1},\n {"b": 1}': "line 2, row 3: broken JSON: expected ','",
    '[{"a": 1},]': "line 1, row 2: broken JSON",
    '[{"a": 1}]\n{"b": 1}': "line 2, row 2: broken JSON: extra data",
    '[{"a": 1},\n 7]': "row 2: a JSON int, expected an object",
    '[{"a": 1},\n "x\udcff"]': "line 2: not UTF-8 (byte 0xff)",
    "[]": "empty",
    "[" + "[" * 100_000: "line 1, row 1: broken JSON",
}
LINES = {
    '{"a": 1}\n{"a": }\n': "line 2: broken JSON at column 7: Expecting value",
    '{"a": 1}\n[1]\n': "line 2: a JSON list, expected an object {...}. Write one whole object a line",
    '{"a": 1} {"a": 2}\n': "line 1: more than one JSON at column 10",
    '[\n {\n  "prompt": "a"\n }\n]': "one JSON array, expected one object a line; name the file .json",
    '{\n "prompt": "a"\n}': "JSON objects over several lines, expected one whole object a line",
    '{\n "prompt": \n}': "line 1: unfinished JSON at column 2",
    '{"a": 1}\n\n{"a": "\udcff"}\n': "line 3: not UTF-8 (byte 0xff at 8)",
    '{"a": 1}\n{"a": ' + "1" * 5000 + "}": "line 2: JSON that cannot be read",
    '{"a": 1}\n{"a": ' + "[" * 200_000 + "}": "line 2: JSON that cannot be read",
    "": "empty",
    "\n \n": "empty",
}
BROKEN = [("a.json", *case) for case in ARRAYS.items()] + [("a.jsonl", *case) for case in LINES.items()]


@pytest.mark.parametrize(("name", "text", "said"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_named_by_line_and_row(tmp_path, name, text, said):
    message = refusal(records, write(tmp_path / name, text))
    assert name in message
    assert said in message


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_place_of_an_error_does_not_depend_on_the_chunks(chunk):
    text = b'[{"aaaa": 1, "b": [true, false]},\n{"c": "dd", "e": tru}, {"f": 1}]' + b" " * 50
    array = files._Array(io.BytesIO(text), "a.json", chunk)
    assert "line 2, row 2: broken JSON: Expecting value" in refusal(list, array)


def test_a_missing_file_a_directory_and_an_unknown_suffix_are_refused(tmp_path):
    assert "no such file" in refusal(records, tmp_path / "none.jsonl")
    assert "a directory" in refusal(records, tmp_path)
    for name in ("a.csv", "a", "a.txt.gz", "a.gz"):
        assert ".jsonl, .json, .parquet" in refusal(records, write(tmp_path / name, "x"))


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"nothing of its kind", lambda d: d[:60] + b"\xff" * 40]
)
@pytest.mark.parametrize(
    ("suffix", "said"),
    [(".jsonl.gz", "gzip"), (".json.gz", "gzip"), (".parquet.gz", "gzip"), (".parquet", "corrupt parquet")],
)
def test_a_damaged_file_is_refused(tmp_path, suffix, said, damage):
    path = write(tmp_path / f"pool{suffix}", RECORDS)
    path.write_bytes(damage(path.read_bytes()))
    assert said in refusal(records, path)


def test_a_packed_parquet_file_is_damaged_where_what_is_packed_is_and_may_be_empty(tmp_path):
    assert "corrupt parquet" in refusal(records, write(tmp_path / "a.parquet.gz", "no table"))
    empty = pyarrow.table({"messages": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "a.parquet")
    assert "empty" in refusal(records, tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".parquet", ".parquet.gz"])
def test_a_full_temporary_folder_is_a_storage_error(tmp_path, monkeypatch, suffix):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_temporary", Full)
    with pytest.raises(StorageError, match="TMPDIR"):
        Lines.open(write(tmp_path / f"pool{suffix}", RECORDS))


@pytest.mark.parametrize(
    ("source", "config", "split"),
    [
        ("hub:org/name", None, "train"),
        ("hub:org/name:main", "main", "train"),
        ("hub:org/name:main:test", "main", "test"),
        ("hub:org/name::test", None, "test"),
    ],
)
def test_a_hub_data_set_is_asked_for_by_name_config_and_split(monkeypatch, source, config, split):
    Hub(monkeypatch).sets["org/name", config, split] = RECORDS
    expected = [(record, f"{source}, row {i}") for i, record in enumerate(RECORDS, 1)]
    assert [*Lines.open(source).records()] == expected


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach it\nat all"), ValueError("Unknown split"), KeyError()]
)
def test_a_hub_data_set_that_does_not_load_is_refused(monkeypatch, error):
    Hub(monkeypatch).sets["org/name", None, "train"] = error
    assert "hub:org/name: the hub data set cannot be loaded" in refusal(records, "hub:org/name")


def test_a_disk_that_is_full_while_a_hub_data_set_is_loaded_is_a_storage_error(monkeypatch):
    Hub(monkeypatch).sets["org/name", None, "train"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="TMPDIR"):
        Lines.open("hub:org/name")


@pytest.mark.parametrize("source", ["hub:a/b:c:d:e", "hub:"])
def test_a_hub_address_of_too_many_parts_is_refused(source):
    assert "expected hub:org/name[:config][:split]" in refusal(records, source)


def test_a_row_costs_sixteen_bytes_of_memory(tmp_path):
    lines = Lines.open(write(tmp_path / "a.jsonl", RECORDS * 20))
    kept = (lines._starts, lines._numbers)
    assert sum(len(numbers) * numbers.itemsize for numbers in kept) == 16 * len(lines)


@pytest.mark.parametrize(
    ("name", "left"),
    [("a.jsonl", "a"), ("x/cot.v2.json.gz", "x/cot.v2"), ("a.Parquet", "a"), ("org/name:c", "org/name:c")],
)
def test_the_stem_leaves_out_known_suffixes_only(name, left):
    assert stem(name) == left


def test_bytes_in_a_parquet_file_are_its_text_and_never_pythons_words_for_them(tmp_path):
    columns = {"prompt": [b"What is 2+2?", "naïve 😀".encode()], "when": [date(2024, 2, 29)] * 2}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = records(tmp_path / "a.parquet")
    assert [record["prompt"] for record in found] == ["What is 2+2?", "naïve 😀"]
    assert found[0]["when"] == "2024-02-29"


def test_a_column_of_text_that_is_no_utf8_is_one_line(tmp_path):
    column = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "a.parquet")
    assert "a.parquet: a text column is not UTF-8" in refusal(records, tmp_path / "a.parquet")
