"""What a benchmark is to the rest of the package: where its questions come from, how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterucb.tasks.question import Question

__all__ = ["Questions", "Score", "Targets", "Task", "Variant"]

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
    title: str
    licence: str
    url: str
    expects: str
    """The official files that a data folder must hold, in one line."""
    targets: Targets
    questions: Questions
    variants: Mapping[str, Variant]
    """What can be evaluated, by name."""
    score: Score | None = None
    """None where the answer is chosen (MMLU) or has to be run (HumanEval)."""
