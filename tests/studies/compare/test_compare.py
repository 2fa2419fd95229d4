"""`clusterucb compare`: several methods, several times each, on a tiny model."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from compare_helpers import cell, csv_lines, finish, timeless, write

from cli_helpers import clusterucb, done, options, read, result
from clusterucb.errors import InputError, StorageError
from clusterucb.run.presets import PRESETS
from forks import publication

METHODS = "clusterucb,dynamic"
RUNS = ("clusterucb/0", "clusterucb/1", "dynamic/0", "dynamic/1")


def compare(settings, methods=METHODS, seeds=2, **changes):
    return clusterucb("compare", "--methods", methods, "--seeds", seeds, *options(settings, **changes))


@pytest.fixture(scope="module")
def comparison(run_settings, tmp_path_factory):
    """A finished comparison, not to be changed: two methods twice, then every method; and what was said."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    outcomes = compare(run_settings, out=out), compare(run_settings, ",".join(PRESETS), 1, out=out)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    return out, outcomes


def cell_of(out, run):
    name, repeat = run.split("/")
    return cell(out, name, int(repeat)).run


@pytest.fixture
def stub(monkeypatch):
    """A procedure that computes nothing; an entry of the returned dict makes a cell fail with it."""
    troubles, called = {}, []

    def procedure(session):
        name = "/".join(session.dir.path.parts[-2:])
        called.append(name)
        if name in troubles:
            raise troubles[name]
        session.begin()
        finish(session.dir, name)

    monkeypatch.setattr("clusterucb.studies.compare.compare.procedure", procedure)
    procedure.troubles, procedure.called = troubles, called
    return procedure


@pytest.mark.whole
def test_shared_parts_are_made_once(comparison):
    out, (two, every) = comparison
    assert [two.err.count(said) for said in ("load ", "warm up: ", "train: ")] == [1, 1, 4]
    assert [every.err.count(said) for said in ("load ", "warm up: ", "train: ")] == [1, 1, 10]
    assert (
        len(list(out.rglob("initial/adapter_model.safetensors"))) == len(list(out.rglob("offsets.npy"))) == 1
    )
    stores = {str(path.parent.relative_to(out / "shared")) for path in out.rglob("features.f16")}
    assert stores == {
        *("dynamic/features", "dynamic-hidden/features"),
        *("less/features", "less/features-2", "less/features-3"),
    }


@pytest.mark.whole
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


@pytest.mark.whole
def test_costs_are_counted_in_full_for_a_run_and_once_for_all(comparison):
    out, _ = comparison
    table = read(out / "comparison.json")
    gradients = {line["method"]: line["pool_gradients"] for line in table["cells"]}
    assert gradients == {
        "clusterucb": 100 + 2 * 20,
        "clusterucb_hidden": 3 * 20,
        "linear_ucb": 100 + 2 * 20,
        "linear_ucb_hidden": 3 * 20,
        "dynamic": 3 * 100,
        "less_clusterucb": 100 + 2 * 20,
        "less": 3 * 100,
        **dict.fromkeys(("rds", "bm25", "loss_highest", "loss_lowest", "random"), 0),
    }
    forwards = {line["method"] for line in table["cells"] if line["pool_forwards"] == 100}
    assert forwards == {"clusterucb_hidden", "linear_ucb_hidden", "rds", "loss_highest", "loss_lowest"}
    twice = gradients["clusterucb"] + gradients["dynamic"]
    features = 100 * (4 + 1)  # that others than the first have of dynamic and of LESS
    assert table["computed"]["pool_gradients"] == sum(gradients.values()) + twice - features
    assert table["methods"]["clusterucb"]["of_full_dynamic"]["pool_gradients"] == 140 / 300


@pytest.mark.whole
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


@pytest.mark.whole
def test_a_run_of_a_comparison_can_be_looked_at_alone(comparison):
    out, _ = comparison
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    for run in ("clusterucb/1", "rds/0"):
        done("run", "--out", out / run)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


@pytest.mark.whole
def test_the_same_command_again_computes_nothing_and_says_the_same(comparison, run_settings, monkeypatch):
    out, (_, every) = comparison
    monkeypatch.setattr("clusterucb.run.inputs.load_model", lambda *_, **__: pytest.fail("loaded"))
    files = [out / "comparison.csv", out / "comparison.json"]
    was = [path.read_bytes() for path in files]
    again = compare(run_settings, out=out)
    assert (again.status, again.out) == (0, every.out)
    assert [path.read_bytes() for path in files] == was
    assert clusterucb("compare", "--methods", METHODS, "--seeds", 2, "--out", out).out == every.out
    quiet = clusterucb("compare", "--methods", METHODS, "--seeds", 2, "--out", out, "-q")
    assert quiet == (0, "", "")


@pytest.mark.whole
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
    row = read(out / "comparison.json")["methods"]["clusterucb"]
    assert f"{row['loss']['mean']:.4f} ± {row['loss']['error']:.4f}" in every.out
    assert every.out.splitlines()[-1] == str(out / "comparison.csv")


@pytest.mark.whole
def test_from_python(comparison):
    import clusterucb as package
    from clusterucb.config import load

    out, _ = comparison
    config = load(out / "comparison.yaml", {"out": str(out)})
    assert package.compare(config, ["dynamic", "clusterucb"], 2) == read(out / "comparison.json")


@pytest.mark.whole
def test_a_moved_comparison_is_as_good(comparison, tmp_path):
    out, (_, every) = comparison
    moved = shutil.copytree(out, tmp_path / "moved")
    again = done("compare", moved / "comparison.yaml", "--methods", METHODS, "--seeds", 2)
    assert again.out == every.out.replace(str(out), str(moved))
    assert not [path for path in moved.rglob("*") if path.is_symlink()]


@pytest.mark.whole
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
    again = compare(run_settings, out=old)
    assert again.status == 0, again
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"methods": "clusterucb,randon"},
            "--methods randon: there is no such method; did you mean 'random'?",
        ),
        (
            {"methods": "xyzzy"},
            "--methods xyzzy: there is no such method; the methods are clusterucb, clusterucb_hidden,",
        ),
        ({"methods": " , "}, "--methods names none"),
        ({"methods": "linear_uca@0.1"}, "--methods linear_uca@0.1: there is no such method; did you mean"),
        ({"methods": "rds@0.1"}, "--methods rds@0.1: rds has no budget; write rds"),
        ({"methods": "clusterucb@5%"}, "clusterucb@5%: expected a budget above 0 and at most 1, as in"),
        ({"methods": "clusterucb@1.5"}, "clusterucb@1.5: expected a budget above 0 and at most 1, as in"),
        ({"methods": "random,clusterucb@0.01"}, "budget 0.01 is below csp"),
        ({"seeds": "0"}, "--seeds 0: expected how often each method is run, a whole number from 1 on"),
        ({"seeds": "2.5"}, "--seeds 2.5: expected"),
        ({"bandit": "none"}, "--bandit is set by compare itself; give --methods and --seeds"),
        ({"repeat": "1"}, "--repeat is set by compare itself"),
        ({"pool": ["missing.jsonl"]}, "missing.jsonl"),
        ({"model": "/no/model"}, "/no/model: there is no such folder"),
        ({"budget": "0.01"}, "budget 0.01 is below csp"),
        ({"methods": "random,clusterucb", "k": "50"}, "the cold start takes 50"),
    ],
)
def test_a_persons_mistake_ends_it_at_once_with_one_line(settings, given, said, stub):
    assert said in compare(settings, **given).complaint
    assert stub.called == []
    assert not (Path(settings["out"]) / "comparison.yaml").exists()


def test_a_mistake_can_be_put_right_in_the_same_directory(settings, stub):
    assert compare(settings, "random,clusterucb", k=50).complaint
    assert compare(settings, "random,clusterucb", k=5).status == 0


def test_a_failed_run_is_told_and_the_others_go_on(settings, stub):
    stub.troubles["random/0"] = InputError("pool.jsonl:3: its loss is nan")
    shown = compare(settings, "random,bm25", 2)
    assert shown.status == 1
    assert stub.called == ["bm25/0", "random/0", "bm25/1", "random/1"]
    assert "1, 1 failed" in shown.out
    assert "random/0 failed: pool.jsonl:3: its loss is nan" in shown.out
    assert "Traceback" not in shown.out + shown.err
    out = Path(settings["out"])
    assert [line["state"] for line in csv_lines(out)] == ["finished", "finished", "failed", "finished"]
    assert not (out / "random/0/failed.traceback.txt").exists()


def test_a_defect_leaves_its_traceback_in_a_file(settings, stub):
    stub.troubles["bm25/0"] = ZeroDivisionError("what a day")
    shown = compare(settings, "random,bm25", 1)
    assert shown.status == 1
    path = Path(settings["out"]) / "bm25/0/failed.traceback.txt"
    assert f"bm25/0 failed: ZeroDivisionError: what a day; where: {path}" in shown.out
    assert "Traceback" in path.read_text()
    assert "Traceback" not in shown.out + shown.err


def test_failed_runs_are_tried_again(settings, stub):
    stub.troubles["random/0"] = ZeroDivisionError("once")
    assert compare(settings, "random", 1).status == 1
    stub.troubles.clear()
    again = compare(settings, "random", 1)
    assert again.status == 0
    assert [line["state"] for line in csv_lines(Path(settings["out"]))] == ["finished"]
    assert [p.name for p in (Path(settings["out"]) / "random/0").glob("failed*")] == []


def test_after_a_failure_the_model_is_loaded_anew(settings, stub, monkeypatch):
    from clusterucb.run import inputs

    loads, real = [], inputs.load_model
    monkeypatch.setattr(inputs, "load_model", lambda *args, **how: loads.append(1) or real(*args, **how))
    stub.troubles["bm25/0"] = ZeroDivisionError("hooks may be left")
    assert compare(settings, "bm25,random", 2).status == 1
    assert len(loads) == 2  # for the first run, and for the one after the failure


def test_a_full_disk_ends_it(settings, stub):
    stub.troubles["random/0"] = StorageError("out: no space left on the disk")
    assert compare(settings, "random,bm25", 1).complaint == "out: no space left on the disk"


def test_an_interruption_ends_it(settings, stub):
    stub.troubles["random/0"] = KeyboardInterrupt()
    shown = compare(settings, "random,clusterucb", 2)
    assert (shown.status, stub.called) == (130, ["clusterucb/0", "random/0"])
    out = Path(settings["out"])
    assert {line["method"]: line["state"] for line in csv_lines(out)} == {"clusterucb": "finished"}
    assert not (out / "random/0/failed.json").exists()


def test_methods_and_repetitions_may_be_added(settings, stub):
    out = Path(settings["out"])
    assert compare(settings, "random", 1).status == 0
    before = csv_lines(out)
    assert compare(settings, "random,rds", 2).status == 0
    assert [(line["method"], line["repetition"]) for line in csv_lines(out)] == [
        *(("rds", "0"), ("rds", "1"), ("random", "0"), ("random", "1"))
    ]
    assert compare(settings, "clusterucb", 1).status == 0
    assert [line["method"] for line in csv_lines(out)] == ["clusterucb", "rds", "rds", "random", "random"]
    assert csv_lines(out)[3] == before[0]
    assert read(out / "comparison.json")["reference"] == "clusterucb"


def test_a_method_may_have_a_budget_of_its_own(settings, stub):
    out = Path(settings["out"])
    assert compare(settings, "random,linear_ucb@0.1,linear_ucb@0.5,linear_ucb", 1).status == 0
    assert compare(settings, "linear_ucb@.25", 1).status == 0
    names = ["linear_ucb", "linear_ucb@0.1", "linear_ucb@0.25", "linear_ucb@0.5", "random"]
    assert [line["method"] for line in csv_lines(out)] == names
    made = [
        yaml.safe_load((out / name / "0/config.yaml").read_text())["selection"]["budget"] for name in names
    ]
    assert made == [0.2, 0.1, 0.25, 0.5, 0.2]


def test_other_settings_are_refused_and_named(settings, stub):
    assert compare(settings, "random", 1).status == 0
    said = compare(settings, "random", 1, lr="0.5").complaint
    assert said.startswith("lr: this run directory was made with 0.001")
    assert str(Path(settings["out"]) / "comparison.yaml") in said


def test_a_files_own_method_does_not_matter(settings, stub, tmp_path):
    """A settings file of a single run serves a comparison as it stands."""
    out = Path(settings["out"])
    assert compare(settings, "random", 1).status == 0
    tree = yaml.safe_load((out / "comparison.yaml").read_text())
    tree |= {"method": "less", "bandit": "none", "repeat": 4}
    write(tmp_path / "run.yaml", yaml.safe_dump(tree))
    done("compare", tmp_path / "run.yaml", "--methods", "bm25,random", "--seeds", 1)
    made = yaml.safe_load((out / "bm25/0/config.yaml").read_text())
    assert (made["method"], made["bandit"], made["repeat"]) == ("bm25", "clusterucb", 0)


def test_a_runs_directory_is_no_comparisons(finished_settings, stub):
    said = compare(finished_settings, "random", 1).complaint
    assert said.endswith("holds a run; a comparison needs a directory of its own: use another --out")


@pytest.mark.whole
def test_each_method_is_these_settings(comparison):
    out, _ = comparison
    made = {}
    for name in PRESETS:
        tree = yaml.safe_load((out / name / "0/config.yaml").read_text())
        kind, policy = tree["clustering"]["features"], tree["selection"]["policy"]
        made[name] = (tree["method"], tree["bandit"], tree["baselines"]["perplexity"], kind, policy)
    assert made == {
        "clusterucb": ("dynamic", "clusterucb", "highest", "gradients", "ucb_beta"),
        "clusterucb_hidden": ("dynamic", "clusterucb", "highest", "hidden", "ucb_beta"),
        "linear_ucb": ("dynamic", "clusterucb", "highest", "gradients", "linear_ucb"),
        "linear_ucb_hidden": ("dynamic", "clusterucb", "highest", "hidden", "linear_ucb"),
        "dynamic": ("dynamic", "none", "highest", "gradients", "ucb_beta"),
        "less_clusterucb": ("less", "clusterucb", "highest", "gradients", "ucb_beta"),
        "less": ("less", "none", "highest", "gradients", "ucb_beta"),
        "rds": ("rds", "clusterucb", "highest", "gradients", "ucb_beta"),
        "bm25": ("bm25", "clusterucb", "highest", "gradients", "ucb_beta"),
        "loss_highest": ("loss", "clusterucb", "highest", "gradients", "ucb_beta"),
        "loss_lowest": ("loss", "clusterucb", "lowest", "gradients", "ucb_beta"),
        "random": ("random", "clusterucb", "highest", "gradients", "ucb_beta"),
    }


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


@pytest.mark.whole
def test_killed_anywhere_it_ends_with_the_same_table(server, comparison, run_settings, tmp_path):
    whole, out = comparison[0], tmp_path / "out"
    command = ["compare", "--methods", METHODS, "--seeds", 2, *options(run_settings, out=out)]
    for there, at in MOMENTS:
        server.dies(command, at)
        assert (out / there).exists(), at
    server.ends(command)
    assert timeless(out) == [line for line in timeless(whole) if line["method"] in METHODS]
    assert result(out / "clusterucb/1") == result(whole / "clusterucb/1")
    assert [path for path in out.rglob("*") if path.suffix in (".part", ".states")] == []
    assert read(out / "comparison.json")["computed"]["pool_gradients"] == 100 + 2 * 40 + 2 * 200
