"""The card of an index: what it is and how it was made, as a data set repository of the hub shows it."""

from __future__ import annotations

from pathlib import Path

from clusterucb.run.session import Session
from clusterucb.runtime.files import made
from clusterucb.version import __version__, commit

_CARD = """---
tags: [clusterucb]
---

# An index for data selection

What clusterucb {version} (commit {commit}) knows of a pool before there is a target: the checkpoint of a
short training, {what} of {rows} rows, and their clusters. It serves any target:

    clusterucb query INDEX --target task.jsonl
    clusterucb run --index INDEX --target task.jsonl --out runs/task

with this folder or `hub:ORG/NAME` as INDEX, and `--model` and `--pool` where these lie elsewhere. All
settings are in config.yaml. The tokens of all rows are in pool/: who may not see the pool may not have this.

| | |
|---|---|
| model | {model} |
| pool | {pool} |
| method | {method} |
| features | {dim} dimensions, {dtype} |
| tokens of a row | {length} |
"""


def write_card(session: Session) -> None:
    """Publish README.md in the index, once."""
    config, store = session.config, session.index.store()
    text = _CARD.format(
        version=__version__,
        commit=commit() or "unknown",
        what=session.method.compares,
        rows=f"{len(store):,}",
        model=config.model,
        pool=", ".join(Path(path).name if Path(path).exists() else path for path in config.pool),
        method=config.method,
        dim=store.features.shape[1],
        dtype=config.gradients.store_dtype,
        length=config.gradients.gradient_length,
    )
    path = session.dir.path / "README.md"
    made(path, lambda part: part.write_text(text, encoding="utf-8"), Path.exists, world=session.world)
