"""Processes to look for, and one in which the system's protections are missing."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import clusterucb

SOURCE = Path(clusterucb.__file__).parents[1]


def processes_in(folder):
    """Ids of the processes that work below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or not ours
            continue
    return found


def wait_until(condition, seconds=10.0):
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


@contextmanager
def started(code, temporary):
    """A Python process that can import this package, its temporary files in a new folder; dead at the end."""
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(temporary)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


UNPROTECTED = """
import os, struct
from clusterucb.evaluation.sandbox import child

libc = child._libc()
column, _ = child.MACHINES[os.uname().machine]
calls = [("landlock_create_ruleset:444:444", 38), ("prctl:157:167", 1), ("capset:126:91", 1)]
load, allow = struct.pack("HBBI", 0x20, 0, 0, 0), struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
filtered = [load, *(part for call, error in calls for part in child.deny(call, column, error)), allow]
libc.prctl(*child._longs(38, 1, 0, 0, 0))
assert child.install_filter(libc, filtered)
"""
"""Beginning of a program that makes its process one on a kernel without Landlock and seccomp."""
