"""Selecting once where the pool has the task itself, which features without gradients show."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_helpers import done, options, read
from clusterucb.features.influence import has_own_rows
from clusterucb.features.store import FeatureStore


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def around(rng, centre, count, spread=0.1):
    """Rows of one kind."""
    return unit(centre + spread * rng.standard_normal((count, len(centre)))).astype(np.float32)


@pytest.fixture
def kinds():
    rng = np.random.default_rng(0)
    return rng, unit(rng.standard_normal((3, 32)))


def asked(pool, *targets, block=7):
    means, counts = np.stack([rows.mean(0) for rows in targets]), np.array([len(rows) for rows in targets])
    return has_own_rows(pool, means, counts, block)


def test_a_mean_tells_how_alike_its_rows_are(kinds):
    rng, (own, *_) = kinds
    rows = around(rng, own, 9)
    among = (rows @ rows.T)[~np.eye(9, dtype=bool)].mean()
    direction = rows.mean(0)
    just = np.array([direction / np.linalg.norm(direction)]) * among / np.linalg.norm(direction)
    for factor, expected in ((1 + 1e-5, True), (1 - 1e-5, False)):
        assert asked((factor * just).astype(np.float64), rows) is expected


@pytest.mark.parametrize("seed", range(10))
def test_ten_rows_of_the_task_among_a_thousand_are_seen_and_near_ones_are_not_taken_for_them(kinds, seed):
    _, (own, other, _) = kinds
    rng = np.random.default_rng(seed)
    target, far = around(rng, own, 12, 0.05), around(rng, other, 700)
    near = around(rng, own + other, 300, 0.05)  # at a cosine of 0.7
    pool = np.concatenate([far, near])
    assert not asked(pool, target)
    assert asked(rng.permutation(np.concatenate([pool, around(rng, own, 10, 0.05)])), target)


def test_every_subtask_has_to_be_there_and_a_single_row_tells_nothing(kinds):
    rng, (first, second, _) = kinds
    one, two = around(rng, first, 6), around(rng, second, 6)
    pool = around(rng, first, 20)
    assert asked(pool, one)
    assert not asked(pool, one, two)
    assert asked(np.concatenate([pool, around(rng, second, 20)]), one, two)
    assert not asked(pool, one[:1])


def finished(settings, out, target, **more):
    """A run for these rows as its target, over hidden states."""
    path = out.with_suffix(".jsonl")
    path.write_bytes(b"".join(target))
    own = {"features": "hidden", "policy": "linear_ucb", "keep": "auto", "target": path, "subtask": None}
    done("run", *options({**settings, **own, **more, "out": out}))
    return out


def told(out):
    """What the stored features tell of six target rows, the slow way."""
    features = np.asarray(FeatureStore(out / "features").features[:], np.float64)
    direction = load_file(out / "directions/1.safetensors")["directions"][0].astype(np.float64)
    return bool((features @ direction >= (6 * (direction @ direction) - 1) / 5).any())


@pytest.mark.whole
def test_a_run_selects_once_where_its_target_is_in_the_pool_and_anew_elsewhere(run_settings, tmp_path):
    pool = Path(run_settings["pool"][0]).read_bytes().splitlines(keepends=True)
    own = finished(run_settings, tmp_path / "own", pool[:6])
    assert told(own)
    assert [folder.name for folder in (own / "rounds").iterdir()] == ["1"]
    assert len(read(own / "summary.json")["selected"]) == 1
    shutil.rmtree(own / "features")  # what a finished training has no more use for
    done("train", "--out", own)
    same = finished(run_settings, tmp_path / "same", pool[:6], keep="static")
    ours, theirs = (load_file(out / "adapter/adapter_model.safetensors") for out in (own, same))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)

    strange = [
        {"prompt": ("quiz " * (5 + i)).strip(), "completion": ("zoo " * (20 - i)).strip()} for i in range(6)
    ]
    lines = [f"{json.dumps(row)}\n".encode() for row in strange]
    elsewhere = finished(run_settings, tmp_path / "elsewhere", lines)
    assert not told(elsewhere)
    assert len([*(elsewhere / "rounds").iterdir()]) == 3
