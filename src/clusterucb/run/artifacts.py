"""What the steps find in the run directory and leave there, with the checks on the way in and out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.errors import ConfigError
from clusterucb.features.kmeans import Clusters
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.adam import Moments
from clusterucb.run.costs import Cost
from clusterucb.run.session import Session
from clusterucb.runtime.files import check_made_with, publish_folder, write_json
from clusterucb.training.adapter import adapter_weights, fingerprint_tensors, read_adapter, save_adapter
from clusterucb.training.moments import save_moments


def need(session: Session, path: Path, step: str) -> Path:
    """`path`, or ConfigError that names the step which makes it."""
    if not path.exists():
        raise ConfigError(f"{path} is not there yet: run `clusterucb {step} --out {session.dir.path}` first")
    return path


def store(session: Session, number: int = 1) -> FeatureStore:
    """The features at warmup checkpoint `number`, made with this run's settings."""
    folder = need(session, session.dir.features_at(number), "gradients")
    found = FeatureStore(folder)
    check_made_with(_told(found), made_of(session, session.planned_with), str(folder))
    check_made_with(found.manifest, {"store_dtype": session.config.gradients.store_dtype}, str(folder))
    return found


def directions_at(session: Session, number: int = 1) -> NDArray[np.float32]:
    """The target's directions at warmup checkpoint `number`, (S, d), stored beside the features."""
    found: NDArray[np.float32] = load_file(session.dir.features_at(number) / "directions.safetensors")[
        "directions"
    ]
    return found


def check_features(session: Session) -> None:
    """Refuse to compare fresh features with stored ones that another model or projection made."""
    expected = made_of(session, session.made_with)
    check_made_with(_told(store(session)), expected, str(session.dir.features))


def made_of(session: Session, known: Mapping[str, object]) -> dict[str, object]:
    """What the run's features depend on, of all that is `known`; hidden states need no projection."""
    kind = session.config.clustering.features
    gone = () if kind == "gradients" else ("projection", "formula")
    return {"features": kind, **{name: value for name, value in known.items() if name not in gone}}


def _told(found: FeatureStore) -> dict[str, object]:
    """What a store was made with; one that does not tell its kind is of gradients."""
    return {"features": "gradients", **found.manifest["made_with"]}


def labels(session: Session) -> NDArray[np.int64]:
    """The cluster of each usable row, (N,); zeros where no bandit needs clusters."""
    if not session.config.budgeted:
        return np.zeros(len(session.pooled.rows), np.int64)
    return Clusters.load(need(session, session.dir.clusters, "cluster")).labels


def already_trained(session: Session, folder: Path, states: Path) -> bool:
    """Whether the adapter is there; the trainer's states that a kill may have left beside it are dropped."""

    def found() -> bool:
        if folder.exists() and states.exists():
            shutil.rmtree(states)
        return folder.exists()

    return session.world.lead(found)


def publish_checkpoint(
    session: Session, folder: Path, moments: Moments, cost: Cost, **facts: float | str
) -> None:
    """Publish the model's adapter as it is now, with Adam's moments, what it cost and more facts."""
    model, weights = session.model, adapter_weights(session.model)
    known = {
        "made_with": session.made_with,
        "cost": cost.to_json(),
        "target_questions": session.target_questions,
    }
    with publish_folder(folder, world=session.world) as part:
        if session.world.leads:
            save_adapter(model, part, weights)
            save_moments(moments, part / "moments.safetensors")
            write_json(part / "checkpoint.json", {**known, **facts})


def checkpoint_fingerprint(folder: Path, moments: Moments) -> str:
    """A hash of a checkpoint's adapter and moments."""
    tensors = {f"mean.{n}": t for n, t in moments.mean.items()}
    tensors |= {f"square.{n}": t for n, t in moments.square.items()}
    return fingerprint_tensors({**read_adapter(folder), **tensors})
