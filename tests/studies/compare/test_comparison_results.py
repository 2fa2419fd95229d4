"""The table says what the runs' own files say, with the uncertainties that it names."""

import io
import json
import os
import shutil
import statistics

import pytest
from compare_helpers import CONFIG, cell, csv_lines, finish, write
from rich.console import Console

from cli_helpers import read
from clusterucb.cli.study_tables import show_comparison
from clusterucb.run.costs import Cost
from clusterucb.studies.compare.cells import all_cells
from clusterucb.studies.compare.results import compared, write_cells


def comparison(out):
    return compared(all_cells(out), CONFIG)


@pytest.fixture
def table(tmp_path):
    """Two methods with three and two repetitions, one failed, one that was killed."""
    losses = {}
    for name, repeats, gradients in (("clusterucb", 3, 80), ("dynamic", 2, 200)):
        for repeat in range(repeats):
            run, costs = cell(tmp_path, name, repeat).run, {"gradients": gradients, "seconds": gradients / 10}
            _, losses[name, repeat] = finish(run, f"{name}{repeat}", **costs)
    cell(tmp_path, "random", 0).run.path.mkdir(parents=True)
    cell(tmp_path, "random", 0).fail(ValueError("no luck"))
    cell(tmp_path, "bm25", 0).run.path.mkdir(parents=True)
    return tmp_path, losses, comparison(tmp_path)


def test_losses_and_differences_are_those_of_the_runs(table):
    _, losses, result = table
    base = [2.0, 2.1, 2.2, 2.3]
    ours = [losses["clusterucb", repeat] for repeat in range(3)]
    row = result["methods"]["clusterucb"]
    assert row["loss"]["mean"] == pytest.approx(statistics.fmean(map(statistics.fmean, ours)))
    assert row["loss"]["error"] == pytest.approx(statistics.stdev(map(statistics.fmean, ours)))
    falls = [sum(rows) / 3 - before for *rows, before in zip(*ours, base, strict=True)]
    assert row["against_base"]["mean"] == pytest.approx(statistics.fmean(falls))
    assert row["against_base"]["error"] == pytest.approx(statistics.stdev(falls) / 2)
    assert row["against_reference"] is None
    theirs = [losses["dynamic", repeat] for repeat in range(2)]
    pairs = zip(*ours[:2], *theirs, strict=True)  # the third repetition has no counterpart
    differences = [(c + d) / 2 - (a + b) / 2 for a, b, c, d in pairs]
    against = result["methods"]["dynamic"]["against_reference"]
    assert against["mean"] == pytest.approx(statistics.fmean(differences))
    assert against["error"] == pytest.approx(statistics.stdev(differences) / 2)
    assert against["repetitions"] == 2
    assert result["base"]["loss"]["mean"] == pytest.approx(2.15)
    assert result["base"]["loss"]["error"] == pytest.approx(statistics.stdev(base) / 2)


def test_a_method_costs_all_that_it_takes_alone(table):
    _, _, result = table
    ours, full = (result["methods"][name] for name in ("clusterucb", "dynamic"))
    assert ours["cost"]["pool_gradients"] == 80
    assert ours["cost"]["tokens"] == 30 + 800 + 80
    assert ours["cost"]["seconds"] == pytest.approx(1 + 8 + 0.25)
    assert ours["cost"]["passes"] == pytest.approx((30 + 800 + 80 / 3) / 1000, abs=1e-3)
    assert ours["of_full_dynamic"]["pool_gradients"] == 80 / (2 * 100)  # two periods of 100 rows
    assert full["of_full_dynamic"] == {"pool_gradients": 1, "cost": 1}


def test_runs_of_an_earlier_version_have_no_passes(tmp_path):
    run = cell(tmp_path, "less").run
    finish(run, 1)
    summary = read(run.summary)
    run.summary.write_text(json.dumps({name: summary[name] for name in ("rows", "steps", "total")}))
    result = comparison(tmp_path)
    assert "passes" not in result["methods"]["less"]["cost"]
    (line,) = [line for line in shown(result).splitlines() if "│ less" in line]
    assert line.count("–") == 2


def test_what_is_to_be_said_of_several_methods_is_said_once(table):
    _, _, result = table
    assert result["remarks"]["it rains"] == ["clusterucb", "dynamic"]
    assert result["remarks"]["seed clusterucb0"] == ["clusterucb"]
    assert "note on clusterucb, dynamic: it rains" in shown(result)


def test_a_forward_pass_counts_as_its_share_of_a_gradient(tmp_path):
    run = cell(tmp_path, "clusterucb_hidden").run
    finish(run, 1, warmup=Cost(pool_forwards=90))
    result = comparison(tmp_path)
    row = result["methods"]["clusterucb_hidden"]
    assert row["cost"]["pool_forwards"] == 90
    assert row["of_full_dynamic"]["pool_gradients"] == 40 / 200
    assert row["of_full_dynamic"]["cost"] == pytest.approx((40 + 90 / 3) / 200)


@pytest.mark.parametrize("shared", ["by a folder", "by links, as earlier versions did"])
def test_what_was_shared_was_computed_once(tmp_path, shared):
    warmup = Cost(rows=5, tokens=50, pool_gradients=9, seconds=4.0)
    ours, theirs = cell(tmp_path, "clusterucb"), cell(tmp_path, "dynamic")
    if shared == "by a folder":
        ours.share(CONFIG)
        theirs.share(CONFIG)
    finish(ours.run, 1, gradients=10, seconds=1.0, warmup=warmup)
    if shared != "by a folder":
        shutil.copytree(ours.run.warmup, theirs.run.warmup, copy_function=os.link)
    finish(theirs.run, 2, gradients=10, seconds=1.0, warmup=warmup)
    computed = comparison(tmp_path)["computed"]
    assert computed["pool_gradients"] == 9 + 10 + 10
    assert computed["tokens"] == 50 + 100 + 100 + 80 + 80
    assert computed["seconds"] == pytest.approx(4 + 1 + 1 + 0.25 + 0.25)


def test_csv_and_json_agree_with_the_runs_own_files_and_tell_of_failed_and_unfinished_ones(table):
    out, losses, result = table
    counts = {
        name: [row[s] for s in ("finished", "failed", "unfinished")]
        for name, row in result["methods"].items()
    }
    assert counts == {"clusterucb": [3, 0, 0], "dynamic": [2, 0, 0], "random": [0, 1, 0], "bm25": [0, 0, 1]}
    write_cells(out / "comparison.csv", result["cells"])
    *finished, unfinished, failed = csv_lines(out)
    assert [line["state"] for line in finished] == ["finished"] * 5
    for line, told in zip(finished, result["cells"], strict=False):
        rows = losses[line["method"], int(line["repetition"])]
        assert float(line["loss"]) == told["loss"] == pytest.approx(statistics.fmean(rows))
        assert float(line["standard_error"]) == pytest.approx(statistics.stdev(rows) / 2)
        assert int(line["pool_gradients"]) == {"clusterucb": 80, "dynamic": 200}[line["method"]]
    assert (unfinished["method"], unfinished["state"], unfinished["loss"]) == ("bm25", "unfinished", "")
    assert (failed["method"], failed["state"]) == ("random", "failed")
    assert "ValueError: no luck" in failed["failure"]


def test_one_repetition_has_the_error_over_rows_and_one_row_none(tmp_path):
    run = cell(tmp_path, "less").run
    _, losses = finish(run, 1)
    result = comparison(tmp_path)
    row = result["methods"]["less"]
    assert row["loss"]["over"] == "rows"
    assert row["loss"]["error"] == pytest.approx(statistics.stdev(losses) / 2)
    assert result["reference"] == "less"
    assert "(where there is one run, less, standard error over rows)" in shown(result)
    finish(run, 1, rows=1)
    row = comparison(tmp_path)["methods"]["less"]
    assert (row["loss"]["error"], row["against_base"]["error"]) == (None, None)


def test_benchmarks_are_averaged_over_repetitions(tmp_path):
    for repeat, score in enumerate((0.25, 0.75)):
        run = cell(tmp_path, "rds", repeat).run
        finish(run, repeat)
        values = {
            "base": {"value": 0.1, "standard_error": 0.05},
            "adapter": {"value": score, "standard_error": 0.2},
        }
        task = {"questions": 20, "metrics": {"exact_match": values}}
        write(run.benchmarks / "results.json", {"benchmarks": {"gsm8k": task}})
    result = comparison(tmp_path)
    name = "gsm8k exact_match (20 questions)"
    found = result["methods"]["rds"]["benchmarks"][name]
    assert (found["mean"], found["error"]) == (0.5, pytest.approx(statistics.stdev([0.25, 0.75])))
    assert result["base"]["benchmarks"][name]["mean"] == 0.1
    assert [line[name] for line in result["cells"]] == [0.25, 0.75]
    assert "50.0% ± 35.4%" in shown(result)
    assert "10.0% ± 5.0%" in shown(result)


def shown(result, width=None):
    screen = io.StringIO()
    show_comparison(result, Console(file=screen, width=width))
    return screen.getvalue()


def test_the_table_has_a_line_for_each_method_with_the_base_first(table):
    _, _, result = table
    text = shown(result)
    body = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert body == ["base", "clusterucb", "dynamic", "bm25", "random"]
    row = result["methods"]["dynamic"]
    (line,) = [line for line in text.splitlines() if line.startswith("│ dynamic")]
    assert f"{row['loss']['mean']:.4f} ± {row['loss']['error']:.4f}" in line
    against = row["against_reference"]
    assert f"{against['mean']:+.4f} ± {against['error']:.4f}" in line
    assert all(text in line for text in ("200", "2,110", "21.2", "2.06", "100%"))
    assert "Scoring all rows at every selection (2 times) instead: 2.06 passes over the pool" in text
    assert "1 failed" in text
    assert "random/0 failed: ValueError: no luck" in text
    assert "on 4 held-out rows" in text
    assert "their spread leaves out that part" in text
    assert f"{3 * 80 + 2 * 200:,} pool gradients" in text


def test_nothing_finished_is_a_table_too(tmp_path):
    folder = cell(tmp_path, "random")
    folder.run.path.mkdir(parents=True)
    folder.fail(ValueError("no luck"))
    assert "random/0 failed" in shown(comparison(tmp_path))
