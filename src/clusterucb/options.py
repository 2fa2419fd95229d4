"""Settings as command-line options: one option a setting, made from `config.settings()`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from clusterucb.config import Common, Config, Setting, settings

__all__ = ["parameters", "repeat_list_options"]

_LISTS = {setting.name for setting in settings() if "list[str]" in str(setting.annotation)}


def parameters(extra: dict[str, str], kind: type[Common] = Config) -> list[inspect.Parameter]:
    """The signature that typer reads: a settings file, every setting of `kind`, a command's own options."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    file = Annotated[
        str | None, typer.Argument(help="Settings as YAML; options go over them.", show_default=False)
    ]
    found = [inspect.Parameter("config", keyword, default=None, annotation=file)]
    for setting in settings(kind):
        found.append(inspect.Parameter(setting.name, keyword, default=None, annotation=_option(setting)))
    for name, text in extra.items():
        option = Annotated[str | None, typer.Option(f"--{name}", help=text)]
        found.append(inspect.Parameter(name, keyword, default=None, annotation=option))
    flags = {
        "quiet": typer.Option("--quiet", "-q", help="Show nothing but errors."),
        "profile": typer.Option("--profile", help="Show at the end where the time went, by stage."),
    }
    for name, flag in flags.items():
        found.append(inspect.Parameter(name, keyword, default=False, annotation=Annotated[bool, flag]))
    return found


def _option(setting: Setting) -> Any:
    flag = f"--{setting.name.replace('_', '-')}"
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
    flags = {f"--{name.replace('_', '-')}" for name in _LISTS}
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
