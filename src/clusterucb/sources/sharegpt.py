"""ShareGPT: chats that people shared, as a list of {from, value} turns.

What browsers left in them is taken out: invisible marks, the words of a "Copy code" button. A chat that was
left as HTML is dropped; all files of `SOURCES` were cleaned of HTML by those who made them. A person's
question about HTML stays as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from clusterucb.data.rows import Message, unexpected
from clusterucb.sources.source import Conversation, Item, RawRows, free_key

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant"), "assistant"),
}
_REFUSED = {sender: f"{sender} turn" for sender in ("system", "bing", "bard")}
# Zero-width space, word joiner, byte order mark. The joiners U+200C and U+200D carry meaning.
_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")
_EXPORTED = re.compile(r'<div class="[^"]*\b(markdown|prose|whitespace-pre-wrap)\b')
_MARKUP = re.compile(r"<(div|p)[\s>].*</(div|p|ul|ol|pre|table|blockquote|h[1-6])>", re.DOTALL)
_FENCED = re.compile(r"^([ \t]*```)(.*?)(?=^[ \t]*```|\Z)(^[ \t]*```)?", re.DOTALL | re.MULTILINE)
_LANGUAGE = r"[A-Za-z][\w+#.-]{0,23}?"
_BUTTON_IN_FENCE = re.compile(rf"\A\s*({_LANGUAGE})?\n?Copy code\n?")
_BUTTON_BELOW_LANGUAGE = re.compile(rf"^([ \t]*{_LANGUAGE})\n?Copy code[ \t]*$", re.MULTILINE)


def convert_sharegpt(rows: RawRows) -> Iterator[Item]:
    """The chats, cleaned, cut where a role speaks twice; each piece from a user's to an assistant's turn.

    As open-instruct does, a chat with a turn of `system`, `bing` or `bard` is dropped whole; so is one with
    a turn of HTML.
    """
    keys = set[str]()
    for number, (record, where) in enumerate(rows):
        turns = _turns(record["conversations"], where)
        refusal = _refusal(turns)
        if refusal:
            yield refusal
            continue
        messages = [Message(_ROLES[sender], _clean(value)) for sender, value in turns]
        kept = [message for message in messages if message.content]
        yield from ["empty turn"] * (len(messages) - len(kept))
        yield from _named(list(_pieces(kept)), _key(record, number), keys, number)


def _turns(turns: Any, where: str) -> list[tuple[str, str]]:
    if not isinstance(turns, list):
        raise unexpected(f"{where}: conversations", turns, "a list of {from, value}")
    found = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise unexpected(f"{where}: turn {number}", turn, "{from, value}")
        sender, value = turn["from"], turn["value"]
        if value is not None and not isinstance(value, str):
            raise unexpected(f"{where}: value of turn {number}", value, "a string")
        found.append((sender if isinstance(sender, str) else "", value or ""))
    return found


def _refusal(turns: list[tuple[str, str]]) -> str:
    """Why the whole chat is dropped, "" if it is not."""
    if not turns:
        return "empty conversation"
    for sender, _ in turns:
        if sender not in _ROLES:
            return _REFUSED.get(sender, "unknown sender")
    return "HTML turn" if any(_is_page(_clean(value), _ROLES[sender]) for sender, value in turns) else ""


def _pieces(messages: list[Message]) -> Iterator[tuple[Message, ...] | str]:
    """Runs of alternating roles, trimmed to begin with the user and end with the assistant."""
    cuts = [i for i, (a, b) in enumerate(pairwise(messages), 1) if a.role == b.role]
    for start, end in pairwise([0, *cuts, len(messages)]):
        if start < end and messages[start].role == "assistant":
            yield "opening assistant turn"
            start += 1
        if end - start == 1:
            yield "no reply"
        elif start < end:
            if messages[end - 1].role == "user":
                yield "closing user turn"
                end -= 1
            yield tuple(messages[start:end])


def _named(pieces: list[tuple[Message, ...] | str], key: str, keys: set[str], row: int) -> Iterator[Item]:
    several = sum(not isinstance(piece, str) for piece in pieces) > 1
    number = 0
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        else:
            yield Conversation(free_key(f"{key}_{number}" if several else key, row, keys), piece)
            number += 1


def _key(record: Mapping[str, Any], number: int) -> str:
    own = record.get("id")
    return str(own) if isinstance(own, (str, int)) and str(own) else str(number)


def _is_page(text: str, role: str) -> bool:
    """Whether the turn is HTML of a web page; other tags are somebody's code.

    It is by the class of ChatGPT's own page or, from the assistant, if all of it is one element after the
    other (`<div` or `<p` at its start, an end tag at its end).
    """
    return bool(_EXPORTED.match(text) or (role == "assistant" and _MARKUP.fullmatch(text)))


def _clean(text: str) -> str:
    """The turn's own text, stripped: without invisible marks and the words of a "Copy code" button.

    These words go where they stand beside an opening fence or the name of a language.
    """
    text = text.translate(_INVISIBLE).strip()
    if "Copy code" in text:
        text = _FENCED.sub(_without_button, text)
        text = _BUTTON_BELOW_LANGUAGE.sub(r"\1", text)
    return text.strip()


def _without_button(block: re.Match[str]) -> str:
    opening, code, closing = block.groups("")
    return opening + _BUTTON_IN_FENCE.sub(lambda head: f"{head[1] or ''}\n", code) + closing
