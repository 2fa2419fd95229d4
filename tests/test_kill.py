"""Killed or interrupted at any moment, the same command goes on and ends with the same result, bit for bit.

A command that is to die runs in a child of a server: one process that has imported everything and forks
for each command, as a fresh process takes seconds to import. `python tests/test_kill.py` is that server.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import options

KILLED = -signal.SIGKILL


def serve():
    """Run each line of standard input, a command as JSON, in a child; answer with how it ended."""
    import importlib

    import clusterucb.cli
    import clusterucb.quiet

    for module in (
        *("clusterucb.recipes", "clusterucb.report.summary", "clusterucb.session", "accelerate"),
        *("transformers.models.llama.modeling_llama", "peft.tuners.lora.model", "transformers.trainer"),
    ):
        importlib.import_module(module)
    clusterucb.quiet.quiet_libraries()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(job)
            finally:
                os._exit(code)
        if job.get("after") is not None:
            time.sleep(job["after"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        took = time.monotonic() - started
        said = Path(job["log"]).read_text() if Path(job["log"]).exists() else ""
        print(json.dumps({"status": status, "said": said, "took": took}), flush=True)


def child(job):
    """One command, with its screen in a file; it signals itself where the job says."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if job.get("at"):
        trap(**job["at"])
    try:
        from clusterucb.cli import main

        main(job["arguments"])
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def trap(where, call=1, when="before", signal_number=signal.SIGKILL, path=None, torn=False):
    """Signal this process before or after a call of the function at `where`, "module:Name.method".

    path: only calls whose first path-like argument ends so are counted.
    torn: a file that is being written is left with half of what it is to hold.
    """
    import importlib

    module, _, name = where.partition(":")
    owner = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def trapped(*args, **kwargs):
        nonlocal calls
        named = [str(a) for a in (*args, *kwargs.values()) if isinstance(a, (str, Path))]
        if path is None or any(n.endswith(path) for n in named):
            calls += 1
        else:
            return real(*args, **kwargs)
        if calls == call and when == "before":
            if torn:
                data = bytes(args[1])
                os.write(args[0], data[: len(data) // 2])
            os.kill(os.getpid(), signal_number)
        returned = real(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal_number)
        return returned

    setattr(owner, last, trapped)


class Server:
    def __init__(self, log):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, arguments, **job):
        job = {"arguments": arguments, "log": str(self.log), **job}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "screen.txt")
    with server.process:
        yield server
        server.process.stdin.close()


@pytest.fixture
def arguments(settings):
    """Saves within a period, and flushes after every batch of gradients."""
    return ["run", *options(settings, save_steps=2, batch_tokens=512)]


@pytest.fixture(scope="module")
def uninterrupted(server, shared_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = server(["run", *options(shared_settings, out=out, save_steps=2, batch_tokens=512)])
    assert ended["status"] == 0, ended["said"]
    return result(out)


def result(out):
    from test_run import result

    return result(out)


def finish(server, arguments, out, uninterrupted):
    ended = server(arguments)
    assert ended["status"] == 0, ended["said"]
    assert result(out) == uninterrupted
    assert [path for path in Path(out).rglob("*.part")] == []
    assert not (Path(out) / "training").exists()
    assert not (Path(out) / "warmup.states").exists()


MOMENTS = {
    "before anything is written": {"where": "clusterucb.data.tokens:Tokens.write"},
    "while tokens are written": {"where": "clusterucb.session:encode", "call": 50},
    "before the initial adapter is published": {"where": "clusterucb.session:save_adapter", "when": "after"},
    "in a step of the warm-up": {"where": "torch.optim:AdamW.step", "call": 2},
    "while a checkpoint of the warm-up is written": {"where": "torch:save", "call": 2, "path": "scheduler.pt"},
    "while the warmup checkpoint is written": {"where": "clusterucb.steps:save_moments"},
    "before the trainer's states are dropped": {"where": "clusterucb.steps:shutil.rmtree"},
    "while a feature is stored": {"where": "os:pwrite", "call": 70, "torn": True},
    "between the features and their flags": {"where": "os:fsync", "call": 20},
    "in a batch of gradients": {"where": "clusterucb.gradients.features:row_gradients", "call": 6},
    "before the store is whole": {"where": "clusterucb.gradients.store:FeatureWriter.finish"},
    "in k-means": {"where": "clusterucb.clustering.kmeans:Clusters.save"},
    "while the first selection is written": {"where": "clusterucb.data.pool:Pool.write"},
    "in a training step within a period": {"where": "torch.optim:AdamW.step", "call": 3 + 5},
    "while a checkpoint of the training is written": {"where": "torch:save", "call": 8},
    "before a checkpoint counts as whole": {
        "where": "pathlib:Path.replace",
        "path": "training/checkpoint-6/whole.json",
    },
    "after a checkpoint counts as whole": {
        "where": "pathlib:Path.replace",
        "path": "training/checkpoint-3/whole.json",
        "when": "after",
    },
    "while old checkpoints are dropped": {"where": "transformers.trainer:rotate_checkpoints", "call": 4},
    "in the directions of a re-selection": {"where": "clusterucb.reselection:target_directions"},
    "in a draw of a re-selection": {"where": "clusterucb.gradients.influence:ScoreLog.add", "call": 3},
    "while a re-selection is written": {"where": "clusterucb.data.pool:Pool.write", "call": 3},
    "between a re-selection and its training": {
        "where": "pathlib:Path.replace",
        "path": "rounds/2",
        "when": "after",
    },
    "while the adapter is written": {"where": "clusterucb.steps:save_moments", "call": 2},
    "after the adapter is published": {"where": "pathlib:Path.replace", "path": "run/adapter", "when": "after"},
    "in the evaluation": {"where": "clusterucb.evaluation.loss:row_losses", "call": 2},
    "before the summary is published": {"where": "pathlib:Path.replace", "path": "run/summary.json"},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_ends_the_same(server, arguments, settings, uninterrupted, moment):
    killed = server(arguments, at=MOMENTS[moment])
    assert killed["status"] == KILLED, killed
    finish(server, arguments, settings["out"], uninterrupted)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_publication_it_ends_the_same(server, arguments, settings, uninterrupted, when):
    """Each attempt renames one file or folder and dies after it, or just before the next."""
    at = {"where": "pathlib:Path.replace", "call": 1 if when == "after" else 2, "when": when}
    for _ in range(60):
        ended = server(arguments, at=at)
        if ended["status"] == 0:
            break
        assert ended["status"] == KILLED, ended["said"]
    assert result(settings["out"]) == uninterrupted


def test_killed_at_random_times_it_ends_the_same(server, arguments, settings, uninterrupted):
    clock = random.Random(7)
    for _ in range(4):
        server(arguments, after=clock.uniform(0.1, 1.2))
    finish(server, arguments, settings["out"], uninterrupted)


if __name__ == "__main__":
    serve()
