"""The page, read as a parser sees it: its figures are the run's files', and text from files stays text."""

import base64
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from report_helpers import HOSTILE, Page, records, write_run

from cli_helpers import clusterucb, lines, read
from clusterucb.data.pool import Pool
from clusterucb.report.page import page, report
from clusterucb.report.run_data import RunData

TITLES = {"selected", "quality", "cost", "why", "trust"}


@pytest.fixture(scope="module")
def plain(plain_run):
    return Page(page([RunData(plain_run)]))


@pytest.fixture(scope="module")
def hostile(hostile_run):
    return Page(page([RunData(hostile_run)]))


def cells(page, caption):
    (rows,) = [rows for found, rows in page.tables.items() if found.startswith(caption)]
    return rows[0], {row[0]: row[1:] for row in rows[1:]}


def test_the_page_has_a_section_for_each_question_in_their_order(plain):
    sections = [attributes["id"] for tag, attributes in plain.elements if tag == "section"]
    assert sections == ["selected", "quality", "cost", "why", "trust"]
    links = [attributes["href"] for tag, attributes in plain.elements if tag == "a"]
    assert [f"#{name}" for name in sections] == links[1:]
    assert next(attributes for tag, attributes in plain.elements if tag == "html")["lang"] == "en"


def test_selected_sources_are_those_of_the_summaries(plain, plain_run):
    heads, rows = cells(plain, "Selected rows by source")
    for n in (1, 2, 3):
        sources = read(plain_run / f"rounds/{n}/summary.json")["sources"]
        column = heads.index(f"period {n}") - 1
        assert {name: int(row[column]) for name, row in rows.items() if int(row[column])} == sources
    assert {name: row[0] for name, row in rows.items()} == {"a": "200", "b": "100"}
    assert "45 rows were selected in 3 periods" in plain.words


def test_losses_are_those_of_the_evaluation(plain, plain_run):
    _, rows = cells(plain, "Loss")
    evaluation = read(plain_run / "evaluation.json")
    found = {
        "base": evaluation["base"],
        **{f"after period {n}": read(plain_run / f"periods/{n}.json") for n in (1, 2)},
        "after period 3, the adapter": evaluation["adapter"],
    }
    for name, loss in found.items():
        assert rows[name][0] == f"{loss['loss']:.4f} ± {loss['standard_error']:.4f}"
        difference = np.array(loss["losses"]) - evaluation["base"]["losses"]
        if name != "base":
            assert rows[name][1].startswith(f"{difference.mean():+.4f} ± ")
    bars = plain.data["figures"]["quality-loss"]["data"][0]
    assert bars["y"] == [loss["loss"] for loss in found.values()]
    assert bars["error_y"]["array"] == [loss["standard_error"] for loss in found.values()]


def test_costs_are_those_that_the_steps_wrote_down(plain, plain_run):
    _, rows = cells(plain, "Cost by step")
    for n in (1, 2, 3):
        cost = read(plain_run / f"rounds/{n}/summary.json")["cost"]
        assert rows[f"select {n}"][0] == f"{cost['rows']:,}"
        assert rows[f"select {n}"][2] == f"{cost['pool_gradients']:,}"
    assert rows["gradients"][2] == "300"
    assert rows["all steps"][2] == "420"  # all once, and 20 % twice
    assert rows["evaluate"][0] == "24"  # evaluation.json, and two periods
    assert "420 gradients of pool rows, 47% of the 900" in plain.words


def test_clusters_are_those_of_the_draws(plain, plain_run):
    from safetensors.numpy import load_file

    labels = load_file(plain_run / "clusters.safetensors")["labels"]
    heads, rows = cells(plain, "Clusters")
    assert sum(int(row[1]) for row in rows.values()) == 300
    for n in (2, 3):
        column = heads.index(f"draws, period {n}") - 1
        drawn = {name: int(row[column].split()[0]) for name, row in rows.items()}
        expected = dict.fromkeys(rows, 0)
        for draw in lines(plain_run / f"rounds/{n}/draws.jsonl"):
            expected[f"cluster {draw['arm']}"] += len(draw["ids"])
        assert drawn == expected
    scores = load_file(plain_run / "rounds/1/selection.safetensors")
    own = dict(zip(scores["drawn"], scores["drawn_scores"], strict=True))
    for name, row in rows.items():
        members = [own[i] for i in np.flatnonzero(labels == int(name.split()[1]))]
        assert row[2:4] == [f"{np.mean(members):.4f}", f"{np.std(members):.4f}"]


def test_rows_are_shown_with_their_text_and_scores(plain, plain_run):
    found = plain.data["examples"]["selected"]
    pool = Pool.read(RunData(plain_run).config.pool)
    texts = {pool.id(i): [[m.role, m.content] for m in pool[i].messages] for i in range(len(pool))}
    assert all(texts[text["id"]] == text["turns"] for text in found["texts"])
    for n in (1, 2, 3):
        sidecar = {e["id"]: e["score"] for e in lines(plain_run / f"rounds/{n}/selected.ids.jsonl")}
        kept = {found["texts"][row[0]]["id"]: row[1] for row in found["rows"] if row[3] == n and row[4]}
        assert kept == pytest.approx(sidecar, rel=1e-5)
        others = [row[1] for row in found["rows"] if row[3] == n and not row[4]]
        assert others
        assert max(others) <= min(kept.values()) + 1e-6


def test_the_map_has_every_row_of_a_small_pool_and_marks_the_selected(plain, plain_run):
    figure = plain.data["figures"]["why-map"]
    by_cluster = [
        trace for trace, seen in zip(figure["data"], figure["choices"][0]["visible"], strict=True) if seen
    ]
    assert (
        sum(len(trace["x"]) for trace in by_cluster if trace["mode"] == "markers")
        - len(next(trace for trace in by_cluster if trace["name"] == "selected")["x"])
        == 300
    )
    chosen = {e["id"] for n in (1, 2, 3) for e in lines(plain_run / f"rounds/{n}/selected.ids.jsonl")}
    assert len(next(t for t in figure["data"] if t["name"] == "selected")["x"]) == len(chosen)
    arrows = [trace for trace in figure["data"] if trace["name"].startswith("towards")]
    assert {trace["name"] for trace in arrows} == {"towards &lt;i&gt;a&lt;/i&gt;", "towards b"}


def test_the_page_asks_nothing_of_the_network(hostile):
    for tag, attributes in hostile.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "action", "background", "style"} & attributes.keys() - {"style"}
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
    kinds = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in hostile.elements} <= kinds
    assert len(hostile.scripts) == len(plain.scripts) == 3
    text = json.dumps(next(t for a, t in hostile.scripts if a.get("id") == "data"))
    assert not set("<>&\u2028\u2029") & set(next(t for a, t in hostile.scripts if a.get("id") == "data"))
    assert "hacked" in text
    assert "<b>script</b>" in hostile.words
    assert "gsm8k/<u>5</u>" in hostile.words
    assert "<b>too long</b>" in hostile.words
    assert "models/<tiny>" in hostile.words


def test_hostile_rows_can_be_read_as_they_are(hostile):
    texts = {text["source"]: text for text in hostile.data["examples"]["selected"]["texts"]}
    shown = {name: texts[f"<b>{name}</b>"]["turns"][0][1] for name in HOSTILE if f"<b>{name}</b>" in texts}
    assert len(shown) > 5
    for name in shown.keys() & {"script", "end of script", "image", "template", "link", "right to left"}:
        assert shown[name] == HOSTILE[name]
    seen = {
        "direction": "one ⟨U+202E⟩desrever⟨U+202C⟩ two",
        "nul": "before␀after␛[31m",
        "separators": "a⟨U+2028⟩b⟨U+2029⟩c",
    }
    assert {name: shown[name] for name in shown.keys() & seen.keys()} == {
        name: seen[name] for name in shown.keys() & seen.keys()
    }


def test_a_row_of_a_megabyte_is_cut_with_a_note(hostile_run, hostile):
    found = hostile.data["examples"]["selected"]
    long = next(text for text in found["texts"] if text["source"] == "<b>long</b>")
    assert sum(len(turn[1]) for turn in long["turns"]) == found["characters"] == 2000
    assert long["left_out"] == 1_000_000 + 3004 - 2000


@pytest.mark.parametrize("method", ["random", "less"])
def test_every_method_has_a_page(tmp_path, method):
    folder = write_run(tmp_path / "run", {"a.jsonl": records(60, "a")}, method=method, bandit="none")
    found = Page.read(report([folder]))
    assert {a["id"] for t, a in found.elements if t == "section"} == TITLES
    assert "They serve all 3 training periods" in found.words
    if method == "random":
        assert "takes no gradients" in found.words
        assert "This method needs no gradient" in found.words
    else:
        assert "Without a bandit" in found.words
        assert "why-map" in found.data["figures"]


def test_dynamic_without_a_bandit_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", {"a.jsonl": records(60, "a")}, bandit="none")
    found = Page.read(report([folder]))
    assert "why-arms" not in found.data["figures"]
    assert not [caption for caption in found.tables if "cluster" in caption.lower()]


STAGES = [
    ("summary.json",),
    ("evaluation.json", "summary.json", "periods"),
    ("rounds", "evaluation.json", "summary.json", "periods"),
    ("features", "rounds", "evaluation.json", "summary.json", "clusters.safetensors", "periods"),
    ("pool", "features", "rounds", "evaluation.json", "summary.json", "clusters.safetensors", "periods"),
]


@pytest.mark.parametrize("missing", STAGES, ids=lambda names: f"without {names[0]}")
def test_an_unfinished_run_has_a_page_of_what_is_there(plain_run, tmp_path, missing):
    copy = shutil.copytree(plain_run, tmp_path / "run")
    for name in missing:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    found = Page.read(report([copy]))
    assert {a["id"] for t, a in found.elements if t == "section"} == TITLES
    assert ("not finished" in found.words) == ("evaluation.json" in missing)


def test_without_its_pool_a_run_shows_the_selected_rows_and_says_why(plain_run, tmp_path):
    for change in ("gone", "changed"):
        folder = shutil.copytree(plain_run, tmp_path / change)
        data = tmp_path / f"{change}-data"
        settings = (folder / "config.yaml").read_text().replace(str(plain_run), str(folder))
        (folder / "config.yaml").write_text(settings)
        if change == "changed":
            shutil.copytree(plain_run.with_name("run-data"), data)
            with (data / "a.jsonl").open("a") as file:
                file.write(json.dumps(records(1, "a")[0]) + "\n")
        found = Page.read(report([folder]))
        assert "Rows that were not selected cannot be shown" in found.words
        assert ("have changed" in found.words) == (change == "changed")
        rows = found.data["examples"]["selected"]["rows"]
        chosen = {e["id"] for n in (1, 2, 3) for e in lines(folder / f"rounds/{n}/selected.ids.jsonl")}
        assert {found.data["examples"]["selected"]["texts"][row[0]]["id"] for row in rows if row[4]} == chosen


def test_several_runs_stand_side_by_side(plain_run, hostile_run, tmp_path):
    out = tmp_path / "both.html"
    shown = clusterucb("report", plain_run, hostile_run, "--out", out)
    assert (shown.status, shown.out) == (0, f"{out}\n")
    found = Page.read(out)
    heads, rows = cells(found, "The runs")
    for run in (plain_run, hostile_run):
        evaluation = read(run / "evaluation.json")
        row = dict(zip(heads[1:], rows[run.name], strict=True))
        loss = evaluation["adapter"]
        assert row["loss"] == f"{loss['loss']:.4f} ± {loss['standard_error']:.4f}"
        assert row["method"] == "dynamic with the bandit"
    mine, other = (
        np.array(read(run / "evaluation.json")["adapter"]["losses"]) for run in (hostile_run, plain_run)
    )
    assert rows[hostile_run.name][3].startswith(f"{(mine - other).mean():+.4f}")
    sources = [a["id"] for t, a in found.elements if t == "section"]
    assert sources == [
        "runs",
        *(f"r{i}-{name}" for i in (0, 1) for name in ("selected", "quality", "cost", "why", "trust")),
    ]
    assert len(set(sources)) == len(sources)


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


def test_mistakes_are_told_in_one_line(plain_run, tmp_path):
    assert clusterucb("report").complaint == "report needs DIR...; see --help"
    assert "no config.yaml there; expected the directory of a run" in clusterucb("report", tmp_path).complaint
    assert "say where it goes with --out FILE" in clusterucb("report", plain_run, plain_run).complaint
    said = clusterucb("report", plain_run, plain_run, "--out", tmp_path / "x.html").complaint
    assert "given twice" in said
