"""Options of the command line: one a setting, made from `config.settings()`, and what all commands share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from clusterucb.config import Setting

_VALUES = {
    "model": "DIR|FILE|ID",
    **dict.fromkeys(("out", "data_dir", "adapter"), "DIR"),
    **dict.fromkeys(("pool", "target", "holdout"), "FILE..."),
    **dict.fromkeys(("target_modules", "tasks"), "NAME..."),
}
"""What stands for a value, where its type does not say it."""
_OFTEN = {
    *("model", "pool", "target", "holdout", "out", "index", "subtask", "adapter", "chat", "decontaminate"),
    *("method", "budget", "top_p", "periods", "lr", "seed", "device", "dtype", "shard"),
    *("tasks", "data_dir", "limit", "allow_code_execution"),
}
"""Settings that a person sets now and then; `--help` shows no others."""
HELP_ALL = "--help-all"


def option(text: str, value: str | None = None, *flags: str, **look: Any) -> Any:
    """An option of typer with its help, which is text: a bracket in it is no markup.

    `value` stands for its value in the help; its flags are made of its name, if none is given.
    """
    return typer.Option(*flags, help=escape(text), metavar=value, **look)


def argument(text: str, value: str | None = None) -> Any:
    """The same for what has no flag."""
    return typer.Argument(help=escape(text), metavar=value, show_default=False)


Quiet = Annotated[bool, option("Show nothing but errors.", None, "--quiet", "-q")]
_File = Annotated[str | None, argument("Settings as YAML; options go over them.")]
_PRESET = option("Settings as published, by name: paper or less; options go over them.", "NAME")
_LOG = option("Append what happens to this file, one JSON object a line (docs/logging.md).", "FILE")


def parameters(
    own: Iterable[inspect.Parameter] = (), kind: str = "Config", *, often: bool = False
) -> list[inspect.Parameter]:
    """The signature that typer reads: a settings file, every setting, a command's own options.

    Args:
        own: the command's own options.
        kind: the name of the settings' class in config.py.
        often: the help shows those settings only that are set now and then.
    """
    from clusterucb import config

    keyword, of_kind = inspect.Parameter.KEYWORD_ONLY, config.settings(getattr(config, kind))
    known = {each.name: _option(each, hidden=often and each.name not in _OFTEN) for each in of_kind}
    preset = {"preset": Annotated[str | None, _PRESET]} if kind == "Config" else {}
    known = {"config": _File, **preset, **known, "json_log": Annotated[str | None, _LOG]}
    found = [inspect.Parameter(name, keyword, default=None, annotation=look) for name, look in known.items()]
    found += [parameter.replace(kind=keyword) for parameter in own]
    return [*found, inspect.Parameter("quiet", keyword, default=False, annotation=Quiet)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(setting: Setting, *, hidden: bool) -> Any:
    shown = "" if setting.required else _shown(setting.default)
    text = f"{setting.help} (default: {shown})" if shown else setting.help
    flag, panel = _flag(setting.name), (setting.section or "input and output").capitalize()
    look = {"show_default": False, "rich_help_panel": panel, "hidden": hidden}
    if setting.annotation is bool:
        either = f"{flag}/--no-{flag[2:]}" if setting.default else flag
        return Annotated[bool, option(text, None, either, **look)]
    kind = list[str] | None if setting.name in _lists() else str | None
    return Annotated[kind, option(text, _value(setting), flag, **look)]


def _value(setting: Setting) -> str:
    """What stands for the value in the help text."""
    kind = str(setting.annotation)
    number = ("int" in kind or "float" in kind) and "Literal" not in kind
    return _VALUES.get(setting.name, "N" if number else "NAME")


def _shown(default: Any) -> str:
    if default is None or default is False:
        return ""
    return " ".join(default) if isinstance(default, list) else str(default)


def is_given(name: str, value: Any) -> bool:
    """Whether a setting was given: False says so only of what is on unless it is switched off."""
    return value not in (None, [], False) or (value is False and name in _switched_off())


@cache
def _switched_off() -> set[str]:
    """The settings that are on by default."""
    from clusterucb.config import settings

    return {setting.name for setting in settings() if setting.default is True}


@cache
def _lists() -> set[str]:
    """The settings that take several values."""
    from clusterucb.config import settings

    return {setting.name for setting in settings() if "list[str]" in str(setting.annotation)}


def repeat_list_options(arguments: list[str]) -> list[str]:
    """`--pool a b` as click wants it: `--pool a --pool b`."""
    flags = {_flag(name) for name in _lists()}
    spread: list[str] = []
    flag = None
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            flag = name if name in flags else None
            first = not equals
        elif flag and not first:
            spread.append(flag)
        else:
            first = False
        spread.append(argument)
    return spread
