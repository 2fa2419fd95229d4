"""Runs of a comparison get what they have in common from each other."""

import os

import pytest
from clusterucb.studies.compare.sharing import adopt, shared_cost
from compare_helpers import cell, write

from clusterucb.config import Config
from clusterucb.run.costs import Cost

COST = Cost(rows=7, tokens=70, pool_gradients=7, seconds=1.5)


@pytest.fixture
def config():
    return Config(model="m", out="o", pool=["p"], target=["t"], less={"less_checkpoints": 3})


def give(source, *names):
    for name in names:
        path = source.run.path / name
        write(path if path.suffix else path / "content.txt", "{}")


def has(other):
    folders = [p for p in other.run.path.rglob("*") if p.name not in ("shared.json", "config.yaml")]
    return {str(p.relative_to(other.run.path)) for p in folders if p.is_file()}


ALL = ("target", "contamination.json", "pool", "initial", "warmup", "features", "clusters.json")
ALL += ("clusters.safetensors", "rounds/1", "rounds/2", "adapter", "summary.json", "evaluation.json")
COMMON = {"target/content.txt", "contamination.json", "pool/content.txt", "initial/content.txt"}
GRADIENTS = {"warmup/content.txt", "features/content.txt"}
CLUSTERS = {"clusters.json", "clusters.safetensors"}
FIRST = {"rounds/1/content.txt"}


@pytest.mark.parametrize(
    ("mine", "theirs", "shared"),
    [
        ("clusterucb", "clusterucb", COMMON | GRADIENTS | CLUSTERS | FIRST),
        ("clusterucb", "dynamic", COMMON | GRADIENTS),
        ("dynamic", "clusterucb", COMMON | GRADIENTS),
        ("dynamic", "dynamic", COMMON | GRADIENTS | FIRST),
        ("clusterucb_hidden", "clusterucb", COMMON | {"warmup/content.txt"}),
        ("dynamic", "clusterucb_hidden", COMMON | {"warmup/content.txt"}),
        ("clusterucb_hidden", "clusterucb_hidden", COMMON | GRADIENTS | CLUSTERS),
        ("clusterucb@0.1", "clusterucb", COMMON | GRADIENTS),
        ("linear_ucb@0.1", "clusterucb@0.1", COMMON | GRADIENTS | CLUSTERS),
        ("clusterucb@0.1", "clusterucb@0.1", COMMON | GRADIENTS | CLUSTERS | FIRST),
        ("dynamic", "less", COMMON),
        ("less_clusterucb", "clusterucb", COMMON),
        ("random", "clusterucb", COMMON),
        ("random", "random", COMMON),
        ("bm25", "bm25", COMMON | FIRST),
        ("rds", "bm25", COMMON),
        ("loss_lowest", "loss_lowest", COMMON | FIRST),
        ("loss_lowest", "loss_highest", COMMON),
    ],
)
def test_a_run_gets_what_it_would_make_alike_and_nothing_else(tmp_path, config, mine, theirs, shared):
    new, old = cell(tmp_path, mine, 1), cell(tmp_path, theirs, 0)
    give(old, *ALL)
    adopt(new, [new, old], new.config(config))
    assert has(new) == shared


def test_checkpoints_of_less_are_shared_when_all_are_there(tmp_path, config):
    old, new = cell(tmp_path, "less"), cell(tmp_path, "less_clusterucb")
    give(old, "warmup", "warmup-2", "features")
    adopt(new, [old], config)
    assert has(new) == {"features/content.txt"}
    give(old, "warmup-3", "features-2", "clusters.json", "clusters.safetensors")
    adopt(new, [old], config)
    checkpoints = {f"{name}/content.txt" for name in ("warmup", "warmup-2", "warmup-3")}
    assert has(new) == {"features/content.txt", *checkpoints}
    again = cell(tmp_path, "less", 1)
    adopt(again, [old, new], config)
    assert has(again) == {"features/content.txt", "features-2/content.txt", *checkpoints}


def test_links_take_no_room_and_their_cost_is_the_others(tmp_path, config):
    old, new = cell(tmp_path, "clusterucb"), cell(tmp_path, "dynamic")
    give(old, "warmup", "features", "initial")
    write(old.run.warmup / "checkpoint.json", {"cost": COST.to_json()})
    write(old.run.features / "manifest.json", {"cost": (COST + COST).to_json()})
    adopt(new, [old], config)
    for name in ("warmup/checkpoint.json", "features/manifest.json", "initial/content.txt"):
        assert (new.run.path / name).samefile(old.run.path / name)
    assert shared_cost(new) == COST + COST + COST
    assert shared_cost(old) == Cost()


def test_without_links_there_are_copies(tmp_path, config, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    old, new = cell(tmp_path, "clusterucb"), cell(tmp_path, "dynamic")
    give(old, "warmup", "features/deep", "contamination.json")
    adopt(new, [old], config)
    assert has(new) == {"warmup/content.txt", "features/deep/content.txt", "contamination.json"}
    assert not (new.run.path / "contamination.json").samefile(old.run.path / "contamination.json")
    assert (new.run.path / "contamination.json").read_text() == "{}"


def test_what_is_there_stays_and_what_a_kill_left_is_replaced(tmp_path, config):
    old, new = cell(tmp_path, "clusterucb"), cell(tmp_path, "dynamic")
    give(old, "warmup", "features", "features.part")
    write(new.run.warmup / "own.txt", "mine")
    write(new.run.path / "features.link" / "torn.txt", "half")
    adopt(new, [old], config)
    assert has(new) == {"warmup/own.txt", "features/content.txt"}
    assert shared_cost(new) == Cost()


def test_base_answers_are_shared_between_all_methods(tmp_path, config):
    old, new = cell(tmp_path, "random"), cell(tmp_path, "less")
    give(old, "benchmarks/gsm8k-base-0123abcd", "benchmarks/gsm8k-adapter-0123abcd")
    give(old, "benchmarks/mmlu-base-4567cdef.part/chunks", "benchmarks/results.json")
    adopt(new, [old], config)
    assert has(new) == {"benchmarks/gsm8k-base-0123abcd/content.txt"}


def test_settings_come_with_the_adapter_before_training(tmp_path, config):
    old, new = cell(tmp_path, "random"), cell(tmp_path, "bm25", 2)
    give(old, "pool")
    adopt(new, [old], new.config(config))
    assert not new.run.config.exists()  # nothing has held for these settings yet
    give(old, "initial")
    adopt(new, [old], new.config(config))
    assert "method: bm25" in new.run.config.read_text()
    assert "repeat: 2" in new.run.config.read_text()


def test_what_was_deleted_is_no_longer_told_as_shared(tmp_path, config):
    old, new = cell(tmp_path, "clusterucb"), cell(tmp_path, "dynamic")
    give(old, "warmup")
    write(old.run.warmup / "checkpoint.json", {"cost": COST.to_json()})
    adopt(new, [old], config)
    assert shared_cost(new) == COST
    for folder in (old.run.warmup, new.run.warmup):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    adopt(new, [old], config)
    assert shared_cost(new) == Cost()
