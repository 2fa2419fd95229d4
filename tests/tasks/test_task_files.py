import sys

import pytest
from task_helpers import write_harness

from clusterucb.errors import ConfigError, InputError
from clusterucb.tasks import files
from clusterucb.tasks.files import list_field, read_json, samples, text_field
from file_helpers import refusal, write

FILES = files.Official("sums", also=("add",), expects="sums/a.json", url="https://example.org/sums")


def test_folders_of_the_task_come_before_the_data_folder(tmp_path):
    path = write(tmp_path / "a.json", "")
    assert FILES.files(tmp_path, "a.json") == [path]
    write(tmp_path / "add" / "c.json", "")
    write(tmp_path / "add" / "b.json", "")
    found = FILES.files(tmp_path, "a.json", "*.json")
    assert [path.name for path in found] == ["b.json", "c.json"]
    assert FILES.find(tmp_path, "d.json") == []


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_plain_packed_and_with_a_byte_order_mark(tmp_path, name, mark):
    assert read_json(write(tmp_path / name, f'{mark}{{"a": "é"}}')) == {"a": "é"}


def test_text_has_newlines_and_is_utf8(tmp_path):
    assert files.read_text(write(tmp_path / "a.txt", "\ufeffé\r\nb")) == "é\nb"
    assert "a.txt: not UTF-8" in refusal(files.read_text, write(tmp_path / "a.txt", b"ab\xe9"))
    assert "cannot be read" in refusal(files.read_text, tmp_path)


def test_fields_are_told_with_what_was_met_and_texts_stay_as_they_are():
    assert text_field({"a": " b "}, "a", "x") == " b "
    assert refusal(list_field, {}, "a", "x").startswith("x: no a in it (met: );")
    assert "x: a is 'b', expected a list" in refusal(list_field, {"a": "b"}, "a", "x")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package lm_eval that fails when it is imported."""
    folder = write_harness(tmp_path / "lm_eval")
    write(folder / "__init__.py", "raise ImportError('imported')\n")
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_files_of_a_package_are_found_without_importing_it(package):
    assert files.harness_files("bbh/cot_fewshot") == [package / "tasks" / "bbh" / "cot_fewshot" / "sums.yaml"]
    (path,) = files.harness_files("gsm8k", "gsm8k-cot.yaml")
    assert samples(path, "question")[1] == ("Two and two?", "2 + 2 = 4. The answer is 4.")
    assert files.read_config(path)["doc_to_text"] is None


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    assert files.humaneval_file() is None
    said = refusal(files.harness_files, "gsm8k", error=ConfigError)
    assert "lm-eval's tasks/gsm8k, and lm-eval is not installed; run: pip install 'clusterucb[eval]'" in said


def test_a_harness_that_lacks_the_files(harness):
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
