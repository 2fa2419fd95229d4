"""Whole runs of a tiny model whose features are gradients of the upper half of its layers."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_featurizer import slow_feature
from tiny_adapters import slow_gradients

from cli_helpers import clusterucb, done, options, read, result
from clusterucb.config import load
from clusterucb.features.drawn import DrawnFeatures
from clusterucb.features.store import FeatureStore
from clusterucb.run.session import Session
from clusterucb.training.adapter import load_adapter

LEFT_OUT = ("config.yaml", "features*", "directions*", "clusters*", "rounds", "adapter", "periods")
ENDS = ("evaluation.json", "summary.json", "report.html")


@pytest.fixture(scope="module")
def top(finished_run, tmp_path_factory):
    """The name of a method to the folder of its run with these features, and to its settings."""

    def go(name, **changes):
        finished = finished_run(name)
        folder = tmp_path_factory.mktemp("top") / "run"
        shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(*LEFT_OUT, *ENDS))
        given = finished.elsewhere(folder, features="top", **changes)
        done("run", *options(given))
        return folder, given

    return go


@pytest.fixture(scope="module")
def linear_ucb(top):
    return top("linear_ucb")


def upper(model, row):
    """The part of the whole gradient that is of the second layer."""
    return {n: g for n, g in slow_gradients(model, row).items() if ".layers.1." in n}


def test_features_and_directions_are_of_the_upper_layers_gradients(linear_ucb, monkeypatch):
    folder, _ = linear_ucb
    session = Session(load(folder / "config.yaml"))
    moments = session.index.checkpoint().moments
    load_adapter(session.model, session.dir.warmup)
    monkeypatch.setattr("test_featurizer.slow_gradients", upper)

    def slow(rows, moments=None):
        found = [slow_feature(session.model, row, session.projection, moments) for row in rows]
        return np.stack(found)

    stored = session.index.store().features[:]
    some = range(0, 100, 7)
    expected = slow([session.inputs.pooled.tokens[row] for row in some], moments)
    np.testing.assert_allclose(stored[np.array(some)], expected, atol=1e-3)
    target, codes = slow(session.inputs.targeted.tokens), session.inputs.targeted.codes
    means = [target[codes == code].mean(0) for code in (0, 1)]
    np.testing.assert_allclose(load_file(session.dir.directions_at(1))["directions"], means, atol=1e-3)


def test_fresh_features_at_the_same_checkpoint_are_the_stored_ones(linear_ucb, tmp_path):
    folder = shutil.copytree(linear_ucb[0], tmp_path / "copy")
    done("select", "--out", folder, "--checkpoint", folder / "warmup")
    stored, seen = FeatureStore(folder / "features").features, 0
    for rows, found in DrawnFeatures(next((folder / "selections").iterdir()) / "1").blocks():
        for row, feature in zip(rows.tolist(), found, strict=True):
            np.testing.assert_allclose(feature, stored[row : row + 1][0], atol=1e-3)
            seen += 1
    assert seen == 20


def test_training_trains_all_layers(linear_ucb):
    folder, _ = linear_ucb
    before, after = (
        load_file(folder / name / "adapter_model.safetensors") for name in ("initial", "adapter")
    )
    moved = {
        int(re.search(r"layers\.(\d)", name)[1]) for name in after if (before[name] != after[name]).any()
    }
    assert moved == {0, 1}


def test_its_price_is_three_quarters_of_a_gradient_of_all_layers(linear_ucb):
    summary = read(linear_ucb[0] / "summary.json")
    selecting = [
        cost for step, cost in summary["steps"].items() if step.split()[0] in ("gradients", "select")
    ]
    tokens, bill = sum(cost["tokens"] for cost in selecting), summary["bill"]
    passes = 0.75 * tokens / bill["one_pass"]["tokens"]
    assert bill["parts"]["selecting"]["passes"] == pytest.approx(passes, abs=1e-4)
    assert [cost["pool_gradients"] for cost in selecting] == [100, 0, 20, 20]


def test_a_plan_has_the_price_of_the_run(linear_ucb):
    folder, _ = linear_ucb
    shown = done("plan", "--out", folder, "--json", "--tokens-per-second", "1000")
    planned, summary = json.loads(shown.out), read(folder / "summary.json")
    step = planned["steps"]["gradients"]
    assert step["seconds"] == pytest.approx(0.75 * step["tokens"] / 1000, abs=1e-3)
    assert planned["bill"]["passes"] == pytest.approx(summary["bill"]["passes"], rel=0.1)
    assert planned["bill"]["score_all"]["passes"] == pytest.approx(
        summary["bill"]["score_all"]["passes"], rel=0.1
    )


def test_features_of_another_kind_are_refused_with_both_named(linear_ucb, finished_run, tmp_path):
    folder, given = linear_ucb
    said = clusterucb("run", *options(given, features="gradients")).complaint
    assert said.startswith("features: this run directory was made with 'top'")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("features", "rounds", "adapter"):
        shutil.rmtree(copy / name)
    shutil.copytree(finished_run("linear_ucb").folder / "features", copy / "features")
    said = clusterucb("select", "--out", copy).complaint
    assert "was made with features 'gradients', this run has 'top'" in said
    said = clusterucb(
        "select", *options(given, features="gradients", index=folder, out=tmp_path / "run")
    ).complaint
    assert said.startswith("features: the index was made with 'top'")


@pytest.mark.whole
def test_a_budget_of_all_rows_selects_what_is_selected_without_a_bandit(top):
    budgeted, _ = top("linear_ucb", budget=1.0)
    every, _ = top("dynamic")
    for number in (1, 2, 3):
        ours, theirs = (
            load_file(folder / f"rounds/{number}/selection.safetensors") for folder in (budgeted, every)
        )
        np.testing.assert_array_equal(ours["rows"], theirs["rows"])
        np.testing.assert_array_equal(ours["scores"], theirs["scores"])


@pytest.mark.whole
def test_less_takes_them_too_with_a_bandit_and_without(top):
    full, _ = top("less")
    budgeted, _ = top("less_clusterucb", budget=1.0)
    ours, theirs = (load_file(folder / "rounds/1/selection.safetensors") for folder in (budgeted, full))
    assert ours["rows"].tolist() == theirs["rows"].tolist()
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-3)
    told = FeatureStore(full / "features-2").manifest["made_with"]
    assert told["features"] == "top"


@pytest.mark.whole
def test_it_is_the_same_run_step_by_step(linear_ucb, tmp_path):
    folder, given = linear_ucb
    for step in ("warmup", "gradients", "cluster", "select", "train", "evaluate"):
        done(
            step, *(options(given, out=tmp_path / "run") if step == "warmup" else ["--out", tmp_path / "run"])
        )
    assert result(tmp_path / "run") == result(folder)


def test_an_adapter_without_upper_layers_is_refused_before_anything_is_trained(
    run_settings, finished_run, tmp_path
):
    from peft import LoraConfig, get_peft_model

    from builders import build_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    model = get_peft_model(build_model(), LoraConfig(**settings, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "lower")
    own = {"rank": None, "alpha": None, "adapter": tmp_path / "lower", "features": "top"}
    said = clusterucb("run", *options(run_settings, **own, out=tmp_path / "run")).complaint
    assert said.startswith("features top: no adapter is in the upper half of the model's 2 layers")
    assert not (tmp_path / "run/warmup").exists()
