"""Steps by one, two and four processes, each with the whole model or a part: what is the same to the bit."""

import shutil

import numpy as np
import pytest
from ranks import SMALL
from safetensors.numpy import load_file

from cli_helpers import options
from clusterucb.features.drawn import DrawnFeatures
from clusterucb.training.moments import load_moments

WAYS = {
    "1": (1, "none"),
    "2": (2, "none"),
    "4": (4, "none"),
    "2 shards": (2, "fsdp"),
}
LESS = {"method": "less", "less_warmup": 0.1, "less_checkpoints": 2}
METHODS = {  # settings, what one process begins with, what is done in each way, the ways
    "random": ({"method": "random"}, "", "select", ["2"]),
    "bm25": ({"method": "bm25"}, "", "select", ["2"]),
    "rds": ({"method": "rds"}, "", "select", ["2"]),
    "head": ({"method": "head"}, "", "select", ["2"]),
    "loss": ({"method": "loss"}, "", "select", ["2", "2 shards"]),
    "less": (LESS, "warmup", "gradients cluster select", ["2", "2 shards"]),
    "linear_ucb": ({"policy": "linear_ucb"}, "warmup gradients cluster", "reselect", ["2 shards"]),
    "linear_ucb_words": (
        {"features": "words", "policy": "linear_ucb"},
        "",
        "gradients cluster select",
        ["2", "2 shards"],
    ),
    "linear_ucb_hidden": (
        {"features": "hidden", "policy": "linear_ucb", "rounds": 3},
        "warmup",
        "gradients cluster select",
        ["2"],
    ),
}


def by_ways(ranks, settings, folder, begin, then, ways):
    """The run directory of each way; one process does what comes before."""
    begun, folders = folder / "begun", {way: folder / way for way in ("1", *ways)}
    ranks.steps(begin, {**settings, **SMALL}, begun)
    for way, out in folders.items():
        if begin:
            shutil.copytree(begun, out)
        ranks.steps(then, {**settings, **SMALL}, out, *WAYS[way])
    return folders


def computed(out):
    """All features, directions, clusters and selections: what to content."""
    found = {path: path.read_bytes() for path in out.glob("features*/*.f*") if path.name != "seconds.f64"}
    found |= {path: load_file(path)["directions"].tobytes() for path in out.glob("directions/*")}
    rounds = [*out.glob("rounds/1"), *out.glob("selections/*/1")]
    exact = [folder / name for folder in rounds for name in ("selection.safetensors", "selected.ids.jsonl")]
    exact += [*out.glob("clusters.safetensors"), *(folder / "draws.jsonl" for folder in rounds)]
    found |= {path: path.read_bytes() for path in exact}
    found |= {folder / "drawn": drawn(folder) for folder in rounds}
    return {str(path.relative_to(out)): content for path, content in found.items()}


def drawn(folder):
    """Row to feature, of the rows that were drawn, whichever process computed them."""
    blocks = DrawnFeatures(folder).blocks()
    return {row: x.tobytes() for rows, found in blocks for row, x in zip(rows.tolist(), found, strict=True)}


def test_from_one_checkpoint_any_number_of_processes_selects_the_same_rows_with_the_same_scores(
    ranks, shared_settings, tmp_path
):
    """In period 1 and in a later one; its settings say nothing of shards."""
    steps = "gradients cluster select reselect"
    folders = by_ways(ranks, shared_settings, tmp_path, "warmup", steps, list(WAYS)[1:])
    found = {way: computed(folder) for way, folder in folders.items()}
    assert len(found["1"]) == 12
    for way, files in found.items():
        assert files == found["1"], way
    marks = sorted((folders["4"] / "features").glob("done*.u8"))
    assert [path.name for path in marks] == ["done-1.u8", "done-2.u8", "done-3.u8", "done.u8"]
    shares = [np.fromfile(path, np.uint8).sum() for path in marks]
    assert sum(shares) == 100
    assert min(shares) > 10


@pytest.mark.parametrize("name", METHODS)
def test_by_any_method_processes_select_what_one_does(ranks, shared_settings, tmp_path, name):
    changes, begin, then, ways = METHODS[name]
    folders = by_ways(ranks, {**shared_settings, **changes}, tmp_path, begin, then, ways)
    expected = computed(folders["1"])
    assert any(path.endswith("1/selection.safetensors") for path in expected)
    for way in ways:
        assert computed(folders[way]) == expected, way
        assert not list(folders[way].glob("rounds/1/hidden"))
    if "rounds" in changes:  # rows by their features, which each process keeps of its own
        assert len(expected["rounds/1/drawn"]) == 20
        assert (folders["2"] / "rounds/1/drawn-1.i64").stat().st_size > 0


def test_processes_train_as_one_does_to_rounding(ranks, shared_settings, tmp_path):
    """The last optimizer step of an epoch has one micro-batch of each process, the others have two."""
    for way in ("1", "2", "2 shards"):
        settings = {**shared_settings, **SMALL, **LESS, "dropout": 0.0}
        ranks.steps("warmup", settings, tmp_path / way, *WAYS[way])
    for name in ("warmup", "warmup-2"):
        expected = load_file(tmp_path / "1" / name / "adapter_model.safetensors")
        for folder in (tmp_path / way / name for way in ("2", "2 shards")):
            found = load_file(folder / "adapter_model.safetensors")
            moments = load_moments(folder / "moments.safetensors")
            assert found.keys() == expected.keys() == moments.square.keys()
            for key, weights in expected.items():
                assert found[key] == pytest.approx(weights, abs=1e-6), key
                assert tuple(moments.square[key].shape) == weights.shape


def test_over_an_index_several_targets_take_the_rows_that_they_take_of_one_process(
    ranks, shared_settings, data_folder, tmp_path
):
    """And an index grows to the same."""
    own = {"target": None, "subtask": None, "holdout": None, "features": "hidden", "policy": "linear_ucb"}
    ranks.end(["index", *options({**shared_settings, **SMALL, **own}, out=tmp_path / "index")], 1)
    task = ["--target", *(f"{name}={data_folder / name}.jsonl" for name in ("target", "holdout"))]
    found = []
    for processes in (1, 2):
        out, grown = tmp_path / f"run-{processes}", tmp_path / f"grown-{processes}"
        ranks.end(["select", "--index", tmp_path / "index", *task, "--out", out], processes)
        shutil.copytree(tmp_path / "index", grown)
        ranks.end(["index", grown, "--pool", data_folder / "pool-b.jsonl"], processes)
        files = [out / "rounds/1" / name for name in ("selection.safetensors", "selected.ids.jsonl")]
        files += [grown / "features/features.f16", grown / "clusters.safetensors"]
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]
