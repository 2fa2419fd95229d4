"""The prompts of an evaluation are, character for character, what the target's rows begin with."""

from dataclasses import replace

import numpy as np
import pytest
from benchmark_helpers import ALL, TOKENIZER, TULU, common, of_variant
from task_helpers import CANARY, SUMS

from clusterucb.data.chat import Template, Tulu, encode
from clusterucb.data.rows import parse_messages
from clusterucb.evaluation.documents import documents, drawn
from clusterucb.tasks import TASKS

CHATS = {
    "tulu": TULU,
    "tulu with a begin token": Tulu("</s>", bos="<s>"),
    "template": Template(TOKENIZER),
}


def begins(question, chat):
    """What the row of a question is rendered to, up to where it is learnt."""
    rendered = chat.render(parse_messages(question.to_row(), "row"))
    return rendered.text[: rendered.spans[-1][0]]


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("name", ALL)
def test_the_prompt_of_a_question_is_what_its_row_begins_with(name, chat, data):
    """Of each target question, asked as an evaluation asks, and of each that an evaluation asks."""
    task = TASKS[name]
    targets = task.targets(data, None if name in ("mmlu", "bbh", "tydiqa") else 2, 0)
    for variant in task.variants.values():
        asked = [] if name == "bbh" else list(task.questions(data, variant.shots))  # BBH's have no answer
        for questions in filter(None, (targets, asked)):
            asking = replace(task, questions=lambda _data, _shots, them=questions: iter(them))
            found, left_out = documents(asking, variant, chat, common(data, "out", []))
            assert [d["context"] for d in found] == [begins(question, chat) for question in questions]
            assert [d["id"] for d in found] == [question.id for question in questions]
            assert left_out == []


def test_the_tokens_of_a_prompt_are_those_that_its_row_is_trained_on(data):
    """The opening and the answer do not merge into other tokens."""
    task = TASKS["gsm8k"]
    for question in task.targets(data, 3, 0):
        asking = replace(task, questions=lambda _data, _shots, q=question: iter([q]))
        (document,), _ = documents(asking, task.variants["gsm8k"], TULU, common(data, "out", []))
        row = encode(parse_messages(question.to_row(), "row"), TOKENIZER, TULU, "row")
        given = row.ids[: int(row.labels.argmax())].tolist()
        assert given == TOKENIZER(document["context"], add_special_tokens=False)["input_ids"]


def test_a_bbh_prompt_has_its_shots_and_ends_with_the_opening(data):
    _, _, found = of_variant("bbh", data)
    (prompt,) = (document["context"] for document in found if document["id"] == "bbh/sums/test/1")
    assert prompt == f"<|user|>\n{SUMS.removeprefix(CANARY)}\n\nQ: 1 - 6\n<|assistant|>\nA:"


def test_a_choice_is_marked_by_its_place(data):
    _, _, found = of_variant("mmlu_0shot", data)
    assert {(d["label"], d["answer"], *d["choices"]) for d in found} == {(1, " B", " A", " B", " C", " D")}


def test_a_limit_keeps_so_many_of_each_subtask_in_their_order(data):
    questions = list(TASKS["mmlu"].questions(data, 0))
    kept = drawn(questions, 2, seed=0)
    assert [q.subtask for q in kept] == ["anatomy", "anatomy", "law"]
    assert [questions.index(q) for q in kept] == sorted(questions.index(q) for q in kept)
    assert drawn(questions, 3, seed=0) == drawn(questions, None, seed=0) == questions


def test_a_limit_draws_by_the_seed_alone_and_every_question_alike(data):
    questions = list(TASKS["mmlu"].questions(data, 0))
    assert drawn(questions, 1, seed=3) == drawn(questions, 1, seed=3)
    firsts = [questions.index(drawn(questions, 1, seed)[0]) for seed in range(300)]
    assert np.bincount(firsts, minlength=3) == pytest.approx([100] * 3, abs=35)


def test_left_out_questions_are_named_and_do_not_count_towards_the_limit(data):
    task = TASKS["mmlu"]
    first = next(task.questions(data, 0))
    config = common(data, "out", [], limit=2)
    found, left_out = documents(task, task.variants["mmlu_0shot"], TULU, config, [first.digest])
    assert left_out == [first.id]
    assert [d["id"].rsplit("/", 1)[-1] for d in found] == ["1", "2", "0"]
