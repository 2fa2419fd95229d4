import gzip
import json

import pytest
from task_helpers import refusal

from clusterucb.tasks.files import Official, list_field, read_json, read_text, text_field

FILES = Official("sums", folders=("sums", "add"), expects="sums/a.json", url="https://example.org/sums")


def test_folders_of_the_task_come_before_the_data_folder(tmp_path):
    (tmp_path / "a.json").touch()
    assert FILES.file(tmp_path, "a.json") == tmp_path / "a.json"
    (tmp_path / "add").mkdir()
    (tmp_path / "add" / "b.json").touch()
    assert FILES.file(tmp_path, "a.json", "b.json") == tmp_path / "add" / "b.json"
    assert FILES.find(tmp_path, "c.json") is None


def test_a_missing_file_in_one_line(tmp_path):
    assert refusal(FILES.file, tmp_path, "a.json") == (
        f"{tmp_path}: no a.json for sums (looked in sums/, add/ and the folder itself); "
        "expected sums/a.json. Get it from https://example.org/sums"
    )
    path = tmp_path / "none"
    assert (
        refusal(FILES.file, path, "a.json") == f"{path}: no such folder; expected one that holds sums/a.json"
    )


def test_json_plain_packed_and_with_a_byte_order_mark(tmp_path):
    data = json.dumps({"a": "é"}, ensure_ascii=False).encode()
    for name, content in {
        "a.json": data,
        "b.json.gz": gzip.compress(data),
        "c.json": b"\xef\xbb\xbf" + data,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_json(tmp_path / name) == {"a": "é"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a":\n1,}', "a.json, line 2: broken JSON at column 3"),
        ("a.json", b'{"a": "\xe9"}', "a.json: JSON that cannot be read"),
        ("a.json", b"[" * 100_000, "a.json: JSON that cannot be read"),
        ("a.json.gz", b"{}", "a.json.gz: cannot be read (Not a gzipped file"),
        ("a.json.gz", gzip.compress(b"{}" * 99)[:-9], "a.json.gz: cannot be read"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(read_json, tmp_path / name)


def test_text_has_newlines_and_is_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\nb".encode())
    assert read_text(tmp_path / "a.txt") == "é\nb"
    (tmp_path / "a.txt").write_bytes(b"ab\xe9")
    assert "a.txt: not UTF-8" in refusal(read_text, tmp_path / "a.txt")
    assert "cannot be read" in refusal(read_text, tmp_path)


@pytest.mark.parametrize(("record", "met"), [({}, "met: )"), ({"b": 1}, "met: b)"), ([1], "met: list)")])
def test_a_field_that_is_not_there(record, met):
    for read in (text_field, list_field):
        message = refusal(read, record, "a", "x.json, line 1")
        assert message.startswith("x.json, line 1: no a in it (")
        assert met in message


def test_fields_of_another_kind():
    assert text_field({"a": " b "}, "a", "x") == " b "
    assert "x: a is 3, expected some text" in refusal(text_field, {"a": 3}, "a", "x")
    assert "x: a is 'b', expected a list" in refusal(list_field, {"a": "b"}, "a", "x")
