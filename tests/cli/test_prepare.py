"""`clusterucb prepare` as a person types it."""

import json

import pytest

from cli_helpers import clusterucb, lines
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import prepare
from file_helpers import write

PROBLEMS = [{"question": f"{n} + 3?", "answer": f"<<{n}+3>>{n + 3}\n#### {n + 3}"} for n in range(60)]
TASKS = [{"instruction": f"Write {n}.", "input": "", "output": f"{n}" if n else ""} for n in range(4)]


@pytest.fixture
def raw(tmp_path):
    """A folder with two data sets' files, as their pages name them."""
    write(tmp_path / "raw" / "gsm8k" / "train.jsonl", PROBLEMS)
    return write(tmp_path / "raw" / "code_alpaca_2k.json", TASKS).parent


def test_several_data_sets_are_written_as_the_function_writes_them_and_counted_in_a_table(raw, tmp_path):
    outcome = clusterucb("prepare", "gsm8k", "code_alpaca", "--from", raw, "--out", tmp_path / "pool")
    assert outcome.status == 0, outcome
    for name in ("gsm8k", "code_alpaca"):
        report = prepare(name, raw, tmp_path / "again")
        assert len(lines(tmp_path / "pool" / f"{name}.jsonl")) == report.written
        for file in (f"{name}.jsonl", f"{name}.json"):
            assert (tmp_path / "pool" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    table = [line.split("│")[1:-1] for line in outcome.out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in table] == [
        ["gsm8k.jsonl", "60", "60", ""],
        ["code_alpaca.jsonl", "4", "3", "1 empty output"],
    ]
    assert outcome.out.startswith("Written to ")


def test_quiet_shows_nothing_and_writes_the_same(raw, tmp_path):
    shown = clusterucb("prepare", "gsm8k", "--from", raw, "--out", tmp_path / "a")
    assert "prepare gsm8k: 60/60 rows" in shown.err
    assert clusterucb("prepare", "gsm8k", "--from", raw, "--out", tmp_path / "b", "-q") == (0, "", "")
    assert (tmp_path / "a/gsm8k.jsonl").read_bytes() == (tmp_path / "b/gsm8k.jsonl").read_bytes()


def test_a_sample_is_asked_for_by_rows_and_seed(raw, tmp_path):
    def drawn(*more):
        assert clusterucb("prepare", "gsm8k", "--from", raw, "--out", tmp_path / "pool", *more).status == 0
        return (tmp_path / "pool/gsm8k.jsonl").read_text().splitlines()

    every, some, others = drawn(), drawn("--rows", 5), drawn("--rows", 5, "--seed", 1)
    assert (len(every), len(some), len(others)) == (60, 5, 5)
    assert set(some) | set(others) <= set(every)
    assert some != others


def test_the_list_names_every_data_set_with_licence_and_files_within_80_columns():
    shown = clusterucb("prepare", "--list")
    assert (shown.status, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    text = f"\n{shown.out}".replace("\n    ", "\t")
    blocks = dict(block.split(": ", 1) for block in text.split("\n")[1:-1])
    assert list(blocks) == list(SOURCES)
    assert len(blocks) == 8
    for name, block in blocks.items():
        title, licence, *rest = block.split("\t")
        assert (title, licence) == (SOURCES[name].title, f"licence: {SOURCES[name].licence}")
        for file in SOURCES[name].files:
            assert [line for line in rest if line in (f"from {file}", f"and {file}", f"or {file}")]
        assert [line for line in rest if line.startswith("https://")]


@pytest.mark.parametrize(
    "lacking",
    [["--from", "raw", "--out", "pool"], ["gsm8k", "--out", "pool"], ["gsm8k", "--from", "raw"], []],
)
def test_a_missing_argument_is_said_with_all_that_are_needed(lacking):
    said = clusterucb("prepare", *lacking).complaint
    assert said == "prepare needs NAME..., --from PATH or --from hub, and --out DIR; see --list"


def test_a_wrong_name_is_told_before_anything_is_written(raw, tmp_path):
    said = clusterucb("prepare", "gsm8k", "gsm", "--from", raw, "--out", tmp_path / "pool").complaint
    assert said == f"unknown data set 'gsm'; known: {', '.join(SOURCES)}"
    assert not (tmp_path / "pool").exists()


def test_a_later_data_set_that_fails_leaves_the_earlier_ones_whole(raw, tmp_path):
    clusterucb("prepare", "gsm8k", "dolly", "--from", raw, "--out", tmp_path / "pool").complaint  # noqa: B018
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["gsm8k.json", "gsm8k.jsonl"]
    assert len(lines(tmp_path / "pool/gsm8k.jsonl")) == 60


def test_out_that_is_a_file_is_refused(raw, tmp_path):
    file = raw / "code_alpaca_2k.json"
    said = clusterucb("prepare", "gsm8k", "--from", raw, "--out", file).complaint
    assert said == f"{file}: not a folder. Name a folder to write to"
    assert json.loads(file.read_text()) == TASKS
