"""Every error a person can cause or meet, as one tree.

    ClusterUCBError           one clear line on the screen, exit status 2
    ├── InputError            a file, a row or an option is not what was expected
    ├── ConfigError           a setting is unknown, out of range or contradicts another
    ├── MismatchError         an artifact was made with something else (model, pool, formula, ...)
    ├── BusyError             the run directory belongs to another process
    ├── LostError             another process of the run has ended or does not answer
    └── StorageError          the disk is full or does not answer

A message says what, where (file, line or key), the value met, what was expected and what to do.
Anything else that is raised is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class ClusterUCBError(Exception):
    """Base of all errors that are not defects of this package."""


class InputError(ClusterUCBError):
    """A file, a row or an argument is not what was expected."""


class ConfigError(ClusterUCBError):
    """A setting is unknown, out of range or contradicts another one."""


class MismatchError(ClusterUCBError):
    """An artifact was made with another model, pool, tokenizer, projection or formula."""


class BusyError(ClusterUCBError):
    """The run directory is in use by another process."""


class LostError(ClusterUCBError):
    """Another process of the run has ended, or does not answer."""


class StorageError(ClusterUCBError):
    """The disk is full, or a file cannot be written."""


def did_you_mean(name: str, known: Collection[str], these: str) -> str:
    """The known name that is nearest to an unknown one, or all of them after the words `these`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{these} {', '.join(known)}"


def reason(error: BaseException) -> str:
    """What another library's error says, in one line: its first, or its name if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
