"""GSM8K: school arithmetic, answered in steps (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

The shots are the eight of Wei et al. (2022, https://arxiv.org/abs/2201.11903), read from lm-eval.
A solution has steps with calculator marks, then a last line `#### 72`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from clusterucb.data.files import Lines
from clusterucb.errors import InputError
from clusterucb.tasks.files import Official, harness_files, samples, text_field
from clusterucb.tasks.task import Question, Task, Variant, check_shots, draw

_FILES = Official(
    "gsm8k",
    expects="gsm8k/train.jsonl (for the target) and gsm8k/test.jsonl (for the evaluation)",
    url="https://github.com/openai/grade-school-math/tree/master/grade_school_math/data",
    also=("gsm",),
)
_DEFAULT_ROWS = 64
_OPENING = "Answer:"
_STOP = ("\n\nQuestion:",)  # a model that goes on to make up the next question has given its answer
_FINAL = "####"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
# A minus that follows a digit or a letter is a subtraction or a hyphen.
_NUMBER = re.compile(r"(?:(?<![^\W_])-)?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")


def targets(data_dir: Path | None, rows: int | None, seed: int) -> list[Question]:
    """Training problems, drawn by the seed, without shots."""
    lines = _open(data_dir, "train")
    return [_question(lines, i, "train", []) for i in draw("gsm8k", len(lines), rows, seed, _DEFAULT_ROWS)]


def questions(data_dir: Path | None, shots: int) -> Iterator[Question]:
    """The test problems in the file's order."""
    examples = _shots(shots)
    lines = _open(data_dir, "test")
    return (_question(lines, i, "test", examples) for i in range(len(lines)))


def last_number(text: str) -> Decimal | None:
    """The last number in the text, its commas left out; None where there is none."""
    numbers = _NUMBER.findall(_COMMA.sub("", text))
    return Decimal(numbers[-1]) if numbers else None


def score(gold: Mapping[str, Any], output: str) -> dict[str, float]:
    """Whether the last number of the output is the gold one."""
    return {"exact_match": float(last_number(output) == Decimal(gold["number"]))}


def worked_answer(answer: str) -> str:
    """The solution as a person would write it: no calculator marks, and a last line "The answer is 72."

    Commas in the final number are left out ("1,080" becomes "1080"); the steps keep theirs.
    Raises ValueError if there is no `####` with something after it.
    """
    steps, mark, number = answer.rpartition(_FINAL)
    number = number.strip().replace(",", "")
    if not mark or not number:
        raise ValueError("no final answer, expected a last line #### 72")
    return f"{_CALCULATOR.sub('', steps).strip()}\nThe answer is {number}.".lstrip()


def _open(data_dir: Path | None, split: str) -> Lines:
    if data_dir is None:
        return Lines.open(f"hub:openai/gsm8k:main:{split}")
    return Lines.open(_FILES.files(data_dir, f"{split}.jsonl", f"{split}.jsonl.gz")[0])


def _question(lines: Lines, i: int, split: str, shots: list[str]) -> Question:
    record, where = lines.record(i), lines.where(i)
    question = text_field(record, "question", where).strip()
    try:
        answer = worked_answer(text_field(record, "answer", where)).strip()
    except ValueError as error:
        raise InputError(f"{where}: {error}. Fetch the official file again") from error
    number = last_number(answer)
    if number is None:
        raise InputError(f"{where}: answer ends without a number, expected #### 72. Fetch the file again")
    header = f"Answer the following question{'s' if shots else ''}."
    return Question(
        id=f"gsm8k/{split}/{i}",
        subtask="gsm8k",
        ask="\n\n".join([header, *shots, f"Question: {question}"]),
        opening=_OPENING,
        answer=f" {answer}",
        core=question,
        gold={"number": str(number)},
    )


def _shots(count: int) -> list[str]:
    if not count:
        return []
    examples = samples(harness_files("gsm8k", "gsm8k-cot.yaml")[0], "question")
    check_shots("gsm8k", count, len(examples))
    return [f"Question: {question}\nAnswer: {answer}" for question, answer in examples[:count]]


TASK = Task(
    name="gsm8k",
    targets=targets,
    questions=questions,
    variants={"gsm8k": Variant(shots=8, metrics=("exact_match",), max_new_tokens=512, stop=_STOP)},
    score=score,
)
