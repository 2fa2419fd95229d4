"""An index knows no target: runs with any begin there, change nothing in it, and end as they would alone."""

import shutil
from functools import cache
from pathlib import Path
from unittest.mock import Mock, call

import numpy as np
import pytest
from safetensors.numpy import load_file

import clusterucb as package
from builders import write_rows
from cli_helpers import clusterucb, done, options, read, result
from clusterucb.config import load
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir
from file_helpers import write

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


@pytest.fixture
def over(index, run_settings, tmp_path):
    """Options of a run over it."""
    own = {name: run_settings[name] for name in OWN}
    return options(own, index=index, out=tmp_path / "run")


def test_an_index_has_no_target_in_it(index, run_settings):
    made = {"pool", "initial", "warmup", "features", "clusters.safetensors", "clusters.json"}
    assert {path.name for path in index.iterdir()} - {".lock"} == made | {"config.yaml", "README.md"}
    card = (index / "README.md").read_text()
    assert "gradients of 100 rows" in card
    assert "| pool | pool-a.jsonl, pool-b.jsonl |" in card
    again = tree(index)
    done("index", "--out", index)
    assert tree(index) == again
    said = clusterucb("index", *options(run_settings, out=index, seed=7)).complaint
    assert said.startswith("seed: this run directory was made with 0")


@pytest.mark.parametrize("name", ["clusterucb", "linear_ucb"])
def test_a_run_over_an_index_is_bit_for_bit_its_own_run(index, finished_run, tmp_path, name, monkeypatch):
    """And takes no gradient of the pool before its first selection, and leaves the index as it was."""
    alone, out, before = finished_run(name), tmp_path / "run", tree(index)
    monkeypatch.setattr("clusterucb.steps.features.take_gradients", lambda *_: pytest.fail("a gradient"))
    monkeypatch.setattr("clusterucb.run.inputs.Inputs.usable_rows", lambda *_: pytest.fail("tokenised"))
    own = {key: alone.settings[key] for key in (*OWN, "policy", "centre") if key in alone.settings}
    done("run", "--index", index, *options(own, out=out))
    assert result(out) == result(alone.folder)
    assert tree(index) == before
    ours, theirs = (read(folder / "summary.json") for folder in (out, alone.folder))
    assert ours["total"]["pool_gradients"] == theirs["total"]["pool_gradients"]
    made = [read(index / file)["cost"] for file in ("warmup/checkpoint.json", "features/manifest.json")]
    passes = sum(cost["tokens"] for cost in made) / ours["bill"]["one_pass"]["tokens"]
    assert ours["bill"]["index"]["passes"] == pytest.approx(passes, abs=1e-3)
    assert theirs["bill"]["index"] is None


def test_a_finished_run_serves_as_an_index_for_another_target(finished_run, tmp_path, monkeypatch):
    there, target = finished_run("clusterucb"), tmp_path / "other.jsonl"
    write_rows(target, 4, 9)
    before = tree(there.folder)
    alone = options(there.elsewhere(tmp_path / "alone", target=str(target), subtask=None, holdout=None))
    for step in ("warmup", "gradients", "cluster", "select"):
        done(step, *alone)
    monkeypatch.setattr("clusterucb.steps.features.take_gradients", lambda *_: pytest.fail("a gradient"))
    done("select", "--index", there.folder, "--target", target, "--out", tmp_path / "run")
    assert tree(there.folder) == before
    assert first_round(tmp_path / "run") == first_round(tmp_path / "alone")


def first_round(folder):
    return (folder / "rounds/1/selection.safetensors").read_bytes()


@pytest.fixture(scope="module")
def after(data_folder, tmp_path_factory):
    """pool-a.jsonl with 10 of its rows gone and 7 new ones."""
    folder = tmp_path_factory.mktemp("pools")
    rows = (data_folder / "pool-a.jsonl").read_text().splitlines(True)
    new = write_rows(folder / "new.jsonl", 7, 77).read_text().splitlines(True)
    return write(folder / "after.jsonl", "".join([*new[:3], *rows[10:], *new[3:]]))


@pytest.fixture(scope="module")
def index_before(run_settings, tmp_path_factory):
    """By features, an index over pool-a.jsonl: not to be changed."""

    @cache
    def made(features):
        folder, pool = tmp_path_factory.mktemp(features) / "index", run_settings["pool"][:1]
        done("index", *options(without(run_settings, *OWN), out=folder, features=features, pool=pool))
        return folder

    return made


@pytest.fixture
def old(index_before, tmp_path):
    """The same as a copy that may be changed."""

    def copy(features):
        folder = shutil.copytree(index_before(features), tmp_path / "index")
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace(str(index_before(features)), str(folder)))
        return folder

    return copy


@pytest.mark.whole
@pytest.mark.parametrize("features", ["gradients", "hidden", "head"])
def test_an_index_grows_by_the_new_rows_alone(old, after, run_settings, tmp_path, features, monkeypatch):
    out = old(features)
    before, moments = stored(out), (out / "warmup/moments.safetensors").read_bytes()
    seen = count_rows(monkeypatch)
    done("index", out, "--pool", after)
    new = stored(out)
    assert (len(before), sum(seen), len(new)) == (60, 7, 57)
    np.testing.assert_array_equal(new[3:53], before[10:])
    assert (out / "warmup/moments.safetensors").read_bytes() == moments
    assert load(out / "config.yaml").pool == [str(after)]
    assert len(load_file(out / "clusters.safetensors")["labels"]) == 57
    assert [path.name for path in tmp_path.glob("index*")] == ["index"]
    fresh = tmp_path / "fresh"  # as if the checkpoint had been there first
    shutil.copytree(out, fresh, ignore=shutil.ignore_patterns("features", "clusters*"))
    done("index", "--out", fresh)
    if features == "gradients":
        np.testing.assert_allclose(stored(fresh), new, atol=2e-3)
    said = clusterucb("index", out, "--pool", run_settings["pool"][0], "--dim", 64).complaint
    assert said.startswith("dim: this run directory was made with 256")


@pytest.mark.whole
@pytest.mark.parametrize("features", ["gradients", "hidden"])
def test_an_index_grows_into_another_place_and_stays_as_it_is(old, after, tmp_path, features, monkeypatch):
    """The new one is that which the old one would have become, to the byte, also after a kill."""
    there, out = old(features), tmp_path / "new"
    before, seen = tree(there), count_rows(monkeypatch)
    with monkeypatch.context() as killed:
        killed.setattr("clusterucb.recipes.cluster", Mock(side_effect=KeyboardInterrupt))
        assert clusterucb("index", there, "--pool", after, "--out", out).status == 130
    assert not (out / "config.yaml").exists()
    for _ in range(2):  # the second time it is there
        done("index", there, "--pool", after, "--out", out)
        assert (sum(seen), tree(there)) == (7, before)
    grown = package.Index.open(out)
    assert (grown.config.out, grown.config.pool) == (str(out), [str(after)])
    done("index", there, "--pool", after)
    assert sum(seen) == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "new"]
    parts = ("features/features.f16", "clusters.safetensors", "pool/ids.jsonl", "warmup/moments.safetensors")
    assert all((out / part).read_bytes() == (there / part).read_bytes() for part in parts)


def test_growing_refuses_what_would_mix_or_lose(index, finished_run, after, tmp_path):
    """Another setting, an index that is not finished, and the place of a run."""
    given = ["--pool", after, "--out", tmp_path / "new"]
    said = clusterucb("index", index, *given, "--dim", 64).complaint
    assert said.startswith("dim: the index was made with 256 (")
    half = shutil.copytree(index, tmp_path / "half", ignore=shutil.ignore_patterns("features"))
    assert "has no features yet; finish it" in clusterucb("index", half, *given).complaint
    assert not (tmp_path / "new/config.yaml").exists()
    run = shutil.copytree(finished_run("clusterucb").folder, tmp_path / "run")
    said = clusterucb("index", run, "--pool", after).complaint
    assert said.startswith("target: this run directory was made with ")
    assert (run / "adapter").exists()


def stored(folder):
    return np.asarray(FeatureStore(folder / "features").features).astype(np.float32)


def count_rows(monkeypatch):
    """How many rows each batch has that is gone through from now on."""
    seen, fill = [], FeatureWriter.fill

    def counted(self, batches, compute, advance):
        seen.extend(map(len, batches))
        fill(self, batches, compute, advance)

    monkeypatch.setattr(FeatureWriter, "fill", counted)
    return seen


@pytest.mark.whole
@pytest.mark.parametrize("aside", ["none", "moved", "left"])
def test_a_kill_while_an_index_takes_the_place_of_another_loses_neither(
    old, after, run_settings, tmp_path, aside, monkeypatch
):
    out = old("gradients")
    with monkeypatch.context() as killed:
        killed.setattr("clusterucb.steps.growth._move", lambda *_: None)
        done("index", out, "--pool", after)
    if aside == "moved":
        out.rename(tmp_path / "index.old")
    elif aside == "left":
        write(tmp_path / "index.old/config.yaml", "not yet gone")
    seen = count_rows(monkeypatch)
    done("index", "--out", out, "--pool", after, *options(without(run_settings, *OWN, "pool")))
    assert sum(seen) == 0
    assert len(stored(out)) == 57
    assert [path.name for path in tmp_path.glob("index*")] == ["index"]


def test_what_does_not_fit_an_index_is_refused_with_both_values(index, over, run_settings, tmp_path):
    for name, was, now in (
        ("rank", 4, 8),
        ("gradient_length", 40, 41),
        ("projection", "countsketch", "rademacher"),
        ("features", "gradients", "top"),
    ):
        said = clusterucb("select", *over, *options({name: now})).complaint
        made = f"the index was made with {was!r} ({index}/config.yaml)"
        assert said.startswith(f"{name}: {made}, now it is {now!r}; ")
    said = clusterucb("select", *over, "--pool", run_settings["pool"][0]).complaint
    assert said.startswith(f"{index}/pool was made with pool '")
    assert said.endswith("; name another --index, or none")
    assert not (tmp_path / "run/config.yaml").exists()


def test_an_index_that_is_not_finished_is_named_with_what_is_missing(index, run_settings, tmp_path):
    copy = shutil.copytree(index, tmp_path / "copy", ignore=shutil.ignore_patterns("features"))
    given = ["--target", *run_settings["target"], "--out", tmp_path / "run"]
    said = clusterucb("select", "--index", copy, *given).complaint
    assert said == f"--index {copy}: has no features yet; finish it by `clusterucb index --out {copy}`"
    said = clusterucb("select", "--index", index, "--out", tmp_path / "run").complaint
    assert "'target' is missing" in said


def test_an_index_on_the_hub_is_fetched_and_named_as_any_other(index, run_settings, tmp_path, monkeypatch):
    fetch, target = Mock(return_value=str(index)), run_settings["target"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    done("select", *options({"index": "hub:team/pool", "target": target, "out": tmp_path / "run"}))
    assert fetch.call_args == call("team/pool", repo_type="dataset")
    assert len(package.Index.open("hub:team/pool").query(target, 5).ids) == 5


def test_an_index_that_the_hub_does_not_have_is_one_line(tmp_path):
    """The tests are offline."""
    said = clusterucb("select", "--index", "hub:no/such", "--target", "t", "--out", tmp_path).complaint
    assert said.startswith("hub:no/such: the index cannot be fetched (")


def test_a_run_with_other_clusters_makes_its_own(index, over, tmp_path):
    before = tree(index)
    for step in ("cluster", "select"):
        done(step, *over, "--k", 3)
    assert len(load_file(tmp_path / "run/clusters.safetensors")["centroids"]) == 3
    assert tree(index) == before


def test_a_run_and_its_index_that_have_moved_together_go_on(index, run_settings, tmp_path):
    """And by its own directory alone, which says where the index is."""
    shutil.copytree(index, tmp_path / "here/index")
    own = {name: run_settings[name] for name in OWN}
    done("select", "--index", tmp_path / "here/index", *options(own, out=tmp_path / "here/run"))
    (tmp_path / "here").rename(tmp_path / "there")
    there = tmp_path / "there/run"
    before = tree(tmp_path / "there")
    done("select", "--out", there)
    assert tree(tmp_path / "there") == before
    assert RunDir(there).features == tmp_path / "there/index/features"


@pytest.mark.parametrize("name", ["bm25", "loss_lowest"])
def test_methods_without_gradients_begin_at_any_index(index, finished_run, tmp_path, name):
    alone, out = finished_run(name), tmp_path / "run"
    own = {key: alone.settings[key] for key in (*OWN, "method", "perplexity") if key in alone.settings}
    done("select", "--index", index, *options(own, out=out))
    assert first_round(out) == first_round(alone.folder)
    assert {path.name for path in out.iterdir()} >= {"elsewhere.json", "contamination.json", "rounds"}
    assert not (out / "pool").exists()


def test_a_plan_and_a_report_look_at_the_index(over, tmp_path):
    planned = done("plan", *over, "--tokens-per-second", "1e3").out
    assert "100 usable rows" in planned
    for step in ("warmup", "gradients", "cluster"):
        assert f"{step}, in the index" in planned
    done("select", *over)
    page = Path(done("report", tmp_path / "run").out.strip()).read_text()
    assert "Map of the rows" in page
