"""Finished runs of the baselines: their directories are not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_helpers import clusterucb, options


@pytest.fixture(scope="session")
def baseline_settings(shared_settings):
    """Options of a whole run of any baseline; some rows are longer than what a gradient sees."""
    return {**shared_settings, "periods": 2, "gradient_length": 40, "batch_tokens": 512}


@pytest.fixture(scope="session")
def finished_baseline(baseline_settings, tmp_path_factory):
    """Method to the directory of its finished run, made at the first use."""
    made: dict[str, Path] = {}

    def finished(method):
        if method not in made:
            out = tmp_path_factory.mktemp(method) / "run"
            outcome = clusterucb("run", *options(baseline_settings, method=method, out=out))
            assert outcome.status == 0, outcome
            made[method] = out
        return made[method]

    return finished
