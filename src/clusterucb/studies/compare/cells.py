"""A cell of a comparison: one repetition of one method, an ordinary run in the folder METHOD/REPETITION.

failed.json             why it failed; gone when it is tried again
failed.traceback.txt    where, if it was a defect
elsewhere.json          where that is which it shares with other cells
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clusterucb.config import Config
from clusterucb.errors import ClusterUCBError
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import method_of
from clusterucb.run.presets import PRESETS, Preset, draws_first, in_order, preset_named
from clusterucb.runtime.files import read_json, write_json

SHARED = "shared"
"""The folder of what runs have in common."""


@dataclass(frozen=True)
class Cell:
    """Repetition `repeat`, from 0, of `preset`, in the comparison's directory `out`."""

    out: Path
    preset: Preset
    repeat: int

    @property
    def name(self) -> str:
        """As a person reads it, and its path in the comparison."""
        return f"{self.preset.name}/{self.repeat}"

    @property
    def run(self) -> RunDir:
        """The run."""
        return RunDir(self.out / self.preset.name / str(self.repeat))

    def config(self, config: Config) -> Config:
        """The run's settings, from those that all runs share."""
        return self.preset.config(config, self.repeat, self.run.path)

    def share(self, config: Config) -> None:
        """Have the run begin at the comparison's index, `shared/`, which the first that needs a part makes.

        It has checkpoints of each kind of warmup, features of each kind, and their clusters, as the first run
        that clusters them asks for; one that asks for others has its own (`clusters_of`). Beside them is what
        goes with the target alone. A first selection that does not depend on the repetition is the first's.
        """
        if self.run.config.exists():  # begun already
            return
        own = self.config(config)
        shared, method = self.out / SHARED, method_of(own)
        elsewhere = {"task": shared, "pool": shared}
        if method.takes_gradients:
            kind = shared / (
                method.name if method.features == "gradients" else f"{method.name}-{method.features}"
            )
            elsewhere |= {"checkpoints": shared / method.name, "features": kind, "clusters": kind}
        if self.repeat and not draws_first(own):
            elsewhere["first_round"] = Cell(self.out, self.preset, 0).run.path
        self.run.over(elsewhere).keep_elsewhere()

    @property
    def state(self) -> str:
        """`finished` is what has a summary, as that comes last, unless it `failed` since; or `unfinished`."""
        if self._failed.exists():
            return "failed"
        return "finished" if self.run.summary.exists() else "unfinished"

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The content of a finished run's evaluation.json."""
        return read_json(self.run.evaluation)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """That of its summary.json."""
        return read_json(self.run.summary)

    @property
    def bill(self) -> dict[str, Any]:
        """What it took in passes over the pool, and what doing without would; empty in a run of before."""
        bill: dict[str, Any] = self.summary.get("bill", {})
        return bill

    def losses(self, model: str) -> list[float]:
        """Of each held-out row, (n,), under `base` or `adapter`."""
        losses: list[float] = self.evaluation[model]["losses"]
        return losses

    @property
    def failure(self) -> str | None:
        """The line that says why it failed."""
        return str(read_json(self._failed)["message"]) if self._failed.exists() else None

    def fail(self, error: Exception) -> None:
        """Write down why it failed, and where if that is not a person's mistake."""
        facts: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        if not isinstance(error, ClusterUCBError):
            self._traceback.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            facts["message"] = f"{facts['error']}: {error}; where: {self._traceback}"
        write_json(self._failed, facts)

    def retry(self) -> None:
        """Forget an earlier failure."""
        for path in (self._failed, self._traceback):
            path.unlink(missing_ok=True)

    @property
    def _failed(self) -> Path:
        return self.run.path / "failed.json"

    @property
    def _traceback(self) -> Path:
        return self.run.path / "failed.traceback.txt"


def all_cells(out: Path) -> list[Cell]:
    """Every cell that was begun in `out`, in the order of the table."""
    folders = (folder for name in PRESETS for folder in (out / name, *out.glob(f"{name}@*")))
    return [
        Cell(out, preset, repeat)
        for preset in in_order(preset_named(folder.name) for folder in folders)
        for repeat in sorted(int(folder.name) for folder in (out / preset.name).glob("[0-9]*"))
    ]
