"""`make gpu`: what this program does on a GPU, in one command of at most eight minutes, without network.

    python benchmarks/gpu.py [--out DIR] [--only PART ...]

needs torch, transformers, peft, accelerate and safetensors, with what these bring along, and pydantic; of
other packages that are missing it says what is left out. Each part is a process of its own with its own time,
so one that fails or hangs costs the others nothing:

    tests          those that are marked gpu
    sketch         Adam's map and the sketch: one kernel against the operations
    features       forward and backward, the same with logits at labels only, and features, on Llama-2-7B's
                   shapes with random weights: 8 x 512, 32 x 128, 64 x 64 and 1 x 512 rows and tokens
    k-means        an iteration against the matrix product that bounds it
    job            the demo's job from end to end on SmolLM2-135M's shape with random weights, and again
    processes      features of that job by two processes, where there are two GPUs
    doctor         the numeric self-check of that model

It writes benchmarks-gpu.md and benchmarks-gpu.json, with device, driver and commit, into docs/, and ends with
"N passed, M failed". Without a GPU all of it is rehearsed on the CPU in small, into build/gpu/.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 8.0
SECONDS = {"machine": 60, "tests": 150, "sketch": 60, "features": 200, "k-means": 60, "job": 150}
SECONDS |= {"processes": 150, "doctor": 90}
"""Of each part, at most; what is left of the eight minutes bounds it, too."""
NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "pydantic",
    "yaml",
    "filelock",
    "rich",
)
USEFUL = {
    "triton": "features are mapped and sketched without the kernel",
    "pytest": "the tests are left out",
    "hypothesis": "tests that need it are left out",
    "plotly": "the job writes no page",
    "typer": "two processes are left out",
}


def main() -> None:
    """Do every part, write page and figures, and tell how many checks passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder; docs with a GPU, build/gpu without")
    parser.add_argument("--only", nargs="+", choices=[*SECONDS][1:], default=[*SECONDS][1:])
    options = parser.parse_args()
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        print(f"gpu: missing packages: {', '.join(absent)}; install them, or name another Python by PYTHON=")
        raise SystemExit(2)
    for name, effect in USEFUL.items():
        if find_spec(name) is None:
            print(f"gpu: {name} is missing: {effect}")
    ends = time.monotonic() + 60 * MINUTES
    with tempfile.TemporaryDirectory() as folder:
        found = {name: _part(name, Path(folder), ends) for name in ("machine", *options.only)}
    out = options.out or (ROOT / "docs" if found["machine"].get("gpu") else ROOT / "build/gpu")
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks-gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "benchmarks-gpu.md").write_text("\n".join(page(found)) + "\n", encoding="utf-8")
    checks = [check for part in found.values() for check in part["checks"]]
    for check in (check for check in checks if not check["passed"]):
        print(f"FAILED {check['name']}: {check['said']}")
    passed, failed = (sum(c["count"] for c in checks if c["passed"] is way) for way in (True, False))
    print(f"{out / 'benchmarks-gpu.md'}\n{passed} passed, {failed} failed")
    raise SystemExit(bool(failed))


def _part(name: str, folder: Path, ends: float) -> dict[str, Any]:
    """What a part has found: `checks`, and figures of its own."""
    print(f"{name} ...", flush=True)
    started, seconds = time.monotonic(), min(SECONDS[name], ends - time.monotonic())
    result, error = folder / f"{name}.json", folder / f"{name}.txt"
    command = [sys.executable, str(ROOT / "benchmarks/gpu_parts.py"), name, str(folder), str(result)]
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with error.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            status = f"status {process.wait(max(1, seconds))}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            status = f"not done in {process.wait() and seconds:.0f} s"
    found = json.loads(result.read_text()) if result.exists() else {"checks": []}
    if status != "status 0":
        last = [line for line in error.read_text().splitlines() if line.strip()][-1:]
        said = ": ".join([status, *last])
        found["checks"].append({"name": name, "passed": False, "said": said, "count": 1})
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def page(found: dict[str, Any]) -> Iterator[str]:
    """docs/benchmarks-gpu.md."""
    machine = found["machine"]
    yield from (
        "# Benchmarks on a GPU",
        "",
        "`make gpu`; every figure was taken by it at the commit named.",
        "",
    )
    if machine.get("device"):
        kind = (
            "" if machine["gpu"] else ": a rehearsal without a GPU, on small shapes; its figures say nothing"
        )
        yield f"{machine['device']}{kind}. {machine['versions']}; commit {machine['commit']}."
        yield ""
    for name, part in found.items():
        if rows := part.get("rows"):
            yield from (f"## {name.capitalize()}", "", part["about"], "")
            yield f"| {' | '.join(rows[0])} |"
            yield "|---" * len(rows[0]) + "|"
            yield from (f"| {' | '.join(map(str, row.values()))} |" for row in rows)
            yield ""
    yield from ("## Checks", "", "| part | check | | |", "|---|---|---|---|")
    for name, part in found.items():
        for check in part["checks"]:
            outcome = "passed" if check["passed"] else "FAILED"
            yield f"| {name} | {check['name']} | {outcome} | {check['said']} |"
        if "left out" in part:
            yield f"| {name} | | left out | {part['left out']} |"


if __name__ == "__main__":
    main()
