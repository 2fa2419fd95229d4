import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import hub_of_all, write_bbh

from clusterucb.errors import ConfigError
from clusterucb.tasks import bbh
from clusterucb.tasks.bbh import final_answer, score
from file_helpers import refusal, write

SHOTS = [
    "Q: 1 + 1\nA: Let's think step by step.\nOne more than 1 is 2. So the answer is 2.\n\n",
    "Q: 2 + 2\n\n(in words: two and two)\nA: Let's think step by step.\nIt is 4. So the answer is 4.\n\n",
    "Q: 3 - 5\nOptions:\n(A) -2\n(B) 2\nA: Let's think step by step.\n3 - 5 = -2.\n\n"
    "So the answer is (A).\n\n",
]


def test_a_question_with_shots_in_full(folder):
    sorting, first, second = bbh.questions(folder, 3)
    assert first.ask == f"Add numbers.\n\n{''.join(SHOTS)}Q: 4 + 4"
    assert (first.id, first.subtask, first.core) == ("bbh/sums/test/0", "sums", "4 + 4")
    assert (first.opening, first.answer, first.gold) == ("A:", "", {"target": "8"})
    assert second.gold == {"target": "-5"}
    begins = "Sort words.\n\nIn the alphabet's order.\n\nQ: b a\nA: Let's think step by step. So"
    assert sorting.ask.startswith(begins)
    for shots in (0, 1):
        fewer = list(bbh.questions(folder, shots))[1]
        assert fewer.ask == f"Add numbers.\n\n{''.join(SHOTS[:shots])}Q: 4 + 4"


def test_each_worked_question_is_a_target_after_the_others(folder):
    found = bbh.targets(folder, None, 0)
    ids = [f"bbh/{task}/shots/{i}" for task in ("sorting", "sums") for i in range(3)]
    assert [q.id for q in found] == ids
    second, third = found[4:]
    assert second.ask == f"Add numbers.\n\n{SHOTS[0]}{SHOTS[2]}Q: 2 + 2\n\n(in words: two and two)"
    assert second.opening == "A:"
    assert second.answer == " Let's think step by step.\nIt is 4. So the answer is 4."
    assert (second.gold, second.core) == ({"target": "4"}, "2 + 2\n\n(in words: two and two)")
    assert third.gold == {"target": "(A)"}
    for question in found:
        assert score(question.gold, question.answer) == {"exact_match": 1.0}


def test_a_target_reads_as_the_evaluation_after_the_same_shots(folder):
    examples = [{"input": q.core, "target": "x"} for q in bbh.targets(folder, None, 0) if q.subtask == "sums"]
    write(folder / "bbh" / "sums.json", json.dumps({"examples": examples}))
    asked = [q for q in bbh.questions(folder, 2) if q.subtask == "sums"]
    last = bbh.targets(folder, None, 0)[5]
    assert (last.ask, last.opening) == (asked[2].ask, asked[2].opening)


@pytest.mark.parametrize(("place", "examples"), [("bbh", "bbh"), (".", "."), (".", "bbh")])
def test_the_files_are_found_in_open_instructs_folders_too(tmp_path, place, examples):
    write_bbh(tmp_path / "data" / place, examples)
    assert len(list(bbh.questions(tmp_path / "data", 3))) == 3


def test_the_hub_gives_the_questions_and_the_harness_the_shots(harness, monkeypatch):
    hub_of_all(monkeypatch)
    first, _ = bbh.questions(None, 1)
    assert first.ask == (
        "Add numbers.\n\nQ: 0 + 0\nA: Let's think step by step.\nIt is 0. So the answer is 0.\n\nQ: 4 + 4"
    )
    assert [q.gold for q in bbh.targets(None, None, 0)] == [{"target": str(n)} for n in range(3)]


def test_a_harness_with_other_shots_is_refused(harness):
    path = harness / "tasks" / "bbh" / "cot_fewshot" / "sums.yaml"
    config = json.loads(path.read_text())
    config["fewshot_config"]["samples"].pop()
    path.write_text(json.dumps(config))
    assert "sums.yaml: 2 samples, expected 3" in refusal(bbh.targets, None, None, 0, error=ConfigError)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sums.json", '{"examples": []}', "sums.json: examples is [], expected a list that is not empty"),
        ("sums.json", '{"canary": "x"}', "sums.json: no examples in it (met: canary)"),
        ("sums.json", '{"examples": [{"input": "1"}]}', "sums.json, example 1: no target in it"),
        ("sums.json", '{"examples":\n [}', "sums.json: broken JSON at line 2, column 3"),
        ("sums.json", "[7]", "sums.json: no examples in it (met: list)"),
        ("other.json", "{}", "other.json without cot-prompts/other.txt"),
        ("cot-prompts/other.txt", "-----\nD\n\nQ: 1\nA: 2", "question 1 has no line that begins A: Let's"),
        ("cot-prompts/sums.txt", "D", "sums.txt: 0 worked questions, expected 3"),
    ],
)
def test_files_that_cannot_be_used(folder, name, text, message):
    (folder / "bbh" / name).write_text(text)
    assert message in refusal(bbh.questions, folder, 3)


def test_a_prompt_without_questions_is_named_and_a_target_all_the_same(folder):
    (folder / "bbh" / "sums.json").unlink()
    assert "cot-prompts/sums.txt without sums.json" in refusal(bbh.questions, folder, 3)
    (folder / "bbh" / "sorting.json").unlink()
    assert "no <task>.json for bbh" in refusal(bbh.questions, folder, 3)
    assert len(bbh.targets(folder, None, 0)) == 6


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (" Let's see. So the answer is (B). So the answer is (C).", "(B)"),
        ("The answer is yes.", "yes"),
        ("So the answer is 3.5.", "3.5"),
        ("So the answer is ] } ].\n\nQ: next", "] } ]"),
        (" invalid \n\nAnd more.", "invalid"),
        ("", ""),
    ],
)
def test_the_final_answer(output, answer):
    assert final_answer(output) == answer


@pytest.mark.parametrize(
    ("target", "output", "right"),
    [
        ("(A)", "So the answer is A.", True),
        ("(A)", "So the answer is (a).", True),
        ("(A)", "So the answer is (B).", False),
        ("True", " true\n\nQ: more", True),
        ("valid", "So the answer is invalid.", False),
        ("Monsters, Inc", "So the answer is Monsters Inc.", True),
        ("-50", "So the answer is -50.", True),
        ("-50", "So the answer is 50.", False),
        ("50", "So the answer is -50.", False),
        ("] )", "So the answer is ]).", True),
        ("] )", "So the answer is ] }.", False),
        ("] )", "I do not know.", False),
        ("] )", "", False),
    ],
)
def test_scores(target, output, right):
    assert score({"target": target}, output) == {"exact_match": float(right)}


BRACKETS = st.text("()[]{}<>", min_size=1, max_size=9).map(" ".join)


@given(BRACKETS, BRACKETS)
def test_brackets_are_right_only_if_they_are_the_same(target, other):
    right = score({"target": target}, f"So the answer is {other}.")
    assert right == {"exact_match": float(target == other)}
