"""What a finished run has selected, and a copy of it that goes on from there."""

import shutil

from safetensors.numpy import load_file

from cli_helpers import options, read

AFTER_CLUSTERS = (
    "config.yaml",
    "rounds",
    "adapter",
    "periods",
    "evaluation.json",
    "summary.json",
    "report.html",
)


def selection(folder, number=1):
    return load_file(folder / f"rounds/{number}/selection.safetensors")


def summary(folder, number=1):
    return read(folder / f"rounds/{number}/summary.json")


def going_on(finished, to, *left_out, **changes):
    """Copy a run up to its clusters, but for `left_out`; the options by which it goes on."""
    shutil.copytree(finished.folder, to, ignore=shutil.ignore_patterns(*AFTER_CLUSTERS, *left_out))
    return options(finished.elsewhere(to, **changes))
