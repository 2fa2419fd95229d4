"""Folders and settings that many tests share."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from builders import build_model, build_tokenizer, write_rows
from forks import Server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; `make gpu` compiles instead
# Tiny models gain nothing by threads; and a result is the same to the bit on as many only.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# A shell starts background jobs with Ctrl-C ignored, and so would be the processes that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
with suppress(ModuleNotFoundError):  # which a machine with a GPU may lack
    import hypothesis

    hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no defect
    hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    """What asks for a finished run, or a server of processes for whole commands, is whole."""
    for item in items:
        if not {"finished_run", "server", "ranks"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("whole")


def pytest_runtest_setup(item):
    """Tests for a GPU are skipped where there is none; torch is looked at for them alone."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def pytest_sessionfinish():
    """What was set aside is let go, as a library that counts its objects at the end complains of them."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_look_through():
    """Set aside what is loaded: a Trainer collects garbage, and would look at all of torch each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_plug_is_pulled():
    """What this process writes need not be on the disk; the commands that a server runs wait for it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _file: None)
        yield


@pytest.fixture(scope="session")
def no_card_is_written():
    """Peft's README.md beside an adapter takes half the time of saving one."""
    from peft import PeftModel

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, no_card_is_written):
    """A tiny model with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """pool-a.jsonl, pool-b.jsonl (100 rows), target.jsonl (two subtasks) and holdout.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "pool-a.jsonl", 60, 1)
    write_rows(folder / "pool-b.jsonl", 40, 2)
    write_rows(folder / "target.jsonl", 6, 3, subtasks=2)
    write_rows(folder / "holdout.jsonl", 5, 4)
    return folder


@pytest.fixture
def settings(shared_settings, tmp_path):
    """Options of a whole run that takes seconds."""
    return {**shared_settings, "out": str(tmp_path / "run")}


@pytest.fixture(scope="session")
def shared_settings(model_folder, data_folder):
    """The same without a run directory."""
    return {
        "model": str(model_folder),
        "pool": [str(data_folder / "pool-a.jsonl"), str(data_folder / "pool-b.jsonl")],
        "target": [str(data_folder / "target.jsonl")],
        "subtask": "subject",
        "holdout": [str(data_folder / "holdout.jsonl")],
        "device": "cpu",
        "dtype": "float32",
        "rank": 4,
        "alpha": 8,
        "policy": "ucb_beta",
        "keep": "now",
        "features": "gradients",
        "budget": 0.2,
        "epochs_per_period": 1,
        "rounds": 10,
        "lr": 1e-3,
        "batch_size": 4,
        "micro_batch": 2,
        "warmup_steps": 3,
        "dim": 256,
        "k": 5,
        "periods": 3,
        "top_p": 0.1,
        "gradient_length": 48,
        "train_length": 64,
    }


@dataclass(frozen=True)
class FinishedRun:
    """A whole run that is finished: its directory is not to be changed.

    Beside it is events.jsonl, what the run told to programs.
    """

    folder: Path
    settings: dict[str, Any]
    shown: str

    def elsewhere(self, out: Path, **changes: Any) -> dict[str, Any]:
        """Its settings for another directory."""
        return {**self.settings, "out": str(out), **changes}


@pytest.fixture(scope="session")
def run_settings(shared_settings):
    """Options of every finished run; of some rows a gradient sees a part, and not of all in one batch."""
    own = {"gradient_length": 40, "batch_tokens": 512, "save_steps": 2}
    return {**shared_settings, **own, "less_warmup": 0.2, "less_checkpoints": 3}


@pytest.fixture(scope="session")
def finished_run(run_settings, tmp_path_factory):
    """The name of a method, as `compare` has it, to a finished run of it, made at the first use."""
    from cli_helpers import done, options
    from clusterucb.run.presets import preset_named

    @cache
    def finished(name: str) -> FinishedRun:
        folder = tmp_path_factory.mktemp(name) / "run"
        settings = {**run_settings, **preset_named(name).settings, "out": str(folder)}
        outcome = done("run", *options(settings), "--json-log", folder.with_name("events.jsonl"))
        return FinishedRun(folder, settings, outcome.out)

    return finished


@pytest.fixture(scope="session")
def finished_settings(finished_run):
    """Options of the finished run of the paper's method: its directory is not to be changed."""
    return finished_run("clusterucb").settings


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Runs commands that are to die (see forks.py)."""
    server = Server(tmp_path_factory.mktemp("server") / "screen.txt")
    with server.process:
        yield server
        server.process.stdin.close()


@pytest.fixture
def backwards(monkeypatch):
    """One entry a backward pass."""
    import torch

    real, passes = torch.Tensor.backward, []
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda *args, **more: passes.append(1) or real(*args, **more)
    )
    return passes
