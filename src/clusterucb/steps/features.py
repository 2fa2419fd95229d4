"""Features of all rows, the rows' clusters, and the target's directions, at the checkpoints of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clusterucb.features.influence import Subspace, read_aimed
from clusterucb.features.kmeans import Clusters, spherical_kmeans
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import micro_batches
from clusterucb.gradients.featurizer import Found, one_ahead
from clusterucb.run.costs import Cost
from clusterucb.run.directory import RunDir
from clusterucb.run.index import check_model
from clusterucb.run.session import Session
from clusterucb.runtime.devices import is_gpu, room_for
from clusterucb.runtime.files import made, read_json, write_json
from clusterucb.steps.growth import take_over
from clusterucb.steps.hidden import hidden_directions, take_hidden
from clusterucb.steps.words import take_words, word_directions
from clusterucb.training.adapter import load_adapter
from clusterucb.training.model import pick_device

Directions = tuple[NDArray[np.float32] | Subspace, Cost]
"""What rows are compared with, and what that cost."""


def gradients(session: Session) -> None:
    """Features of all usable rows, and the target's directions, at each checkpoint that the method keeps."""
    session.refuse_unless(session.method.takes_gradients, "gradients", "as it needs no gradient")
    order = (features, directions) if session.method.by_likeness else (directions, features)
    for number in range(1, session.method.stored + 1):
        for take in order:  # so that what is wrong with the target shows before all rows are gone through
            take(session, number)


def features(session: Session, number: int = 1) -> FeatureStore:
    """Features of all usable rows at warmup checkpoint `number`: of gradients, hidden states or words."""

    def take(part: Path) -> None:
        if session.method.words:
            take_words(session, part, session.planned_with)
            return
        checkpoint = session.index.checkpoint(number)
        load_adapter(session.model, checkpoint.folder)
        made_with = {**session.made_with, "checkpoint": checkpoint.fingerprint}
        if session.method.by_likeness:
            take_hidden(session, part, made_with)
        else:
            title = f"gradients at {checkpoint.folder.name}"
            take_gradients(session, part, checkpoint.moments, made_with, title, number)

    path, world = session.dir.features_at(number), session.world.at("gradients")
    made(path, take, FeatureStore, resume=True, world=world)
    return session.index.store(number)


def take_gradients(
    session: Session,
    part: Path,
    moments: Moments,
    made_with: Mapping[str, object],
    title: str,
    number: int = 1,
) -> None:
    """Write a feature of every usable row's gradient, at the model as it is now, with Adam's moments there.

    A killed command goes on with what is in the folder, if it was `made_with` the same. Warmup checkpoint
    `number` is where an index that has grown has its old rows' features.
    """
    pooled, featurize = session.inputs.every, session.featurizer(moments)

    def compute(batches: Sequence[NDArray[np.int64]]) -> Iterator[Found]:
        return one_ahead(featurize, pooled.tokens, batches, pooled.describe)

    with session.store(pooled, part, session.config.gradients.dim, made_with, title) as (writer, advance):
        rows = take_over(session, writer, number)
        batches = micro_batches(pooled.lengths[rows], session.batch_tokens)
        writer.fill([rows[batch] for batch in batches], compute, advance)
        writer.finish({"cost": pooled.cost(writer.seconds, gradients=1).to_json()})


def directions(session: Session, number: int = 1) -> Directions:
    """The target's directions at warmup checkpoint `number`, and what they cost."""
    made_with, beside = session.aimed_with, session.dir.features_at(number)
    checkpoint, world = None, session.world.at("gradients")
    if not session.method.words:
        checkpoint = session.index.checkpoint(number)
        made_with |= {"checkpoint": checkpoint.fingerprint}

    def found() -> Directions:
        if checkpoint is None:
            return word_directions(session, beside)
        check_model(checkpoint.folder, session.made_with_model)
        load_adapter(session.model, checkpoint.folder)
        return hidden_directions(session, beside) if session.method.by_likeness else session.directions(world)

    def aim(part: Path) -> None:
        told = found()
        if session.world.leads:
            write_directions(part, told, made_with)

    return made(session.dir.directions_at(number), aim, read_directions, made_with, world=world)


def write_directions(path: Path, found: Directions, made_with: Mapping[str, object]) -> None:
    """Keep them, with what they cost and what they were made with."""
    aim, cost = found
    facts = {"made_with": json.dumps(made_with), "cost": json.dumps(cost.to_json())}
    arrays = {**vars(aim)} if isinstance(aim, Subspace) else {"directions": aim}
    save_file(arrays, path, metadata=facts)


def read_directions(path: Path) -> Directions:
    """What was kept of them."""
    return read_aimed(path), Cost.recorded(path)


def cluster(session: Session) -> Clusters:
    """Spherical k-means over the features: the bandit's arms."""
    session.refuse_unless(session.method.budgeted, "cluster", "as without a bandit no clusters are needed")
    session.decide()  # k
    rows, settings = session.index.store().features, session.config.clustering
    k, path = settings.k, clusters_of(session)
    about = path.with_suffix(".json")

    def group(part: Path) -> None:
        device = pick_device(session.config.device)
        title, advice = f"k-means, k {k}", "run `clusterucb cluster` by itself, or with --device cpu"
        begun = session.step("cluster", settings.iterations, "iterations", title=title)
        with room_for(title, advice), begun as step:
            found = spherical_kmeans(
                rows,
                k,
                iterations=settings.iterations,
                seed=session.config.seed,
                centre=settings.centre,
                device=device if is_gpu(device) else "cpu",
                backend=settings.kmeans_backend,
                progress=lambda _i, _of, mean: step.advance(1, f"mean cosine {mean:.4f}", mean_cosine=mean),
                world=step.world,
            )
            session.budget.cold_draws(found.sizes.tolist())
            if session.world.leads:
                facts = {"k": k, "centre": settings.centre, "objective": found.objective}
                write_json(about, {**facts, "cost": step.cost(len(rows)).to_json()})
                found.save(part)

    return made(path, group, Clusters.load, world=session.world.at("cluster"))


def clusters_of(session: Session) -> Path:
    """The file of the run's clusters: the index's, if those are as many, centred alike, or its own.

    In an index that the settings name none are made.
    """
    session.decide()
    wanted, told = session.config.clustering, clusters_told(session.dir)
    fits = session.config.index is None if told is None else told == (wanted.k, wanted.centre)
    return session.dir.clusters if fits else session.dir.own_clusters


def clusters_told(run: RunDir) -> tuple[int, bool] | None:
    """How many clusters there are, and whether they are centred; None where there are none yet."""
    if not run.clusters.exists():
        return None
    told = read_json(run.clusters.with_suffix(".json"))
    return told["k"], told.get("centre", False)
