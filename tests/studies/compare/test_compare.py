"""`clusterucb compare` around its runs, which compute nothing here: mistakes, failures, what may be added."""

from pathlib import Path

import pytest
import yaml
from compare_helpers import compare, csv_lines, finish, write

from cli_helpers import done, read
from clusterucb.config import load
from clusterucb.errors import InputError, StorageError
from clusterucb.run.sizing import is_open


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": "clusterucb,randon"}, "randon: there is no such method; did you mean 'random'?"),
        ({"methods": "xyzzy"}, "xyzzy: there is no such method; the methods are clusterucb, "),
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
    asked = {"methods": "clusterucb,dynamic", "seeds": 2, **given}
    assert said in compare(settings, **asked).complaint
    assert stub.called == []
    assert not (Path(settings["out"]) / "comparison.yaml").exists()


def test_a_mistake_can_be_put_right_in_the_same_directory(settings, stub):
    said = compare(settings, "random", 1, target_modules="query").complaint
    assert said.startswith("target_modules query: ")  # before the first run
    assert compare(settings, "random", 1).status == 0


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


def test_a_defect_leaves_its_traceback_in_a_file_and_is_tried_again(settings, stub):
    stub.troubles["bm25/0"] = ZeroDivisionError("what a day")
    shown = compare(settings, "random,bm25", 1)
    assert shown.status == 1
    path = Path(settings["out"]) / "bm25/0/failed.traceback.txt"
    assert f"bm25/0 failed: ZeroDivisionError: what a day; where: {path}" in shown.out
    assert "Traceback" in path.read_text()
    assert "Traceback" not in shown.out + shown.err
    stub.troubles.clear()
    assert compare(settings, "random,bm25", 1).status == 0
    assert [line["state"] for line in csv_lines(Path(settings["out"]))] == ["finished", "finished"]
    assert not list(path.parent.glob("failed*"))


def test_after_a_failure_the_model_is_loaded_anew(settings, stub, monkeypatch):
    from clusterucb.run import inputs

    loads, real = [], inputs.load_model
    monkeypatch.setattr(inputs, "load_model", lambda *args, **how: loads.append(1) or real(*args, **how))
    stub.troubles["bm25/0"] = ZeroDivisionError("hooks may be left")
    assert compare(settings, "bm25,random", 2).status == 1
    assert len(loads) == 2  # for the first run, and for the one after the failure


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [
        (StorageError("out: no space left on the disk"), 2, "clusterucb: out: no space left on the disk\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["a full disk", "an interruption"],
)
def test_what_every_run_would_meet_ends_it(settings, stub, trouble, status, said):
    stub.troubles["random/0"] = trouble
    shown = compare(settings, "random,clusterucb", 2)
    assert (shown.status, stub.called) == (status, ["clusterucb/0", "random/0"])
    assert shown.err.endswith(said)
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


def test_what_all_methods_share_is_decided_once_and_a_budget_by_each(settings, stub):
    out, names = Path(settings["out"]), ("clusterucb", "linear_ucb_hidden")
    left = dict.fromkeys(("lr", "top_p", "warmup_steps", "budget", "k"))
    outcome = compare(settings, ",".join(names), 1, **left)
    assert outcome.status == 0
    assert outcome.err.count("decided for 100 rows") == 1
    shared, *runs = map(load, (out / "comparison.yaml", *(out / name / "0/config.yaml" for name in names)))
    for run in runs:
        assert (run.training, run.lora, run.warmup) == (shared.training, shared.lora, shared.warmup)
        assert run.selection.top_p == shared.selection.top_p == 0.125
        assert not is_open(run)
    assert [run.selection.cap for run in runs] == [0.5, 0.25]
    assert "decided" not in compare(settings, "random", 1, **left).err


def test_a_preset_serves_a_comparison(settings, stub):
    """Of its method nothing is taken: that is each run's own."""
    out, own = Path(settings["out"]), ("policy", "top_p", "lr", "batch_size", "epochs_per_period", "rank")
    assert compare(settings, "rds,random", 1, preset="paper", **dict.fromkeys(own)).status == 0
    for name in ("rds", "random"):
        run = load(out / name / "0/config.yaml")
        assert (run.method, run.training.lr, run.lora.rank) == (name, 2e-5, 128)


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


def test_a_runs_directory_is_no_comparisons(settings, stub):
    write(Path(settings["out"]) / "config.yaml", load(None, settings).to_yaml())
    said = compare(settings, "random", 1).complaint
    assert said.endswith("holds a run; a comparison needs a directory of its own: use another --out")
