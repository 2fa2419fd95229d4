"""What a row of the pool takes in memory beside its features: so few bytes that 10^7 rows are no question."""

import json
import tracemalloc

import numpy as np
import pytest

from clusterucb.data.pool import Pool
from clusterucb.features.scores import ScoreLog
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import read_scored, write_round
from clusterucb.selection.bandit import _decks, select
from clusterucb.selection.share import top

N, K = 5_000, 141
RNG = np.random.default_rng(0)
LABELS, SCORES = RNG.integers(0, K, N), RNG.standard_normal(N)


class NamesOnly:
    """A pool of which only names are asked."""

    def id(self, row):
        return f"pool.jsonl:{row + 1}"

    def source(self, row):
        return "flan"

    def write(self, rows, path):
        path.write_bytes(b"")


def peak(work):
    """Bytes a row, at most, beside what was there before."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / N


def test_ranking_all_rows_takes_a_copy_of_their_scores():
    assert peak(lambda: top(SCORES, N // 20)) < 12


def test_dealing_the_rows_to_their_clusters_takes_three_words_a_row():
    assert peak(lambda: _decks(LABELS, np.random.default_rng(0), None)) < 30


def test_logged_scores_take_a_word_a_row(tmp_path):
    rows = RNG.permutation(N)

    def fill():
        with ScoreLog(tmp_path / "scores.jsonl", "w") as log:
            for batch in np.split(rows, 100):
                log.add(batch, SCORES[batch], 0.1)

    def go_on():
        with ScoreLog(tmp_path / "scores.jsonl", "w") as log:
            assert np.array_equal(log.known(rows), SCORES[rows])

    assert peak(fill) < 24
    assert peak(go_on) < 40


@pytest.fixture(scope="module")
def drawn():
    draws = []
    found = select(LABELS, lambda rows: SCORES[rows], on_draw=draws.append)
    return found, draws


def test_writing_and_reading_a_round_holds_one_draw_at_a_time(drawn, tmp_path):
    found, draws = drawn
    rows = np.arange(N)
    assert peak(lambda: write_round(tmp_path, 2, found, draws, NamesOnly(), rows, Cost())) < 15
    assert peak(lambda: read_scored(tmp_path)) < 30
    assert np.array_equal(read_scored(tmp_path).arms, found.drawn_clusters)


def test_pool_takes_few_words_a_row_while_it_is_read(tmp_path):
    row = {"prompt": "one two", "completion": "three"}
    with (tmp_path / "pool.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": i, **row}) + "\n" for i in range(N))
    Pool.read(tmp_path / "pool.jsonl")  # what is set up at a first reading is not the rows'
    assert peak(lambda: Pool.read(tmp_path / "pool.jsonl")) < 68
