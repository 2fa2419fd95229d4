"""The largest memory of a run on its device, part by part.

What counts here are tensors. The libraries themselves, the tokens of the pool (mapped from disk) and what an
allocator keeps in reserve come on top.
"""

from __future__ import annotations

import numpy as np

from clusterucb.config import Config
from clusterucb.gradients.batches import micro_batches
from clusterucb.run.session import number_of_clusters
from clusterucb.studies.plan.facts import Facts
from clusterucb.studies.plan.probe import Activations
from clusterucb.studies.plan.sizes import FLOAT, Sizes
from clusterucb.studies.plan.spending import stored_dim

COPIES = 4
"""Of a micro-batch's gradients of one layer: as they are, through Adam's moments, padded and gathered."""

BLOCK_ROWS = 1024
"""Rows of the store that k-means reads at once."""

Parts = dict[str, int]


def memory(config: Config, facts: Facts, sizes: Sizes, activations: Activations | None) -> dict[str, Parts]:
    """Bytes by stage and part; those of `always` are there in every other stage too.

    Without `activations`, which have to be measured, there is no such part.
    """
    stages = {"always": {"weights": sizes.weights, "adapter": sizes.adapter}}
    if sizes.unpacked:
        stages["always"]["a layer's weights, unpacked"] = sizes.unpacked
    if config.method in ("dynamic", "less"):
        stages["gradients"] = _gradients(config, facts, sizes, activations)
    if config.budgeted:
        stages["clustering"] = _clustering(config, facts, sizes)
    stages["training"] = _training(config, facts, sizes, activations)
    return stages


def _gradients(config: Config, facts: Facts, sizes: Sizes, activations: Activations | None) -> Parts:
    settings = config.gradients
    batches = [
        lengths[batch]
        for lengths in (facts.gradient_lengths, facts.target_lengths)
        for batch in micro_batches(lengths, settings.batch_tokens)
    ]
    most = max(map(len, batches))
    padded = max(len(lengths) * int(lengths.max()) for lengths in batches)
    parts = {"Adam's moments": sizes.moments}
    if config.method == "less" and config.budgeted:  # of all later checkpoints, with their adapters
        parts = {"later checkpoints": (len(config.checkpoints) - 1) * sizes.checkpoint}
    if settings.projection == "countsketch":
        parts["projection tables"] = sizes.tables(settings.dim)
    parts["gradients of a layer"] = COPIES * most * sizes.largest_layer
    if activations is not None:
        parts["activations"] = round(padded * (activations.gradients + sizes.layer_inputs))
    return parts


def _training(config: Config, facts: Facts, sizes: Sizes, activations: Activations | None) -> Parts:
    parts = {"Adam's moments": sizes.moments, "gradients": sizes.adapter}
    if activations is not None:
        longest = np.sort(facts.training_lengths)[-config.training.micro_batch :]
        parts["activations"] = round(len(longest) * int(longest.max()) * activations.training)
    return parts


def _clustering(config: Config, facts: Facts, sizes: Sizes) -> Parts:
    """As documented in clustering/kmeans.py: one block of the store, the centroids and their sums, labels."""
    dim, k = stored_dim(config, sizes.hidden), number_of_clusters(config, facts.rows)
    block = min(BLOCK_ROWS, facts.rows)
    return {
        "block of the store": 10 * block * dim,
        "centroids": 3 * FLOAT * k * dim,
        "labels": 24 * facts.rows,
    }
