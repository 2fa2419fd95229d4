"""The page, read as a parser sees it: its figures are the run's files', and text from files stays text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_helpers import HOSTILE, Page, records, write_run
from safetensors.numpy import load_file

import clusterucb as package
from cli_helpers import clusterucb, lines, read
from clusterucb.data.pool import Pool
from clusterucb.report.bill import in_words
from clusterucb.report.page import page, report
from clusterucb.report.run_data import RunData

SECTIONS = ["selected", "quality", "cost", "why", "trust"]
PERIODS = (1, 2, 3)


@pytest.fixture(scope="module")
def plain(plain_run):
    return Page(page([RunData(plain_run)]))


@pytest.fixture(scope="module")
def hostile(hostile_run):
    return Page(page([RunData(hostile_run)]))


def cells(page, caption):
    """Headings of a table, and its rows by their names."""
    (rows,) = [rows for found, rows in page.tables.items() if found.startswith(caption)]
    return rows[0], {row[0]: row[1:] for row in rows[1:]}


def sections(page):
    return [attributes["id"] for tag, attributes in page.elements if tag == "section"]


def sidecar(run, n):
    """Id to score of the rows that a selection chose."""
    return {entry["id"]: entry["score"] for entry in lines(run / f"rounds/{n}/selected.ids.jsonl")}


def chosen_ids(run):
    return {identity for n in PERIODS for identity in sidecar(run, n)}


def test_the_page_has_a_section_for_each_question_in_their_order(plain):
    assert sections(plain) == SECTIONS
    links = [attributes["href"] for tag, attributes in plain.elements if tag == "a"]
    assert [f"#{name}" for name in SECTIONS] == links[1:]
    assert next(attributes for tag, attributes in plain.elements if tag == "html")["lang"] == "en"


def test_selected_sources_are_those_of_the_summaries(plain, plain_run):
    heads, rows = cells(plain, "Selected rows by source")
    for n in PERIODS:
        sources = read(plain_run / f"rounds/{n}/summary.json")["sources"]
        column = heads.index(f"period {n}") - 1
        assert {name: int(row[column]) for name, row in rows.items() if int(row[column])} == sources
    assert {name: row[0] for name, row in rows.items()} == {"a": "200", "b": "100"}
    assert "45 rows were selected in 3 periods" in plain.words


def test_losses_are_those_of_the_evaluation(plain, plain_run):
    _, rows = cells(plain, "Loss")
    evaluation = read(plain_run / "evaluation.json")
    periods = {f"after period {n}": read(plain_run / f"periods/{n}.json") for n in (1, 2)}
    found = {"base": evaluation["base"], **periods, "after period 3, the adapter": evaluation["adapter"]}
    for name, loss in found.items():
        assert rows[name][0] == f"{loss['loss']:.4f} ± {loss['standard_error']:.4f}"
        difference = np.mean(np.array(loss["losses"]) - evaluation["base"]["losses"])
        assert rows[name][1].startswith("–" if name == "base" else f"{difference:+.4f} ± ")
    bars = plain.data["figures"]["quality-loss"]["data"][0]
    assert bars["y"] == [loss["loss"] for loss in found.values()]
    assert bars["error_y"]["array"] == [loss["standard_error"] for loss in found.values()]


def test_costs_are_those_that_the_steps_wrote_down(plain, plain_run):
    _, rows = cells(plain, "Cost by step")
    for n in PERIODS:
        cost, row = read(plain_run / f"rounds/{n}/summary.json")["cost"], rows[f"select {n}"]
        assert (row[0], row[2]) == (str(cost["rows"]), str(cost["pool_gradients"]))
    assert rows["gradients"][2] == "300"
    assert rows["all steps"][2] == "420"  # all once, and 20 % twice
    assert rows["evaluate"][0] == "24"  # evaluation.json, and two periods
    bill = read(plain_run / "summary.json")["bill"]
    assert bill["passes"] == pytest.approx(2 + 2 * 0.2 + 24 / 3 / 300, abs=1e-3)
    assert all(line in plain.words for line in in_words(bill))


def test_clusters_are_those_of_the_draws(plain, plain_run):
    labels = load_file(plain_run / "clusters.safetensors")["labels"]
    heads, rows = cells(plain, "Clusters")
    assert sum(int(row[1]) for row in rows.values()) == 300
    for n in (2, 3):
        column = heads.index(f"draws, period {n}") - 1
        expected = dict.fromkeys(rows, 0)
        for draw in lines(plain_run / f"rounds/{n}/draws.jsonl"):
            expected[f"cluster {draw['arm']}"] += len(draw["ids"])
        assert {name: int(row[column].split()[0]) for name, row in rows.items()} == expected
    first = load_file(plain_run / "rounds/1/selection.safetensors")
    scores = first["drawn_scores"][np.argsort(first["drawn"])]  # of all rows
    for name, row in rows.items():
        members = scores[labels == int(name.split()[1])]
        assert row[2:4] == [f"{members.mean():.4f}", f"{members.std():.4f}"]


def test_rows_are_shown_with_their_text_and_scores(plain, plain_run):
    found = plain.data["examples"]["selected"]
    pool = Pool.read(RunData(plain_run).config.pool)
    texts = {row.id: [[message.role, message.content] for message in row.messages] for row in pool}
    assert all(texts[text["id"]] == text["turns"] for text in found["texts"])
    for n in PERIODS:
        own = [row for row in found["rows"] if row[3] == n]
        kept = {found["texts"][row[0]]["id"]: row[1] for row in own if row[4]}
        assert kept == pytest.approx(sidecar(plain_run, n), rel=1e-5)
        others = [row[1] for row in own if not row[4]]
        assert others
        assert max(others) <= min(kept.values()) + 1e-6


def test_the_map_has_every_row_of_a_small_pool_and_marks_the_selected(plain, plain_run):
    figure = plain.data["figures"]["why-map"]
    for choice in figure["choices"]:  # colours by cluster, source and influence
        traces = zip(figure["data"], choice["visible"], strict=True)
        seen = {trace["name"]: len(trace["x"]) for trace, visible in traces if visible}
        assert seen.pop("selected") == len(chosen_ids(plain_run))
        assert {name: seen.pop(name) for name in ("towards &lt;i&gt;a&lt;/i&gt;", "towards b")}
        assert sum(seen.values()) == 300


def test_the_page_asks_nothing_of_the_network(hostile):
    for tag, attributes in hostile.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "action", "background"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for t, a in hostile.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = [text for attributes, text in hostile.scripts if "type" not in attributes]
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts} == allowed
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


def test_hostile_text_is_only_text(hostile, plain):
    """The elements are those of a page over harmless rows."""
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in plain.elements}
    assert len(hostile.scripts) == len(plain.scripts) == 3
    text = next(text for attributes, text in hostile.scripts if attributes.get("id") == "data")
    assert not set("<>&\u2028\u2029") & set(text)
    assert "hacked" in text
    remark = "mind the <b>gap</b>"
    for said in (remark, "<b>script</b>", "gsm8k/<u>5</u>", "<b>too long</b>", "models/<tiny>"):
        assert said in hostile.words


def test_hostile_rows_can_be_read_as_they_are(hostile):
    texts = {text["source"]: text for text in hostile.data["examples"]["selected"]["texts"]}
    shown = {name: texts[f"<b>{name}</b>"]["turns"][0][1] for name in HOSTILE if f"<b>{name}</b>" in texts}
    assert len(shown) > 5
    seen = {"direction": "one ⟨U+202E⟩desrever⟨U+202C⟩ two", "separators": "a⟨U+2028⟩b⟨U+2029⟩c"}
    seen |= {"nul": "before␀after␛[31m", "long": HOSTILE["long"][:2000]}  # of a megabyte
    assert shown == {name: seen.get(name, HOSTILE[name]) for name in shown}
    assert len(texts["<b>long</b>"]["turns"]) == 1
    assert texts["<b>long</b>"]["left_out"] == 1_000_000 + 3004 - 2000


HIDDEN = {"clustering": {"features": "hidden"}}


@pytest.mark.parametrize(
    ("settings", "said", "figures"),
    [
        ({"method": "random", "bandit": "none"}, ("takes no gradients", "serve all 3 training periods"), ()),
        ({"method": "less", "bandit": "none"}, ("Without a bandit", "serve all 3"), ("map",)),
        ({"bandit": "none"}, ("Without a bandit", "Scoring all rows at every selection (3 times)"), ("map",)),
        (HIDDEN, ("where likeness to the target grows", "One pass over the pool"), ("map", "arms", "found")),
    ],
    ids=["random", "less", "dynamic without a bandit", "clusters of hidden states"],
)
def test_every_method_has_a_page(tmp_path, settings, said, figures):
    folder = write_run(tmp_path / "run", {"a.jsonl": records(60, "a")}, **settings)
    found = Page.read(report([folder]))
    assert sections(found) == SECTIONS
    assert [part for part in said if part not in found.words] == []
    drawn = {name for name in found.data["figures"] if name.startswith("why")}
    assert drawn == {f"why-{name}" for name in figures}
    assert ("Clusters" in found.tables) == ("arms" in figures)


STAGES = ["summary.json", "evaluation.json periods", "rounds clusters.safetensors", "directions"]
STAGES += ["features", "pool"]


@pytest.mark.parametrize("stage", range(1, 7), ids=lambda stage: f"without {STAGES[stage - 1]}")
def test_an_unfinished_run_has_a_page_of_what_is_there(plain_run, tmp_path, stage):
    copy = shutil.copytree(plain_run, tmp_path / "run")
    missing = " ".join(STAGES[:stage]).split()
    for name in missing:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    found = Page.read(report([copy]))
    assert sections(found) == SECTIONS
    assert ("not finished" in found.words) == ("evaluation.json" in missing)


@pytest.mark.parametrize("changed", [False, True], ids=["gone", "changed"])
def test_without_its_pool_a_run_shows_the_selected_rows_and_says_why(plain_run, tmp_path, changed):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    settings = (folder / "config.yaml").read_text().replace(str(plain_run), str(folder))
    (folder / "config.yaml").write_text(settings)
    if changed:
        shutil.copytree(plain_run.with_name("run-data"), tmp_path / "run-data")
        with (tmp_path / "run-data/a.jsonl").open("a") as file:
            file.write(json.dumps(records(1, "a")[0]) + "\n")
    found = Page.read(report([folder]))
    assert "Rows that were not selected cannot be shown" in found.words
    assert ("have changed" in found.words) == changed
    shown = found.data["examples"]["selected"]
    assert {shown["texts"][row[0]]["id"] for row in shown["rows"] if row[4]} == chosen_ids(folder)


def test_several_runs_stand_side_by_side(plain_run, hostile_run, tmp_path):
    out, runs = tmp_path / "both.html", (plain_run, hostile_run)
    shown = clusterucb("report", *runs, "--out", out)
    assert (shown.status, shown.out) == (0, f"{out}\n")
    found = Page.read(out)
    heads, rows = cells(found, "The runs")
    adapters = [read(run / "evaluation.json")["adapter"] for run in runs]
    for run, loss in zip(runs, adapters, strict=True):
        row = dict(zip(heads[1:], rows[run.name], strict=True))
        assert row["loss"] == f"{loss['loss']:.4f} ± {loss['standard_error']:.4f}"
        assert row["method"] == "dynamic with the bandit"
    difference = np.subtract(adapters[1]["losses"], adapters[0]["losses"])
    assert rows[hostile_run.name][3].startswith(f"{difference.mean():+.4f}")
    assert sections(found) == ["runs", *(f"r{i}-{name}" for i in (0, 1) for name in SECTIONS)]


def test_a_comparison_stands_for_its_runs(plain_run, tmp_path):
    out = tmp_path / "compared"
    for cell in ("clusterucb/0", "clusterucb/1"):
        shutil.copytree(plain_run, out / cell)
    (out / "comparison.yaml").write_text("")
    report([out], tmp_path / "page.html")
    _, rows = cells(Page.read(tmp_path / "page.html"), "The runs")
    assert list(rows) == ["0", "1"]


def test_the_report_is_published_whole_and_the_same_each_time(plain_run, tmp_path):
    copy = shutil.copytree(plain_run, tmp_path / "run")
    first = report([copy]).read_bytes()
    assert report([copy]).read_bytes() == first
    assert not list(copy.rglob("*.part"))


def test_a_report_is_made_without_torch(plain_run, tmp_path):
    code = (
        "import sys; from clusterucb.report.page import report; report(sys.argv[1:2], sys.argv[2])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(package.__file__).parent.parent)}
    command = [sys.executable, "-c", code, plain_run, tmp_path / "page.html"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr


def test_mistakes_are_told_in_one_line(plain_run, tmp_path):
    assert clusterucb("report").complaint == "report needs DIR...; see --help"
    assert "no config.yaml there; expected the directory of a run" in clusterucb("report", tmp_path).complaint
    assert "say where it goes with --out FILE" in clusterucb("report", plain_run, plain_run).complaint
    said = clusterucb("report", plain_run, plain_run, "--out", tmp_path / "x.html").complaint
    assert "given twice" in said
