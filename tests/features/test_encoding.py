"""What int8 and one bit keep of a feature: its bytes, its inner products, its order in a ranking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cli_helpers import done, lines, options
from clusterucb.errors import MismatchError
from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir


def unit_rows(rows, dim, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def coded(name, features):
    encoding = ENCODINGS[name]
    return encoding.decode(encoding.encode(features), features.shape[1])


def kept(folder, features, dtype):
    with FeatureWriter(folder, *features.shape, {}, dtype) as writer:
        writer.write(np.arange(len(features)), features, np.zeros(len(features)))
        writer.finish({})
    return FeatureStore(folder)


@given(st.integers(0, 5), st.integers(1, 40), st.sampled_from(list(ENCODINGS)))
def test_any_rows_have_the_width_and_shape_they_should_whatever_is_written_with_them(rows, dim, name):
    features, encoding = unit_rows(rows, dim), ENCODINGS[name]
    encoded = encoding.encode(features)
    assert (encoded.shape, encoded.dtype) == ((rows, encoding.width(dim)), np.uint8)
    assert encoding.decode(encoded, dim).shape == (rows, dim)
    assert all(np.array_equal(encoding.encode(features[i : i + 1])[0], encoded[i]) for i in range(rows))
    assert (coded(name, np.zeros((2, dim), np.float16)) == 0).all()


@pytest.mark.parametrize(("name", "bytes_a_row"), [("float16", 16384), ("int8", 8196), ("1bit", 1028)])
def test_a_row_of_8192_dimensions_takes(name, bytes_a_row):
    assert ENCODINGS[name].width(8192) == bytes_a_row


def test_float16_comes_back_bit_for_bit():
    features = unit_rows(7, 33)
    assert coded("float16", features).tobytes() == features.tobytes()


def test_int8_errs_by_half_a_level_at_most():
    features = unit_rows(50, 300)
    levels = np.abs(features.astype(np.float32)).max(1, keepdims=True) / 127
    assert (np.abs(coded("int8", features) - features) <= 0.5001 * levels).all()


def test_one_bit_keeps_the_signs_and_the_inner_product_with_the_feature_itself():
    features = unit_rows(50, 300).astype(np.float64)
    found = coded("1bit", features.astype(np.float16)).astype(np.float64)
    assert ((found > 0) == (features >= 0)).all()
    assert (found * features).sum(1) == pytest.approx((features**2).sum(1), rel=1e-5)


@pytest.mark.parametrize(("name", "error"), [("int8", 0.0005), ("1bit", 0.02)])
def test_scores_are_estimated_without_bias(name, error):
    """Directions at a known cosine of 0.3: the estimates' mean is 0.3, their spread the expected one."""
    dim, rows = 4096, 400
    features = unit_rows(rows, dim).astype(np.float64)
    across = unit_rows(rows, dim, seed=1).astype(np.float64)
    across -= (across * features).sum(1, keepdims=True) * features
    directions = 0.3 * features + np.sqrt(1 - 0.09) * across / np.linalg.norm(across, axis=1, keepdims=True)
    found = (coded(name, features.astype(np.float16)) * directions).sum(1)
    assert found.std() < error
    assert abs(found.mean() - 0.3) < 4 * error / np.sqrt(rows)


@pytest.mark.parametrize(("name", "recall"), [("int8", 0.95), ("1bit", 0.6)])
def test_the_top_rows_by_stored_scores_are_mostly_those_by_float16(tmp_path, name, recall):
    rng = np.random.default_rng(0)
    direction = unit_rows(1, 1024, seed=9).astype(np.float32)
    lean = rng.normal(0, 0.1, (2000, 1))
    features = unit_rows(2000, 1024).astype(np.float32) + lean.astype(np.float32) * direction
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    best = np.argsort(-stored_influence(features, direction))[:100]
    found = stored_influence(kept(tmp_path, features, name).features, direction)
    assert len(np.intersect1d(best, np.argsort(-found)[:100])) / 100 >= recall


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_a_store_is_read_in_runs_of_rows(tmp_path, name):
    features = unit_rows(20, 24)
    store, decoded = kept(tmp_path, features, name).features, coded(name, features)
    for rows in (slice(3, 9), slice(15, 99), slice(-2, None), slice(7, 7), slice(9, 3), slice(None)):
        assert np.array_equal(store[rows], decoded[rows])
    with pytest.raises(IndexError, match="only runs of rows"):
        store[::2]


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_a_damaged_store_names_how_it_was_kept(tmp_path, name):
    kept(tmp_path, unit_rows(3, 8), name)
    file = tmp_path / f"features.{ENCODINGS[name].suffix}"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MismatchError, match=f"{file.name}: expected 3 x 8 {name}; it is damaged"):
        FeatureStore(tmp_path)


@pytest.mark.whole
def test_a_run_with_a_one_bit_store_scores_its_decoded_rows(settings):
    chosen, run = {**settings, "store_dtype": "1bit"}, RunDir(settings["out"])
    for step in ("warmup", "gradients", "cluster", "select"):
        done(step, *options(chosen))
    store = FeatureStore(run.features)
    assert (run.features / "features.b1").stat().st_size == len(store) * ENCODINGS["1bit"].width(256)
    scores = stored_influence(store.features, load_file(run.directions_at(1))["directions"])
    found = [row["score"] for row in lines(run.round(1) / "selected.ids.jsonl")]
    assert sorted(found) == sorted(scores.tolist())[-len(found) :]
