"""The data sets whose row is one question and one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clusterucb.data.rows import Message
from clusterucb.sources.source import Conversation, Converter, Item, RawRows, raw_text
from clusterucb.tasks.gsm8k import worked_answer

_Row = Mapping[str, Any]
_Pair = tuple[str, str] | str
_SENTENCE_END = (".", "!", "?")
# Line breaks are spelled backslash-n in FLAN's TSV files, a few of them with the backslash doubled.
_SPELLED_BREAK = re.compile(r"\\+n")


def single_turn(read: Callable[[_Row, str], _Pair]) -> Converter:
    """The converter whose rows are what `read` makes of a raw row: (user's text, assistant's text).

    The key is the row's number from 0, with dropped rows counted, as open-instruct numbers them.
    """

    def convert(rows: RawRows) -> Iterator[Item]:
        for number, (record, where) in enumerate(rows):
            pair = read(record, where)
            yield pair if isinstance(pair, str) else _conversation(number, *pair)

    return convert


def instruction(context: str, response: str) -> Callable[[_Row, str], _Pair]:
    """Reader of Alpaca's shape; `context` and `response` are the names of its two other columns.

    open-instruct draws one of several templates at random for each row. Here the user's text is always
    the instruction, then an empty line and the context if there is one: the same file each time.
    """

    def read(record: _Row, where: str) -> _Pair:
        asked = raw_text(record, "instruction", where).strip()
        given = raw_text(record, context, where).strip()
        if not asked:
            return "empty instruction"
        return f"{asked}\n\n{given}" if given else asked, raw_text(record, response, where).strip()

    return read


def prompt(record: _Row, where: str) -> _Pair:
    """Reader of FLAN's finished prompts, `inputs` and `targets`; a target stays as it is."""
    return raw_text(record, "inputs", where).strip(), raw_text(record, "targets", where)


def chain_of_thought(record: _Row, where: str) -> _Pair:
    """Reader of both forms of FLAN's CoT part: finished prompts, or question, answer and rationale.

    Of the latter the assistant says the rationale, then "So the answer is ANSWER.": on the same line
    after a single line that ends as a sentence does, else (most sums of AQuA) on a line of its own.
    """
    if "rationale" not in record:
        return prompt(record, where)
    question, answer, rationale = (
        _SPELLED_BREAK.sub("\n", raw_text(record, column, where)).strip()
        for column in ("inputs", "answer", "rationale")
    )
    if not answer or not rationale:
        return "empty rationale" if answer else "empty answer"
    one_sentence_more = "\n" not in rationale and rationale.endswith(_SENTENCE_END)
    ending = f"So the answer is {answer.removesuffix('.')}."
    return question, f"{rationale}{' ' if one_sentence_more else chr(10)}{ending}"


def worked_problem(record: _Row, where: str) -> _Pair:
    """Reader of GSM8K, its answers as `worked_answer` writes them."""
    answer = raw_text(record, "answer", where)
    if not answer.strip():
        return "empty output"
    try:
        return raw_text(record, "question", where).strip(), worked_answer(answer)
    except ValueError:
        return "no final answer"


def _conversation(number: int, asked: str, answered: str) -> Item:
    if not asked.strip():
        return "empty instruction"
    if not answered.strip():
        return "empty output"
    return Conversation(str(number), (Message("user", asked), Message("assistant", answered)))
