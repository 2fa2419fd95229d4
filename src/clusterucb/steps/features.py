"""The steps of a run, each over the one run directory: what is there already is not done again.

Each step is a function of the session. A step reads the artifacts of those before it and publishes its
own, with what it cost.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import save_file
from torch import nn
from transformers import TrainerCallback

from clusterucb.config import Config
from clusterucb.data.chat import Encoded
from clusterucb.data.target import Target
from clusterucb.errors import ConfigError, InputError
from clusterucb.evaluation.adapter import benchmarks
from clusterucb.evaluation.loss import losses
from clusterucb.evaluation.scores import standard_error
from clusterucb.features.influence import Rows, stored_influence
from clusterucb.features.kmeans import Clusters, default_k, spherical_kmeans
from clusterucb.features.knowledge import Knowledge
from clusterucb.features.store import FeatureWriter
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.batches import plan
from clusterucb.gradients.featurizer import Featurizer, one_ahead
from clusterucb.run.artifacts import (
    already_trained,
    check_features,
    checkpoint_fingerprint,
    directions_at,
    labels,
    made_of,
    need,
    publish_checkpoint,
    store,
)
from clusterucb.run.costs import Cost, recorded_costs
from clusterucb.run.directory import publish, publish_folder, read_json, write_json
from clusterucb.run.rounds import Round, read_round, write_round
from clusterucb.run.session import Session
from clusterucb.runtime.profiling import stage
from clusterucb.runtime.screen import Advance
from clusterucb.selection.checks import check_counts
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.selector import ClusterUCB, FullScoring, RowUCB, Selector
from clusterucb.selection.share import cold_draws, share
from clusterucb.steps.baselines import BASELINES, select_baseline
from clusterucb.steps.hidden import hidden_features
from clusterucb.steps.reselection import Reselection
from clusterucb.training.callbacks import DynamicSelection, PeriodEnds, WholeCheckpoints
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import Finetuned, finetune, optimizer_steps, training_clock
from clusterucb.training.model import load_adapter, pick_device
from clusterucb.training.moments import import_moments, load_moments

__all__ = [
    "benchmark",
    "cluster",
    "evaluate",
    "evaluate_adapters",
    "gradients",
    "number_of_clusters",
    "random_rows",
    "rank",
    "reselect",
    "reselection",
    "select",
    "store_features",
    "summarise",
    "train",
    "train_from_initial",
    "train_on",
    "warmup",
]


def warmup(session: Session) -> None:
    """Train the adapter for a few steps on random pool rows: the checkpoint of the first gradients."""
    _refuse_baseline(session, "warmup")
    states = session.dir.path / "warmup.states"
    if already_trained(session, session.dir.warmup, states):
        return
    settings, steps = session.config.training, session.config.warmup.warmup_steps
    rows = random_rows(len(session.training_tokens), steps * settings.batch_size, session.config.seed)
    dataset = SwappableRows(session.training_tokens, rows)
    seed, clock = session.config.seed, training_clock(states, session.world)
    finetuned = train_from_initial(session, "warm up", dataset, states, 1, clock, seed)
    _publish_trained(session, session.dir.warmup, states, finetuned, rows)


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
                with stage("write"):
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
    with stage("cluster"), session.screen.track(f"k-means, k {k}", iterations, "iterations") as advance:
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


def select(session: Session) -> Round:
    """Round 1: all rows are scored at the warmup checkpoint already, so the plain top share is taken.

    With `features: hidden` no row is: the bandit selects there, as in any later period. The baselines need no
    checkpoint.
    """
    if session.config.method in BASELINES:
        return select_baseline(session)
    if not session.world.has(session.dir.round(1)):
        if session.config.clustering.features == "hidden":
            moments = _go_to(session, need(session, session.dir.warmup, "warmup"))
            return reselection(session, session.dir.round(1).parent).round(1, session.model, lambda: moments)
        rank(session, store(session).features, directions_at(session))
    return read_round(session.dir.round(1))


def rank(session: Session, features: Rows, directions: NDArray[np.floating]) -> None:
    """Publish round 1: the top share of all rows by features (N, d) that are there, for directions (S, d)."""
    started = time.monotonic()
    keep = FullScoring(labels(session), session.config.selection.top_p)
    world = session.world.at("select")
    selection = keep(lambda _every: stored_influence(features, directions, world=world))
    cost = Cost(rows=keep.spend, seconds=time.monotonic() - started)
    with publish_folder(session.dir.round(1), world=world) as part:
        if world.leads:
            summary = write_round(part, 1, selection, [], session.pool, session.pooled.rows, cost)
    if world.leads:
        session.screen.tell("selected", **summary)


def reselect(session: Session, checkpoint: Path) -> tuple[Path, Round]:
    """One re-selection, as in a later period, at any checkpoint of this adapter, ours or a Trainer's."""
    if session.config.method != "dynamic":
        raise ConfigError(
            f"--checkpoint {checkpoint}: only method dynamic selects at any checkpoint, and this run's is "
            f"{session.config.method}; leave --checkpoint out"
        )
    moments = _go_to(session, _adapter_folder(checkpoint))
    name = f"{checkpoint.absolute().name}-{checkpoint_fingerprint(checkpoint, moments)}"
    folder = session.dir.path / "selections" / name
    return folder / "1", reselection(session, folder).round(1, session.model, lambda: moments)


def _go_to(session: Session, checkpoint: Path) -> Moments:
    """Give the model the weights of a checkpoint to select at; returns Adam's moments there."""
    _ = labels(session)
    check_features(session)
    load_adapter(session.model, checkpoint)
    return import_moments(checkpoint, session.model)


def train(session: Session) -> None:
    """Train from the initial adapter on the selected rows.

    The method `dynamic` selects them anew at the start of each period but the first; all others have one
    selection for all periods.
    """
    if already_trained(session, session.dir.adapter, session.dir.training):
        return
    first = read_round(need(session, session.dir.round(1), "select"))
    if session.config.method != "dynamic":
        train_on(session, first.rows, session.dir.adapter, watched=True)
        return
    check_features(session)
    clock = training_clock(session.dir.training, session.world)
    rounds = session.dir.round(1).parent
    epochs_per_period = session.config.training.epochs_per_period
    dynamic = DynamicSelection(
        session.training_tokens,
        first.rows,
        reselection(session, rounds, clock.pause),
        epochs_per_period=epochs_per_period,
    )
    callbacks = (dynamic, _watch(session, len(first.rows), clock))
    finetuned = _train_periods(session, dynamic.dataset, session.dir.training, clock, callbacks)
    selected = [read_round(session.dir.round(n + 1)).rows for n in range(session.config.training.periods)]
    trained = np.tile(np.concatenate(selected), epochs_per_period)
    _publish_trained(session, session.dir.adapter, session.dir.training, finetuned, trained)


def train_on(session: Session, rows: NDArray[np.int64], folder: Path, *, watched: bool = False) -> None:
    """Train on the same usable rows in every period: what a selection is compared with.

    Args:
        session: whose initial adapter, schedule and seed are used.
        rows: (L,), places among the usable rows.
        folder: becomes the adapter.
        watched: keep the loss on held-out rows after each period.
    """
    states = folder.with_name(f"{folder.name}.states")
    if already_trained(session, folder, states):
        return
    dataset = SwappableRows(session.training_tokens, rows)
    clock, settings = training_clock(states, session.world), session.config.training
    callbacks = (_watch(session, len(rows), clock),) if watched else ()
    finetuned = _train_periods(session, dataset, states, clock, callbacks)
    trained = np.tile(rows, settings.periods * settings.epochs_per_period)
    _publish_trained(session, folder, states, finetuned, trained)


def evaluate(session: Session) -> dict[str, Any]:
    """Loss on held-out rows of the task, or on the target where none were given, before and after."""
    path = session.dir.evaluation
    if not session.world.has(path):
        adapters = {"base": session.dir.initial, "adapter": need(session, session.dir.adapter, "train")}
        found = evaluate_adapters(session, adapters)
        session.world.lead(lambda: write_json(path, found))
    return read_json(path)


def evaluate_adapters(session: Session, adapters: dict[str, Path]) -> dict[str, Any]:
    """Mean loss with its standard error, and each row's loss, for every adapter by name."""
    rows, encoded, result = _evaluated_rows(session)
    started, total = time.monotonic(), len(adapters) * len(encoded)
    with stage("evaluate"), session.screen.track("evaluate", total, "rows") as advance:
        for name, folder in adapters.items():
            load_adapter(session.model, folder)
            result[name] = _measured(session, rows, encoded, f"the {name} model", advance)
    tokens = len(adapters) * sum(len(row.ids) for row in encoded)
    return {**result, "cost": Cost(total, tokens, seconds=time.monotonic() - started).to_json()}


def _evaluated_rows(session: Session) -> tuple[Target, Sequence[Encoded], dict[str, Any]]:
    """The rows that models are evaluated on, as tokens too, and how they are called and counted."""
    rows = session.holdout or session.target
    encoded = session.encode_all(rows, session.config.training.train_length, "--train-length")
    return rows, encoded, {"on": "holdout" if session.holdout else "target", "rows": len(encoded)}


def _measured(
    session: Session, rows: Target, encoded: Sequence[Encoded], under: str, advance: Advance
) -> dict[str, Any]:
    """Mean loss at the model's current weights with its standard error, and each row's loss."""
    world = session.world.at("evaluate")
    found = losses(session.model, encoded, session.config.gradients.batch_tokens, advance, world)
    if not (usable := np.isfinite(found)).all():
        bad = int(usable.argmin())
        raise InputError(
            f"{rows[bad].id}: its loss under {under} is {found[bad]}, expected a finite "
            f"number; take the row out, or train with a lower --lr or --dtype float32"
        )
    return {"loss": float(found.mean()), "standard_error": standard_error(found), "losses": found.tolist()}


def _watch(session: Session, rows: int, clock: WholeCheckpoints) -> PeriodEnds:
    """Keeps the loss after each period but the last, whose loss `evaluate` finds; training is not charged."""
    settings = session.config.training
    held_out = cache(lambda: _evaluated_rows(session))

    def ended(period: int) -> None:
        path = session.dir.period(period)
        if period == settings.periods or session.world.has(path):
            return
        started = time.monotonic()
        target, encoded, facts = held_out()
        with (
            stage("evaluate"),
            session.screen.track(f"evaluate, period {period}", len(encoded), "rows") as advance,
        ):
            result = _measured(session, target, encoded, f"the model after period {period}", advance)
        seconds, tokens = time.monotonic() - started, sum(len(row.ids) for row in encoded)
        cost = Cost(len(encoded), tokens, seconds=seconds).to_json()
        session.world.lead(lambda: write_json(path, {"period": period, **facts, **result, "cost": cost}))
        clock.pause(seconds)

    return PeriodEnds(optimizer_steps(rows, settings.epochs_per_period, settings), ended)


def benchmark(session: Session) -> dict[str, Any]:
    """Base and adapter on the benchmarks that are set, question by question; nothing if none is.

    Of several processes rank 0 asks alone.
    """
    if not session.config.evaluation.tasks:
        return {}
    adapter = need(session, session.dir.adapter, "train")
    _ = session.unchecked

    alone = session.alone()

    def model() -> PeftModel:
        load_adapter(alone.model, adapter)
        return alone.model

    if session.config.evaluation.engine == "vllm":
        session.release_model()
    elif alone is session:
        _ = session.model
    asked = benchmarks(
        session.config,
        adapter,
        session.dir.benchmarks,
        model,
        session.tokenizer,
        session.chat,
        session.screen,
    )
    with stage("benchmarks"):
        return session.world.at("benchmarks").lead(asked.run)


def summarise(session: Session) -> dict[str, Any]:
    """Publish summary.json: what each step cost, and the total against the method without a budget."""
    return session.world.at("summary").lead(lambda: _summarise(session))


def _summarise(session: Session) -> dict[str, Any]:
    run, pool = session.dir, read_json(session.dir.pool / "manifest.json")
    last = session.config.training.periods if session.config.method == "dynamic" else 1
    rounds = [read_round(run.round(n + 1)) for n in range(last)]
    steps = recorded_costs(run, session.config.checkpoints, range(1, last + 1))
    total = sum(steps.values(), Cost())
    summary = {
        "method": session.config.method,
        "bandit": session.config.bandit if session.config.budgeted else "none",
        "rows": pool["usable"],
        "excluded": pool["excluded"],
        "selected": [r.summary for r in rounds],
        "steps": {name: cost.to_json() for name, cost in steps.items()},
        "total": total.to_json(),
        "gradient_equivalents": total.gradient_equivalents,
        **_against_full(session, total),
    }
    write_json(run.summary, summary)
    session.screen.tell("summary", **summary)
    return summary


def _against_full(session: Session, total: Cost) -> dict[str, Any]:
    """The gradients of all rows whenever the method takes any, and the share of them that was computed.

    `share_of_cost` has forward passes in it, in gradients.
    """
    config = session.config
    times = {"dynamic": config.training.periods, "less": len(config.checkpoints)}.get(config.method)
    if times is None:
        return {}
    full = times * len(session.pooled.rows)
    return {
        "full": {
            "method": config.method,
            "pool_gradients": full,
            "pool_tokens": times * int(session.pooled.lengths.sum()),
            "share_of_pool_gradients": total.pool_gradients / full,
            "share_of_cost": total.gradient_equivalents / full,
        }
    }


def reselection(
    session: Session, folder: Path, spent: Callable[[float], None] = lambda _seconds: None
) -> Reselection:
    """What selects by fresh gradients, with rounds in `folder`: the bandit, or all rows without one."""
    return Reselection(
        pooled=session.pooled,
        targeted=session.targeted,
        selector=_selector(session),
        projection=session.projection,
        folder=folder,
        seed=session.repeat_seed,
        formula=session.config.gradients.formula,
        batch_tokens=session.config.gradients.batch_tokens,
        knowledge=_knowledge(session) if session.config.budgeted else None,
        screen=session.screen,
        spent=spent,
        world=session.world.at("select"),
    )


def _knowledge(session: Session) -> Knowledge:
    """What the stored features tell of rows before they are drawn."""
    features = store(session).features
    if session.config.clustering.features == "gradients":
        return Knowledge(features)
    return Knowledge(features, stored_influence(features, directions_at(session)))


def _selector(session: Session) -> Selector:
    """How rows are drawn and kept, as the settings say."""
    chosen, clusters = session.config.selection, labels(session)
    if not session.config.budgeted:
        return FullScoring(clusters, chosen.top_p)
    if isinstance(session.policy, LinearUCB):
        return RowUCB(clusters, session.policy, budget=chosen.cap, top_p=chosen.top_p)
    return ClusterUCB(
        clusters,
        session.policy,
        budget=chosen.cap,
        cold_start=chosen.csp,
        top_p=chosen.top_p,
        draw_batch=chosen.draw_batch,
        draw_batch_arms=chosen.draw_batch_arms,
        draw_order=chosen.draw_order,
    )


def number_of_clusters(config: Config, rows: int) -> int:
    """The arms of so many rows: those that are set, or as many as the budget has room for."""
    return config.clustering.k or default_k(rows, share(config.selection.cap, rows))


def random_rows(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of `total` rows in random order; none comes again before all have come."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate(rounds)[:count].astype(np.int64)


def _train_periods(
    session: Session,
    dataset: SwappableRows,
    states: Path,
    clock: WholeCheckpoints,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Finetuned:
    """All periods under one schedule."""
    settings = session.config.training
    epochs = settings.periods * settings.epochs_per_period
    seed = session.repeat_seed
    return train_from_initial(session, "train", dataset, states, epochs, clock, seed, callbacks)


def train_from_initial(
    session: Session,
    label: str,
    dataset: SwappableRows,
    states: Path,
    epochs: int,
    clock: WholeCheckpoints,
    seed: int,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Finetuned:
    """Train the initial adapter for some epochs, going on from the states saved last."""
    settings = session.config.training
    load_adapter(session.model, session.dir.initial)
    steps = optimizer_steps(len(dataset), epochs, settings)
    with stage("train"), session.screen.track(label, steps, "steps") as advance:
        return finetune(
            session.model,
            dataset,
            states,
            settings,
            seed=seed,
            epochs=epochs,
            callbacks=callbacks,
            clock=clock,
            advance=advance,
            describe=lambda place: session.pooled.describe(dataset.row(place)),
            world=session.world.at(label),
        )


def _publish_trained(
    session: Session, folder: Path, states: Path, finetuned: Finetuned, trained: NDArray[np.int64]
) -> None:
    """Publish an adapter with what training on the rows `trained` has cost; drop the trainer's states."""
    tokens = int(session.training_tokens.lengths[trained].sum())
    cost = Cost(len(trained), tokens, seconds=finetuned.seconds)
    publish_checkpoint(session, folder, finetuned.moments, cost)
    session.world.lead(lambda: shutil.rmtree(states))


def _check_cold_start(session: Session, clusters: Clusters) -> None:
    """Refuse a cold start that the budget cannot pay before anything is trained on it."""
    if session.config.selection.by_row:
        return
    chosen, rows = session.config.selection, len(clusters.labels)
    first = {c: cold_draws(chosen.csp, size) for c, size in enumerate(clusters.sizes.tolist()) if size}
    spend, keep = share(chosen.cap, rows), share(chosen.top_p, rows)
    check_counts(rows, first, spend, keep, budget=chosen.cap, cold_start=chosen.csp, top_p=chosen.top_p)


def _adapter_folder(checkpoint: Path) -> Path:
    if not (checkpoint / "adapter_model.safetensors").exists():
        raise ConfigError(f"--checkpoint {checkpoint}: expected a folder with adapter_model.safetensors")
    return checkpoint


def _refuse_baseline(session: Session, step: str) -> None:
    if session.config.method in BASELINES:
        raise ConfigError(
            f"method {session.config.method} has no step {step}, as it needs no gradient: "
            f"run `clusterucb select --out {session.dir.path}`"
        )
