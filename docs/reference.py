"""Pages that are made whenever the site is built: the front page, the command line, the names in Python.

mkdocs calls `on_files` (mkdocs.yml, `hooks`). Nothing of it is kept in the repository, so nothing of it can
be older than the code.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import clusterucb
from clusterucb.cli.main import application
from clusterucb.config import Setting, settings

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

__all__ = ["command_line", "from_the_root", "on_files", "python_names"]

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

GROUPS = {
    "Procedures": ("Config", "Session", "dynamic", "less", "compare", "plan"),
    "An index": ("Index", "Ranking"),
    "The bandit": (
        *("select", "Selection", "ClusterUCB", "FullScoring"),
        *("linear_ucb", "LinearUCB", "Known", "RowUCB"),
        *("UCBBeta", "UCB1", "UCBThreshHard", "UCBThreshNormal", "Random"),
    ),
    "Training": ("DynamicSelection", "Reselection"),
    "Data": ("Pool", "Target", "export"),
    "Gradients and clusters": ("Featurizer", "CountSketch", "Rademacher", "spherical_kmeans", "Clusters"),
    "Simulation": ("simulate", "Problem", "Grid", "Outcome"),
    "Errors": ("ClusterUCBError",),
}

_TYPES = {int: "whole number", float: "number", str: "text", bool: "flag"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {name: from_the_root(source) for name, source in ROOT_PAGES.items()}
    pages |= {"cli.md": command_line(), "api.md": python_names()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def from_the_root(source: str) -> str:
    """A document of the repository's root, with links as they are within the site."""
    text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for name, root_source in ROOT_PAGES.items():
        text = text.replace(f"]({root_source})", f"]({name})")
    return text


def command_line() -> str:
    """Every command with its own options, and every setting with its place in YAML, values and default."""
    commands = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    own = {name: _own(command) for name, command in commands.items()}
    shared = set.intersection(
        *({p.name for p in own[name]} for name, command in commands.items() if _settings_of(command))
    )
    lines = ["# Command line", "", "Made from the program itself.", "", "## Commands", ""]
    for name, command in commands.items():
        lines += _command(name, command, shared)
    common = [p for p in own["run"] if p.name in shared]
    lines += ["### All commands with settings", "", *_options(common)]
    lines += [
        "## Settings",
        "",
        "Every setting is an option, and a key of the YAML file that a command is given; options go over the "
        "file. `selection.top_p` is `top_p` under `selection:`. An option with several values takes them one "
        "after the other: `--pool a.jsonl b.jsonl`. What is `auto` is [decided](defaults.md) for the job.",
        "",
    ]
    sections: dict[str, list[Setting]] = {}
    for setting in settings():
        sections.setdefault(setting.section or "", []).append(setting)
    for section, found in sections.items():
        lines += [f"### {section.capitalize() or 'Input and output'}", ""]
        lines += _table(("option", "in YAML", "values", "default", "meaning"), map(_setting, found))
    return "\n".join(lines)


def python_names() -> str:
    """Every public name, by its docstring; a name that no group has comes last."""
    homes, lines = clusterucb._HOMES, ["# In Python", "", "`import clusterucb as cu` has these names.", ""]
    grouped = {name for names in GROUPS.values() for name in names}
    for title, names in {**GROUPS, "Others": tuple(homes.keys() - grouped)}.items():
        lines += [f"## {title}", ""] if names else []
        for name in names:
            lines += [
                f"::: clusterucb.{homes[name]}.{name}",
                "    options:",
                f"      heading: {name}",
                f"      toc_label: {name}",
                "",
            ]
    return "\n".join(lines)


def _settings_of(command: Any) -> set[str]:
    """Names of the settings that a command takes; those without settings may have an --out, too."""
    names = {parameter.name for parameter in command.params}
    return names & {setting.name for setting in settings()} if "model" in names else set()


def _own(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.name not in _settings_of(command)]


def _command(name: str, command: Any, shared: set[str]) -> Iterator[str]:
    own, taken = _own(command), _settings_of(command)
    arguments = "".join(f" [{_shown(p)}]" for p in own if p.param_type_name == "argument")
    yield from (f"### clusterucb {name}", "", f"`clusterucb {name}{arguments} [OPTIONS]`", "")
    yield from (_cell(command.help or ""), "")
    if taken:
        flags = [f"`--{setting.name.replace('_', '-')}`" for setting in settings() if setting.name in taken]
        every = len(flags) == len(list(settings()))
        what = "all [settings](#settings)" if every else f"the [settings](#settings) {', '.join(flags)}"
        yield from (f"Takes {what} and the [options of such commands](#all-commands-with-settings).", "")
        own = [parameter for parameter in own if parameter.name not in shared]
    yield from _options(own)


def _options(parameters: list[Any]) -> list[str]:
    rows = [(f"`{_shown(p)}`", _default(p.default), _cell(p.help or "")) for p in parameters]
    return _table(("option", "default", "meaning"), rows) if rows else []


def _shown(parameter: Any) -> str:
    """An argument's name, or an option's flags."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _setting(setting: Setting) -> tuple[str, ...]:
    place = f"{setting.section}.{setting.name}" if setting.section else setting.name
    default = "required" if setting.required else _default(setting.default)
    flag = f"--{setting.name.replace('_', '-')}"
    values = _values(setting.annotation) + (" or `auto`" if setting.auto else "")
    return f"`{flag}`", f"`{place}`", values, default, _cell(setting.help)


def _values(annotation: Any) -> str:
    """What a setting can be, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _values(arguments[0])
    if origin is list:
        return f"list of {_values(arguments[0])}s"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_values(part) for part in arguments if part is not types.NoneType)
    return _TYPES[annotation]


def _default(value: Any) -> str:
    if value is None or value is False or value == []:
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
    return [*lines, ""]


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line; what is in backticks stays code."""
    parts = " ".join(text.split()).replace("|", r"\|").split("`")
    return "`".join(part if n % 2 else re.sub(r"([<*_\[\]])", r"\\\1", part) for n, part in enumerate(parts))
