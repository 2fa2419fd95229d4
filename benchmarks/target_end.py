"""Is the end of a target's answers to be learnt? Both settings of `--target-end`, all else equal.

    python benchmarks/target_end.py --data-dir DOWNLOADS --model SmolLM2-135M-Instruct --out runs/end

LESS's selection at one checkpoint, of short real rows (the way of fidelity_data.py), for two targets:

| target | its rows          | held out       | in the pool                                           |
|--------|-------------------|----------------|-------------------------------------------------------|
| mmlu   | dev questions     | test questions | other dev questions, and other questions with choices |
| gsm8k  | training problems | test problems  | no row of its own; AQuA's worked sums                 |

The adapters that are trained on the selected rows, and on as many random ones, are judged on the held-out
rows: loss of the answer, loss of the token that ends it and, for mmlu, whether the right letter is the
likeliest of four. Warmup and features of all rows are made once; repetitions differ in the order and dropout
of training; random rows are drawn once. Killed at any moment, the same command goes on.
`report.md` in the folder has the tables of docs/target-end.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fidelity_sources as sources
import numpy as np
import torch
from fidelity_data import StudyData, study_data
from fidelity_pools import PoolKind, Sides, Sizes
from fidelity_recall import spearman
from fidelity_report import table
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.cli.main import quiet_libraries
from clusterucb.config import load
from clusterucb.data.chat import chat_format
from clusterucb.errors import ClusterUCBError
from clusterucb.run.directory import RunDir
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish, read_json, write_json
from clusterucb.runtime.screen import Screen
from clusterucb.steps.features import gradients
from clusterucb.steps.select import select
from clusterucb.steps.train import train, warmup
from clusterucb.training.adapter import load_adapter
from clusterucb.training.model import load_tokenizer

SETTINGS: dict[str, Any] = {
    **{"chat": "tulu", "dtype": "float32", "decontaminate": True, "rank": 8, "alpha": 32},
    **{"bandit": "none", "less_checkpoints": 1, "less_warmup": 0.4, "top_p": 0.06},
    **{"gradient_length": 128, "target_length": 192, "batch_tokens": 2048},
    **{"periods": 1, "epochs_per_period": 4, "lr": 3e-4, "batch_size": 8, "micro_batch": 8},
    "train_length": 192,
}
WAYS: Mapping[str, Mapping[str, str]] = {
    **{end: {"method": "less", "target_end": end} for end in ("learn", "leave")},
    "random": {"method": "random"},
}
FLAN = ("aqua", "creak", "ecqa", "qasc", "sensemaking", "strategyqa")
BBH = ("boolean_expressions", "object_counting", "sports_understanding", "word_sorting")


def _sides(data_dir: Path, seed: int) -> dict[str, Any]:
    def side(task: str, rows: int | None) -> Sides:
        return sources.asked(data_dir, task, rows, seed)

    return {"mmlu": lambda: side("mmlu", None), "gsm8k": lambda: side("gsm8k", sources.CONSIDERED)}


KIND = PoolKind(
    Sizes(1_900, target=24, heldout=60, longest=128),
    lambda data_dir: {
        **{name: sources.flan(data_dir, name) for name in FLAN},
        **{name: sources.bbh(data_dir, name) for name in BBH},
        "code_alpaca": sources.code_alpaca(data_dir),
        "mmlu": lambda: sources.asked(data_dir, "mmlu", None, 0)[0],
    },
    ("mmlu", "gsm8k"),
    _sides,
)


def sessions(data: StudyData, options: argparse.Namespace, screen: Screen) -> Iterator[tuple[str, Session]]:
    """Every run with its name, TARGET/WAY/REPETITION."""
    shared = options.out / "shared"
    for target in KIND.targets:
        for repeat in range(options.seeds):
            for way, own in WAYS.items():
                if repeat and way == "random":
                    continue
                name = f"{target}/{way}/{repeat}"
                run = RunDir(options.out / name)
                first = {"first_round": options.out / target / way / "0"} if repeat else {}
                if not run.config.exists():
                    inputs = options.out / target / "inputs"
                    groups = dict.fromkeys(("pool", "checkpoints", "features"), shared)
                    run.over({**groups, "task": inputs, **first}).keep_elsewhere()
                files = {
                    "pool": [str(path) for path in data.pool.values()],
                    "target": [str(data.targets[target])],
                    "holdout": [str(data.heldout[target])],
                }
                model = {"model": options.model, "out": str(run.path), "repeat": repeat}
                yield name, Session(load(None, {**SETTINGS, **model, **files, **own}), screen)


def trained(session: Session) -> None:
    """From the pool to the adapter."""
    with session.owned():
        session.check_inputs()
        if session.method.takes_gradients:
            warmup(session)
            gradients(session)
        select(session)
        train(session)


def judged(session: Session, adapter: Path) -> dict[str, list[float]]:
    """For each held-out row the loss of its answer, that of its end, and whether its letter is the likeliest.

    The letters are all answers of one token there are; there are none but for MMLU.
    """
    inputs, length = session.inputs, session.config.training.train_length
    rows = inputs.encode_all(inputs.evaluated[0], length, "--train-length")
    bare = inputs.encode_all(inputs.evaluated[0], length, "--train-length", ends=False)
    letters = sorted({int(row.ids[row.labels][0]) for row in bare if row.labels.sum() == 1})
    found: dict[str, list[float]] = {"answer": [], "end": [], "right": []}
    load_adapter(session.model, adapter)
    session.model.eval()
    for whole, answer in zip(rows, bare, strict=True):
        ids = torch.from_numpy(whole.ids.astype(np.int64))[None]
        with torch.inference_mode():
            logits = session.model(input_ids=ids).logits[0, :-1].float()  # (T - 1, V)
        losses = -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()  # (T - 1,)
        labels = answer.labels[1:]
        found["answer"].append(float(losses[labels].mean()))
        found["end"].append(float(losses[whole.labels[1:] & ~labels].mean()))
        if answer.labels.sum() == 1:
            place = int(np.flatnonzero(labels)[0])
            best = letters[int(logits[place, letters].argmax())]
            found["right"].append(float(best == int(ids[0, place + 1])))
    return found


def study(options: argparse.Namespace, screen: Screen) -> str:
    """All runs, and their tables."""
    config = load(None, {**SETTINGS, "model": options.model, "out": "-", "pool": ["-"], "target": ["-"]})
    tokenizer = load_tokenizer(config)
    chat = chat_format(config.chat, tokenizer)
    data = study_data(
        options.out / "data", options.data_dir, KIND, tokenizer, chat, KIND.sizes, config.seed, screen
    )
    for name, session in sessions(data, options, screen):
        path = options.out / name / "judged.json"
        base = path.parents[2] / "base.json"
        if path.with_name("selected.json").exists():
            continue
        screen.say(name)
        trained(session)
        for file, adapter in ((base, session.dir.initial), (path, session.dir.adapter)):
            if not file.exists():
                write_json(file, judged(session, adapter))
        _write_selected(session, path.with_name("selected.json"))
        session.inputs.release_model()
    return report(options.out)


def _write_selected(session: Session, path: Path) -> None:
    """The pool rows of the run's only selection, by source and number."""
    pooled, chosen = session.inputs.pooled, read_round(session.dir.round(1)).rows
    write_json(path, {"rows": [pooled.describe(row) for row in chosen.tolist()]})


def report(out: Path) -> str:
    """Losses by target and way: means over held-out rows and repetitions, and leave against learn."""
    heads = ("trained on", "loss of the answer", "loss of its end", "right letters", "selected from")
    parts = []
    for target in KIND.targets:
        base = read_json(out / target / "base.json")
        lines = [("nothing (the base)", *(_cell([base], name) for name in ("answer", "end", "right")), "")]
        for way in WAYS:
            cells = (_cell(_judged(out / target / way), name) for name in ("answer", "end", "right"))
            lines.append((way, *cells, _origins(out / target / way / "0")))
        parts += [f"### {target}", table(heads, lines), _difference(out / target)]
    return "\n\n".join(parts) + "\n"


def _judged(way: Path) -> list[dict[str, list[float]]]:
    """All repetitions that are finished."""
    return [read_json(path) for path in sorted(way.glob("*/judged.json"))]


def _rows(runs: list[dict[str, list[float]]], name: str) -> NDArray[np.float64]:
    """A measure of each repetition and row, (r, n)."""
    return np.array([run[name] for run in runs])


def _cell(runs: list[dict[str, list[float]]], name: str) -> str:
    """Mean, and its sample deviation over repetitions where there are several."""
    found = _rows(runs, name)
    if not found.size:
        return ""
    means = found.mean(1)
    return f"{means.mean():.4f}" + (f" ± {means.std(ddof=1):.4f}" if len(means) > 1 else "")


def _origins(run: Path) -> str:
    rows = read_json(run / "selected.json")["rows"]
    counted = Counter(row.partition(".")[0] for row in rows)
    return ", ".join(f"{source} {count}" for source, count in counted.most_common())


def _difference(folder: Path) -> str:
    """Leave less learn, row by row, each row's loss averaged over repetitions first."""
    said = []
    for name in ("answer", "end"):
        learn, leave = (_rows(_judged(folder / way), name).mean(0) for way in ("learn", "leave"))
        difference = leave - learn
        error = difference.std(ddof=1) / len(difference) ** 0.5
        said.append(f"{name} {difference.mean():+.4f} ± {error:.4f}")
    return f"leave less learn, over {len(difference)} held-out rows: {', '.join(said)}; {_alike(folder)}."


def _alike(folder: Path) -> str:
    """How alike the two ways are before anything is trained."""
    runs = [folder / way / "0" for way in ("learn", "leave")]
    aims = [load_file(run / "directions/1.safetensors")["directions"][0] for run in runs]
    found = [load_file(run / "rounds/1/selection.safetensors") for run in runs]
    scores = [each["drawn_scores"][np.argsort(each["drawn"])] for each in found]
    same = np.intersect1d(found[0]["rows"], found[1]["rows"])
    return (
        f"cosine of the directions {aims[0] @ aims[1] / np.prod(np.linalg.norm(aims, axis=1)):.4f}, "
        f"Spearman of all rows' influence {spearman(*scores):.4f}, "
        f"{len(same)} of {len(found[0]['rows'])} selected rows the same"
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is not there yet and print the tables; 2 for a person's mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the official files")
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions; default: %(default)s")
    options = parser.parse_args(argv)
    quiet_libraries()
    try:
        text = study(options, Screen())
    except ClusterUCBError as error:
        print(f"target_end: {error}", file=sys.stderr)
        return 2
    with publish(options.out / "report.md") as part:
        part.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
