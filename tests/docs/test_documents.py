"""README.md and docs/: what a page shows can be done as it stands, or says why no test does it."""

import re
import sys
from pathlib import Path

import pytest
import typer
from document_blocks import DOCUMENTS, ROOT, blocks, flaws, read_blocks
from document_runner import Runner, check

from clusterucb.cli.main import application

PAGES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
COMMANDS = typer.main.get_command(application()).commands
MARKED = [block for path in DOCUMENTS for block in read_blocks(path) if block.reason]


@pytest.fixture
def runner(tmp_path, shared_settings, finished_run, monkeypatch):
    """Runs pages in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clusterucb.run.sizing.STEPS", 8)
    known = set(sys.modules)
    yield Runner(shared_settings, finished_run)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]  # a page's own module must not be another page's


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_can_be_done(page, runner):
    runner.page((ROOT / page).read_text(), page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run_or_says_why_not(page):
    assert flaws((ROOT / page).read_text(), page) == []


@pytest.mark.parametrize("block", MARKED, ids=str)
def test_a_block_that_is_not_run_is_valid_all_the_same(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written in (other for other in read_blocks(ROOT / block.page) if other.title):
        Path(written.title).write_text(written.text)
    assert len(block.reason) > 10
    check(block)


@pytest.mark.parametrize(
    "page",
    [
        "```sh\nclusterucb runn\n```\n",
        "```sh\nclusterucb simulate runs/none --out o\n```\n",
        "```sh\nmake demo\n```\n",
        "```sh\npython none.py\n```\n",
        "```python\nimport clusterucb as cu\ncu.nothing\n```\n",
        "```yaml\nselection: {top: 0.1}\n```\n",
        '```jsonl title="pool.jsonl"\nno row\n```\n',
        "<!-- not run: needs a GPU that tests lack -->\n\n```sh\nclusterucb run --topp 0.1\n```\n",
        "<!-- not run: needs a GPU that tests lack -->\n```python\nfrom clusterucb import nothing\n```\n",
    ],
)
def test_a_block_that_fails_fails_its_page(page, runner):
    assert len(blocks(page)) == 1
    assert flaws(page) == []
    with pytest.raises(AssertionError, match=r"page\.md:\d fails"):
        runner.page(page)


@pytest.mark.parametrize(
    ("page", "flaw"),
    [
        ("```\nclusterucb run\n```\n", "page.md:1: a block of no language"),
        ("```ruby\nputs 1\n```\n", "page.md:1: a block of ruby"),
        ("```text\nclusterucb run\n```\n", "page.md:1: a command in a block of text"),
        ("```jsonl\n{}\n```\n", "page.md:1: rows without a title"),
        ("- item\n\n  ```sh\n  ls\n  ```\n", "one is indented or open"),
        ("<!-- not run: -->\n\n```sh\nls\n```\n", "without a reason"),
    ],
)
def test_a_block_that_no_test_would_see_is_a_flaw(page, flaw):
    assert [flaw in said for said in flaws(page)] == [True]


def test_the_readmes_table_has_every_command_and_no_other():
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.M)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == set(COMMANDS)


def test_the_readmes_first_python_says_what_it_says(capsys):
    code = next(block for block in read_blocks(ROOT / "README.md") if block.language == "python")
    exec(compile(code.text, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.fullmatch(r"400 of 2000 rows looked at, (\d+)% of the best found\n", said)
    assert int(said.split("looked at, ")[1].split("%")[0]) > 20  # more than drawing 400 at random


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    """Every `--option` that a page's prose names is an option of some command."""
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {flag for parameter in parameters for flag in [*parameter.opts, *parameter.secondary_opts]}
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    named = {
        flag
        for code in re.findall(r"`([^`\n]+)`", text)
        if code.startswith(("--", "clusterucb "))
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]+", code)
    }
    assert named <= known | {"--version", "--help", "--help-all", "--install-completion"}


def test_the_relative_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_of_the_report_is_small():
    (picture,) = re.findall(r"!\[[^]]+\]\((docs/[^)]+)\)", (ROOT / "README.md").read_text())
    assert (ROOT / picture).stat().st_size < 200_000
