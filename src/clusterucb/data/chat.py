"""A conversation as the text that a model reads, and that text as tokens with labels.

Labels are on the assistant's text and its end token only. The whole text is tokenised once and the
labels found by character offsets, so that the tokens are those of real use, across turns too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError, InputError

CHATS = ("auto", "tulu", "template")
"""The names that `chat_format` knows."""


@dataclass(frozen=True)
class Rendered:
    """Text, and the character ranges [start, end) of each answer with its end token, in order.

    What is given of an answer (`Message.given`) is not in its range.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of one row: `ids` int32 [T], `labels` bool [T]; labels[0] is False, as nothing predicts it."""

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class ChatFormat(Protocol):
    """How turns become text. What follows the last answer is left out: no label depends on it."""

    @property
    def name(self) -> str:
        """Name on the command line: tulu or template."""

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The whole conversation. Raises InputError, without naming the row, if it cannot be rendered."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the model is to answer; an answer at the very end is dropped."""


@dataclass(frozen=True)
class Tulu:
    """Open-instruct's format: `<|user|>\\n..\\n<|assistant|>\\n..{eos}\\n`, contents stripped.

    `bos` comes first in the text; "" for none.
    """

    eos: str
    bos: str = ""

    @property
    def name(self) -> str:
        """`tulu`."""
        return "tulu"

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The text ends right after the last eos; a span is an answer and its eos."""
        text, spans = self.bos, []
        for message in _through_last_answer(messages):
            text += f"<|{message.role}|>\n"
            start = len(text)
            text += message.content.strip()
            if message.role == "assistant":
                text += self.eos
                spans.append((start + len(message.given), len(text)))
            text += "\n"
        return Rendered(text.removesuffix("\n"), tuple(spans))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to and with the last `<|assistant|>\\n`."""
        turns = (f"<|{m.role}|>\n{m.content.strip()}{self._end(m)}\n" for m in _without_last_answer(messages))
        return self.bos + "".join(turns) + "<|assistant|>\n"

    def _end(self, message: Message) -> str:
        return self.eos if message.role == "assistant" else ""


@dataclass(frozen=True)
class Template:
    """The tokenizer's own chat template."""

    tokenizer: Any

    @property
    def name(self) -> str:
        """`template`."""
        return "template"

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A span runs from the end of the generation prompt to the end of the answer's end token.

        Raises InputError if the template fails, or renders a turn otherwise once others follow it.
        """
        messages = _through_last_answer(messages)
        full = self._apply(messages, False)
        spans = []
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            after = full if i + 1 == len(messages) else self._apply(messages[: i + 1], False)
            before = self._apply(messages[:i], True) if i else self._opening(messages[:1], after)
            if not (full.startswith(after) and after.startswith(before)):
                raise InputError(
                    f"the tokenizer's chat template rewrites earlier turns (message {i + 1}, assistant, "
                    "is rendered otherwise within the whole conversation); use --chat tulu"
                )
            turn, start = after[len(before) :], len(before)
            end = start + self._answer_length(turn, message.content)
            spans.append((start + _given_end(turn, message), end))
        return Rendered(full, tuple(spans))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to and with the template's generation prompt."""
        return self._apply(_without_last_answer(messages), True)

    @cached_property
    def _specials(self) -> list[str]:
        # Templates end turns with tokens that are special but have no role (<|eot_id|>, <|end|>), too.
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(token) for token in added if token.special}
        return sorted((texts | {str(token) for token in self.tokenizer.all_special_tokens}) - {""})

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt
            )
        # A template is a program of its own: besides jinja's errors it can raise any of these.
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the tokenizer's chat template fails ({type(error).__name__}: {reason}); "
                "repair the row or use --chat tulu"
            ) from error
        return str(text)

    def _opening(self, first: Sequence[Message], rendered: str) -> str:
        """What precedes an answer that opens the conversation: templates do not render no messages."""
        generation_prompt = self._apply(first, True).removeprefix(rendered)
        return rendered[: rendered.find(generation_prompt)] + generation_prompt

    def _answer_length(self, turn: str, content: str) -> int:
        """Length of answer and end token in `turn`, which is all that the template wrote for them."""
        specials = self._specials
        end = _content_end(turn, content)
        if end is None:  # the template wrote the answer in its own way: its end token comes last
            return max((turn.rfind(s) + len(s) for s in specials if s in turn), default=len(turn.rstrip()))
        found = [(at, -len(s)) for s in specials if (at := turn.find(s, end)) >= 0]
        if not found:
            return end
        at, negative_length = min(found)
        return at - negative_length


def chat_format(name: str, tokenizer: Any) -> ChatFormat:
    """The format called `auto`, `tulu` or `template`; auto is the tokenizer's template, else tulu.

    Raises ConfigError for another name, a template that the tokenizer lacks, a tokenizer without an
    end token under tulu, and one that is not fast.
    """
    if name not in CHATS:
        raise ConfigError(f"chat {name!r}: unknown; expected one of {', '.join(CHATS)}")
    _require_offsets(tokenizer)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if name == "template" and not has_template:
        raise ConfigError("chat 'template': the tokenizer has no chat template; use --chat tulu")
    if has_template and name != "tulu":
        return Template(tokenizer)
    if not tokenizer.eos_token:
        raise ConfigError(
            "chat 'tulu': the tokenizer has no end token (eos_token); set one, or use --chat template"
        )
    return Tulu(str(tokenizer.eos_token), _default_bos(tokenizer))


def fingerprint(tokenizer: Any, chat: ChatFormat) -> str:
    """Sha256, in hex, of all that decides which tokens a conversation becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    else:
        # Padding and truncation are traces of earlier calls, not part of the tokenizer.
        state = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    parts = {
        "tokenizer": state,
        "special": {key: str(token) for key, token in tokenizer.special_tokens_map.items()},
        "chat": chat.name,
        "template": tokenizer.chat_template if isinstance(chat, Template) else repr(chat),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode(messages: Sequence[Message], tokenizer: Any, chat: ChatFormat, where: str) -> Encoded:
    """Tokens and labels of a conversation; a token is a label if it starts inside an answer's span.

    Raises InputError naming `where` if the chat template fails on it, ConfigError if the tokenizer is
    not fast.
    """
    _require_offsets(tokenizer)
    try:
        rendered = chat.render(messages)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    tokens = tokenizer(
        rendered.text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,  # no advice on long texts: `fit` sees to them
    )
    offsets = np.asarray(tokens["offset_mapping"], np.int64).reshape(-1, 2)
    return Encoded(np.asarray(tokens["input_ids"], np.int32), _labels(offsets, rendered.spans))


def fit(encoded: Encoded, max_length: int) -> Encoded | str:
    """The row in at most `max_length` tokens, or the reason why it cannot be used.

    What follows the last label gives way first, then the prompt, from the left; never the last answer,
    which keeps at least one token before it. An earlier answer that loses tokens, or all that comes
    before it, is context only.
    """
    labelled = np.flatnonzero(encoded.labels)
    if not len(labelled):
        return "no label token"
    if len(encoded) <= max_length:
        return encoded
    end = int(labelled[-1]) + 1
    answer = end - _run_start(encoded.labels, end)
    if answer + 1 > max_length:
        return f"answer of {answer} tokens does not fit into {max_length}"
    start = max(0, end - max_length)
    labels = encoded.labels[start : start + max_length].copy()
    if labels[0]:
        labels[: int(np.argmin(labels))] = False
    return Encoded(encoded.ids[start : start + max_length], labels)


def _labels(offsets: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Labels [T] from character offsets [T, 2]."""
    starts, ends = offsets[:, 0].copy(), offsets[:, 1]
    # Some tokenizers trim spaces from offsets, and leave a token that is all space no width at its
    # end; it starts where the token before it ended.
    previous = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    bare = starts == ends
    starts[bare] = np.minimum(starts, previous)[bare]
    labels = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        labels |= (starts >= start) & (starts < end) & (ends > starts)
    labels[:1] = False
    return labels


def _run_start(labels: npt.NDArray[np.bool_], end: int) -> int:
    """Where the run of labels that stops before `end` starts."""
    gaps = np.flatnonzero(~labels[:end])
    return int(gaps[-1]) + 1 if len(gaps) else 0


def _content_end(turn: str, content: str) -> int | None:
    """Where the content ends if the turn begins with it, perhaps stripped; else None."""
    if turn.startswith(content):
        return len(content)
    indent = len(turn) - len(turn.lstrip())
    content = content.strip()
    return indent + len(content) if turn.startswith(content, indent) else None


def _given_end(turn: str, message: Message) -> int:
    """Where the given part of the answer ends in `turn`; 0 if the template wrote the answer otherwise."""
    whole = _content_end(turn, message.content)
    if whole is None or not message.given:
        return 0
    return turn.index(message.given, 0, whole) + len(message.given)


def _default_bos(tokenizer: Any) -> str:
    """The begin token if the tokenizer puts one before every text by itself, else ""."""
    if tokenizer.bos_token is None:
        return ""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if len(ids) and ids[0] == tokenizer.bos_token_id else ""


def _require_offsets(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"tokenizer {type(tokenizer).__name__}: not a fast one, so answers cannot be found in its "
            "tokens; expected a model folder with tokenizer.json"
        )


def _through_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    return messages[: answers[-1] + 1] if answers else messages


def _without_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages
