import subprocess
import sys
from pathlib import Path

MODULES = sorted(p.stem for p in (Path(__file__).parents[2] / "src/clusterucb/data").glob("[a-z]*.py"))


def test_importing_the_data_modules_costs_no_heavy_import():
    code = (
        "import sys\n"
        + "".join(f"import clusterucb.data.{name}\n" for name in MODULES)
        + "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'jinja2'} & set(sys.modules)))"
    )
    assert MODULES
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
