"""Where the Trainer's own logs go."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
from training_helpers import adapted, rows
from transformers.integrations import integration_utils

from cli_helpers import clusterucb, options
from clusterucb.config import Training
from clusterucb.errors import ConfigError
from clusterucb.training import finetune as reporting
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import check_reporter, finetune, reporters, run_name


@pytest.fixture
def tensorboard(monkeypatch):
    """A stand-in that keeps what it is told, by folder."""
    told = {}

    class SummaryWriter:
        def __init__(self, log_dir):
            self.scalars = told.setdefault(log_dir, {})

        def add_scalar(self, name, value, step):
            self.scalars.setdefault(name, []).append((step, value))

        add_text = flush = close = lambda *_: None

    for name in ("tensorboard", "torch.utils.tensorboard"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.SummaryWriter = SummaryWriter
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return told


def train(folder):
    settings = Training(batch_size=2, micro_batch=2, lr=1e-2, report_to="tensorboard")
    finetune(adapted(), SwappableRows(rows(6), np.arange(6)), folder, settings, seed=0, epochs=1)


def test_tensorboards_files_outlive_the_trainers_states(tensorboard, tmp_path):
    train(tmp_path / "warmup.states")
    assert list(tensorboard) == [str(tmp_path / "logs" / "warmup")]
    (scalars,) = tensorboard.values()
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3]
    assert {"train/learning_rate", "train/grad_norm"} <= set(scalars)


def test_the_environments_folder_comes_first(tensorboard, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    train(tmp_path / "training")
    assert set(tensorboard) == {str(tmp_path / "mine")}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_is_not_installed_is_told_before_anything_is_computed(name, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(reporting, "find_spec", lambda _name: None)
    line = f"report_to {name}: the package {name} is not installed; `pip install {name}`, or use --report-to"
    for command in ("run", "warmup"):
        assert clusterucb(command, *options(settings, report_to=name)).complaint == f"{line} none"
        assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ConfigError, match="is not installed"):
        reporters(name, tmp_path / "training")


def test_none_needs_nothing_and_an_unknown_name_is_refused(settings, tmp_path):
    check_reporter("none")
    assert reporters("none", tmp_path / "training") == ("none", [])
    complaint = clusterucb("run", *options(settings, report_to="tensorbord")).complaint
    assert complaint.startswith("options: training.report_to is 'tensorbord': input should be 'none',")


def test_a_training_is_called_after_its_run(tmp_path):
    assert run_name(tmp_path / "first" / "warmup.states") == "first/warmup"
    assert run_name(tmp_path / "first" / "training") == "first/training"
