"""What browsers left in shared chats, taken out: invisible marks, HTML, the words of a "Copy code" button.

Careful by design: a person's question about HTML must stay as it was typed.
"""

from __future__ import annotations

import re

from clusterucb.sources.html_text import html_to_text

__all__ = ["clean"]

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
