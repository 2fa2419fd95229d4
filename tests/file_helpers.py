"""Files that a test writes, a hub that is not there, the official files, and the line that refuses any."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from clusterucb.errors import ConfigError, InputError


def write(path, data):
    """Write text, bytes or records: a table (.parquet), an array (.json), else one a line; packed for .gz."""
    if isinstance(data, list):
        data = _encoded(data, path.name.removesuffix(".gz"))
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def _encoded(records, name):
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
        return buffer.getvalue()
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    return f"[{', '.join(lines)}]" if name.endswith(".json") else "".join(f"{line}\n" for line in lines)


def refusal(call, *args, error=InputError):
    """The one line that the call raises; an iterator is run to its end."""
    with pytest.raises((InputError, ConfigError)) as caught:
        list(call(*args) or ())
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def official_files():
    """The folder with the official files next to the repository; skips the test where it is not."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the official files are not next to the repository")
    return folder


class Hub:
    """Data sets, or errors, that `datasets.load_dataset` has by name, config and split."""

    def __init__(self, monkeypatch):
        self.sets = {}
        self.asked = []
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=self.load))

    def load(self, name, config=None, split=None):
        self.asked.append((name, config, split))
        if isinstance(found := self.sets[name, config, split], Exception):
            raise found
        return iter(found)
