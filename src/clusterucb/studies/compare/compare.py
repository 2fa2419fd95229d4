"""A comparison: every method and repetition as a run, in one directory.

comparison.yaml    the settings that all runs share
METHOD/0, 1, ...   the runs (see cells.py)
comparison.json    the table, and how it was computed
comparison.csv     a line a run
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clusterucb.config import Config, load, reconcile
from clusterucb.errors import BusyError, ClusterUCBError, ConfigError, StorageError
from clusterucb.recipes import procedure
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import DEFAULT, methods_named, neutral, repetitions
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish, storage_errors, write_json
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.studies.compare.cells import Cell, all_cells, cells
from clusterucb.studies.compare.results import compared, write_cells
from clusterucb.studies.compare.sharing import adopt


def compare(
    config: Config,
    methods: str | Sequence[str] = DEFAULT,
    seeds: int = 3,
    screen: Screen | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Run each method `seeds` times and compare what comes out.

    What runs have in common is computed once. Interrupted at any point, the same call goes on; runs that
    failed are tried again; methods and repetitions may be added later, and the table grows.

    Args:
        config: the settings that all runs share; `out` is the comparison's directory.
        methods: names of `METHODS`, with `@` and a budget where it is to be another than the settings'.
        seeds: repetitions, which differ in the draws and the order and dropout of training.
        screen: where progress is shown.
        world: the processes that do each run together.

    Returns:
        The content of comparison.json. A run that fails is told there, and the others go on; of several
        processes it ends all, as the others wait for the one where it failed.

    Raises:
        ClusterUCBError: what would fail every run (a missing file, a full disk, other settings than before).
    """
    screen = screen or Screen(quiet=True)
    chosen, repeats = methods_named(methods), repetitions(seeds)
    config = config.with_absolute_paths()
    out = RunDir(config.out)
    asked = cells(out.path, chosen, repeats)
    with ExitStack() as held, storage_errors(out.path):
        world.lead(lambda: held.enter_context(out.owned()))
        world.lead(lambda: _check_settings(out.path, config))
        session = _prepared(asked, config, screen, world)
        world.lead(lambda: _save_settings(out.path, config))
        with screen.track("compare", len(asked), "runs") as advance:
            for cell in asked:
                screen.say(f"{cell.name}: {cell.run.path}")
                session = _run(cell, session, config)
                result = world.lead(lambda: _publish(out.path, config))
                advance(1, cell.name)
    return result


def _check_settings(out: Path, config: Config) -> None:
    """Refuse a directory that holds something else, or was made with other settings."""
    path = _settings(out)
    if path.exists():
        reconcile(neutral(load(path, {"out": config.out})), neutral(config), str(path))
    elif RunDir(out).config.exists():
        raise ConfigError(f"{out}: holds a run; a comparison needs a directory of its own: use another --out")


def _save_settings(out: Path, config: Config) -> None:
    if not _settings(out).exists():
        with publish(_settings(out)) as part:
            part.write_text(config.to_yaml(), encoding="utf-8")


def _settings(out: Path) -> Path:
    return out / "comparison.yaml"


def _prepared(asked: Sequence[Cell], config: Config, screen: Screen, world: World) -> Session:
    """A session with all inputs read, after every method's settings have held for them.

    Its run has the adapter before training and the tokens, which the others get from it.
    """
    first, *others = (cell for cell in asked if cell.repeat == 0)
    configs = [cell.config(config) for cell in others]
    session = Session(first.config(config), screen, world)
    with session.owned():
        _adopt(first, session)
        session.check_inputs()
        usable = len(session.pooled_tokens[1])
        for other in configs:
            session = session.successor(other)
            session.check_inputs()
            session.check_plan(usable)
        session = session.successor(first.config(config))
        if not world.has(session.dir.initial):
            _ = session.model
    return session


def _run(cell: Cell, before: Session, config: Config) -> Session:
    """Run one cell with what `before` has loaded, and note if it fails."""
    session = before.successor(cell.config(config))
    try:
        with session.owned():
            session.world.lead(cell.retry)
            _adopt(cell, session)
            procedure(session)
    except (StorageError, BusyError):  # would fail the others, too, or is over soon
        raise
    except ClusterUCBError as error:
        failure: Exception = error
    except Exception as error:  # noqa: BLE001 - a defect in one method must not take the others with it
        failure = error
    else:
        return session
    if session.world.leads:
        cell.fail(failure)
    if session.world.size > 1:
        raise failure
    session.screen.say(f"{cell.name} failed: {cell.failure}")
    session.release_model()  # nobody knows what state it is in
    return session


def _adopt(cell: Cell, session: Session) -> None:
    session.world.lead(lambda: adopt(cell, all_cells(cell.out), session.config))


def _publish(out: Path, config: Config) -> dict[str, Any]:
    """Write the table of what is there by now."""
    result = compared(all_cells(out), config)
    write_cells(out / "comparison.csv", result["cells"])
    write_json(out / "comparison.json", result)
    return result
