"""The report as one HTML file: it asks nothing of the network, and shows text from files as text.

Templates escape whatever they are given; figures and rows of the pool reach the page's script as JSON. The
browser is told to load nothing, and to run no script but those of the page, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clusterucb.data.pool import Pool
from clusterucb.errors import InputError
from clusterucb.report.bill import passes
from clusterucb.report.quality import cost, quality, side_by_side
from clusterucb.report.run_data import RunData
from clusterucb.report.section import FILTERS, Section, script_json, visible
from clusterucb.report.selected import BYTES, selected
from clusterucb.report.trust import trust
from clusterucb.report.why import why
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import publish
from clusterucb.version import __version__


def report_run(run: RunDir, pool: Pool) -> None:
    """Publish the report of a run at its end, unless it is there and newer than what it tells of."""
    told_of = [run.evaluation, run.benchmarks / "results.json", run.config]
    newest = max(path.stat().st_mtime_ns for path in told_of if path.exists())
    if not run.report.exists() or run.report.stat().st_mtime_ns < newest:
        _publish(run.report, page([RunData(run.path, pool=pool)]))


def report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Publish one page of one or several runs, finished or not, and return its path.

    Args:
        paths: run directories; the directory of a comparison stands for its runs.
        out: the file; without it `report.html` in the one directory that is given.

    Raises:
        InputError: a directory holds no run, or there are several and no `out`.
    """
    given = [Path(path) for path in paths]
    if out is None and len(given) != 1:
        raise InputError(f"a report of {len(given)} directories: say where it goes with --out FILE")
    folders = [run for path in given for run in _runs(path)]
    target = given[0] / "report.html" if out is None else Path(out)
    _publish(target, page([RunData(*run) for run in zip(folders, _names(folders), strict=True)]))
    return target


def _runs(path: Path) -> list[Path]:
    """A run, or those of a comparison."""
    if not (path / "comparison.yaml").exists():
        return [path]
    found = sorted(file.parent for file in path.glob("*/*/config.yaml"))
    if not found:
        raise InputError(f"{path}: this comparison has no run yet")
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell the directories apart."""
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{folders[0]}: given twice; name each run once")


def _publish(path: Path, text: str) -> None:
    with publish(path) as part:
        part.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Part:
    """A section as it stands on the page; `key` is unique on it."""

    key: str
    title: str
    html: str
    section: Section


def page(runs: Sequence[RunData]) -> str:
    """The page of one run, or of several side by side."""
    from plotly.offline import get_plotlyjs

    many = len(runs) > 1
    together = [_part("runs", "The runs side by side", side_by_side(runs), runs=runs)] if many else []
    each = [_parts(run, f"r{n}-" if many else "", BYTES // len(runs)) for n, run in enumerate(runs)]
    scripts = [_asset("report.js"), get_plotlyjs().replace("</script", "<\\/script")]
    template = environment().get_template("page.html")
    return template.render(
        runs=runs,
        together=together,
        each=each,
        data=script_json(_data([*together, *chain.from_iterable(each)])),
        style=_asset("report.css"),
        scripts=scripts,
        policy=" ".join(map(_hash, scripts)),
        version=__version__,
    )


def _parts(run: RunData, prefix: str, allowed: int) -> list[_Part]:
    """The sections of one run."""
    made = {
        "selected": ("What was selected", selected(run, allowed)),
        "quality": ("How good it is", quality(run)),
        "cost": ("What it cost", cost(run)),
        "why": ("Why these rows", why(run)),
        "trust": ("Can it be trusted", trust(run)),
    }
    return [_part(name, title, section, prefix, run=run) for name, (title, section) in made.items()]


def _part(name: str, title: str, section: Section, prefix: str = "", **about: Any) -> _Part:
    """Fill the template of a section."""
    key, template = prefix + name, environment().get_template(f"{name}.html")
    html = template.render(key=key, figures=section.figures, **section.facts, **about)
    return _Part(key, title, html, section)


def _data(parts: Sequence[_Part]) -> Mapping[str, Any]:
    """What the page's script reads: figures and rows by the ids of their places."""
    drawn = {f"{p.key}-{name}": figure for p in parts for name, figure in p.section.figures.items()}
    return {
        "figures": {key: figure.to_json() for key, figure in drawn.items()},
        "examples": {p.key: p.section.examples for p in parts if p.section.examples is not None},
    }


@cache
def environment() -> Environment:
    """Templates in which every value is text, and nothing in it is markup or unseen."""
    made = Environment(
        loader=PackageLoader("clusterucb.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {**FILTERS, "passes": passes}
    return made


def _shown(value: Any) -> Any:
    """A value as a template is to show it; what is markup already has been through here."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _asset(name: str) -> str:
    return (resources.files("clusterucb.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """How a content policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
