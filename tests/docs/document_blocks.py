"""The fenced blocks of README.md and docs/: what each is, and whether it can be run.

A block is run unless the comment right before it says why not: `<!-- not run: needs the network -->`.
One with a title (```` ```yaml title="settings.yaml" ````) is a file that the page has its reader write. A
page that needs a finished run says so by `<!-- begins with: runs/first -->`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "yaml", "jsonl", "text"}

_FENCE = re.compile(r'^(?:<!-- ([^\n]*) -->\n\n?)?```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.M | re.S)
_COMMAND = re.compile(r"(?:\$ )?(?:clusterucb|python3?|pip|make|git|cd|apt|docker|\./)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block; `reason` says why it is not run, `title` is the file that it is."""

    page: str
    line: int
    language: str
    title: str
    reason: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """The lines of a shell block, each as a list of words."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [words for line in joined if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def blocks(text, page="page.md"):
    """All blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        comment, language, title, body = match.groups()
        reason = (comment or "").removeprefix("not run:").strip() if _says_why(comment) else ""
        line = text[: match.start(4)].count("\n")
        found.append(Block(page, line, language, title or "", reason, body))
    return found


def read_blocks(path):
    """The blocks of a document."""
    return blocks(path.read_text(), path.relative_to(ROOT).as_posix())


def finished_runs(text):
    """The run directories that a page begins with."""
    return [name for found in re.findall(r"<!-- begins with: (.*?) -->", text) for name in found.split()]


def flaws(text, page="page.md"):
    """Why a page's blocks could be neither run nor known as not run, one line a flaw."""
    found = []
    for block in blocks(text, page):
        if block.language not in LANGUAGES:
            found.append(f"{block}: a block of {block.language or 'no language'}, not of {sorted(LANGUAGES)}")
        if block.language == "jsonl" and not block.title:
            found.append(f"{block}: rows without a title are no file")
        if block.language == "text" and any(map(_COMMAND.match, block.text.splitlines())):
            found.append(f"{block}: a command in a block of text would never be run")
    fences = len(re.findall(r"^\s*```", text, re.M))
    if fences != 2 * len(blocks(text, page)):
        found.append(f"{page}: {fences} fences and {len(blocks(text, page))} blocks: one is indented or open")
    empty = re.findall(r"<!-- not run:?\s*-->", text)
    return found + [f"{page}: a block is not run, without a reason"] * len(empty)


def _says_why(comment):
    return bool(comment) and comment.startswith("not run:")
