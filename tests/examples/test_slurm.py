"""The Slurm script, run with stand-ins for Slurm's commands and torchrun: what it starts, and on a signal."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import typer

from clusterucb.cli.main import application

SCRIPT = Path(__file__).parents[2] / "examples/slurm.sbatch"
STAND_INS = {
    "scontrol": '[ "$1" = show ] && printf "node-a\\nnode-b\\n"; echo "$@" >> "$CALLS/scontrol"',
    "srun": 'echo "$1 $SRUN_CPUS_PER_TASK" >> "$CALLS/srun"; shift; exec "$@"',
    "torchrun": 'printf "%s\\n" "$@" > "$CALLS/torchrun"; sleep "$SECONDS_OF_WORK"; exit "$STATUS"',
}
JOB = {
    "SLURM_JOB_ID": "43210",
    "SLURM_JOB_NODELIST": "node-[a-b]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "16",
}


@pytest.fixture
def job(tmp_path):
    """Starts the script; its calls are files in the folder `calls`."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    calls.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"

    def start(*arguments, work=0, status=0):
        given = {"CALLS": str(calls), "SECONDS_OF_WORK": str(work), "STATUS": str(status), "PATH": path}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        return calls, subprocess.Popen(["bash", SCRIPT, *arguments], env={**JOB, **given}, **pipes)

    return start


@pytest.mark.parametrize("status", [0, 2])
def test_torchrun_starts_the_run_on_every_gpu_of_every_node(job, status):
    from torch.distributed.run import get_args_parser

    calls, started = job("run.yaml", "--out", "runs/a b", status=status)
    _, complaint = started.communicate(timeout=60)
    assert (started.returncode, complaint) == (status, "")
    given = get_args_parser().parse_args((calls / "torchrun").read_text().splitlines())
    assert (given.nnodes, given.nproc_per_node) == ("2", "4")
    assert (given.rdzv_backend, given.rdzv_id, given.rdzv_endpoint) == ("c10d", "43210", "node-a:23210")
    assert (given.module, given.training_script) == (True, "clusterucb")
    assert given.training_script_args == ["run", "run.yaml", "--out", "runs/a b"]
    assert (calls / "srun").read_text() == "--kill-on-bad-exit=1 16\n"
    assert (calls / "scontrol").read_text() == "show hostnames node-[a-b]\n"


def test_what_it_starts_is_a_command_with_these_options():
    run = typer.main.get_command(application()).commands["run"]
    assert {"config", "out"} <= {parameter.name for parameter in run.params}


def test_near_its_end_it_asks_for_another_turn(job):
    calls, started = job("run.yaml", work=1)
    while not (calls / "torchrun").exists():
        time.sleep(0.05)
    time.sleep(0.2)  # it waits by now
    started.send_signal(signal.SIGUSR1)
    started.communicate(timeout=60)
    assert (calls / "scontrol").read_text().splitlines()[-1] == "requeue 43210"


def test_without_settings_it_says_so(job):
    _, started = job()
    assert "which settings?" in started.communicate(timeout=60)[1]
    assert started.returncode != 0
