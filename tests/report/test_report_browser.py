"""The page in a real Chromium: no error on its console, filters that work, hostile text shown as text."""

import json
import re
import shutil
import subprocess

import pytest
from report_helpers import HOSTILE, Page

from clusterucb.report.page import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]

FLAGS = (
    "headless no-sandbox disable-gpu disable-dev-shm-usage window-size=1200,12000 virtual-time-budget=15000"
)
QUIET = "no-first-run disable-background-networking disable-component-update disable-sync disable-quic"
LOG = ["--enable-logging=stderr", "--v=0"]
POLICY = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')


def opened(path, folder, *more):
    """The page's elements after its scripts have run, and what was said on the console."""
    flags = [f"--{flag}" for flag in f"{FLAGS} {QUIET} user-data-dir={folder / 'profile'}".split()]
    command = [BROWSER, *flags, *LOG, *more, "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, timeout=120)
    said = shown.stderr.decode(errors="replace")
    return shown.stdout.decode(), [line for line in said.splitlines() if "CONSOLE" in line]


def played(page, folder, script, *more):
    """The same of a copy of the page with a script of the test's, whose policy lets it."""
    path = folder / "played.html"
    path.write_text(POLICY.sub("", page.read_text()).replace("</body>", f"<script>{script}</script></body>"))
    return opened(path, folder, *more)


@pytest.fixture(scope="module")
def page(hostile_run, tmp_path_factory):
    return report([hostile_run], tmp_path_factory.mktemp("page") / "report.html")


def test_it_opens_without_an_error_and_draws_every_figure(page, tmp_path):
    dom, said = opened(page, tmp_path)
    assert said == []
    drawn = set(re.findall(r'<div class="plot[^"]* js-plotly-plot" id="([^"]+)"', dom))
    assert drawn == set(Page.read(page).data["figures"])
    assert "hacked" not in re.search("<title>(.*?)</title>", dom)[1]
    assert dom.count('<article class="row">') == 8  # of 3 x 14 selected ones


DRIVER = """
const wait = () => new Promise((done) => setTimeout(done, 50));
const found = {}, place = document.querySelector(".explorer");
const rows = () => [...place.querySelectorAll(".row")].map((row) => ({
  id: row.querySelector("bdi").textContent, score: Number(row.querySelector(".score").textContent),
  kept: row.querySelector(".out") === null, facts: row.querySelectorAll("bdi")[1].textContent,
  text: [...row.querySelectorAll(".turn bdi")].map((turn) => turn.textContent),
}));
const set = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event(element.type === "search" ? "input" : "change"));
};
(async () => {
  await wait();
  for (let i = 0; i < 200 && !place.children.length; i++) await wait();
  const [which, order, period, source, cluster] = place.querySelectorAll("select");
  const search = place.querySelector("input");
  found.first = rows();
  set(order, "1"); found.least = rows(); set(order, "-1");
  set(which, "0"); found.unselected = rows();
  set(which, ""); set(source, "plain"); found.plain = rows(); set(source, "");
  set(period, "2"); found.second = rows(); set(period, "");
  set(cluster, "3"); found.cluster = rows(); set(cluster, "");
  set(search, "SELECT-NOTHING"); found.none = rows();
  for (const word of WORDS) { set(search, word); found[word] = rows(); }
  set(search, "");
  const before = place.querySelectorAll(".row").length;
  [...place.querySelectorAll("button")].find((b) => b.textContent === "show more rows").click();
  found.more = [before, place.querySelectorAll(".row").length];
  const menu = document.querySelector("select[data-choices]");
  const plot = document.getElementById(menu.dataset.choices);
  menu.value = "2"; menu.dispatchEvent(new Event("change")); await wait();
  found.colours = plot.data.filter((trace) => trace.visible !== false).map((trace) => trace.name);
  document.getElementById("theme").click();
  found.theme = [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor];
  window.dispatchEvent(new Event("beforeprint"));
  await wait();
  const out = document.createElement("script");
  out.type = "application/json"; out.id = "found";
  out.textContent = JSON.stringify(found).replaceAll("<", "\\\\u003c");
  document.body.append(out);
})();
"""


@pytest.fixture(scope="module")
def driven(page, tmp_path_factory):
    """What a person finds who uses the filters: a script plays one."""
    words = json.dumps(["{{7*7}}", "</script>", "hello", "plain.jsonl:1"]).replace("<", "\\u003c")
    dom, said = played(page, tmp_path_factory.mktemp("driven"), DRIVER.replace("WORDS", words))
    assert said == []
    found = re.search('<script type="application/json" id="found">(.*?)</script>', dom, re.DOTALL)
    return json.loads(found[1])


def test_filters_show_what_they_say(driven):
    assert all(row["kept"] for row in driven["first"])
    scores = [row["score"] for row in driven["first"]]
    assert scores == sorted(scores, reverse=True)
    least = [row["score"] for row in driven["least"]]
    assert least == sorted(least)
    assert driven["unselected"]
    assert not any(row["kept"] for row in driven["unselected"])
    for name, part in (("plain", "plain ·"), ("second", "period 2"), ("cluster", "cluster 3 ")):
        assert driven[name], name
        assert all(part in row["facts"] for row in driven[name]), name
    assert driven["none"] == []
    assert driven["more"] == [8, 28]


def test_search_finds_words_and_ids(driven):
    for word, name in (("{{7*7}}", "template"), ("</script>", "end of script"), ("hello", "right to left")):
        assert driven[word], word
        assert all(any(word in turn for turn in row["text"]) for row in driven[word])
        assert any(row["text"][0] == HOSTILE[name] for row in driven[word])
    assert {row["id"] for row in driven["plain.jsonl:1"]} >= {"plain.jsonl:1"}


def test_menu_and_theme_change_what_is_seen(driven):
    assert driven["colours"][0] == "rows"  # by influence
    theme, background = driven["theme"]
    assert theme == "dark"
    assert max(map(int, re.findall(r"\d+", background))) < 60


def test_on_a_phone_the_page_is_no_wider_than_the_screen(page, tmp_path):
    """Tables scroll inside themselves."""
    measure = "document.body.dataset.wide = document.documentElement.scrollWidth + ' ' + innerWidth;"
    narrowest = "--window-size=500,4000"  # that Chromium has without a screen
    dom, _ = played(page, tmp_path, f"setTimeout(() => {{ {measure} }}, 3000)", narrowest)
    wide, screen = map(int, re.search('data-wide="([^"]+)"', dom)[1].split())
    assert wide <= screen
