"""HTML of a chat page as Markdown: paragraphs, lists, headings, emphasis, tables and code; no more."""

from __future__ import annotations

from html.parser import HTMLParser

_PARAGRAPHS = {"p", "div", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"}
_LINES = {"br", "tr", "li"}
_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "code": "`"}
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BUTTON = "Copy code"


def html_to_text(html: str) -> str:
    """The text of `html`, its entities resolved, stripped."""
    page = _Page()
    page.feed(html)
    page.close()
    return page.text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._out: list[str] = []
        self._breaks = 2  # line breaks that the output ends with
        self._lists: list[int | None] = []  # the number of the last item; None in a list of bullets
        self._bulleted = False  # nothing stands behind the last bullet yet
        self._pre: _Pre | None = None

    def text(self) -> str:
        if self._pre is not None:  # cut off within a block of code
            self._end_pre()
        return "".join(self._out).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._pre is not None:
            self._pre.in_code |= tag == "code"
            return
        if tag == "pre":
            self._pre = _Pre()
            return
        self._break(tag)
        if tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._write(self._bullet())
            self._bulleted = True
        elif tag in ("td", "th") and not self._breaks:
            self._write(" | ")
        self._write(_MARKS.get(tag, "") or _HEADINGS.get(tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if self._pre is not None:
            if tag == "pre":
                self._end_pre()
            return
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        self._write(_MARKS.get(tag, ""))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._pre is not None:
            self._pre.add(data)
        elif data.strip() or not self._breaks:  # space between two blocks is none of the text
            self._write(data)

    def _end_pre(self) -> None:
        assert self._pre is not None
        block, self._pre = self._pre.text(), None
        self._break("p")
        self._write(block)
        self._break("p")

    def _bullet(self) -> str:
        depth = "  " * (len(self._lists) - 1)
        last = self._lists.pop() if self._lists else None
        self._lists.append(None if last is None else last + 1)
        return f"{depth}- " if last is None else f"{depth}{last + 1}. "

    def _break(self, tag: str) -> None:
        wanted = 1 if tag in _LINES else 2 if tag in _PARAGRAPHS else 0
        if self._lists:
            wanted = min(wanted, 1)
        if wanted > self._breaks and not (self._bulleted and tag in _PARAGRAPHS):
            self._write("\n" * (wanted - self._breaks))

    def _write(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._bulleted = False
            ending = len(text) - len(text.rstrip("\n"))
            self._breaks = self._breaks + ending if ending == len(text) else ending


class _Pre:
    """A block of code: what stands before the code is the language's name and the button."""

    def __init__(self) -> None:
        self.in_code = False
        self._head: list[str] = []
        self._code: list[str] = []

    def add(self, data: str) -> None:
        (self._code if self.in_code else self._head).append(data)

    def text(self) -> str:
        head, code = "".join(self._head), "".join(self._code)
        if not self.in_code:
            head, code = "", head
        language = head.replace(_BUTTON, "").strip()
        body = code.strip("\n")
        return f"```{language}\n{body}\n```"
