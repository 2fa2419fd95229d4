import pytest

from clusterucb.tasks import mmlu
from file_helpers import Hub, refusal, write


def test_a_question_without_shots_in_full(folder):
    first = next(mmlu.questions(folder, 0))
    assert first.ask == (
        "The following are multiple choice questions (with answers) about  anatomy.\n\n"
        "Where is the nail?\nA. toe\nB. ear\nC. eye\nD. lip\nAnswer:"
    )
    assert (first.opening, first.answer, first.gold) == ("The answer is:", " A", {"letter": "A"})
    assert (first.id, first.subtask) == ("mmlu/anatomy/test/0", "anatomy")
    assert first.core == "Where is the nail?\nA. toe\nB. ear\nC. eye\nD. lip"


def test_a_question_with_shots_in_full(folder):
    (folder / "mmlu" / "test" / "anatomy_test.csv").unlink()
    assert next(mmlu.questions(folder, 2)).ask == (
        "The following are multiple choice questions (with answers) about  world religions.\n\n"
        'Which, if any?\nA. one\nB. two, too\nC. a "third"\nD. 4\nAnswer: C\n\n'
        "A longer\nquestion?\nA. 0.50\nB. 1\nC. 2\nD. 3\nAnswer: A\n\n"
        "How many?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )


def test_questions_go_by_subject_in_the_files_order_and_fewer_shots_are_the_first_ones(folder):
    found = list(mmlu.questions(folder, 1))
    assert [question.id for question in found] == [
        *("mmlu/anatomy/test/0", "mmlu/world_religions/test/0", "mmlu/world_religions/test/1")
    ]
    assert "Which, if any?" in found[-1].ask
    assert "A longer" not in found[-1].ask


def test_targets_are_all_dev_questions(folder):
    ids = [question.id for question in mmlu.targets(folder, None, 0)]
    assert ids == ["mmlu/anatomy/dev/0", "mmlu/world_religions/dev/0", "mmlu/world_religions/dev/1"]
    assert len(mmlu.targets(folder, 2, 0)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 4}, "row 1: the answer is '4', expected one of A, B, C, D"),
        ({"answer": None}, "row 1: the answer is 'None'"),
        ({"choices": ["a", "b"]}, "row 1: 4 columns, expected 6"),
        ({"choices": "abcd"}, "row 1: choices is 'abcd', expected a list"),
        ({"subject": ""}, "row 1: subject is ''"),
    ],
)
def test_rows_of_the_hub_that_cannot_be_used(monkeypatch, row, message):
    good = {"question": "Q", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1}
    Hub(monkeypatch).sets["cais/mmlu", "all", "dev"] = [{**good, **row}]
    assert message in refusal(mmlu.targets, None, None, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"two\nlines",a,b,c,d,A\nQ,a,b,c,A\n', "anatomy_dev.csv, line 3: 5 columns, expected 6"),
        ("Q,a,b,c,d,E\n", "line 1: the answer is 'E', expected one of A, B, C, D"),
        ("Q,a,b,c,d,AB\n", "line 1: the answer is 'AB'"),
        ("Q,a,b,c,d,\n", "line 1: the answer is ''"),
        ('Q,a,b,c,d,A\n"Q,a,b', "line 2: cannot be read as CSV (unexpected end of data)"),
        ("caf\udce9,a,b,c,d,A\n", "anatomy_dev.csv, line 1: cannot be read as CSV"),
        ("\n", "empty, no question in it"),
    ],
)
def test_files_that_cannot_be_used(folder, text, message):
    write(folder / "mmlu" / "dev" / "anatomy_dev.csv", text)
    assert message in refusal(mmlu.targets, folder, None, 0)


def test_shots_that_are_not_there(folder):
    message = refusal(mmlu.questions, folder, 2)
    assert "mmlu, anatomy: 2 shots need as many dev questions, 1 are there" in message


def test_the_answer_is_one_of_the_choices(folder):
    for variant in mmlu.TASK.variants.values():
        assert variant.choices == (" A", " B", " C", " D")
        assert {q.answer for q in mmlu.questions(folder, 0)} <= set(variant.choices)
