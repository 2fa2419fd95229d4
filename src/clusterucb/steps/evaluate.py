"""How good the adapter is: loss on held-out rows, before, between and after, and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from clusterucb.errors import InputError
from clusterucb.evaluation.adapter import benchmarks
from clusterucb.evaluation.loss import losses
from clusterucb.evaluation.scores import standard_error
from clusterucb.run.index import needed
from clusterucb.run.session import Session, Step
from clusterucb.runtime.files import made, read_json, write_json
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import PartEnds, WholeCheckpoints
from clusterucb.training.finetune import optimizer_steps


def evaluate(session: Session) -> dict[str, Any]:
    """Loss on held-out rows of the task, or on the target where none were given, before and after."""
    adapters = {"base": session.dir.initial, "adapter": needed(session.dir, session.dir.adapter, "train")}

    def compare(part: Path) -> None:
        found = evaluate_adapters(session, adapters)
        if session.world.leads:
            write_json(part, found)

    return made(session.dir.evaluation, compare, read_json, world=session.world)


def evaluate_adapters(session: Session, adapters: dict[str, Path]) -> dict[str, Any]:
    """Mean loss with its standard error, and each row's loss, for every adapter by name."""
    rows = session.inputs.evaluation_tokens
    found: dict[str, Any] = {"on": session.inputs.evaluated[1], "rows": len(rows)}
    with session.step("evaluate", len(adapters) * len(rows), "rows") as step:
        for name, folder in adapters.items():
            load_adapter(session.model, folder)
            found[name] = _measured(session, f"the {name} model", step)
        tokens = len(adapters) * sum(map(len, rows))
        cost = step.cost(len(adapters) * len(rows), tokens)
    return {**found, "cost": cost.to_json()}


def _measured(session: Session, under: str, step: Step) -> dict[str, Any]:
    """Mean loss at the model's current weights with its standard error, and each row's loss."""
    rows, names = session.inputs.evaluation_tokens, [row.id for row in session.inputs.evaluated[0].rows]
    found = losses(
        session.model,
        rows,
        session.batch_tokens,
        step.advance,
        step.world,
        names.__getitem__,
        session.room,
    )
    if not (usable := np.isfinite(found)).all():
        bad = int(usable.argmin())
        raise InputError(
            f"{names[bad]}: its loss under {under} is {found[bad]}, expected a finite number; take "
            f"the row out, or train with a lower --lr or --dtype float32"
        )
    return {"loss": float(found.mean()), "standard_error": standard_error(found), "losses": found.tolist()}


def watch(session: Session, rows: int, clock: WholeCheckpoints) -> PartEnds:
    """Keeps the loss after each period but the last, whose loss `evaluate` finds; training is not charged."""
    settings = session.config.training

    def ended(period: int, _moments: object, _rate: float) -> None:
        path = session.dir.period(period)
        if period == settings.periods or session.world.has(path):
            return
        tokens = session.inputs.evaluation_tokens
        title = f"evaluate, period {period}"
        with session.step("evaluate", len(tokens), "rows", title=title) as step:
            found = _measured(session, f"the model after period {period}", step)
            cost = step.cost(len(tokens), sum(map(len, tokens)))
        facts = {"period": period, "on": session.inputs.evaluated[1], "rows": len(tokens)}
        session.world.lead(lambda: write_json(path, {**facts, **found, "cost": cost.to_json()}))
        clock.pause(cost.seconds)

    return PartEnds(optimizer_steps(rows, settings.epochs_per_period, settings), ended)


def benchmark(session: Session) -> dict[str, Any]:
    """Base and adapter on the benchmarks that are set, question by question; nothing if none is.

    Of several processes rank 0 asks alone.
    """
    if not session.config.evaluation.tasks:
        return {}
    adapter = needed(session.dir, session.dir.adapter, "train")
    session.inputs.tell_unchecked()
    alone = session.alone()

    def model() -> PeftModel:
        load_adapter(alone.model, adapter)
        return alone.model

    if session.config.evaluation.engine == "vllm":
        session.release_device()
    elif alone is session:
        session.inputs.load_model()
    asked = benchmarks(
        session.config,
        adapter,
        session.dir.benchmarks,
        session.dir.base_answers,
        model,
        session.inputs.tokenizer,
        session.inputs.chat,
        session.screen,
        session.room,
    )
    return session.world.at("benchmarks").lead(asked.run)
