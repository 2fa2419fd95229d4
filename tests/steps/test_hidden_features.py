"""Runs of dynamic whose clusters are of hidden states: no row's gradient is taken before one is drawn."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from step_helpers import going_on
from test_rds import slow_representation

from cli_helpers import clusterucb, done, options, read
from clusterucb.config import load
from clusterucb.errors import InputError
from clusterucb.features.influence import stored_influence
from clusterucb.run.session import Session
from clusterucb.steps.hidden import centred
from clusterucb.training.adapter import load_adapter
from file_helpers import write


@pytest.fixture(scope="module")
def hidden(finished_run):
    return finished_run("clusterucb_hidden")


def test_the_first_round_is_drawn_at_the_warmup_checkpoint_as_later_ones_are(hidden, tmp_path):
    """Selecting there once more, as at any checkpoint, gives its rows."""
    copy = shutil.copytree(hidden.folder, tmp_path / "copy")
    outcome = done("select", "--out", copy, "--checkpoint", copy / "warmup")
    again = Path(outcome.out.strip()).parent
    for name in ("selected.jsonl", "selected.ids.jsonl", "draws.jsonl"):
        assert (again / name).read_bytes() == (hidden.folder / "rounds/1" / name).read_bytes()


def test_features_are_hidden_states_at_the_warmup_checkpoint_without_their_mean(hidden):
    """At two thirds of the two layers: of the first."""
    session = Session(load(hidden.folder / "config.yaml"))
    stored = session.index.store().features

    def expected(checkpoint):
        load_adapter(session.model, checkpoint)
        pool, target = (
            np.stack([slow_representation(session.model, row, layer=1) for row in rows])
            for rows in (session.inputs.pooled.tokens, session.inputs.targeted.tokens)
        )
        apart = [rows - pool.mean(0) for rows in (pool, target)]
        return pool, *(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in apart)

    found = np.asarray(stored, np.float64)
    assert found.shape == (100, 32)
    raw, pool, target = expected(session.dir.warmup)
    np.testing.assert_allclose(found, pool, atol=1e-3)  # kept as float16
    before = expected(session.dir.initial)[1]
    assert np.abs(found - before).mean() > 2 * np.abs(found - pool).mean()
    off = ~np.eye(100, dtype=bool)
    assert abs((found @ found.T)[off].mean()) < 0.02 < (raw @ raw.T)[off].mean()
    codes = session.inputs.targeted.codes
    means = np.stack([target[codes == code].mean(0) for code in (0, 1)])
    aims = load_file(hidden.folder / "directions/1.safetensors")["directions"]
    np.testing.assert_allclose(aims, means, atol=5e-3)
    # What is known of a row before it is drawn: its mean cosine to the rows of the subtask it is most like.
    by_subtask = [(pool @ target[codes == code].T).mean(1) for code in (0, 1)]
    np.testing.assert_allclose(stored_influence(stored, aims), np.max(by_subtask, axis=0), atol=5e-3)


@pytest.mark.parametrize("dtype", ["int8", "1bit"])
def test_they_are_kept_in_less_room_if_asked(hidden, dtype, tmp_path):
    copy = tmp_path / "run"
    given = going_on(hidden, copy, "features", "clusters.*", store_dtype=dtype)
    for step in ("gradients", "cluster", "select"):
        done(step, *given)
    kept = sum(path.stat().st_size for path in (copy / "features").glob("features.*"))
    assert kept < (hidden.folder / "features/features.f16").stat().st_size
    assert not (copy / "features/uncentred").exists()


@pytest.mark.parametrize(
    ("name", "made", "now"),
    [
        ("clusterucb", "gradients", "hidden"),
        ("clusterucb", "gradients", "top"),
        ("clusterucb_hidden", "hidden", "gradients"),
    ],
)
def test_features_of_another_kind_are_refused_with_both_named(finished_run, tmp_path, name, made, now):
    copy = tmp_path / "copy"
    assert clusterucb("select", *going_on(finished_run(name), copy, features=now)).complaint == (
        f"{copy / 'features'} was made with features {made!r}, this run has {now!r}; "
        f"use another run directory, or delete {copy / 'features'} to make it again"
    )


@pytest.mark.parametrize(
    ("changes", "method"),
    [({"bandit": "none"}, "dynamic with bandit none"), ({"method": "less"}, "less with bandit clusterucb")],
)
def test_methods_that_take_all_gradients_anyway_refuse_it(hidden, changes, method, tmp_path):
    out = tmp_path / "run"
    assert clusterucb("run", *options(hidden.elsewhere(out, **changes))).complaint.endswith(
        f"features hidden: method {method} takes the gradients of all rows anyway; "
        "use --features gradients, or --method dynamic with --bandit clusterucb"
    )
    assert not out.exists()
    given = options(hidden.elsewhere(out, method="random"))  # a baseline does not mind
    assert clusterucb("cluster", *given).complaint.startswith("method random has no step cluster")


def test_rows_that_are_all_alike_have_no_direction(hidden, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [{"prompt": "lamp", "completion": "red sun"}] * 12)
    said = clusterucb(
        "run", *options(hidden.elsewhere(tmp_path / "run", pool=pool, k=2, budget=0.5))
    ).complaint
    assert said == (
        "pool.jsonl:1: its features are the mean of the pool's, expected rows that differ; use "
        "--method dynamic with --features gradients, or a pool of more rows"
    )


def test_what_all_rows_have_in_common_does_not_matter():
    rows = np.random.default_rng(0).normal(size=(6, 4))
    mean = rows.mean(0)
    found = centred(rows, mean)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_allclose(centred(rows + 100, mean + 100), found, atol=1e-12)
    with pytest.raises(InputError, match=r"^row 2: its features are the mean of the pool's"):
        centred(rows, rows[2])


def test_the_report_and_the_simulation_read_them(hidden, tmp_path):
    page = (hidden.folder / "report.html").read_text()
    assert f"{read(hidden.folder / 'summary.json')['bill']['passes']:.2f} passes over the pool" in page
    assert "centred hidden states" in page
    assert "likeness to the target" in page
    assert "draws, period 1" in page
    assert "Method dynamic with the bandit, clusters of hidden states, model" in page
    done("simulate", hidden.folder, "--budgets", "0.2", "--out", tmp_path / "simulated")
