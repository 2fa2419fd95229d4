"""Steps and whole runs by one, two and four processes: what is the same to the bit, and what to rounding."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_helpers import options, read, result
from clusterucb.features.drawn import DrawnFeatures

SMALL = {"batch_tokens": 256, "dropout": 0.0, "micro_batch": 1}  # so that all processes have micro-batches


def run(ranks, command, settings, processes, **changes):
    found = ranks([command, *options(settings, **SMALL, **changes)], processes)
    assert [rank["status"] for rank in found] == [0] * processes, found
    assert all(rank["said"] == "" for rank in found[1:]), found
    return found[0]["said"]


@pytest.fixture(scope="module")
def begun(ranks, shared_settings, tmp_path_factory):
    """A run directory that is warmed up, by one process."""
    out = tmp_path_factory.mktemp("begun") / "run"
    run(ranks, "warmup", shared_settings, 1, out=out)
    return out


def adapter_of(out, folder):
    return load_file(out / folder / "adapter_model.safetensors")


def computed(ranks, settings, begun, out, processes):
    """Features, clusters, first selection and a later one by so many processes: file to bytes."""
    shutil.copytree(begun, out)
    for command in ("gradients", "cluster", "select"):
        run(ranks, command, settings, processes, out=out)
    run(ranks, "select", settings, processes, out=out, checkpoint=out / "warmup")
    names = ["features/features.f16", "features/losses.f32", "features/directions.safetensors"]
    names += ["clusters.safetensors", "rounds/1/selection.safetensors", "rounds/1/selected.ids.jsonl"]
    found = {name: (out / name).read_bytes() for name in names}
    for path in out.glob("selections/*/1/*"):
        if path.name in ("selection.safetensors", "draws.jsonl", "selected.jsonl"):
            found[path.name] = path.read_bytes()
    assert len(found) == 9
    return found


def test_from_one_checkpoint_any_number_of_processes_selects_the_same_rows_with_the_same_scores(
    ranks, shared_settings, begun, tmp_path
):
    one, two, four = (computed(ranks, shared_settings, begun, tmp_path / str(n), n) for n in (1, 2, 4))
    assert two == one
    assert four == one
    marks = sorted(path.name for path in (tmp_path / "4/features").glob("done*.u8"))
    assert marks == ["done-1.u8", "done-2.u8", "done-3.u8", "done.u8"]
    shares = [np.fromfile(tmp_path / "4/features" / name, np.uint8).sum() for name in marks]
    assert sum(shares) == 100
    assert min(shares) > 10


def test_two_processes_train_as_one_does_to_rounding(ranks, shared_settings, begun, tmp_path):
    """The last optimizer step of an epoch has an odd number of micro-batches."""
    run(ranks, "warmup", shared_settings, 2, out=tmp_path / "run")
    ours, theirs = (adapter_of(out, "warmup") for out in (tmp_path / "run", begun))
    for name, weights in theirs.items():
        assert ours[name] == pytest.approx(weights, abs=1e-6), name


def test_two_processes_end_a_whole_run(ranks, settings):
    said = run(ranks, "run", settings, 2)
    assert "Everything is in" in said
    found = result(settings["out"])
    assert len([name for name in found if name.startswith("rounds/")]) == 4 * 3
    assert read(Path(settings["out"]) / "summary.json")["selected"][2]["selected"] == 10
    assert (Path(settings["out"]) / "report.html").exists()
    assert not list(Path(settings["out"]).rglob("*.part"))


def selected(out):
    """The files of round 1, without the time that it took."""
    timed = ("summary.json", "scores.jsonl")
    return {
        p.name: p.read_bytes() for p in (out / "rounds/1").iterdir() if p.is_file() and p.name not in timed
    }


@pytest.mark.parametrize("method", ["random", "bm25", "rds", "loss"])
def test_two_processes_select_by_a_baseline_what_one_does(ranks, shared_settings, tmp_path, method):
    for size in (1, 2):
        run(ranks, "select", shared_settings, size, out=tmp_path / str(size), method=method)
    assert selected(tmp_path / "2") == selected(tmp_path / "1")
    assert not (tmp_path / "2/rounds/1/hidden").exists()


def drawn(folder):
    """Row to feature, of the rows that were drawn, whichever process computed them."""
    blocks = DrawnFeatures(folder).blocks()
    return {row: x.tobytes() for rows, found in blocks for row, x in zip(rows.tolist(), found, strict=True)}


def test_two_processes_select_row_by_row_over_hidden_states_what_one_does(
    ranks, shared_settings, begun, tmp_path
):
    changes = {"features": "hidden", "policy": "linear_ucb", "rounds": 3}
    for size in (1, 2):
        out = tmp_path / str(size)
        shutil.copytree(begun, out)
        (out / "config.yaml").unlink()  # the warmup is another run's
        for command in ("gradients", "cluster", "select"):
            run(ranks, command, shared_settings, size, out=out, **changes)
    names = ("features/features.f16", "features/directions.safetensors", "rounds/1/selection.safetensors")
    for name in names:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    assert (tmp_path / "2/rounds/1/drawn-1.i64").stat().st_size > 0
    assert drawn(tmp_path / "2/rounds/1") == drawn(tmp_path / "1/rounds/1")
    assert len(drawn(tmp_path / "1/rounds/1")) == 20


@pytest.mark.slow
def test_two_processes_select_by_less_what_one_does(ranks, shared_settings, tmp_path):
    changes = {"method": "less", "less_warmup": 0.1, "less_checkpoints": 2}
    run(ranks, "warmup", shared_settings, 1, out=tmp_path / "1", **changes)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    for size in (1, 2):
        for command in ("gradients", "cluster", "select"):
            run(ranks, command, shared_settings, size, out=tmp_path / str(size), **changes)
    names = [name for name in selected(tmp_path / "1") if not name.startswith("directions")]
    for name in names:
        assert (tmp_path / "2/rounds/1" / name).read_bytes() == (tmp_path / "1/rounds/1" / name).read_bytes()
    run(ranks, "warmup", shared_settings, 2, out=tmp_path / "3", **changes)
    for name, weights in adapter_of(tmp_path / "1", "warmup-2").items():
        assert adapter_of(tmp_path / "3", "warmup-2")[name] == pytest.approx(weights, abs=1e-6), name
    found = [load_file(tmp_path / size / "rounds/1/directions-warmup-2.safetensors") for size in "12"]
    assert (found[0]["directions"] == found[1]["directions"]).all()


@pytest.mark.slow
def test_two_processes_make_a_comparison(ranks, settings):
    one = ["--methods", "random,bm25", "--seeds", "1"]
    found = ranks(["compare", *options({**settings, **SMALL, "periods": 1}), *one])
    assert [rank["status"] for rank in found] == [0, 0], found
    assert found[1]["said"] == ""
    table = read(Path(settings["out"]) / "comparison.json")
    assert {name: row["failed"] for name, row in table["methods"].items()} == {"random": 0, "bm25": 0}
