"""An index: what is kept of a pool at a model, whatever the target and the method.

    checkpoint(n)   an adapter with Adam's moments, at which gradients are taken
    store(n)        features of all usable rows there
    labels          the cluster of each row, by the features at the first

It reads; the steps make what it reads. A run that has none of its own reads another folder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.features.kmeans import Clusters
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.adam import Moments
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import check_made_with
from clusterucb.training.adapter import fingerprint_tensors, read_adapter
from clusterucb.training.moments import load_moments


@dataclass(frozen=True)
class Checkpoint:
    """An adapter and Adam's moments beside it.

    Attributes:
        folder: with the adapter.
        moments: Adam's, there.
    """

    folder: Path
    moments: Moments

    @cached_property
    def fingerprint(self) -> str:
        """A hash of adapter and moments."""
        tensors = {f"mean.{n}": t for n, t in self.moments.mean.items()}
        tensors |= {f"square.{n}": t for n, t in self.moments.square.items()}
        return fingerprint_tensors({**read_adapter(self.folder), **tensors})


@dataclass(frozen=True)
class Index:
    """What a run knows of its pool.

    Attributes:
        run: where it lies.
        made_with: what its features have to be made with.
        store_dtype: how they have to be kept.
        clustered: rows have clusters; without, all are in cluster 0.
    """

    run: RunDir
    made_with: Mapping[str, object]
    store_dtype: str
    clustered: bool

    def checkpoint(self, number: int = 1) -> Checkpoint:
        """Warmup checkpoint `number`, from 1."""
        folder = needed(self.run, self.run.checkpoint(number), "warmup")
        return Checkpoint(folder, load_moments(folder / "moments.safetensors"))

    def store(self, number: int = 1) -> FeatureStore:
        """Features of all rows at checkpoint `number`.

        Raises:
            ConfigError: they are not there yet.
            MismatchError: they were made with something else.
        """
        folder = needed(self.run, self.run.features_at(number), "gradients")
        found = FeatureStore(folder)
        self.check(found)
        check_made_with(found.manifest, {"store_dtype": self.store_dtype}, str(folder))
        return found

    def check(self, found: FeatureStore, **known: object) -> None:
        """Refuse features that were made with something else than this, and than is `known` besides."""
        told, kind = found.manifest["made_with"], {"features": "gradients"}  # unless they tell another
        check_made_with({**kind, **told}, {**kind, **self.made_with, **known}, str(found.folder))

    def labels(self, rows: int) -> NDArray[np.int64]:
        """The cluster of each of the usable `rows`, (N,); zeros where no bandit needs clusters."""
        if not self.clustered:
            return np.zeros(rows, np.int64)
        return Clusters.load(needed(self.run, self.run.clusters, "cluster")).labels


def needed(run: RunDir, path: Path, step: str) -> Path:
    """`path`, or ConfigError that names the step which makes it."""
    if not path.exists():
        raise ConfigError(f"{path} is not there yet: run `clusterucb {step} --out {run.path}` first")
    return path
