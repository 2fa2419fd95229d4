"""An index knows no target: runs with any begin there, change nothing in it, and end as they would alone."""

from pathlib import Path

import pytest

from builders import write_rows
from cli_helpers import clusterucb, done, options, read, result

OWN = ("target", "subtask", "holdout")


def tree(folder):
    """Every file that is no lock, with when it was written."""
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"}


def without(settings, *names):
    return {name: value for name, value in settings.items() if name not in names}


@pytest.fixture(scope="module")
def index(run_settings, tmp_path_factory):
    """An index: not to be changed."""
    folder = tmp_path_factory.mktemp("index") / "index"
    done("index", *options(without(run_settings, *OWN), out=folder))
    return folder


def test_an_index_has_no_target_in_it(index, run_settings):
    assert (index / "clusters.safetensors").exists()
    names = {path.name for path in index.iterdir()} - {".lock"}
    assert names == {
        *("config.yaml", "pool", "initial", "warmup", "features", "clusters.safetensors", "clusters.json"),
    }
    again = tree(index)
    done("index", "--out", index)
    assert tree(index) == again
    said = clusterucb("index", *options(run_settings, out=index, seed=7)).complaint
    assert said.startswith("seed: this run directory was made with 0")


@pytest.mark.whole
@pytest.mark.parametrize("name", ["clusterucb", "linear_ucb"])
def test_a_run_over_an_index_is_bit_for_bit_the_run_of_its_own(
    index, finished_run, tmp_path, name, monkeypatch
):
    """And takes no gradient of the pool before its first selection, and leaves the index as it was."""
    alone, out, before = finished_run(name), tmp_path / "run", tree(index)
    monkeypatch.setattr("clusterucb.steps.features.take_gradients", lambda *_: pytest.fail("a gradient"))
    monkeypatch.setattr("clusterucb.run.inputs.Inputs.usable_rows", lambda *_: pytest.fail("tokenised"))
    own = {key: alone.settings[key] for key in (*OWN, "policy") if key in alone.settings}
    done("run", "--index", index, *options(own, out=out))
    assert result(out) == result(alone.folder)
    assert tree(index) == before
    counts = [read(folder / "summary.json")["total"]["pool_gradients"] for folder in (out, alone.folder)]
    assert counts[0] == counts[1]


def test_a_finished_run_serves_as_an_index_for_another_target(
    finished_run, data_folder, tmp_path, monkeypatch
):
    there, target = finished_run("clusterucb"), tmp_path / "other.jsonl"
    write_rows(target, 4, 9)
    before = tree(there.folder)
    alone = options(there.elsewhere(tmp_path / "alone", target=str(target), subtask=None, holdout=None))
    for step in ("warmup", "gradients", "cluster", "select"):
        done(step, *alone)
    monkeypatch.setattr("clusterucb.steps.features.take_gradients", lambda *_: pytest.fail("a gradient"))
    done("select", "--index", there.folder, "--target", target, "--out", tmp_path / "run")
    assert tree(there.folder) == before
    ours, theirs = (
        (tmp_path / name / "rounds/1/selection.safetensors").read_bytes() for name in ("run", "alone")
    )
    assert ours == theirs
