"""Rows of the task itself, which features without gradients show in a pool, stay."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_helpers import done, options
from clusterucb.config import load
from clusterucb.features.influence import own_rows
from clusterucb.run.session import Session


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def around(rng, centre, count, spread=0.1):
    """Rows of one kind."""
    return unit(centre + spread * rng.standard_normal((count, len(centre)))).astype(np.float32)


@pytest.fixture
def kinds():
    rng = np.random.default_rng(0)
    return rng, unit(rng.standard_normal((3, 32)))


def found(pool, *targets, block=7):
    """Places of the pool's rows that are of these targets themselves."""
    means, counts = np.stack([rows.mean(0) for rows in targets]), np.array([len(rows) for rows in targets])
    return np.flatnonzero(own_rows(pool, means, counts, block)[0]).tolist()


def test_a_row_as_near_as_the_tasks_rows_shows_the_task_and_those_three_quarters_as_near_are_its(kinds):
    rng, (own, *_) = kinds
    rows = around(rng, own, 9)
    among = (rows @ rows.T)[~np.eye(9, dtype=bool)].mean()
    direction = rows.mean(0).astype(np.float64)
    just = direction * among / (direction @ direction)
    more, less = 1 + 1e-5, 1 - 1e-5
    assert found(np.outer([0.1, more, 0.75 * more, 0.75 * less], just), rows) == [1, 2]
    assert found(np.outer([0.1, less, 0.75 * more, 0.75 * less], just), rows) == []


def test_a_task_is_far_if_no_row_has_three_quarters_of_what_its_rows_have_among_themselves(kinds):
    rng, (own, other, third) = kinds
    rows, unlike = around(rng, own, 9), np.stack([own, -own, third, -third])
    direction = rows.mean(0).astype(np.float64)
    at = direction * (rows @ rows.T)[~np.eye(9, dtype=bool)].mean() / (direction @ direction)

    def near(pool, *targets):
        means = np.stack([target.mean(0) for target in targets])
        return own_rows(pool, means, np.array([*map(len, targets)]), 7)[1]

    assert near(np.outer([0.1, 0.76], at), rows)
    assert not near(np.outer([0.1, 0.74], at), rows)
    assert near(np.outer([0.1, 0.76], at), around(rng, other, 9), rows)
    assert near(np.outer([0.1, 0.1], at), unlike)
    assert near(np.outer([0.1, 0.1], at), rows[:1])


@pytest.mark.parametrize("seed", range(10))
def test_ten_rows_of_the_task_among_a_thousand_are_found_and_near_ones_are_not_taken_for_them(kinds, seed):
    _, (own, other, _) = kinds
    rng = np.random.default_rng(seed)
    target, far = around(rng, own, 12, 0.05), around(rng, other, 700)
    near = around(rng, own + 3**0.5 * other, 300, 0.05)  # at a cosine of a half
    pool = np.concatenate([far, near])
    assert found(pool, target) == []
    order = rng.permutation(1010)
    assert found(np.concatenate([pool, around(rng, own, 10, 0.05)])[order], target) == [
        place for place, row in enumerate(order) if row >= 1000
    ]


def test_each_subtask_has_its_own_rows_and_a_single_row_or_unlike_ones_tell_nothing(kinds):
    rng, (first, second, third) = kinds
    one, two = around(rng, first, 6), around(rng, second, 6)
    pool = np.concatenate([around(rng, first, 20), around(rng, third, 5)])
    assert found(pool, one) == found(pool, one, two) == found(pool, two[:1], one) == [*range(20)]
    assert found(np.concatenate([pool, around(rng, second, 2)]), one, two) == [*range(20), 25, 26]
    assert found(pool, one[:1]) == found(pool, np.stack([first, -first, third, -third])) == []


def strange(seeds):
    """Lines of rows of the same few words, which no other row has, in different orders."""
    words = ["quiz", "zoo", "vex", "jam"] * 4
    texts = (" ".join(np.random.default_rng(seed).permutation(words)) for seed in seeds)
    return [f"{json.dumps({'prompt': text[:30], 'completion': text[30:]})}\n".encode() for text in texts]


def finished(settings, out, extra=(), **more):
    """A run for six strange rows, over hidden states of the pool and of `extra` rows."""
    target, pool = out.with_suffix(".target.jsonl"), out.with_suffix(".pool.jsonl")
    target.write_bytes(b"".join(strange(range(6))))
    pool.write_bytes(b"".join([Path(path).read_bytes() for path in settings["pool"]] + [*extra]))
    files = {"target": target, "pool": pool, "subtask": None}
    own = {"features": "hidden", "policy": "linear_ucb", "keep": "auto", **files}
    done("run", *options({**settings, **own, **more, "out": out}))
    return out


def told(out):
    """What the stored features tell of six target rows, the slow way: the task's, and if any is near."""
    session = Session(load(out / "config.yaml", {"out": str(out)}))
    session.inputs.read()
    features = np.asarray(session.index.features()[0 : len(session.inputs.pooled)], np.float64)
    direction = load_file(out / "directions/1.safetensors")["directions"][0].astype(np.float64)
    among = (6 * (direction @ direction) - 1) / 5
    near = features @ direction
    own = np.flatnonzero(near >= 0.75 * among).tolist()
    return set(own) if near.max() >= among > 0 else set(), bool(own) or among <= 0


def rounds(out):
    """The rows of each."""
    paths = sorted(out.glob("rounds/*/selection.safetensors"))
    return [set(load_file(path)["rows"].tolist()) for path in paths]


@pytest.mark.whole
def test_what_the_pool_has_of_the_task_stays_and_a_run_selects_as_now_or_by_the_mean_where_it_has_none(
    run_settings, tmp_path
):
    out = finished(run_settings, tmp_path / "own", strange(range(6, 20)))
    (own, near), kept = told(out), rounds(out)
    assert near
    assert 1 < len(own) < 10
    assert [len(rows) for rows in kept] == [11, 11, 11]
    assert all(len(own & rows) >= min(5, len(own)) for rows in kept)
    now = rounds(finished(run_settings, tmp_path / "now", strange(range(6, 20)), keep="now"))
    assert not all(len(own & rows) >= min(5, len(own)) for rows in now)

    elsewhere = finished(run_settings, tmp_path / "elsewhere")
    own, near = told(elsewhere)
    assert not own
    same = finished(run_settings, tmp_path / "elsewhere_same", keep="now" if near else "mean")
    ours, theirs = (load_file(out / "adapter/adapter_model.safetensors") for out in (elsewhere, same))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.whole
def test_where_no_row_is_near_a_run_keeps_by_the_mean(run_settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("clusterucb.features.influence.OWN", 9.0)  # out of reach
        far = rounds(finished(run_settings, tmp_path / "far"))
    mean, now = (rounds(finished(run_settings, tmp_path / keep, keep=keep)) for keep in ("mean", "now"))
    assert far == mean != now
