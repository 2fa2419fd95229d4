"""Writes down the commit in what is built, as `clusterucb --version` tells it (src/clusterucb/version.py)."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[misc]
    """Adds clusterucb/commit.txt to wheels and sdists; a wheel made from an sdist takes the sdist's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; an editable install asks git each time."""
        package = Path(self.root) / "src" / "clusterucb"
        if version == "editable" or (package / "commit.txt").exists():
            return
        if (commit := runpy.run_path(str(package / "version.py"))["commit"]()) is None:
            return
        self._folder = tempfile.TemporaryDirectory()
        written = Path(self._folder.name) / "commit.txt"
        written.write_text(f"{commit}\n", encoding="utf-8")
        place = "clusterucb" if self.target_name == "wheel" else "src/clusterucb"
        build_data["force_include"][str(written)] = f"{place}/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after it."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
