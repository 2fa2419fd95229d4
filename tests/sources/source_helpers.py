"""What the package makes of raw files, and of raw rows."""

import json
import tempfile
from pathlib import Path

import file_helpers
from clusterucb.data.pool import Pool
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import prepare
from clusterucb.sources.source import Conversation


def read_out(out, name):
    """The rows written, which the pool takes, as (id, turns)."""
    path = Path(out) / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [list(row) for row in rows] == [["dataset", "id", "messages"]] * len(rows)
    pool = Pool.read(path)
    assert len(pool) == len(rows)
    assert pool.sources == [name]
    return [(row["id"], [(m["role"], m["content"]) for m in row["messages"]]) for row in rows]


def prepared(name, file, data, folder):
    """(report, rows) of one raw file."""
    report = prepare(name, file_helpers.write(folder / file, data), folder / "out")
    return report, read_out(folder / "out", name)


def converted(name, records):
    """(conversations as (key, turns), dropped reasons) of raw rows, straight from the converter."""
    kept, dropped = [], []
    for item in SOURCES[name].convert((record, f"row {i}") for i, record in enumerate(records, 1)):
        if isinstance(item, Conversation):
            kept.append((item.key, [(m.role, m.content) for m in item.messages]))
        else:
            dropped.append(item)
    return kept, dropped


def refusal(name, origin):
    """The one line that says why the input is refused; nothing is left behind."""
    with tempfile.TemporaryDirectory() as out:
        said = file_helpers.refusal(prepare, name, origin, out)
        assert list(Path(out).iterdir()) == []
    return said


def pair(asked, answered):
    return [("user", asked), ("assistant", answered)]
