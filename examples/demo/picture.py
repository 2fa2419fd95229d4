"""The report's picture in README.md, from the demo's run: `.venv/bin/python examples/demo/picture.py`.

Needs Chromium (on Debian: apt install chromium), as nothing else of the demo does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from clusterucb.report.page import report

RUN = Path("demo-run/clusterucb")
PICTURE = Path(__file__).parents[2] / "docs" / "report.png"
MOST = 200_000
"""Bytes of the picture."""
FLAGS = "headless no-sandbox disable-gpu disable-dev-shm-usage hide-scrollbars no-first-run"
LOOK = "window-size=1100,1225 virtual-time-budget=15000 blink-settings=preferredColorScheme=1"


def main(run: Path, picture: Path) -> None:
    """Make the run's report again, and take the picture of its beginning."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("picture: there is no Chromium; on Debian: apt install chromium")
    with TemporaryDirectory() as folder:
        page = report([run], Path(folder) / "report.html")
        flags = f"{FLAGS} {LOOK} user-data-dir={folder}/profile screenshot={picture.absolute()}".split()
        subprocess.run([browser, *(f"--{flag}" for flag in flags), page.as_uri()], check=True)
    if picture.stat().st_size > MOST:
        sys.exit(f"picture: {picture} has {picture.stat().st_size:,} bytes, expected at most {MOST:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RUN, PICTURE)
