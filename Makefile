# `make train` and `make test` need Python 3.11–3.13, make and a package index; everything else lands in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOB    ?= deployments/digits.yaml
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install install-gpu train test test-all check format lock board serve bench bench-batches bench-fit bench-results clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP)  ## create .venv and install the lock (done by the others when needed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"refit needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install-gpu: $(STAMP)  ## NVIDIA's libraries besides, for TensorFlow on a GPU (Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-gpu.lock

train: $(STAMP)  ## retrain JOB (deployments/digits.yaml): verdict, model, report, curves
	$(BIN)/refit run $(JOB)

test: $(STAMP)  ## the tests that every change must pass
	$(BIN)/python -m pytest

test-all: $(STAMP)  ## the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=default

check: $(STAMP)  ## ruff, format, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

board: $(STAMP)  ## TensorBoard over all runs
	$(BIN)/refit board

serve: $(STAMP)  ## server, schedule and runs of JOB in one process
	$(BIN)/refit serve $(JOB)

bench: $(STAMP)  ## cold start, step by step
	$(BIN)/python benchmarks/bench_cold_start.py

bench-batches: $(STAMP)  ## rows a second against what people use (peers: pip install 'refit[bench]')
	$(BIN)/python benchmarks/bench_batches.py

bench-fit: $(STAMP)  ## a fit's step, checkpoints and resuming against a bare fit and the usual script (needs pip install 'refit[bench]')
	$(BIN)/python benchmarks/bench_fit.py

bench-results: $(STAMP)  ## test metrics of the shipped jobs against a plain script and scikit-learn (needs REFIT_DATA)
	$(BIN)/python benchmarks/bench_results.py

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --quiet --upgrade -o requirements.lock
	uv pip compile pyproject.toml --extra gpu --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --upgrade -c requirements.lock -o requirements-gpu.lock


clean:  ## remove .venv and caches; artifacts stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
