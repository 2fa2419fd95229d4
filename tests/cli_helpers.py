"""The command line inside this process: a fresh one takes seconds to import what it needs."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file

from clusterucb.cli.main import main
from clusterucb.run.directory import RunDir
from clusterucb.run.screening import Screening


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


def done(*arguments):
    """What a command leaves on the screen that ends well."""
    outcome = clusterucb(*arguments)
    assert outcome.status == 0, outcome
    return outcome


def options(settings, **changes):
    """Settings as options of the command line; a change to None takes one away."""
    spread = []
    for name, value in {**settings, **changes}.items():
        if value is None:
            continue
        spread.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
        if isinstance(value, bool):
            continue
        spread += value if isinstance(value, list) else [str(value)]
    return spread


def read(path):
    return json.loads(Path(path).read_text())


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def kept_out(folder):
    """Id and reason of each row of the index that a run may not choose, as its report lists them."""
    return Screening(read(RunDir(folder).contamination)).excluded


def result(folder):
    """All that a run has computed, whatever its method, without the time that it took: name to bytes.

    What it shares with other runs is where its directory says.
    """
    run, found = RunDir(folder), {}

    def keep(path, *patterns, name=""):
        for file in (file for pattern in patterns for file in path.glob(pattern)):
            found[f"{name or path.name}/{file.name}"] = file.read_bytes()

    keep(run.initial, "adapter_model.safetensors")
    keep(run.adapter, "adapter_model.safetensors", "moments.safetensors")
    for number in range(1, 10):
        checkpoint, directions = run.checkpoint(number), run.directions_at(number)
        keep(checkpoint, "adapter_model.safetensors", "moments.safetensors")
        keep(run.features_at(number), "features.*")
        keep(run.round(number), "sele*.*", "draws.jsonl", name=f"rounds/{number}")
        if (checkpoint / "checkpoint.json").exists():
            rate = read(checkpoint / "checkpoint.json").get("learning_rate")
            found[f"{checkpoint.name} rate"] = str(rate).encode()
        if directions.exists():
            found[f"directions/{number}"] = load_file(directions)["directions"].tobytes()
        if run.period(number).exists():
            found[f"periods/{number}.json"] = str(read(run.period(number))["losses"]).encode()
    if run.clusters.exists():
        found["clusters.safetensors"] = run.clusters.read_bytes()
    evaluation = read(run.evaluation)
    found["evaluation"] = str([evaluation[name]["losses"] for name in ("base", "adapter")]).encode()
    return found
