"""A section of the page as it is being written: HTML, figures and the data of both.

Colours of lines and points, shared by all pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clusterucb.report.markup import escape, paragraph, table


@dataclass(frozen=True)
class Choice:
    """What a figure can be switched to: which of its traces are seen, and how they look.

    Attributes:
        label: in the menu.
        visible: of each trace.
        style: attributes of traces, by plotly's names, each a list with a value a trace.
    """

    label: str
    visible: Sequence[bool]
    style: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure as plotly.js takes it. Words from files are escaped for it (`markup.plotted`).

    Attributes:
        data: the traces.
        layout: of plotly's; colours of text and grid are the page's.
        label: what is seen, for those who do not see it.
        caption: under it.
        choices: of a menu above it, if there are any.
        menu: what is chosen.
        square: not wider than high.
    """

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    label: str
    caption: str
    choices: Sequence[Choice] = ()
    menu: str = ""
    square: bool = False


@dataclass
class Section:
    """A section with its heading.

    Attributes:
        key: unique on the page.
        title: of the section.
    """

    key: str
    title: str
    parts: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str, kind: str = "") -> None:
        """A paragraph."""
        self.parts.append(paragraph(text, kind))

    def head(self, text: str) -> None:
        """A heading inside the section."""
        self.parts.append(f"<h3>{escape(text)}</h3>")

    def table(
        self,
        caption: str,
        words: Sequence[str],
        numbers: Sequence[str],
        rows: Iterable[Sequence[str]],
        limit: int = 0,
    ) -> None:
        """A table, as `markup.table` makes it."""
        self.parts.append(table(caption, words, numbers, rows, limit=limit))

    def figure(self, name: str, figure: Figure) -> None:
        """A figure, drawn when it comes into view."""
        key = f"{self.key}-{name}"
        menu = ""
        if len(figure.choices) > 1:
            options = "".join(
                f'<option value="{i}">{escape(choice.label)}</option>'
                for i, choice in enumerate(figure.choices)
            )
            menu = f'<label>{escape(figure.menu)} <select data-choices="{key}">{options}</select></label>'
        height = int(figure.layout.get("height", 380))
        kind = "plot square" if figure.square else "plot"
        self.parts.append(
            f'<figure>{menu}<div class="{kind}" id="{key}" role="img" aria-label="{escape(figure.label)}" '
            f'style="height:{height}px"></div><figcaption>{escape(figure.caption)}</figcaption></figure>'
        )
        self.figures[key] = {
            "data": figure.data,
            "layout": figure.layout,
            "choices": [{"visible": list(choice.visible), **choice.style} for choice in figure.choices],
        }

    def explorer(self, content: dict[str, Any]) -> None:
        """Rows that can be searched and filtered, filled in by the page's script."""
        self.examples[self.key] = content
        self.parts.append(f'<div class="explorer" data-examples="{self.key}"></div>')

    def html(self) -> str:
        """The section."""
        body = "\n".join(self.parts)
        return (
            f'<section id="{self.key}" aria-labelledby="{self.key}-title">'
            f'<h2 id="{self.key}-title">{escape(self.title)}</h2>\n{body}\n</section>'
        )


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a6fd1", "#e69f00")
"""Told apart by colour-blind eyes, and on white as on black (after Okabe and Ito, 2008)."""
GREY = "#888888"
