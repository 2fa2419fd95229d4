"""The whole procedure on a tiny model, by its command."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from builders import build_model, build_tokenizer, write_rows
from cli_helpers import clusterucb, lines, options, read, result
from clusterucb.features.store import FeatureStore

STEPS = ("warmup", "gradients", "cluster", "select", "train", "evaluate")
ARTIFACTS = (
    "config.yaml",
    "initial/adapter_model.safetensors",
    "pool/excluded.jsonl",
    "warmup/adapter_model.safetensors",
    "warmup/moments.safetensors",
    "features/features.f16",
    "features/directions.safetensors",
    "clusters.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/moments.safetensors",
    "evaluation.json",
    "summary.json",
    "report.html",
    "periods/1.json",
    "periods/2.json",
    *(
        f"rounds/{n}/{name}"
        for n in (1, 2, 3)
        for name in ("selected.jsonl", "selected.ids.jsonl", "draws.jsonl", "summary.json")
    ),
)


def run(settings, *more, **changes):
    outcome = clusterucb("run", *options(settings, **changes), *more)
    assert outcome.status == 0, outcome
    return Path({**settings, **changes}["out"])


@pytest.fixture
def settings(finished_settings):
    return finished_settings


@pytest.fixture
def finished(finished_settings):
    """A finished run's directory: not to be changed."""
    return Path(finished_settings["out"])


@pytest.fixture
def other(settings, tmp_path):
    """The same settings for another run directory."""
    return {**settings, "out": str(tmp_path / "run")}


def test_a_run_makes_every_artifact(finished):
    assert [name for name in ARTIFACTS if not (finished / name).is_file()] == []
    assert list(finished.rglob("*.part")) == []
    assert not (finished / "training").exists()
    assert not (finished / "warmup.states").exists()


def test_selected_lines_are_the_inputs_bytes_in_pool_order(finished, settings):
    pool = [line for path in settings["pool"] for line in Path(path).read_bytes().splitlines(keepends=True)]
    for n in (1, 2, 3):
        selected = (finished / f"rounds/{n}/selected.jsonl").read_bytes().splitlines(keepends=True)
        assert len(selected) == 10  # floor(0.1 * 100)
        places = [pool.index(line) for line in selected]
        assert places == sorted(set(places))


def test_the_sidecar_matches_the_selected_lines(finished, settings):
    files = {Path(path).name: Path(path).read_bytes().splitlines() for path in settings["pool"]}
    labels = load_file(finished / "clusters.safetensors")["labels"]
    for n in (1, 2, 3):
        folder = finished / f"rounds/{n}"
        selected = (folder / "selected.jsonl").read_bytes().splitlines()
        sidecar = lines(folder / "selected.ids.jsonl")
        arrays = load_file(folder / "selection.safetensors")
        assert len(selected) == len(sidecar) == len(arrays["rows"])
        for line, entry, row, score in zip(selected, sidecar, arrays["rows"], arrays["scores"], strict=True):
            name, number = entry["id"].rsplit(":", 1)
            assert files[name][int(number) - 1] == line
            assert entry["score"] == score
            assert entry["cluster"] == labels[row]
            assert entry["source"] == name.removesuffix(".jsonl")
            assert entry["round"] == n


def test_each_later_round_spends_its_budget_exactly(finished):
    for n in (2, 3):
        draws = lines(finished / f"rounds/{n}/draws.jsonl")
        ids = [row for draw in draws for row in draw["ids"]]
        assert len(ids) == len(set(ids)) == 20  # floor(0.2 * 100)
        assert read(finished / f"rounds/{n}/summary.json")["cost"]["pool_gradients"] == 20
        logged = [row for entry in lines(finished / f"rounds/{n}/scores.jsonl") for row in entry["scores"]]
        assert len(logged) == len(set(logged)) == 20
        assert {entry["id"] for entry in lines(finished / f"rounds/{n}/selected.ids.jsonl")} <= set(ids)


def test_a_later_round_keeps_the_best_of_its_draws(finished):
    for n in (2, 3):
        draws = lines(finished / f"rounds/{n}/draws.jsonl")
        scores = sorted((score for draw in draws for score in draw["scores"]), reverse=True)
        kept = [entry["score"] for entry in lines(finished / f"rounds/{n}/selected.ids.jsonl")]
        assert sorted(kept, reverse=True) == scores[:10]


def test_the_summary_counts_all_rows_once_and_then_the_draws(finished):
    summary = read(finished / "summary.json")
    drawn = [found["drawn"] for found in summary["selected"]]
    assert drawn == [100, 20, 20]
    assert summary["total"]["pool_gradients"] == 100 + 20 + 20
    assert summary["full"]["pool_gradients"] == 3 * 100
    assert summary["full"]["share_of_pool_gradients"] == 140 / 300
    assert summary["total"]["target_gradients"] == 3 * 6
    for key in ("rows", "tokens", "pool_gradients", "target_gradients"):
        assert summary["total"][key] == sum(step[key] for step in summary["steps"].values())
    assert summary["total"]["seconds"] == pytest.approx(
        sum(step["seconds"] for step in summary["steps"].values()), abs=1e-2
    )
    assert list(summary["steps"]) == [
        *("warmup", "gradients", "cluster", "select 1", "select 2", "select 3", "train", "evaluate")
    ]
    assert (summary["rows"], summary["excluded"]) == (100, 0)


def test_the_tokens_that_are_counted_are_the_pools(finished, settings):
    """Each row's gradient sees its text in the chat format, cut to the gradient length."""
    tokenizer = build_tokenizer()
    total = 0
    for path in (*settings["pool"], *settings["target"]):
        limit = 48 if "pool" in path else 1400
        for row in lines(path):
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            total += min(limit, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    counted = read(finished / "summary.json")["steps"]["gradients"]
    assert (counted["tokens"], counted["pool_gradients"], counted["target_gradients"]) == (total, 100, 6)


def test_the_report_is_made_again_when_it_is_missing_or_old(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "report.html").unlink()
    assert clusterucb("run", "--out", copy).status == 0
    data = [
        re.search(rb'id="data">(.*?)</script>', (at / "report.html").read_bytes()) for at in (finished, copy)
    ]
    assert data[0][1] == data[1][1]
    (copy / "report.html").write_text("old")
    os.utime(copy / "report.html", (0, 0))
    assert clusterucb("run", "--out", copy).status == 0
    assert (copy / "report.html").stat().st_size > 1_000_000


def test_period_1_is_the_plain_top_share_of_all_rows(finished):
    directions = load_file(finished / "features/directions.safetensors")["directions"]
    features = np.asarray(FeatureStore(finished / "features").features, np.float64)
    assert len(directions) == 2  # one for each subtask
    scores = (features @ directions.T.astype(np.float64)).max(1)
    best = np.sort(np.argsort(-scores, kind="stable")[:10])
    arrays = load_file(finished / "rounds/1/selection.safetensors")
    np.testing.assert_array_equal(arrays["rows"], best)
    np.testing.assert_allclose(arrays["scores"], scores[best], rtol=1e-6)


def test_the_adapter_loads_with_peft(finished, settings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, finished / "adapter").eval()
    row = torch.arange(3, 20)[None]
    with torch.no_grad():
        tuned = model(row).logits
        with model.disable_adapter():
            plain = model(row).logits
    assert tuned.isfinite().all()
    assert not torch.equal(tuned, plain)


def test_step_by_step_gives_the_same_as_run(finished, other):
    folder = Path(other["out"])
    for number, step in enumerate(STEPS):
        given = options(other) if number == 0 else ["--out", str(folder)]
        outcome = clusterucb(step, *given)
        assert outcome.status == 0, outcome
        assert Path(outcome.out.splitlines()[-1]).exists()  # a step says what it has made
    assert result(folder) == result(finished)
    outcome = clusterucb("run", "--out", folder)
    assert read(folder / "summary.json")["selected"][2]["drawn"] == 20


def test_a_second_run_computes_nothing_and_says_the_same(finished):
    first = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    started = time.monotonic()
    again = clusterucb("run", "--out", finished)
    assert time.monotonic() - started < 2
    assert again.status == 0
    assert "140 pool gradients, 47% of the 300" in again.out
    assert "tokenise" not in again.err
    changed = {p for p, at in first.items() if p.exists() and p.stat().st_mtime_ns != at}
    assert {path.name for path in changed} <= {"summary.json", ".lock"}
    assert clusterucb("run", "--out", finished).out == again.out


def test_a_moved_run_directory_is_as_good(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "moved")
    for given in (["--out", copy], [copy / "config.yaml"]):
        outcome = clusterucb("run", *given)
        assert outcome.status == 0, outcome
        assert outcome.out.rstrip().endswith(str(copy))


def test_a_run_can_go_on_from_an_existing_adapter(finished, settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", adapter=finished / "adapter", rank=None, alpha=None)
    begin = load_file(folder / "initial/adapter_model.safetensors")
    given = load_file(finished / "adapter/adapter_model.safetensors")
    assert begin.keys() == given.keys()
    assert all(np.array_equal(begin[name], given[name]) for name in begin)
    ended = load_file(folder / "adapter/adapter_model.safetensors")
    assert any(not np.array_equal(begin[name], ended[name]) for name in begin)
    was = read(finished / "evaluation.json")["adapter"]["losses"]
    assert read(folder / "evaluation.json")["base"]["losses"] == pytest.approx(was, rel=1e-5)


@pytest.mark.parametrize("policy", ["ucb1", "ucb_threshhard", "ucb_threshnormal", "random"])
def test_every_policy_selects(finished, settings, policy, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "config.yaml").unlink()
    given = options(settings, out=copy, policy=policy)
    outcome = clusterucb("select", *given, "--checkpoint", copy / "warmup")
    assert outcome.status == 0, outcome
    assert read(Path(outcome.out.strip()).parent / "summary.json")["drawn"] == 20


def test_a_warmup_longer_than_the_pool_counts_every_row_that_it_trains_on(other):
    """120 rows of a pool of 100: all once, and 20 of them again."""
    outcome = clusterucb("warmup", *options(other, warmup_steps=30))
    assert outcome.status == 0, outcome
    cost = read(Path(other["out"]) / "warmup" / "checkpoint.json")["cost"]
    lengths = np.diff(np.load(Path(other["out"]) / "pool" / "offsets.npy"))
    assert cost["rows"] == 120
    assert lengths.sum() + 20 * lengths.min() <= cost["tokens"] <= lengths.sum() + 20 * lengths.max()
