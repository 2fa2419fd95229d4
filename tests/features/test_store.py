"""A feature store: resumable at any row, honest about what is finished and what it was made with."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import MismatchError
from clusterucb.features import store as store_module
from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.store import FeatureStore, FeatureWriter

MADE_WITH = {"model": "abc", "formula": "less"}


def content(rows, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, dim)).astype(np.float16), rng.random(rows)


def fill(folder, features, losses, lifetimes, dtype="float16"):
    """Write rows in several writers' lifetimes, each a list of micro-batches; then finish."""
    for batches in (*lifetimes, None):
        with FeatureWriter(folder, *features.shape, MADE_WITH, dtype) as writer:
            rest = np.flatnonzero(~writer.done)
            for places in [rest] if batches is None else [np.array(batch, np.int64) for batch in batches]:
                writer.write(places, features[places], losses[places])
            if batches is None:
                writer.finish({"cost": 1})
    return rest


def write_one_by_one(folder, features, losses, places):
    with FeatureWriter(folder, *features.shape, MADE_WITH) as writer:
        for row in places:
            writer.write(np.array([row]), features[[row]], losses[[row]])


@settings(max_examples=20)
@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from(list(ENCODINGS)),
    st.lists(st.lists(st.lists(st.integers(0, 11), unique=True, max_size=5), max_size=4), max_size=4),
)
def test_written_in_any_order_over_any_lifetimes_a_store_has_the_same_bytes(
    tmp_path_factory, rows, dim, dtype, lifetimes
):
    features, losses = content(rows, dim)
    lifetimes = [[[row for row in batch if row < rows] for batch in batches] for batches in lifetimes]
    pieces, whole = tmp_path_factory.mktemp("pieces"), tmp_path_factory.mktemp("whole")
    rest = fill(pieces, features, losses, lifetimes, dtype)
    written = {row for batches in lifetimes for batch in batches for row in batch}
    assert set(rest.tolist()) == set(range(rows)) - written  # nothing that was finished is asked for again
    fill(whole, features, losses, [], dtype)
    for name in (f"features.{ENCODINGS[dtype].suffix}", "losses.f32", "done.u8"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes()
    found, encoding = FeatureStore(pieces), ENCODINGS[dtype]
    assert np.array_equal(found.features, encoding.decode(encoding.encode(features), dim))
    assert np.array_equal(found.losses, losses.astype(np.float32))
    assert len(found) == rows
    assert found.manifest["made_with"] == MADE_WITH
    assert (found.manifest["cost"], found.manifest["store_dtype"]) == (1, dtype)


def test_rows_written_but_not_flushed_do_not_count_as_finished(tmp_path):
    """A SIGKILL closes nothing: what a next writer reads is what the last flush left."""
    features, losses = content(6, 4)
    killed = FeatureWriter(tmp_path, 6, 4, MADE_WITH)
    killed.write(np.array([0, 3]), features[[0, 3]], losses[[0, 3]])
    killed.flush()
    killed.write(np.array([1]), features[[1]], losses[[1]])
    with FeatureWriter(tmp_path, 6, 4, MADE_WITH) as writer:
        assert np.flatnonzero(writer.done).tolist() == [0, 3]
    killed._pending.clear()
    killed.__exit__(None, None, None)


def test_finished_rows_are_flushed_every_few_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FLUSH_SECONDS", -1.0)
    features, losses = content(6, 4)
    with FeatureWriter(tmp_path, 6, 4, MADE_WITH) as writer:
        writer.write(np.array([2]), features[[2]], losses[[2]])
        with FeatureWriter(tmp_path, 6, 4, MADE_WITH) as other:
            assert np.flatnonzero(other.done).tolist() == [2]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ((3, 4, {"model": "xyz"}), "made with model 'abc', this run has 'xyz'"),
        ((3, 4, {"formula": "adam"}), "made with formula 'less', this run has 'adam'"),
        ((3, 4, {"chat": "tulu"}), "made with chat None, this run has 'tulu'"),
        ((3, 4, {}, "1bit"), "made with store_dtype 'float16', this run has '1bit'"),
        ((3, 8, {}), "dim 4.*has 8"),
        ((5, 4, {}), "rows 3.*has 5"),
    ],
)
def test_a_store_of_something_else_is_refused_with_both_values(tmp_path, wanted, words):
    fill(tmp_path, *content(3, 4), [])
    rows, dim, changes, *dtype = wanted
    with pytest.raises(MismatchError, match=f"^{tmp_path} was .*{words}"):
        FeatureWriter(tmp_path, rows, dim, {**MADE_WITH, **changes}, *dtype)
    assert len(FeatureStore(tmp_path)) == 3


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 6, 7, 9])
def test_a_full_disk_is_an_error_and_leaves_finished_rows_intact(tmp_path, monkeypatch, calls):
    features, losses = content(8, 4)
    with FeatureWriter(tmp_path, 8, 4, MADE_WITH) as writer:
        writer.write(np.array([5, 6]), features[[5, 6]], losses[[5, 6]])
    whole, done = os.pwrite, []

    def full(*args):
        if len(done) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(whole(*args))
        return done[-1]

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_one_by_one(tmp_path, features, losses, [0, 1, 2])
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(MismatchError, match="not a finished feature store"):
        FeatureStore(tmp_path)
    monkeypatch.undo()
    stored = np.fromfile(tmp_path / "features.f16", np.float16)
    with FeatureWriter(tmp_path, 8, 4, MADE_WITH) as writer:
        finished = np.flatnonzero(writer.done)
    assert {5, 6} <= set(finished.tolist())
    for row in finished:
        assert np.array_equal(stored[row * 4 : row * 4 + 4], features[row])
    fill(tmp_path, features, losses, [])
    assert np.array_equal(FeatureStore(tmp_path).features, features)


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, bytes(data)[:3], offset))
    features, losses = content(4, 16)
    fill(tmp_path, features, losses, [])
    monkeypatch.undo()
    assert np.array_equal(FeatureStore(tmp_path).features, features)


def test_an_unfinished_store_is_refused(tmp_path):
    features, losses = content(3, 4)
    with FeatureWriter(tmp_path, 3, 4, MADE_WITH) as writer:
        writer.write(np.array([0, 1]), features[:2], losses[:2])
        with pytest.raises(RuntimeError, match="1 rows are not finished"):
            writer.finish({})
    with pytest.raises(MismatchError, match=r"not a finished feature store; run `gradients` first"):
        FeatureStore(tmp_path)
    with pytest.raises(MismatchError, match="not a finished feature store"):
        FeatureStore(tmp_path / "nowhere")


def test_seconds_go_on_over_lifetimes(tmp_path):
    features, losses = content(3, 4)
    with FeatureWriter(tmp_path, 3, 4, MADE_WITH) as writer:
        writer._started -= 100.0
        writer.write(np.array([0]), features[:1], losses[:1])
    with FeatureWriter(tmp_path, 3, 4, MADE_WITH) as writer:
        assert 100 <= writer.seconds < 150
