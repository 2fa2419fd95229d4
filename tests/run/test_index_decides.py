"""What is auto of an index it decides itself, once for all targets; the rest is each run's."""

import json

import pytest
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import clusterucb as package
from builders import build_tokenizer
from cli_helpers import clusterucb, done, lines, options
from clusterucb.config import load, settings
from clusterucb.errors import ConfigError

OF_A_RUN = {"out", "index", "target", "holdout", "decontaminate"}


@pytest.fixture(scope="module")
def given(shared_settings):
    """Settings of which all that can be is auto."""
    names = ("model", "pool", "device", "dtype", "gradient_length", "train_length", "dim")
    return {name: shared_settings[name] for name in names}


@pytest.fixture(scope="module")
def task(shared_settings, data_folder, tmp_path_factory):
    """A target, and a held-out row that the pool has, too, so that it is kept out."""
    holdout = tmp_path_factory.mktemp("task") / "holdout.jsonl"
    holdout.write_text(json.dumps(lines(data_folder / "pool-a.jsonl")[7]) + "\n")
    target = shared_settings["target"]
    return ["--target", *target, "--holdout", holdout, "--decontaminate"]


@pytest.fixture(scope="module")
def index(given, tmp_path_factory):
    """An index: not to be changed."""
    folder = tmp_path_factory.mktemp("auto") / "index"
    done("index", *options(given, out=folder))
    return folder


def auto(folder):
    """Names of the settings that are still open, of those that can be."""
    config = load(folder / "config.yaml")
    return {setting.name for setting in settings() if setting.auto and setting.of(config) is None}


def test_an_index_decides_what_it_needs_and_leaves_the_rest_open(index, task, tmp_path):
    """What it has decided is refused otherwise, with both values."""
    every = {setting.name for setting in settings() if setting.auto}
    assert every - auto(index) == {"rank", "alpha", "warmup_steps", "features"}
    assert "k" in auto(index)
    before = (index / "config.yaml").read_bytes()
    done("index", "--out", index)
    assert (index / "config.yaml").read_bytes() == before
    said = clusterucb("index", "--out", index, "--k", 7).complaint
    assert said.startswith(f"k: this run directory was made with auto ({index}/config.yaml), now it is 7; ")
    said = clusterucb("select", "--index", index, *task, "--out", tmp_path / "run", "--rank", 5).complaint
    rank = load(index / "config.yaml").lora.rank
    assert said.startswith(f"rank: the index was made with {rank} ({index}/config.yaml), now it is 5; ")


def test_a_run_over_it_decides_and_selects_as_one_of_its_own(index, given, task, tmp_path):
    """Though a row of the index is kept out of it."""
    alone, over = tmp_path / "alone", tmp_path / "over"
    for step in ("warmup", "gradients", "cluster", "select"):
        done(step, *options({**given, "features": "hidden"}, out=alone), *task)
    done("select", "--index", index, *task, "--out", over)
    ours, theirs = (load(folder / "config.yaml").model_dump(exclude=OF_A_RUN) for folder in (over, alone))
    assert ours == theirs
    assert auto(over) == {"budget"}
    first = "rounds/1/selection.safetensors"
    assert (over / first).read_bytes() == (alone / first).read_bytes()
    assert not (over / "clusters.safetensors").exists()


@pytest.mark.parametrize(
    ("own", "k"), [(["--budget", 0.1, "--policy", "ucb_beta", "--top-p", 0.05], 5), (["--no-centre"], 10)]
)
def test_a_run_whose_clusters_are_others_has_its_own(index, task, tmp_path, own, k):
    """By another budget, or not centred; it does not draw by those of the index meanwhile."""
    out = tmp_path / "run"
    over = ["--index", index, *task, "--out", out, *own]
    said = clusterucb("select", *over).complaint
    assert said.startswith(f"{out}/clusters.safetensors is not there yet: run `clusterucb cluster")
    done("cluster", *over)
    assert len(load_file(out / "clusters.safetensors")["centroids"]) == k
    assert len(load_file(index / "clusters.safetensors")["centroids"]) == 10


def test_a_query_keeps_as_many_rows_as_a_run_and_reads_no_pool(index, shared_settings, monkeypatch):
    """Nor does it leave anything in the index."""
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*")}
    monkeypatch.setattr("clusterucb.run.inputs.Inputs.pool", property(lambda _: pytest.fail("the pool")))
    found = package.Index.open(index).query(shared_settings["target"])
    assert len(found.rows) == 12  # floor(0.125 * 100)
    assert {path: path.stat().st_mtime_ns for path in index.rglob("*")} == before


def test_a_model_of_few_positions_is_asked_of_the_rows_that_it_is_given(given, shared_settings, tmp_path):
    """An index's are the pool's, a query's the target's."""
    config = GPT2Config(vocab_size=320, n_positions=100, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    own = {"model": tmp_path / "model", "target_modules": "c_attn", "features": "gradients"}
    done("index", *options({**given, **own}, train_length=200, out=tmp_path / "index"))
    target = shared_settings["target"]
    assert len(package.Index.open(tmp_path / "index").query(target, 5).ids) == 5
    row = lines(target[0])[0]
    row["messages"][0]["content"] *= 50
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="there are rows of"):
        package.Index.open(tmp_path / "index").query(tmp_path / "long.jsonl", 5)
