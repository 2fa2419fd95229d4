"""Targeted data selection for fine-tuning language models, by gradients, under a budget.

The public names are loaded when first used, so that `import clusterucb` is cheap and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clusterucb.version import __version__

if TYPE_CHECKING:
    from clusterucb.config import Config as Config
    from clusterucb.data.pool import Pool as Pool
    from clusterucb.data.target import Target as Target
    from clusterucb.errors import ClusterUCBError as ClusterUCBError
    from clusterucb.features.kmeans import Clusters as Clusters
    from clusterucb.features.kmeans import spherical_kmeans as spherical_kmeans
    from clusterucb.gradients.featurizer import Featurizer as Featurizer
    from clusterucb.gradients.projection import CountSketch as CountSketch
    from clusterucb.gradients.projection import Rademacher as Rademacher
    from clusterucb.recipes import dynamic as dynamic
    from clusterucb.recipes import less as less
    from clusterucb.run.export import export as export
    from clusterucb.run.session import Session as Session
    from clusterucb.selection.bandit import Selection as Selection
    from clusterucb.selection.bandit import select as select
    from clusterucb.selection.known import Known as Known
    from clusterucb.selection.linear_ucb import LinearUCB as LinearUCB
    from clusterucb.selection.linear_ucb import linear_ucb as linear_ucb
    from clusterucb.selection.policies import UCB1 as UCB1
    from clusterucb.selection.policies import Random as Random
    from clusterucb.selection.policies import UCBBeta as UCBBeta
    from clusterucb.selection.policies import UCBThreshHard as UCBThreshHard
    from clusterucb.selection.policies import UCBThreshNormal as UCBThreshNormal
    from clusterucb.selection.selector import ClusterUCB as ClusterUCB
    from clusterucb.selection.selector import FullScoring as FullScoring
    from clusterucb.selection.selector import RowUCB as RowUCB
    from clusterucb.steps.query import Index as Index
    from clusterucb.steps.query import Ranking as Ranking
    from clusterucb.steps.reselection import Reselection as Reselection
    from clusterucb.studies.compare.compare import compare as compare
    from clusterucb.studies.plan.plan import plan as plan
    from clusterucb.studies.simulate.grid import Grid as Grid
    from clusterucb.studies.simulate.simulate import Outcome as Outcome
    from clusterucb.studies.simulate.simulate import Problem as Problem
    from clusterucb.studies.simulate.simulate import simulate as simulate
    from clusterucb.training.callbacks import DynamicSelection as DynamicSelection

_HOMES = {
    "ClusterUCB": "selection.selector",
    "ClusterUCBError": "errors",
    "Clusters": "features.kmeans",
    "Config": "config",
    "CountSketch": "gradients.projection",
    "DynamicSelection": "training.callbacks",
    "Featurizer": "gradients.featurizer",
    "FullScoring": "selection.selector",
    "Grid": "studies.simulate.grid",
    "Index": "steps.query",
    "Known": "selection.known",
    "LinearUCB": "selection.linear_ucb",
    "Outcome": "studies.simulate.simulate",
    "Pool": "data.pool",
    "Problem": "studies.simulate.simulate",
    "Rademacher": "gradients.projection",
    "Random": "selection.policies",
    "Ranking": "steps.query",
    "Reselection": "steps.reselection",
    "RowUCB": "selection.selector",
    "Selection": "selection.bandit",
    "Session": "run.session",
    "Target": "data.target",
    "UCB1": "selection.policies",
    "UCBBeta": "selection.policies",
    "UCBThreshHard": "selection.policies",
    "UCBThreshNormal": "selection.policies",
    "compare": "studies.compare.compare",
    "dynamic": "recipes",
    "export": "run.export",
    "less": "recipes",
    "linear_ucb": "selection.linear_ucb",
    "plan": "studies.plan.plan",
    "select": "selection.bandit",
    "simulate": "studies.simulate.simulate",
    "spherical_kmeans": "features.kmeans",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clusterucb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clusterucb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
