# `make run` and `make test` do all their own set-up; `make` alone explains itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run test check bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## train the demo: fourteen runs in about two minutes, then the paper's tables
	@$(BIN)/python -m orchestrator run experiments.yaml --profile demo

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(READY) ## format, lint, types, tests with coverage: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90

bench: $(READY) ## measure the engine against a plain port, in about ten minutes
	@$(BIN)/python -m benchmarks.cpu --keep latest

lock: | $(VENV)/uv ## write requirements.lock anew from pyproject.toml
	$(VENV)/uv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" --extra dev pyproject.toml -o requirements.lock

clean: ## remove the environment, not the results
	rm -rf $(VENV)

# uv in a small environment of its own, so that nothing outside the project is touched
$(VENV)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: install Python 3.11 or later, or make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) -V) is too old: make PYTHON=python3.11 or later" >&2; exit 2; }
	@mkdir -p $(VENV)
	@$(PYTHON) -m venv $@.part && $@.part/bin/python -m pip install --quiet --disable-pip-version-check uv
	@mv $@.part $@

# made again when the lock or the project's metadata changes
$(READY): requirements.lock pyproject.toml | $(VENV)/uv
	@echo "Making the environment in $(VENV) (about 6 GB with torch for CUDA; once) ..."
	@$(VENV)/uv/bin/python -m uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(VENV)/uv/bin/python -m uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(VENV)/uv/bin/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
