"""What the package promises as a whole: its names and its layers."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import clusterucb

SOURCE = Path(clusterucb.__file__).parent
MODULES = [
    name for _, name, _ in pkgutil.walk_packages([str(SOURCE)], "clusterucb.") if "__main__" not in name
]


def imports(path):
    """Every module that a file imports, with what it imports from it, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*rooms):
    """The files of rooms (folders) and modules of the package."""
    for room in rooms:
        folder = SOURCE / room
        yield from folder.glob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]


def offenders(rooms, forbidden):
    return [
        (path.name, name)
        for path in files(*rooms)
        for name in imports(path)
        for prefix in forbidden
        if name == prefix or name.startswith(f"{prefix}.")
    ]


def own(*rooms):
    return [f"clusterucb.{room}" for room in rooms]


ABOVE = (
    "recipes",
    "less_steps",
    "steps",
    "artifacts",
    "forward",
    "comparison",
    "screening",
    "session",
    "cli",
    "options",
    "report",
    "demo",
    "comparing",
    "planning",
)


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (("data",), own("gradients", "clustering", "training", "evaluation", "reselection", *ABOVE)),
        (("data",), own("tasks", "sources")),
        (("tasks", "sources"), own("gradients", "clustering", "selection", "training", "evaluation", *ABOVE)),
        (("tasks", "sources"), ["torch", "transformers", "peft", "lm_eval"]),
        (("selection",), own("data", "gradients", "clustering", "training", "evaluation", *ABOVE)),
        (("selection",), own("config", "rundir", "rounds", "reselection", "processes")),
        (("processes",), own("config", "rundir", "data", "gradients", "clustering", "training", *ABOVE)),
        (("selection",), ["torch", "transformers", "peft"]),
        (("data",), ["torch", "peft"]),
        (("clustering",), own("data", "gradients", "selection", "training", "evaluation", *ABOVE)),
        (("gradients",), own("training", "evaluation", "selection", "reselection", *ABOVE)),
        (("training",), own("evaluation", "selection", "reselection", *ABOVE)),
        (("evaluation",), own("training", "selection", "reselection", *ABOVE)),
        (("reselection", "rounds"), own("baselines", "evaluation", *ABOVE)),
        (("forward",), own("baselines", "evaluation", "less_steps", "steps", "artifacts", "recipes")),
        (("forward",), own("comparison", "comparing", "planning", "cli", "options", "report")),
        (("baselines",), own("evaluation", "steps", "comparison", "recipes", "cli", "options", "report")),
        (("baselines/bm25", "baselines/round_robin", "baselines/random", "baselines/loss"), ["torch"]),
        (("simulation",), own("data", "training", "evaluation", "reselection", "rounds", *ABOVE)),
        (("screening",), own("gradients", "training", "evaluation", "session", "steps", "recipes", "cli")),
        (
            ("session",),
            own("less_steps", "steps", "artifacts", "comparison", "recipes", "cli", "options", "report"),
        ),
        (("comparison",), own("session", "steps", "recipes", "cli", "options", "report")),
        (("artifacts",), own("less_steps", "steps", "comparison", "recipes", "cli", "options", "report")),
        (("steps",), own("less_steps", "recipes", "cli", "options", "report")),
        (("less_steps",), own("recipes", "cli", "options", "report")),
        (("recipes",), own("comparing", "cli", "options")),
        (("comparing",), own("planning", "cli", "options", "report")),
        (("planning",), own("recipes", "cli", "options", "report")),
        (
            ("cli_simulate", "cli_report", "cli_export"),
            own("session", "steps", "recipes", "options", "training"),
        ),
        (("exporting",), own("data.pool", "gradients", "selection", "training", "evaluation", *ABOVE)),
        (("exporting",), ["torch", "transformers", "peft", "trl"]),
        (("report",), own("cli", "options", "steps", "recipes", "training", "reselection")),
        (("report",), own(*(f"gradients.{name}" for name in ("features", "influence", "per_sample")))),
        (("report/page", "report/run_data", "report/feature_map"), ["torch", "transformers", "peft"]),
        (
            ("config", "errors", "costs", "events", "progress", "rundir"),
            ["torch", "transformers", "datasets", "peft"],
        ),
        (("errors",), ["clusterucb"]),
        (("config",), own("data", "gradients", "selection", "training", "rundir", *ABOVE)),
    ],
)
def test_imports_point_down_only(rooms, forbidden):
    assert offenders(rooms, forbidden) == []


def test_nothing_imports_the_command_line():
    others = [path for path in SOURCE.rglob("*.py") if path.name not in ("cli.py", "__main__.py")]
    assert [path for path in others if any(n.startswith("clusterucb.cli.main") for n in imports(path))] == []


def test_importing_the_package_and_its_numpy_parts_needs_no_torch():
    code = (
        "import sys, clusterucb, clusterucb.selection, clusterucb.config, clusterucb.run.directory\n"
        "clusterucb.select, clusterucb.UCBBeta, clusterucb.Pool, clusterucb.Target, clusterucb.Config\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    environment = {"PYTHONPATH": str(SOURCE.parent)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr


def test_every_public_name_resolves():
    assert clusterucb.__all__ == list(dict.fromkeys(clusterucb.__all__))
    for name in clusterucb.__all__:
        assert getattr(clusterucb, name) is not None
    assert dir(clusterucb) == sorted(clusterucb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clusterucb.nothing


def test_type_checkers_see_the_same_public_names():
    """The names imported under TYPE_CHECKING are those loaded when first used, from the same modules."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"clusterucb.{home}" for name, home in clusterucb._HOMES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_lists_its_names_and_explains_them(name):
    module = importlib.import_module(name)
    assert module.__doc__, "no docstring"
    if hasattr(module, "__path__") or name == "clusterucb.version":
        return
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"
    own_functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == name]
    public = {n for n in own_functions if not n.startswith("_")}
    assert public <= set(module.__all__)
