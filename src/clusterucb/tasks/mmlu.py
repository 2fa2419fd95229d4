"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterucb.data.files import Lines
from clusterucb.errors import InputError
from clusterucb.tasks.files import Official, list_field, text_field
from clusterucb.tasks.task import Question, Task, Variant, check_shots, draw

_FILES = Official(
    "mmlu",
    expects="mmlu/dev/<subject>_dev.csv and, for the evaluation, mmlu/test/<subject>_test.csv",
    url="https://people.eecs.berkeley.edu/~hendrycks/data.tar",
)
_LETTERS = "ABCD"
_MOST_SHOTS = 5  # the dev file of a subject has five questions


@dataclass(frozen=True)
class _Item:
    text: str
    """The question and its choices."""
    letter: str


def targets(data_dir: Path | None, rows: int | None, seed: int) -> list[Question]:
    """The dev questions of all subjects, without shots; `rows` of them, drawn by the seed, if given."""
    found = [
        _question(subject, "dev", i, item, [])
        for subject, items in _subjects(data_dir, "dev")
        for i, item in enumerate(items)
    ]
    return [found[i] for i in draw("mmlu", len(found), rows, seed)]


def questions(data_dir: Path | None, shots: int) -> Iterator[Question]:
    """The test questions, subject by subject; the shots are the subject's first dev questions."""
    check_shots("mmlu", shots, _MOST_SHOTS)
    dev = dict(_subjects(data_dir, "dev")) if shots else {}
    test = _subjects(data_dir, "test")
    return (
        _question(subject, "test", i, item, examples)
        for subject, items in test
        for examples in [_shots(subject, dev, shots)]
        for i, item in enumerate(items)
    )


def _question(subject: str, split: str, i: int, item: _Item, shots: Sequence[_Item]) -> Question:
    # Two spaces after "about", a slip of MMLU's first release that LESS and open-instruct have kept.
    about = f" {subject.replace('_', ' ')}"
    header = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    examples = "".join(f"{shot.text}\nAnswer: {shot.letter}\n\n" for shot in shots)
    return Question(
        id=f"mmlu/{subject}/{split}/{i}",
        subtask=subject,
        ask=f"{header}{examples}{item.text}\nAnswer:",
        opening="The answer is:",
        answer=f" {item.letter}",
        core=item.text.strip(),
        gold={"letter": item.letter},
    )


def _shots(subject: str, dev: dict[str, list[_Item]], count: int) -> list[_Item]:
    items = dev.get(subject, [])
    if len(items) < count:
        raise InputError(
            f"mmlu, {subject}: {count} shots need as many dev questions, {len(items)} are there; "
            "fetch the dev file of that subject again"
        )
    return items[:count]


def _subjects(data_dir: Path | None, split: str) -> list[tuple[str, list[_Item]]]:
    """Each subject, sorted, with its questions in the file's order."""
    if data_dir is None:
        return _from_hub(split)
    ending = f"_{split}.csv"
    paths = _FILES.files(data_dir, f"{split}/*{ending}")
    return [(path.name.removesuffix(ending), _read(path)) for path in paths]


def _read(path: Path) -> list[_Item]:
    items, start = [], 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if cells:
                    items.append(_item(cells, f"{path}, line {start}"))
                start = reader.line_num + 1  # a field may span lines: the row's first one is named
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}, line {start}: cannot be read as CSV ({error}); fetch it again") from error
    if not items:
        raise InputError(f"{path}: empty, no question in it; fetch it again")
    return items


def _item(cells: Sequence[str], where: str) -> _Item:
    if len(cells) != 6:
        raise InputError(
            f"{where}: {len(cells)} columns, expected 6 (question, four choices, letter). Fetch it again"
        )
    question, *choices, letter = cells
    if len(letter) != 1 or letter not in _LETTERS:
        raise InputError(f"{where}: the answer is {letter!r:.40}, expected one of A, B, C, D. Fetch it again")
    lines = (f"\n{name}. {choice}" for name, choice in zip(_LETTERS, choices, strict=True))
    return _Item(question + "".join(lines), letter)


def _from_hub(split: str) -> list[tuple[str, list[_Item]]]:
    lines = Lines.open(f"hub:cais/mmlu:all:{split}")
    subjects: dict[str, list[_Item]] = {}
    for record, where in lines.records():
        answer = record.get("answer")
        letter = _LETTERS[answer] if isinstance(answer, int) and 0 <= answer < 4 else repr(answer)
        choices = map(str, list_field(record, "choices", where))
        cells = [text_field(record, "question", where), *choices, letter]
        subjects.setdefault(text_field(record, "subject", where), []).append(_item(cells, where))
    return sorted(subjects.items())


def _variant(shots: int) -> Variant:
    return Variant(shots=shots, metrics=("acc",), choices=tuple(f" {letter}" for letter in _LETTERS))


TASK = Task(
    name="mmlu",
    targets=targets,
    questions=questions,
    variants={"mmlu_0shot": _variant(0), "mmlu_5shot": _variant(5)},
)
