"""Text, tables and data as HTML: whatever comes from a file is text here, and never markup.

Characters that cannot be seen, or that turn the order of others around, are shown by name.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with control characters, direction marks and lone surrogates shown by picture or number."""
    return _UNSEEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def escape(text: object) -> str:
    """`text` as HTML shows it."""
    return html.escape(visible(str(text)))


def plotted(text: object) -> str:
    """`text` as plotly shows it, which knows some markup of HTML, and of its entities only a few."""
    return html.escape(visible(str(text)), quote=False)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is its class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    caption: str,
    words: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    limit: int = 0,
) -> str:
    """A table whose first columns hold words and the others numbers; the first names the row.

    Args:
        caption: above it.
        words, numbers: headings of the columns.
        rows: cells of each row, as they are to be read.
        limit: rows that are shown at once, all if 0.
    """
    kinds = ["word"] * len(words) + ["number"] * len(numbers)
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(heading)}</th>'
        for kind, heading in zip(kinds, [*words, *numbers], strict=True)
    )
    body = "\n".join(_row(kinds, row) for row in rows)
    shown = f' data-limit="{limit}"' if limit else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{shown}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _row(kinds: Sequence[str], cells: Sequence[str]) -> str:
    named, *others = zip(kinds, cells, strict=True)
    rest = "".join(f'<td class="{kind}"><bdi>{escape(cell)}</bdi></td>' for kind, cell in others)
    return f'<tr><th scope="row" class="{named[0]}"><bdi>{escape(named[1])}</bdi></th>{rest}</tr>'


def script_json(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def count(value: float) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}"


def number(value: float | None, places: int = 4, sign: str = "") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:{sign}.{places}f}"


def with_error(value: float, error: float | None, places: int = 4, sign: str = "") -> str:
    """A number with its standard error, where there is one."""
    return number(value, places, sign) + ("" if error is None else f" ± {error:.{places}f}")


def seconds(value: float) -> str:
    """A time as people say it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
