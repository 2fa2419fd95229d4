"""A model that FSDP 2 shards: its rows' gradients, moments and selections are those of the whole model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import sharded
import torch
import torch.distributed as dist
from ranks import SMALL
from safetensors.numpy import load_file
from tiny_adapters import rows
from torch.distributed.fsdp import FullyShardedDataParallel
from training_helpers import same

from clusterucb.config import load
from clusterucb.errors import ConfigError
from clusterucb.run.session import Session
from clusterucb.runtime.sharding import refuse_other_shards
from clusterucb.steps.select import reselection
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.moments import import_moments, load_moments

SELECTED = ("selection.safetensors", "draws.jsonl", "selected.jsonl")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the ranks have: with another number, sums are formed in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("processes", "dtype", "pieces"),
    [(2, "float32", "one"), (2, "bfloat16", "many"), (4, "float32", "many")],
)
def test_each_rows_gradient_is_that_of_the_whole_model_to_the_bit(ranks, tmp_path, processes, dtype, pieces):
    """Though the micro-batches do not come out even, and each needs all processes."""
    ranks.end([tmp_path / "found", dtype, pieces], processes, main="sharded:features")
    expected = sharded.computed(sharded.adapted(dtype))
    assert expected["batches"][0] % processes
    for rank in range(processes):
        found = load_file(tmp_path / f"found.{rank}")
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(found[name], array), name


@pytest.fixture(scope="module")
def begun(ranks, shared_settings, tmp_path_factory):
    """Settings of a run directory that one process has begun, up to the first selection."""
    out = tmp_path_factory.mktemp("begun") / "run"
    settings = {**shared_settings, **SMALL, "dropout": 0.0, "out": str(out)}
    ranks.steps("warmup gradients cluster select", settings, out)
    return settings


@pytest.fixture(scope="module")
def trainer(ranks, begun, tmp_path_factory):
    """The states of a person's own Trainer whose model two processes share."""
    states = tmp_path_factory.mktemp("trainer")
    ranks.end([states, json.dumps(begun)], main="sharded:train")
    return states


class TestAPersonsOwnTrainer:
    def test_it_selects_what_one_process_does_from_its_checkpoint(self, trainer, begun, tmp_path):
        session = Session(load(None, begun))
        load_adapter(session.model, trainer / "checkpoint-3")
        moments = import_moments(trainer / "checkpoint-3", session.model)
        found = reselection(session, tmp_path).round(2, session.model, lambda: moments)
        assert len(found.rows) == 10
        for name in SELECTED:
            assert (trainer / "rounds/2" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name

    def test_every_process_has_all_moments_as_the_checkpoint_keeps_them(self, trainer, begun):
        kept = import_moments(trainer / "checkpoint-3", Session(load(None, begun)).model)
        for rank in (0, 1):
            found = load_moments(trainer / f"moments-{rank}.safetensors")
            assert same(found.mean, kept.mean)
            assert same(found.square, kept.square)
            assert found.step == kept.step == 3

    def test_its_moments_are_those_of_one_process_to_rounding(self, trainer, begun, tmp_path):
        sharded.trained(
            Session(load(None, begun)), tmp_path, gradient_accumulation_steps=4, save_strategy="no"
        )
        ours, theirs = (load_moments(at / "moments-0.safetensors") for at in (trainer, tmp_path))
        for kind in ("mean", "square"):
            for name, moment in getattr(theirs, kind).items():
                torch.testing.assert_close(getattr(ours, kind)[name], moment, rtol=1e-4, atol=1e-8)

    @pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
    def test_fsdp_1_is_refused(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = FullyShardedDataParallel(torch.nn.Linear(2, 2), device_id=torch.device("cpu"))
            dynamic = DynamicSelection(rows([5, 4, 6]), np.arange(2), lambda *_: np.arange(2))
            with pytest.raises(ConfigError, match=r"FSDP 1: .* use FSDP 2 \(fsdp_config="):
                dynamic.on_train_begin(None, None, None, train_dataloader=None, model=model)
        finally:
            dist.destroy_process_group()

    def test_shards_on_the_host_are_refused(self, monkeypatch):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        model = torch.nn.Linear(2, 2)
        refuse_other_shards(model)
        model.weight.device_mesh = SimpleNamespace(device_type="cuda")
        with pytest.raises(ConfigError, match=r"FSDP: the shards are on the host.* leave cpu_offload false"):
            refuse_other_shards(model)


def test_a_model_that_all_have_shards_of_is_run_whole_by_one(ranks, begun):
    """As benchmarks are, which one process asks."""
    ranks.end([json.dumps({**begun, "shard": "fsdp"})], main="sharded:alone")
