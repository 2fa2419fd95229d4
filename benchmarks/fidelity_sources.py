"""All rows that the fidelity study's sources have: official files, the demo's wheels, Python and NumPy.

A source is a function without arguments that returns its rows; nothing is read before it is called, but a
missing official file is told at once.
"""

from __future__ import annotations

import errno
import importlib.util
import inspect
import json
import mimetypes
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from html.entities import codepoint2name
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clusterucb.data.rows import Row, parse_messages
from clusterucb.errors import InputError
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.source import Conversation, open_raw, raw_rows
from clusterucb.tasks import TASKS
from clusterucb.tasks.task import Question

CONSIDERED = 2_000
"""Training problems of GSM8K that its target is drawn from: most are too long."""
KNOWLEDGE = (
    "science",
    "literature",
    "psychology",
    "history",
    "politics",
    "movies",
    "sports",
    "humor",
    "gossip",
)

Source = Callable[[], Iterable[Row]]
Turn = tuple[str, str, str]
"""Where a row comes from within its source, what the user says, what the assistant answers."""

# ---------------------------------------------------------------- official files


def gsm8k(data_dir: Path) -> Source:
    """Training problems."""
    return _converted(data_dir, "gsm8k", "gsm8k", "gsm8k/train.jsonl")


def code_alpaca(data_dir: Path) -> Source:
    """All of it."""
    return _converted(data_dir, "code_alpaca", "code_alpaca", "code_alpaca/code_alpaca_2k.json")


def flan(data_dir: Path, task: str) -> Source:
    """A task of the chains of thought in Flan v2."""
    return _converted(data_dir, task, "cot", f"flan_cot/{task}_train.tsv")


def _converted(data_dir: Path, name: str, source: str, path: str) -> Source:
    """Rows as `clusterucb prepare` makes them of one raw file."""
    file = _official(data_dir, path)

    def rows() -> Iterator[Row]:
        raw = raw_rows(SOURCES[source], open_raw(SOURCES[source], file))
        for item in SOURCES[source].convert(raw):
            if isinstance(item, Conversation):
                yield row(name, item.key, [(message.role, message.content) for message in item.messages])

    return rows


def bbh(data_dir: Path, task: str, name: str | None = None) -> Source:
    """A task of BIG-Bench Hard: the question and, without steps, its answer."""
    file = _official(data_dir, f"bbh/{task}.json")

    def turns() -> Iterator[Turn]:
        for number, example in enumerate(json.loads(file.read_bytes())["examples"]):
            yield str(number), example["input"], example["target"]

    return rows_of(name or task, turns)


def asked(data_dir: Path, task: str, rows: int | None, seed: int) -> tuple[Iterator[Row], Iterator[Row]]:
    """The target's questions of a benchmark, and those of its evaluation."""
    benchmark = TASKS[task]
    sides = benchmark.targets(data_dir, rows, seed), benchmark.questions(data_dir, 0)
    return _questions(sides[0]), _questions(sides[1])


def _official(data_dir: Path, name: str) -> Path:
    path = data_dir / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data-dir must hold it")
    return path


# ---------------------------------------------------------------- wheels


@cache
def demo_data() -> ModuleType:
    """examples/demo/data.py, which reads wheels and the standard library."""
    path = Path(__file__).parents[1] / "examples" / "demo" / "data.py"
    spec = importlib.util.spec_from_file_location("demo_data", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not there; run this from a checkout of the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def of_demo(name: str) -> Source:
    """A source of the demo's pool."""
    return rows_of(name, demo_data().SOURCES[name])


def chats(name: str, language: str, categories: Sequence[str] = ()) -> Source:
    """The first exchange of each conversation in ChatterBot's corpus; of all categories if none is named."""

    def turns() -> Iterator[Turn]:
        folder = demo_data().wheel_folder("chatterbot_corpus")
        if folder is None:
            raise InputError(
                "the wheel chatterbot-corpus is not installed; "
                "run: pip install --no-deps -r examples/demo/wheels.txt"
            )
        files = sorted((folder / "data" / language).glob("*.yml"))
        named = {path.stem: path for path in files}
        for path in [named[category] for category in categories] or files:
            for number, said in enumerate(demo_data().read_yaml(path)["conversations"]):
                if len(said) > 1:
                    yield f"{path.stem}/{number}", str(said[0]), str(said[1])

    return rows_of(name, turns)


# ---------------------------------------------------------------- Python and NumPy


def system_codes() -> Iterator[Turn]:
    """Status codes of HTTP, error codes of POSIX, signals -> what they mean."""
    yield from demo_data().http_status()
    for number, name in sorted(errno.errorcode.items()):
        yield name, f"What does the POSIX error code {name} mean?", os.strerror(number)
    for code in signal.Signals:
        yield code.name, f"What does the signal {code.name} tell a process?", signal.strsignal(code) or ""


def unicode_names() -> Iterator[Turn]:
    """Signs that are no letters -> their names in Unicode."""
    for code in range(0x2000, 0x2C00):
        if name := unicodedata.name(chr(code), ""):
            yield f"U+{code:04X}", f"What is the sign {chr(code)} called in Unicode?", name.lower()


def character_entities() -> Iterator[Turn]:
    """Signs -> how HTML writes them."""
    for code, name in codepoint2name.items():
        yield name, f"How is the sign {chr(code)} written in HTML?", f"&{name};"


def media_types() -> Iterator[Turn]:
    """Endings of file names -> their media types."""
    for ending, name in sorted(mimetypes.MimeTypes(()).types_map[True].items()):
        yield ending, f"Which media type does a file whose name ends in {ending} have?", name


def numpy_functions() -> Iterator[Turn]:
    """Functions of NumPy -> the first words of their docstrings."""
    for name in sorted(dir(np)):
        paragraphs = (inspect.getdoc(getattr(np, name)) or "").split("\n\n")
        summary = next((text for text in paragraphs if not text.startswith(f"{name}(")), "")
        if callable(getattr(np, name)) and not name.startswith("_"):
            yield name, f"What does NumPy's {name} do?", " ".join(summary.split())


# ---------------------------------------------------------------- rows


def rows_of(name: str, turns: Callable[[], Iterable[Turn]]) -> Source:
    """Rows of one question and one answer; without the ones that lack either."""

    def rows() -> Iterator[Row]:
        for where, user, assistant in turns():
            if user.strip() and assistant.strip():
                yield row(name, where, [("user", user.strip()), ("assistant", assistant.rstrip())])

    return rows


def row(name: str, key: str, messages: Iterable[tuple[str, str]]) -> Row:
    """A row of these messages, each a role and a text."""
    said = [{"role": role, "content": content} for role, content in messages]
    return _parsed({"dataset": name, "id": f"{name}/{key}", "messages": said})


def _questions(questions: Iterable[Question]) -> Iterator[Row]:
    return (_parsed(question.to_row()) for question in questions)


def _parsed(record: dict[str, Any]) -> Row:
    raw = json.dumps(record, ensure_ascii=False).encode()
    return Row(record["id"], record["dataset"], parse_messages(record, record["id"]), raw)
