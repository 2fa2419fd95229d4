"""A conversation as the text that a model reads, and that text as tokens with labels.

Labels are on the assistant's text and its end token only. The whole text is tokenised once and the
labels found by character offsets, so that the tokens are those of real use, across turns too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError, InputError

CHATS = ("auto", "tulu", "template")
"""The names that `chat_format` knows."""
Turn = tuple[str, str]
"""Role and content."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NOW = "strftime_now"
"""What templates call to write the date; transformers gives them the clock's."""
_DIRECTIVE = re.compile(r"(?<!\{)%-?[A-Za-z]")
_MARK = "\ue000"
_PROBES = {
    "user": (("user", _MARK),),
    "assistant": (("user", "?"), ("assistant", _MARK)),
    "system": (("system", _MARK), ("user", "?")),
}
_LEADING_TOKENS = re.compile(r"\s*(?:<[^<>\s]+>)+")
_LEADING_TOKEN = re.compile(r"\s*<[^<>\s]+>")


@dataclass(frozen=True)
class Rendered:
    """Text, and the character ranges [start, end) of each answer with its end token, in order.

    What is given of an answer (`Message.given`) is not in its range. `ends` are where the answers themselves
    end, before their end tokens.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]

    def without_ends(self) -> Rendered:
        """The same, with ranges that leave the end tokens out."""
        spans = tuple(
            (start, min(end, last)) for (start, end), last in zip(self.spans, self.ends, strict=True)
        )
        return Rendered(self.text, spans, self.ends)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of one row: `ids` int32 [T], `labels` bool [T]; labels[0] is False, as nothing predicts it."""

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tulu:
    """Open-instruct's format: `<|user|>\\n..\\n<|assistant|>\\n..{eos}\\n`, contents stripped.

    `bos` comes first in the text; "" for none.
    """

    eos: str
    bos: str = ""

    name = "tulu"
    """As the setting `chat` has it."""

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The text ends right after the last eos; a span is an answer and its eos."""
        text, spans, ends = self.bos, [], []
        for message in _through_last_answer(messages):
            text += f"<|{message.role}|>\n"
            start = len(text)
            text += message.content.strip()
            if message.role == "assistant":
                end = len(text)
                text += self.eos
                if message.learn:
                    ends.append(end)
                    spans.append((start + len(message.given), len(text)))
            text += "\n"
        return Rendered(text.removesuffix("\n"), tuple(spans), tuple(ends))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to and with the last `<|assistant|>\\n`."""
        text = self.bos
        for message in _without_last_answer(messages):
            end = self.eos if message.role == "assistant" else ""
            text += f"<|{message.role}|>\n{message.content.strip()}{end}\n"
        return text + "<|assistant|>\n"


@dataclass(frozen=True)
class Template:
    """The tokenizer's own chat template.

    Where an answer stands in the text is found by what changes when another text stands in its place. So what
    the template itself writes, as an empty thought or a header, is never taken for the answer; and where it
    renders an earlier turn otherwise once others follow, the whole conversation's rendering counts. A
    template with `{% generation %}` says itself what is learnt. One that writes the date is given that of
    `day`, or today's without it.
    """

    tokenizer: Any
    day: datetime | None = None

    name = "template"
    """As the setting `chat` has it."""

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A span is what is visible of an answer, and the token that ends its turn.

        Raises InputError if the template fails, or leaves out a part of a message. Thoughts, up to
        `</think>`, may be left out of any answer but the last.
        """
        messages = _through_last_answer(messages)
        turns = [(message.role, message.content) for message in messages]
        text = self._apply(turns)
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        places = {i: self._place(turns, i, text) for i in answers}
        self._refuse_unshown(turns, text, places)
        learnt = [i for i in answers if messages[i].learn]
        spans = [self._span(text, places[i], messages[i]) for i in learnt]
        if _GENERATION.search(self.source):
            others = [places[i] for i in answers if i not in learnt]
            marked = self._marked(turns)
            spans = [mark for mark in marked if not any(a < mark[1] and mark[0] < b for a, b in others)]
        answered = [places[i][1] for i in learnt]
        ends = (max((at for at in answered if a < at <= b), default=b) for a, b in spans)
        return Rendered(text, tuple(spans), tuple(ends))

    def _refuse_unshown(
        self, turns: Sequence[Turn], text: str, places: Mapping[int, tuple[int, int]]
    ) -> None:
        """Raise InputError for a turn that the text lacks a part of, wherever else its words may stand."""
        marks = [chr(ord(_MARK) + i) for i in range(len(turns))]
        marked = self._apply([turn if i in places else (turn[0], marks[i]) for i, turn in enumerate(turns)])
        for i, (role, content) in enumerate(turns):
            shown = text[slice(*places[i])] if i in places else text if marks[i] in marked else ""
            if not _holds(shown, content, thoughts=i not in places or i == max(places)):
                raise InputError(
                    f"the tokenizer's chat template leaves out a part of message {i + 1} ({role}); "
                    "use --chat tulu, or another template"
                )

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to and with the template's generation prompt."""
        return self._apply([(m.role, m.content) for m in _without_last_answer(messages)], True)

    def _span(self, text: str, place: tuple[int, int], message: Message) -> tuple[int, int]:
        """From the answer, behind what is given of it, to the end of its turn."""
        start, end = place
        for given in (message.given, message.given.lstrip()):
            if given and text.startswith(given, start):
                start += len(given)
                break
        tail = text[end:]
        outer = len(tail) - len(tail.lstrip())
        ending = next((e for e in self._endings if tail[outer:].startswith(e)), "")
        return start, end + outer + len(ending) if ending else end

    def _place(self, turns: Sequence[Turn], i: int, text: str) -> tuple[int, int]:
        """Where the text has what it shows of message `i`."""
        role, content = turns[i]
        stand_in = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in text)
        other = self._apply([*turns[:i], (role, stand_in), *turns[i + 1 :]])
        start, end = _difference(text, other)
        if "</think>" in content:
            start = _with_thought(text, start, end, content)
        shown = text[start:end]
        if shown.strip() != content.strip():  # thoughts are left out, and space with them
            start, end = start + len(shown) - len(shown.lstrip()), end - len(shown) + len(shown.rstrip())
        return start, end

    @cached_property
    def source(self) -> str:
        """The template, in which it is `day` for ever."""
        source = str(self.tokenizer.get_chat_template())
        return source if self.day is None else _on(self.day, source) + source

    @cached_property
    def _endings(self) -> list[str]:
        """What the template writes to end an answer's turn, within a conversation and at its end."""
        question, answer = ("user", "\ue000"), ("assistant", "\ue001")
        try:
            last = self._apply([question, answer]).partition("\ue001")[2]
            middle = self._apply([question, answer, question]).partition("\ue001")[2]
        except InputError:
            return []
        middle = middle[: middle.find("\ue000")]
        shared = last[: _common(last, middle)]
        if shared.strip() and shared.rstrip() == last.rstrip():
            return [shared.strip()]
        if tokens := _LEADING_TOKENS.match(shared):
            return [tokens[0].strip()]
        found = [match[0].strip() for tail in (middle, last) if (match := _LEADING_TOKEN.match(tail))]
        return found if last.strip() else []

    def _marked(self, turns: Sequence[Turn]) -> tuple[tuple[int, int], ...]:
        """What the template marks as the model's own."""
        from transformers.utils.chat_template_utils import render_jinja_template

        _, marked = render_jinja_template(
            conversations=[self._messages(turns)],
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return tuple((start, end) for start, end in marked[0])

    @cached_property
    def _in_parts(self) -> frozenset[str]:
        """Roles whose content the template shows as a list of parts, and not as a text."""
        found: set[str] = set()
        for role, probe in _PROBES.items():
            shown = []
            for in_parts in (False, True):
                turns = [
                    _message(*turn, turn[0] in found or (in_parts and turn[0] == role)) for turn in probe
                ]
                with suppress(*_failures()):
                    text = self.tokenizer.apply_chat_template(
                        turns, chat_template=self.source, tokenize=False
                    )
                    shown += [in_parts] * (_MARK in text and "'text'" not in text)
            if shown == [True]:
                found.add(role)
        return frozenset(found)

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        return [_message(role, content, role in self._in_parts) for role, content in turns]

    def _apply(self, turns: Sequence[Turn], generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                self._messages(turns),
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except _failures() as error:
            raise InputError(
                f"the tokenizer's chat template fails ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); repair the row or use --chat tulu"
            ) from error
        return str(text)


ChatFormat = Tulu | Template
"""How turns become text. What follows the last answer is left out: no label depends on it."""


def chat_format(name: str, tokenizer: Any, now: Callable[[], datetime] = datetime.now) -> ChatFormat:
    """The format called `auto`, `tulu` or `template`; auto is the tokenizer's template, else tulu.

    `now` is asked for the day if the template writes one.

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
        template = Template(tokenizer)
        return Template(tokenizer, now()) if _NOW in template.source else template
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
        "template": chat.source if isinstance(chat, Template) else repr(chat),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode(
    messages: Sequence[Message], tokenizer: Any, chat: ChatFormat, where: str, *, ends: bool = True
) -> Encoded:
    """Tokens and labels of a conversation; a token is a label if it starts inside an answer's span, or with
    nothing but the space before it. Without `ends` the end tokens of answers are none.

    Raises InputError naming `where` if the chat template fails on it, ConfigError if the tokenizer is
    not fast.
    """
    _require_offsets(tokenizer)
    try:
        rendered = chat.render(messages) if ends else chat.render(messages).without_ends()
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
    return Encoded(np.asarray(tokens["input_ids"], np.int32), _labels(offsets, rendered))


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
    answer = end - 1 - int(np.flatnonzero(~encoded.labels[:end])[-1])  # the first token is no label
    if answer + 1 > max_length:
        return f"answer of {answer} tokens does not fit into {max_length}"
    start = max(0, end - max_length)
    labels = encoded.labels[start : start + max_length].copy()
    if labels[0]:
        labels[: int(np.argmin(labels))] = False
    return Encoded(encoded.ids[start : start + max_length], labels)


def _labels(offsets: npt.NDArray[np.int64], rendered: Rendered) -> npt.NDArray[np.bool_]:
    """Labels [T] from character offsets [T, 2]."""
    starts, ends = offsets[:, 0].copy(), offsets[:, 1]
    # Some tokenizers trim spaces from offsets, and leave a token that is all space no width at its
    # end; it starts where the token before it ended.
    previous = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    bare = starts == ends
    starts[bare] = np.minimum(starts, previous)[bare]
    labels = np.zeros(len(offsets), np.bool_)
    for start, end in rendered.spans:
        labels |= (starts >= start) & (starts < end) & (ends > starts)
        for token in np.flatnonzero((starts < start) & (ends > start)):  # a space and an answer's first word
            labels[token] |= rendered.text[starts[token] : start].isspace()
    labels[:1] = False
    return labels


def _failures() -> tuple[type[Exception], ...]:
    """What a template can raise, as a program of its own: besides jinja's errors any of these."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, LookupError, TypeError, ValueError)


def _message(role: str, content: str, in_parts: bool) -> dict[str, Any]:
    """A turn as templates take it."""
    return {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}


def _on(day: datetime, source: str) -> str:
    """What makes it that day in the template behind it: a macro in the place of the clock."""
    met = sorted(set(_DIRECTIVE.findall(source)))
    said = "".join(f".replace({each!r}, {day.strftime(each)!r})" for each in met)
    return f"{{% macro {_NOW}(format) %}}{{{{ format{said} }}}}{{% endmacro %}}{{{{ '' }}}}"


def _difference(text: str, other: str) -> tuple[int, int]:
    """Where `text` has what `other` has not: between what both begin and end with."""
    start = _common(text, other)
    return start, len(text) - _common(text[start:][::-1], other[start:][::-1])


def _common(a: str, b: str) -> int:
    """How many characters both begin with."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _with_thought(text: str, start: int, end: int, content: str) -> int:
    """The start of an answer whose thought begins as the template's own empty one does."""
    wanted = _squeezed(content)
    for place in range(start, max(-1, start - len("<think>") - 4), -1):
        if _squeezed(text[place:end]) == wanted:
            return place + len(text[place:]) - len(text[place:].lstrip())
    return start


def _holds(text: str, content: str, *, thoughts: bool) -> bool:
    """Whether a text has all of a message but for space; without its thoughts if these may go."""
    found = _squeezed(text)
    return _squeezed(content) in found or (
        not thoughts and _squeezed(content.rpartition("</think>")[2]) in found
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
    answers = [i for i, message in enumerate(messages) if message.learnt]
    return messages[: answers[-1] + 1] if answers else messages


def _without_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages
