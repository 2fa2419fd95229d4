import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_helpers import LANGUAGES, squad, tydiqa_dev, tydiqa_train, write_tydiqa

from clusterucb.tasks import tydiqa
from clusterucb.tasks.tydiqa import score
from file_helpers import refusal, write


def test_a_question_without_shots_in_full(folder):
    russian = next(q for q in tydiqa.questions(folder, 0) if q.subtask == "russian")
    assert russian.ask == (
        "Ответьте на следующий вопрос на основе информации в данном отрывке."
        "Отрывок: russian passage 0.\nВопрос: russian dev 0?"
    )
    assert (russian.opening, russian.answer) == ("Ответ:", " The Cat sat")
    assert (russian.id, russian.gold) == ("tydiqa/russian--12-0", {"answers": ["The Cat sat", "cat"]})
    assert russian.core == "russian passage 0.\nrussian dev 0?"


def test_a_question_with_its_shot_in_full(folder):
    korean = next(q for q in tydiqa.questions(folder, 1) if q.subtask == "korean")
    assert korean.ask == (
        "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.\n\n"
        f"문단: korean 1 {'x' * 31}\n질문: korean train 1?\n답변: answer 1 \n\n"
        "문단: korean passage 0.\n질문: korean dev 0?"
    )


def test_the_target_is_a_languages_first_question_on_a_passage_that_is_not_long(folder):
    found = tydiqa.targets(folder, None, 0)
    assert [q.id for q in found] == [f"tydiqa/{language}-1-0" for language in LANGUAGES]
    assert [q.subtask for q in found] == LANGUAGES
    assert len({q.opening for q in found}) == 9
    english = found[2]
    assert english.ask == (
        "Answer the following question based on the information in the given passage."
        f"Passage: english 1 {'x' * 30}\nQuestion: english train 1?"
    )
    assert (english.opening, english.answer) == ("Answer:", " answer 1")


def test_where_all_passages_are_long_the_shortest_is_the_target(tmp_path):
    train = [(f"swahili-{n}-0", "x" * length, "Q?", ["a"]) for n, length in enumerate([1900, 1600, 1700])]
    write_tydiqa(tmp_path, train=train)
    assert [q.id for q in tydiqa.targets(tmp_path, None, 0)] == ["tydiqa/swahili-1-0"]


FILE = "tydiqa-goldp-v1.1-dev.json"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"data": "x"}, f"{FILE}: data is 'x', expected a list"),
        ("", {"data": ["x"]}, f"{FILE}, data[0]: no paragraphs in it (met: str)"),
        ("paragraph", {"context": ""}, "data[0].paragraphs[0]: context is '', expected some text"),
        ("question", {"id": "french-1-0"}, "begins with no language of the task; expected arabic"),
        ("question", {"answers": []}, "qas[0]: answers is [], expected a list that is not empty"),
        ("question", {"answers": [{"text": 3}]}, "qas[0]: text is 3, expected some text"),
    ],
)
def test_files_that_cannot_be_used(folder, part, change, message):
    content = squad(tydiqa_dev()[:1])
    paragraph = content["data"][0]["paragraphs"][0]
    {"": content, "paragraph": paragraph, "question": paragraph["qas"][0]}[part].update(change)
    write(folder / "tydiqa" / FILE, json.dumps(content))
    assert message in refusal(tydiqa.questions, folder, 0)


def test_a_language_without_a_shot(folder):
    write_tydiqa(folder / "tydiqa", train=tydiqa_train()[:1])
    said = refusal(tydiqa.questions, folder, 1)
    assert "no training question in bengali to show before bengali--12-0" in said


def test_scores_take_the_first_line_and_the_nearest_answer():
    gold = {"answers": ["The Cat sat", "dog"]}
    assert score(gold, " the cat, sat!\nQuestion: more") == {"f1": 1.0, "exact_match": 1.0}
    assert score(gold, " dog") == {"f1": 1.0, "exact_match": 1.0}
    assert score(gold, " a cat") == {"f1": 2 / 3, "exact_match": 0.0}
    assert score(gold, "") == {"f1": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize(
    ("said", "answers", "f1", "exact"),
    [
        ("The  Cat, (a) sat on AN end.", ["cat sat on end"], 1, 1),
        ("theatre banana", ["theatre, banana"], 1, 1),
        ("U.S.", ["us"], 1, 1),
        ("«Кот»。", ["кот"], 0, 0),  # only ASCII punctuation is left out
        ("the", ["a"], 0, 1),  # no word is left of either
        ("cat sat", ["cat"], 2 / 3, 0),
        ("cat cat", ["cat sat cat"], 4 / 5, 0),
        ("cat", ["dog", "a cat sat down"], 1 / 2, 0),
    ],
)
def test_words_are_compared_without_case_punctuation_and_articles(said, answers, f1, exact):
    assert score({"answers": answers}, said) == {"f1": f1, "exact_match": exact}


WORDS = st.sampled_from(["the", "The", "cat", "Cat,", "dog", "a", "9", "кот", "。", "-"])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@given(TEXTS, TEXTS, TEXTS)
def test_scores_are_symmetric_and_another_answer_never_lowers_them(said, first, second):
    one, other = score({"answers": [first]}, said), score({"answers": [second]}, said)
    assert one == score({"answers": [said]}, first)
    assert one["exact_match"] <= one["f1"] <= 1 or not one["f1"]
    both = score({"answers": [first, second]}, said)
    assert both == {name: max(one[name], other[name]) for name in both}
