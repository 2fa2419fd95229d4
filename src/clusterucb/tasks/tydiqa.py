"""TyDi QA, gold passage: questions on a passage in nine languages (Clark et al. 2020, https://arxiv.org/abs/2003.05002).

Answers are compared as SQuAD's official script, version 1.1, does (Rajpurkar et al. 2016,
https://arxiv.org/abs/1606.05250): only ASCII punctuation and English articles are left out.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterucb.data.files import Lines
from clusterucb.errors import InputError
from clusterucb.tasks.files import Official, list_field, read_json, text_field
from clusterucb.tasks.task import Question, Task, Variant, check_shots, draw

_FILES = Official(
    "tydiqa",
    expects="tydiqa/tydiqa-goldp-v1.1-train.json and, for the evaluation, tydiqa/tydiqa-goldp-v1.1-dev.json",
    url="https://github.com/google-research-datasets/tydiqa",
)
_HUB_SPLITS = {"train": "train", "dev": "validation"}
_LONG = 1500
"""Characters of a passage; a longer one makes no target and no shot, if it can be helped."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_INSTRUCTIONS = {
    "arabic": "أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
    "bengali": "প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
    "english": "Answer the following question based on the information in the given passage.",
    "finnish": "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
    "indonesian": "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
    "korean": "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
    "russian": "Ответьте на следующий вопрос на основе информации в данном отрывке.",
    "swahili": "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
    "telugu": "ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
}
_HEADINGS = {
    "arabic": ("المقطع:", "السؤال:", "الإجابة:"),
    "bengali": ("অধ্যায়:", "প্রশ্ন:", "উত্তর:"),
    "english": ("Passage:", "Question:", "Answer:"),
    "finnish": ("Kappale:", "Kysymys:", "Vastaus:"),
    "indonesian": ("Bagian:", "Pertanyaan:", "Jawaban:"),
    "korean": ("문단:", "질문:", "답변:"),
    "russian": ("Отрывок:", "Вопрос:", "Ответ:"),
    "swahili": ("Kifungu:", "Swali:", "Jibu:"),
    "telugu": ("పేరా:", "ప్రశ్న:", "సమాధానం:"),
}
"""What stands before passage, question and answer."""


@dataclass(frozen=True)
class _Item:
    id: str
    language: str
    context: str
    question: str
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        passage, question, _ = _HEADINGS[self.language]
        return f"{passage} {self.context}\n{question} {self.question}"


def targets(data_dir: Path | None, rows: int | None, seed: int) -> list[Question]:
    """One training question a language, without shots: the first whose passage is not long."""
    found = [_question(item, []) for _, item in sorted(_examples(data_dir).items())]
    return [found[i] for i in draw("tydiqa", len(found), rows, seed)]


def questions(data_dir: Path | None, shots: int) -> Iterator[Question]:
    """The dev questions in the file's order; the shot is the language's target."""
    check_shots("tydiqa", shots, 1)
    examples = _examples(data_dir) if shots else {}
    items = _items(data_dir, "dev")
    return (_question(item, [_shot(item, examples)] if shots else []) for item in items)


def score(gold: Mapping[str, Any], output: str) -> dict[str, float]:
    """SQuAD's F1 and exact match of the output's first line against the nearest answer."""
    said = _plain(output.strip().split("\n", 1)[0])
    answers = [_plain(answer) for answer in gold["answers"]]
    return {"f1": max(_f1(said, answer) for answer in answers), "exact_match": float(said in answers)}


def _plain(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(predicted: list[str], right: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(right)).values())
    # 2PR / (P + R) with P = common / predicted and R = common / right; no word in common is 0.
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


def _question(item: _Item, shots: list[_Item]) -> Question:
    opening = _HEADINGS[item.language][2]
    examples = [f"{shot.text}\n{opening} {shot.answers[0]}" for shot in shots]
    between = "\n\n" if shots else ""  # as LESS's target has it, and open-instruct's evaluation
    return Question(
        id=f"tydiqa/{item.id}",
        subtask=item.language,
        ask=_INSTRUCTIONS[item.language] + between + "\n\n".join([*examples, item.text]).strip(),
        opening=opening,
        answer=f" {item.answers[0].strip()}",
        core=f"{item.context.strip()}\n{item.question.strip()}",
        gold={"answers": list(item.answers)},
    )


def _examples(data_dir: Path | None) -> dict[str, _Item]:
    """Of each language, its first training question with a passage that is not long, else the shortest."""
    chosen: dict[str, _Item] = {}
    for item in _items(data_dir, "train"):
        best = chosen.setdefault(item.language, item)
        if len(best.context) > _LONG and len(item.context) < len(best.context):
            chosen[item.language] = item
    return chosen


def _shot(item: _Item, examples: Mapping[str, _Item]) -> _Item:
    if item.language not in examples:
        raise InputError(
            f"tydiqa: no training question in {item.language} to show before {item.id}; "
            "fetch the train file again"
        )
    return examples[item.language]


def _items(data_dir: Path | None, split: str) -> Iterator[_Item]:
    if data_dir is None:
        return _from_hub(split)
    name = f"tydiqa-goldp-v1.1-{split}.json"
    return _from_file(_FILES.files(data_dir, name, f"{name}.gz")[0])


def _from_file(path: Path) -> Iterator[_Item]:
    for a, article in enumerate(list_field(read_json(path), "data", str(path))):
        for p, paragraph in enumerate(list_field(article, "paragraphs", f"{path}, data[{a}]")):
            within = f"{path}, data[{a}].paragraphs[{p}]"
            context = text_field(paragraph, "context", within)
            for q, question in enumerate(list_field(paragraph, "qas", within)):
                where = f"{within}.qas[{q}]"
                given = list_field(question, "answers", where)
                answers = [text_field(answer, "text", where) for answer in given]
                yield _item(question, context, answers, where)


def _from_hub(split: str) -> Iterator[_Item]:
    lines = Lines.open(f"hub:google-research-datasets/tydiqa:secondary_task:{_HUB_SPLITS[split]}")
    for record, where in lines.records():
        answers = [str(text) for text in list_field(record.get("answers"), "text", where)]
        yield _item(record, text_field(record, "context", where), answers, where)


def _item(record: Mapping[str, Any], context: str, answers: list[str], where: str) -> _Item:
    name = text_field(record, "id", where)
    language = name.split("-", 1)[0]
    if language not in _HEADINGS:
        raise InputError(
            f"{where}: id {name!r:.60} begins with no language of the task; expected {', '.join(_HEADINGS)}"
        )
    return _Item(name, language, context, text_field(record, "question", where), tuple(answers))


TASK = Task(
    name="tydiqa",
    targets=targets,
    questions=questions,
    variants={
        "tydiqa": Variant(shots=1, metrics=("f1", "exact_match"), macro=True, max_new_tokens=50, stop=("\n",))
    },
    score=score,
)
