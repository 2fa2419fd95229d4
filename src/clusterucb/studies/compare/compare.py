"""A comparison: every method and repetition as a run, in one directory.

comparison.yaml    the settings that all runs share
METHOD/0, 1, ...   the runs (see cells.py)
shared/            what runs have in common, made by the first that needs it
comparison.json    the table, and how it was computed
comparison.csv     a line a run
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clusterucb.config import Config, load, reconcile
from clusterucb.errors import BusyError, ConfigError, StorageError
from clusterucb.recipes import procedure
from clusterucb.run.directory import RunDir
from clusterucb.run.inputs import Inputs
from clusterucb.run.presets import DEFAULT, neutral, presets_named, repetitions
from clusterucb.run.session import Session
from clusterucb.run.sizing import TRAINING, decide, lines
from clusterucb.runtime.files import publish, storage_errors, write_json
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.studies.compare.cells import SHARED, Cell, all_cells
from clusterucb.studies.compare.results import compared, write_cells


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
        methods: names of `PRESETS`, with `@` and a budget where it is to be another than the settings'.
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
    chosen, repeats = presets_named(methods), repetitions(seeds)
    config = config.with_absolute_paths()
    out = RunDir(config.out)
    settings = out.path / "comparison.yaml"
    # repetition by repetition, so that all methods can be compared as soon as possible
    asked = [Cell(out.path, preset, repeat) for repeat in range(repeats) for preset in chosen]
    with ExitStack() as held, storage_errors(out.path):
        world.lead(lambda: held.enter_context(out.owned()))
        world.lead(lambda: _check_settings(settings, config))
        if world.has(settings):
            config = config.filled(load(settings, {"out": config.out}))
        inputs = Inputs(config, RunDir(out.path / SHARED), screen, world, settled=settings)
        _check_methods(asked, inputs)
        config = inputs.config
        world.lead(lambda: _save_settings(settings, config))
        with screen.track("compare", len(asked), "runs") as advance:
            for cell in asked:
                screen.say(f"{cell.name}: {cell.run.path}")
                _run(cell, inputs)
                result = world.lead(lambda: _publish(out.path, config))
                advance(1, cell.name)
    return result


def _check_settings(path: Path, config: Config) -> None:
    """Refuse a directory that holds something else, or was made with other settings."""
    if path.exists():
        reconcile(neutral(load(path, {"out": config.out})), neutral(config), str(path))
    elif RunDir(config.out).config.exists():
        raise ConfigError(
            f"{config.out}: holds a run; a comparison needs a directory of its own: use another --out"
        )


def _save_settings(path: Path, config: Config) -> None:
    if not path.exists():
        with publish(path) as part:
            part.write_text(config.to_yaml(), encoding="utf-8")


def _check_methods(asked: Sequence[Cell], inputs: Inputs) -> None:
    """Read the inputs, and the model if it was not before: every method's settings must hold for them."""
    for session in (_session(cell, inputs) for cell in asked if cell.repeat == 0):
        session.check_inputs()
    inputs.config, found = decide(inputs.config, inputs.job, TRAINING)  # the same for all methods
    if found:
        for line in lines(inputs.config, inputs.job, found):
            inputs.screen.say(line)
    for session in (_session(cell, inputs) for cell in asked if cell.repeat == 0):
        session.check_plan(inputs.counts["usable"])
    if not inputs.world.has(inputs.dir.initial):
        inputs.load_model()


def _session(cell: Cell, inputs: Inputs) -> Session:
    return Session(cell.config(inputs.config), inputs.screen, inputs.world, inputs)


def _run(cell: Cell, inputs: Inputs) -> None:
    """Run one cell, and note if it fails."""
    world = inputs.world
    world.lead(lambda: cell.share(inputs.config))
    session = _session(cell, inputs)
    try:
        with session.owned():
            world.lead(cell.retry)
            procedure(session)
    except (StorageError, BusyError):  # would fail the others, too, or is over soon
        raise
    except Exception as error:  # noqa: BLE001 - a defect in one method must not take the others with it
        failure = error
    else:
        return
    if world.leads:
        cell.fail(failure)
    if world.size > 1:
        raise failure
    inputs.screen.say(f"{cell.name} failed: {cell.failure}")
    inputs.release_model()  # nobody knows what state it is in


def _publish(out: Path, config: Config) -> dict[str, Any]:
    """Write the table of what is there by now."""
    result = compared(all_cells(out), config)
    write_cells(out / "comparison.csv", result["cells"])
    write_json(out / "comparison.json", result)
    return result
