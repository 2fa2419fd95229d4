"""The pools of the fidelity study: which sources, which targets, how much of each.

`twelve`, rows of 16 to 96 tokens:

| pool source      | from                                                               |
|------------------|--------------------------------------------------------------------|
| gsm8k            | GSM8K's training problems                                          |
| creak            | Flan CoT: is this claim true, and why                              |
| ecqa             | Flan CoT: common sense, five choices                               |
| sensemaking      | Flan CoT: which of two sentences is nonsense                       |
| code_alpaca      | Code Alpaca: programming                                           |
| python_functions | Python's standard library: docstring -> body                       |
| python_modules   | Python's standard library: module -> summary                       |
| system_codes     | Python's standard library: HTTP status, error or signal -> meaning |
| small_talk       | ChatterBot's corpus                                                |
| trivia           | ChatterBot's corpus                                                |
| programming      | ChatterBot's corpus, its category coding                           |
| knowledge        | ChatterBot's corpus, categories from science to sports             |

| target     | its rows            | held out        | akin in the pool                     |
|------------|---------------------|-----------------|--------------------------------------|
| gsm8k      | training problems   | test problems   | other training problems              |
| humaneval  | some problems       | other problems  | python_functions, code_alpaca        |
| mmlu       | dev questions       | test questions  | ecqa, distantly                      |
| strategyqa | some of Flan CoT's  | others          | creak, distantly; nothing of its own |

`twenty`, rows of 16 to 48 tokens:

| pool sources                                              | from                                   |
|-----------------------------------------------------------|----------------------------------------|
| boolean_expressions, dyck_languages, object_counting,     | BIG-Bench Hard: question -> answer     |
| multistep_arithmetic_two, word_sorting                    |                                        |
| small_talk, trivia                                        | ChatterBot's corpus                    |
| italian, spanish, portuguese, french, dutch, chinese,     | ChatterBot's corpus in these languages |
| indonesian, turkish                                       |                                        |
| unicode_names, character_entities                         | Python: what a sign is called, and how |
|                                                           | HTML writes it                         |
| media_types                                               | Python: ending of a file -> media type |
| numpy_functions                                           | NumPy: function -> summary             |
| code_alpaca                                               | as above, of shorter rows              |

| target          | its rows                       | held out      | akin in the pool                    |
|-----------------|--------------------------------|---------------|-------------------------------------|
| gsm8k           | training problems              | test problems | object_counting, distantly          |
| object_counting | some of BIG-Bench Hard's       | others        | others of the task                  |
| sports          | some of sports_understanding   | others        | nothing of its own                  |
| german          | some of ChatterBot's in German | others        | other languages; nothing of its own |

`others` has the sources of `twelve`, and two of these as targets, creak and ecqa.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fidelity_sources as sources

from clusterucb.data.rows import Row

Sides = tuple[Iterable[Row], Iterable[Row]]
"""Rows that a target could be drawn from, and its held-out rows; what the target takes is not held out."""


@dataclass(frozen=True)
class Sizes:
    """How much is drawn; lengths in tokens, the chat format included."""

    tokens_of_source: int
    target: int = 16
    heldout: int = 60
    longest: int = 96
    longest_of_target: int = 192


@dataclass(frozen=True)
class PoolKind:
    """A pool and the targets that rows are selected from it for.

    Attributes:
        sizes: how much is drawn, where nothing else is asked for.
        sources: all rows that each pool source has, by its name, from the folder of the official files.
        targets: the names of the targets.
        sides: all rows that each target and its held-out rows could be drawn from, by name, from the folder
            and a seed.
    """

    sizes: Sizes
    sources: Callable[[Path], Mapping[str, Callable[[], Iterable[Row]]]]
    targets: tuple[str, ...]
    sides: Callable[[Path, int], Mapping[str, Callable[[], Sides]]]


_OF_DEMO = ("python_functions", "python_modules", "small_talk", "trivia")


def _sources_of_twelve(data_dir: Path) -> Mapping[str, Callable[[], Iterable[Row]]]:
    return {
        "gsm8k": sources.gsm8k(data_dir),
        **{name: sources.flan(data_dir, name) for name in ("creak", "ecqa", "sensemaking")},
        "code_alpaca": sources.code_alpaca(data_dir),
        **{name: sources.of_demo(name) for name in _OF_DEMO},
        "system_codes": sources.rows_of("system_codes", sources.system_codes),
        "programming": sources.chats("programming", "english", ["coding"]),
        "knowledge": sources.chats("knowledge", "english", sources.KNOWLEDGE),
    }


def _sides_of_twelve(data_dir: Path, seed: int) -> Mapping[str, Callable[[], Sides]]:
    humaneval = sources.rows_of("humaneval", lambda: sources.demo_data().humaneval())
    return {
        "gsm8k": lambda: sources.asked(data_dir, "gsm8k", sources.CONSIDERED, seed),
        "humaneval": lambda: _of_one(humaneval()),
        "mmlu": lambda: sources.asked(data_dir, "mmlu", None, seed),
        "strategyqa": lambda: _of_one(sources.flan(data_dir, "strategyqa")()),
    }


def _sides_of_others(data_dir: Path, _seed: int) -> Mapping[str, Callable[[], Sides]]:
    rows = {name: sources.flan(data_dir, name) for name in ("creak", "ecqa")}
    return {name: lambda read=read: _of_one(read()) for name, read in rows.items()}


_OF_BBH = [
    "boolean_expressions",
    "dyck_languages",
    "object_counting",
    "multistep_arithmetic_two",
    "word_sorting",
]
_LANGUAGES = ("italian", "spanish", "portuguese", "french", "dutch", "chinese", "indonesian", "turkish")


def _sources_of_twenty(data_dir: Path) -> Mapping[str, Callable[[], Iterable[Row]]]:
    return {
        **{name: sources.bbh(data_dir, name) for name in _OF_BBH},
        **{name: sources.of_demo(name) for name in ("small_talk", "trivia")},
        **{name: sources.chats(name, name) for name in _LANGUAGES},
        "unicode_names": sources.rows_of("unicode_names", sources.unicode_names),
        "character_entities": sources.rows_of("character_entities", sources.character_entities),
        "media_types": sources.rows_of("media_types", sources.media_types),
        "numpy_functions": sources.rows_of("numpy_functions", sources.numpy_functions),
        "code_alpaca": sources.code_alpaca(data_dir),
    }


def _sides_of_twenty(data_dir: Path, seed: int) -> Mapping[str, Callable[[], Sides]]:
    return {
        "gsm8k": lambda: sources.asked(data_dir, "gsm8k", sources.CONSIDERED, seed),
        "object_counting": lambda: _of_one(sources.bbh(data_dir, "object_counting")()),
        "sports": lambda: _of_one(sources.bbh(data_dir, "sports_understanding", "sports")()),
        "german": lambda: _of_one(sources.chats("german", "german")()),
    }


def _of_one(rows: Iterable[Row]) -> Sides:
    rows = list(rows)
    return rows, rows


POOLS = {
    "twelve": PoolKind(
        Sizes(9_400), _sources_of_twelve, ("gsm8k", "humaneval", "mmlu", "strategyqa"), _sides_of_twelve
    ),
    "twenty": PoolKind(
        Sizes(3_700, longest=48),
        _sources_of_twenty,
        ("gsm8k", "object_counting", "sports", "german"),
        _sides_of_twenty,
    ),
    "others": PoolKind(Sizes(9_400), _sources_of_twelve, ("creak", "ecqa"), _sides_of_others),
}
