"""Where the Trainer logs each optimizer step: to TensorBoard, Weights & Biases or MLflow, if that is wanted.

TensorBoard's files are kept in the run directory, or in TENSORBOARD_LOGGING_DIR; the Trainer would write them
into its own states, which are dropped at the end. The other two are set up as their own documents say.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from clusterucb.errors import ConfigError

__all__ = ["check_reporter", "log_folder", "reporters", "run_name"]


def check_reporter(name: str) -> None:
    """Refuse what is not installed.

    Raises:
        ConfigError: the package of that name is missing.
    """
    if name != "none" and find_spec(name) is None:
        raise ConfigError(
            f"report_to {name}: the package {name} is not installed; `pip install {name}`, "
            "or use --report-to none"
        )


def reporters(name: str, states: Path) -> tuple[str, list[TrainerCallback]]:
    """What the Trainer's own `report_to` becomes, and the callbacks that stand for the rest.

    Args:
        name: the setting.
        states: the folder of the trainer's states.
    """
    check_reporter(name)
    if name != "tensorboard":
        return name, []
    tensorboard = TensorBoardCallback()
    tensorboard.logging_dir = tensorboard.logging_dir or str(log_folder(states))
    return "none", [tensorboard]


def log_folder(states: Path) -> Path:
    """Where TensorBoard's files of a training are kept: `logs/training` beside the states `training`."""
    return states.parent / "logs" / states.name.removesuffix(".states")


def run_name(states: Path) -> str:
    """How a training is called where several runs are seen side by side."""
    return f"{states.absolute().parent.name}/{log_folder(states).name}"
