"""Held-out questions of a benchmark: with a right answer, none of the target, drawn by the seed."""

import json

import pytest

from clusterucb.errors import ConfigError
from clusterucb.tasks import TASKS
from clusterucb.tasks.task import held_out


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"question": f"Ann has {n} figs. How many?", "answer": f"She has {n}.\n#### {n}"} for n in range(9)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "cot-prompts").mkdir()
    shots = "".join(f"\n\nQ: {n}?\nA: Let's think step by step.\nSo the answer is {n}." for n in range(3))
    (tmp_path / "cot-prompts" / "count.txt").write_text(f"canary\n-----\nCount.{shots}\n")
    (tmp_path / "count.json").write_text(json.dumps({"examples": [{"input": "4?", "target": "4"}]}))
    return tmp_path


def test_rows_are_drawn_by_the_seed_without_shots_in_the_files_order(folder):
    first, again, other = (held_out(TASKS["gsm8k"], folder, 4, seed, ()) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [q.id for q in first] == sorted(q.id for q in first)
    assert len({q.id for q in first}) == 4
    assert all(q.ask.count("Question:") == 1 and q.answer.startswith(" She has") for q in first)


def test_no_question_of_the_target_is_held_out(folder):
    every = held_out(TASKS["gsm8k"], folder, 100, 0, ())
    unwanted = {question.digest for question in every[:5]}
    assert held_out(TASKS["gsm8k"], folder, 100, 0, unwanted) == every[5:]
    with pytest.raises(ConfigError, match="holdout gsm8k: has no question"):
        held_out(TASKS["gsm8k"], folder, 100, 0, {question.digest for question in every})


def test_a_benchmark_without_worked_answers_cannot_be_held_out(folder):
    with pytest.raises(ConfigError, match="holdout bbh: has no question with a worked answer"):
        held_out(TASKS["bbh"], folder, 100, 0, ())
