from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import GSM8K_TRAIN, install

from clusterucb.errors import ConfigError
from clusterucb.tasks import gsm8k
from clusterucb.tasks.gsm8k import last_number, score
from file_helpers import refusal, write


def test_a_question_without_shots_in_full(folder):
    first, second = gsm8k.questions(folder, 0)
    assert first.ask == "Answer the following question.\n\nQuestion: Bo has 2 cows.\nHow many legs?"
    assert first.opening == "Answer:"
    assert first.answer == " A cow has 4.\n2*4=8 legs.\nThe answer is 8."
    assert (first.id, first.subtask, first.gold) == ("gsm8k/test/0", "gsm8k", {"number": "8"})
    assert first.core == "Bo has 2 cows.\nHow many legs?"
    assert (second.id, second.core) == ("gsm8k/test/1", "What costs 2 of $600?")
    assert second.answer == " 2*600 = $1,200.\nThe answer is 1200."


def test_a_question_with_shots_in_full(folder, harness):
    assert next(gsm8k.questions(folder, 2)).ask == (
        "Answer the following questions.\n\n"
        "Question: One and one?\nAnswer: 1 + 1 = 2. The answer is 2.\n\n"
        "Question: Two and two?\nAnswer: 2 + 2 = 4. The answer is 4.\n\n"
        "Question: Bo has 2 cows.\nHow many legs?"
    )


def test_a_small_file_is_all_target(folder):
    write(folder / "gsm8k" / "train.jsonl", GSM8K_TRAIN[:3])
    assert len(gsm8k.targets(folder, None, 0)) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?"}, "test.jsonl, line 1: no answer in it (met: question)"),
        ({"question": " ", "answer": "#### 1"}, "line 1: question is ' ', expected some text"),
        ({"question": "Q?", "answer": "It is 72."}, "line 1: no final answer, expected a last line #### 72"),
        ({"question": "Q?", "answer": "So\n#### none"}, "line 1: answer ends without a number"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, message):
    write(tmp_path / "test.jsonl", [row])
    assert message in refusal(gsm8k.questions, tmp_path, 0)


def test_shots_without_the_harness_say_what_to_install(folder, monkeypatch):
    install(monkeypatch, lm_eval=None)
    assert "pip install 'clusterucb[eval]'" in refusal(gsm8k.questions, folder, 8, error=ConfigError)
    assert len(list(gsm8k.questions(folder, 0))) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 72.", "72"),
        (" 3 cows and 1,234,567 hens", "1234567"),
        ("72.0", "72"),
        ("It is $1,080.50.", "1080.5"),
        ("5-3", "3"),
        ("x-3", "3"),
        ("5 - 3 = 2, or -2", "-2"),
        ("(-2)", "-2"),
        ("$-7", "-7"),
        ("half: .5", "0.5"),
        ("1, 2, 3", "3"),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == Decimal(number)


@given(st.integers(-(10**12), 10**12), st.text("abc ,.-$", max_size=9), st.text("abc ,.-$", max_size=9))
def test_the_last_number_stands_out_of_any_text(number, before, after):
    text = f"{before} 17 = {number:,} {after}"
    assert last_number(text) == number


@given(st.text("abc ,.-$\n"))
def test_no_number_is_wrong(text):
    assert last_number(text) is None
    assert score({"number": "0"}, text) == {"exact_match": 0.0}


def test_scores(folder):
    for question in gsm8k.questions(folder, 0):
        assert score(question.gold, question.answer) == {"exact_match": 1.0}
        assert score(question.gold, f"{question.answer} 9 times") == {"exact_match": 0.0}
    assert score({"number": "72"}, "so 72.00 dollars") == {"exact_match": 1.0}
    assert score({"number": "1200"}, "$1,200") == {"exact_match": 1.0}
