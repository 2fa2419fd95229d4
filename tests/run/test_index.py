"""An index knows no target: runs with any begin there, change nothing in it, and end as they would alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import clusterucb as package
from builders import write_rows
from cli_helpers import clusterucb, done, options, read, result
from clusterucb.config import load
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir

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
        *(
            "config.yaml",
            "pool",
            "initial",
            "warmup",
            "features",
            "clusters.safetensors",
            "clusters.json",
            "README.md",
        ),
    }
    card = (index / "README.md").read_text()
    assert "gradients of 100 rows" in card
    assert "| pool | pool-a.jsonl, pool-b.jsonl |" in card
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
    own = {key: alone.settings[key] for key in (*OWN, "policy", "centre") if key in alone.settings}
    done("run", "--index", index, *options(own, out=out))
    assert result(out) == result(alone.folder)
    assert tree(index) == before
    counts = [read(folder / "summary.json")["total"]["pool_gradients"] for folder in (out, alone.folder)]
    assert counts[0] == counts[1]
    bills = [read(folder / "summary.json")["bill"] for folder in (out, alone.folder)]
    cost = [
        read(index / file)["cost"]["tokens"] for file in ("warmup/checkpoint.json", "features/manifest.json")
    ]
    assert bills[0]["index"]["passes"] == pytest.approx(sum(cost) / bills[0]["one_pass"]["tokens"], abs=1e-3)
    assert bills[1]["index"] is None


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


@pytest.fixture
def pools(data_folder, tmp_path):
    """The pool as one file, and one in which 10 of its rows are gone and 7 new ones have come."""
    rows = (data_folder / "pool-a.jsonl").read_text().splitlines(True)
    write_rows(tmp_path / "new.jsonl", 7, 77)
    new = (tmp_path / "new.jsonl").read_text().splitlines(True)
    for name, kept in (("before", rows), ("after", [*new[:3], *rows[10:], *new[3:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(kept))
    return tmp_path / "before.jsonl", tmp_path / "after.jsonl"


@pytest.mark.whole
@pytest.mark.parametrize("features", ["gradients", "hidden", "head"])
def test_an_index_grows_by_the_new_rows_alone(run_settings, pools, tmp_path, features, monkeypatch):
    out, (before, after) = tmp_path / "index", pools
    own = options(without(run_settings, *OWN, "pool"), out=out, features=features)
    done("index", *own, "--pool", before)
    old, moments = stored(out), (out / "warmup/moments.safetensors").read_bytes()
    seen = count_rows(monkeypatch)
    done("index", out, "--pool", after)
    new = stored(out)
    assert (len(old), sum(seen), len(new)) == (60, 7, 57)
    np.testing.assert_array_equal(new[3:53], old[10:])
    assert (out / "warmup/moments.safetensors").read_bytes() == moments
    assert load(out / "config.yaml").pool == [str(after)]
    assert len(load_file(out / "clusters.safetensors")["labels"]) == 57
    assert [path.name for path in tmp_path.glob("index*")] == ["index"]
    fresh = tmp_path / "fresh"  # as if the checkpoint had been there first
    shutil.copytree(out, fresh, ignore=shutil.ignore_patterns("features", "clusters*"))
    done("index", "--out", fresh)
    if features == "gradients":
        np.testing.assert_allclose(stored(fresh), new, atol=2e-3)
    said = clusterucb("index", out, "--pool", before, "--dim", 64).complaint
    assert said.startswith("dim: this run directory was made with 256")


@pytest.mark.whole
@pytest.mark.parametrize("features", ["gradients", "hidden"])
def test_an_index_grows_into_another_place_and_stays_as_it_is(
    run_settings, pools, tmp_path, features, monkeypatch
):
    """The new one is that which the old one would have become, to the byte, also after a kill."""
    out, old, (before, after) = tmp_path / "new", tmp_path / "old", pools
    own = options(without(run_settings, *OWN, "pool"), out=old, features=features)
    done("index", *own, "--pool", before)
    there, seen = tree(old), count_rows(monkeypatch)
    with monkeypatch.context() as killed:
        killed.setattr("clusterucb.recipes.cluster", lambda _: raise_interrupt())
        assert clusterucb("index", old, "--pool", after, "--out", out).status == 130
    assert not (out / "config.yaml").exists()
    done("index", old, "--pool", after, "--out", out)
    assert (sum(seen), tree(old)) == (7, there)
    done("index", old, "--pool", after, "--out", out)  # it is there
    grown = package.Index.open(out)
    assert (grown.config.out, grown.config.pool) == (str(out), [str(after)])
    done("index", old, "--pool", after)
    assert sum(seen) == 14
    assert sorted(path.name for path in tmp_path.glob("*") if path.is_dir()) == ["new", "old"]
    for name in (
        "features/features.f16",
        "clusters.safetensors",
        "pool/ids.jsonl",
        "warmup/moments.safetensors",
    ):
        assert (out / name).read_bytes() == (old / name).read_bytes()


def raise_interrupt():
    raise KeyboardInterrupt


def test_growing_refuses_what_would_mix_or_lose(index, finished_run, run_settings, pools, tmp_path):
    """Another setting, an index that is not finished, and the place of a run."""
    given = ["--pool", pools[1], "--out", tmp_path / "new"]
    said = clusterucb("index", index, *given, "--dim", 64).complaint
    assert said.startswith("dim: the index was made with 256 (")
    half = shutil.copytree(index, tmp_path / "half", ignore=shutil.ignore_patterns("features"))
    assert "has no features yet; finish it" in clusterucb("index", half, *given).complaint
    assert not (tmp_path / "new/config.yaml").exists()
    run = shutil.copytree(finished_run("clusterucb").folder, tmp_path / "run")
    said = clusterucb("index", run, "--pool", pools[1]).complaint
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
    run_settings, pools, tmp_path, aside, monkeypatch
):
    out, (before, after) = tmp_path / "index", pools
    done("index", *options(without(run_settings, *OWN, "pool"), out=out), "--pool", before)
    monkeypatch.setattr("clusterucb.steps.growth._move", lambda *_: None)
    done("index", out, "--pool", after)
    monkeypatch.undo()
    if aside == "moved":
        out.rename(tmp_path / "index.old")
    elif aside == "left":
        (tmp_path / "index.old").mkdir()
        (tmp_path / "index.old/config.yaml").write_text("not yet gone")
    seen = count_rows(monkeypatch)
    done("index", "--out", out, "--pool", after, *options(without(run_settings, *OWN, "pool")))
    assert sum(seen) == 0
    assert len(stored(out)) == 57
    assert [path.name for path in tmp_path.glob("index*")] == ["index"]


def test_what_does_not_fit_an_index_is_refused_with_both_values(index, run_settings, tmp_path):
    target = ["--target", *run_settings["target"], "--out", tmp_path / "run"]
    for name, was, now in (
        ("rank", 4, 8),
        ("gradient_length", 40, 41),
        ("projection", "'countsketch'", "'rademacher'"),
    ):
        given = now.strip("'") if isinstance(now, str) else now
        said = clusterucb("select", "--index", index, *target, f"--{name.replace('_', '-')}", given).complaint
        assert said.startswith(
            f"{name}: the index was made with {was} ({index}/config.yaml), now it is {now}; "
        )
    said = clusterucb("select", "--index", index, *target, "--pool", run_settings["pool"][0]).complaint
    assert said.startswith(f"{index}/pool was made with pool '")
    assert said.endswith("; name another --index, or none")
    assert not (tmp_path / "run/config.yaml").exists()


def test_an_index_that_is_not_finished_is_named_with_what_is_missing(index, run_settings, tmp_path):
    copy = shutil.copytree(index, tmp_path / "copy", ignore=shutil.ignore_patterns("features"))
    said = clusterucb(
        "select", "--index", copy, "--target", *run_settings["target"], "--out", tmp_path / "run"
    )
    assert (
        said.complaint == f"--index {copy}: has no features yet; finish it by `clusterucb index --out {copy}`"
    )
    assert (
        "'target' is missing" in clusterucb("select", "--index", index, "--out", tmp_path / "run").complaint
    )


def test_an_index_on_the_hub_is_fetched_and_named_as_any_other(index, run_settings, tmp_path, monkeypatch):
    asked = []
    fetch = "huggingface_hub.snapshot_download"
    monkeypatch.setattr(fetch, lambda name, repo_type: asked.append((name, repo_type)) or str(index))
    target = run_settings["target"]
    done(
        "select",
        "--index",
        "hub:team/pool",
        "--target",
        *target,
        "--subtask",
        "subject",
        "--out",
        tmp_path / "run",
    )
    assert asked[0] == ("team/pool", "dataset")
    assert len(package.Index.open("hub:team/pool").query(target, 5).ids) == 5


def test_an_index_that_the_hub_does_not_have_is_one_line(tmp_path):
    """The tests are offline."""
    said = clusterucb("select", "--index", "hub:no/such", "--target", "t", "--out", tmp_path).complaint
    assert said.startswith("hub:no/such: the index cannot be fetched (")


def test_a_run_with_other_clusters_makes_its_own(index, run_settings, tmp_path):
    out, before = tmp_path / "run", tree(index)
    own = {name: run_settings[name] for name in OWN}
    for step in ("cluster", "select"):
        done(step, "--index", index, *options(own, out=out, k=3))
    assert len(load_file(out / "clusters.safetensors")["centroids"]) == 3
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
    ours, theirs = (folder / "rounds/1/selection.safetensors" for folder in (out, alone.folder))
    assert ours.read_bytes() == theirs.read_bytes()
    assert {path.name for path in out.iterdir()} >= {"elsewhere.json", "contamination.json", "rounds"}
    assert not (out / "pool").exists()


def test_a_plan_and_a_report_look_at_the_index(index, run_settings, tmp_path):
    given = ["--index", index, *options({name: run_settings[name] for name in OWN}, out=tmp_path / "run")]
    planned = done("plan", *given, "--tokens-per-second", "1e3").out
    assert "100 usable rows" in planned
    for step in ("warmup", "gradients", "cluster"):
        assert f"{step}, in the index" in planned
    done("select", *given)
    page = Path(done("report", tmp_path / "run").out.strip()).read_text()
    assert "Map of the rows" in page
