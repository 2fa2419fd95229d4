"""What ends one of several processes ends all of them, is told once, and costs nothing that was finished."""

import errno
import signal
from pathlib import Path

import pytest

from cli_helpers import options, result
from clusterucb.run.directory import RunDir

FAST = {"batch_tokens": 256, "micro_batch": 1, "save_steps": 2, "periods": 2}
KILLED = -signal.SIGKILL

MOMENTS = [  # the rank that dies, the newest artifact there is then, and where it dies
    (1, "initial", {"where": "torch.optim:AdamW.step", "call": 2}),
    (1, "warmup", {"where": "clusterucb.gradients.featurizer:row_gradients", "call": 4}),
    (0, "warmup", {"where": "os:pwrite", "call": 40, "torn": True}),
    (1, "features", {"where": "clusterucb.features.kmeans:_Rows.assign", "call": 2}),
    (1, "rounds/1", {"where": "torch:save", "path": "rng_state_1.pth"}),
    (1, "rounds/1", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 2}),
    (0, "rounds/1", {"where": "clusterucb.features.influence:ScoreLog.add", "call": 3}),
    (1, "rounds/2", {"where": "torch.optim:AdamW.step", "call": 2}),
    (0, "adapter", {"where": "clusterucb.evaluation.loss:row_losses", "call": 2}),
]


@pytest.mark.slow
def test_a_rank_killed_in_every_step_the_group_restarts_and_ends_the_same(ranks, settings, tmp_path):
    whole = ranks(["run", *options(settings, **FAST, out=tmp_path / "whole")])
    assert [rank["status"] for rank in whole] == [0, 0], whole
    out = Path(settings["out"])
    at = [{rank: trap} for rank, _, trap in MOMENTS]
    attempts = ranks.attempts(["run", *options(settings, **FAST)], restarts=len(at), at=at, patience=0.1)
    assert len(attempts) == len(MOMENTS) + 1
    for (rank, there, trap), found in zip(MOMENTS, attempts, strict=False):
        assert (out / there).exists()
        assert found[rank]["status"] == KILLED, (trap, found)
        assert found[1 - rank]["status"] != 0
        assert "Traceback" not in found[1 - rank]["said"], (trap, found)
    assert [rank["status"] for rank in attempts[-1]] == [0, 0], attempts[-1]
    assert result(out) == result(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


def ended(found):
    """The one line that the ranks leave, all of which end with status 2."""
    assert [rank["status"] for rank in found] == [2] * len(found), found
    said = [line for rank in found for line in rank["said"].splitlines() if line.startswith("clusterucb: ")]
    assert len(said) == 1, found
    assert "Traceback" not in str(found)
    return said[0].removeprefix("clusterucb: ")


@pytest.mark.slow
def test_torchrun_restarts_the_group_when_a_rank_is_killed_and_the_run_ends(ranks, settings):
    traps = [{1: {"where": "clusterucb.gradients.featurizer:row_gradients", "call": 4}}]
    found = ranks(["run", *options(settings, **FAST)], restarts=1, at=traps, torchrun=True)
    assert [rank["status"] for rank in found] == [0, 0], found
    assert "Everything is in" in found[0]["said"]
    assert "warm up" not in found[0]["said"]  # that was finished
    assert found[1]["said"] == ""
    assert len(list((Path(settings["out"]) / "features").glob("done*.u8"))) == 2


def test_under_torchrun_a_mistake_is_told_once_too(ranks, settings):
    found = ranks(["run", *options(settings, **{**FAST, "k": 1000})], torchrun=True)
    said = "".join(rank["said"] for rank in found)
    assert said.count("clusterucb: ") == 1
    assert "clusterucb: k is 1000, but" in said
    assert 2 in [rank["status"] for rank in found]


@pytest.mark.parametrize(
    ("step", "command", "where", "call"),
    [
        ("gradients", "run", "clusterucb.gradients.featurizer:row_gradients", 6),
        ("train", "run", "torch.optim:AdamW.step", 5),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_step_when_the_time_is_up(
    ranks, settings, step, command, where, call
):
    trap = {"where": where, "call": call, "signal_number": signal.SIGSTOP}
    first, second = ranks(
        [command, *options(settings, **FAST)], at=[{1: trap}], patience=0.1, CLUSTERUCB_TIMEOUT="8"
    )
    assert second["status"] == -signal.SIGTERM
    assert ended([first]) == (
        f"{step}: rank 1 of 2 does not answer: it has ended, or it has hung for 8 s (CLUSTERUCB_TIMEOUT); "
        "what was finished is kept: run the same command again"
    )


def test_a_disk_that_is_full_for_one_rank_ends_all_with_one_line(ranks, settings):
    trap = {"where": "os:pwrite", "call": 20, "error": errno.ENOSPC}
    line = ended(ranks(["run", *options(settings, **FAST)], at=[{1: trap}]))
    assert line == (
        f"{settings['out']}/features: No space left on device; what was finished is kept: make room and run "
        "the same command again"
    )


def test_a_file_that_one_rank_does_not_find_ends_all_with_one_line(ranks, settings, tmp_path):
    target = tmp_path / "0.jsonl"
    target.write_bytes(Path(settings["target"][0]).read_bytes())
    changes = {**FAST, "target": [str(tmp_path / "{rank}.jsonl")]}
    line = ended(ranks(["run", *options(settings, **changes)], processes=4))
    assert line.startswith(f"{tmp_path}/")
    assert "0.jsonl" not in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 1000}, "k is 1000, but"),
        (
            {"batch_size": 3},
            "batch_size 3 is not a multiple of micro_batch 1 x 2 processes; change one of the",
        ),
        (
            {"device": "cuda:1"},
            "device cuda:1: 2 processes would share it; with --device cuda each takes its own",
        ),
    ],
)
def test_settings_that_cannot_be_end_all_with_one_line(ranks, settings, changes, said):
    assert ended(ranks(["run", *options(settings, **{**FAST, **changes})])).startswith(said)


def test_a_directory_in_use_ends_all_with_one_line(ranks, settings):
    with RunDir(settings["out"]).owned():
        line = ended(ranks(["run", *options(settings, **FAST)]))
    assert "in use by process" in line
    assert not (Path(settings["out"]) / "config.yaml").exists()


def test_a_time_limit_that_is_no_number_ends_all_with_one_line(ranks, settings):
    line = ended(ranks(["run", *options(settings, **FAST)], CLUSTERUCB_TIMEOUT="soon"))
    assert line == "CLUSTERUCB_TIMEOUT=soon: expected a number of seconds above 0"


def test_an_unknown_option_is_told_once(ranks, settings):
    first, second = ranks(["run", *options(settings), "--nothing", "3"])
    assert (first["status"], second["status"]) == (2, 2)
    assert "--nothing" in first["said"]
    assert second["said"] == ""


def test_what_one_process_does_rank_0_does(ranks, settings):
    """plan, which measures and writes nothing, and a report of nothing."""
    first, second = ranks(["report", settings["out"]])
    assert ended([first]).startswith(settings["out"])
    assert (second["status"], second["said"]) == (0, "")
    first, second = ranks(["plan", *options(settings), "--tokens-per-second", "100", "--json"])
    assert (first["status"], second["status"]) == (0, 0)
    assert "pool_gradients" in first["said"]
    assert second["said"] == ""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("FSDP", "the command shards the model itself, if it is told to"),
        ("DEEPSPEED", "no row has a gradient of its own under it"),
    ],
)
def test_a_model_that_accelerate_is_to_split_is_refused(ranks, settings, kind, reason):
    variable = {f"ACCELERATE_USE_{kind}": "true"}
    first, second = ranks(["run", *options(settings, **FAST)], **variable)
    assert ended([first, second]) == (
        f"{kind}, in accelerate's configuration: {reason}; start with torchrun or `accelerate launch "
        "--multi_gpu`, and with --shard fsdp if the model is too large for one GPU"
    )
