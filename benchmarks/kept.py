"""What trains well: features, aims and keep rules by loss after short trainings, and what is found of them.

    python benchmarks/kept.py --data-dir DOWNLOADS --out runs/kept            # all stages, in order
    python benchmarks/kept.py keep --out runs/kept --targets strategyqa       # one of them

static   one selection at the warmup checkpoint by each pair of features and aim, trained on in every period
whole    whole runs of the program by each of METHODS, --seeds times, with all that they cost
exact    of these runs: the share of held-out rows whose whole answer greedy decoding gives
recall   what bandits find of the rows that gradients rank highest there, by clusters of gradients raw and
         centred, and by what is known of rows by hidden states and by the head's gradients

report   the table of whole runs, what the rule of docs/fidelity.md chooses, and a plot of it (kept_report.py)

The pools, targets and held-out rows are those of the fidelity study (fidelity_pools.py), of which every
--thin-th row is taken; the settings are in kept.yaml. Each result is a line of OUT/STAGE.jsonl, and what is
there is not computed again: killed at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity_data import StudyData, study_data, thinned
from fidelity_pools import POOLS
from fidelity_sources import demo_data
from kept_report import report
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.cli.main import quiet_libraries
from clusterucb.config import Common, Config, load, load_as
from clusterucb.data.chat import Encoded, chat_format
from clusterucb.errors import ClusterUCBError
from clusterucb.evaluation.loss import losses
from clusterucb.features.head import head_gradients
from clusterucb.features.hidden import forward, representations
from clusterucb.features.influence import Aim, aimed, influence, similarities
from clusterucb.gradients.anatomy import eval_mode
from clusterucb.gradients.batches import Batch, micro_batches
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.recipes import procedure
from clusterucb.run.directory import RunDir
from clusterucb.run.inputs import Inputs
from clusterucb.run.presets import Preset, Settings
from clusterucb.run.session import Session
from clusterucb.runtime.files import made, read_json
from clusterucb.runtime.screen import Screen
from clusterucb.selection.round_robin import in_turns
from clusterucb.selection.selector import named_policy
from clusterucb.selection.share import top
from clusterucb.steps.hidden import DEPTH, centred
from clusterucb.steps.train import train_on, warmup
from clusterucb.studies.compare.cells import Cell
from clusterucb.studies.simulate.grid import Grid
from clusterucb.studies.simulate.simulate import Problem, simulate
from clusterucb.training.adapter import load_adapter
from clusterucb.training.model import load_tokenizer

Floats = NDArray[np.floating]
Sides = tuple[Floats, Floats]
"""Features of the pool's rows (N, d) and of the target's (n, d)."""

TARGETS = {
    "object_counting": ("twenty", ["object_counting"]),  # 11 of its rows in the pool, of 20 that are selected
    "strategyqa": ("twelve", ["strategyqa"]),  # far: none of its own, creak distantly
    "gsm8k": ("twelve", ["gsm8k"]),  # its own training problems
    "humaneval": ("twelve", ["humaneval"]),  # near: functions of Python's library
    "german": ("twenty", ["german"]),  # far: other languages
    "mmlu": ("twelve", ["mmlu"]),  # far: ecqa's choices, distantly
    "sports": ("twenty", ["sports"]),  # far: nothing
    "creak": ("others", ["creak"]),  # other rows of it
    "ecqa": ("others", ["ecqa"]),  # other rows of it
    "several": ("twelve", ["gsm8k", "humaneval", "strategyqa"]),
    "demo": ("demo", []),  # sums of GSM8K's kind, 40 in the pool
}
STATIC: tuple[tuple[str, Aim], ...] = (
    ("gradients", "mean"),
    ("rds", "round_robin"),
    ("hidden", "mean"),
    ("gradients", "round_robin"),
    ("random", "mean"),
    ("head", "mean"),
    ("gradients", "subspace"),
    ("top", "mean"),
    ("gradients", "nearest"),
    ("head", "round_robin"),
    ("hidden", "round_robin"),
    ("plain", "mean"),
)
LINEAR_UCB: Settings = {"features": "hidden", "policy": "linear_ucb"}
WORDS: Settings = {**LINEAR_UCB, "features": "words"}
METHODS = {
    "rds": Preset("rds", {"method": "rds"}),
    "bm25": Preset("bm25", {"method": "bm25"}),
    "head": Preset("head", {"method": "head"}),
    "now": Preset("now", {**LINEAR_UCB, "keep": "now"}),
    "auto": Preset("auto", WORDS, 0.125),  # what `run` decides: twice the rows that are kept
    "auto_hidden": Preset("auto_hidden", LINEAR_UCB),
    "sum": Preset("sum", {**LINEAR_UCB, "keep": "sum"}),
    "static": Preset("static", {**LINEAR_UCB, "keep": "static"}),
    "static_head": Preset("static_head", {**LINEAR_UCB, "features": "head", "keep": "static"}),
    "random": Preset("random", {"method": "random"}),
    "less": Preset("less", {"method": "less", "bandit": "none"}),
    "sum_head": Preset("sum_head", {**LINEAR_UCB, "features": "head", "keep": "sum"}),
    "auto_0.05": Preset("auto_0.05", LINEAR_UCB, 0.05),
    "static_0.05": Preset("static_0.05", {**LINEAR_UCB, "keep": "static"}, 0.05),
    "less_turns": Preset("less_turns", {"method": "less", "bandit": "none", "aim": "round_robin"}),
    "dynamic": Preset("dynamic", {"bandit": "none", "features": "gradients"}),
    "dynamic_sum": Preset("dynamic_sum", {"bandit": "none", "features": "gradients", "keep": "sum"}),
    "once": Preset("once", {**LINEAR_UCB, "keep": "once"}),
    "mean": Preset("mean", {**LINEAR_UCB, "keep": "mean"}),
}
HELD_OUT = 40


@dataclass(frozen=True)
class Study:
    """The study in the folder `out`."""

    out: Path
    options: argparse.Namespace
    screen: Screen

    def data(self, pool: str) -> StudyData:
        """A pool's files, made if they are not there."""
        config = load_as(Common, self.options.settings, {**self.model, "out": str(self.out)})
        tokenizer = load_tokenizer(config)
        chat, kind = chat_format(config.chat, tokenizer), POOLS[pool]
        sizes, folder = kind.sizes, self.out / pool / "data"
        return study_data(
            folder, self.options.data_dir, kind, tokenizer, chat, sizes, config.seed, self.screen
        )

    @property
    def model(self) -> dict[str, str]:
        """The model, where it is not that of the settings."""
        return {"model": self.options.model} if self.options.model else {}

    def config(self, target: str, out: Path) -> Config:
        """Settings of a run for a target, with the first of its held-out rows."""
        if target == "demo":
            files = demo_data().make(self.out / "demo" / "data")
            given = {**self.model, "pool": [*map(str, files.pool)]}
            given |= {"target": [str(files.target)], "holdout": [str(files.heldout)]}
            return load(self.options.settings, {**given, "out": str(out)})
        pool, parts = TARGETS[target]
        data, held = self.data(pool), self.out / pool / "held" / f"{target}.jsonl"
        lines = [data.heldout[part].read_bytes().splitlines(keepends=True)[:HELD_OUT] for part in parts]
        rows = [line for part in lines for line in part][:: len(parts)]
        made(held, lambda path: path.write_bytes(b"".join(rows)), Path)
        files = {"target": [str(data.targets[part]) for part in parts], "holdout": [str(held)]}
        thin = thinned(data.pool, self.out / pool / "thin", self.options.thin)
        given = {**self.model, **files, "pool": [*map(str, thin)], "subtask": "dataset", "out": str(out)}
        return load(self.options.settings, given)

    def once(self, stage: str, compute: Callable[[], dict[str, Any]], **key: Any) -> None:
        """Add a line to the results of a stage, if there is none of this key."""
        path = self.out / f"{stage}.jsonl"
        found = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        if any(key.items() <= result.items() for result in found):
            return
        result = key | compute()
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        self.screen.say(f"{stage}: {', '.join(map(str, key.values()))}: {result.get('loss', '')}")

    def static(self) -> None:
        """Selections at the warmup checkpoint."""
        for target in self.options.targets:
            rows = AtWarmup(self, target)
            for features, aim in STATIC:
                self.once(
                    "static", partial(rows.trained, features, aim), target=target, features=features, aim=aim
                )

    def whole(self) -> None:
        """Whole runs."""
        for key, cell, config, inputs in self._cells():
            self.once("whole", partial(self._run, cell, config, inputs), **key)

    def _cells(self) -> Iterator[tuple[dict[str, Any], Cell, Config, Inputs]]:
        """Of all whole runs: what names one, where it is, and what the runs for its target share."""
        for repeat, target in product(range(self.options.seeds), self.options.targets):
            out = self.out / TARGETS[target][0] / "whole" / target
            config = self.config(target, out)
            inputs = Inputs(config, RunDir(out / "shared"), self.screen)
            for name in self.options.methods:
                key = {"target": target, "method": name, "repeat": repeat}
                yield key, Cell(out, METHODS[name], repeat), config, inputs

    def _run(self, cell: Cell, config: Config, inputs: Inputs) -> dict[str, Any]:
        cell.share(config)
        session = Session(cell.config(config), self.screen, inputs=inputs)
        with session.owned():
            summary = procedure(session)
        evaluation, parts = read_json(cell.run.evaluation), summary["bill"]["parts"]
        return {
            "loss": evaluation["adapter"]["loss"],
            "base": evaluation["base"]["loss"],
            "losses": evaluation["adapter"]["losses"],
            "cost": {part: parts[part]["passes"] for part in parts},
            "sources": [chosen["sources"] for chosen in summary["selected"]],
        }

    def exact(self) -> None:
        """Answers after the whole runs that are there, and before them."""
        for key, cell, _, inputs in self._cells():
            if cell.run.adapter.exists():
                self.once("exact", partial(self._exact, inputs, cell.run.adapter), **key)
            base = partial(self._exact, inputs, inputs.dir.initial)
            self.once("exact", base, target=key["target"], method="")

    def _exact(self, inputs: Inputs, adapter: Path) -> dict[str, Any]:
        load_adapter(inputs.model, adapter)
        return {"share": float(answered(inputs.model, inputs.evaluation_tokens).mean())}

    def recall(self) -> None:
        """Bandits over what the warmup checkpoint tells."""
        for target in self.options.targets:
            rows = AtWarmup(self, target)
            truth = influence(rows.gradients[0], aimed("mean", rows.gradients[1], rows.codes))
            for centre, seed in product((False, True), range(3)):
                grid = Grid((0.1, 0.2), (20, 35), seeds=range(5), cluster_seed=seed, centre=centre)
                problem = Problem(target, truth, rows.gradients[0])
                name = f"gradients, {'centred' if centre else 'raw'}"
                self.once(
                    "recall",
                    partial(_found, problem, ["ucb_beta"], grid),
                    target=target,
                    features=name,
                    seed=seed,
                )
            for name in ("hidden", "head"):
                own, wanted = rows.sides(name)
                likeness = influence(own, aimed("mean", wanted, rows.codes))
                problem = Problem(target, truth, own.astype(np.float32), estimate=likeness)
                policies = ["ucb_beta", "linear_ucb", "cluster_less", "landmarks"]
                grid = Grid((0.0625, 0.1, 0.2), (20,), seeds=range(5))
                self.once(
                    "recall", partial(_found, problem, policies, grid), target=target, features=name, seed=0
                )

    def report(self) -> None:
        """Print the tables of whole runs, also into report.md, and make the plot."""
        text = report(self.out)
        (self.out / "report.md").write_text(text, encoding="utf-8")
        print(text)


def answered(model: PeftModel, rows: Sequence[Encoded]) -> NDArray[np.bool_]:
    """Whether greedy decoding gives the answer of each row, to its end token, (n,).

    It does if every label is the likeliest token after those before it.
    """
    return np.concatenate([forward(_answered, model, [row]) for row in rows]) == 1


def _answered(model: PeftModel, batch: Batch) -> NDArray[np.float64]:
    with torch.no_grad(), eval_mode(model):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention).logits  # (1, T, V)
    likeliest = logits.flatten(0, 1)[batch.predictors].argmax(1)  # (L,)
    return batch.row_means((likeliest == batch.answers).cpu().numpy())


def _found(problem: Problem, policies: Sequence[str], grid: Grid) -> dict[str, Any]:
    found = simulate([problem], {name: named_policy(name) for name in policies}, grid)
    names = ("policy", "k", "budget", "seed", "recall")
    return {"runs": [{name: getattr(outcome, name) for name in names} for outcome in found]}


class AtWarmup:
    """A target's pool at the warmup checkpoint, and trainings from what is selected there."""

    def __init__(self, study: Study, target: str) -> None:
        pool = TARGETS[target][0]
        config = study.config(target, study.out / pool / "static" / target)
        self.session = session = Session(config.with_settings({"features": "gradients"}), study.screen)
        session.check_inputs()
        session.begin()
        warmup(session)
        self.codes = session.inputs.targeted.codes

    @cached_property
    def gradients(self) -> Sides:
        """Adam's directions of pool rows, plain gradients of target rows."""
        return self.sides("gradients")

    def sides(self, features: str) -> Sides:
        """Features of pool and target; computed anew unless they are there."""
        path = self.session.dir.path / f"{features}.npz"

        def compute(part: Path) -> None:
            own, wanted = (np.concatenate([*side]) for side in self._computed(features))
            with part.open("wb") as file:
                np.savez(file, own=own, wanted=wanted)

        with np.load(made(path, compute, Path)) as found:
            own, wanted = found["own"], found["wanted"]
        if features not in ("hidden", "head"):
            return own, wanted
        mean = own.astype(np.float64).mean(0)
        return centred(own, mean), centred(wanted, mean)

    def _computed(self, features: str) -> Iterator[Iterator[Floats]]:
        """Row by row, of the pool and of the target."""
        session, checkpoint = self.session, self.session.index.checkpoint()
        load_adapter(session.model, session.dir.initial if features == "rds" else checkpoint.folder)
        sides = (list(session.inputs.pooled.tokens), session.inputs.targeted.tokens)
        if features in ("hidden", "rds", "head"):
            of = {
                "hidden": partial(representations, depth=DEPTH),
                "rds": representations,
                "head": partial(head_gradients, dim=session.config.gradients.dim, seed=0),
            }
            for rows in sides:
                yield self._each(rows, partial(forward, of[features], session.model))
            return
        for rows, moments in zip(
            sides, (None if features == "plain" else checkpoint.moments, None), strict=True
        ):
            featurize = Featurizer(session.model, session.projection, moments, top=features == "top")
            yield self._each(rows, lambda batch, featurize=featurize: featurize(batch)[0])

    def _each(
        self, rows: Sequence[Encoded], compute: Callable[[Sequence[Encoded]], Floats]
    ) -> Iterator[Floats]:
        """What is computed of micro-batches, in the order of the rows, (1, d) each."""
        lengths = np.array([len(row.ids) for row in rows], np.int64)
        found: dict[int, Floats] = {}
        for batch in micro_batches(lengths, self.session.batch_tokens):
            found |= dict(zip(batch.tolist(), compute([rows[i] for i in batch.tolist()]), strict=True))
        return (found[i][None] for i in range(len(rows)))

    def trained(self, features: str, aim: Aim) -> dict[str, Any]:
        """The held-out rows' losses after training on a selection, and what was selected."""
        session, rows = self.session, self._selected(features, aim)
        folder = session.dir.path / "adapters" / f"{features}-{aim}"
        train_on(session, rows, folder)
        load_adapter(session.model, folder)
        found = losses(session.model, session.inputs.evaluation_tokens, session.batch_tokens)
        return {"loss": float(found.mean()), "losses": found.tolist(), "rows": rows.tolist()}

    def _selected(self, features: str, aim: Aim) -> NDArray[np.int64]:
        session, count = self.session, self.session.budget.keep(len(self.session.inputs.pooled))
        if features == "random":
            drawn = np.random.default_rng(0).permutation(len(session.inputs.pooled))
            return np.sort(drawn[:count])
        own, wanted = self.sides(features)
        compared = aimed(aim, wanted, self.codes)
        if aim == "round_robin":
            return in_turns([similarities(own, compared)], count)[0]
        return top(influence(own, compared), count)


STAGES: dict[str, Callable[[Study], None]] = {
    "static": Study.static,
    "whole": Study.whole,
    "exact": Study.exact,
    "recall": Study.recall,
    "report": Study.report,
}


def main(argv: list[str] | None = None) -> int:
    """Run the stages that are named, or all; 2 for a person's mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("stages", nargs="*", choices=[[], *STAGES], metavar="STAGE", help=f"{', '.join(STAGES)}; all if none")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    add("--data-dir", type=Path, metavar="DIR", help="folder with the official files")
    add("--model", help="instead of that in the settings")
    add("--settings", type=Path, default=Path(__file__).with_suffix(".yaml"), metavar="FILE")
    add("--targets", nargs="+", choices=TARGETS, default=[*TARGETS], metavar="NAME", help=", ".join(TARGETS))
    add("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="NAME", help=", ".join(METHODS))
    add("--seeds", type=int, default=3, help="repetitions of whole runs")
    add("--thin", type=int, default=5, help="every THIN-th row of a pool is taken")
    options = parser.parse_args(argv)
    quiet_libraries()
    try:
        study = Study(options.out, options, Screen())
        for stage in options.stages or STAGES:
            STAGES[stage](study)
    except ClusterUCBError as error:
        print(f"kept: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
