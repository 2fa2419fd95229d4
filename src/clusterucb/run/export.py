"""Selected rows as training data of other programs: trl, LLaMA-Factory, axolotl read them as they are.

| file                | for          | holds                                                                 |
|---------------------|--------------|-----------------------------------------------------------------------|
| `selected.jsonl`    | all          | `{"messages": [{"role", "content"}, ...]}`, whatever shape a row had  |
| `dataset_info.json` | llamafactory | the data set `clusterucb` of this folder (LLaMA-Factory's README)     |
| `axolotl.yaml`      | axolotl      | `datasets:` of type chat_template (axolotl's docs, dataset formats)   |
| `export.json`       | people       | rounds, rows, and the ids of those left out, with the reason          |

A conversation ends with its last answer, as in training: what follows has no label. Texts are the rows' own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clusterucb.data.rows import Message, parse_messages
from clusterucb.errors import ConfigError, InputError
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import publish_folder, write_json, write_lines

FORMATS = ("trl", "llamafactory", "axolotl")
"""Programs that can be exported for."""

_MADE = "export.json"
_ROLES = {"role_tag": "role", "content_tag": "content"}
_ROLES |= {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    Attributes:
        folder: that was made.
        rounds: whose rows it has.
        rows: how many, each once.
        left_out: id and reason of each row that the program cannot read.
        learnt: rows with an answer, or the `given` beginning of one, that other programs learn all the same.
    """

    folder: Path
    rounds: Sequence[int]
    rows: int
    left_out: Mapping[str, str]
    learnt: int


def export(
    run: str | Path, form: str, *, number: int | None = None, out: str | Path | None = None
) -> Exported:
    """The rows that a run has selected, as a folder that another program takes.

    Args:
        run: the run's directory, finished or not; its pool is not needed.
        form: one of `FORMATS`.
        number: of the one round whose rows are taken; without it those of all rounds, each row once, in the
            order in which rounds selected them.
        out: becomes the folder; `exports/FORM` in the run directory without it.

    Raises:
        ConfigError: an unknown format, no such round, or `out` is something else.
        InputError: no row is left.
    """
    if form not in FORMATS:
        raise ConfigError(f"format {form!r}: unknown; expected one of {', '.join(FORMATS)}")
    there = RunDir(run)
    numbers = _rounds(there, number)
    folder = Path(out or there.path / "exports" / (f"{form}-round-{number}" if number else form))
    if folder.exists() and not (folder / _MADE).exists():
        raise ConfigError(f"{folder}: is there already and is no export; give another --out")
    rows = dict(row for n in numbers for row in _selected(there, n))
    refused = {name: why for name, turns in rows.items() if (why := _unreadable(turns, form))}
    kept = [turns for name, turns in rows.items() if name not in refused]
    if not kept:
        first, why = next(iter(refused.items()))
        raise InputError(f"{run}: {form} can read none of its {len(rows)} rows; first {first}: {why}")
    with publish_folder(folder) as part:
        plain = ([{"role": turn.role, "content": turn.content} for turn in turns] for turns in kept)
        write_lines(part / "selected.jsonl", ({"messages": turns} for turns in plain))
        _describe(part, form, folder.absolute())
        facts = {"format": form, "run": str(there.path.absolute()), "rounds": numbers, "rows": len(kept)}
        write_json(part / _MADE, {**facts, "left_out": refused})
        if folder.exists():  # an earlier export, of fewer rounds perhaps
            shutil.rmtree(folder)
    learnt = sum(
        any(turn.given or (turn.role == "assistant" and not turn.learn) for turn in turns) for turns in kept
    )
    return Exported(folder, numbers, len(kept), refused, learnt)


def _rounds(run: RunDir, number: int | None) -> list[int]:
    folder = run.round(1).parent
    there = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    if number is None and there:
        return there
    if number in there:
        return [number]
    known = f"it has {', '.join(map(str, there))}" if there else "run `clusterucb select` first"
    what = "no selection" if number is None else f"no round {number}"
    raise ConfigError(f"{run.path}: {what} is there; {known}")


def _selected(run: RunDir, number: int) -> Iterator[tuple[str, list[Message]]]:
    """Id and turns of each row of a round, through the last answer."""
    folder = run.round(number)
    with (folder / "selected.jsonl").open("rb") as lines, (folder / "selected.ids.jsonl").open("rb") as ids:
        for line, about in zip(lines, ids, strict=True):
            name = json.loads(about)["id"]
            turns = list(parse_messages(json.loads(line), name))
            last = max(i for i, turn in enumerate(turns) if turn.learnt)
            yield name, turns[: last + 1]


def _unreadable(turns: Sequence[Message], form: str) -> str:
    """Why the program would skip a conversation; "" if it would not."""
    if form != "llamafactory":
        return ""
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * ((len(spoken) + 1) // 2)
    return "" if spoken == expected else f"turns are {', '.join(roles)}; user and assistant must take turns"


def _describe(part: Path, form: str, folder: Path) -> None:
    """The file that tells a program how to read selected.jsonl, which will be in `folder`."""
    if form == "llamafactory":
        columns = {"messages": "messages"}
        about = {"file_name": "selected.jsonl", "formatting": "sharegpt", "columns": columns, "tags": _ROLES}
        write_json(part / "dataset_info.json", {"clusterucb": about})
    elif form == "axolotl":
        stub: dict[str, Any] = {
            "path": str(folder / "selected.jsonl"),
            "ds_type": "json",
            "type": "chat_template",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        }
        text = yaml.safe_dump({"datasets": [stub]}, sort_keys=False, allow_unicode=True)
        (part / "axolotl.yaml").write_text(text, encoding="utf-8")
