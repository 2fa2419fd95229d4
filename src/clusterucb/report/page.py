"""The report as one HTML file: it asks nothing of the network, and shows text from files as text.

Words reach the page escaped (`markup`), rows of the pool as JSON that the page's script shows as text. The
browser is told to load nothing, and to run no script but those of the page, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from clusterucb.data.pool import Pool
from clusterucb.errors import InputError
from clusterucb.report.cost import cost
from clusterucb.report.examples import BYTES
from clusterucb.report.markup import count, escape, script_json, seconds
from clusterucb.report.quality import loss_line, quality
from clusterucb.report.run_data import RunData, read_run
from clusterucb.report.section import Section
from clusterucb.report.selected import selected
from clusterucb.report.several import several
from clusterucb.report.trust import trust
from clusterucb.report.why import why
from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import publish
from clusterucb.version import __version__

TITLES = {
    "selected": "What was selected",
    "quality": "How good it is",
    "cost": "What it cost",
    "why": "Why these rows",
    "trust": "Can it be trusted",
}


def report_run(run: RunDir, pool: Pool) -> None:
    """Publish the report of a run at its end, unless it is there and newer than what it tells of."""
    told_of = [run.evaluation, run.benchmarks / "results.json", run.config]
    newest = max(path.stat().st_mtime_ns for path in told_of if path.exists())
    if not run.report.exists() or run.report.stat().st_mtime_ns < newest:
        _publish(run.report, page([read_run(run.path, pool=pool)]))


def report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Publish one page of one or several runs, finished or not.

    Args:
        paths: run directories; the directory of a comparison stands for its runs.
        out: the file; without it `report.html` in the one directory that is given.

    Returns:
        The file.

    Raises:
        InputError: a directory holds no run, or there are several and no `out`.
    """
    given = [Path(path) for path in paths]
    if out is None and len(given) != 1:
        raise InputError(f"a report of {len(given)} directories: say where it goes with --out FILE")
    folders = [run for path in given for run in _runs(path)]
    names = _names(folders)
    target = Path(out) if out is not None else given[0] / "report.html"
    _publish(target, page([read_run(folder, name) for folder, name in zip(folders, names, strict=True)]))
    return target


def _runs(path: Path) -> list[Path]:
    """A run, or those of a comparison."""
    if (path / "comparison.yaml").exists():
        found = sorted(file.parent for file in path.glob("*/*/config.yaml"))
        if not found:
            raise InputError(f"{path}: this comparison has no run yet")
        return found
    return [path]


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


def page(runs: Sequence[RunData]) -> str:
    """The page of one run, or of several side by side."""
    sections, body, links = [], [], []
    if len(runs) > 1:
        together = Section("runs", "The runs side by side")
        several(runs, together)
        sections.append(together)
        body.append(together.html())
        links.append(("runs", "Side by side"))
    for number, run in enumerate(runs):
        own = _sections(run, f"r{number}-" if len(runs) > 1 else "", BYTES // len(runs))
        sections += own
        written = _cards(run) + "\n".join(section.html() for section in own)
        if len(runs) > 1:
            heading = f'<summary><h2 id="r{number}">{escape(run.name)}</h2></summary>'
            body.append(f'<details class="run">{heading}{written}</details>')
            links.append((f"r{number}", run.name))
        else:
            body.append(written)
            links += [(section.key, section.title) for section in own]
    return _filled(runs, body, links, sections)


def _sections(run: RunData, prefix: str, allowed: int) -> list[Section]:
    own = {key: Section(prefix + key, title) for key, title in TITLES.items()}
    selected(run, own["selected"], allowed)
    quality(run, own["quality"])
    cost(run, own["cost"])
    why(run, own["why"])
    trust(run, own["trust"])
    return [*own.values()]


def _cards(run: RunData) -> str:
    """The answers in a few numbers."""
    facts = {
        "loss, base → adapter": loss_line(run),
        "rows selected": f"{count(sum(len(found.rows) for found in run.rounds))} of {count(run.rows or 0)}",
        "pool gradients": count(run.total.pool_gradients),
        "time": seconds(run.total.seconds),
    }
    if run.total.pool_forwards:
        facts["forward passes of pool rows"] = count(run.total.pool_forwards)
    if run.share_of_full is not None:
        facts["of the full method's cost"] = f"{run.share_of_full:.0%}"
    cells = "".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in facts.items()
    )
    state = (
        "" if run.finished else '<p class="note">This run is not finished: the page tells what is there.</p>'
    )
    return f'<dl class="cards">{cells}</dl>{state}'


def _filled(
    runs: Sequence[RunData], body: list[str], links: list[tuple[str, str]], sections: Sequence[Section]
) -> str:
    files = resources.files("clusterucb.report")
    scripts = {
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
        "script": (files / "report.js").read_text(encoding="utf-8"),
    }
    data = {
        "figures": {key: figure for section in sections for key, figure in section.figures.items()},
        "examples": {key: rows for section in sections for key, rows in section.examples.items()},
    }
    about = runs[0]
    whose = f"Method {about.method}, model {about.config.model}" if len(runs) == 1 else ""
    return Template((files / "template.html").read_text(encoding="utf-8")).substitute(
        policy=" ".join(_hash(script) for script in scripts.values()),
        title=escape(about.name if len(runs) == 1 else f"{len(runs)} runs"),
        about=escape(whose),
        style=(files / "report.css").read_text(encoding="utf-8"),
        navigation="".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in links),
        body="\n".join(body),
        data=script_json(data),
        made=escape(f"clusterucb {__version__}"),
        **scripts,
    )


def _hash(script: str) -> str:
    """How a content policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
