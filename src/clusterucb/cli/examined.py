"""What `doctor` found, on one screen."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.filesize import decimal

from clusterucb.cli.tables import print_table, say
from clusterucb.report.section import seconds
from clusterucb.studies.doctor import ENOUGH, Examined

SHOWN = 80
"""Characters of either end of a long piece of a row's text."""


def show_examined(found: Examined, console: Console | None = None) -> None:
    """Print what `examine` found, on one screen."""
    console = console or Console()
    rows = [[what, f"{cosine:.4f}", _verdict(cosine)] for what, cosine in found.cosines.items()]
    title = f"Features of a row alone in {found.dtype} on {found.device}, against those of the same row"
    print_table(console, title, ["", "least cosine", ""], rows, words=[""])
    for line in _examined(found):
        say(console, line)


def _verdict(cosine: float) -> str:
    return "" if cosine >= ENOUGH else f"below {ENOUGH}: not to be trusted"


def _examined(found: Examined) -> Iterator[str]:
    pieces = ((_shortened(piece), learnt) for piece, learnt in found.text)
    text = "".join(f"[[{piece}]]" if learnt else piece for piece, learnt in pieces)
    yield f"a row as the model reads it, with what is learnt in [[ ]]: {text!r}"
    twice = "; use --chat tulu, or a chat template without one" if found.begins > 1 else ""
    yield f"begin tokens before a row: {found.begins}{twice}"
    attention, sketch = ", ".join(found.attention), "one kernel" if found.fused else "plain operations"
    yield f"attention: {attention or 'plain operations'}; Adam's map and the sketch: {sketch}"
    if found.memory:
        total, free = found.memory
        yield f"memory: {decimal(total)}" + (f", {decimal(free)} free beside the model" if free else "")
    count, length = found.batch
    yield f"{count} rows of {length} tokens went at once; one of mean length takes {found.a_row:.3g} s"
    if found.gradients:
        yield (
            f"a run takes {found.gradients:,} gradients of the {found.rows:,} rows: "
            f"{seconds(found.gradients * found.a_row)}, without training; clusterucb plan tells more"
        )


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"
