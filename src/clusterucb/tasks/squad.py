"""How SQuAD compares an answer with the right ones (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250).

As its official script, version 1.1: only ASCII punctuation and English articles are left out.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["best_exact", "best_f1", "normalise"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower-case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def best_exact(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers once both are normalised, else 0.0."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def best_f1(prediction: str, answers: Sequence[str]) -> float:
    """The greatest F1 of the prediction's words against an answer's."""
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _f1(predicted: list[str], right: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(right)).values())
    # 2PR / (P + R) with P = common / predicted and R = common / right; no word in common is 0.
    return 2 * common / (len(predicted) + len(right)) if common else 0.0
