"""Influence: the same number for a row whoever asks and whatever was asked with it."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.features.influence import Picked, influence, similarities, stored_influence
from clusterucb.features.scores import LiveInfluence, ScoreLog

DIM = 64


def random_features(n, seed=0, dim=DIM):
    features = np.random.default_rng(seed).normal(size=(n, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)


def random_directions(subtasks, seed=1, dim=DIM):
    return np.random.default_rng(seed).normal(size=(subtasks, dim)).astype(np.float32) / 8


@settings(max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([1, 3, 64, 257, 2048]),
    st.integers(0, 999),
    st.data(),
)
def test_a_rows_score_does_not_depend_on_what_was_scored_with_it_in_any_bit(n, subtasks, dim, seed, data):
    features, directions = random_features(n, seed, dim), random_directions(subtasks, seed, dim)
    whole = influence(features, directions)
    some = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    assert np.array_equal(influence(features[some], directions), whole[some])
    each = similarities(features, directions)
    assert np.array_equal(similarities(features[some], directions), each[:, some])
    assert np.array_equal(stored_influence(features, directions, block=data.draw(st.integers(1, 9))), whole)


class Live:
    """Features of 24 rows, that are looked up when they are asked for."""

    def __init__(self, path, batch_tokens=60):
        self.features, self.directions, self.asked = random_features(24), random_directions(3), []
        self.lengths = np.random.default_rng(0).integers(3, 30, 24)
        self.path, self.batch_tokens = path, batch_tokens

    def compute(self, rows):
        self.asked.append(rows.tolist())
        return self.features[rows]

    def __call__(self, rows, compute=None, **more):
        with ScoreLog(self.path, "w") as log:
            score = LiveInfluence(
                compute or self.compute, self.lengths, self.directions, self.batch_tokens, log, **more
            )
            return score(np.array(rows))


@pytest.fixture
def live(tmp_path):
    return Live(tmp_path / "scores.jsonl")


def test_live_scores_are_the_stored_ones_in_the_order_asked_for(live):
    told, rows = [], [17, 3, 20, 0, 11]
    found = live(rows, progress=told.append)
    assert found.tolist() == stored_influence(live.features, live.directions)[rows].tolist()
    assert sum(told) == 5
    assert sorted(chain(*live.asked)) == sorted(rows)
    assert all(len(batch) == 1 or len(batch) * live.lengths[batch].max() <= 60 for batch in live.asked)


def test_nothing_is_computed_twice(live):
    rows = [17, 3, 20, 0, 11, 5, 9, 2]
    first = live(rows)
    lines = live.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(live.asked) > 2
    live.path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # killed while writing
    (*_, last), live.asked = live.asked, []
    for _ in range(2):
        assert live(rows).tolist() == first.tolist()
        assert live.asked == [last]


def test_a_failing_row_gets_no_score(live):
    def failing(rows):
        if 11 in rows:
            raise InputError("pool.jsonl:11: its loss is nan")
        return live.features[rows]

    with pytest.raises(InputError, match=r"^pool\.jsonl:11: its loss is nan"):
        live([17, 3, 11, 20], failing)
    with ScoreLog(live.path, "w") as log:
        assert log.known(np.array([11])) is None


class TestScoreLog:
    @settings(max_examples=30)
    @given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=20))
    def test_floats_come_back_exactly(self, tmp_path_factory, scores):
        path = tmp_path_factory.mktemp("log") / "scores.jsonl"
        with ScoreLog(path, "w") as log:
            log.add(np.arange(len(scores)), np.array(scores), 0.25)
        with ScoreLog(path, "w") as log:
            assert log.known(np.arange(len(scores))).tolist() == scores
            assert log.seconds == 0.25

    @settings(max_examples=30)
    @given(st.integers(1, 5), st.data())
    def test_a_log_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(self, tmp_path_factory, count, data):
        path = tmp_path_factory.mktemp("log") / "scores.jsonl"
        with ScoreLog(path, "w") as log:
            for i in range(count):
                log.add(np.array([2 * i, 2 * i + 1]), np.array([i / 3, -i / 7]), 1.0)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        kept = content[:cut].count(b"\n")
        for _ in range(2):  # what follows a torn line is readable too
            with ScoreLog(path, "w") as log:
                assert log.seconds == (kept if path.stat().st_size else 0)
                for i in range(count):
                    known = log.known(np.array([2 * i, 2 * i + 1]))
                    assert known.tolist() == [i / 3, -i / 7] if i < kept else known is None
                if kept < count:
                    log.add(np.array([2 * kept, 2 * kept + 1]), np.array([kept / 3, -kept / 7]), 1.0)
                    kept += 1

    def test_what_is_added_can_be_read_by_another_at_once_and_rows_are_known_only_all_together(
        self, tmp_path
    ):
        with ScoreLog(tmp_path / "scores.jsonl", "w") as log:
            log.add(np.array([4]), np.array([0.5]), 1.0)
            with ScoreLog(tmp_path / "scores.jsonl", "w") as other:  # as after a SIGKILL: nothing was closed
                for one in (log, other):
                    assert one.known(np.array([4])).tolist() == [0.5]
                    assert one.known(np.array([4, 5])) is None


@given(st.sets(st.integers(0, 19)), st.integers(0, 22), st.integers(0, 22))
def test_rows_that_are_left_out_are_in_no_run_of_the_others(left_out, start, stop):
    features = random_features(20)
    places = np.array(sorted({*range(20)} - left_out), np.int64)
    picked = Picked(features, places)
    assert (len(picked), picked.shape) == (len(places), (len(places), DIM))
    np.testing.assert_array_equal(picked[start:stop], features[places][start:stop])
    np.testing.assert_array_equal(np.asarray(picked), features[places])
