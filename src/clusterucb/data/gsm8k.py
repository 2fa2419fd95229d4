"""The form of a GSM8K solution: steps with calculator marks, then a last line `#### 72`."""

from __future__ import annotations

import re

__all__ = ["worked_answer"]

_FINAL = "####"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def worked_answer(answer: str) -> str:
    """The solution as a person would write it: no calculator marks, and a last line "The answer is 72."

    Commas in the final number are left out ("1,080" becomes "1080"); the steps keep theirs.
    Raises ValueError if there is no `####` with something after it.
    """
    steps, mark, number = answer.rpartition(_FINAL)
    number = number.strip().replace(",", "")
    if not mark or not number:
        raise ValueError(f"no final answer: expected a last line '{_FINAL} <number>'")
    return f"{_CALCULATOR.sub('', steps).strip()}\nThe answer is {number}.".lstrip()
