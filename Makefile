# Everything that is done here by hand or by CI. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What is installed is known by the content of the locks: a second run has nothing to do.
id = $(shell cat $(1) pyproject.toml | sha256sum | cut -c1-16)
RUNTIME := .venv/runtime-$(call id,requirements.lock)
DEV := .venv/dev-$(call id,requirements-dev.lock)
# The lock names every package, so pip need not look for more; `pip check` confirms that below.
# (pip 23.2 refuses an extra of a hashed requirement otherwise.)
INSTALL := $(PIP) install --no-deps --require-hashes
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header

# Three on two cores, since many wait for a process that starts.
AT_ONCE := -n 3 --dist worksteal
FUZZ := tests/api/test_fuzz.py tests/api/test_raw_fuzz.py tests/api/test_findings.py \
	tests/api/test_codecs.py tests/warehouse/test_codecs.py tests/pipelines/test_codecs.py \
	tests/pipelines/test_rule_properties.py
# The longest first, so that no worker is left alone with one in the end.
TORTURE ?= tests/test_kill_demo.py tests/test_kill_run.py tests/test_kill.py tests/faults $(FUZZ)

.PHONY: help demo test torture fuzz bench soak audit lock format clean

help: ## List what can be done
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(RUNTIME) ## Run the whole service with a simulated subnet (ONCE=1: end after the weights; CHAIN=double: with a simulated node)
	@exec $(BIN)/leoma demo $(if $(ONCE),--once) $(if $(CHAIN),--chain $(CHAIN)) $(DEMO_FLAGS)

test: $(DEV) ## Run everything that CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && cp pipelines/dagster.yaml "$$home" && \
		DAGSTER_HOME=$$home LEOMA_HOME=$$home $(BIN)/dagster definitions validate -w workspace.yaml
	$(BIN)/pytest $(AT_ONCE) $(PYTEST_FLAGS)

torture: $(DEV) ## Run every long form: faults, power cuts, kills, fuzz (hours; TORTURE=paths for a part)
	LEOMA_TORTURE=1 $(BIN)/pytest $(AT_ONCE) $(TORTURE) $(PYTEST_FLAGS)

fuzz: ## Run the long form of the fuzzing alone: requests nobody should send, every codec and rule
	$(MAKE) torture TORTURE="$(FUZZ)"

bench: $(DEV) ## Measure against the targets, on 1,000,000 samples (SAMPLES=n, COMPARE=results.json)
	@exec $(BIN)/python -m tests.bench $(if $(SAMPLES),--samples $(SAMPLES)) \
		$(if $(COMPARE),--compare $(COMPARE)) $(BENCH_FLAGS)

soak: $(DEV) ## Load the whole service for half an hour: nothing may grow, fail or be lost (SOAK_FLAGS)
	@exec $(BIN)/python -m tests.bench.soak --picture docs/soak.svg $(SOAK_FLAGS)

audit: | $(BIN)/uv ## Ask for known weaknesses of what the locks name (needs the network)
	@# What cannot be looked up is a failure, not a clean bill.
	$(BIN)/uv tool run --from 'pip-audit>=2.10,<3' pip-audit --strict --disable-pip --require-hashes \
		--progress-spinner off -r requirements.lock -r requirements-dev.lock

lock: | $(BIN)/uv ## Renew the lock files from pyproject.toml
	$(LOCK) --extra build --extra validator -o requirements.lock pyproject.toml
	$(LOCK) --extra build --extra validator --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

format: $(DEV) ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and what tools left behind, not the data
	rm -rf .venv build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
		.ruff_cache .schemathesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) lacks venv: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv

# Not by way of $(DEV): that wants the locks to fit pyproject.toml already.
$(BIN)/uv: | $(BIN)/python
	@$(INSTALL) -r requirements-dev.lock

$(RUNTIME): | $(BIN)/python
	@echo "Installing what requirements.lock names ..."
	@$(INSTALL) -r requirements.lock
	@$(MAKE) --no-print-directory .venv/self
	@rm -f .venv/runtime-* && touch $@

$(DEV): | $(BIN)/python
	@echo "Installing what requirements-dev.lock names ..."
	@$(INSTALL) -r requirements-dev.lock
	@$(MAKE) --no-print-directory .venv/self
	@rm -f .venv/runtime-* .venv/dev-* && touch $@ $(RUNTIME)

# The project itself, from this tree, with the setuptools of the lock and nothing fetched.
.PHONY: .venv/self
.venv/self:
	@$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@$(BIN)/python -m pip --disable-pip-version-check check
