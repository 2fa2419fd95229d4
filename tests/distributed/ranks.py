"""Commands that several processes run together, as torchrun would start them, without its seconds of imports.

`python tests/distributed/ranks.py` is a server that has imported everything. For each job it forks an agent,
which serves the store, forks the ranks and starts them anew when one fails, as often as the job allows.
"""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

import clusterucb.runtime.processes
from cli_helpers import options
from forks import be_ready, child


def serve():
    """Run each line of standard input, a job as JSON; answer with how its ranks ended."""
    be_ready("torch.distributed", "torch.nn.parallel.distributed", "accelerate.data_loader")
    clusterucb.runtime.processes._FAREWELL = 0.5  # that the killed are waited for
    gc.freeze()  # or every training of every rank would look through all that is loaded
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            (torchrun if job["torchrun"] else agent)(job)
            os._exit(0)
        os.waitpid(pid, 0)
        print(Path(job["answer"]).read_text(), flush=True)


def agent(job):
    attempts = []
    for attempt in range(1 + job["restarts"]):
        attempts.append(attempted(job, attempt))
        if not any(rank["status"] for rank in attempts[-1]):
            break
    Path(job["answer"]).write_text(json.dumps(attempts))


def attempted(job, attempt):
    """One group of ranks, until all have ended; when one fails the others get a moment, and then SIGTERM."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(60))
    running, statuses, failed = {}, {}, None
    for rank in range(job["processes"]):
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment(job["processes"], rank, attempt, store.port))
            os._exit(ranked(job))
        running[pid] = rank
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = running.pop(pid)
            statuses[rank] = os.waitstatus_to_exitcode(status)
            failed = failed or (time.monotonic() if statuses[rank] else None)
            continue
        if failed and time.monotonic() - failed > job["patience"]:
            for pid in running:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)  # of use to one that was stopped
        time.sleep(0.02)
    return answers(job, statuses)


def environment(processes, rank, attempt, port):
    """What torchrun tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }


def ranked(job):
    """One rank's status, in the environment that an agent has made."""
    rank, attempt = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    os.environ.update(GLOO_SOCKET_IFNAME="lo", **job["environment"])
    at = job["at"][attempt].get(rank) if attempt < len(job["at"]) else None
    arguments = [argument.replace("{rank}", rank) for argument in job["arguments"]]
    return child({**job, "arguments": arguments, "log": f"{job['log']}.{rank}", "at": at})


def torchrun(job):
    """The same by torchrun's own agent, of which each attempt's ranks write their screens anew."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    warnings.simplefilter("ignore")
    logging.disable()
    processes = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": job["processes"], "start_method": "fork"}
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    again = {"max_restarts": job["restarts"], "run_id": str(os.getpid()), "monitor_interval": 0.1}

    def elastic():
        if status := ranked(job):
            os._exit(status)
        return 0

    try:
        statuses = elastic_launch(LaunchConfig(**processes, **meeting, **again), elastic)()
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
    Path(job["answer"]).write_text(json.dumps([answers(job, statuses)]))


def answers(job, statuses):
    said = [Path(f"{job['log']}.{rank}").read_text() for rank in range(job["processes"])]
    return [{"status": statuses.get(rank), "said": text} for rank, text in enumerate(said)]


class Ranks:
    """A server. Call it with a command; get the ranks of one attempt, as {status, said}."""

    def __init__(self, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        self.folder, pipes = folder, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def attempts(self, arguments, processes=2, restarts=0, at=(), patience=20.0, **more):
        """Each attempt's ranks, or torchrun's last's; in attempt i rank r meets the trap `at[i][r]`.

        more: `main`, "module:function" that is called with the arguments; `torchrun` in the place of our
            agent; variables of the environment. By these, ranks that hang end.
        """
        job = {
            "arguments": [str(argument) for argument in arguments],
            "processes": processes,
            "restarts": restarts,
            "at": [{str(rank): where for rank, where in traps.items()} for traps in at],
            "patience": patience,
            "main": more.pop("main", "clusterucb.cli.main:main"),
            "torchrun": more.pop("torchrun", False),
            "environment": {"CLUSTERUCB_TIMEOUT": "60", **more},
            "log": str(self.folder / "screen"),
            "answer": str(self.folder / "answer.json"),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, arguments, processes=2, **more):
        (ranks,) = self.attempts(arguments, processes, **more)
        return ranks

    def end(self, arguments, processes=2, **more):
        """What is on the screen when all have ended well, of which rank 0 alone speaks."""
        found = self(arguments, processes, **more)
        assert [rank["status"] for rank in found] == [0] * processes, found
        assert all(rank["said"] == "" for rank in found[1:]), found
        return found[0]["said"]

    def steps(self, commands, settings, out, processes=1, shard="none"):
        """Steps of a run, one after the other; `reselect` is a later selection, at the warmup checkpoint."""
        for command in commands.split():
            more = ["--checkpoint", out / "warmup"] if command == "reselect" else []
            step = command.removeprefix("re")
            self.end([step, *options(settings, out=out, shard=shard), *more], processes, main=MAIN[shard])


MAIN = {"none": "clusterucb.cli.main:main", "fsdp": "sharded:command"}
"""What runs a command, by its setting `shard`."""

SMALL = {"batch_tokens": 256, "micro_batch": 1, "save_steps": 2, "periods": 2}
"""Settings by which all processes have micro-batches, and a training is saved within a period."""


def complaint(found):
    """The one line that ranks leave, all of which end with status 2."""
    assert {rank["status"] for rank in found} == {2}, found
    said = "".join(rank["said"] for rank in found)
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("clusterucb: "))
    return line.removeprefix("clusterucb: ")


if __name__ == "__main__":
    serve()
