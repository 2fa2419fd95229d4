"""Checks that dist/ is ready to be published: what the archives hold, and that the wheel works alone.

    python .ci/check_dist.py dist

The wheel is installed with its dependencies in a fresh environment, and used from another folder, without
anything of the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src"
WITHIN = ("LICENSE", "README.md", "CITATION.cff", "pyproject.toml", "hatch_build.py", "Makefile")
USES = (
    ["--version"],
    ["--help"],
    ["run", "--help"],
    ["prepare", "--list"],
)


def main(folder: Path) -> None:
    """Check the only wheel and the only sdist in `folder`."""
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    check_files(wheel, sdist)
    with tempfile.TemporaryDirectory() as scratch:
        check_alone(wheel.resolve(), Path(scratch))
    print(f"ready to publish: {wheel} and {sdist}")


def check_files(wheel: Path, sdist: Path) -> None:
    """All files of the package are in both, and the wheel holds nothing else."""
    sources = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / "clusterucb").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    written = {"clusterucb/commit.txt"} if (ROOT / ".git").exists() else set()
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if packed != sources | written:
        sys.exit(f"{wheel}: differs from src/ in {sorted(packed ^ (sources | written))}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if missing := ({f"src/{name}" for name in sources} | set(WITHIN)) - inside:
        sys.exit(f"{sdist}: lacks {sorted(missing)}")


def check_alone(wheel: Path, scratch: Path) -> None:
    """Install the wheel in `scratch` and run its commands there."""
    venv.create(scratch / "venv", with_pip=True)
    programs = scratch / "venv" / ("Scripts" if os.name == "nt" else "bin")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: str | Path) -> str:
        shown = subprocess.run(command, cwd=scratch, env=clean, text=True, stdout=subprocess.PIPE)
        if shown.returncode:
            sys.exit(f"{' '.join(map(str, command))}: ended with status {shown.returncode}")
        return shown.stdout

    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    for use in USES:
        run(programs / "clusterucb", *use)
    commit = subprocess.run(
        [sys.executable, "-c", "from clusterucb.version import commit; print(commit())"],
        env={**clean, "PYTHONPATH": str(PACKAGE)},
        text=True,
        stdout=subprocess.PIPE,
    ).stdout.strip()
    told = run(programs / "clusterucb", "--version")
    if (ROOT / ".git").exists() and commit not in told:
        sys.exit(f"the wheel says {told.strip()!r}, but was built from commit {commit}")
    run(programs / "python", "-c", "import clusterucb; [getattr(clusterucb, n) for n in clusterucb.__all__]")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
