"""The real torchrun: it starts the processes, restarts them when one is killed, and the run ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import options, result


def torchrun(folder, arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [*command, "--max-restarts", "1", "-m", "clusterucb", *arguments],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def waited(condition, process):
    until = time.monotonic() + 300
    while not (found := condition()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


@pytest.mark.slow
def test_torchrun_restarts_the_group_when_a_worker_is_killed_and_the_run_ends(settings, tmp_path):
    out = Path(settings["out"])
    with torchrun(tmp_path, ["run", *options(settings, periods=1, micro_batch=1)]) as process:
        owner = waited(lambda: (out / "warmup").exists() and (out / ".owner").read_text(), process)
        os.kill(int(owner), signal.SIGKILL)
        status = process.wait(300)
    said = (tmp_path / "said.txt").read_text()
    assert status == 0, said
    assert said.count("Everything is in") == 1
    assert "adapter/adapter_model.safetensors" in result(out)
    assert len(list((out / "features").glob("done*.u8"))) == 2
