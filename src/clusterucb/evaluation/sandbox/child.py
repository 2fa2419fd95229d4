"""The process in which one generated program runs; `programs` starts it as a script, never imports it.

    python -s -S -B child.py CHANNEL < settings, token, program

It reads everything, gives up what the system lets it give up, tells its parent what that was, and only then
compiles the program. Standard library only, and little of it: this is the price of every program.
"""

from __future__ import annotations

import io
import os
import resource
import stat
import struct
import sys

TYPE_CHECKING = False  # typing, json and signal would take longer to import than all the rest takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

PROGRAM = "<program>"
LONGEST_REASON = 400

SPARE_BYTES = 32 << 20
"""Address space above the limit, so that a program that used up its own can still be reported."""


def main() -> None:
    """Run the program on standard input; the token goes to the channel only after its last statement.

    No frame, module or file shows the token while the program runs: only the loop below holds what remains
    to be done. Code that searches the interpreter's memory (gc, ctypes) can find it all the same.
    """
    channel = int(sys.argv.pop())
    del sys.path[0]  # this file's folder
    try:
        for step in _prepared(channel):
            step()
    except BaseException as error:  # noqa: BLE001 (a program may raise anything)
        _spare_memory()
        os.write(channel, _reason(error).encode("utf-8", "backslashreplace"))
    os._exit(0)


def _prepared(channel: int) -> Iterable[Callable[[], object]]:
    """Close the sandbox; what then remains to be done: run the program, and say that it ended."""
    settings, token, program = _received().split(b"\n", 2)
    in_force = _close(dict(field.split("=") for field in settings.decode().split("\t")))
    os.write(channel, "\t".join(map("=".join, in_force.items())).encode() + b"\n")
    text, write = program.decode("utf-8", "surrogatepass"), os.write
    return [lambda: _execute(text), lambda: write(channel, token)]


def _received() -> bytes:
    received = io.FileIO(0, closefd=False).readall()  # sys.stdin would keep a copy of the token in its buffer
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return received


def _execute(program: str) -> None:
    sys.argv[:] = [PROGRAM]
    sys.stdout, sys.stderr = _discarding(), _discarding()
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(program, PROGRAM, "exec", dont_inherit=True), module.__dict__)


class _Nowhere(io.RawIOBase):
    """Takes what is printed; a write to /dev/null would count as a write to the disk."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


def _discarding() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(_Nowhere()), encoding="utf-8", errors="backslashreplace")


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "MemoryError"
    try:
        text = str(error)[:LONGEST_REASON]
    except BaseException:  # noqa: BLE001 (its __str__ is the program's)
        text = ""
    return f"{type(error).__name__}{': ' if text else ''}{text}"


# ---------------------------------------------------------------- what the process gives up


def _close(settings: dict[str, str]) -> dict[str, str]:
    """Give up what the system lets a process give up; by what each thing is prevented, or "none"."""
    os.environ.clear()
    libc = _libc()
    _die_with(int(settings["parent"]), float(settings["seconds"]), libc)
    limits = _limit(settings)
    if libc is None:
        landlock, filtered = 0, False
    else:
        libc.prctl(*_longs(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        landlock = restrict_files(libc, _readable(), ".")
        _drop_capabilities(libc)
        filtered = deny_calls(libc)
    return {
        "network": "seccomp" if filtered else "landlock (TCP)" if landlock >= 4 else "none",
        "files": "landlock" if landlock else "none",
        "processes": "seccomp" if filtered else _limit_processes(),
        **limits,
    }


def _libc() -> Any:
    """The C library, on Linux and where this Python can call it."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes
    except ImportError:
        return None
    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    return libc


def _longs(*values: int) -> Iterator[Any]:
    """Arguments of a variadic C function, which takes no care of their width."""
    import ctypes

    return map(ctypes.c_long, values)


def _die_with(parent: int, seconds: float, libc: Any) -> None:
    """End when the parent ends; where the system cannot do that, soon after the time limit."""
    if libc is None:
        import signal

        signal.alarm(int(seconds) + 2)
    else:
        libc.prctl(*_longs(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def _limit(settings: dict[str, str]) -> dict[str, str]:
    memory, cpu, size, files = (
        int(settings[name]) for name in ("memory_bytes", "cpu_seconds", "file_bytes", "open_files")
    )
    wanted = {
        "limits": [
            (resource.RLIMIT_CORE, 1, 1),  # 0 would still start a crash reporter
            (resource.RLIMIT_CPU, cpu, cpu + 1),
            (resource.RLIMIT_FSIZE, size, size),
            (resource.RLIMIT_NOFILE, files, files),
        ],
        "memory": [(resource.RLIMIT_AS, memory, memory + SPARE_BYTES)],
    }
    in_force = {name: "rlimit" if all(map(_set_limit, rows)) else "none" for name, rows in wanted.items()}
    if sys.platform == "darwin":
        in_force["memory"] = "none"  # it takes the limit, and ignores it
    return in_force


def _set_limit(row: tuple[int, int, int]) -> bool:
    """Set a soft and a hard limit; a lower one that is in force already stays."""
    which, soft, hard = row
    _, highest = resource.getrlimit(which)
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    try:
        resource.setrlimit(which, (soft, hard))
    except (OSError, ValueError):
        return False
    return True


def _limit_processes() -> str:
    """The weaker way: no new process for this user. On Linux it also prevents threads."""
    if os.getuid() == 0:  # exempt
        return "none"
    return "rlimit" if _set_limit((resource.RLIMIT_NPROC, 0, 0)) else "none"


def _spare_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    _set_limit((resource.RLIMIT_AS, hard, hard))


def _drop_capabilities(libc: Any) -> None:
    """Root keeps its files and loses its powers."""
    libc.capset(struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0), bytes(24))


_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9

# ---------------------------------------------------------------- files: Landlock (linux/landlock.h)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 9, 1 << 11, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_ALL_TCP = 3
_ALL_SCOPES = 3
_NUMBER_OF_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_NUMBER_OF_RIGHTS = 16


def restrict_files(libc: Any, readable: Iterable[str], writable: str) -> int:
    """Allow reading below `readable` and everything below `writable`; Landlock's version, 0 for none.

    It does not cover a file's name, size and times: a program can ask whether a path exists.
    """
    version = int(libc.syscall(*_longs(_CREATE_RULESET, 0, 0, 1)))
    if version < 1:
        return 0
    rights = (1 << _NUMBER_OF_RIGHTS.get(version, _LATEST_NUMBER_OF_RIGHTS)) - 1
    size = 8 if version < 4 else 16 if version < 6 else 24
    handled = struct.pack("QQQ", rights, _ALL_TCP, _ALL_SCOPES)
    number, length = _longs(_CREATE_RULESET, size)
    rules = int(libc.syscall(number, handled, length, *_longs(0)))
    if rules < 0:
        return 0
    read = _READ_FILE | _READ_DIR
    write = rights & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK | _IOCTL_DEV)
    for path in readable:
        _allow(libc, rules, path, read)
    _allow(libc, rules, os.devnull, read | _WRITE_FILE | rights & _TRUNCATE)
    _allow(libc, rules, writable, write)
    failed = libc.syscall(*_longs(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return 0 if failed else version


def _allow(libc: Any, rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not every system has every path
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        access &= _FILE_RIGHTS
    number, ruleset, kind = _longs(_ADD_RULE, rules, _PATH_BENEATH)
    libc.syscall(number, ruleset, kind, struct.pack("=Qi", access, place), *_longs(0))
    os.close(place)


def _readable() -> list[str]:
    """Python's library (with -s -S, all of sys.path), what its extension modules link to, a few devices."""
    return [
        *sys.path,
        *(f"{sys.base_prefix}/{name}" for name in ("lib", "lib64")),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store"),
        *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
        *("/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf"),
        *("/dev/zero", "/dev/random", "/dev/urandom"),
    ]


# ---------------------------------------------------------------- everything else: seccomp (linux/seccomp.h)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables below, and the kernel's name for the machine (linux/audit.h)."""

DENIED = """
fork:57:- vfork:58:- execve:59:221 execveat:322:281 unshare:272:97 setns:308:268

tkill:200:130 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 ptrace:101:117 kcmp:312:272
process_vm_readv:310:270 process_vm_writev:311:271 process_madvise:440:440 process_mrelease:448:448
pidfd_open:434:434 pidfd_getfd:438:438 pidfd_send_signal:424:424 setpriority:141:140 ioprio_set:251:30
sched_setaffinity:203:122 sched_setattr:314:274 sched_setparam:142:118 sched_setscheduler:144:119
migrate_pages:256:238 move_pages:279:239

socket:41:198 connect:42:203 bind:49:200 listen:50:201 accept:43:202 accept4:288:242

chmod:90:- fchmod:91:52 fchmodat:268:53 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54
utime:132:- utimes:235:- futimesat:261:- utimensat:280:88 truncate:76:45
setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16

fallocate:285:47 splice:275:76 vmsplice:278:75 tee:276:77 memfd_create:319:279 memfd_secret:447:447
shmget:29:194 msgget:68:186 semget:64:190 mq_open:240:180

io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427 io_setup:206:0 io_submit:209:2
bpf:321:280 perf_event_open:298:241 userfaultfd:323:282 mount:165:40 umount2:166:39 pivot_root:155:41
chroot:161:51 keyctl:250:219 add_key:248:217 request_key:249:218
"""
"""Calls by purpose: new processes; other processes; network; what Landlock does not cover of files; memory
and disk that the limits do not see; the kernel's large interfaces. With the number on x86_64 and aarch64."""

CLONE, CLONE3 = "clone:56:220", "clone3:435:435"

FIRST_UNKNOWN = 450
"""Calls from here on did not exist when the tables were made: they fail as on a kernel that lacks them."""

_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST = 0x15, 0x35
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALL_BITS = 0xFFFFFFFF


def _conditions(pid: int) -> Iterator[tuple[str, int, int, int, bool]]:
    """Calls that depend on an argument: call, argument, mask, value, whether only that value is allowed."""
    yield CLONE, 0, 0x10000, 0x10000, True  # CLONE_THREAD
    yield "kill:62:129", 0, _ALL_BITS, pid, True
    yield "tgkill:234:131", 0, _ALL_BITS, pid, True
    yield "prlimit64:302:261", 0, _ALL_BITS, 0, True  # of this process
    yield "socketpair:53:199", 1, 0xF, 1, True  # SOCK_STREAM: cannot be connected anew
    yield "mmap:9:222", 3, 1, 0, True  # MAP_SHARED: writes that nobody counts
    yield "prctl:157:167", 0, _ALL_BITS, _PR_SET_PDEATHSIG, False
    yield "prctl:157:167", 0, _ALL_BITS, _PR_SET_DUMPABLE, False  # would hide from the parent what it writes
    yield "fcntl:72:25", 1, _ALL_BITS, 8, False  # F_SETOWN: signals to others
    yield "fcntl:72:25", 1, _ALL_BITS, 15, False  # F_SETOWN_EX
    yield "ioctl:16:29", 1, _ALL_BITS, 0x8901, False  # FIOSETOWN
    yield "ioctl:16:29", 1, _ALL_BITS, 0x8902, False  # SIOCSPGRP


def deny_calls(libc: Any) -> bool:
    """Install the filter; False where the system has none or forbids it."""
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 1 << 32:
        return False
    return install_filter(libc, filter_program(machine, os.getpid()))


def install_filter(libc: Any, instructions: list[bytes]) -> bool:
    """Give a classic BPF program to the kernel."""
    import ctypes

    code = ctypes.create_string_buffer(b"".join(instructions))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    option, mode = _longs(_PR_SET_SECCOMP, 2)
    return int(libc.prctl(option, mode, program, *_longs(0, 0))) == 0


def filter_program(machine: str, pid: int) -> list[bytes]:
    """The filter's instructions."""
    column, audit = MACHINES[machine]
    program = [
        _do(_LOAD, _MACHINE_AT),
        _do(_IF_EQUAL, audit, 1, 0),
        _do(_RETURN, _KILL_PROCESS),
        _do(_LOAD, _NUMBER_AT),
        _do(_IF_AT_LEAST, FIRST_UNKNOWN, 0, 1),
        _do(_RETURN, _ERRNO | _ENOSYS),
    ]
    for call in DENIED.split():
        program += deny(call, column, _EPERM)
    program += deny(CLONE3, column, _ENOSYS)  # the C library then uses clone, whose flags a filter can see
    for call, argument, mask, value, allowed in _conditions(pid):
        program += [
            _do(_IF_EQUAL, _number(call, column), 0, 5),
            _do(_LOAD, _ARGUMENTS_AT + 8 * argument),  # the low half of 64 bits
            _do(_AND, mask),
            _do(_IF_EQUAL, value, int(allowed), int(not allowed)),
            _do(_RETURN, _ERRNO | _EPERM),
            _do(_LOAD, _NUMBER_AT),
        ]
    return [*program, _do(_RETURN, _ALLOW)]


def deny(call: str, column: int, error: int) -> list[bytes]:
    """Instructions that make a call fail; none where the machine does not have it."""
    if call.endswith(":-") and column == 1:
        return []
    return [_do(_IF_EQUAL, _number(call, column), 0, 1), _do(_RETURN, _ERRNO | error)]


def _number(call: str, column: int) -> int:
    return int(call.split(":")[1 + column])


def _do(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


if __name__ == "__main__":
    main()
