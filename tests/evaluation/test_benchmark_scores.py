"""Answers and their scores; means and their standard errors, formulas against slow references."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from benchmark_helpers import of_variant

from clusterucb.evaluation.scores import by_subtask, mean, score
from clusterucb.tasks import TASKS

ONCE = [name for task in TASKS.values() for name in task.variants if name != "humaneval_pass10"]


def right(task, document):
    gold = json.loads(document["gold"])
    if task.name == "bbh":
        return f" Let's think step by step.\nSo the answer is {gold['target']}."
    if task.name == "tydiqa":
        return f" {gold['answers'][0]}"
    return document["answer"]


@pytest.mark.parametrize("name", ONCE)
def test_right_answers_score_one_and_wrong_ones_zero(name, data):
    task, variant, found = of_variant(name, data)
    for document in found:
        for answer, expected in ((right(task, document), 1.0), (" A", 0.0)):
            likelihoods = [float(choice == answer) for choice in document["choices"]]
            scored = score(task, variant, document, likelihoods or [answer])
            assert scored == dict.fromkeys(variant.metrics, expected)


def test_pass_at_k_counts_the_programs_that_pass(data):
    """Of 12 programs 2 pass: pass@10 is 1 - C(10, 10) / C(12, 10), pass@1 is 2 / 12."""
    task, variant, (problem, _) = of_variant("humaneval_pass10", data)
    written = [problem["answer"] if n in (3, 7) else "    return None\n" for n in range(12)]
    for k, expected in {10: 1 - 1 / 66, 1: 2 / 12}.items():
        scored = score(task, replace(variant, k=k), problem, written)
        assert scored == {f"pass@{k}": pytest.approx(expected)}


VALUES = np.array([1.0, 0.0, 0.25, 1.0, 0.5, 0.0, 1.0])
SUBTASKS = ["a", "b", "a", "a", "b", "b", "b"]


def slow(values):
    """Mean and standard error, with the textbook's formulas."""
    n, middle = len(values), sum(values) / len(values)
    return middle, math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1) / n)


def test_a_plain_mean_and_its_error_are_the_textbooks():
    found = mean(VALUES, SUBTASKS, macro=False)
    assert (found["value"], found["standard_error"]) == pytest.approx(slow(VALUES.tolist()), rel=1e-12)
    assert found["questions"] == 7


def test_a_macro_mean_weighs_subtasks_alike_whatever_their_sizes():
    parts = [slow([1.0, 0.25, 1.0]), slow([0.0, 0.5, 0.0, 1.0])]
    found = mean(VALUES, SUBTASKS, macro=True)
    assert found["value"] == pytest.approx(statistics.mean(m for m, _ in parts), rel=1e-12)
    assert found["value"] != pytest.approx(VALUES.mean(), rel=1e-3)
    assert found["standard_error"] == pytest.approx(math.hypot(*(e for _, e in parts)) / 2, rel=1e-12)
    assert found["questions"] == 7


def test_each_subtask_has_its_own_mean_in_alphabetical_order():
    found = by_subtask(VALUES, SUBTASKS)
    assert list(found) == ["a", "b"]
    assert (found["b"]["value"], found["b"]["standard_error"]) == pytest.approx(slow([0.0, 0.5, 0.0, 1.0]))
    assert (found["a"]["questions"], found["b"]["questions"]) == (3, 4)


@pytest.mark.parametrize(
    ("values", "subtasks", "macro", "value"),
    [([1.0], "a", False, 1.0), ([1.0], "a", True, 1.0), ([1.0, 0.0, 1.0], "aab", True, 0.75)],
)
def test_a_single_question_of_all_or_of_a_subtask_leaves_no_error(values, subtasks, macro, value):
    found = mean(np.array(values), list(subtasks), macro=macro)
    assert found == {"value": value, "standard_error": None, "questions": len(values)}


def test_the_macro_error_is_the_deviation_of_resampled_means():
    rng = np.random.default_rng(0)
    names, chances = ["a"] * 40 + ["b"] * 10, np.repeat([0.5, 0.8], [40, 10])
    draws = (rng.random((4000, 50)) < chances).astype(np.float64)
    found = [mean(draw, names, macro=True) for draw in draws]
    deviation = np.std([m["value"] for m in found])
    assert np.mean([m["standard_error"] for m in found]) == pytest.approx(deviation, rel=0.05)
