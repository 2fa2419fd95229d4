"""Raw files of the official shapes, with invented rows, and what the package makes of them."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest

from clusterucb.data.pool import Pool
from clusterucb.errors import InputError
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import prepare
from clusterucb.sources.source import Conversation, Dropped

REAL = Path(__file__).parents[2].parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the official files are not beside the repository")


def write(path, data):
    """`data`: records for one JSON array (.json) or one a line (.jsonl), or the file's own text."""
    if isinstance(data, list):
        records = [json.dumps(record, ensure_ascii=False) for record in data]
        name = path.name.removesuffix(".gz")
        data = f"[{', '.join(records)}]" if name.endswith(".json") else "".join(f"{r}\n" for r in records)
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


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
    report = prepare(name, write(folder / file, data), folder / "out")
    return report, read_out(folder / "out", name)


def converted(name, records):
    """(conversations as (key, turns), dropped reasons) of raw rows, straight from the converter."""
    items = list(SOURCES[name].convert((record, f"row {i}") for i, record in enumerate(records, 1)))
    kept = [
        (item.key, [(m.role, m.content) for m in item.messages])
        for item in items
        if isinstance(item, Conversation)
    ]
    return kept, [item.reason for item in items if isinstance(item, Dropped)]


def refusal(name, origin, out=None):
    """The one line that says why the input is refused; nothing is left behind."""
    out = Path(out or tempfile.mkdtemp())
    with pytest.raises(InputError) as caught:
        prepare(name, origin, out)
    assert "\n" not in str(caught.value)
    if out.is_dir():
        assert [file for file in out.iterdir() if file.name.startswith(f"{name}.json")] == []
    return str(caught.value)


def pair(asked, answered):
    return [("user", asked), ("assistant", answered)]
