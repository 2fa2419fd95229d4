"""The fidelity study's pool, targets and held-out rows: short real rows of unlike sources.

A source gives as many tokens as any other, if it has them, as tokens are what gradients cost; at most 300
rows. They are drawn by the seed from the shortest of twice as many; so are targets and held-out rows. A pool
row has 16 to 96 tokens, one of a target or held out 16 to 192, the chat format included.

| pool source      | from                                                              |
|------------------|-------------------------------------------------------------------|
| gsm8k            | GSM8K's training problems                                         |
| creak            | Flan CoT: is this claim true, and why                             |
| ecqa             | Flan CoT: common sense, five choices                              |
| sensemaking      | Flan CoT: which of two sentences is nonsense                      |
| code_alpaca      | Code Alpaca: programming                                          |
| python_functions | Python's standard library: docstring -> body                      |
| python_modules   | Python's standard library: module -> summary                      |
| system_codes     | Python's standard library: HTTP status, error or signal -> meaning |
| small_talk       | ChatterBot's corpus                                               |
| trivia           | ChatterBot's corpus                                               |
| programming      | ChatterBot's corpus, its category coding                          |
| knowledge        | ChatterBot's corpus, categories from science to sports            |

| target     | its rows            | held out        | akin in the pool                         |
|------------|---------------------|-----------------|------------------------------------------|
| gsm8k      | training problems   | test problems   | other training problems                  |
| humaneval  | some problems       | other problems  | python_functions, code_alpaca            |
| mmlu       | dev questions       | test questions  | ecqa, distantly                          |
| strategyqa | some of Flan CoT's  | others          | creak, distantly; nothing of its own     |

Pool rows that nearly repeat a target's or a held-out row are left out, by the program's own rule.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clusterucb.data.chat import ChatFormat, encode, fingerprint
from clusterucb.data.contamination import COMMON, Probe, ProbeIndex, contaminated
from clusterucb.data.rows import Row, parse_messages, text_digest
from clusterucb.errors import InputError
from clusterucb.progress import Screen
from clusterucb.rundir import check_made_with, publish, read_json, write_json
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.raw import open_raw, raw_rows
from clusterucb.sources.source import Conversation
from clusterucb.tasks import TASKS, Question

PARTS = ("pool", "targets", "heldout")
TARGETS = ("gsm8k", "humaneval", "mmlu", "strategyqa")
SHORTEST, LONGEST, LONGEST_OF_TARGET = 16, 96, 192
MOST_ROWS = 300
CONSIDERED = 2_000
"""Training problems of GSM8K that its target is drawn from: most are too long."""
KNOWLEDGE = [
    "science",
    "literature",
    "psychology",
    "history",
    "politics",
    "movies",
    "sports",
    "humor",
    "gossip",
]

Length = Callable[[Row], int]
Turn = tuple[str, str, str]
"""Where a row comes from within its source, what the user says, what the assistant answers."""


@dataclass(frozen=True)
class Sizes:
    """How much is drawn."""

    tokens_of_source: int = 9_400
    target: int = 16
    heldout: int = 60


@dataclass(frozen=True)
class StudyData:
    """The files: one a pool source, one a target, one for each target's held-out rows."""

    pool: dict[str, Path]
    targets: dict[str, Path]
    heldout: dict[str, Path]
    facts: Mapping[str, Any]
    """Rows and tokens of each file, and what they were made with."""


def thinned(files: Mapping[str, Path], folder: Path, every: int) -> list[Path]:
    """Files in `folder` with every so-manieth row of these, made where they are not there yet."""
    found = []
    for name, path in files.items():
        found.append(folder / f"{name}.jsonl")
        if not found[-1].exists():
            with publish(found[-1]) as part:
                part.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::every]))
    return found


def study_data(
    out: Path,
    data_dir: Path | None,
    tokenizer: Any,
    chat: ChatFormat,
    sizes: Sizes,
    seed: int,
    screen: Screen,
) -> StudyData:
    """The study's files in the folder `out`, made where they are not there yet.

    Args:
        out: the folder.
        data_dir: with the official files of GSM8K, MMLU, Code Alpaca and Flan CoT; not needed once made.
        tokenizer, chat: by which tokens are counted.
        sizes: how much is drawn.
        seed: which rows are drawn.
        screen: where progress is shown.

    Raises:
        InputError: a file of `data_dir` or a wheel of the demo is missing.
        MismatchError: the files there were made with other sizes, another seed or tokenizer.
    """
    made_with = {**vars(sizes), "seed": seed, "tokenizer and chat": fingerprint(tokenizer, chat)}
    if not (out / "data.json").exists():
        if data_dir is None or not data_dir.is_dir():
            raise InputError(f"--data-dir {data_dir}: expected the folder with the official data files")

        @cache
        def length(row: Row) -> int:
            return len(encode(row.messages, tokenizer, chat, row.id))

        facts = _make(out, data_dir, length, sizes, seed, screen)
        write_json(out / "data.json", {"made_with": made_with, **facts})
    facts = read_json(out / "data.json")
    check_made_with(facts["made_with"], made_with, str(out))
    files = ({name: out / part / f"{name}.jsonl" for name in facts[part]} for part in PARTS)
    return StudyData(*files, facts)


def _make(
    out: Path, data_dir: Path, length: Length, sizes: Sizes, seed: int, screen: Screen
) -> dict[str, dict[str, dict[str, int]]]:
    """Write all files; rows and tokens of each, by part and name."""
    facts: dict[str, dict[str, dict[str, int]]] = {part: {} for part in PARTS}

    def write(part: str, name: str, rows: Sequence[Row], **more: int) -> None:
        _write(out / part / f"{name}.jsonl", rows)
        facts[part][name] = {"rows": len(rows), "tokens": sum(map(length, rows)), **more}

    targets, sources = target_sources(data_dir, seed), pool_sources(data_dir)
    unseen: list[list[Row]] = []
    with screen.track("choose rows", len(targets) + len(sources), "sources") as advance:
        for name, sides in targets.items():
            target, heldout = _two_sides(*sides(), length, sizes, seed)
            write("targets", name, target)
            write("heldout", name, heldout)
            unseen += [target, heldout]
            advance(1, name)
        unseen.append([row for target in unseen[::2] for row in target])  # as one run has all targets
        for name, rows in sources.items():
            usable = _within(_distinct(rows()), length, LONGEST)
            shortest = _first(sorted(usable, key=length), length, 2 * sizes.tokens_of_source, 2 * MOST_ROWS)
            clean = without_near_copies(shortest, unseen)
            chosen = _first(_shuffled(clean, seed), length, sizes.tokens_of_source, MOST_ROWS)
            write("pool", name, chosen, usable=len(usable), near_copies=len(shortest) - len(clean))
            advance(1, name)
    return facts


def _two_sides(
    target: Iterable[Row], heldout: Iterable[Row], length: Length, sizes: Sizes, seed: int
) -> tuple[list[Row], list[Row]]:
    """Target rows, and held-out rows that do not nearly repeat one of them, drawn from short ones."""
    target = _within(_distinct(target), length, LONGEST_OF_TARGET)
    chosen = _sample(target, length, sizes.target, seed)
    others = without_near_copies(_within(_distinct(heldout), length, LONGEST_OF_TARGET), [chosen])
    return chosen, _sample(others, length, sizes.heldout, seed)


def without_near_copies(rows: Sequence[Row], unseen: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows that neither repeat nor nearly repeat a row of any group in `unseen`, in order.

    Each group is looked for as a run looks for its target or held-out rows (screening.py).
    """
    out: set[int] = set()
    for group in unseen:
        texts = {text_digest(row.messages) for row in group}
        out |= {i for i, row in enumerate(rows) if text_digest(row.messages) in texts}
        probes = {probe.text: probe for probe in map(_probe, group)}
        index = ProbeIndex(probes.values(), common=max(1, min(COMMON, len(probes) // 8)))
        out |= {hit.row for hit in contaminated(index, rows)}
    return [row for i, row in enumerate(rows) if i not in out]


def _probe(row: Row) -> Probe:
    return Probe(row.id, json.loads(row.raw).get("core") or row.messages[0].content)


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """The first of all rows that are the same conversation."""
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(text_digest(row.messages), row)
    return list(found.values())


def _within(rows: Iterable[Row], length: Length, longest: int) -> list[Row]:
    return [row for row in rows if SHORTEST <= length(row) <= longest]


def _sample(rows: Sequence[Row], length: Length, count: int, seed: int) -> list[Row]:
    """At most `count` rows, drawn from the shortest of twice as many."""
    return _shuffled(sorted(rows, key=length)[: 2 * count], seed)[:count]


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _first(rows: Sequence[Row], length: Length, tokens: int, most: int) -> list[Row]:
    """The first rows, of at most `tokens` tokens in all, and at most so many."""
    fits = np.cumsum([length(row) for row in rows]) <= tokens
    return list(rows[: min(int(fits.sum()), most)])


def _write(path: Path, rows: Iterable[Row]) -> None:
    with publish(path) as part:
        part.write_bytes(b"".join(row.raw + b"\n" for row in rows))


# ---------------------------------------------------------------- where rows come from


def pool_sources(data_dir: Path) -> dict[str, Callable[[], Iterable[Row]]]:
    """All rows that each pool source has, by its name."""
    demo, flan = demo_data(), ("creak", "ecqa", "sensemaking")
    converted = {
        "gsm8k": ("gsm8k", _official(data_dir, "gsm8k/train.jsonl")),
        **{name: ("cot", _official(data_dir, f"flan_cot/{name}_train.tsv")) for name in flan},
        "code_alpaca": ("code_alpaca", _official(data_dir, "code_alpaca/code_alpaca_2k.json")),
    }
    own = ("python_functions", "python_modules", "small_talk", "trivia")
    chats = {"programming": ["coding"], "knowledge": KNOWLEDGE}
    return {
        **{name: lambda name=name, args=args: _converted(name, *args) for name, args in converted.items()},
        **{name: lambda name=name: _turns(name, demo.SOURCES[name]()) for name in own},
        "system_codes": lambda: _turns("system_codes", _system_codes()),
        **{name: lambda name=name, of=of: _turns(name, _chats(of)) for name, of in chats.items()},
    }


def _official(data_dir: Path, name: str) -> Path:
    path = data_dir / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data-dir must hold it")
    return path


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


def _chats(categories: Sequence[str]) -> Iterable[Turn]:
    turns = demo_data().chatterbot(*categories)
    if turns is None:
        raise InputError(
            "the wheel chatterbot-corpus is not installed; "
            "run: pip install --no-deps -r examples/demo/wheels.txt"
        )
    return turns


def _system_codes() -> Iterator[Turn]:
    yield from demo_data().http_status()
    for number, name in sorted(errno.errorcode.items()):
        yield name, f"What does the POSIX error code {name} mean?", os.strerror(number)
    for code in signal.Signals:
        yield code.name, f"What does the signal {code.name} tell a process?", signal.strsignal(code) or ""


def _converted(name: str, source: str, path: Path) -> Iterator[Row]:
    """Rows as `clusterucb prepare` makes them of one raw file."""
    raw = raw_rows(SOURCES[source], [open_raw(SOURCES[source], path)])
    for item in SOURCES[source].convert(raw):
        if isinstance(item, Conversation):
            turns = [{"role": message.role, "content": message.content} for message in item.messages]
            yield _row(name, item.key, turns)


def _turns(name: str, turns: Iterable[Turn]) -> Iterator[Row]:
    for where, user, assistant in turns:
        if user.strip() and assistant.strip():
            said = (("user", user.strip()), ("assistant", assistant.rstrip()))
            yield _row(name, where, [{"role": role, "content": content} for role, content in said])


def _row(name: str, key: str, messages: list[dict[str, str]]) -> Row:
    return _parsed({"dataset": name, "id": f"{name}/{key}", "messages": messages})


def _asked(questions: Iterable[Question]) -> Iterator[Row]:
    return (_parsed(question.to_row()) for question in questions)


def _parsed(record: dict[str, Any]) -> Row:
    raw = json.dumps(record, ensure_ascii=False).encode()
    return Row(record["id"], record["dataset"], parse_messages(record, record["id"]), raw)


# ---------------------------------------------------------------- targets: rows to steer by, rows to hold out


def target_sources(data_dir: Path, seed: int) -> dict[str, Callable[[], tuple[Iterable[Row], Iterable[Row]]]]:
    """All rows that each target, and all that its held-out rows, could be drawn from, by its name."""

    def asked(name: str, rows: int | None) -> tuple[Iterable[Row], Iterable[Row]]:
        task = TASKS[name]
        return _asked(task.targets(data_dir, rows, seed)), _asked(task.questions(data_dir, 0))

    def cut_in_two(rows: Iterable[Row]) -> tuple[Iterable[Row], Iterable[Row]]:
        rows = list(rows)
        return rows, rows  # what the target takes is not held out

    strategyqa = _official(data_dir, "flan_cot/strategyqa_train.tsv")
    return {
        "gsm8k": lambda: asked("gsm8k", CONSIDERED),
        "humaneval": lambda: cut_in_two(_turns("humaneval", demo_data().humaneval())),
        "mmlu": lambda: asked("mmlu", None),
        "strategyqa": lambda: cut_in_two(_converted("strategyqa", "cot", strategyqa)),
    }
