import sys

import pytest
from task_helpers import write_harness

from clusterucb.errors import ConfigError, InputError
from clusterucb.tasks import files
from clusterucb.tasks.files import list_field, read_json, samples, text_field
from file_helpers import refusal, write

FILES = files.Official("sums", folders=("sums", "add"), expects="sums/a.json", url="https://example.org/sums")


def test_folders_of_the_task_come_before_the_data_folder(tmp_path):
    path = write(tmp_path / "a.json", "")
    assert FILES.files(tmp_path, "a.json") == [path]
    write(tmp_path / "add" / "c.json", "")
    write(tmp_path / "add" / "b.json", "")
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


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_plain_packed_and_with_a_byte_order_mark(tmp_path, name, mark):
    assert read_json(write(tmp_path / name, f'{mark}{{"a": "é"}}')) == {"a": "é"}


def test_json_that_cannot_be_read(tmp_path):
    assert "a.json: broken JSON at line 2, column 3" in refusal(
        read_json, write(tmp_path / "a.json", '{"a":\n1,}')
    )
    (tmp_path / "a.json.gz").write_bytes(b"{}")
    assert "a.json.gz: a truncated or corrupt gzip file" in refusal(read_json, tmp_path / "a.json.gz")


def test_text_has_newlines_and_is_utf8(tmp_path):
    assert files.read_text(write(tmp_path / "a.txt", "\ufeffé\r\nb")) == "é\nb"
    assert "a.txt: not UTF-8" in refusal(files.read_text, write(tmp_path / "a.txt", b"ab\xe9"))
    assert "cannot be read" in refusal(files.read_text, tmp_path)


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
    assert files.harness_files("bbh/cot_fewshot") == [harness / "tasks" / "bbh" / "cot_fewshot" / "sums.yaml"]
    (path,) = files.harness_files("gsm8k", "gsm8k-cot.yaml")
    assert samples(path, "question")[1] == ("Two and two?", "2 + 2 = 4. The answer is 4.")
    assert files.read_config(path)["doc_to_text"] is None


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    assert files.humaneval_file() is None
    assert "lm-eval is not installed; run: pip" in refusal(files.harness_files, "gsm8k", error=ConfigError)


def test_a_harness_that_lacks_the_files(harness):
    assert "has no tasks/arc/" in refusal(files.harness_files, "arc", error=ConfigError)
    assert "has no tasks/gsm8k/x.yaml" in refusal(files.harness_files, "gsm8k", "x.yaml", error=ConfigError)


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
