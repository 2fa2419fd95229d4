"""The whole procedure on a tiny model, by its command."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import clusterucb as package
from builders import build_model, build_tokenizer, sentence
from cli_helpers import clusterucb, done, lines, options, read, result
from clusterucb.config import load
from clusterucb.features.store import FeatureStore
from clusterucb.run.presets import PRESETS
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.steps.evaluate import evaluate_adapters
from clusterucb.steps.train import train_on
from clusterucb.training.adapter import load_adapter
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import finetune
from file_helpers import write
from forks import publication

STEPS = ("warmup", "gradients", "cluster", "select", "train", "evaluate")
ARTIFACTS = [
    *("config.yaml", "pool/excluded.jsonl", "features/features.f16", "directions/1.safetensors"),
    *("clusters.safetensors", "adapter/adapter_config.json", "periods/1.json", "periods/2.json"),
    *("evaluation.json", "summary.json", "report.html"),
    *(f"{name}/adapter_model.safetensors" for name in ("initial", "warmup", "adapter")),
    *(f"{name}/moments.safetensors" for name in ("warmup", "adapter")),
    *(
        f"rounds/{n}/{name}"
        for n in (1, 2, 3)
        for name in ("selected.jsonl", "selected.ids.jsonl", "draws.jsonl", "summary.json")
    ),
]


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


def same_adapter(*folders):
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_run_makes_every_artifact(finished):
    assert [name for name in ARTIFACTS if not (finished / name).is_file()] == []
    assert list(finished.rglob("*.part")) == []
    assert not (finished / "training").exists()
    assert not (finished / "warmup.states").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_selected_lines_are_the_inputs_bytes_in_pool_order_and_the_sidecar_tells_of_each(finished_run, name):
    finished = finished_run(name)
    files = {Path(path).name: Path(path).read_bytes().splitlines(True) for path in finished.settings["pool"]}
    pool = [line for content in files.values() for line in content]
    clusters = finished.folder / "clusters.safetensors"
    labels = load_file(clusters)["labels"] if clusters.exists() else np.zeros(100)
    for folder in (finished.folder / "rounds").iterdir():
        selected = (folder / "selected.jsonl").read_bytes().splitlines(True)
        arrays = load_file(folder / "selection.safetensors")
        rows = arrays["rows"].tolist()
        assert selected == [pool[row] for row in rows]
        assert len(rows) == 10  # floor(0.1 * 100)
        assert rows == sorted(set(rows))
        sidecar = lines(folder / "selected.ids.jsonl")
        assert [entry["score"] for entry in sidecar] == arrays["scores"].tolist()
        for line, entry, row in zip(selected, sidecar, rows, strict=True):
            file, number = entry["id"].rsplit(":", 1)
            assert files[file][int(number) - 1] == line
            assert (entry["cluster"], entry["round"]) == (labels[row], int(folder.name))
            assert entry["source"] == file.removesuffix(".jsonl")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("clusterucb", 2), ("clusterucb", 3), ("clusterucb_hidden", 1), ("clusterucb_hidden", 2)),
        ("less_clusterucb", 1),
    ],
)
def test_a_drawn_round_spends_its_budget_exactly_and_keeps_the_best_of_its_draws(finished_run, name, number):
    folder = finished_run(name).folder / f"rounds/{number}"
    draws = lines(folder / "draws.jsonl")
    ids = [row for draw in draws for row in draw["ids"]]
    assert len(ids) == len(set(ids)) == read(folder / "summary.json")["drawn"] == 20  # floor(0.2 * 100)
    assert any(draw["cold"] for draw in draws)
    logged = [row for entry in lines(folder / "scores.jsonl") for row in entry["scores"]]
    assert len(logged) == len(set(logged)) == 20
    kept = lines(folder / "selected.ids.jsonl")
    assert {entry["id"] for entry in kept} <= set(ids)
    scores = sorted((score for draw in draws for score in draw["scores"]), reverse=True)
    assert sorted((entry["score"] for entry in kept), reverse=True) == scores[:10]


ALONE = ("linear_ucb", "linear_ucb_hidden", "linear_ucb_words", "head", "loss_highest", "loss_lowest")
"""Methods whose run is made for one or two cases here."""


def by_method(*cases):
    """Cases that begin with a method's name, whole where its run is made for them."""
    return [pytest.param(*case, marks=[pytest.mark.whole] * (case[0] in ALONE)) for case in cases]


@pytest.mark.parametrize(
    ("name", "number"),
    by_method(("dynamic", 2), ("less", 1), ("bm25", 1), ("loss_lowest", 1), ("random", 1)),
)
def test_where_all_rows_are_scored_the_best_of_all_are_kept(finished_run, name, number):
    """In `drawn` they come by score, of equal scores the first."""
    folder = finished_run(name).folder / f"rounds/{number}"
    found = load_file(folder / "selection.safetensors")
    assert sorted(found["drawn"].tolist()) == list(range(100))
    assert (np.diff(found["drawn_scores"]) <= 0).all()
    assert found["rows"].tolist() == sorted(found["drawn"][:10].tolist())
    assert {entry["cluster"] for entry in lines(folder / "selected.ids.jsonl")} == {0}
    assert lines(folder / "draws.jsonl") == []


COUNTED = ("pool_gradients", "target_gradients", "pool_forwards")
COUNTS = [  # rows drawn in each round, what is counted, and steps between warmup and selection
    ("clusterucb", [100, 20, 20], (140, 18, 0), "gradients cluster"),
    ("clusterucb_hidden", [20, 20, 20], (60, 18, 100), "gradients cluster"),
    ("linear_ucb", [100, 20, 20], (140, 18, 0), "gradients cluster"),
    ("linear_ucb_hidden", [20, 20, 20], (60, 18, 100), "gradients cluster"),
    ("linear_ucb_words", [0, 20, 20], (40, 12, 0), "gradients cluster"),
    ("dynamic", [100, 100, 100], (300, 18, 0), "gradients"),
    ("less_clusterucb", [20], (140, 18, 0), "gradients cluster"),
    ("less", [100], (300, 18, 0), "gradients gradients_2 gradients_3"),
    ("rds", [100], (0, 0, 100), ""),
    ("head", [100], (0, 0, 100), ""),
    ("bm25", [100], (0, 0, 0), ""),
    ("loss_highest", [100], (0, 0, 100), ""),
    ("random", [100], (0, 0, 0), ""),
]


@pytest.mark.parametrize(("name", "drawn", "counts", "features"), by_method(*COUNTS))
def test_the_summary_counts_what_was_computed(finished_run, name, drawn, counts, features):
    folder = finished_run(name).folder
    summary = read(folder / "summary.json")
    steps, total = summary["steps"], summary["total"]
    assert [found["drawn"] for found in summary["selected"]] == drawn
    assert tuple(total[key] for key in COUNTED) == counts
    for key in ("rows", "tokens", *COUNTED):
        assert total[key] == sum(step[key] for step in steps.values())
    assert total["seconds"] == pytest.approx(sum(step["seconds"] for step in steps.values()), abs=1e-2)
    warmups = sorted(path.name.replace("-", " ") for path in folder.glob("warmup*"))
    selections = [f"select {n}" for n in range(1, len(drawn) + 1)]
    between = [step.replace("_", " ") for step in features.split()]
    assert [*steps] == [*warmups, *between, *selections, "train", "evaluate"]
    assert (summary["rows"], summary["excluded"]) == (100, 0)
    assert (steps["train"]["rows"], steps["evaluate"]["rows"]) == (3 * 10, 2 * 5 + 2 * 5)


@pytest.mark.parametrize("name", by_method(*((name,) for name, *_ in COUNTS)))
def test_the_bill_counts_every_token_of_every_step(finished_run, name):
    """Forward alone as 1/3; and scoring all rows adds their gradients, and the target's, each time."""
    summary = read(finished_run(name).folder / "summary.json")
    bill, steps = summary["bill"], summary["steps"]
    tokens = sum(
        cost["tokens"] / (3 if cost["pool_forwards"] or step == "evaluate" else 1)
        for step, cost in steps.items()
    )
    one = bill["one_pass"]["tokens"]
    assert bill["passes"] == pytest.approx(tokens / one, abs=1e-3)
    assert bill["passes"] == pytest.approx(sum(part["passes"] for part in bill["parts"].values()), abs=1e-3)
    assert bill["seconds"] == pytest.approx(summary["total"]["seconds"], abs=1e-2)
    if not summary["bill"]["score_all"]:
        assert not any(step.startswith("warmup") for step in steps)
        return
    selecting = bill["parts"]["selecting"]["passes"]
    scored = bill["score_all"]["passes"] - (bill["passes"] - selecting)
    assert 3 < scored < 4
    if name in ("dynamic", "less"):
        assert scored == pytest.approx(selecting, abs=1e-3)


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


def test_from_python_it_is_the_same(finished, settings, tmp_path):
    session = package.Session(load(finished / "config.yaml", {"out": str(tmp_path / "run")}))
    assert package.dynamic(session) == read(tmp_path / "run/summary.json")
    assert result(tmp_path / "run") == result(finished)
    assert clusterucb("run", tmp_path / "run/config.yaml", "-q") == (0, "", "")


def test_another_seed_gives_another_adapter(finished, other):
    done("warmup", *options(other, seed=1))
    assert not same_adapter(Path(other["out"]) / "warmup", finished / "warmup")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clusterucb", "Scoring all rows at every selection (3 times) instead:"),
        ("less", "Scoring all rows at every selection (3 times) instead:"),
        ("rds", "selecting 0.3"),
        ("random", "Training for as many steps on any rows, without selecting:"),
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


@pytest.mark.parametrize(
    ("name", "step", "reason"),
    [
        *((name, "cluster", "as without a bandit no clusters are needed") for name in ("less", "dynamic")),
        *(("bm25", step, "as it needs no gradient") for step in ("warmup", "gradients")),
    ],
)
def test_a_step_that_a_method_does_not_have_says_so(finished_run, name, step, reason):
    folder = finished_run(name).folder
    said = clusterucb(step, "--out", folder).complaint
    assert said.startswith(f"method {name} has no step {step} with bandit ")
    assert said.endswith(f", {reason}: go on with `clusterucb select --out {folder}`")


def test_a_run_directory_is_found_when_it_has_moved_and_by_a_relative_path(copy, tmp_path, monkeypatch):
    for given in (["--out", copy], [copy / "config.yaml"]):
        assert done("run", *given).out.rstrip().endswith(f"{copy}/report.html")
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


def test_the_loss_after_a_period_is_that_of_the_model_then(server, finished, other):
    """The adapter that the trainer saved there, from where it is killed, is evaluated as any is."""
    session = Session(load(finished / "config.yaml"))
    for period, step in ((1, 3), (2, 6)):
        server.dies(["run", *options(other)], publication(f"training/checkpoint-{step}/whole.json", "after"))
        saved = Path(other["out"]) / f"training/checkpoint-{step}"
        loss = read(finished / f"periods/{period}.json")
        assert evaluate_adapters(session, {"saved": saved})["saved"]["losses"] == loss["losses"]
        assert (loss["on"], loss["rows"], loss["cost"]["rows"]) == ("holdout", 5, 5)


def test_the_losses_after_periods_change_nothing_that_is_trained(finished_run, tmp_path):
    random = finished_run("random").folder
    session = Session(load(random / "config.yaml"))
    train_on(session, read_round(random / "rounds/1").rows, tmp_path / "adapter", watched=False)
    assert same_adapter(tmp_path / "adapter", random / "adapter")
    assert (random / "periods/1.json").exists()


def test_select_works_at_our_checkpoints_and_at_a_trainers_and_tells_namesakes_apart(
    finished, copy, tmp_path
):
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


def test_a_run_can_go_on_from_an_existing_adapter(finished, other):
    given = options(other, adapter=finished / "adapter", rank=None, alpha=None, periods=1)
    assert done("run", *given).err.count("load ") == 1
    folder = Path(other["out"])
    assert same_adapter(folder / "initial", finished / "adapter")
    assert not same_adapter(folder / "adapter", finished / "adapter")
    was = read(finished / "evaluation.json")["adapter"]["losses"]
    assert read(folder / "evaluation.json")["base"]["losses"] == pytest.approx(was, rel=1e-5)


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
    assert ours["total"]["pool_gradients"] == ours["bill"]["score_all"]["times"] * ours["rows"]
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


@pytest.mark.whole
def test_a_chat_of_two_turns_under_qwens_template_runs_with_the_defaults(tmp_path):
    """Nothing else is set, but a short warmup to save time; the answers of all turns are learnt."""
    template = Path(pytest.importorskip("trl").__file__).with_name("chat_templates") / "qwen3.jinja"
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    tokenizer.chat_template = template.read_text()
    for part in (build_model(layers=1), tokenizer):
        part.save_pretrained(tmp_path / "model")
    turns = ("user", "assistant") * 2
    rows = [
        {"messages": [{"role": role, "content": sentence(rng, 1, 6)} for role in turns]} for _ in range(46)
    ]
    pool, target = write(tmp_path / "pool.jsonl", rows[:40]), write(tmp_path / "target.jsonl", rows[40:])
    out = tmp_path / "run"
    given = {"model": tmp_path / "model", "pool": pool, "target": target, "out": out}
    done("run", *options(given, warmup_steps=1))
    assert lines(out / "pool/excluded.jsonl") == []
    assert lines(out / "rounds/1/selected.jsonl")
    assert (out / "adapter/adapter_model.safetensors").exists()
    tokens = Session(load(out / "config.yaml")).inputs.pooled.tokens[0]
    learnt = tokenizer.decode(tokens.ids[tokens.labels])
    assert learnt == "".join(f"{rows[0]['messages'][turn]['content']}<|im_end|>" for turn in (1, 3))
