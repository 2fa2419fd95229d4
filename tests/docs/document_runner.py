"""Does what a page tells its reader to do: writes its files, runs its commands and its Python, in order.

A page has one folder and one Python namespace. The model that pages name is a tiny one here, a command that
is given a model without sizes gets small ones, a training that no size is given of has few steps, and speed
is measured in no time; all else is as it stands.
"""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import typer
import yaml
from document_blocks import ROOT, blocks, finished_runs

import clusterucb
from cli_helpers import clusterucb as run
from clusterucb.cli.main import application
from clusterucb.cli.options import repeat_list_options
from clusterucb.config import load, settings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SIZES = (
    *("device", "dtype", "rank", "alpha", "lr", "batch_size", "micro_batch", "warmup_steps", "dim", "k"),
    *("periods", "top_p", "gradient_length", "train_length"),
)
NEEDED = {"model": "m", "pool": ["p"], "target": ["t"], "out": "o"}


class Runner:
    """Runs pages in the working directory.

    Args:
        settings: a tiny model, small sizes, and the files that stand for a reader's own.
        finished: makes a finished run of a method.
    """

    def __init__(self, settings, finished):
        self.settings, self.finished = settings, finished
        self.names = {"__name__": "__main__"}
        self.said = ""

    def page(self, text, page="page.md"):
        """Run all blocks of a page that are not marked; an error names the block."""
        self._readers_files(text)
        for block in blocks(text, page):
            try:
                self.block(block)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{block} fails: {error!r}") from error

    def block(self, block):
        """Run one block, or check it where it is marked as not run."""
        text = block.text.replace(MODEL, self.settings["model"])
        if block.title:
            Path(block.title).write_text(text)
        if block.reason:
            check(block)
        elif block.language == "sh":
            for words in block.commands:
                self.command([word.replace(MODEL, self.settings["model"]) for word in words], block)
        elif block.language == "python" and not block.title:
            exec(compile(text, str(block), "exec"), self.names)
        elif block.language == "yaml":
            check_settings(yaml.safe_load(text))
        elif block.language == "jsonl":
            assert all(isinstance(json.loads(line), dict) for line in text.splitlines())

    def command(self, words, block):
        """Run one line of a shell."""
        program, *arguments = words
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
            return
        assert program == "clusterucb", f"{block}: runs {program}; say above the block why it is not run"
        if "--model" in arguments:
            arguments += self._sizes(arguments)
        if arguments[0] == "plan":
            arguments += ["--probe-seconds", "0.1"]
        outcome = run(*arguments)
        assert outcome.status == 0, outcome
        self.said += outcome.out

    def _sizes(self, arguments):
        given = {f"--{name.replace('_', '-')}": str(self.settings[name]) for name in SIZES}
        return [word for flag, value in given.items() if flag not in arguments for word in (flag, value)]

    def _readers_files(self, text):
        (first, second), (target,), (holdout,) = (self.settings[n] for n in ("pool", "target", "holdout"))
        files = {"a.jsonl": first, "b.jsonl": second, "task.jsonl": target, "rest.jsonl": holdout}
        for name, path in files.items():
            shutil.copy(path, name)
        Path("examples").symlink_to(ROOT / "examples")
        for name in finished_runs(text):
            shutil.copytree(self.finished("clusterucb").folder, name)


def check(block):
    """What can be said of a block that is not run: its commands have such options, its Python compiles."""
    if block.language == "sh":
        for words in block.commands:
            if words[0] == "clusterucb":
                check_command(words)
    elif block.language == "python":
        check_python(ast.parse(block.text, str(block)))
    elif block.language == "yaml":
        check_settings(yaml.safe_load(block.text))


def check_python(tree):
    """What a block takes from this package is there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("clusterucb"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cu", "clusterucb"):
            assert node.attr in clusterucb.__all__, ast.unparse(node)


def check_command(words):
    """Parse a command's options, and let the settings among them be checked as a run would."""
    _, name, *rest = words
    commands = typer.main.get_command(application()).commands
    parsed = commands[name].make_context(name, repeat_list_options(rest)).params
    given = {key: value for key, value in parsed.items() if value not in (None, [], (), False)}
    if "model" not in parsed:
        return  # its options are no settings of a run
    if file := given.get("config"):
        there = Path(file).name == "config.yaml" or Path(file).exists() or (ROOT / file).exists()
        assert there, f"{file}: neither written by the page nor one of the repository"
    load(None, {**NEEDED, **{s.name: given[s.name] for s in settings() if s.name in given}})


def check_settings(tree):
    """Settings of a YAML block, a whole file or a few of them, are known and in range."""
    path = Path("checked.yaml")
    path.write_text(yaml.safe_dump({**NEEDED, **tree}))
    load(path)
    path.unlink()
