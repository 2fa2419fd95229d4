"""Aims: what influence is of, each against its formula written out row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.features.influence import (
    HELD,
    Subspace,
    aimed,
    influence,
    read_aimed,
    similarities,
    stored_influence,
)
from clusterucb.run.costs import Cost
from clusterucb.steps.features import write_directions

CODES = np.array([0, 1, 0, 2, 1, 0])


def unit(n, d, seed):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rows():
    return unit(40, 24, 0).astype(np.float16)


@pytest.fixture
def target():
    return unit(6, 24, 1).astype(np.float32)


def by_subtask(target):
    return [np.mean([t for t, c in zip(target, CODES, strict=True) if c == s], axis=0) for s in range(3)]


@pytest.mark.parametrize(("name", "each"), [("mean", by_subtask), ("nearest", list)])
def test_mean_and_nearest_are_the_largest_product_with_a_subtasks_mean_or_with_a_row(
    name, each, rows, target
):
    found = influence(rows, aimed(name, target, CODES))
    for row, score in zip(rows, found, strict=True):
        assert score == pytest.approx(max(float(row.astype(float) @ aim) for aim in each(target)), abs=1e-6)
    assert found.min() < 0 or name == "nearest"  # no floor at 0


def test_subspace_is_the_cosine_inside_the_span_of_the_targets_gradients(rows, target):
    """By least squares, without a basis: all six rows are needed to hold so much of their squares here."""
    aim = aimed("subspace", target, CODES)
    assert len(aim.basis) == 6

    def inside(vector):
        return target.T.astype(float) @ np.linalg.lstsq(target.T.astype(float), vector.astype(float))[0]

    def cosine(a, b):
        return float(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    found = influence(rows, aim)
    for row, score in zip(rows, found, strict=True):
        expected = max(cosine(inside(row), inside(mean)) for mean in by_subtask(target))
        assert score == pytest.approx(expected, abs=1e-5)


def test_subspace_holds_as_few_directions_as_hold_the_share_of_squares():
    strong, weak = unit(2, 24, 3), unit(1, 24, 4)
    target = np.concatenate([strong[[0, 0, 0, 1, 1, 1] * 10], 0.1 * weak])
    aim = Subspace.of(target, np.zeros(61, np.int64))
    assert len(aim.basis) == 2
    gram = aim.basis.astype(float) @ aim.basis.T.astype(float)
    assert gram == pytest.approx(np.eye(2), abs=1e-6)
    held = np.linalg.norm(target @ aim.basis.T.astype(float)) ** 2 / np.linalg.norm(target) ** 2
    assert held >= HELD


def test_what_a_row_does_off_the_target_costs_it_nothing_in_the_subspace(target):
    aim, plain = aimed("subspace", target, CODES), aimed("mean", target, CODES)
    helps = by_subtask(target)[0]
    off = unit(1, 24, 9)[0]
    off -= aim.basis.T.astype(float) @ (aim.basis.astype(float) @ off)
    pure, mixed = helps[None], (helps + 2 * off)[None]
    mixed = mixed * np.linalg.norm(pure) / np.linalg.norm(mixed)
    assert influence(mixed, aim) == pytest.approx(influence(pure, aim), abs=1e-6)
    assert influence(mixed, plain) < 0.5 * influence(pure, plain)


def test_a_subspace_of_one_direction_is_refused(target):
    with pytest.raises(
        InputError, match="aim subspace: the gradients of the 3 target rows have one direction and none"
    ):
        Subspace.of(target[[0, 0, 0]], np.zeros(3, np.int64))


@settings(max_examples=25)
@given(st.integers(1, 30), st.sampled_from([2, 63, 512]), st.integers(0, 99), st.data())
def test_a_rows_score_in_a_subspace_does_not_depend_on_the_rows_beside_it(n, dim, seed, data):
    features, target = unit(n, dim, seed).astype(np.float16), unit(6, dim, seed + 1).astype(np.float32)
    aim = aimed("subspace", target, CODES)
    whole = influence(features, aim)
    some = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    assert influence(features[some], aim) == pytest.approx(whole[some], rel=1e-6, abs=1e-7)
    assert stored_influence(features, aim, block=5) == pytest.approx(whole, rel=1e-6, abs=1e-7)


def test_turns_are_taken_by_the_products_of_each_target_row(rows, target):
    found = similarities(rows, aimed("round_robin", target, CODES))
    assert found == pytest.approx(target.astype(float) @ rows.T.astype(float), abs=1e-6)


@pytest.mark.parametrize("name", ["mean", "nearest", "subspace"])
def test_an_aim_comes_back_as_it_was_written(name, rows, target, tmp_path):
    aim = aimed(name, target, CODES)
    write_directions(tmp_path / "aim.safetensors", (aim, Cost()), {})
    found = read_aimed(tmp_path / "aim.safetensors")
    assert isinstance(found, type(aim))
    assert influence(rows, found).tobytes() == influence(rows, aim).tobytes()
