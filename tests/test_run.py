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
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from builders import build_model, build_tokenizer
from cli_helpers import clusterucb, done, lines, options, read, result
from clusterucb.features.store import FeatureStore
from forks import publication

STEPS = ("warmup", "gradients", "cluster", "select", "train", "evaluate")
ARTIFACTS = (
    "config.yaml",
    "initial/adapter_model.safetensors",
    "pool/excluded.jsonl",
    "warmup/adapter_model.safetensors",
    "warmup/moments.safetensors",
    "features/features.f16",
    "directions/1.safetensors",
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


@pytest.fixture(scope="module")
def settings(finished_settings):
    return finished_settings


@pytest.fixture(scope="module")
def finished(finished_settings):
    """A finished run's directory: not to be changed."""
    return Path(finished_settings["out"])


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


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
        limit = 40 if "pool" in path else 1400
        for row in lines(path):
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            total += min(limit, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    counted = read(finished / "summary.json")["steps"]["gradients"]
    assert (counted["tokens"], counted["pool_gradients"], counted["target_gradients"]) == (total, 100, 6)


def test_the_report_is_made_again_when_it_is_missing_or_old(finished, copy):
    def data(folder):
        return re.search(rb'id="data">(.*?)</script>', (folder / "report.html").read_bytes())[1]

    (copy / "report.html").write_text("old")
    os.utime(copy / "report.html", (0, 0))
    done("run", "--out", copy)
    assert data(copy) == data(finished)
    (copy / "report.html").unlink()
    done("run", "--out", copy)
    assert data(copy) == data(finished)


def test_a_report_that_fails_loses_nothing(copy, monkeypatch):
    (copy / "report.html").unlink()
    monkeypatch.setattr("clusterucb.recipes.report_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clusterucb("run", "--out", copy)
    assert (copy / "summary.json").exists()


def test_period_1_is_the_plain_top_share_of_all_rows(finished):
    directions = load_file(finished / "directions/1.safetensors")["directions"]
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


@pytest.mark.whole
@pytest.mark.parametrize("name", ["clusterucb", "less_clusterucb", "random", "rds"])
def test_step_by_step_a_runs_own_settings_give_its_result_again(finished_run, name, tmp_path):
    there, folder = finished_run(name).folder, tmp_path / "run"
    steps = STEPS if (there / "warmup").exists() else STEPS[3:]
    for step in steps:
        given = [there / "config.yaml"] if step == steps[0] else []
        shown = done(step, *given, "--out", folder).out
        assert Path(shown.splitlines()[-1]).exists()  # a step says what it has made
    assert result(folder) == result(there)
    done("run", "--out", folder)
    ours, theirs = (read(run / "summary.json")["selected"] for run in (folder, there))
    assert [found["drawn"] for found in ours] == [found["drawn"] for found in theirs]


@pytest.mark.whole
def test_from_python_it_is_the_same(finished, settings, tmp_path):
    import clusterucb as package
    from clusterucb.config import load

    session = package.Session(load(finished / "config.yaml", {"out": str(tmp_path / "run")}))
    assert package.dynamic(session) == read(tmp_path / "run/summary.json")
    assert result(tmp_path / "run") == result(finished)
    assert clusterucb("run", tmp_path / "run/config.yaml", "-q") == (0, "", "")


def test_another_seed_gives_another_adapter(finished, other):
    done("warmup", *options(other, seed=1))
    ours, theirs = (
        load_file(folder / "warmup/adapter_model.safetensors") for folder in (Path(other["out"]), finished)
    )
    assert not any(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clusterucb", "140 pool gradients, 47% of the 300"),
        (
            "less_clusterucb",
            "47% of the 300 that scoring all rows at every checkpoint takes",
        ),
        ("less", "300 pool gradients"),
        ("rds", "0 pool gradients, 100 forward passes of pool rows"),
        ("random", "0 pool gradients, 0 forward passes"),
    ],
)
def test_a_second_run_computes_nothing_and_says_the_same(finished_run, name, said, monkeypatch):
    finished = finished_run(name)
    monkeypatch.setattr("clusterucb.run.inputs.load_model", lambda *_, **__: pytest.fail("loaded"))
    first = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    started = time.monotonic()
    again = done("run", "--out", finished.folder)
    assert time.monotonic() - started < 2
    assert again.out == finished.shown
    assert said in again.out
    assert "tokenise" not in again.err
    changed = {p for p, at in first.items() if p.exists() and p.stat().st_mtime_ns != at}
    assert {path.name for path in changed} <= {"summary.json", ".lock"}


NO_BANDIT = "as without a bandit no clusters are needed"


@pytest.mark.parametrize(
    ("name", "step", "reason"),
    [
        ("less", "cluster", NO_BANDIT),
        ("dynamic", "cluster", NO_BANDIT),
        ("bm25", "warmup", "as it needs no gradient"),
        ("bm25", "gradients", "as it needs no gradient"),
    ],
)
def test_a_step_that_a_method_does_not_have_says_so(finished_run, name, step, reason):
    folder = finished_run(name).folder
    said = clusterucb(step, "--out", folder).complaint
    assert said.startswith(f"method {name} has no step {step} with bandit ")
    assert said.endswith(f", {reason}: go on with `clusterucb select --out {folder}`")


def test_a_run_directory_is_found_when_it_has_moved_and_by_a_relative_path(copy, tmp_path, monkeypatch):
    for given in (["--out", copy], [copy / "config.yaml"]):
        assert done("run", *given).out.rstrip().endswith(str(copy))
    monkeypatch.chdir(tmp_path)
    done("run", "--out", copy.name)


def test_a_run_of_an_earlier_version_goes_on(finished, copy):
    """Directions lay beside the features, which told their common cost, and told no kind."""
    kept = load_file(copy / "directions/1.safetensors")
    save_file(kept, copy / "features/directions.safetensors")
    manifest = read(copy / "features/manifest.json")
    manifest["made_with"] |= read_made_with(copy / "directions/1.safetensors")
    (copy / "features/manifest.json").write_text(json.dumps(manifest))
    for name in ("directions", "rounds", "adapter", "periods"):
        shutil.rmtree(copy / name)
    for name in ("evaluation.json", "summary.json"):
        (copy / name).unlink()
    done("run", "--out", copy)
    assert result(copy) == result(finished)
    assert not (copy / "directions").exists()


def read_made_with(path):
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["made_with"])


@pytest.mark.whole
def test_the_loss_after_a_period_is_that_of_the_model_then(server, finished, other):
    """The adapter that the trainer saved there, from where it is killed, is evaluated as any is."""
    from clusterucb.config import load
    from clusterucb.run.session import Session
    from clusterucb.steps.evaluate import evaluate_adapters

    session = Session(load(finished / "config.yaml"))
    for period, step in ((1, 3), (2, 6)):
        server.dies(["run", *options(other)], publication(f"training/checkpoint-{step}/whole.json", "after"))
        saved = Path(other["out"]) / f"training/checkpoint-{step}"
        loss = read(finished / f"periods/{period}.json")
        assert evaluate_adapters(session, {"saved": saved})["saved"]["losses"] == loss["losses"]
        assert (loss["on"], loss["rows"], loss["cost"]["rows"]) == ("holdout", 5, 5)
    assert read(finished / "summary.json")["steps"]["evaluate"]["rows"] == 2 * 5 + 2 * 5


def test_the_losses_after_periods_change_nothing_that_is_trained(finished_run, tmp_path):
    from clusterucb.config import load
    from clusterucb.run.rounds import read_round
    from clusterucb.run.session import Session
    from clusterucb.steps.train import train_on

    random = finished_run("random").folder
    session = Session(load(random / "config.yaml"))
    train_on(session, read_round(random / "rounds/1").rows, tmp_path / "adapter", watched=False)
    unwatched, watched = (
        load_file(folder / "adapter/adapter_model.safetensors") for folder in (tmp_path, random)
    )
    assert all(np.array_equal(unwatched[name], watched[name]) for name in watched)
    assert (random / "periods/1.json").exists()


def test_select_works_at_our_checkpoints_and_at_a_trainers_and_tells_namesakes_apart(
    finished, copy, tmp_path
):
    from clusterucb.config import load
    from clusterucb.run.session import Session
    from clusterucb.training.adapter import load_adapter
    from clusterucb.training.data import SwappableRows
    from clusterucb.training.finetune import finetune

    session = Session(load(finished / "config.yaml"))
    load_adapter(session.model, session.dir.initial)
    rows = SwappableRows(session.inputs.training_tokens, np.arange(8))
    finetune(session.model, rows, tmp_path / "states", session.config.training, seed=5, epochs=2)
    trained = tmp_path / "states/checkpoint-4"
    assert (trained / "optimizer.pt").exists()
    assert not (trained / "moments.safetensors").exists()
    namesake = shutil.copytree(copy / "warmup", tmp_path / "elsewhere" / trained.name)

    def selected(checkpoint):
        path = Path(done("select", "--out", copy, "--checkpoint", checkpoint).out.strip())
        assert len(lines(path)) == 10
        assert read(path.parent / "summary.json")["drawn"] == 20
        return path

    made = [selected(checkpoint) for checkpoint in (copy / "adapter", trained, namesake, trained)]
    assert made[3] == made[1]
    assert len({path.read_bytes() for path in made[:3]}) == len(set(made[:3])) == 3


@pytest.mark.parametrize("policy", ["ucb1", "ucb_threshhard", "ucb_threshnormal", "random"])
def test_every_policy_selects(copy, settings, policy):
    (copy / "config.yaml").unlink()
    given = options(settings, out=copy, policy=policy)
    path = Path(done("select", *given, "--checkpoint", copy / "warmup").out.strip())
    assert read(path.parent / "summary.json")["drawn"] == 20


@pytest.mark.whole
def test_a_run_can_go_on_from_an_existing_adapter(finished, other):
    given = options(other, adapter=finished / "adapter", rank=None, alpha=None, periods=1)
    assert done("run", *given).err.count("load ") == 1
    folder = Path(other["out"])
    begin = load_file(folder / "initial/adapter_model.safetensors")
    trained = load_file(finished / "adapter/adapter_model.safetensors")
    assert begin.keys() == trained.keys()
    assert all(np.array_equal(begin[name], trained[name]) for name in begin)
    ended = load_file(folder / "adapter/adapter_model.safetensors")
    assert any(not np.array_equal(begin[name], ended[name]) for name in begin)
    was = read(finished / "evaluation.json")["adapter"]["losses"]
    assert read(folder / "evaluation.json")["base"]["losses"] == pytest.approx(was, rel=1e-5)


@pytest.mark.whole
def test_training_lowers_the_loss_on_a_target_of_unequal_subtasks(settings, other, tmp_path):
    """With a high rate, evaluated on the target itself: the adapter learns what was selected for it."""
    rows = lines(settings["target"][0])
    names = dict(zip([3, 0, 5, 1, 4, 2], "abbbbc", strict=True))
    target = tmp_path / "target.jsonl"
    target.write_text("".join(json.dumps({**rows[i], "subject": name}) + "\n" for i, name in names.items()))
    done("run", *options(other, target=[target], holdout=None, lr=2e-2, periods=2))
    folder = Path(other["out"])
    norms = np.linalg.norm(load_file(folder / "directions/1.safetensors")["directions"], axis=1)
    np.testing.assert_allclose(norms[[0, 2]], 1, atol=1e-3)  # of one row each
    assert norms[1] < 0.99  # the mean of four
    evaluation = read(folder / "evaluation.json")
    assert evaluation["on"] == "target"
    assert evaluation["adapter"]["loss"] < evaluation["base"]["loss"]


@pytest.mark.whole
def test_other_settings_of_model_adapter_gradients_and_periods(finished, other, tmp_path):
    """In half precision, without a chat template, with an adapter at every layer."""
    build_model().save_pretrained(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    changes = {"formula": "adam", "projection": "rademacher", "dim": 64, "dtype": "bfloat16", "periods": 1}
    done("run", *options(other, **changes, model=tmp_path / "model", target_modules=["all-linear"]))
    folder = Path(other["out"])
    assert (folder / "features/features.f16").stat().st_size == 100 * 64 * 2
    assert [path.name for path in (folder / "rounds").iterdir()] == ["1"]
    assert np.isfinite(read(folder / "evaluation.json")["adapter"]["loss"])
    ours, theirs = (read(run / "summary.json") for run in (folder, finished))
    assert ours["full"]["share_of_pool_gradients"] == 1
    assert ours["steps"]["gradients"]["tokens"] != theirs["steps"]["gradients"]["tokens"]  # Tulu's text
    names = load_file(folder / "adapter/adapter_model.safetensors")
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    assert {name.split(".")[-3] for name in names} == set(layers.split())


def test_a_warmup_longer_than_the_pool_counts_every_row_that_it_trains_on(other):
    """120 rows of a pool of 100: all once, and 20 of them again."""
    done("warmup", *options(other, warmup_steps=30))
    cost = read(Path(other["out"]) / "warmup" / "checkpoint.json")["cost"]
    lengths = np.diff(np.load(Path(other["out"]) / "pool" / "offsets.npy"))
    assert cost["rows"] == 120
    assert lengths.sum() + 20 * lengths.min() <= cost["tokens"] <= lengths.sum() + 20 * lengths.max()
