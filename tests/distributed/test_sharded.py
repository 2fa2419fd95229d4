"""A model that FSDP 2 shards: its rows' gradients, moments and selections are those of the whole model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sharded
import torch
import torch.distributed as dist
from safetensors.numpy import load_file
from torch.distributed.fsdp import FullyShardedDataParallel

from cli_helpers import options, result
from clusterucb.config import load
from clusterucb.errors import ConfigError
from clusterucb.run.session import Session
from clusterucb.runtime.sharding import refuse_other_shards
from clusterucb.steps.select import reselection
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.moments import import_moments, load_moments

SMALL = {"batch_tokens": 256, "dropout": 0.0, "micro_batch": 1, "save_steps": 2, "periods": 2}
SELECTED = ("selection.safetensors", "draws.jsonl", "selected.jsonl")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the ranks have: with another number, sums are formed in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(ranks, arguments, processes=2, main="sharded:command", **more):
    """What ranks leave on the screen; where they hang, they end."""
    found = ranks(
        [str(argument) for argument in arguments], processes, main=main, CLUSTERUCB_TIMEOUT="60", **more
    )
    assert [rank["status"] for rank in found] == [0] * processes, found
    return found


def complaint(found):
    """The one line of an error that ends all ranks."""
    assert {rank["status"] for rank in found} == {2}, found
    said = "".join(rank["said"] for rank in found)
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("clusterucb: "))
    return line.removeprefix("clusterucb: ")


@pytest.mark.parametrize(
    ("processes", "dtype", "pieces"),
    [(2, "float32", "many"), (2, "float32", "one"), (2, "bfloat16", "many"), (4, "float32", "many")],
)
def test_each_rows_gradient_is_that_of_the_whole_model_to_the_bit(ranks, tmp_path, processes, dtype, pieces):
    """Though the micro-batches do not come out even, and each needs all processes."""
    run(ranks, [tmp_path / "found", dtype, pieces], processes, main="sharded:features")
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
    settings = {**shared_settings, **SMALL, "out": str(tmp_path_factory.mktemp("begun") / "run")}
    for command in ("warmup", "gradients", "cluster", "select"):
        run(ranks, [command, *options(settings)], 1)
    return settings


@pytest.fixture(scope="module")
def trainer(ranks, begun, tmp_path_factory):
    """The states of a person's own Trainer whose model two processes share."""
    states = tmp_path_factory.mktemp("trainer")
    run(ranks, [states, json.dumps(begun)], main="sharded:train")
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
            assert sharded.same(found.mean, kept.mean)
            assert sharded.same(found.square, kept.square)
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
            dynamic = DynamicSelection(sharded.rows(3), np.arange(2), lambda *_: np.arange(2))
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


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_share_a_model_select_what_one_does(ranks, begun, tmp_path, processes):
    """From the warmup on, whose settings say nothing of shards."""
    one, out = Path(begun["out"]), tmp_path / "run"
    shutil.copytree(one, out, ignore=shutil.ignore_patterns("features", "clusters*", "rounds"))
    settings = {**begun, "out": out, "shard": "fsdp"}
    for command in ("gradients", "cluster", "select"):
        run(ranks, [command, *options(settings)], processes)
    names = ["features/features.f16", "features/losses.f32", "features/directions.safetensors"]
    for name in (*names, "clusters.safetensors", "rounds/1/selection.safetensors"):
        assert (out / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm", "steps", "changes"),
    [
        (("warmup",), ("gradients", "cluster", "select"), {"method": "less", "less_checkpoints": 2}),
        (("warmup", "gradients", "cluster"), ("select",), {"policy": "linear_ucb", "rounds": 3}),
        ((), ("select",), {"method": "loss"}),
    ],
    ids=["less", "linear_ucb", "loss"],
)
def test_other_methods_select_what_one_process_does(ranks, shared_settings, tmp_path, warm, steps, changes):
    settings = {**shared_settings, **SMALL, **changes}
    at = ["--checkpoint", tmp_path / "2/warmup"] if "policy" in changes else []  # else all rows are stored
    for command in warm:
        run(ranks, [command, *options(settings, out=tmp_path / "1")], 1)
    if warm:
        shutil.copytree(tmp_path / "1", tmp_path / "2")
    for processes, shard in ((1, "none"), (2, "fsdp")):
        for command in steps:
            more = at if command == "select" else []
            out = tmp_path / str(processes)
            run(ranks, [command, *options(settings, shard=shard, out=out), *more], processes)
    one, two = (sorted((tmp_path / size).glob("*s/**/selection.safetensors")) for size in "12")
    assert len(one) == len(two) == 1
    assert one[0].read_bytes() == two[0].read_bytes()


@pytest.fixture(scope="module")
def whole(ranks, shared_settings, tmp_path_factory):
    """The directory of a run whose model two processes share, from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    found = run(ranks, ["run", *options(shared_settings, **SMALL, shard="fsdp", out=out)])
    assert "Everything is in" in found[0]["said"]
    assert found[1]["said"] == ""
    return out


def test_a_whole_run_leaves_adapter_and_moments_whole(whole, begun):
    initial = load_file(whole / "initial/adapter_model.safetensors")
    for folder in ("warmup", "adapter"):
        weights, moments = (
            load_file(whole / folder / "adapter_model.safetensors"),
            load_moments(whole / folder / "moments.safetensors"),
        )
        shapes = {name: array.shape for name, array in initial.items()}
        assert {name: array.shape for name, array in weights.items()} == shapes
        assert {name: tuple(tensor.shape) for name, tensor in moments.square.items()} == shapes
    warmed = load_file(whole / "warmup/adapter_model.safetensors")
    for name, array in load_file(Path(begun["out"]) / "warmup/adapter_model.safetensors").items():
        assert warmed[name] == pytest.approx(array, abs=1e-6), name
    assert not list(whole.rglob("*.part"))


MOMENTS = [  # the rank that dies, and where
    (1, {"where": "clusterucb.gradients.featurizer:row_gradients", "call": 4}),
    (1, {"where": "torch:save", "path": "rng_state_1.pth"}),
    (0, {"where": "clusterucb.features.influence:ScoreLog.add", "call": 3}),
    (0, {"where": "torch.optim:AdamW.step", "call": 3}),
]


@pytest.mark.slow
def test_a_rank_killed_in_every_step_the_group_restarts_and_ends_the_same(ranks, whole, settings):
    at = [{rank: trap} for rank, trap in MOMENTS]
    attempts = ranks.attempts(
        ["run", *options(settings, **SMALL, shard="fsdp")],
        restarts=len(at),
        at=at,
        patience=0.1,
        main="sharded:command",
    )
    assert len(attempts) == len(at) + 1
    assert [rank["status"] for rank in attempts[-1]] == [0, 0], attempts[-1]
    assert "Traceback" not in str(attempts)
    assert result(settings["out"]) == result(whole)


def test_a_model_that_all_have_shards_of_is_run_whole_by_one(ranks, begun):
    """As benchmarks are, which one process asks."""
    run(ranks, [json.dumps({**begun, "shard": "fsdp"})], main="sharded:alone")


def test_states_of_a_training_without_shards_are_not_gone_on_with(ranks, settings):
    trap = {"where": "torch.optim:AdamW.step", "call": 3}
    arguments = ["warmup", *options(settings, **SMALL)]
    ranks(arguments, at=[{0: trap, 1: trap}])
    said = complaint(ranks([*arguments, "--shard", "fsdp"], main="sharded:command"))
    assert said.startswith(
        f"{settings['out']}/warmup.states/checkpoint-2: was saved without --shard fsdp; go on"
    )


def test_on_a_cpu_which_accelerate_does_not_shard_over_it_says_so(ranks, settings):
    said = complaint(ranks(["warmup", *options(settings, **SMALL, shard="fsdp")]))
    assert said == "shard fsdp: accelerate shards over GPUs only, and the device is cpu; leave --shard out"
