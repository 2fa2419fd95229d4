"""What a section of the page is made of: facts for its template, figures, rows to be read.

Words from files are data: templates escape what they are given, `plotted` does for plotly. Characters that
cannot be seen, or that turn the order of others around, are shown by name.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

Trace = dict[str, Any]
"""A trace or a layout as plotly.js takes it; words from files in it are escaped by `plotted`."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a6fd1", "#e69f00")
"""Told apart by colour-blind eyes, and on white as on black (after Okabe and Ito, 2008)."""
GREY = "#888888"
FAINT = "rgba(136,136,136,0.35)"

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Figure:
    """A figure, drawn by the page's script when it comes into view."""

    label: str  # what is seen, for those who do not see it
    traces: Sequence[Trace] = ()  # those that are always seen, above all others
    choices: Mapping[str, Sequence[Trace]] = field(default_factory=dict)  # by a menu's words, the first first
    menu: str = ""  # what is chosen
    layout: Trace = field(default_factory=dict)  # colours of text and grid are the page's
    square: bool = False  # not wider than high

    def to_json(self) -> dict[str, Any]:
        """Traces, layout, and which traces are seen by each choice."""
        data = [*chain(*self.choices.values()), *self.traces]
        seen = [self._seen(choice) for choice in self.choices]
        if seen:
            data = [{**trace, "visible": visible} for trace, visible in zip(data, seen[0], strict=True)]
        return {"data": data, "layout": self.layout, "choices": [{"visible": choice} for choice in seen]}

    def _seen(self, choice: str) -> list[bool]:
        chosen = [name == choice for name, group in self.choices.items() for _ in group]
        return chosen + [True] * len(self.traces)


@dataclass(frozen=True)
class Section:
    """What fills a section's template."""

    facts: dict[str, Any] = field(default_factory=dict)  # by the names that the template calls them
    figures: dict[str, Figure] = field(default_factory=dict)  # by name; a template draws those that are there
    examples: dict[str, Any] | None = None  # rows that can be searched and filtered, for the page's script


def axis(title: str, **look: Any) -> Trace:
    """An axis of a figure with its title."""
    return {"title": {"text": title}, **look}


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers of a figure to four figures, as a page holds many."""
    return [float(f"{value:.4g}") for value in values]


def visible(text: str) -> str:
    """`text` with control characters, direction marks and lone surrogates shown by picture or number."""
    return _UNSEEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def script_json(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin another."""
    return htmlsafe_json_dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def plotted(text: str) -> str:
    """`text` for plotly, which knows some markup of HTML, and of its entities only a few."""
    return html.escape(visible(text), quote=False)


def commas(value: float) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}"


def number(value: float | None, form: str = ".4f") -> str:
    """A number in a format such as `+.4f`, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def percent(value: float | None) -> str:
    """A share in whole percent, or a dash where there is none."""
    return number(value, ".0%")


def with_error(value: float, error: float | None, form: str = ".4f") -> str:
    """A number with its standard error, where there is one, which has no sign."""
    return number(value, form) + ("" if error is None else f" ± {error:{form.removeprefix('+')}}")


def seconds(value: float) -> str:
    """A time as 12.3 s, 4 min 20 s or 3 h 05 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


FILTERS = {written.__name__: written for written in (commas, number, percent, seconds, with_error)}
"""How templates write numbers."""
