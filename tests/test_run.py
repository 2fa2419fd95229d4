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
from transformers import TrainerCallback

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


@pytest.mark.parametrize(("top_p", "count"), [(0.05, 5), (0.059, 5), (0.29, 29)])
def test_the_number_of_selected_rows_is_exact(finished, settings, top_p, count, tmp_path):
    """0.29 * 100 is 28.999... in floats."""
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "rounds")
    (copy / "config.yaml").unlink()
    outcome = clusterucb("select", *options(settings, out=copy, top_p=top_p, budget=0.3))
    assert outcome.status == 0, outcome
    assert len(lines(copy / "rounds/1/selected.jsonl")) == count


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


def test_the_loss_after_a_period_is_that_of_the_model_then(settings, tmp_path, monkeypatch):
    """The adapter of each period's end, kept aside by this test, is evaluated afterwards as any is."""
    from clusterucb.config import load
    from clusterucb.run.session import Session
    from clusterucb.steps import evaluate as steps
    from clusterucb.training.adapter import save_adapter

    real, kept = steps._measured, []

    def measured(session, rows, encoded, under, advance):
        if "period" in under:
            kept.append(tmp_path / under.split()[-1])
            save_adapter(session.model, kept[-1])
        return real(session, rows, encoded, under, advance)

    monkeypatch.setattr(steps, "_measured", measured)
    folder = run(settings, out=tmp_path / "run", epochs_per_period=2)
    assert [path.name for path in kept] == ["1", "2"]
    session = Session(load(folder / "config.yaml"))
    found = steps.evaluate_adapters(session, {path.name: path for path in kept})
    for path in kept:
        loss = read(folder / f"periods/{path.name}.json")
        assert found[path.name]["losses"] == loss["losses"]
        assert (loss["on"], loss["rows"], loss["cost"]["rows"]) == ("holdout", 5, 5)
    assert read(folder / "summary.json")["steps"]["evaluate"]["rows"] == 2 * 5 + 2 * 5


def test_the_losses_after_periods_change_nothing_that_is_trained(finished, other, monkeypatch):
    monkeypatch.setattr("clusterucb.steps.train.watch", lambda *_: TrainerCallback())
    without = {name: data for name, data in result(run(other)).items() if not name.startswith("periods")}
    with_them = {name: data for name, data in result(finished).items() if not name.startswith("periods")}
    assert not list(Path(other["out"]).glob("periods/*"))
    assert without == with_them


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


def test_a_report_that_fails_loses_nothing(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "report.html").unlink()
    with monkeypatch.context() as broken:
        broken.setattr("clusterucb.report.page.page", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clusterucb("run", "--out", copy)
    assert result(copy) == result(finished)
    assert (copy / "summary.json").exists()
    assert clusterucb("run", "--out", copy).status == 0
    assert (copy / "report.html").exists()


def test_period_1_is_the_plain_top_share_of_all_rows(finished):
    directions = load_file(finished / "features/directions.safetensors")["directions"]
    features = np.asarray(FeatureStore(finished / "features").features, np.float64)
    assert len(directions) == 2  # one for each subtask
    scores = (features @ directions.T.astype(np.float64)).max(1)
    best = np.sort(np.argsort(-scores, kind="stable")[:10])
    arrays = load_file(finished / "rounds/1/selection.safetensors")
    np.testing.assert_array_equal(arrays["rows"], best)
    np.testing.assert_allclose(arrays["scores"], scores[best], rtol=1e-6)


def test_training_lowers_the_loss_that_it_is_on(settings, tmp_path):
    """On the target itself, with a high rate: the adapter learns what was selected for it."""
    folder = run(settings, out=tmp_path / "run", holdout=None, lr=2e-2)
    evaluation = read(folder / "evaluation.json")
    assert evaluation["on"] == "target"
    assert evaluation["adapter"]["loss"] < evaluation["base"]["loss"]


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


def test_the_same_seed_gives_the_same_result_bit_for_bit(finished, other):
    assert result(run(other)) == result(finished)


def test_another_seed_gives_another_result(finished, other):
    again = result(run(other, seed=1))
    assert again["adapter/adapter_model.safetensors"] != result(finished)["adapter/adapter_model.safetensors"]


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


def test_a_runs_own_settings_replay_it(finished, tmp_path):
    outcome = clusterucb("run", finished / "config.yaml", "--out", tmp_path / "other", "--quiet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    assert result(tmp_path / "other") == result(finished)


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


def test_a_second_run_loads_no_model(finished, monkeypatch):
    monkeypatch.setattr("clusterucb.run.session.load_model", lambda *_: pytest.fail("loaded"))
    assert clusterucb("run", "--out", finished).status == 0


def test_a_moved_run_directory_is_as_good(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "moved")
    for given in (["--out", copy], [copy / "config.yaml"]):
        outcome = clusterucb("run", *given)
        assert outcome.status == 0, outcome
        assert outcome.out.rstrip().endswith(str(copy))


def test_a_relative_run_directory_works_from_elsewhere(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.parent)
    assert clusterucb("run", "--out", finished.name).status == 0
    monkeypatch.chdir(tmp_path)
    assert clusterucb("run", "--out", finished).status == 0


def test_budget_1_keeps_the_top_share_of_all_rows_by_fresh_influence(settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", budget=1.0, periods=2)
    scored = {
        int(row): score
        for entry in lines(folder / "rounds/2/scores.jsonl")
        for row, score in entry["scores"].items()
    }
    assert sorted(scored) == list(range(100))
    best = sorted(sorted(scored, key=lambda row: (-scored[row], row))[:10])
    assert load_file(folder / "rounds/2/selection.safetensors")["rows"].tolist() == best
    # At the warmup checkpoint fresh influence is the stored one.
    outcome = clusterucb("select", "--out", folder, "--checkpoint", folder / "warmup")
    assert outcome.status == 0, outcome
    there = lines(outcome.out.strip().replace("selected.jsonl", "selected.ids.jsonl"))
    first = lines(folder / "rounds/1/selected.ids.jsonl")
    assert [entry["id"] for entry in there] == [entry["id"] for entry in first]
    np.testing.assert_allclose(
        [entry["score"] for entry in there], [entry["score"] for entry in first], atol=1e-3
    )


def test_one_period_is_one_selection(settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", periods=1)
    assert [path.name for path in (folder / "rounds").iterdir()] == ["1"]
    assert read(folder / "summary.json")["full"]["share_of_pool_gradients"] == 1


def test_two_epochs_a_period_select_once_a_period(finished, settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", epochs_per_period=2, periods=2)
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == ["1", "2"]
    assert read(folder / "summary.json")["steps"]["train"]["rows"] == 2 * 2 * 10


@pytest.fixture
def trained_elsewhere(finished, settings, tmp_path):
    """A Trainer's own checkpoints of the run's adapter, with optimizer.pt."""
    from clusterucb.config import load
    from clusterucb.run.session import Session
    from clusterucb.training.adapter import load_adapter
    from clusterucb.training.data import SwappableRows
    from clusterucb.training.finetune import finetune

    session = Session(load(finished / "config.yaml"))
    load_adapter(session.model, session.dir.initial)
    rows = SwappableRows(session.inputs.training_tokens, np.arange(8))
    finetune(session.model, rows, tmp_path / "states", session.config.training, seed=5, epochs=2)
    return tmp_path / "states" / "checkpoint-4"


def test_select_works_at_our_checkpoints_and_at_a_trainers(finished, trained_elsewhere, tmp_path):
    assert (trained_elsewhere / "optimizer.pt").exists()
    assert not (trained_elsewhere / "moments.safetensors").exists()
    copy = shutil.copytree(finished, tmp_path / "run")
    made = []
    for checkpoint in (copy / "warmup", copy / "adapter", trained_elsewhere):
        outcome = clusterucb("select", "--out", copy, "--checkpoint", checkpoint)
        assert outcome.status == 0, outcome
        path = Path(outcome.out.strip())
        assert len(lines(path)) == 10
        assert read(path.parent / "summary.json")["drawn"] == 20
        made.append(path)
    assert len({path.read_bytes() for path in made}) == 3


def test_checkpoints_of_one_name_are_told_apart(finished, trained_elsewhere, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    namesake = shutil.copytree(copy / "warmup", tmp_path / "elsewhere" / trained_elsewhere.name)
    made = [
        clusterucb("select", "--out", copy, "--checkpoint", checkpoint).out.strip()
        for checkpoint in (trained_elsewhere, namesake, trained_elsewhere)
    ]
    assert made[0] == made[2] != made[1]
    scores = [lines(path.replace("selected.jsonl", "selected.ids.jsonl")) for path in made]
    assert scores[0] != scores[1]


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


def test_tulu_chat_is_another_text(finished, settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", chat="tulu", periods=2)
    tokens = [read(where / "summary.json")["steps"]["gradients"]["tokens"] for where in (finished, folder)]
    assert tokens[0] != tokens[1]


def test_all_linear_layers_can_have_an_adapter(settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", target_modules=["all-linear"], periods=1)
    names = load_file(folder / "adapter/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.parametrize("policy", ["ucb1", "ucb_threshhard", "ucb_threshnormal", "random"])
def test_every_policy_selects(finished, settings, policy, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "config.yaml").unlink()
    given = options(settings, out=copy, policy=policy)
    outcome = clusterucb("select", *given, "--checkpoint", copy / "warmup")
    assert outcome.status == 0, outcome
    assert read(Path(outcome.out.strip()).parent / "summary.json")["drawn"] == 20


def test_other_formula_and_projection(settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", formula="adam", projection="rademacher", periods=2, dim=64)
    assert (folder / "features/features.f16").stat().st_size == 100 * 64 * 2


def test_subtasks_may_be_unequal(settings, tmp_path):
    target = tmp_path / "target.jsonl"
    rows = lines(settings["target"][0])
    sizes = {"a": 1, "b": 4, "c": 1}
    names = [name for name, size in sizes.items() for _ in range(size)]
    mixed = [3, 0, 5, 1, 4, 2]
    target.write_text("".join(json.dumps({**rows[i], "subject": names[i]}) + "\n" for i in mixed))
    folder = run(settings, out=tmp_path / "run", target=[str(target)], periods=2)
    directions = load_file(folder / "features/directions.safetensors")["directions"]
    assert directions.shape == (3, 256)
    norms = np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(norms[[0, 2]], 1, atol=1e-3)  # of one row each
    assert norms[1] < 0.99  # the mean of four


def test_rows_whose_answer_does_not_fit_are_excluded_counted_and_listed(settings, tmp_path):
    pool = tmp_path / "pool.jsonl"
    long = {"role": "assistant", "content": " ".join(["quiz"] * 80)}
    short = {"role": "assistant", "content": "quiz"}
    rows = lines(settings["pool"][0])
    for i, answer in ((4, long), (17, long), (30, short)):
        rows[i] = {"messages": [{"role": "user", "content": " ".join(["lamp"] * 90)}, answer]}
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = clusterucb("run", *options(settings, out=tmp_path / "run", pool=[str(pool)], top_p=0.2))
    assert outcome.status == 0, outcome
    listed = lines(tmp_path / "run/pool/excluded.jsonl")
    assert [row["id"] for row in listed] == ["pool.jsonl:5", "pool.jsonl:18"]
    assert all("does not fit into 48" in row["reason"] for row in listed)
    assert "2 of 60 pool rows cannot be used" in outcome.err
    summary = read(tmp_path / "run/summary.json")
    assert (summary["rows"], summary["excluded"]) == (58, 2)
    assert [found["selected"] for found in summary["selected"]] == [11, 11, 11]  # floor(0.2 * 58)
    selected = {
        entry["id"] for path in (tmp_path / "run").glob("rounds/*/*.ids.jsonl") for entry in lines(path)
    }
    assert not selected & {"pool.jsonl:5", "pool.jsonl:18"}


def test_it_works_from_python_too(finished, settings, tmp_path):
    import clusterucb as package
    from clusterucb.config import load

    session = package.Session(load(None, {**settings, "out": str(tmp_path / "run")}))
    summary = package.dynamic(session)
    assert summary == read(tmp_path / "run/summary.json")
    assert result(tmp_path / "run") == result(finished)
    assert clusterucb("run", tmp_path / "run/config.yaml").status == 0


def test_a_model_in_half_precision(settings, tmp_path):
    folder = run(settings, out=tmp_path / "run", dtype="bfloat16", periods=2)
    assert np.isfinite(read(folder / "evaluation.json")["adapter"]["loss"])


def test_a_model_without_a_template_is_asked_in_tulu(settings, tmp_path):
    build_model().save_pretrained(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", 40, 1)
    folder = run(settings, model=tmp_path / "model", out=tmp_path / "run", periods=1)
    assert read(folder / "summary.json")["rows"] == 100


def test_a_warmup_longer_than_the_pool_counts_every_row_that_it_trains_on(other):
    """120 rows of a pool of 100: all once, and 20 of them again."""
    outcome = clusterucb("warmup", *options(other, warmup_steps=30))
    assert outcome.status == 0, outcome
    cost = read(Path(other["out"]) / "warmup" / "checkpoint.json")["cost"]
    lengths = np.diff(np.load(Path(other["out"]) / "pool" / "offsets.npy"))
    assert cost["rows"] == 120
    assert lengths.sum() + 20 * lengths.min() <= cost["tokens"] <= lengths.sum() + 20 * lengths.max()
