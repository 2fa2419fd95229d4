"""How good the adapter is: loss on held-out rows, before, between and after, and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from clusterucb.data.chat import Encoded
from clusterucb.data.target import Target
from clusterucb.errors import InputError
from clusterucb.evaluation.adapter import benchmarks
from clusterucb.evaluation.loss import losses
from clusterucb.evaluation.scores import standard_error
from clusterucb.run.artifacts import need
from clusterucb.run.costs import Cost
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json, write_json
from clusterucb.runtime.screen import Advance
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import PeriodEnds, WholeCheckpoints
from clusterucb.training.finetune import optimizer_steps


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
    with session.screen.track("evaluate", total, "rows") as advance:
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
    return session.world.at("benchmarks").lead(asked.run)
