"""Where a command's time went, as a table on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from clusterucb.runtime.profiling import Profile


def show_profile(profile: Profile, console: Console | None = None) -> None:
    """Print each stage's seconds and share, the longest first; the sum is the wall time."""
    total = sum(profile.seconds.values())
    table = Table(title="Where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in sorted(profile.seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:.2f}", f"{seconds / total:.1%}")
    table.add_row("wall time", f"{total:.2f}", "", style="bold")
    (console or Console()).print(table)
