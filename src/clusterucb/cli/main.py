"""The command line: one thin function a command. Nothing else knows of options and exit statuses.

Every setting is an option of every command that takes settings (options.py). The options are made for the
command that is called alone, as making them takes longer than all the rest of a `--help`. What a command
returns is the path of what it has made, which is shown.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape

from clusterucb.cli.options import (
    HELP_ALL,
    Quiet,
    argument,
    is_given,
    option,
    parameters,
    repeat_list_options,
)
from clusterucb.cli.simulate import simulate
from clusterucb.errors import ClusterUCBError, ConfigError
from clusterucb.runtime.processes import ALONE, World, joined, leads

if TYPE_CHECKING:
    from clusterucb.config import Config
    from clusterucb.run.session import Session
    from clusterucb.runtime.screen import Screen


@dataclass(frozen=True)
class _Call:
    """What a command with settings was called with."""

    file: str | None  # of settings
    options: Mapping[str, Any]  # settings, over those of the preset, which are over the file's
    preset: str | None  # the name of published settings
    screen: Screen
    world: World  # the processes that were called together

    def tell(self, line: object) -> None:
        """Show a line on standard output."""
        if not self.screen.quiet:
            typer.echo(f"{line}")

    def config(self, saved: str = "config.yaml") -> Config:
        """Settings from the file, or from those `saved` in the output directory; options go over them."""
        from clusterucb.config import load

        given = self._given
        if self.file is None:
            if "out" not in self.options:
                raise ConfigError(
                    "which run directory? give --out DIR, and with it --model, --pool and --target the first "
                    "time"
                )
            path = Path(self.options["out"]) / saved
            if "index" in self.options and not path.exists():
                return self.from_index(self.options["index"])
            return load(path if path.exists() else None, given)
        file = Path(self.file) / saved if Path(self.file).is_dir() else Path(self.file)
        own = file.name == "comparison.yaml" or (file.parent / "pool").is_dir()
        moved = {"out": str(file.parent)} if own else {}  # an output directory, perhaps moved
        return load(file, {**moved, **given})

    def from_index(self, index: str) -> Config:
        """The settings that an index was made with, with the options over them."""
        from clusterucb.config import load_index
        from clusterucb.data.hub import index_folder

        return load_index(index_folder(index), self._given)

    @property
    def _given(self) -> Mapping[str, Any]:
        if self.preset is None:
            return self.options
        from clusterucb.run.presets import procedure_named

        return {**procedure_named(self.preset), **self.options}

    @contextmanager
    def session(self, settle: Callable[[Config], Config] = lambda config: config) -> Iterator[Session]:
        """A session that owns its run directory; `settle` has the last word on its settings."""
        config = self.config()

        quiet_libraries()
        from clusterucb.run.session import Session

        with Session(settle(config), self.screen, self.world).owned() as session:
            yield session


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a person's error ends it with one line and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((argument for argument in arguments if not argument.startswith("-")), "")
    if named in _COMMANDS:
        arguments = repeat_list_options(arguments)
    completing = "_CLUSTERUCB_COMPLETE" in os.environ
    app = application(None if completing else named, often=not completing and HELP_ALL not in arguments)
    (usage_error,) = typer.BadParameter.__bases__
    try:
        app(arguments, prog_name="clusterucb", standalone_mode=leads())
    except usage_error:  # type: ignore[misc]  # in a process that does not lead: rank 0 says what is wrong
        raise SystemExit(2) from None


def application(called: str | None = None, *, often: bool = False) -> typer.Typer:
    """All commands, or `called` alone, if that is one with settings; of another no command has options.

    `often`: help shows those settings only that are set now and then.
    """
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Targeted data selection for fine-tuning language models, by gradients, under a budget.",
    )
    app.callback(invoke_without_command=True)(_root)
    named = {called: _COMMANDS[called]} if called in _COMMANDS else _COMMANDS
    for name, command in named.items():
        app.command(
            name,
            rich_help_panel=command.panel,
            help=escape(inspect.getdoc(command.function) or ""),
            epilog=f"{HELP_ALL} shows every setting." if often else None,
            context_settings={"help_option_names": ["-h", "--help", HELP_ALL]},
        )(_callable(name, command, bare=called not in (None, name), often=often))
    for function, panel in _OTHERS.items() if named is _COMMANDS else ():
        app.command(function.__name__, rich_help_panel=panel)(_by_rank_0(function))
    return app


def _by_rank_0(command: Callable[..., None]) -> Callable[..., None]:
    """A command that one process does, however many torchrun has started."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        if leads():
            with _one_line_errors():
                command(*args, **kwargs)

    return call


def _callable(name: str, command: _Command, *, bare: bool, often: bool) -> Callable[..., None]:
    """What typer calls, with a signature that holds an option for every setting unless it is `bare`."""
    _, *own = inspect.signature(command.function, eval_str=True).parameters.values()

    def called(**given: Any) -> None:
        from clusterucb.runtime.screen import Screen, logged

        file, quiet, log = (given.pop(key) for key in ("config", "quiet", "json_log"))
        others = {parameter.name: given.pop(parameter.name) for parameter in own}
        preset = given.pop("preset", None)
        options = {key: value for key, value in given.items() if is_given(key, value)}
        alone = command.alone(options)
        if alone and not leads():
            return
        with ExitStack() as stack:
            stack.enter_context(_one_line_errors())
            world = ALONE if alone else stack.enter_context(joined(fsdp=False))
            stack.enter_context(_one_line_errors(world))
            events = stack.enter_context(logged(log if world.leads else None, name))
            screen = Screen(quiet=quiet or not world.leads, log=events)
            call = _Call(file, options, preset, screen, world)
            if made := command.function(call, **others):
                call.tell(made)

    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [] if bare else parameters(own, command.kind, often=often)
    )
    return called


@contextmanager
def _one_line_errors(world: World | None = None) -> Iterator[None]:
    """End with one line and a status; of several processes one says it, and all end.

    Before they have met, as long as there is no `world`, rank 0 says what must be wrong for all.
    """
    try:
        yield
    except ClusterUCBError as error:
        if world.speaks() if world else leads():
            typer.echo(f"clusterucb: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if leads():
            typer.echo("clusterucb: interrupted; run the same command again to go on", err=True)
        raise SystemExit(130) from None
    except Exception:
        if world:
            world.speaks()  # a defect, whose traceback follows
        raise


_Time = Annotated[
    str | None,
    option(
        "Choose the plan that fits into so much time, as 30m or 1h30m; the speed is measured first.", "TIME"
    ),
]
_Share = Annotated[
    str | None,
    option(
        "Choose the plan that takes at most this share of what scoring all rows at every selection does.", "N"
    ),
]


def _run(call: _Call, time: _Time = None, cost: _Share = None) -> None:
    """The whole procedure of the --method: warm up, gradients, clusters, selection, training, evaluation."""

    def settle(config: Config) -> Config:
        from clusterucb.studies.plan.choice import Limit, fit

        limit = Limit.read(time, cost, call.options)
        return fit(config, limit, call.screen, call.world) if limit else config

    with call.session(settle) as session:
        from clusterucb.cli.tables import show
        from clusterucb.recipes import procedure

        summary = procedure(session)
        if not call.screen.quiet:
            show(session, summary)


def _index(call: _Call) -> Path:
    """What needs no target: a warmup, features of all rows, clusters. Runs with any target begin there."""
    config = call.config()

    quiet_libraries()
    from clusterucb.recipes import index

    index(config, call.screen, call.world, old=Path(call.file) if call.file else None)
    return Path(config.with_absolute_paths().out)


def _query(
    call: _Call,
    top: Annotated[str | None, option("How many rows (default: the share that is selected)", "N")] = None,
    as_lines: Annotated[bool, option("Print every row as a line of JSON.", None, "--jsonl")] = False,
) -> None:
    """An index's best rows for one target or many, by what is stored: in seconds, nothing is trained."""
    count, folder = _positive("--top", top), call.file or call.options.get("out")
    if folder is None:
        raise ConfigError("which index? give its folder, as in `clusterucb query INDEX --target FILE`")
    config = call.from_index(folder)

    quiet_libraries()
    from clusterucb.cli.tables import show_ranking
    from clusterucb.steps.query import Index

    for found in Index(config, call.screen).rank(config.target, int(count or 0), config.subtask).values():
        if as_lines:
            for name, score, near in zip(found.ids, found.scores.tolist(), found.nearest, strict=True):
                row = {"target": found.target, "id": name, "score": score, "nearest": near}
                typer.echo(json.dumps(row, ensure_ascii=False))
        elif not call.screen.quiet:
            show_ranking(found)


def _warmup(call: _Call) -> Path:
    """Train the adapter on random pool rows: a few steps, or for less some epochs."""
    with call.session() as session:
        from clusterucb.steps.train import warmup

        session.check_inputs()
        warmup(session)
        return session.dir.warmup


def _gradients(call: _Call) -> Path:
    """Features of all pool rows and directions of the target, at the warmup's checkpoints."""
    with call.session() as session:
        from clusterucb.steps.features import gradients

        gradients(session)
        return session.dir.features


def _cluster(call: _Call) -> Path:
    """Spherical k-means over the features."""
    with call.session() as session:
        from clusterucb.steps.features import cluster

        cluster(session)
        return session.dir.clusters


def _select(
    call: _Call,
    checkpoint: Annotated[
        str | None,
        option(
            "Select at this checkpoint (dynamic): a folder with an adapter and its optimizer's state.", "DIR"
        ),
    ] = None,
) -> Path:
    """Select rows: period 1's, or less's one selection; or as a later period would at any --checkpoint."""
    with call.session() as session:
        from clusterucb.steps.select import reselect, select

        folder = session.dir.round(1)
        if checkpoint:
            folder, _ = reselect(session, Path(checkpoint))
        else:
            select(session)
        return folder / "selected.jsonl"


def _train(call: _Call) -> Path:
    """Train the adapter period by period; dynamic re-selects at each period's start."""
    with call.session() as session:
        from clusterucb.steps.train import train

        train(session)
        return session.dir.adapter


def _evaluate(call: _Call) -> Path:
    """Base and adapter side by side: loss on held-out rows of the task, and benchmarks."""
    if "adapter" in call.options:
        return _evaluate_alone(call)
    with call.session() as session:
        from clusterucb.cli.tables import show_benchmarks
        from clusterucb.evaluation.benchmarks import check_settings
        from clusterucb.steps.evaluate import benchmark, evaluate

        check_settings(session.config)
        loss, results = evaluate(session), benchmark(session)
        if not call.screen.quiet:
            for name in ("base", "adapter"):
                typer.echo(f"{name:<8} loss {loss[name]['loss']:.4f}  ({loss['on']}, {loss['rows']} rows)")
            if results:
                show_benchmarks(results)
        return session.dir.benchmarks if results else session.dir.evaluation


def _evaluate_alone(call: _Call) -> Path:
    """An adapter that is not the run directory's own: nothing of a run is needed."""
    quiet_libraries()
    from clusterucb.cli.tables import show_benchmarks
    from clusterucb.config import Common, load_as
    from clusterucb.evaluation.adapter import evaluate_adapter, with_base_model
    from clusterucb.run.directory import RunDir

    config = load_as(Common, None, with_base_model({**call.options}))
    folder = RunDir(config.out)
    with folder.owned():
        results = evaluate_adapter(config, call.screen)
    if not call.screen.quiet:
        show_benchmarks(results)
    return folder.benchmarks


def _compare(
    call: _Call,
    methods: Annotated[
        str | None,
        option(
            "With commas between them, of clusterucb, clusterucb_hidden, linear_ucb, linear_ucb_hidden, "
            "linear_ucb_words, cluster_less, landmarks, dynamic, less_clusterucb, less, rds, head, bm25, "
            "loss_highest, loss_lowest, random; NAME@BUDGET has a budget of its own (default: "
            "clusterucb,linear_ucb_words,dynamic,less,rds,bm25,random)"
        ),
    ] = None,
    seeds: Annotated[str | None, option("How often each method is run (default: 3)", "N")] = None,
) -> None:
    """Several methods, several times each, over one warmup and its features: one table."""
    from clusterucb.run.presets import DEFAULT, presets_named, repetitions

    if mixed := {"method", "bandit", "features", "perplexity", "repeat", "index"} & call.options.keys():
        raise ConfigError(f"--{min(mixed)} is set by compare itself; give --methods and --seeds")
    names = [method.name for method in presets_named(methods or DEFAULT)]
    times = repetitions(seeds or 3)
    config = call.config("comparison.yaml")

    quiet_libraries()
    from clusterucb.cli.study_tables import show_comparison
    from clusterucb.studies.compare.compare import compare

    result = compare(config, names, times, call.screen, call.world)
    if not call.screen.quiet:
        show_comparison(result)
    call.tell(Path(config.out) / "comparison.csv")
    if any(row["failed"] for row in result["methods"].values()):
        raise SystemExit(1)


def _plan(
    call: _Call,
    tokens_per_second: Annotated[
        str | None,
        option(
            "Tokens of gradients a second on the machine that the run is for; without it, the speed is "
            "measured here.",
            "N",
        ),
    ] = None,
    probe_seconds: Annotated[str | None, option("How long the speed is measured (default: 20)", "N")] = None,
    quick: Annotated[
        bool, option("Tokenise a sample of the pool only, and let it speak for all rows.", None, "--quick")
    ] = False,
    time: _Time = None,
    cost: _Share = None,
    targets: Annotated[
        str | None, option("What so many targets take, too: over one index, or each alone.", "N")
    ] = None,
    as_json: Annotated[bool, option("Print the plan as JSON.", None, "--json")] = False,
) -> None:
    """What a run with these settings would cost in gradients, tokens, time and disk; nothing is run."""
    speed = _positive("--tokens-per-second", tokens_per_second)
    seconds, many = _positive("--probe-seconds", probe_seconds), _positive("--targets", targets)
    config = call.config()

    quiet_libraries()
    from clusterucb.cli.study_tables import show_plan
    from clusterucb.studies.plan.choice import Limit
    from clusterucb.studies.plan.plan import plan
    from clusterucb.studies.plan.spending import PROBE_SECONDS

    found = plan(
        config,
        quick=quick,
        tokens_per_second=speed,
        probe_seconds=seconds or PROBE_SECONDS,
        limit=Limit.read(time, cost, call.options),
        targets=int(many or 0),
        screen=call.screen,
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not call.screen.quiet:
        show_plan(found)


def _doctor(call: _Call) -> None:
    """Whether this model's features can be trusted on this machine, and what they take; no run is needed."""
    from clusterucb.config import load

    unused = {"pool": ["-"], "target": ["-"], "out": "-"}
    if "model" not in call.options and call.file is None:
        raise ConfigError("doctor needs --model, or a settings file; and --pool for rows of your own")
    config = call.config() if call.file else load(None, {**unused, **call.options})

    quiet_libraries()
    from clusterucb.cli.study_tables import show_examined
    from clusterucb.studies.doctor import examine

    found = examine(config, call.screen)
    if not call.screen.quiet:
        show_examined(found)
    if not found.sound:
        raise SystemExit(1)


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


class _Command(NamedTuple):
    """A command with settings; its docstring is its help, its arguments but the first are options of its own.

    It returns the path of what it has made, if that is to be shown.
    """

    function: Callable[..., Path | None]
    panel: str  # of the help
    kind: str = "Config"  # the settings' class in config.py
    alone: Callable[[Mapping[str, Any]], bool] = lambda _options: False  # rank 0 of all processes does it


_A_RUN, _BEFORE, _STEPS = "A run", "Before a run", "A run, step by step"
_INDEX, _STUDIES = "An index, for many targets", "Studies"
_COMMANDS = {
    "run": _Command(_run, _A_RUN),
    "plan": _Command(_plan, _BEFORE, alone=lambda _options: True),
    "doctor": _Command(_doctor, _BEFORE, alone=lambda _options: True),
    "warmup": _Command(_warmup, _STEPS),
    "gradients": _Command(_gradients, _STEPS),
    "cluster": _Command(_cluster, _STEPS),
    "select": _Command(_select, _STEPS),
    "train": _Command(_train, _STEPS),
    "evaluate": _Command(_evaluate, _STEPS, "Common", lambda options: "adapter" in options),
    "index": _Command(_index, _INDEX),
    "query": _Command(_query, _INDEX, alone=lambda _options: True),
    "compare": _Command(_compare, _STUDIES),
}


def prepare(
    names: Annotated[list[str] | None, argument("Data sets, as --list names them.")] = None,
    origin: Annotated[
        str | None, option("A raw file, a folder with official files, or hub.", "PATH|hub", "--from")
    ] = None,
    out: Annotated[str | None, option("The folder for NAME.jsonl and NAME.json.", "DIR")] = None,
    rows: Annotated[
        int | None, option("At most so many rows of each, drawn by the seed.", "N", min=1)
    ] = None,
    seed: Annotated[int, option("Which rows are drawn.", "N", min=0)] = 0,
    show: Annotated[bool, option("Show the data sets and end.", None, "--list")] = False,
    quiet: Quiet = False,
) -> None:
    """Convert the papers' instruction data sets to pool files of messages."""
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


def presets(
    name: Annotated[str | None, argument("One of them, as YAML that a run takes; all without it.")] = None,
) -> None:
    """Published procedures by name, which --preset takes: every setting that they have."""
    import yaml

    from clusterucb.config import sectioned
    from clusterucb.run.presets import PROCEDURES, procedure_named

    for found in [name] if name else PROCEDURES:
        if not name:
            typer.echo(f"# --preset {found}")
        typer.echo(yaml.safe_dump(sectioned(procedure_named(found)), sort_keys=False))


def report(
    runs: Annotated[
        list[str] | None,
        argument(
            "Run directories, finished or not; the directory of a comparison stands for its runs.", "DIR..."
        ),
    ] = None,
    out: Annotated[
        str | None, option("The page; report.html in DIR unless there are several.", "FILE")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """One page of one run, or of several side by side: what was selected, how good, at what cost, and why."""
    if not runs:
        raise ConfigError("report needs DIR...; see --help")
    from clusterucb.report.page import report as write

    path = write([*map(Path, runs)], Path(out) if out else None)
    if not quiet:
        typer.echo(f"{path}")


def export(
    run: Annotated[str | None, argument("A run directory, finished or not.", "DIR")] = None,
    form: Annotated[
        str | None, option("Who is to read it: trl, llamafactory or axolotl.", "FORMAT", "--format")
    ] = None,
    number: Annotated[
        int | None,
        option("Rows of this round; without it of all rounds, each row once.", "N", "--round", min=1),
    ] = None,
    out: Annotated[str | None, option("The folder; exports/FORMAT in DIR without it.", "DIR")] = None,
    quiet: Quiet = False,
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


_OTHERS: dict[Callable[..., None], str] = {
    **{report: _A_RUN, export: _A_RUN, prepare: _BEFORE, presets: _BEFORE, simulate: _STUDIES}
}
"""Commands that take no settings."""


def _root(
    version: Annotated[
        bool, option("Show version and commit, and end.", None, "--version", is_eager=True)
    ] = False,
) -> None:
    if version:
        from clusterucb.version import __version__, commit

        typer.echo(f"clusterucb {__version__} (commit {commit() or 'unknown'})")
        raise typer.Exit


def quiet_libraries() -> None:
    """Keep the libraries' own bars, notes and warnings off the screen, which shows this program's.

    For the command line only: a library does not silence others.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so before the libraries
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with suppress(ImportError):  # what needs it says so
        import datasets

        datasets.disable_progress_bars()
    for name in ("accelerate", "bitsandbytes", "peft", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(accelerate|bitsandbytes|datasets|peft|torch|transformers)\b")
