"""The study of what is kept: its selections are the program's, on a tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest
from kept import STATIC, AtWarmup

from clusterucb.config import load
from clusterucb.features.influence import aimed, influence
from clusterucb.run.session import Session
from clusterucb.runtime.screen import Screen
from clusterucb.selection.share import top
from clusterucb.steps.features import gradients
from clusterucb.steps.select import select
from clusterucb.steps.train import warmup

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def study(shared_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")

    def config(_target, out, **more):
        return load(None, {**shared_settings, "features": "words", **more, "out": str(out)})

    return SimpleNamespace(out=folder, screen=Screen(quiet=True), config=config)


@pytest.fixture(scope="module")
def rows(study):
    return AtWarmup(study, "humaneval")


@pytest.mark.parametrize("aim", ["mean", "nearest", "round_robin", "subspace"])
def test_a_static_selection_by_gradients_is_the_first_round_of_a_run(study, rows, aim, tmp_path):
    full = {"bandit": "none", "features": "gradients", "aim": aim}
    session = Session(study.config("", tmp_path / "run", **full), study.screen)
    for step in (warmup, gradients):
        step(session)
    assert rows._selected("gradients", aim).tolist() == select(session).rows.tolist()


def test_every_pair_selects_as_many_rows_and_one_is_trained_on(rows):
    for features, aim in STATIC:
        assert len(set(rows._selected(features, aim).tolist())) == 10
    found = rows.trained("head", "mean")
    assert len(found["losses"]) == 5
    assert found["loss"] == pytest.approx(np.mean(found["losses"]))


def test_gradients_of_the_top_half_of_the_layers_know_nothing_of_the_rest(rows):
    whole, upper = rows.sides("gradients")[0], rows.sides("top")[0]
    assert whole.shape == upper.shape
    assert not np.allclose(whole, upper)
    best = top(influence(upper, aimed("mean", rows.sides("top")[1], rows.codes)), 10)
    assert rows._selected("top", "mean").tolist() == best.tolist()
