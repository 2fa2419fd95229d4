"""The fidelity study of docs/fidelity.md: what the bandit finds, what it costs, what training makes of it.

    python benchmarks/fidelity.py --data-dir DOWNLOADS --out runs/fidelity             # all stages, in order
    python benchmarks/fidelity.py features --data-dir DOWNLOADS --out runs/fidelity    # one of them

data         a pool of unlike sources, targets and held-out rows (fidelity_pools.py, fidelity_data.py)
features     of all rows at the warmup checkpoint and at two later ones (fidelity_features.py)
recall       policies, budgets, clusters and seeds over the stored features (fidelity_recall.py)
downstream   ClusterUCB, linear_ucb at several budgets, Dynamic, LESS, RDS+ and random rows, trained and
             evaluated (`clusterucb compare`), on every --thin-th row of the pool and with a batch as much
             smaller: as many steps in less time; in downstream/TARGET-every-THIN
report       the tables of docs/fidelity.md, from what the other stages left, also into report.md

Under `torchrun --nproc-per-node N benchmarks/fidelity.py ...` the processes share the gradients.

Killed at any moment, the same command goes on; what is finished is not done again. DOWNLOADS holds the
official files: gsm8k/train.jsonl and test.jsonl, mmlu/dev and test, flan_cot/*_train.tsv,
code_alpaca/code_alpaca_2k.json; the demo's wheels (examples/demo/wheels.txt) hold the rest. fidelity.yaml
holds all other settings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fidelity_data import StudyData, study_data, thinned
from fidelity_features import take_features
from fidelity_pools import POOLS, PoolKind
from fidelity_recall import recall_results
from fidelity_report import report

from clusterucb.cli.main import quiet_libraries
from clusterucb.config import Common, Config, load, load_as
from clusterucb.data.chat import chat_format
from clusterucb.errors import ClusterUCBError, ConfigError
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish
from clusterucb.runtime.processes import World, joined
from clusterucb.runtime.screen import Screen
from clusterucb.studies.simulate.grid import Grid
from clusterucb.training.model import load_tokenizer

METHODS = (
    "clusterucb",
    "linear_ucb@0.05",
    "linear_ucb",
    "linear_ucb_hidden@0.05",
    "linear_ucb_hidden@0.1",
    "linear_ucb_hidden",
    "dynamic",
    "less",
    "rds",
    "random",
)
SETTINGS = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Study:
    """One study in the folder `out`, with the options of the command line."""

    out: Path
    options: argparse.Namespace
    screen: Screen
    world: World

    @property
    def kind(self) -> PoolKind:
        """Which sources and targets."""
        return POOLS[self.options.pool]

    @property
    def model(self) -> dict[str, str]:
        """The model, where it is not that of the settings."""
        return {"model": self.options.model} if self.options.model else {}

    def data(self) -> StudyData:
        """The files, made if they are not there."""
        config = load_as(Common, self.options.settings, {**self.model, "out": str(self.out)})
        tokenizer = load_tokenizer(config)
        chat, asked = chat_format(config.chat, tokenizer), self.options.sizes
        names = ("tokens_of_source", "target", "heldout")
        sizes = replace(self.kind.sizes, **dict(zip(names, asked, strict=True))) if asked else self.kind.sizes
        folder, files = self.out / "data", self.options.data_dir
        args = (folder, files, self.kind, tokenizer, chat, sizes, config.seed, self.screen)
        return self.world.lead(lambda: study_data(*args))

    def config(self, pool: Iterable[Path], files: Mapping[str, object], out: Path, thin: int = 1) -> Config:
        """Settings of a run on this pool, with a batch that is `thin` times smaller."""
        names = [str(path) for path in pool]
        flags = {**self.model, "pool": names, **files, "out": str(out)}
        settings = load(self.options.settings, flags).training
        batch = max(1, settings.batch_size // thin)
        return load(self.options.settings, {**flags, "batch_size": batch})

    def session(self) -> Session:
        """The run that has the features, with every target as a subtask."""
        data = self.data()
        files = {"target": [str(path) for path in data.targets.values()], "subtask": "dataset"}
        return Session(self.config(data.pool.values(), files, self.out / "features"), self.screen, self.world)

    def features(self) -> None:
        """Take all features."""
        take_features(self.session())

    def recall(self) -> None:
        """Simulate on them."""
        asked, session = self.options, self.session()
        grid = Grid(
            tuple(asked.budgets),
            (None, *asked.ks),
            seeds=tuple(range(asked.draws)),
            top_p=session.config.selection.top_p,
        )
        self.world.lead(lambda: recall_results(self.out / "recall.json", session, grid, self.screen))

    def downstream(self) -> None:
        """Compare the methods on every target."""
        from clusterucb import compare

        data, every = self.data(), self.options.thin
        folder = self.out / "data" / f"every-{every}"
        pool = self.world.lead(lambda: thinned(data.pool, folder, every))
        for target in self._asked_targets():
            self.screen.say(f"compare on {target}")
            files = {"target": [str(data.targets[target])], "holdout": [str(data.heldout[target])]}
            name = f"{target}-every-{every}" if every > 1 else target
            config = self.config(pool, files, self.out / "downstream" / name, every)
            compare(config, self.options.methods, self.options.seeds, self.screen, self.world)

    def _asked_targets(self) -> Sequence[str]:
        asked = self.options.targets or self.kind.targets
        if unknown := sorted(set(asked) - set(self.kind.targets)):
            raise ConfigError(f"--targets {unknown[0]}: this pool's are {', '.join(self.kind.targets)}")
        return asked

    def report(self) -> None:
        """Print the tables, and write them to report.md."""
        text = report(self.options.pool, self.data(), self.session(), self.out, self.kind.targets)
        if not self.world.leads:
            return
        with publish(self.out / "report.md") as part:
            part.write_text(text, encoding="utf-8")
        print(text)


STAGES: dict[str, Callable[[Study], object]] = {
    "data": Study.data,
    "features": Study.features,
    "recall": Study.recall,
    "downstream": Study.downstream,
    "report": Study.report,
}


def main(argv: list[str] | None = None) -> int:
    """Run the stages that are named, or all; 2 for a person's mistake."""
    options = _options(argv)
    quiet_libraries()
    try:
        with joined() as world:
            study = Study(options.out, options, Screen(quiet=not world.leads), world)
            for stage in options.stages or STAGES:
                started = time.monotonic()
                STAGES[stage](study)
                study.screen.say(f"stage {stage}: {time.monotonic() - started:.0f} s")
    except ClusterUCBError as error:
        print(f"fidelity: {error}", file=sys.stderr)
        return 2
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("stages", nargs="*", choices=[[], *STAGES], metavar="STAGE", help=f"{', '.join(STAGES)}; all if none")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    add("--data-dir", type=Path, metavar="DIR", help="folder with the official files")
    add("--model", help="instead of that in the settings")
    add("--settings", type=Path, default=SETTINGS, metavar="FILE", help="default: %(default)s")
    add("--pool", choices=POOLS, default="twelve", help="sources and targets; default: %(default)s")
    add("--targets", nargs="+", metavar="NAME", help="that downstream compares on; default: all of the pool")
    add("--methods", nargs="+", default=list(METHODS), help="that downstream compares")
    add("--thin", type=int, default=4, help="downstream takes every THIN-th row")
    add("--seeds", type=int, default=3, help="repetitions of each method downstream")
    add("--budgets", nargs="+", type=float, default=[0.05, 0.1, 0.2, 0.4], help="of recall")
    add("--ks", nargs="*", type=int, default=[25, 75], help="of recall, besides the default")
    add("--draws", type=int, default=5, help="seeds of recall")
    add(
        "--sizes",
        nargs=3,
        type=int,
        metavar=("TOKENS", "TARGET", "HELDOUT"),
        help="tokens of a source, rows of a target and held out for it, instead of the pool's own",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("fidelity: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
