"""`clusterucb compare`: several methods, several times each, on a tiny model."""

import shutil
from pathlib import Path

import pytest
import yaml
from compare_helpers import csv_lines, finish, timeless, write

from cli_helpers import clusterucb, options, read, result
from clusterucb.errors import InputError, StorageError
from test_kill import KILLED, Server, publication

METHODS = "clusterucb,dynamic"
RUNS = ("clusterucb/0", "clusterucb/1", "dynamic/0", "dynamic/1")


def compare(settings, methods=METHODS, seeds=2, **changes):
    return clusterucb("compare", "--methods", methods, "--seeds", seeds, *options(settings, **changes))


@pytest.fixture(scope="module")
def comparison(shared_settings, tmp_path_factory):
    """A finished comparison, not to be changed, and what its command said."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    outcome = compare(shared_settings, out=out)
    assert outcome.status == 0, outcome
    return out, outcome


@pytest.fixture
def stub(monkeypatch):
    """A procedure that computes nothing; an entry of the returned dict makes a cell fail with it."""
    troubles, called = {}, []

    def procedure(session):
        name = "/".join(session.dir.path.parts[-2:])
        called.append(name)
        if name in troubles:
            raise troubles[name]
        finish(session.dir, name)

    monkeypatch.setattr("clusterucb.studies.compare.compare.procedure", procedure)
    procedure.troubles, procedure.called = troubles, called
    return procedure


def test_shared_parts_are_made_once(comparison):
    out, outcome = comparison
    shared = ["warmup/adapter_model.safetensors", "features/features.f16", "features/manifest.json"]
    shared += ["initial/adapter_model.safetensors", "pool/offsets.npy", "contamination.json"]
    for name in shared:
        assert len({(out / run / name).stat().st_ino for run in RUNS}) == 1, name
        assert (out / RUNS[0] / name).stat().st_nlink == len(RUNS)
    assert outcome.err.count("warm up: ") == outcome.err.count("load ") == 1
    assert outcome.err.count("train: ") == len(RUNS)
    one, *others = [read(out / run / "summary.json")["total"]["pool_gradients"] for run in RUNS]
    computed = read(out / "comparison.json")["computed"]["pool_gradients"]
    assert computed == one + sum(others) - 100 * len(others)


def test_each_run_of_a_comparison_is_the_same_run_alone(comparison, finished_settings, settings):
    """Bit for bit, though all used the same loaded model one after another."""
    out, _ = comparison
    assert result(out / "clusterucb/0") == result(finished_settings["out"])
    alone = clusterucb("run", *options(settings, repeat=1))
    assert alone.status == 0, alone
    assert result(out / "clusterucb/1") == result(settings["out"])
    ours, theirs = (read(Path(folder) / "summary.json") for folder in (out / "clusterucb/1", settings["out"]))
    for key in ("tokens", "rows", "pool_gradients", "target_gradients"):
        assert ours["total"][key] == theirs["total"][key]


def test_a_repetition_has_other_draws_and_training_over_the_same_clusters(comparison):
    out, _ = comparison
    first, second = (result(out / f"clusterucb/{repeat}") for repeat in (0, 1))
    same = {name for name in first if first[name] == second[name]}
    assert {"clusters.safetensors", "features/features.f16", "rounds/1/selected.jsonl"} <= same
    assert not same & {"rounds/2/draws.jsonl", "adapter/adapter_model.safetensors", "evaluation"}


def test_a_run_of_a_comparison_can_be_looked_at_alone(comparison):
    out, _ = comparison
    before = {path: path.stat().st_mtime_ns for path in (out / "clusterucb/1").rglob("*.safetensors")}
    assert clusterucb("run", "--out", out / "clusterucb/1").status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_same_command_again_computes_nothing_and_says_the_same(comparison, shared_settings, monkeypatch):
    out, first = comparison
    monkeypatch.setattr("clusterucb.run.session.load_model", lambda *_, **_more: pytest.fail("loaded"))
    files = [out / "comparison.csv", out / "comparison.json"]
    was = [path.read_bytes() for path in files]
    again = compare(shared_settings, out=out)
    assert (again.status, again.out) == (0, first.out)
    assert [path.read_bytes() for path in files] == was
    assert clusterucb("compare", "--methods", METHODS, "--seeds", 2, "--out", out).out == first.out
    quiet = clusterucb("compare", "--methods", METHODS, "--seeds", 2, "--out", out, "-q")
    assert quiet == (0, "", "")


def test_the_table_says_what_the_runs_say(comparison):
    out, outcome = comparison
    for line in csv_lines(out):
        run = out / line["method"] / line["repetition"]
        assert float(line["loss"]) == pytest.approx(read(run / "evaluation.json")["adapter"]["loss"])
        assert int(line["pool_gradients"]) == read(run / "summary.json")["total"]["pool_gradients"]
    assert [(line["method"], line["state"]) for line in csv_lines(out)] == [
        (run.split("/")[0], "finished") for run in RUNS
    ]
    row = read(out / "comparison.json")["methods"]["clusterucb"]
    assert row["of_full_dynamic"]["pool_gradients"] == 140 / 300
    assert f"{row['loss']['mean']:.4f} ± {row['loss']['error']:.4f}" in outcome.out
    assert outcome.out.splitlines()[-1] == str(out / "comparison.csv")


def test_from_python(comparison):
    import clusterucb as package
    from clusterucb.config import load

    out, _ = comparison
    config = load(out / "comparison.yaml", {"out": str(out)})
    assert package.compare(config, ["dynamic", "clusterucb"], 2) == read(out / "comparison.json")


def test_a_moved_comparison_is_as_good(comparison, tmp_path):
    out, first = comparison
    moved = shutil.copytree(out, tmp_path / "moved")
    again = clusterucb("compare", moved / "comparison.yaml", "--methods", METHODS, "--seeds", 2)
    assert again.status == 0, again
    assert again.out == first.out.replace(str(out), str(moved))


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
        ({"methods": "random,clusterucb", "k": "50"}, "k is 50, but budget 0.2"),
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
    from clusterucb.run import session as module

    loads = []
    real = module.load_model
    monkeypatch.setattr(module, "load_model", lambda config, **how: loads.append(1) or real(config, **how))

    def procedure(session):
        _ = session.model
        stub(session)

    monkeypatch.setattr("clusterucb.studies.compare.compare.procedure", procedure)
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
    assert clusterucb("compare", tmp_path / "run.yaml", "--methods", "bm25,random", "--seeds", 1).status == 0
    made = yaml.safe_load((out / "bm25/0/config.yaml").read_text())
    assert (made["method"], made["bandit"], made["repeat"]) == ("bm25", "clusterucb", 0)


def test_a_runs_directory_is_no_comparisons(finished_settings, stub):
    said = compare(finished_settings, "random", 1).complaint
    assert said.endswith("holds a run; a comparison needs a directory of its own: use another --out")


def test_each_method_is_these_settings(settings, stub):
    every = (
        "clusterucb,clusterucb_hidden,linear_ucb,linear_ucb_hidden,dynamic,less,less_clusterucb,rds,bm25,"
        "loss_highest,loss_lowest,random"
    )
    assert compare(settings, every, 1).status == 0
    made, hidden, linear = {}, set(), set()
    for name in every.split(","):
        tree = yaml.safe_load((Path(settings["out"]) / name / "0/config.yaml").read_text())
        made[name] = (tree["method"], tree["bandit"], tree["baselines"]["perplexity"])
        hidden |= {name} if tree["clustering"]["features"] == "hidden" else set()
        linear |= {name} if tree["selection"]["policy"] == "linear_ucb" else set()
    assert hidden == {"clusterucb_hidden", "linear_ucb_hidden"}
    assert linear == {"linear_ucb", "linear_ucb_hidden"}
    assert made == {
        "clusterucb": ("dynamic", "clusterucb", "highest"),
        "clusterucb_hidden": ("dynamic", "clusterucb", "highest"),
        "linear_ucb": ("dynamic", "clusterucb", "highest"),
        "linear_ucb_hidden": ("dynamic", "clusterucb", "highest"),
        "dynamic": ("dynamic", "none", "highest"),
        "less": ("less", "none", "highest"),
        "less_clusterucb": ("less", "clusterucb", "highest"),
        "rds": ("rds", "clusterucb", "highest"),
        "bm25": ("bm25", "clusterucb", "highest"),
        "loss_highest": ("loss", "clusterucb", "highest"),
        "loss_lowest": ("loss", "clusterucb", "lowest"),
        "random": ("random", "clusterucb", "highest"),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "screen.txt")
    with server.process:
        yield server
        server.process.stdin.close()


MOMENTS = [  # what exists then, and where the attempt dies
    ("clusterucb/0/pool", publication("initial.part")),
    ("clusterucb/0/initial", publication("comparison.yaml.part")),
    ("comparison.yaml", publication("0/features.part", "after")),
    ("clusterucb/0/features", publication("comparison.json.part", "after")),
    ("comparison.json", {"where": "os:link", "call": 3}),
    ("comparison.json", publication("dynamic/0/pool.link", "after")),
    ("dynamic/0/pool", publication("features.link")),
    ("dynamic/0/shared.json", publication("dynamic/0/config.yaml.part", "after")),
    ("dynamic/0/features", publication("dynamic/0/evaluation.json.part", "after")),
    ("dynamic/0/evaluation.json", publication("clusterucb/1/shared.json.part", "after")),
    ("clusterucb/1/shared.json", {"where": "torch.optim:AdamW.step", "call": 4}),
    ("clusterucb/1/rounds/1", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
    ("clusterucb/1/config.yaml", publication("comparison.csv.part", "before")),
    ("clusterucb/1/summary.json", publication("dynamic/1/summary.json.part")),
]


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_table(server, settings, tmp_path):
    out, whole = Path(settings["out"]), tmp_path / "whole"
    command = ["compare", "--methods", METHODS, "--seeds", "2", *options(settings)]
    assert server([*command[:5], *options(settings, out=whole)])["status"] == 0  # on as many threads
    for there, at in MOMENTS:
        killed = server(command, at=at)
        assert killed["status"] == KILLED, (there, at, killed["said"])
        assert (out / there).exists(), at
    ended = server(command)
    assert ended["status"] == 0, ended["said"]
    assert timeless(out) == timeless(whole)
    assert result(out / "clusterucb/1") == result(whole / "clusterucb/1")
    for path in (out, *(out / run for run in RUNS)):
        assert [p.name for p in path.iterdir() if p.suffix in (".part", ".link", ".states")] == []
    tables = [read(folder / "comparison.json")["computed"] for folder in (out, whole)]
    assert [table["pool_gradients"] for table in tables] == [tables[1]["pool_gradients"]] * 2
