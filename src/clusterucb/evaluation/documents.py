"""A benchmark's questions as documents: each with its whole prompt, and what its answer is judged by.

The prompt is made by the chat format and the question that the target is made by, so both show a model
the same text.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from clusterucb.config import Common
from clusterucb.data.chat import ChatFormat
from clusterucb.data.rows import Message
from clusterucb.tasks.task import Question, Task, Variant

Document = dict[str, Any]
"""id, subtask, context (the prompt), answer, gold (JSON), choices, label (the right choice's place)."""


def documents(
    task: Task, variant: Variant, chat: ChatFormat, config: Common, unwanted: Container[str] = ()
) -> tuple[list[Document], list[str]]:
    """The questions that `config` asks for, and the ids of those whose digests are `unwanted`."""
    questions = list(task.questions(config.data_folder, variant.shots))
    wanted = [question for question in questions if question.digest not in unwanted]
    asked = drawn(wanted, config.evaluation.limit, config.seed)
    left_out = [question.id for question in questions if question.digest in unwanted]
    return [_document(question, variant, chat) for question in asked], left_out


def drawn(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions of each subtask, drawn by `seed`, in their own order."""
    if limit is None:
        return list(questions)
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.subtask, []).append(place)
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(own)[:limit] for _, own in sorted(places.items())]
    return [questions[i] for i in np.sort(np.concatenate(kept))]


def _document(question: Question, variant: Variant, chat: ChatFormat) -> Document:
    return {
        "id": question.id,
        "subtask": question.subtask,
        "context": chat.prompt([Message("user", question.ask)]) + question.opening,
        "answer": question.answer,
        "gold": json.dumps(question.gold, ensure_ascii=False),
        "choices": list(variant.choices),
        "label": variant.choices.index(question.answer) if variant.choices else -1,
    }
