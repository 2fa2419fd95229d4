"""What ends one of several processes ends all of them, is told once, and costs nothing that was finished."""

import errno
import signal
from pathlib import Path

import pytest
from ranks import MAIN, SMALL, complaint

from cli_helpers import options, read, result
from clusterucb.run.directory import RunDir

KILLED = -signal.SIGKILL
ROW_GRADIENTS = "clusterucb.gradients.featurizer:row_gradients"
SCORED = "clusterucb.features.scores:ScoreLog.add"

MOMENTS = {  # by `shard`: the rank that dies, the newest artifact there is then, and where it dies
    "none": [
        (1, "initial", {"where": "torch.optim:AdamW.step", "call": 2}),
        (1, "warmup", {"where": ROW_GRADIENTS, "call": 4}),
        (0, "warmup", {"where": "os:pwrite", "call": 40, "torn": True}),
        (1, "features", {"where": "clusterucb.features.kmeans:_Rows.assign", "call": 2}),
        (1, "rounds/1", {"where": "torch:save", "path": "rng_state_1.pth"}),
        (1, "rounds/1", {"where": SCORED, "call": 2}),
        (0, "rounds/1", {"where": SCORED, "call": 1}),
        (1, "rounds/2", {"where": "torch.optim:AdamW.step", "call": 2}),
        (0, "adapter", {"where": "clusterucb.evaluation.loss:row_losses", "call": 2}),
    ],
    "fsdp": [
        (1, "warmup", {"where": ROW_GRADIENTS, "call": 4}),
        (1, "rounds/1", {"where": "torch:save", "path": "rng_state_1.pth"}),
        (0, "rounds/1", {"where": SCORED, "call": 3}),
        (0, "rounds/2", {"where": "torch.optim:AdamW.step", "call": 2}),
    ],
}


@pytest.mark.parametrize("shard", MOMENTS)
def test_a_rank_killed_in_every_step_the_group_restarts_and_ends_the_same(
    ranks, shared_settings, tmp_path, shard
):
    settings, main = {**shared_settings, **SMALL, "shard": shard}, MAIN[shard]
    whole, out, moments = tmp_path / "whole", tmp_path / "cut", MOMENTS[shard]
    assert "Everything is in" in ranks.end(["run", *options(settings, out=whole)], main=main)
    assert read(whole / "summary.json")["selected"][1]["selected"] == 10
    assert (whole / "report.html").exists()
    attempts = ranks.attempts(
        ["run", *options(settings, out=out)],
        restarts=len(moments),
        at=[{rank: trap} for rank, _, trap in moments],
        patience=0.1,
        main=main,
    )
    assert len(attempts) == len(moments) + 1
    for (rank, there, trap), found in zip(moments, attempts, strict=False):
        assert (out / there).exists()
        assert found[rank]["status"] == KILLED, (trap, found)
        assert found[1 - rank]["status"] != 0
    assert "Traceback" not in str(attempts)
    assert [rank["status"] for rank in attempts[-1]] == [0, 0], attempts[-1]
    assert result(out) == result(whole)
    assert len([name for name in result(out) if name.startswith("rounds/")]) == 2 * 4
    assert not list(tmp_path.rglob("*.part"))


def test_torchrun_restarts_the_group_when_a_rank_is_killed_and_the_run_ends(ranks, settings):
    at = [{1: {"where": ROW_GRADIENTS, "call": 4}}]
    said = ranks.end(["run", *options(settings, **SMALL)], restarts=1, at=at, torchrun=True)
    assert "Everything is in" in said
    assert "warm up" not in said  # that was finished
    assert len(list((Path(settings["out"]) / "features").glob("done*.u8"))) == 2


def test_under_torchrun_a_mistake_is_told_once_too(ranks, settings):
    found = ranks(["run", *options(settings, **{**SMALL, "k": 1000})], torchrun=True)
    said = "".join(rank["said"] for rank in found)
    assert said.count("clusterucb: ") == said.count("clusterucb: k is 1000, but") == 1
    assert 2 in [rank["status"] for rank in found]


@pytest.mark.parametrize(
    ("step", "where", "call"), [("gradients", ROW_GRADIENTS, 6), ("train", "torch.optim:AdamW.step", 5)]
)
def test_a_rank_that_hangs_is_named_with_its_step_when_the_time_is_up(ranks, settings, step, where, call):
    trap = {"where": where, "call": call, "signal_number": signal.SIGSTOP}
    first, second = ranks(
        ["run", *options(settings, **SMALL)], at=[{1: trap}], patience=0.1, CLUSTERUCB_TIMEOUT="3"
    )
    assert second["status"] == -signal.SIGTERM
    assert complaint([first]) == (
        f"{step}: rank 1 of 2 does not answer: it has ended, or it has hung for 3 s (CLUSTERUCB_TIMEOUT); "
        "what was finished is kept: run the same command again"
    )


def test_a_file_that_one_rank_does_not_find_ends_all_with_one_line(ranks, settings, tmp_path):
    (tmp_path / "0.jsonl").write_bytes(Path(settings["target"][0]).read_bytes())
    changes = {**SMALL, "target": [str(tmp_path / "{rank}.jsonl")]}
    line = complaint(ranks(["run", *options(settings, **changes)], processes=4))
    assert line.startswith(f"{tmp_path}/")
    assert "0.jsonl" not in line


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"k": 1000}, {}, "k is 1000, but"),
        ({"batch_size": 3}, {}, "batch_size 3 is not a multiple of 2 processes; change one of the two"),
        ({"device": "cuda:1"}, {}, "device cuda:1: 2 processes would share it; with --device cuda each"),
        ({"shard": "fsdp"}, {}, "shard fsdp: accelerate shards over GPUs only, and the device is cpu; leave"),
        ({}, {"CLUSTERUCB_TIMEOUT": "soon"}, "CLUSTERUCB_TIMEOUT=soon: expected a number of seconds above 0"),
        (
            {},
            {"ACCELERATE_USE_FSDP": "true"},
            "FSDP, in accelerate's configuration: the command shards the model itself, if it is told to; "
            "start with torchrun or `accelerate launch --multi_gpu`, and with --shard fsdp if",
        ),
        (
            {},
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "DEEPSPEED, in accelerate's configuration: no row has a gradient of its own under it; start",
        ),
        (
            {},
            {"at": [{1: {"where": "os:pwrite", "call": 20, "error": errno.ENOSPC}}]},
            "{out}/features: No space left on device; what was finished is kept: make room and run "
            "the same command again",
        ),
    ],
)
def test_what_cannot_be_ends_all_with_one_line(ranks, settings, changes, more, said):
    found = ranks(["run", *options(settings, **{**SMALL, **changes})], **more)
    assert complaint(found).startswith(said.replace("{out}", settings["out"]))


def test_a_directory_in_use_ends_all_with_one_line(ranks, settings):
    with RunDir(settings["out"]).owned():
        line = complaint(ranks(["run", *options(settings, **SMALL)]))
    assert "in use by process" in line
    assert not (Path(settings["out"]) / "config.yaml").exists()


def test_states_of_a_training_without_shards_are_not_gone_on_with(ranks, settings):
    trap = {"where": "torch.optim:AdamW.step", "call": 3}
    arguments = ["warmup", *options(settings, **SMALL)]
    ranks(arguments, at=[{0: trap, 1: trap}])
    said = complaint(ranks([*arguments, "--shard", "fsdp"], main=MAIN["fsdp"]))
    assert said.startswith(
        f"{settings['out']}/warmup.states/checkpoint-2: was saved without --shard fsdp; go on"
    )


def test_an_unknown_option_is_told_once(ranks, settings):
    first, second = ranks(["run", *options(settings), "--nothing", "3"])
    assert (first["status"], second["status"]) == (2, 2)
    assert "--nothing" in first["said"]
    assert second["said"] == ""


def test_what_one_process_does_rank_0_does(ranks, settings):
    """plan, which measures and writes nothing, and a report of nothing."""
    first, second = ranks(["report", settings["out"]])
    assert complaint([first]).startswith(settings["out"])
    assert (second["status"], second["said"]) == (0, "")
    said = ranks.end(["plan", *options(settings), "--tokens-per-second", "100", "--json"])
    assert "pool_gradients" in said


def test_two_processes_make_a_comparison(ranks, settings):
    one = ["--methods", "clusterucb,dynamic,random", "--seeds", "1"]
    ranks.end(["compare", *options({**settings, **SMALL}, features=None), *one])
    table = read(Path(settings["out"]) / "comparison.json")
    failed = {name: row["failed"] for name, row in table["methods"].items()}
    assert failed == {"clusterucb": 0, "dynamic": 0, "random": 0}
