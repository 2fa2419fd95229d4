"""ShareGPT: chats that people shared, as a list of {from, value} turns.

What browsers left in shared chats, taken out: invisible marks, HTML, the words of a "Copy code" button.

Careful by design: a person's question about HTML must stay as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from clusterucb.data.rows import Message
from clusterucb.errors import InputError
from clusterucb.sources.html_text import html_to_text
from clusterucb.sources.source import Conversation, Dropped, RawRows, UniqueKeys

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant"), "assistant"),
}
_REFUSED = {sender: f"{sender} turn" for sender in ("system", "bing", "bard")}


def convert_sharegpt(rows: RawRows) -> Iterator[Conversation | Dropped]:
    """The chats, cleaned, cut where a role speaks twice; each piece from a user's to an assistant's turn.

    As open-instruct does, a chat with a turn of `system`, `bing` or `bard` is dropped whole.
    """
    keys = UniqueKeys()
    for number, (record, where) in enumerate(rows):
        turns = _turns(record["conversations"], where)
        refusal = _refusal(turns)
        if refusal:
            yield Dropped(refusal)
            continue
        messages = [Message(_ROLES[sender], clean(value, _ROLES[sender])) for sender, value in turns]
        kept = [message for message in messages if message.content]
        yield from [Dropped("empty turn")] * (len(messages) - len(kept))
        yield from _named(list(_pieces(kept)), _key(record, number), keys, number)


def _turns(turns: Any, where: str) -> list[tuple[str, str]]:
    if not isinstance(turns, list):
        raise InputError(f"{where}: conversations is {turns!r:.60}, expected a list of {{from, value}}")
    return [_turn(turn, number, where) for number, turn in enumerate(turns, 1)]


def _turn(turn: Any, number: int, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise InputError(f"{where}: turn {number} is {turn!r:.60}, expected {{from, value}}")
    value = turn["value"]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: value of turn {number} is {value!r:.60}, expected a string")
    sender = turn["from"]
    return sender if isinstance(sender, str) else "", value or ""


def _refusal(turns: list[tuple[str, str]]) -> str:
    """Why the whole chat is dropped, "" if it is not."""
    if not turns:
        return "empty conversation"
    stranger = next((sender for sender, _ in turns if sender not in _ROLES), None)
    return "" if stranger is None else _REFUSED.get(stranger, "unknown sender")


def _pieces(messages: list[Message]) -> Iterator[tuple[Message, ...] | Dropped]:
    """Runs of alternating roles, trimmed to begin with the user and end with the assistant."""
    cuts = [i for i, (a, b) in enumerate(pairwise(messages), 1) if a.role == b.role]
    for start, end in pairwise([0, *cuts, len(messages)]):
        if start < end and messages[start].role == "assistant":
            yield Dropped("opening assistant turn")
            start += 1
        if end - start == 1:
            yield Dropped("no reply")
        elif start < end:
            if messages[end - 1].role == "user":
                yield Dropped("closing user turn")
                end -= 1
            yield tuple(messages[start:end])


def _named(
    pieces: list[tuple[Message, ...] | Dropped], key: str, keys: UniqueKeys, row: int
) -> Iterator[Conversation | Dropped]:
    several = sum(not isinstance(piece, Dropped) for piece in pieces) > 1
    number = 0
    for piece in pieces:
        if isinstance(piece, Dropped):
            yield piece
        else:
            yield Conversation(keys.take(f"{key}_{number}" if several else key, row), piece)
            number += 1


def _key(record: Mapping[str, Any], number: int) -> str:
    own = record.get("id")
    return str(own) if isinstance(own, (str, int)) and str(own) else str(number)


# Zero-width space, word joiner, byte order mark. The joiners U+200C and U+200D carry meaning.
_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")
_EXPORTED = re.compile(r'<div class="[^"]*\b(markdown|prose|whitespace-pre-wrap)\b')
_HTML = re.compile(r"<(div|p)[\s>].*</(div|p|ul|ol|pre|table|blockquote|h[1-6])>", re.DOTALL)
_BUTTON = "Copy code"
_LANGUAGE = re.compile(r"[A-Za-z][\w+#.-]{0,23}")
_BEFORE_BUTTON = re.compile(r"(```)?\s*([A-Za-z][\w+#.-]{0,23}?)?Copy code(.*)")


def clean(text: str, role: str) -> str:
    """The turn's own text, stripped.

    HTML is read as such if it bears the class of ChatGPT's page, or, from the assistant, if all of the
    text is one (`<div` or `<p` at its start, an end tag at its end). All other tags are somebody's code.
    """
    text = text.translate(_INVISIBLE).strip()
    if _EXPORTED.match(text) or (role == "assistant" and _HTML.fullmatch(text)):
        text = html_to_text(text)
    if _BUTTON in text:
        text = _without_button(text)
    return text.strip()


def _without_button(text: str) -> str:
    """Without the button's words where they stand beside an opening fence or the name of a language."""
    lines: list[str] = []
    inside = False  # a block of code
    for line in text.split("\n"):
        match = _BEFORE_BUTTON.fullmatch(line.strip())
        if match:
            _press(lines, line, match, inside)
        else:
            lines.append(line)
        inside ^= line.strip().startswith("```")
    return "\n".join(lines)


def _press(lines: list[str], line: str, match: re.Match[str], inside: bool) -> None:
    fence, language, rest = match[1] or "", match[2] or "", match[3]
    before = lines[-1].strip() if lines else ""
    bare_fence = inside and before == "```"
    if fence or bare_fence:
        if bare_fence:
            lines.pop()
        lines.append(f"```{language}")
        lines.extend([rest] if rest.strip() else [])
    elif rest.strip():  # a sentence that begins with these words
        lines.append(line)
    elif language:
        lines.append(language)
    elif not (inside and before.startswith("```")) and not _LANGUAGE.fullmatch(before):
        lines.append(line)
