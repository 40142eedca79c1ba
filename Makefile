# `make run` and `make test` do all their own set-up; `make` alone explains itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
# an installed uv, or one in a small environment of its own: nothing outside is touched
UV := $(or $(shell command -v uv 2>/dev/null),$(VENV)/uv/bin/uv)

# a module's tests stay together, for its fixtures; long ones go first: see tests/conftest.py
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# where it is set, every process compiles torch, Ray and MLflow anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run laptop test test-slow test-all test-lowest check docs bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## train the demo: fourteen runs in about two minutes, then the paper's tables
	@$(BIN)/python -m orchestrator run experiments.yaml --profile demo

laptop: $(READY) ## train on real images with three seeds, in about three hours; continues
	@test ! -f results/laptop/bundle.zip || $(BIN)/python -m orchestrator merge results/laptop/bundle.zip
	@$(BIN)/python -m orchestrator run experiments.yaml --profile laptop --seeds 0-2

test: $(READY) ## run the tests, in about five minutes on two cores
	@$(BIN)/python -m pytest -q $(PARALLEL)

test-slow: $(READY) ## run the tests that `make test` leaves out: they take minutes each
	@$(BIN)/python -m pytest -q $(PARALLEL) -m slow

test-all: test test-slow ## run all tests, also the slow ones

test-lowest: | python $(UV) ## run the tests with the lowest versions that pyproject.toml allows
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	@$(UV) pip compile --quiet --resolution lowest-direct --python $(LOWEST)/bin/python \
		--extra dev pyproject.toml -o $(LOWEST)/requirements.txt
	@$(UV) pip sync --quiet --compile-bytecode --python $(LOWEST)/bin/python $(LOWEST)/requirements.txt
	@$(UV) pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	@$(LOWEST)/bin/python -m pytest -q $(PARALLEL) -W ignore::DeprecationWarning -W ignore::FutureWarning

check: $(READY) ## format, lint, types, tests with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL) --cov --cov-report=term --cov-fail-under=90

docs: run ## make the demo's report anew: tables, figures, page
	@$(BIN)/python -m orchestrator report experiments.yaml --profile demo --format html

bench: $(READY) ## measure the engine against a plain port, in about ten minutes
	@$(BIN)/python -m benchmarks.cpu --keep latest

lock: | $(UV) ## write requirements.lock anew from pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" --extra dev pyproject.toml -o requirements.lock

clean: ## remove the environments, not the results
	rm -rf $(VENV) $(LOWEST)

.PHONY: python
python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: install Python 3.11 or later, or make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) -V) is too old: make PYTHON=python3.11 or later" >&2; exit 2; }

$(VENV)/uv/bin/uv: | python
	@mkdir -p $(VENV)
	@rm -rf $(VENV)/uv $(VENV)/uv.part
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV)/uv.part && $(VENV)/uv.part/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(VENV)/uv.part uv; \
	else \
		echo "make: $(PYTHON) has neither venv nor pip: install python3-venv or uv" >&2; exit 2; \
	fi
	@mv $(VENV)/uv.part $(VENV)/uv

# made again when the lock or the project's metadata changes
$(READY): requirements.lock pyproject.toml | python $(UV)
	@echo "Making the environment in $(VENV) (about 6 GB with torch for CUDA; once) ..."
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
