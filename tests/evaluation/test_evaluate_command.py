"""`clusterucb evaluate` with a tiny real model: all benchmarks, silence, bad input, a kill."""

import json
import os
import re
import shutil
import sys

import pytest
from benchmark_helpers import ALL, TOKENIZER, FakeVLLM, save_adapter, short, wide_model

from cli_helpers import clusterucb, done, lines, options, read
from clusterucb.evaluation import adapter as module
from clusterucb.tasks import TASKS

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def there(tmp_path_factory, data):
    """A model, three adapters of it and the official files."""
    root = tmp_path_factory.mktemp("there")
    (root / "data").symlink_to(data)
    wide_model().save_pretrained(root / "model")
    TOKENIZER.save_pretrained(root / "model")
    save_adapter(root / "adapter", root / "model")
    save_adapter(root / "other", root / "model", seed=7)
    settings = shutil.copytree(root / "adapter", root / "scaled") / "adapter_config.json"
    settings.write_text(json.dumps({**read(settings), "lora_alpha": 64}))
    return root


def asked(there, out, **changes):
    given = {"adapter": there / "adapter", "tasks": ["gsm8k"], "data_dir": there / "data", "out": out}
    return options({**given, "device": "cpu", "dtype": "float32", "samples": 10}, **changes)


def answers(out):
    return {
        f"{folder.name}/{name}": (folder / name).read_bytes()
        for folder in (out / "benchmarks").iterdir()
        if folder.is_dir()
        for name in ("samples.jsonl", "documents.jsonl", "asked.json")
    }


def never(*_arguments):
    raise AssertionError("loaded")


def results(out):
    found = read(out / "benchmarks/results.json")
    assert found.pop("seconds") > 0
    return found


@pytest.mark.whole
def test_all_benchmarks_are_evaluated_and_only_our_own_lines_are_on_the_screen(
    there, tmp_path, capfd, monkeypatch
):
    """Neither the harness's logs and bars nor what it starts (git, for one) writes anywhere."""
    monkeypatch.chdir(tmp_path)  # git complains where there is no repository
    arguments = asked(there, tmp_path / "out", tasks=[",".join(ALL)])
    outcome = done("evaluate", *arguments, "--allow-code-execution")
    assert capfd.readouterr() == ("", "")
    names = ["mmlu_0shot", "mmlu_5shot", "bbh", "tydiqa", "gsm8k", "humaneval_pass1", "humaneval_pass10"]
    first, *said = outcome.err.splitlines()
    assert first == f"load {there / 'model'}"
    ended = [re.sub(r"(\d+)/\1 questions, .*", "done", line) for line in said]
    assert ended == [f"{name}, {who}: done" for who in ("base", "adapter") for name in names]
    table, path = outcome.out.rstrip().rsplit("\n", 1)
    assert path == str(tmp_path / "out/benchmarks")
    assert [line.split()[1].strip(",") for line in table.splitlines() if line.startswith("│")] == [
        "mmlu_0shot", "mmlu_5shot", "bbh", "tydiqa", "tydiqa", "gsm8k", "humaneval_pass1", "humaneval_pass10",
    ]  # fmt: skip
    found = results(tmp_path / "out")
    assert list(found["benchmarks"]) == names
    assert {name: one["questions"] for name, one in found["benchmarks"].items()} == {
        "mmlu_0shot": 4, "mmlu_5shot": 4, "bbh": 3, "tydiqa": 3, "gsm8k": 3,
        "humaneval_pass1": 2, "humaneval_pass10": 2,
    }  # fmt: skip
    before = answers(tmp_path / "out")
    again = done("evaluate", *arguments, "--allow-code-execution", "--quiet")
    assert (again.out, again.err) == ("", "")
    assert answers(tmp_path / "out") == before
    assert results(tmp_path / "out") == found


@pytest.mark.parametrize("other", ["other", "scaled"])
def test_two_adapters_share_the_answers_of_their_base(other, there, tmp_path):
    """One that is scaled otherwise is another one."""
    folders = []
    for name in ("adapter", other):
        done("evaluate", *asked(there, tmp_path, adapter=there / name))
        folders.append(results(tmp_path)["benchmarks"]["gsm8k"]["answers"])
    assert folders[0]["base"] == folders[1]["base"]
    assert folders[0]["adapter"] != folders[1]["adapter"]
    assert len(answers(tmp_path)) == 3 * 3


def test_a_run_is_evaluated_with_its_own_adapter_as_that_adapter_is_by_itself(
    there, finished_settings, tmp_path, monkeypatch
):
    """The loss comes first. The run's model has a short window, and the table says what that cost."""
    short(monkeypatch, shots=8)
    run, changes = tmp_path / "run", {"adapter": None, "dtype": None, "device": None}
    shutil.copytree(finished_settings["out"], run)
    shown = done("evaluate", *asked(there, run, **changes)).out
    assert re.match(r"base     loss \d\.\d+  \(holdout, 5 rows\)\nadapter  loss ", shown)
    assert "gsm8k: 3 prompts are longer than the model's window and lost their beginning" in shown
    done("evaluate", *asked(there, tmp_path / "alone", adapter=run / "adapter"))
    assert answers(tmp_path / "alone") == answers(run)
    assert results(tmp_path / "alone")["benchmarks"] == results(run)["benchmarks"]


@pytest.mark.whole
def test_the_runs_of_a_comparison_ask_their_base_once(there, shared_settings, tmp_path):
    """Its answers are in the folder that they share, where each run's results say."""
    out = tmp_path / "out"
    tasks = {"tasks": ["gsm8k"], "data_dir": there / "data"}
    arguments = options({**shared_settings, **tasks, "out": out}, features=None)
    outcome = done("compare", "--methods", "random", "--seeds", 2, *arguments)
    assert re.findall(r"gsm8k, (\w+): 3/3", outcome.err) == ["base", "adapter", "adapter"]
    for run in (out / "random/0", out / "random/1"):
        folders = results(run)["benchmarks"]["gsm8k"]["answers"]
        base, adapter = ((run / "benchmarks" / folders[who]).resolve(strict=True) for who in folders)
        assert (base.parent, adapter.parent) == (out / "shared/benchmarks", run / "benchmarks")


def test_questions_of_a_runs_target_are_left_out_by_its_adapters_own_record(there, tmp_path):
    adapter = shutil.copytree(there / "adapter", tmp_path / "adapter")
    taken, _ = TASKS["humaneval"].targets(there / "data", 2, 0)
    (adapter / "checkpoint.json").write_text(json.dumps({"target_questions": [taken.digest]}))
    arguments = asked(there, tmp_path / "out", adapter=adapter, tasks=["humaneval_pass1"], samples=1)
    shown = done("evaluate", *arguments, "--allow-code-execution").out
    assert "humaneval_pass1: 1 question is left out, as it was in the target" in shown
    assert results(tmp_path / "out")["benchmarks"]["humaneval_pass1"]["left_out"] == [taken.id]


BAD = {  # what is given instead, and what is said
    "no benchmark": ({"tasks": None}, "on what? give --tasks, such as --tasks gsm8k,mmlu"),
    "programs": ({"tasks": ["humaneval"]}, "in a sandbox; if you agree to that, give --allow-code-execution"),
    "no files": ({"data_dir": "nowhere"}, "gsm8k/test.jsonl"),
    "no adapter": ({"adapter": "nowhere"}, "nowhere: expected a folder with adapter_config.json and"),
    "no vllm": ({"engine": "vllm"}, "): pip install 'clusterucb[vllm]'"),
    "no limit": ({"limit": 0}, "limit is '0': input should be greater than or equal to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_the_model_is_loaded(case, there, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", never)
    monkeypatch.setitem(sys.modules, "vllm", None)
    changes, said = BAD[case]
    assert said in clusterucb("evaluate", *asked(there, tmp_path / "out", **changes)).complaint


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("adapter_model.safetensors", None, "expected a folder"),
        ("adapter_model.safetensors", "x", "copy the ad"),
        ("adapter_config.json", '{"r', "cannot be read as"),
        ("adapter_config.json", "[]", "a JSON object"),
        ("checkpoint.json", "{", "cannot be read as JSON"),
    ],
)
def test_a_broken_adapter_is_one_line(file, content, said, there, tmp_path):
    folder = shutil.copytree(there / "adapter", tmp_path / "adapter")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    complaint = clusterucb("evaluate", *asked(there, tmp_path / "out", adapter=folder)).complaint
    assert complaint.startswith(str(folder))
    assert said in complaint


def test_an_adapter_of_another_model_is_refused(there, tmp_path):
    """peft would leave out the layers that do not match, and say nothing."""
    narrow = wide_model()
    narrow.model.layers[0].self_attn.q_proj = narrow.model.layers[0].mlp.up_proj
    others = "does not fit this model, first in base_model.model.model.layers."
    for number, (model, expected) in enumerate(
        [(wide_model(layers=1), others), (wide_model(layers=3), others), (narrow, "does not fit this model")]
    ):
        adapter = save_adapter(tmp_path / str(number), there / "model", model=model)
        said = clusterucb("evaluate", *asked(there, tmp_path / "out", adapter=adapter)).complaint
        assert said.startswith(f"{adapter}: {expected}")


def test_vllm_answers_without_the_model_being_loaded_here(there, tmp_path, monkeypatch):
    """With room for the longest prompt and its answer; its GPUs are free afterwards."""
    fake = FakeVLLM(monkeypatch)
    monkeypatch.setattr(module, "load_model", never)
    model, out = shutil.copytree(there / "model", tmp_path / "model"), tmp_path / "out"
    arguments = asked(there, out, engine="vllm", model=model)
    for _ in range(2):
        done("evaluate", *arguments)
    (settings,) = fake.settings
    assert settings["pretrained"] == str(model)
    assert settings["lora_local_path"] == str(there / "adapter")
    assert len(fake.running) == 0
    for who, name in results(out)["benchmarks"]["gsm8k"]["answers"].items():
        folder = out / "benchmarks" / name
        prompts = [document["context"] for document in lines(folder / "documents.jsonl")]
        lengths = map(len, TOKENIZER(prompts, add_special_tokens=False)["input_ids"])
        assert settings["max_model_len"] == max(lengths) + 6
        answer = {"base": " 2", "adapter": " 1"}[who]
        assert all(sample["responses"] == [answer] for sample in lines(folder / "samples.jsonl"))
    os.utime(model / "model.safetensors", (1, 1))  # another model, for all that can be seen
    done("evaluate", *arguments)
    assert len(fake.settings) == 2
