"""A benchmark as questions, each the text that a model is shown, and how they are evaluated.

The target of a selection and the evaluation are both made of these questions, so both show the same text.
Knows nothing of files, models or chat formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusterucb.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """A question, ready to be asked: user turn `ask`, then an assistant turn that begins with `opening`."""

    id: str
    """Task, place in the official file, 0-based: "gsm8k/test/17"; the official id where there is one."""
    subtask: str
    """What results are grouped by: a subject, a language, or the task's own name."""
    ask: str
    """The user's turn, shots included, without space around it."""
    opening: str
    """How the assistant's turn begins: given to the model, never generated or learnt."""
    answer: str
    """The rest of a right answer, right as it follows `opening`; "" where the data has none to show."""
    core: str
    """The question alone, with its choices or its passage, to look for it among training rows."""
    gold: Mapping[str, Any]
    """What the scorer needs; JSON can hold it."""

    @property
    def digest(self) -> str:
        """Equal for the same question in another split or place; space and case do not count."""
        plain = " ".join(self.core.casefold().split())
        return hashlib.blake2b(f"{self.task}\n{plain}".encode(), digest_size=8).hexdigest()

    @property
    def task(self) -> str:
        """Name of the benchmark."""
        return self.id.split("/", 1)[0]

    def to_row(self) -> dict[str, Any]:
        """The question as a row to learn from; `given` is the part of the content that is not learnt."""
        return {
            "id": self.id,
            "dataset": self.task,
            "subtask": self.subtask,
            "messages": [
                {"role": "user", "content": self.ask},
                {"role": "assistant", "content": self.opening + self.answer, "given": self.opening},
            ],
            "core": self.core,
            "digest": self.digest,
        }


Targets = Callable[[Path | None, int | None, int], list[Question]]
"""Official files (None: the hub), number of rows (None: the task's own), seed -> questions to select for."""
Questions = Callable[[Path | None, int], Iterator[Question]]
"""Official files (None: the hub), number of shots -> questions to evaluate on, each with its shots."""
Score = Callable[[Mapping[str, Any], str], dict[str, float]]
"""A question's gold and the text that the model wrote after its opening -> each metric, from 0 to 1."""


@dataclass(frozen=True)
class Variant:
    """One way to evaluate a task."""

    shots: int
    metrics: tuple[str, ...]
    """The first is the one that stands for the task."""
    macro: bool = False
    """Whether the result is the mean over subtasks of their means, else the mean over all questions."""
    choices: tuple[str, ...] = ()
    """What may follow the opening: the likeliest counts. Empty where the model writes its answer."""
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    samples: int = 1
    """Answers that the model writes to each question."""
    k: int = 1
    """The k of pass@k."""


@dataclass(frozen=True)
class Task:
    """A benchmark."""

    name: str
    targets: Targets
    questions: Questions
    variants: Mapping[str, Variant]
    """What can be evaluated, by name."""
    score: Score | None = None
    """None where the answer is chosen (MMLU) or has to be run (HumanEval)."""


def draw(task: str, there: int, rows: int | None, seed: int, usual: int | None = None) -> list[int]:
    """`rows` of the indices 0 to `there` - 1, drawn by the seed, sorted.

    For None as many as are `usual`, if there are that many; all of them where no number is.
    Raises ConfigError if there are not `rows`.
    """
    if rows is None:
        rows = min(usual or there, there)
    if not 1 <= rows <= there:
        raise ConfigError(f"{task}: {rows} target rows were asked for; expected 1 to {there}")
    drawn = np.random.default_rng(seed).choice(there, rows, replace=False)
    return [int(i) for i in np.sort(drawn)]


def check_shots(task: str, shots: int, most: int) -> None:
    """Raise ConfigError unless a question of the task can have that many shots."""
    if not 0 <= shots <= most:
        expected = f"0 to {most}" if most else "0"
        raise ConfigError(f"{task}: {shots} shots were asked for; expected {expected}")


def held_out(
    task: Task, data_dir: Path | None, rows: int, seed: int, unwanted: Container[str]
) -> list[Question]:
    """At most `rows` questions, drawn by `seed`, without shots; none whose digest is `unwanted`.

    Raises ConfigError if the benchmark has no worked answers (BBH), or only such as are in the target.
    """
    asked = task.questions(data_dir, 0)
    known = [question for question in asked if question.answer and question.digest not in unwanted]
    if not known:
        raise ConfigError(f"holdout {task.name}: has no question with a worked answer to hold out")
    chosen = np.random.default_rng(seed).permutation(len(known))[:rows]
    return [known[i] for i in np.sort(chosen)]
