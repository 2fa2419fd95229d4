"""One question of a benchmark as the text that a model is shown.

The target of a selection and the evaluation are both made of these, so both show the same text. Knows
nothing of files, models or chat formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Question"]


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
