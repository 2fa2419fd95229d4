"""The steps of a run, each over the one run directory: what is there already is not done again.

Each step is a function of the session. A step reads the artifacts of those before it and publishes its
own, with what it cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.features.kmeans import Clusters, default_k, spherical_kmeans
from clusterucb.features.store import FeatureWriter
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import plan
from clusterucb.gradients.featurizer import Featurizer, one_ahead
from clusterucb.run.artifacts import (
    checkpoint_fingerprint,
    made_of,
    need,
    store,
)
from clusterucb.run.costs import Cost
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish, publish_folder, write_json
from clusterucb.selection.checks import check_counts
from clusterucb.selection.share import cold_draws, share
from clusterucb.steps.baselines import _refuse_baseline
from clusterucb.steps.hidden import hidden_features
from clusterucb.training.adapter import load_adapter
from clusterucb.training.model import pick_device
from clusterucb.training.moments import load_moments


def gradients(session: Session, number: int = 1) -> None:
    """Features of all usable rows at warmup checkpoint `number`, and the directions of the target there.

    With `features: hidden` both are of hidden states.
    """
    _refuse_baseline(session, "gradients")
    folder, checkpoint = session.dir.features_at(number), session.dir.checkpoint(number)
    world = session.world.at("gradients")
    if world.has(folder):
        store(session, number)
        return
    moments = load_moments(need(session, checkpoint, "warmup") / "moments.safetensors")
    made_at = {"checkpoint": checkpoint_fingerprint(checkpoint, moments)}
    load_adapter(session.model, checkpoint)
    if session.config.clustering.features == "hidden":
        hidden_features(session, folder, {**made_of(session, session.made_with), **made_at})
        return
    made_with = {**session.made_with, **made_at}
    store_features(session, folder, session.model, moments, made_with, f"gradients at {checkpoint.name}")


def store_features(
    session: Session,
    folder: Path,
    model: nn.Module,
    moments: Moments,
    made_with: Mapping[str, object],
    title: str,
) -> None:
    """Publish features of all usable rows, and the target's directions, at the model as it is, in `folder`.

    Args:
        session: whose rows, projection and settings they are.
        folder: not there yet; a killed command goes on.
        model: with the session's adapter.
        moments: Adam's, there.
        made_with: fingerprints of all that the features depend on.
        title: of the progress bar.
    """
    pooled, settings, world = session.pooled, session.config.gradients, session.world.at("gradients")
    directions, target_cost = session.targeted.directions(
        model, session.projection, settings.batch_tokens, session.screen, world
    )
    featurize = Featurizer(model, session.projection, moments, settings.formula)
    with (
        publish_folder(folder, resume=True, world=world) as part,
        FeatureWriter(part, len(pooled.rows), settings.dim, made_with, settings.store_dtype, world) as writer,
        session.screen.track(title, len(pooled.rows), "rows", int(writer.done.sum())) as advance,
    ):
        missing = writer.missing(plan(pooled.lengths, settings.batch_tokens))

        def written(batches: Sequence[NDArray[np.int64]]) -> Iterator[int]:
            """The number of new rows in each of the batches, which are in the store by then."""
            for rows, found in one_ahead(featurize, pooled.tokens, batches, pooled.describe):
                new = len(rows) - int(writer.done[rows].sum())
                writer.write(rows, *found)
                yield new

        for rows, new in world.share(missing, written, each=16):
            advance(new, pooled.describe(int(rows[-1])))
        if world.leads:
            save_file({"directions": directions}, part / "directions.safetensors")
        cost = Cost(len(pooled.rows), int(pooled.lengths.sum()), len(pooled.rows), 0, writer.seconds)
        writer.finish({"cost": (cost + target_cost).to_json()})


def cluster(session: Session) -> None:
    """Spherical k-means over the features: the bandit's arms."""
    _refuse_baseline(session, "cluster")
    if not session.config.budgeted:
        raise ConfigError(
            f"method {session.config.method}, bandit {session.config.bandit}: no bandit, so no clusters are "
            f"needed; go on with `clusterucb select --out {session.dir.path}`"
        )
    path, world = session.dir.clusters, session.world.at("cluster")
    if world.has(path):
        return
    features = store(session).features
    settings = session.config.clustering
    k, iterations = number_of_clusters(session.config, len(features)), settings.iterations
    started = time.monotonic()
    with session.screen.track(f"k-means, k {k}", iterations, "iterations") as advance:
        clusters = spherical_kmeans(
            features,
            k,
            iterations=iterations,
            seed=session.config.seed,
            device=device if (device := pick_device(session.config.device)).type == "cuda" else "cpu",
            backend=settings.kmeans_backend,
            progress=lambda _iteration, _of, mean: advance(1, f"mean cosine {mean:.4f}", mean_cosine=mean),
            world=world,
        )
    cost = Cost(rows=len(features), seconds=time.monotonic() - started)
    facts = {"k": k, "objective": clusters.objective, "cost": cost.to_json()}

    def keep() -> None:
        write_json(session.dir.path / "clusters.json", facts)
        _check_cold_start(session, clusters)
        with publish(path) as part:
            clusters.save(part)

    world.lead(keep)


def number_of_clusters(config: Config, rows: int) -> int:
    """The arms of so many rows: those that are set, or as many as the budget has room for."""
    return config.clustering.k or default_k(rows, share(config.selection.cap, rows))


def _check_cold_start(session: Session, clusters: Clusters) -> None:
    """Refuse a cold start that the budget cannot pay before anything is trained on it."""
    if session.config.selection.by_row:
        return
    chosen, rows = session.config.selection, len(clusters.labels)
    first = {c: cold_draws(chosen.csp, size) for c, size in enumerate(clusters.sizes.tolist()) if size}
    spend, keep = share(chosen.cap, rows), share(chosen.top_p, rows)
    check_counts(rows, first, spend, keep, budget=chosen.cap, cold_start=chosen.csp, top_p=chosen.top_p)
