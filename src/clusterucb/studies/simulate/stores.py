"""Problems from what lies on disk: run directories and feature folders of ours, LESS's gradient files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from clusterucb.errors import ConfigError, InputError, MismatchError, reason
from clusterucb.features.influence import Subspace, Vectors, read_aimed, stored_influence
from clusterucb.features.store import FeatureStore
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import check_made_with
from clusterucb.studies.simulate.less_store import LessFeatures, less_directions, less_file
from clusterucb.studies.simulate.simulate import Problem

SAME_ROWS = ("pool", "rows kept out")


@dataclass(frozen=True, eq=False)
class _Store:
    """Rows, the target's directions where they are there, and facts that must agree."""

    name: str
    features: Vectors
    directions: NDArray[np.float32] | Subspace | None
    made_with: Mapping[str, object]

    @cached_property
    def scores(self) -> NDArray[np.float64] | None:
        """Influence of the rows, where there are directions."""
        return None if self.directions is None else stored_influence(self.features, self.directions)


def read_problems(
    stores: Sequence[Path],
    clusters_from: Sequence[Path] = (),
    target: Path | None = None,
    subtasks: int = 1,
    clusters_target: Path | None = None,
) -> list[Problem]:
    """One problem for each store of ours; one for all training files of LESS together.

    Args:
        stores: run directories, feature folders, or LESS's gradient files or folders of training files.
        clusters_from: of the same rows: what the clusters are made of, and stale influence.
        target: LESS's gradients of the task, a file or its folder; like what follows for LESS's files alone.
        subtasks: how many equal runs of consecutive rows these are (57 for mmlu, 9 for tydiqa, 27 for bbh).
        clusters_target: the same as `clusters_from` has it, without which no influence is stale.

    Raises:
        ConfigError, InputError, MismatchError: a store is none, is damaged, or is of other rows.
    """
    theirs = [path for path in (*stores, *clusters_from) if _features_folder(path) is None]
    if not theirs:
        if target or subtasks != 1 or clusters_target:
            raise ConfigError(
                f"{stores[0]}: has the target's directions in it; --target, --subtasks and"
                " --clusters-target are for LESS's gradient files"
            )
        if len(clusters_from) > 1:
            raise ConfigError("--clusters-from: given more than once; one store holds all rows of a pool")
        fresh, stale = [_store(path) for path in stores], [_store(path) for path in clusters_from]
        return [_problem(store, stale[0] if stale else None) for store in fresh]
    if len(theirs) < len(stores) + len(clusters_from):
        raise ConfigError(f"{theirs[0]}: LESS's gradients, beside a store of ours; give either kind alone")
    if target is None:
        raise ConfigError(f"{stores[0]}: LESS's gradients need --target, the folder of the task's gradients")
    if clusters_target and not clusters_from:
        raise ConfigError("--clusters-target: is the task at the checkpoint of --clusters-from; give both")
    known = _less(clusters_from, clusters_target, subtasks) if clusters_from else None
    return [_problem(_less(stores, target, subtasks), known)]


def _features_folder(path: Path) -> Path | None:
    """The folder of a store of ours, None for LESS's gradients; InputError for anything else."""
    for folder in (RunDir(path).features, path):
        if (folder / "manifest.json").is_file():
            return folder
    if less_file(path) is None:
        what = "no such file or folder" if not path.exists() else "no store"
        raise InputError(
            f"{path}: {what}; expected a run directory with features, a folder of features, or LESS's"
            " gradients of a training file (all_orig.pt in it, or in dimN in it)"
        )
    return None


def _store(path: Path) -> _Store:
    folder = _features_folder(path) or path
    try:
        store = FeatureStore(folder)
        directions = read_aimed(_directions_file(path, folder))
    except (OSError, SafetensorError, KeyError) as error:
        raise MismatchError(f"{folder}: is damaged ({reason(error)}); make it again by `gradients`") from None
    return _Store(str(path), store.features, directions, store.manifest["made_with"])


def _directions_file(path: Path, folder: Path) -> Path:
    """The target's directions: a run's, or those beside a folder of features or in the run that it is of."""
    if folder != path:
        return RunDir(path).directions_at(1)
    beside = folder / "directions.safetensors"
    return beside if beside.exists() else RunDir(folder.parent).directions_at(1)


def _less(paths: Sequence[Path], target: Path | None, subtasks: int) -> _Store:
    features = LessFeatures([file for path in paths if (file := less_file(path))])
    if target is None:
        return _Store(str(paths[0]), features, None, {})
    if (file := less_file(target)) is None:
        raise InputError(
            f"{target}: expected LESS's gradients of a task (all_orig.pt in it, or in dimN in it)"
        )
    directions = less_directions(file, subtasks)
    if directions.shape[1] != features.shape[1]:
        raise InputError(
            f"{file}: rows of {directions.shape[1]} dimensions, but those of {paths[0]} have"
            f" {features.shape[1]}; give gradients of one dimension"
        )
    return _Store(str(target), features, directions, {})


def _problem(fresh: _Store, stale: _Store | None) -> Problem:
    assert fresh.scores is not None
    if stale is None:
        return Problem(fresh.name, fresh.scores, fresh.features)
    rows, expected = len(stale.features), len(fresh.features)
    if rows != expected:
        raise MismatchError(
            f"--clusters-from {stale.name}: has {rows} rows, {fresh.name} has {expected};"
            " expected stores of the same pool"
        )
    same = {key: fresh.made_with[key] for key in SAME_ROWS if key in fresh.made_with}
    check_made_with(stale.made_with, same, f"--clusters-from {stale.name}")
    estimate = stale.scores  # of hidden states, which know their own directions only
    if fresh.directions is not None and fresh.directions.shape[1] == stale.features.shape[1]:
        estimate = stored_influence(stale.features, fresh.directions)
    return Problem(fresh.name, fresh.scores, stale.features, stale.scores, estimate)
