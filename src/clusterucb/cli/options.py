"""Settings as command-line options: one option a setting, made from `config.settings()`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer

from clusterucb.config import Common, Config, Setting, settings

EVERYWHERE = {"json_log": "Append what happens to this file, one JSON object a line (docs/logging.md)."}
"""Options of every command with settings that are no settings."""

SWITCHES = {"quiet": "Show nothing but errors."}
"""The same without a value."""

_LISTS = {setting.name for setting in settings() if "list[str]" in str(setting.annotation)}


def parameters(
    extra: Mapping[str, str], kind: type[Common] = Config, flags: Mapping[str, str] = MappingProxyType({})
) -> list[inspect.Parameter]:
    """The signature that typer reads: a settings file, every setting of `kind`, a command's own options.

    Args:
        extra: the command's own options, with their help.
        kind: the class of settings.
        flags: the command's own options without a value, with their help.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    file = Annotated[
        str | None, typer.Argument(help="Settings as YAML; options go over them.", show_default=False)
    ]
    found = [inspect.Parameter("config", keyword, default=None, annotation=file)]
    for setting in settings(kind):
        found.append(inspect.Parameter(setting.name, keyword, default=None, annotation=_option(setting)))
    for name, text in {**extra, **EVERYWHERE}.items():
        option = Annotated[str | None, typer.Option(_flag(name), help=text)]
        found.append(inspect.Parameter(name, keyword, default=None, annotation=option))
    for name, text in {**flags, **SWITCHES}.items():
        flag = typer.Option(_flag(name), *(["-q"] if name == "quiet" else []), help=text)
        found.append(inspect.Parameter(name, keyword, default=False, annotation=Annotated[bool, flag]))
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(setting: Setting) -> Any:
    flag = _flag(setting.name)
    text = setting.help
    if shown := "" if setting.required else _shown(setting.default):
        text += f" (default: {shown})"  # in brackets it would be taken for rich's markup
    panel = setting.section.capitalize() if setting.section else "Input and output"
    look: dict[str, Any] = {"help": text, "show_default": False, "rich_help_panel": panel}
    if setting.annotation is bool:
        return Annotated[bool, typer.Option(flag, **look)]
    kind = list[str] | None if setting.name in _LISTS else str | None
    return Annotated[kind, typer.Option(flag, metavar=setting.name.upper(), **look)]


def _shown(default: Any) -> str:
    if default is None or default is False:
        return ""
    return " ".join(default) if isinstance(default, list) else str(default)


def repeat_list_options(arguments: list[str]) -> list[str]:
    """`--pool a b` as click wants it: `--pool a --pool b`."""
    flags = {_flag(name) for name in _LISTS}
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
