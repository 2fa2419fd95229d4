"""What FSDP 2 shards over two or four processes: each row's gradient, moments, selections and whole runs."""

import json
import shutil

import numpy as np
import pytest
import sharded
from safetensors.numpy import load_file

from cli_helpers import options
from clusterucb.config import load
from clusterucb.session import Session
from clusterucb.steps import reselection
from clusterucb.training.model import load_adapter
from clusterucb.training.moments import import_moments

SMALL = {"batch_tokens": 256, "dropout": 0.0, "micro_batch": 1}

def ended_well(found):
    assert [rank["status"] for rank in found] == [0] * len(found), found


@pytest.mark.parametrize("processes", [2, 4])
def test_each_rows_gradient_is_that_of_the_whole_model_to_the_bit(ranks, tmp_path, processes):
    """Though the processes' numbers of micro-batches differ, which all take part in."""
    ended_well(ranks([str(tmp_path / "found")], processes, main="sharded:features"))
    expected = sharded.computed(sharded.adapted())
    assert expected["batches"][0] % processes
    for rank in range(processes):
        found = load_file(tmp_path / f"found.{rank}")
        for name, array in expected.items():
            assert np.array_equal(found[name], array), name


@pytest.fixture(scope="module")
def clustered(ranks, shared_settings, tmp_path_factory):
    """Settings of a run directory that has features and clusters, made by one process."""
    settings = {**shared_settings, **SMALL, "out": str(tmp_path_factory.mktemp("clustered") / "run")}
    for command in ("warmup", "gradients", "cluster"):
        ended_well(ranks([command, *options(settings)], 1))
    return settings


def test_a_trainer_selects_what_one_process_does_from_its_checkpoint(ranks, clustered, tmp_path):
    ended_well(ranks([str(tmp_path), json.dumps(clustered)], main="sharded:train"))
    checkpoint = tmp_path / "checkpoint-3"
    session = Session(load(None, clustered))
    load_adapter(session.model, checkpoint)
    moments = import_moments(checkpoint, session.model)
    ours = reselection(session, tmp_path / "alone").round(2, session.model, lambda: moments)
    names = ("selection.safetensors", "draws.jsonl", "selected.jsonl")
    for name in names:
        assert (tmp_path / "rounds/2" / name).read_bytes() == (tmp_path / "alone/2" / name).read_bytes()
    assert len(ours.rows) == 10


def test_a_whole_run(ranks, settings):
    found = ranks(["run", *options(settings, **SMALL, shard="fsdp")], main="sharded:command")
    print(found[0]["said"], found[1]["said"])
    ended_well(found)
