"""What is published: the wheel, its metadata, the version and commit, completion, the citation."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from cli_helpers import clusterucb
from clusterucb import version
from clusterucb.version import __version__, commit

ROOT = Path(__file__).parent.parent
CHECKOUT = (ROOT / ".git").exists()
COMMANDS = {
    *("run", "warmup", "gradients", "cluster", "select", "train", "evaluate"),
    *("compare", "prepare", "simulate", "plan"),
}


def process(*command, cwd=ROOT, **environment):
    paths = {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **paths, **environment}
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from this checkout by the backend itself: nothing is downloaded."""
    pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    built = process(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    package = ROOT / "src"
    files = {
        path.relative_to(package).as_posix()
        for path in (package / "clusterucb").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files | ({"clusterucb/commit.txt"} if commit() else set())
    assert "clusterucb/py.typed" in packed


def test_the_wheels_metadata_says_what_it_is(wheel):
    (path,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    found = Parser().parsestr(wheel.read(path).decode())
    assert (found["Name"], found["Version"]) == ("clusterucb", __version__)
    assert (found["License-Expression"], found["Requires-Python"]) == ("Apache-2.0", ">=3.10")
    assert found["Description-Content-Type"] == "text/markdown"
    assert set(found.get_all("Provides-Extra")) == {"dev", "docs", "eval", "gguf", "keops", "quant", "vllm"}
    assert "Typing :: Typed" in found.get_all("Classifier")
    lines = [line for line in found.get_all("Requires-Dist") if "extra" not in line]
    needed = {re.match(r"[\w.-]+", line)[0] for line in lines}
    assert {"torch", "transformers", "peft", "typer"} <= needed
    assert not {"pytest", "ruff", "mypy", "lm-eval", "hatchling"} & needed
    scripts = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "clusterucb = clusterucb.cli.main:main" in wheel.read(scripts).decode()


@pytest.mark.skipif(not CHECKOUT, reason="not a git checkout")
def test_version_and_commit_are_those_of_the_checkout():
    head = process("git", "rev-parse", "HEAD").stdout.strip()
    told = commit().removesuffix("-dirty")
    assert len(told) >= 12
    assert head.startswith(told)
    assert clusterucb("--version") == (0, f"clusterucb {__version__} (commit {commit()})\n", "")


@pytest.mark.skipif(not CHECKOUT, reason="not a git checkout")
def test_an_installed_wheel_says_the_commit_that_it_was_built_from(wheel, tmp_path):
    wheel.extractall(tmp_path)
    process("git", "init", "-q", cwd=tmp_path)  # somebody else's repository is not asked
    code = "import clusterucb.version as v; print(v.__version__, v.commit())"
    shown = process(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shown.stdout == f"{__version__} {commit()}\n"


def repository(folder):
    """A checkout of one commit with the package's version module in its place."""
    package = folder / "src" / "clusterucb"
    package.mkdir(parents=True)
    (package / "version.py").write_bytes(Path(version.__file__).read_bytes())
    process("git", "init", "-q", cwd=folder)
    process("git", "add", ".", cwd=folder)
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    made = process("git", *who, "commit", "-qm", "first", cwd=folder)
    assert made.returncode == 0, made.stderr
    return package


def told(package, **environment):
    code = f"import runpy; print(runpy.run_path({str(package / 'version.py')!r})['commit']())"
    return process(sys.executable, "-c", code, cwd="/", **environment).stdout.strip()


def test_changed_files_are_told_and_no_other_repository_is_asked(tmp_path):
    package = repository(tmp_path / "one")
    head = process("git", "rev-parse", "--short=12", "HEAD", cwd=package).stdout.strip()
    assert told(package) == head
    assert told(package, GIT_DIR=str(ROOT / ".git")) == head
    (package / "version.py").write_text((package / "version.py").read_text() + "\n")
    assert told(package) == f"{head}-dirty"
    (package / "commit.txt").write_text("0" * 12)  # what a build left behind is not believed in a checkout
    assert told(package) == f"{head}-dirty"


def test_without_git_and_without_a_build_nobody_knows(tmp_path):
    package = repository(tmp_path / "one")
    assert told(package, PATH="") == "None"
    (tmp_path / "one" / ".git").rename(tmp_path / "git")
    assert told(package) == "None"
    (package / "commit.txt").write_text("abc\n")
    assert told(package) == "abc"


@pytest.fixture
def completed(monkeypatch):
    """What a shell is told that asks the program by its environment."""

    def asked(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return clusterucb()

    return asked


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_for_this_program(completed, shell):
    shown = completed(_CLUSTERUCB_COMPLETE=f"source_{shell}")
    assert shown.status == 0, shown.err
    assert "_CLUSTERUCB_COMPLETE" in shown.out
    assert f"complete_{shell}" in shown.out
    assert "clusterucb" in shown.out


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "clusterucb ", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "clusterucb "}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "clusterucb ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_shell_completes_our_commands(completed, shell, typed):
    shown = completed(_CLUSTERUCB_COMPLETE=f"complete_{shell}", **typed)
    assert all(command in shown.out for command in COMMANDS), shown


def test_a_shell_completes_a_commands_options(completed):
    typed = {"COMP_WORDS": "clusterucb plan --budget-", "COMP_CWORD": "2"}
    shown = completed(_CLUSTERUCB_COMPLETE="complete_bash", **typed)
    assert shown.out.split() == ["--budget-cap"]


def test_the_citation_has_what_its_format_needs_and_names_the_papers():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(found)
    assert found["version"] == __version__
    assert found["preferred-citation"]["title"] == found["references"][0]["title"]
    text = (ROOT / "CITATION.cff").read_text()
    for identifier in ("arXiv:2506.10288", "arXiv:2402.04333", "10.1016/j.knosys.2025.114144"):
        assert identifier in text
    for reference in found["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert all(set(author) <= {"family-names", "given-names", "name"} for author in reference["authors"])
