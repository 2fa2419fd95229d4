"""The documentation as a site: built without a warning and a network, generated where it would go stale."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import typer
from document_blocks import ROOT

import clusterucb
from clusterucb.cli.main import application
from clusterucb.config import settings

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


class Fetched(HTMLParser):
    """Addresses that a browser asks for when it shows a page, and the page's text."""

    def __init__(self, html):
        super().__init__()
        self.addresses, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(found.get("src") or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.addresses.append(found.get("href") or "")

    def handle_data(self, data):
        self.text += data


def words(site, page):
    return Fetched((site / page).read_text()).text


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
    html = (site / "api.html").read_text()
    for name, home in clusterucb._HOMES.items():
        assert f'id="clusterucb.{home}.{name}"' in html, name
    assert "Others" not in html, "a public name has no group in docs/reference.py"


def test_every_document_is_a_page(site):
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    made = [*sources, "index.html", "cli.html", "api.html", "changelog.html", "contributing.html"]
    assert all((site / page).exists() for page in made)


def test_the_front_page_is_the_readme_with_links_within_the_site(site):
    html = (site / "index.html").read_text()
    assert "Find the few percent of your instruction data" in html
    assert 'href="docs/' not in html
    assert 'href="method.html"' in html


def test_nothing_is_fetched_from_elsewhere(site):
    addresses = {a for page in site.rglob("*.html") for a in Fetched(page.read_text()).addresses}
    assert addresses
    assert [address for address in addresses if re.match(r"(\w+:)?//", address)] == []


def test_no_generated_page_is_kept_in_the_repository():
    kept = {path.name for path in (ROOT / "docs").rglob("*")}
    assert kept.isdisjoint({"index.md", "cli.md", "api.md", "changelog.md", "contributing.md"})
