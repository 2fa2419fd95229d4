import gzip
import json
import sys

import pytest
from task_helpers import refusal, write_harness

from clusterucb.errors import ConfigError, InputError
from clusterucb.tasks import files as installed
from clusterucb.tasks.files import (
    Official,
    harness_files,
    humaneval_file,
    list_field,
    read_config,
    read_json,
    read_text,
    samples,
    text_field,
)

FILES = Official("sums", folders=("sums", "add"), expects="sums/a.json", url="https://example.org/sums")


def test_folders_of_the_task_come_before_the_data_folder(tmp_path):
    (tmp_path / "a.json").touch()
    assert FILES.files(tmp_path, "a.json") == [tmp_path / "a.json"]
    (tmp_path / "add").mkdir()
    (tmp_path / "add" / "c.json").touch()
    (tmp_path / "add" / "b.json").touch()
    found = FILES.files(tmp_path, "a.json", "*.json")
    assert [path.name for path in found] == ["b.json", "c.json"]
    assert FILES.find(tmp_path, "d.json") == []


def test_a_missing_file_in_one_line(tmp_path):
    assert refusal(FILES.files, tmp_path, "a.json") == (
        f"{tmp_path}: no a.json for sums (looked in sums/, add/ and the folder itself); "
        "expected sums/a.json. Get it from https://example.org/sums"
    )
    said = refusal(FILES.files, tmp_path / "none", "a.json")
    assert said == f"{tmp_path}/none: no such folder; expected one that holds sums/a.json"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: b"\xef\xbb\xbf" + data])
def test_json_plain_packed_and_with_a_byte_order_mark(tmp_path, pack):
    path = tmp_path / ("a.json.gz" if pack is gzip.compress else "a.json")
    path.write_bytes(pack(json.dumps({"a": "é"}, ensure_ascii=False).encode()))
    assert read_json(path) == {"a": "é"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a":\n1,}', "a.json: broken JSON at line 2, column 3"),
        ("a.json", b'{"a": "\xe9"}', "a.json: not UTF-8 (byte 0xe9 at 8)"),
        ("a.json", b"[" * 100_000, "a.json: JSON that cannot be read"),
        ("a.json.gz", b"{}", "a.json.gz: a truncated or corrupt gzip file"),
        ("a.json.gz", gzip.compress(b"{}" * 99)[:-9], "a.json.gz: a truncated or corrupt gzip file"),
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
@pytest.mark.parametrize("read", [text_field, list_field])
def test_a_field_that_is_not_there(read, record, met):
    message = refusal(read, record, "a", "x.json, line 1")
    assert message.startswith("x.json, line 1: no a in it (")
    assert met in message


def test_fields_of_another_kind():
    assert text_field({"a": " b "}, "a", "x") == " b "
    assert "x: a is 3, expected some text" in refusal(text_field, {"a": 3}, "a", "x")
    assert "x: a is 'b', expected a list" in refusal(list_field, {"a": "b"}, "a", "x")


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A package lm_eval that fails when it is imported."""
    folder = write_harness(tmp_path / "lm_eval")
    (folder / "__init__.py").write_text("raise ImportError('imported')\n")
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_files_of_a_package_are_found_without_importing_it(harness):
    assert harness_files("bbh/cot_fewshot") == [harness / "tasks" / "bbh" / "cot_fewshot" / "sums.yaml"]
    (path,) = harness_files("gsm8k", "gsm8k-cot.yaml")
    assert samples(path, "question")[1] == ("Two and two?", "2 + 2 = 4. The answer is 4.")
    assert read_config(path)["doc_to_text"] is None


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    assert humaneval_file() is None
    assert "lm-eval is not installed; run: pip" in refusal(harness_files, "gsm8k", error=ConfigError)


def test_a_harness_that_lacks_the_files(harness):
    assert "has no tasks/arc/" in refusal(harness_files, "arc", error=ConfigError)
    assert "has no tasks/gsm8k/x.yaml" in refusal(harness_files, "gsm8k", "x.yaml", error=ConfigError)


@pytest.mark.parametrize(
    ("text", "message", "error"),
    [
        ("a: [", "cannot be read as YAML", ConfigError),
        ("a: 1", "no fewshot_config with samples", ConfigError),
        ("7", "no fewshot_config with samples", ConfigError),
        ("fewshot_config: {samples: !function utils.list}", "no fewshot_config with samples", ConfigError),
        ("fewshot_config: {samples: [{question: one}]}", "shot 1: no target in it (met: q", InputError),
    ],
)
def test_a_task_file_without_complete_shots(harness, text, message, error):
    path = harness / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    path.write_text(text)
    assert message in refusal(samples, path, "question", error=error)
