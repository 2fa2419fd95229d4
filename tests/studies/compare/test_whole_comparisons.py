"""Whole comparisons on a tiny model: of every method, killed, moved, and begun by an earlier version."""

import os
import shutil

import pytest
import yaml
from compare_helpers import cell, compare, csv_lines, timeless, write

from cli_helpers import clusterucb, done, options, read, result
from clusterucb.run.presets import PRESETS
from forks import publication

pytestmark = pytest.mark.whole

METHODS = "clusterucb,dynamic"
RUNS = ("clusterucb/0", "clusterucb/1", "dynamic/0", "dynamic/1")


@pytest.fixture(scope="module")
def comparison(run_settings, tmp_path_factory):
    """A finished comparison, not to be changed: two methods twice, then every method; and what was said."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    two = compare(run_settings, METHODS, 2, out=out)
    every = compare(run_settings, ",".join(PRESETS), 1, out=out)
    assert (two.status, every.status) == (0, 0), (two, every)
    return out, (two, every)


def cell_of(out, run):
    name, repeat = run.split("/")
    return cell(out, name, int(repeat)).run


def test_each_method_is_these_settings(comparison):
    def of(name):
        tree = yaml.safe_load((comparison[0] / name / "0/config.yaml").read_text())
        more = tree["clustering"]["features"], tree["selection"]["policy"], tree["baselines"]["perplexity"]
        return " ".join((tree["method"], tree["bandit"], *more))

    assert {name: of(name) for name in PRESETS} == {
        "clusterucb": "dynamic clusterucb gradients ucb_beta highest",
        "clusterucb_hidden": "dynamic clusterucb hidden ucb_beta highest",
        "linear_ucb": "dynamic clusterucb gradients linear_ucb highest",
        "linear_ucb_hidden": "dynamic clusterucb hidden linear_ucb highest",
        "linear_ucb_words": "dynamic clusterucb words linear_ucb highest",
        "cluster_less": "dynamic clusterucb hidden cluster_less highest",
        "landmarks": "dynamic clusterucb hidden landmarks highest",
        "dynamic": "dynamic none gradients ucb_beta highest",
        "less_clusterucb": "less clusterucb gradients ucb_beta highest",
        "less": "less none gradients ucb_beta highest",
        "rds": "rds clusterucb gradients ucb_beta highest",
        "head": "head clusterucb gradients ucb_beta highest",
        "bm25": "bm25 clusterucb gradients ucb_beta highest",
        "loss_highest": "loss clusterucb gradients ucb_beta highest",
        "loss_lowest": "loss clusterucb gradients ucb_beta lowest",
        "random": "random clusterucb gradients ucb_beta highest",
    }


def test_shared_parts_are_made_once(comparison):
    out, (two, every) = comparison
    for outcome, runs in ((two, 4), (every, len(PRESETS) - 2)):
        assert [outcome.err.count(said) for said in ("load ", "warm up: ", "train: ")] == [1, 1, runs]
    for name in ("initial/adapter_model.safetensors", "offsets.npy", "contamination.json"):
        assert len([*out.rglob(name)]) == 1
    stores = {str(path.parent.relative_to(out / "shared")) for path in out.rglob("features.f16")}
    less = {"less/features", "less/features-2", "less/features-3"}
    assert stores == {"dynamic/features", "dynamic-hidden/features", "dynamic-words/features"} | less


@pytest.mark.parametrize("name", PRESETS)
def test_each_run_of_a_comparison_is_the_same_run_alone(comparison, finished_run, name):
    """Bit for bit, though all used the same loaded model one after another; and it costs as much."""
    out, _ = comparison
    ours, alone = cell_of(out, f"{name}/0"), finished_run(name).folder
    found, expected = result(ours.path), result(alone)
    assert all(found[part] == expected[part] for part in expected)
    steps = [read(folder / "summary.json")["steps"] for folder in (ours.path, alone)]
    counts = [{name: {**cost, "seconds": 0} for name, cost in found.items()} for found in steps]
    assert counts[0] == counts[1]


def test_what_runs_share_is_counted_once(comparison):
    table = read(comparison[0] / "comparison.json")
    alone = sum(line["pool_gradients"] for line in table["cells"])
    assert alone == 2 * 140 + 60 + 140 + 3 * 60 + 40 + 2 * 300 + 140 + 300
    features = 100 * (4 + 1)  # that others than the first have of dynamic and of LESS
    assert table["computed"]["pool_gradients"] == alone - features
    assert table["methods"]["clusterucb"]["of_full_dynamic"]["pool_gradients"] == 140 / 300


def test_a_repetition_has_other_draws_and_training_over_the_same_clusters(comparison, finished_run, tmp_path):
    """And is the same alone."""
    out, _ = comparison
    first, second = (result(out / f"clusterucb/{repeat}") for repeat in (0, 1))
    same = {name for name in first if first[name] == second[name]}
    assert {"clusters.safetensors", "features/features.f16", "rounds/1/selected.jsonl"} <= same
    assert not same & {"rounds/2/draws.jsonl", "adapter/adapter_model.safetensors", "evaluation"}
    alone = options(finished_run("clusterucb").elsewhere(tmp_path / "run", repeat=1))
    done("run", *alone)
    assert result(tmp_path / "run") == second


def test_a_run_of_a_comparison_can_be_looked_at_alone(comparison):
    out, _ = comparison
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    for run in ("clusterucb/1", "rds/0"):
        done("run", "--out", out / run)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


def test_again_by_the_command_or_from_python_it_computes_nothing_and_says_the_same(
    comparison, run_settings, monkeypatch
):
    import clusterucb as package
    from clusterucb.config import load

    out, (_, every) = comparison
    monkeypatch.setattr("clusterucb.run.inputs.load_model", lambda *_, **__: pytest.fail("loaded"))
    files = [out / "comparison.csv", out / "comparison.json"]
    was = [path.read_bytes() for path in files]
    assert compare(run_settings, METHODS, 2, out=out)[:2] == (0, every.out)
    assert [path.read_bytes() for path in files] == was
    quiet = clusterucb("compare", "--methods", METHODS, "--seeds", 2, "--out", out, "-q")
    assert quiet == (0, "", "")
    config = load(out / "comparison.yaml", {"out": str(out)})
    assert package.compare(config, ["dynamic", "clusterucb"], 2) == read(files[1])


def test_the_table_says_what_the_runs_say(comparison):
    out, (_, every) = comparison
    names = [line["method"] for line in csv_lines(out)]
    assert list(dict.fromkeys(names)) == list(PRESETS)
    assert len(names) == len(PRESETS) + 2
    for line in csv_lines(out):
        run = out / line["method"] / line["repetition"]
        assert line["state"] == "finished"
        assert float(line["loss"]) == pytest.approx(read(run / "evaluation.json")["adapter"]["loss"])
        assert int(line["pool_gradients"]) == read(run / "summary.json")["total"]["pool_gradients"]
    assert every.out.splitlines()[-1] == str(out / "comparison.csv")


def test_a_moved_comparison_is_as_good(comparison, tmp_path):
    out, (_, every) = comparison
    moved = shutil.copytree(out, tmp_path / "moved")
    again = done("compare", moved / "comparison.yaml", "--methods", METHODS, "--seeds", 2)
    assert again.out == every.out.replace(str(out), str(moved))
    assert not [path for path in moved.rglob("*") if path.is_symlink()]


def test_a_comparison_begun_by_an_earlier_version_goes_on(comparison, run_settings, tmp_path):
    """Its runs had directories of their own, with links to what they shared; the last has not begun."""
    out, _ = comparison
    old = tmp_path / "old"
    for run in RUNS[:3]:
        as_earlier(cell_of(out, run), old / run)
    shutil.copy(out / "comparison.yaml", old)
    for name in ("adapter", "periods", "rounds/3"):
        shutil.rmtree(old / RUNS[2] / name)
    for name in ("evaluation.json", "summary.json"):
        (old / RUNS[2] / name).unlink()
    assert compare(run_settings, METHODS, 2, out=old).status == 0
    assert timeless(old) == [line for line in timeless(out) if line["method"] in METHODS]
    for run in RUNS:
        found, expected = result(old / run), result(out / run)
        assert all(found[name] == expected[name] for name in found)


def as_earlier(run, folder):
    """A run of a comparison as it was when its parts were links, and directions lay beside the features."""
    link = {"copy_function": os.link}
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("elsewhere.json"))
    for path in (run.pool, run.initial, run.warmup, run.features):
        shutil.copytree(path, folder / path.name, **link)
    shutil.copytree(run.round(1), folder / "rounds/1", dirs_exist_ok=True)
    shutil.copy(run.directions_at(1), folder / "features/directions.safetensors")
    for path in (run.contamination, run.clusters, run.clusters.with_suffix(".json")):
        shutil.copy(path, folder)
    write(folder / "shared.json", {"pool": {"from": "clusterucb/0", "cost": None}})


MOMENTS = [  # what exists then, and where the attempt dies
    ("shared/pool", publication("shared/initial")),
    ("shared/initial", publication("comparison.yaml")),
    ("comparison.yaml", publication("clusterucb/0/elsewhere.json", "after")),
    ("clusterucb/0/elsewhere.json", publication("clusterucb/0/config.yaml", "after")),
    ("clusterucb/0/config.yaml", publication("dynamic/features", "after")),
    ("shared/dynamic/features", publication("comparison.json", "after")),
    ("comparison.json", publication("dynamic/0/elsewhere.json")),
    ("comparison.json", publication("dynamic/0/evaluation.json", "after")),
    ("dynamic/0/evaluation.json", publication("clusterucb/1/config.yaml", "after")),
    ("clusterucb/1/config.yaml", {"where": "torch.optim:AdamW.step", "call": 4}),
    ("clusterucb/1/config.yaml", {"where": "pathlib:Path.open", "path": "rounds/3.part/selected.jsonl"}),
    ("clusterucb/1/summary.json", {**publication("comparison.csv"), "call": 3}),
    ("clusterucb/1/summary.json", publication("dynamic/1/summary.json")),
]


def test_killed_anywhere_it_ends_with_the_same_table(server, comparison, run_settings, tmp_path):
    whole, out = comparison[0], tmp_path / "out"
    command = ["compare", "--methods", METHODS, "--seeds", 2, *options(run_settings, features=None, out=out)]
    for there, at in MOMENTS:
        server.dies(command, at)
        assert (out / there).exists(), at
    server.ends(command)
    assert timeless(out) == [line for line in timeless(whole) if line["method"] in METHODS]
    assert result(out / "clusterucb/1") == result(whole / "clusterucb/1")
    assert [path for path in out.rglob("*") if path.suffix in (".part", ".states")] == []
    assert read(out / "comparison.json")["computed"]["pool_gradients"] == 100 + 2 * 40 + 2 * 200
