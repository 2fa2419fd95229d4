"""The command line: one thin function a command. Nothing else knows of options and exit statuses.

Every setting is an option of every step command (see options.py). The options are made for the command that
is called, as making them takes longer than all the rest of a `--help`.

The command `report`: its options, and what becomes of them. cli.py registers it.

The command `export`: its options, and what becomes of them. cli.py registers it.

Keeps the libraries' own bars, notes and warnings off the screen, which shows this program's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clusterucb.cli.simulate import simulate
from clusterucb.errors import ClusterUCBError, ConfigError
from clusterucb.runtime.processes import ALONE, World, joined, leads

if TYPE_CHECKING:
    from clusterucb.config import Config
    from clusterucb.run.session import Session
    from clusterucb.runtime.screen import Screen

_Step = Callable[["Session", dict[str, Any]], None]
_Function = Callable[["str | None", dict[str, Any], dict[str, Any]], None]


class _Command(NamedTuple):
    """`function(file, settings given, own options)`; `kind` is the settings' class in config.py."""

    summary: str
    kind: str
    own: dict[str, str]
    function: _Function
    flags: Mapping[str, str] = MappingProxyType({})
    alone: Callable[[dict[str, Any]], bool] = lambda _options: False
    """Whether rank 0 does it alone, of all processes that torchrun has started, with these settings."""


_commands: dict[str, _Command] = {}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a person's error ends it with one line and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((argument for argument in arguments if not argument.startswith("-")), "")
    if named in _commands:
        from clusterucb.cli.options import repeat_list_options

        arguments = repeat_list_options(arguments)
    completing = "_CLUSTERUCB_COMPLETE" in os.environ
    app = application(None if completing else named)
    if leads():
        app(arguments, prog_name="clusterucb")
    else:
        _follow(app, arguments)


def _follow(app: typer.Typer, arguments: list[str]) -> None:
    """The same in a process that does not lead: what is wrong with the arguments, rank 0 says."""
    (usage_error,) = typer.BadParameter.__bases__
    try:
        app(arguments, prog_name="clusterucb", standalone_mode=False)
    except usage_error:  # type: ignore[misc]
        raise SystemExit(2) from None


def application(called: str | None = None) -> typer.Typer:
    """All commands; with `called`, only that one has its options."""
    app = typer.Typer(
        add_completion=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Targeted data selection for fine-tuning language models, by gradients, under a budget.",
    )
    app.callback(invoke_without_command=True)(_root)
    for name, command in _commands.items():
        app.command(name, help=command.summary)(_callable(name, command, bare=called not in (None, name)))
    app.command("prepare")(_by_rank_0(_prepare))
    app.command("simulate")(_by_rank_0(_one_line_errors()(simulate)))
    app.command("report")(_by_rank_0(_one_line_errors()(report)))
    app.command("export")(_by_rank_0(_one_line_errors()(export)))
    return app


def _by_rank_0(command: Callable[..., None]) -> Callable[..., None]:
    """A command that one process does, however many torchrun has started."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        if leads():
            command(*args, **kwargs)

    return call


def _callable(name: str, command: _Command, *, bare: bool) -> Callable[..., None]:
    """What typer calls, with a signature that holds an option for every setting unless it is `bare`."""

    def call(**given: Any) -> None:
        keys = (*command.own, *command.flags, "quiet", "json_log")
        own = {key: given.pop(key) for key in keys}
        file = given.pop("config", None)
        options = {key: value for key, value in given.items() if value not in (None, [], False)}
        alone = command.alone(options)
        if alone and not leads():
            return
        with (
            _one_line_errors(),
            contextlib.nullcontext(ALONE) if alone else joined(fsdp=False) as own["world"],
            _one_line_errors(own["world"]),
        ):
            if not own["world"].leads:
                own |= {"quiet": True, "json_log": None}
            with _screen(name, own) as own["screen"]:
                command.function(file, options, own)

    options: list[inspect.Parameter] = []
    if not bare:
        from clusterucb import config
        from clusterucb.cli.options import parameters

        options = parameters(command.own, getattr(config, command.kind), command.flags)
    call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return call


def _step(name: str, summary: str, **extra: str) -> Callable[[_Step], _Step]:
    """Register `function(session, extra options)` as a command that takes every setting."""

    def register(function: _Step) -> _Step:
        def run(file: str | None, options: dict[str, Any], own: dict[str, Any]) -> None:
            with _session(file, options, own) as session:
                function(session, own)

        _commands[name] = _Command(summary, "Config", extra, run)
        return function

    return register


@_step(
    "run",
    "The whole procedure of the --method: warm up, gradients, clusters, selection, training, evaluation.",
)
def _run(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.cli.tables import show
    from clusterucb.recipes import procedure

    summary = procedure(session)
    if not own["quiet"]:
        show(session, summary)


@_step("warmup", "Train the adapter on random pool rows: a few steps, or for less some epochs.")
def _warmup(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.steps.train import warmup

    session.check_inputs()
    warmup(session)
    _done(session.dir.warmup, own)


@_step("gradients", "Features of all pool rows and directions of the target, at the warmup's checkpoints.")
def _gradients(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.steps.features import gradients

    gradients(session)
    _done(session.dir.features, own)


@_step("cluster", "Spherical k-means over the features.")
def _cluster(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.steps.features import cluster

    cluster(session)
    _done(session.dir.clusters, own)


@_step(
    "select",
    "Select rows: period 1's, or less's one selection; or as a later period would at any --checkpoint.",
    checkpoint="Select at this checkpoint (dynamic): a folder with an adapter and its optimizer's state.",
)
def _select(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.steps.select import reselect, select

    if own["checkpoint"]:
        folder, _ = reselect(session, Path(own["checkpoint"]))
    else:
        select(session)
        folder = session.dir.round(1)
    _done(folder / "selected.jsonl", own)


@_step("train", "Train the adapter period by period; dynamic re-selects at each period's start.")
def _train(session: Session, own: dict[str, Any]) -> None:
    from clusterucb.steps.train import train

    train(session)
    _done(session.dir.adapter, own)


def _evaluate(file: str | None, options: dict[str, Any], own: dict[str, Any]) -> None:
    if "adapter" in options:
        _evaluate_alone(options, own)
        return
    with _session(file, options, own) as session:
        from clusterucb.cli.tables import show_benchmarks
        from clusterucb.evaluation.benchmarks import check_settings
        from clusterucb.steps.evaluate import benchmark, evaluate

        check_settings(session.config)
        loss, results = evaluate(session), benchmark(session)
        if not own["quiet"]:
            for name in ("base", "adapter"):
                typer.echo(f"{name:<8} loss {loss[name]['loss']:.4f}  ({loss['on']}, {loss['rows']} rows)")
            if results:
                show_benchmarks(results)
        _done(session.dir.benchmarks if results else session.dir.evaluation, own)


_commands["evaluate"] = _Command(
    "Base and adapter side by side: loss on held-out rows of the task, and benchmarks.",
    "Common",
    {},
    _evaluate,
    alone=lambda options: "adapter" in options,
)


def _evaluate_alone(options: dict[str, Any], own: dict[str, Any]) -> None:
    """An adapter that is not the run directory's own: nothing of a run is needed."""

    quiet_libraries()
    from clusterucb.cli.tables import show_benchmarks
    from clusterucb.config import Common, load_as
    from clusterucb.evaluation.adapter import evaluate_adapter, with_base_model
    from clusterucb.run.directory import RunDir

    config = load_as(Common, None, with_base_model(options))
    folder = RunDir(config.out)
    with folder.owned():
        results = evaluate_adapter(config, own["screen"])
    if not own["quiet"]:
        show_benchmarks(results)
    _done(folder.benchmarks, own)


def _compare(file: str | None, options: dict[str, Any], own: dict[str, Any]) -> None:
    from clusterucb.run.presets import DEFAULT, presets_named, repetitions

    if mixed := {"method", "bandit", "features", "perplexity", "repeat"} & options.keys():
        raise ConfigError(f"--{min(mixed)} is set by compare itself; give --methods and --seeds")
    methods = [method.name for method in presets_named(own["methods"] or DEFAULT)]
    seeds = repetitions(own["seeds"] or 3)
    config = _config(file, options, "comparison.yaml")

    quiet_libraries()
    from clusterucb.cli.study_tables import show_comparison
    from clusterucb.studies.compare.compare import compare

    result = compare(config, methods, seeds, own["screen"], own["world"])
    if not own["quiet"]:
        show_comparison(result)
    _done(Path(config.out) / "comparison.csv", own)
    if any(row["failed"] for row in result["methods"].values()):
        raise SystemExit(1)


_commands["compare"] = _Command(
    "Several methods, several times each, over one warmup and its features: one table.",
    "Config",
    {
        "methods": "With commas between them, of clusterucb, clusterucb_hidden, linear_ucb, "
        "linear_ucb_hidden, dynamic, less_clusterucb, less, rds, bm25, loss_highest, loss_lowest, random; "
        "NAME@BUDGET has a budget of its own (default: clusterucb,dynamic,less,rds,bm25,random)",
        "seeds": "How often each method is run (default: 3)",
    },
    _compare,
)


def _plan(file: str | None, options: dict[str, Any], own: dict[str, Any]) -> None:
    speed = _positive("--tokens-per-second", own["tokens_per_second"])
    seconds = _positive("--probe-seconds", own["probe_seconds"])
    config = _config(file, options)

    quiet_libraries()
    from clusterucb.cli.study_tables import show_plan
    from clusterucb.studies.plan.plan import PROBE_SECONDS, plan

    found = plan(
        config,
        quick=own["quick"],
        tokens_per_second=speed,
        probe_seconds=seconds or PROBE_SECONDS,
        screen=own["screen"],
    )
    if own["json"]:
        typer.echo(json.dumps(found, indent=2))
    elif not own["quiet"]:
        show_plan(found)


def _positive(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"{flag} {text}: expected a number above 0")
    return number


_commands["plan"] = _Command(
    "What a run with these settings would cost in gradients, tokens, time and disk; nothing is run.",
    "Config",
    {
        "tokens_per_second": "Tokens of gradients a second on the machine that the run is for; without it, "
        "the speed is measured here.",
        "probe_seconds": "How long the speed is measured (default: 20)",
    },
    _plan,
    {
        "quick": "Tokenise a sample of the pool only, and let it speak for all rows.",
        "json": "Print the plan as JSON.",
    },
    alone=lambda _options: True,
)


def _prepare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets, as --list names them.", show_default=False)
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option("--from", help="A raw file, a folder with official files, or hub.", metavar="PATH|hub"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder for NAME.jsonl and NAME.json.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows of each, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which rows are drawn.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="Show the data sets and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    """Convert the papers' instruction data sets to pool files of messages."""
    with _one_line_errors():
        from clusterucb.cli.tables import show_reports, show_sources

        if show:
            show_sources()
            return
        if not (names and origin and out):
            raise ConfigError("prepare needs NAME..., --from PATH or --from hub, and --out DIR; see --list")
        from clusterucb.runtime.screen import Screen
        from clusterucb.sources.conversion import prepare, source_named

        quiet_libraries()
        for name in names:
            source_named(name)  # a slip in the last name is told before the first is made
        screen = Screen(quiet=quiet)
        reports = [prepare(name, origin, out, screen.track, rows=rows, seed=seed) for name in names]
        if not quiet:
            show_reports(reports, out)


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show version and commit, and end.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from clusterucb.version import __version__, commit

        typer.echo(f"clusterucb {__version__} (commit {commit() or 'unknown'})")
        raise typer.Exit


def _done(artifact: Path, own: dict[str, Any]) -> None:
    if not own["quiet"]:
        typer.echo(f"{artifact}")


@contextlib.contextmanager
def _screen(command: str, own: dict[str, Any]) -> Iterator[Screen]:
    """Where progress is shown, and told to programs if that is wanted."""
    from clusterucb.runtime.screen import Screen

    if own["json_log"] is None:
        yield Screen(quiet=own["quiet"])
        return
    from clusterucb.runtime.screen import logged

    with logged(own["json_log"], command) as log:
        yield Screen(quiet=own["quiet"], log=log)


@contextlib.contextmanager
def _session(file: str | None, options: dict[str, Any], own: dict[str, Any]) -> Iterator[Session]:
    """A session that owns its run directory, with settings from file, options and the directory itself."""
    config = _config(file, options)

    quiet_libraries()
    from clusterucb.run.session import Session

    with Session(config, own["screen"], own["world"]).owned() as session:
        yield session


def _config(file: str | None, options: dict[str, Any], saved: str = "config.yaml") -> Config:
    """Settings from a file, or from those `saved` in the output directory, with the options over them."""
    from clusterucb.config import load

    if file is None:
        if "out" not in options:
            raise ConfigError(
                "which run directory? give --out DIR, and with it --model, --pool and --target the first time"
            )
        path = Path(options["out"]) / saved
        return load(path if path.exists() else None, options)
    folder = Path(file).parent
    own = Path(file).name == "comparison.yaml" or (folder / "pool").is_dir()
    if "out" not in options and own:  # an output directory, perhaps moved
        options = {**options, "out": str(folder)}
    return load(file, options)


@contextlib.contextmanager
def _one_line_errors(world: World | None = None) -> Iterator[None]:
    """End with one line and a status; of several processes one says it, and all end.

    Before they have met, as long as there is no `world`, rank 0 says what must be wrong for all.
    """
    try:
        yield
    except ClusterUCBError as error:
        if world.speaks() if world else leads():
            print(f"clusterucb: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if leads():
            print("clusterucb: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    except Exception:
        if world:
            world.speaks()  # a defect, whose traceback follows
        raise


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR...",
            help="Run directories, finished or not; the directory of a comparison stands for its runs.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="The page; report.html in DIR unless there are several.", metavar="FILE"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    """One page of one run, or of several side by side: what was selected, how good, at what cost, and why."""
    if not runs:
        raise ConfigError("report needs DIR...; see --help")
    from clusterucb.report.page import report as write

    path = write([*map(Path, runs)], Path(out) if out else None)
    if not quiet:
        typer.echo(f"{path}")


def export(
    run: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="A run directory, finished or not.", show_default=False),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Who is to read it: trl, llamafactory or axolotl.", metavar="FORMAT"),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Rows of this round; without it of all rounds, each row once."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The folder; exports/FORMAT in DIR without it.", metavar="FOLDER")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    """The selected rows as training data that trl, LLaMA-Factory or axolotl read as they are."""
    if not (run and form):
        raise ConfigError("export needs DIR and --format trl|llamafactory|axolotl; see --help")
    from clusterucb.run.export import export as write

    found = write(run, form, number=number, out=out)
    if quiet:
        return
    if found.left_out:
        name, why = next(iter(found.left_out.items()))
        typer.echo(f"{len(found.left_out)} rows that {form} would skip are left out, first {name}: {why}")
    if found.learnt:
        typer.echo(f"{found.learnt} rows have a given beginning of an answer, which {form} will learn, too")
    typer.echo(f"{found.folder}")


def quiet_libraries() -> None:
    """For the command line only: a library does not silence others."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so before the libraries
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("accelerate", "bitsandbytes", "peft", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(accelerate|bitsandbytes|datasets|peft|torch|transformers)\b")
