# What people do with this checkout. `make run` and `make test` do all their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
ARGS ?=
# Most tests wait for others (servers, time limits), so more of them run at once than there are cores.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup run test faults complaints acceptance test-real lint scan bench bench-attribution plots docs clean

help:  ## show what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# --- set-up ---------------------------------------------------------------------------------------------------------

# Debian 12's pip (23.0) knows no dependency groups, so the environment gets a newer one first.
$(INSTALLED): pyproject.toml scripts/create_venv.sh
	@scripts/create_venv.sh $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group dev --editable .
	@touch $@

setup: $(INSTALLED_DEV)  ## virtual environment in .venv with everything for development

# --- use and check --------------------------------------------------------------------------------------------------

run: $(INSTALLED)  ## the demo: a simulated node of 8 GPUs, the daemon and its page
	@$(BIN)/jouled demo $(ARGS)

test: $(INSTALLED_DEV)  ## all tests but acceptance and real engine
	@scripts/debian_packages.sh
	$(BIN)/python -m pytest -m "not real_engine" --numprocesses $(WORKERS) --dist loadfile $(ARGS)

faults: $(INSTALLED_DEV)  ## the fault suite at length: 200 kills, outages, full disk, power loss
	@scripts/debian_packages.sh
	JOULED_KILLS=200 $(BIN)/python -m pytest tests/faults $(ARGS)

complaints: $(INSTALLED_DEV)  ## takes each guard against a known complaint away and sees its tests fail
	$(BIN)/python -m tests.complaints $(ARGS)

acceptance: $(INSTALLED_DEV)  ## ten minutes of demo held against the truth, then 50 kills
	$(BIN)/python tests/acceptance/run.py $(ARGS)

test-real: $(INSTALLED_DEV)  ## the daemon beside a real vLLM, Dynamo, Triton and LiteLLM on CPU
	scripts/setup_real_engine.sh
	scripts/setup_litellm.sh
	scripts/setup_real_dynamo.sh
	scripts/setup_real_triton.sh
	$(BIN)/python -m pytest -m real_engine tests/real $(ARGS)

lint: $(INSTALLED_DEV)  ## style, types, layers, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@scripts/generate_docs.sh --check

scan: $(INSTALLED_DEV)  ## known vulnerabilities of what is installed (the code itself: make lint, ruff's rules S)
	$(BIN)/python scripts/scan_dependencies.py

bench: $(INSTALLED_DEV)  ## what the daemon costs, as JSON lines
	$(BIN)/python -m bench $(ARGS)

bench-attribution: $(INSTALLED_DEV)  ## how close receipts are to the truth, case by case, as JSON lines
	$(BIN)/python -m bench.attribution $(ARGS)

plots: $(INSTALLED_DEV)  ## draw the figures of docs/attribution.md anew (minutes)
	$(BIN)/python -m bench.plots $(ARGS)

docs: $(INSTALLED)  ## write docs/metrics.md and docs/configuration.md from the code
	@scripts/generate_docs.sh

clean:  ## remove what was built here, virtual environments included
	rm -rf $(VENV) .venv-engine .venv-litellm .venv-dynamo .venv-triton build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
