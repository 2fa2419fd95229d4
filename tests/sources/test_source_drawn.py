"""`prepare` with a number of rows: a uniform draw by the seed, counted, in the file's order."""

import json

import pytest

from clusterucb.sources.conversion import prepare


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"How many are {n} figs?", "answer": f"{n}\n#### {n}"} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(raw, out, rows, seed=0):
    report = prepare("gsm8k", raw, out, rows=rows, seed=seed)
    return report, [json.loads(line)["id"] for line in (out / "gsm8k.jsonl").read_text().splitlines()]


def test_so_many_rows_are_drawn_in_the_files_order_and_the_others_are_counted(raw, tmp_path):
    report, ids = drawn(raw, tmp_path / "out", 30)
    assert (report.read, report.written, report.dropped) == (200, 30, {"not drawn": 170})
    numbers = [int(name.removeprefix("gsm8k_")) for name in ids]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 30


def test_the_seed_decides_which(raw, tmp_path):
    _, first = drawn(raw, tmp_path / "a", 30)
    _, again = drawn(raw, tmp_path / "b", 30)
    _, other = drawn(raw, tmp_path / "c", 30, seed=1)
    assert first == again
    assert first != other


def test_every_row_is_drawn_equally_often(raw, tmp_path):
    counts = dict.fromkeys(range(200), 0)
    for seed in range(60):
        for name in drawn(raw, tmp_path / "out", 100, seed)[1]:
            counts[int(name.removeprefix("gsm8k_"))] += 1
    assert sum(counts.values()) == 6000
    assert min(counts.values()) > 30 - 5 * 15**0.5  # five deviations of a binomial around 30
    assert max(counts.values()) < 30 + 5 * 15**0.5


def test_fewer_rows_than_asked_for_are_all_taken(raw, tmp_path):
    whole, _ = drawn(raw, tmp_path / "a", None)
    report, _ = drawn(raw, tmp_path / "b", 500)
    assert report == whole
