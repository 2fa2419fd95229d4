"""The one place of the version, and which commit this code is of."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def commit() -> str | None:
    """The commit: asked of git in a checkout, else what the build wrote down; None where nobody knows.

    It ends with `-dirty` where files differ from the commit's.
    """
    package = Path(__file__).resolve().parent
    root = package.parent.parent
    if (root / ".git").exists() and package == root / "src" / "clusterucb":
        return _described(root)
    written = package / "commit.txt"
    return written.read_text(encoding="utf-8").strip() if written.exists() else None


def _described(root: Path) -> str | None:
    import os
    import subprocess

    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(command, capture_output=True, text=True, env=own)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None
