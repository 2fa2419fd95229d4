"""Run directories written without a model, and pages read back without a browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clusterucb.config import Config
from clusterucb.data.pool import Pool
from clusterucb.features.store import FeatureWriter
from clusterucb.run.costs import Cost, Work, bill, recorded_costs
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import method_of
from clusterucb.run.rounds import write_round
from clusterucb.runtime.files import write_json
from clusterucb.selection.selector import ClusterUCB, FullScoring

SPELL = 'document.title="hacked"'
HOSTILE = {
    "script": f"<script>{SPELL}</script>",
    "end of script": f"</script><script>{SPELL}</script><!--<script>",
    "image": f"<img src=x onerror='{SPELL}'>",
    "template": "{{7*7}} ${title} $data %s {0}",
    "direction": "one \u202edesrever\u202c two",
    "right to left": "שלום עולם, hello",
    "separators": "a\u2028b\u2029c",
    "nul": "before\x00after\x1b[31m",
    "link": "<a href='javascript:alert(1)'>x</a> https://example.com/x.js",
    "long": "word " * 200_000,
}

VOID = {"meta", "br", "img", "input", "link", "hr"}


def write_run(folder, files, periods=3, k=5, contamination=(), excluded=(), **settings):
    """A finished run over pool files `files` (name to list of records), with features drawn at random."""
    rng, run = np.random.default_rng(0), RunDir(folder)
    data = run.path.with_name(f"{run.path.name}-data")
    for place in (run.path, run.pool, data):
        place.mkdir(parents=True)
    target = [{"instruction": "ask", "output": "say", "topic": name} for name in ("<i>a</i>", "b")]
    for name, records in {**files, "target.jsonl": target}.items():
        _write_lines(data / name, records)
    places = {"pool": [str(data / name) for name in files], "target": [str(data / "target.jsonl")]}
    trained = {"model": "models/<tiny>", "subtask": "topic", "training": {"periods": periods}}
    paper = {"clustering": {"features": "gradients"}, "selection": {"policy": "ucb_beta", "top_p": 0.05}}
    config = Config(**places, **trained, out=str(run.path), **{**paper, **settings})
    run.config.write_text(config.to_yaml())
    pool, method = Pool.read(config.pool), method_of(config)
    usable = np.setdiff1d(np.arange(len(pool)), excluded)
    _write_pool(run, pool, usable, excluded)
    checked = {"made_with": {"holdout": "h"}, "checked_against": {"target": 2, "gsm8k": 7}}
    write_json(run.contamination, {**checked, "hits": list(contamination)})
    count = len(usable)
    labels, influence = np.zeros(count, np.int64), rng.normal(size=(periods, count))
    if method.takes_gradients:
        labels, influence = _write_features(run, rng, count, k, periods, pool.fingerprint)
    if method.budgeted:
        save_file({"labels": labels}, run.clusters)
    for number in method.rounds(periods):
        draws, folder = [], run.round(number)
        select = FullScoring(labels, config.selection.top_p)
        if number > 1 and method.budgeted:
            select = ClusterUCB(labels, budget=0.2, top_p=config.selection.top_p)
        chosen = select(influence[number - 1].take, number, draws.append)
        cost = Cost(chosen.spent, 10 * chosen.spent, chosen.spent * (number > 1), 2, 1.5)
        folder.mkdir(parents=True)
        write_round(folder, number, chosen, draws, pool, usable, cost)
    _write_losses(run, rng, periods)
    costs = recorded_costs(run, method, method.rounds(periods))
    job = Work(count, 10 * count, 10 * count, 20, method.full(periods))
    write_json(run.summary, {"rows": count, "bill": bill(costs, job), "remarks": ["mind the <b>gap</b>"]})
    return run.path


def _write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _write_pool(run, pool, usable, excluded):
    np.save(run.pool / "rows.npy", usable)
    reasons = [{"id": pool.id(row), "reason": f"row {row}: <b>too long</b>"} for row in excluded]
    _write_lines(run.pool / "excluded.jsonl", reasons)
    counts = {"rows": len(pool), "usable": len(usable), "excluded": len(excluded)}
    write_json(run.pool / "manifest.json", {**counts, "made_with": {"pool": pool.fingerprint}})


def _write_features(run, rng, count, k, periods, fingerprint, dim=32):
    """Rows around k middles; what each helps drifts from period to period."""
    labels = rng.integers(0, k, count)
    x = rng.normal(size=(k, dim))[labels] + 0.7 * rng.normal(size=(count, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    first, drift = rng.normal(size=(2, dim)).astype(np.float32), rng.normal(size=(periods, 2, dim))
    with FeatureWriter(run.features, count, dim, {"pool": fingerprint, "model": "<m>"}) as writer:
        writer.write(np.arange(count), x, np.zeros(count))
        writer.finish({"cost": Cost(count, 10 * count, count, 2, 60.0).to_json()})
    run.directions_at(1).parent.mkdir()
    save_file({"directions": first}, run.directions_at(1))
    return labels, np.stack([(x @ (first + 0.5 * n * drift[n]).T).max(1) for n in range(periods)])


def _write_losses(run, rng, periods):
    base = rng.uniform(1, 2, 8)

    def measured(losses):
        error = float(losses.std(ddof=1) / np.sqrt(len(losses)))
        return {"loss": float(losses.mean()), "standard_error": error, "losses": losses.tolist()}

    facts = {"on": "holdout", "rows": len(base), "cost": Cost(8, 80, seconds=0.5).to_json()}
    run.period(1).parent.mkdir()
    for n in range(1, periods):
        write_json(run.period(n), {"period": n, **facts, **measured(base - 0.1 * n)})
    adapter = base - 0.1 * periods + rng.normal(0, 0.02, len(base))
    write_json(run.evaluation, {**facts, "base": measured(base), "adapter": measured(adapter)})


def records(count, source, seed=0):
    """Rows of a few words."""
    words = np.random.default_rng(seed).choice(["sun", "moon", "lamp", "quiz"], (count, 2)).tolist()
    return [{"dataset": source, "instruction": f"{a} {i}", "output": b} for i, (a, b) in enumerate(words)]


class Page(HTMLParser):
    """A page as a browser's parser would see it: its elements, tables by caption, scripts, words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.tables, self._open, self._words = [], [], {}, [], []
        self._cell, self._rows = "", []  # what is being read
        self.feed(text)
        self.close()

    @classmethod
    def read(cls, path):
        return cls(Path(path).read_text(encoding="utf-8"))

    @property
    def data(self):
        """What the page's script reads."""
        return json.loads(next(text for found, text in self.scripts if found.get("id") == "data"))

    @property
    def words(self):
        """All text outside of scripts and styles."""
        return " ".join("".join(self._words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes), ""])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("caption", "th", "td"):
            self._cell = ""

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag
        if tag == "caption":
            self._rows = self.tables.setdefault(self._cell, [])
        elif tag in ("th", "td"):
            self._rows[-1].append(self._cell)

    def handle_data(self, text):
        if self._open and self._open[-1] == "script":
            self.scripts[-1][1] += text
        elif self._open and self._open[-1] != "style":
            self._words.append(text)
            self._cell += text
