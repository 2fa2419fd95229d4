"""The words of a text, in any script: what near duplicates and BM25 compare.

Words are runs of Unicode letters, digits and their combining marks, in NFKC and without case; every
character of a script without spaces (Chinese, Japanese, Thai, ...) is a word of its own.
"""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR"),
)
"""Names of the characters of scripts that put no space between words begin so."""


def plain_words(text: str) -> str:
    """The words of a text with one space between them."""
    if not text.isascii():
        # `translate` is 20 times as fast on ASCII, which many texts are but for quotes and dashes.
        text = _NOT_ASCII.sub(lambda run: run[0].translate(_LETTERS), unicodedata.normalize("NFKC", text))
    return " ".join(text.translate(_LETTERS).split())


class _Letters(dict[int, str]):
    """For `str.translate`: what stands for a character in words, by its code; filled as they are met."""

    def __missing__(self, code: int) -> str:
        self[code] = found = self._look_up(chr(code))
        return found

    @staticmethod
    def _look_up(char: str) -> str:
        kind, name = unicodedata.category(char), unicodedata.name(char, "")
        if kind == "Cf" or name.startswith("VARIATION SELECTOR"):
            return ""  # joiners, soft hyphens, emoji styles: nobody sees them
        if kind[0] not in "LNM":
            return " "
        return f" {char} " if name.startswith(_UNSPACED) else char.casefold()


_LETTERS = _Letters()
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
