"""The demo's own modules, loaded from where they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "demo" / "data.py"


@pytest.fixture(scope="session")
def demo():
    """examples/demo/data.py."""
    spec = importlib.util.spec_from_file_location("demo_data_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
