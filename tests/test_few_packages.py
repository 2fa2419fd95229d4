"""A whole run on a machine that has torch, transformers and peft, and not all that the package asks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import clusterucb
from cli_helpers import options

ABSENT = ("datasets", "bm25s", "plotly", "pandas", "pyarrow")
"""What a run by gradients over .jsonl files does not need."""

CODE = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # importing them raises ImportError
from clusterucb.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.whole
def test_a_run_needs_neither_datasets_nor_bm25s_nor_plotly(settings):
    environment = {**os.environ, "PYTHONPATH": str(Path(clusterucb.__file__).parent.parent)}
    command = [sys.executable, "-c", CODE, "run", *options(settings)]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "report.html is left out, for want of one package: pip install plotly" in shown.stderr
    assert (Path(settings["out"]) / "adapter/adapter_model.safetensors").exists()
