import pytest
from task_helpers import install, write_all, write_harness


@pytest.fixture
def folder(tmp_path):
    """Every benchmark's small files, each in the folder of its name; a test may change them."""
    return write_all(tmp_path / "data")


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """The folder of an lm-eval of which only the shots are there."""
    folder = write_harness(tmp_path / "installed" / "lm_eval")
    install(monkeypatch, lm_eval=folder)
    return folder
