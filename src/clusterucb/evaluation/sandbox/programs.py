"""Run programs that a language model wrote, without trusting them.

Each program gets a process of its own (child.py), with only the standard library, an empty environment, an
empty working directory that is deleted afterwards, and limits on time, memory and disk. On Linux it can also
neither read nor write other files, nor start processes, nor use the network. `protections` says what this
system prevents. Knows programs, not the task that they solve.

A program passes when its last statement was reached: only then does the child send a random token back. Exit
status and output count for nothing. Program and tests share one interpreter, so a program that searches the
interpreter's memory for the token, or answers every comparison with True, can pass without solving anything.
"""

from __future__ import annotations

import io
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

from clusterucb.errors import ConfigError, StorageError

_SUPPORTED = os.name == "posix"
_CHILD = Path(__file__).with_name("child.py")
_POLL_SECONDS = 0.02
_LONGEST_ANSWER = 8192
_LONGEST_REASON = 200
_BLOCK = 512
"""Bytes in a unit of st_blocks."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0
    """Wall time, the start of Python included."""
    cpu_seconds: int = 10
    """CPU time of all its threads."""
    memory_bytes: int = 1 << 30
    """Address space: what is reserved counts, not only what is touched."""
    file_bytes: int = 16 << 20
    """The largest file."""
    disk_bytes: int = 64 << 20
    """All files together; on Linux all that is ever written, deleted or not, but not what is printed."""
    files: int = 1000
    """Files and folders."""
    open_files: int = 64
    threads: int = 64
    """Counted on Linux only."""


_DEFAULT = Limits()


@dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end, and one line that says why not."""

    passed: bool
    reason: str


@cache
def protections() -> Mapping[str, str]:
    """What prevents a program here from using each thing, "none" where nothing does.

    network     other machines, and other programs on this one
    files       everything but Python's library (read only) and its own working directory
    processes   starting processes, and signals to others
    limits      CPU time, size of a file, open files
    memory      address space

    Raises:
        ConfigError: on Windows.
    """
    in_force, _ = _run("pass", Limits(seconds=60.0), threading.Event())
    return in_force


def run_programs(programs: Iterable[str], limits: Limits = _DEFAULT) -> list[Verdict]:
    """The verdicts on whole texts, definitions, tests and the call of the tests, run one a CPU at a time.

    When this process is interrupted or killed, the programs end with it; only one that is killed leaves the
    working directories behind.

    Raises:
        ConfigError: on Windows.
        StorageError: there is no room for temporary files.
    """
    stop = threading.Event()
    # Only the main thread is interrupted, at any point: so none of it owns a process or a folder.
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        futures = [pool.submit(_run, program, limits, stop) for program in programs]
        _wait(futures)
        return [future.result()[1] for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _wait(futures: Sequence[Future[Any]]) -> None:
    """Until all have ended or one has failed, in short waits: Python acts on an interrupt between them.

    One that comes just before a wait without end, or that another thread receives, would wait for its end.
    """
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
        for future in ended:
            future.result()


def _run(program: str, limits: Limits, stop: threading.Event) -> tuple[dict[str, str], Verdict]:
    """What was in force while it ran, and the verdict."""
    if not _SUPPORTED:
        raise ConfigError(
            f"generated programs cannot be run safely on {sys.platform}; use Linux, macOS or Windows' WSL"
        )
    token = secrets.token_hex(16).encode()
    with (
        _working_folder() as folder,
        _request(program, limits, token) as request,
        _child(request, folder) as (process, channel),
    ):
        request.close()  # the program has not started, and shall not find it through us
        answer, stopped = _watch(process, channel, folder, limits, stop)
    first, ready, rest = answer.partition(b"\n")
    if ready:
        in_force = dict(field.split("=") for field in first.decode().split("\t"))
        return in_force, _verdict(rest, token, stopped, process.returncode)
    if stopped:
        return {}, Verdict(False, stopped)
    raise RuntimeError(f"{_CHILD.name}: ended with {process.returncode} before the program: {answer!r}")


def _request(program: str, limits: Limits, token: bytes) -> IO[bytes]:
    """What the child reads, as a file without a name: writing to a pipe could block."""
    settings = {**asdict(limits), "parent": os.getpid()}
    header = "\t".join(f"{name}={value}" for name, value in settings.items()).encode()
    with _storage_errors():
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        file.write(b"\n".join((header, token, program.encode("utf-8", "surrogatepass"))))
        file.flush()
        file.seek(0)
    return file


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the folder for temporary files: {error}; make room, or set TMPDIR") from error


@contextmanager
def _child(request: IO[bytes], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The started process and the pipe it answers through; dead at the end, with all of its group."""
    # Some builds of Python find their own library by it; the child removes it before the program runs.
    library = {name: path for name, path in os.environ.items() if name == "LD_LIBRARY_PATH"}
    channel, end = os.pipe()
    with io.FileIO(channel):
        with io.FileIO(end, "w"):
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", "-X", "utf8", str(_CHILD), str(end)],
                stdin=request,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={
                    **library,
                    "PYTHONHASHSEED": "0",
                },  # one order of sets: a program has one verdict
                pass_fds=[end],
                start_new_session=True,
            )
        try:
            yield process, channel
        finally:
            with suppress(ProcessLookupError, PermissionError):  # macOS forbids it where all are dead
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], channel: int, folder: Path, limits: Limits, stop: threading.Event
) -> tuple[bytes, str]:
    """What the child answered, and why it was stopped, "" where it ended by itself."""
    deadline = time.monotonic() + limits.seconds
    answer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while len(answer) < _LONGEST_ANSWER:
            if selector.select(_POLL_SECONDS):
                part = os.read(channel, _LONGEST_ANSWER)
                if not part:
                    return answer, _ended(process)
                answer += part
            if stop.is_set():
                return answer, "interrupted"
            if time.monotonic() > deadline:
                return answer, "timed out"
            if excess := _excess(process.pid, folder, limits):
                return answer, excess
    return answer, "failed: it wrote to the sandbox's channel"


def _ended(process: subprocess.Popen[bytes]) -> str:
    """Wait for a child that closed the pipe: ending does that, but a program can do it too."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "failed: it closed the sandbox's channel"
    return ""


def _verdict(answer: bytes, token: bytes, stopped: str, status: int) -> Verdict:
    if stopped:
        return Verdict(False, stopped)
    if secrets.compare_digest(answer, token):
        return Verdict(True, "passed")
    told = answer.decode("utf-8", "replace")
    if told == "MemoryError":
        return Verdict(False, "out of memory")
    if told:
        early = told.startswith("SystemExit")
        return Verdict(False, _line(f"ended early ({told})" if early else f"failed: {told}"))
    if status == -signal.SIGXCPU:
        return Verdict(False, "timed out")
    return Verdict(False, f"killed by signal {-status}" if status < 0 else f"ended early (status {status})")


def _line(text: str) -> str:
    """One short line without a control character: the text is the model's."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_LONGEST_REASON])
    return plain if len(plain) < _LONGEST_REASON else plain[: _LONGEST_REASON - 1] + "…"


# ---------------------------------------------------------------- what the kernel's limits do not bound


def _excess(pid: int, folder: Path, limits: Limits) -> str:
    """What a running program has too much of, "" for nothing."""
    files, size = _usage(folder, limits)
    threads = 0
    if sys.platform == "linux":
        with suppress(OSError):  # it has just ended, or the system does not tell
            threads = Path(f"/proc/{pid}/task").stat().st_nlink - 2  # less . and ..
            size = max(size, _written(pid))
    if files > limits.files:
        return "made too many files, or hid them"
    if size > limits.disk_bytes:
        return "wrote too much"
    return "started too many threads" if threads > limits.threads else ""


def _written(pid: int) -> int:
    """Bytes that a process ever wrote, also to files that it has deleted and keeps open."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def _usage(folder: Path, limits: Limits) -> tuple[int, int]:
    """Number and bytes of the files; not counted on above the limits, so that counting takes no time."""
    files = size = 0
    pending = [str(folder)]
    while pending and files <= limits.files:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in islice(entries, limits.files + 1):
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:  # the program has just deleted it
            continue
        except OSError:  # too deep, or made unreadable: it could hold anything
            return limits.files + 1, size
    return files, size


@contextmanager
def _working_folder() -> Iterator[Path]:
    """An empty folder, deleted at the end."""
    with _storage_errors():
        top = Path(tempfile.mkdtemp(prefix="clusterucb-program-"))
    try:
        folder = top / "work"
        with _storage_errors():
            folder.mkdir()
        yield folder
    finally:
        with suppress(OSError):  # where processes cannot be forbidden, one may have fled and still write
            _delete(top)


def _delete(top: Path) -> None:
    """Delete a folder; what lies in it may be unreadable, or deeper than a path can say."""
    numbers = count()
    pending = [top]
    while pending:
        folder = pending.pop()
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                entry.chmod(0o700)
                pending.append(entry.rename(top / f"{top.name}-{next(numbers)}"))  # so that no path is long
            else:
                entry.unlink()
        if folder != top:
            folder.rmdir()
    top.rmdir()
