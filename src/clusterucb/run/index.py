"""An index: what is kept of a pool at a model, whatever the target.

    checkpoint(n)   an adapter with Adam's moments, at which gradients are taken
    store(n)        features of all usable rows there
    features(n)     of those that this run chooses from
    labels          the cluster of each of these, by the features at the first

It reads; the steps make what it reads. A run makes its own, or begins at another folder's (`begun_at`) and
changes nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.config import Config, load_index, reconcile_index
from clusterucb.data.hub import index_folder
from clusterucb.errors import ConfigError
from clusterucb.features.influence import Picked, Vectors
from clusterucb.features.kmeans import Clusters
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.adam import Moments
from clusterucb.run.directory import RunDir
from clusterucb.run.inputs import Pooled
from clusterucb.run.methods import method_of
from clusterucb.runtime.files import check_made_with, told
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
class RunIndex:
    """What a run knows of its pool.

    Attributes:
        run: where it lies.
        made_with: what its features have to be made with.
        store_dtype: how they have to be kept.
        pooled: the rows that the run chooses from.
    """

    run: RunDir
    made_with: Mapping[str, object]
    store_dtype: str
    pooled: Callable[[], Pooled]

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
        remedy = self.run.remedy(folder)
        check_made_with(found.manifest, {"store_dtype": self.store_dtype}, str(folder), remedy)
        return found

    def features(self, number: int = 1) -> Vectors:
        """Those that the run chooses from, (N, d)."""
        every, places = self.store(number).features, self.pooled().places
        return every if places is None else Picked(every, places)

    def check(self, found: FeatureStore, **known: object) -> None:
        """Refuse features that were made with something else than this, and than is `known` besides."""
        told, kind = found.manifest["made_with"], {"features": "gradients"}  # unless they tell another
        expected, folder = {**kind, **self.made_with, **known}, found.folder
        check_made_with({**kind, **told}, expected, str(folder), self.run.remedy(folder))

    def labels(self, clusters: Path) -> NDArray[np.int64]:
        """The cluster of each row that the run chooses from, (N,), by those in a file."""
        every = Clusters.load(needed(self.run, clusters, "cluster")).labels
        places = self.pooled().places
        return every if places is None else every[places]


def begun_at(config: Config) -> tuple[RunDir, Config]:
    """The run's directory, over the index that the settings name, if they name one, and its settings.

    What is `auto` of those that the index was made with is as it was decided there.

    Raises:
        ConfigError: there is no such index, it is not finished, or was made with other settings.
    """
    run = RunDir(config.out)
    if config.index is None:
        return run, config
    there = RunDir(index_folder(config.index))
    if run.config.exists() and not there.config.exists():
        return run, config  # both have moved: the run has written down where it lies
    made = load_index(there.path)
    reconcile_index(made, config, str(there.config))
    config = config.filled(made, index=True)
    method = method_of(config)
    parts = [there.pool, there.initial, *map(there.checkpoint, method.numbers)]
    for part in (*parts, *map(there.features_at, range(1, method.stored + 1))):
        if not part.exists():
            raise ConfigError(
                f"--index {there.path}: has no {part.name} yet; finish it by `clusterucb index --out "
                f"{there.path}`"
            )
    return run.over(there.index), config


def check_model(checkpoint: Path, model: str) -> None:
    """Refuse a base model, by its fingerprint, with other weights than a checkpoint's."""
    remedy = "give the --model that it was made with"
    check_made_with(told(checkpoint / "checkpoint.json"), {"model": model}, str(checkpoint), remedy)


def needed(run: RunDir, path: Path, step: str) -> Path:
    """`path`, or ConfigError that names the step which makes it."""
    if not path.exists():
        raise ConfigError(f"{path} is not there yet: run `clusterucb {step} --out {run.path}` first")
    return path
