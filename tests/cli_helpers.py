"""The command line inside this process: a fresh one takes seconds to import what it needs."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

from clusterucb.cli.main import main


class Outcome(NamedTuple):
    """What a command left on the screen, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def complaint(self):
        """The one line of an error: nothing else may be on the screen but progress."""
        assert self.status == 2, self
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("clusterucb: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0].removeprefix("clusterucb: ")


def clusterucb(*arguments):
    """Run `clusterucb` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def options(settings, **changes):
    """Settings as options of the command line; a change to None takes one away."""
    spread = []
    for name, value in {**settings, **changes}.items():
        if value is None:
            continue
        spread.append(f"--{name.replace('_', '-')}")
        spread += value if isinstance(value, list) else [str(value)]
    return spread


def read(path):
    return json.loads(Path(path).read_text())


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def result(folder):
    """All that a run has computed, whatever its method, without the time that it took: file to bytes."""
    folder = Path(folder)
    exact = [*folder.glob("rounds/*/selected*.jsonl"), *folder.glob("rounds/*/draws.jsonl")]
    for pattern in ("rounds/*/selection", "features*/directions", "clusters", "initial/adapter_model"):
        exact += folder.glob(f"{pattern}.safetensors")
    for trained in ("warmup*", "adapter"):
        for name in ("adapter_model", "moments"):
            exact += folder.glob(f"{trained}/{name}.safetensors")
    exact += folder.glob("features*/*.f16")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in exact}
    for checkpoint in folder.glob("warmup*/checkpoint.json"):
        found[f"{checkpoint.parent.name} rate"] = str(read(checkpoint).get("learning_rate")).encode()
    for path in folder.glob("periods/*.json"):
        found[f"periods/{path.name}"] = str(read(path)["losses"]).encode()
    evaluation = read(folder / "evaluation.json")
    found["evaluation"] = str([evaluation[name]["losses"] for name in ("base", "adapter")]).encode()
    return found
