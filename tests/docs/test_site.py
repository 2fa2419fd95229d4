"""The documentation as a site: built without a warning and a network, generated where it would go stale."""

import html
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import typer
from document_blocks import ROOT

import clusterucb
from clusterucb.cli.main import application
from clusterucb.config import settings

pytestmark = pytest.mark.whole
MISSING = [n for n in ("mkdocs", "material", "mkdocstrings_handlers") if not importlib.util.find_spec(n)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if MISSING:
        pytest.skip(f"no {', '.join(MISSING)} here: pip install 'clusterucb[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    return folder


FETCHED = re.compile(r'(?:\ssrc|<link[^>]*\shref)="([^"]+)"')
"""What a browser asks for when it shows a page."""


def words(site, page):
    return html.unescape(re.sub(r"<[^>]*>", "", (site / page).read_text()))


def test_the_command_line_page_has_every_command_and_setting(site):
    text = words(site, "cli.html")
    for name, command in typer.main.get_command(application()).commands.items():
        assert f"clusterucb {name}" in text
        assert all(flag in text for parameter in command.params for flag in parameter.opts if flag[0] == "-")
    for setting in settings():
        place = f"{setting.section}.{setting.name}" if setting.section else setting.name
        assert place in text
        assert " ".join(setting.help.replace("`", "").split()) in text


def test_the_python_page_has_every_public_name(site):
    page = (site / "api.html").read_text()
    for name, home in clusterucb._HOMES.items():
        assert f'id="clusterucb.{home}.{name}"' in page, name
    assert "Others" not in page, "a public name has no group in docs/reference.py"


def test_every_document_is_a_page(site):
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    made = [*sources, "index.html", "cli.html", "api.html", "changelog.html", "contributing.html"]
    assert all((site / page).exists() for page in made)


def test_the_front_page_is_the_readme_with_links_within_the_site(site):
    page = (site / "index.html").read_text()
    assert "Find the few percent of your instruction data" in page
    assert 'href="docs/' not in page
    assert 'href="method.html"' in page


def test_nothing_is_fetched_from_elsewhere(site):
    addresses = {a for page in site.rglob("*.html") for a in FETCHED.findall(page.read_text())}
    assert any(address.endswith(".css") for address in addresses)
    assert any(address.endswith(".js") for address in addresses)
    assert [address for address in addresses if re.match(r"(\w+:)?//", address)] == []


def test_no_generated_page_is_kept_in_the_repository():
    kept = {path.name for path in (ROOT / "docs").rglob("*")}
    assert kept.isdisjoint({"index.md", "cli.md", "api.md", "changelog.md", "contributing.md"})
