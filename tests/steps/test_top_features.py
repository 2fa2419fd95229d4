"""Whole runs of a tiny model whose features are gradients of the upper half of its layers."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from step_helpers import going_on, selection
from test_featurizer import slow_feature
from tiny_adapters import adapter

from cli_helpers import clusterucb, done, options, read
from clusterucb.config import load
from clusterucb.features.drawn import DrawnFeatures
from clusterucb.features.store import FeatureStore
from clusterucb.run.session import Session
from clusterucb.training.adapter import load_adapter


@pytest.fixture(scope="module")
def top(finished_run, tmp_path_factory):
    """The name of a method to the folder of its run with these features."""

    def go(name, **changes):
        folder = tmp_path_factory.mktemp("top") / "run"
        anew = ("features*", "directions*", "clusters*")
        done("run", *going_on(finished_run(name), folder, *anew, features="top", **changes))
        return folder

    return go


@pytest.fixture(scope="module")
def linear_ucb(top):
    return top("linear_ucb")


def test_features_and_directions_are_of_the_upper_layers_gradients(linear_ucb):
    session = Session(load(linear_ucb / "config.yaml"))
    moments = session.index.checkpoint().moments
    load_adapter(session.model, session.dir.warmup)

    def slow(rows, moments=None):
        of = {"moments": moments, "of": lambda name: ".layers.1." in name}
        return np.stack([slow_feature(session.model, row, session.projection, **of) for row in rows])

    stored, some = session.index.store().features[:], range(0, 100, 7)
    expected = slow([session.inputs.pooled.tokens[row] for row in some], moments)
    np.testing.assert_allclose(stored[some], expected, atol=1e-3)
    target, codes = slow(session.inputs.targeted.tokens), session.inputs.targeted.codes
    means = [target[codes == code].mean(0) for code in (0, 1)]
    np.testing.assert_allclose(load_file(session.dir.directions_at(1))["directions"], means, atol=1e-3)


def test_fresh_features_at_the_same_checkpoint_are_the_stored_ones(linear_ucb, tmp_path):
    folder = shutil.copytree(linear_ucb, tmp_path / "copy")
    done("select", "--out", folder, "--checkpoint", folder / "warmup")
    stored, seen = FeatureStore(folder / "features").features, 0
    for rows, found in DrawnFeatures(next((folder / "selections").iterdir()) / "1").blocks():
        np.testing.assert_allclose(found, stored[:][rows], atol=1e-3)
        seen += len(rows)
    assert seen == 20


def test_its_price_is_three_quarters_of_a_gradient_of_all_layers_in_the_run_and_in_its_plan(linear_ucb):
    summary = read(linear_ucb / "summary.json")
    steps, bill = summary["steps"], summary["bill"]
    selecting = [steps[name] for name in ("gradients", "select 1", "select 2", "select 3")]
    passes = 0.75 * sum(cost["tokens"] for cost in selecting) / bill["one_pass"]["tokens"]
    assert bill["parts"]["selecting"]["passes"] == pytest.approx(passes, abs=1e-4)
    assert [cost["pool_gradients"] for cost in selecting] == [100, 0, 20, 20]
    planned = json.loads(done("plan", "--out", linear_ucb, "--json", "--tokens-per-second", "1000").out)
    step = planned["steps"]["gradients"]
    assert step["seconds"] == pytest.approx(0.75 * step["tokens"] / 1000, abs=1e-3)
    for ours, theirs in ((planned["bill"], bill), (planned["bill"]["score_all"], bill["score_all"])):
        assert ours["passes"] == pytest.approx(theirs["passes"], rel=0.1)


def test_a_budget_of_all_rows_selects_what_is_selected_without_a_bandit(top):
    folders = top("linear_ucb", budget=1.0), top("dynamic")
    for number in (1, 2, 3):
        ours, theirs = (selection(folder, number) for folder in folders)
        np.testing.assert_array_equal(ours["rows"], theirs["rows"])
        np.testing.assert_array_equal(ours["scores"], theirs["scores"])


def test_less_takes_them_too_with_a_bandit_and_without(top):
    full = top("less")
    ours, theirs = selection(top("less_clusterucb", budget=1.0), 1), selection(full, 1)
    assert ours["rows"].tolist() == theirs["rows"].tolist()
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-3)
    assert FeatureStore(full / "features-2").manifest["made_with"]["features"] == "top"


def test_an_adapter_without_upper_layers_is_refused_before_anything_is_trained(run_settings, tmp_path):
    adapter(layers_to_transform=[0]).save_pretrained(tmp_path / "lower")
    own = {"rank": None, "alpha": None, "adapter": tmp_path / "lower", "features": "top"}
    said = clusterucb("run", *options(run_settings, **own, out=tmp_path / "run")).complaint
    assert said.startswith("features top: no adapter is in the upper half of the model's 2 layers")
    assert not (tmp_path / "run/warmup").exists()
