"""Commands that die where a test wants it: each runs in a child of a server, which has imported everything.

A fresh process takes seconds to import what a command needs. `python tests/forks.py` is the server.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

KILLED = -signal.SIGKILL


def be_ready(*more):
    """Import all that a command needs, and `more`, and say so: what is forked then has it."""
    import clusterucb.cli.main
    import clusterucb.features.store

    for module in (
        *("bm25s", "clusterucb.recipes", "clusterucb.cli.tables", "clusterucb.studies.compare.compare"),
        *("accelerate", "transformers.models.llama.modeling_llama", "peft.tuners.lora.model"),
        *("transformers.trainer", *more),
    ):
        importlib.import_module(module)
    clusterucb.cli.main.quiet_libraries()
    clusterucb.features.store.FLUSH_SECONDS = 0  # so that a kill finds rows that are done
    gc.collect()
    gc.freeze()  # or every training would look through all that is loaded
    print("ready", flush=True)


def serve():
    """Run each line of standard input, a command as JSON, in a child; answer with how it ended."""
    be_ready()
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
        module, _, name = job.get("main", "clusterucb.cli.main:main").partition(":")
        getattr(importlib.import_module(module), name)(job["arguments"])
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the test is to see it
        import traceback

        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def trap(
    where,
    call=1,
    when="before",
    signal_number=signal.SIGKILL,
    path=None,
    new=False,
    torn=False,
    error=None,
):
    """Signal this process before or after a call of the function at `where`, "module:Name.method".

    where: one of a library, that a command cannot do without, rather than one of ours.
    path: only calls whose first path-like argument ends so are counted.
    new: only those of them that make a path which is not there yet, not inside of something unfinished.
    torn: a file that is being written is left with half of what it is to hold.
    error: raise what the system says by this number instead.
    """
    module, _, name = where.partition(":")
    owner = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def trapped(*args, **kwargs):
        nonlocal calls
        named = [str(a) for a in (*args, *kwargs.values()) if isinstance(a, (str, Path))]
        if path and not any(n.endswith(path) for n in named):
            return real(*args, **kwargs)
        if new and (Path(named[-1]).exists() or ".part" in named[-1]):
            return real(*args, **kwargs)
        calls += 1
        if calls == call and when == "before":
            if error:
                raise OSError(error, os.strerror(error))
            if torn:
                data = bytes(args[1])
                real(args[0], data[: len(data) // 2], *args[2:])  # where the whole of it belongs
            os.kill(os.getpid(), signal_number)
        returned = real(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal_number)
        return returned

    setattr(owner, last, trapped)


FORWARD = "transformers.models.llama.modeling_llama:LlamaModel.forward"
"""The model's pass over a batch, for whatever purpose."""
LOOKS = 3
"""Such passes by which a model is looked at when it is loaded, for what no text reaches, and for its rows."""


def publication(path, when="before"):
    """Where the file or folder of this end of a name gets its own name."""
    return {"where": "pathlib:Path.replace", "path": f"{path}.part", "when": when}


def tensors(path, library="torch"):
    """Where a file of tensors of this end of a name is written."""
    return {"where": f"safetensors.{library}:serialize_file", "path": path}


class Server:
    """Call it with a command, and a job's `at` or `after`; get {status, said, took}."""

    def __init__(self, log):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, arguments, **job):
        job = {"arguments": [str(argument) for argument in arguments], "log": str(self.log), **job}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def dies(self, arguments, at, moment=None):
        """A command that is killed there."""
        ended = self(arguments, at=at)
        assert ended["status"] == KILLED, (moment, at, ended)

    def ends(self, arguments):
        """A command that ends well."""
        ended = self(arguments)
        assert ended["status"] == 0, ended["said"]


if __name__ == "__main__":
    serve()
