# One command a chore. Each makes .venv when it is missing, and costs nothing when nothing changed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
export ONCE

.PHONY: help install demo test serve lint bench

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED) ## make .venv with the pinned versions

# memfit is installed in place: a change of the code needs no new installation, but for what is built of C.
$(INSTALLED): pyproject.toml constraints.txt $(wildcard memfit/*.c memfit/*.h)
	@test -x $(PYTHON) || { echo "Making .venv …"; python3 -m venv .venv; }
	@echo "Installing the pinned versions (once; torch is large) …"
	@$(PYTHON) -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e '.[service,demo,test]' \
	  | { grep --line-buffered -E '^ *(Downloading|Building|Installing|Successfully)' || true; } | cut -c 1-140
	@touch $@

demo: $(INSTALLED) ## train, plan, fine-tune, compare; ONCE=1 ends after the table
	@$(PYTHON) -m demo

# Threads that spin while they wait take the cores from the other processes of the tests. A test that waits for a service leaves its
# core to another: so one more at a time than there are cores.
test: $(INSTALLED) ## all tests; PYTEST='-k spectra' passes arguments on
	@OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 --dist worksteal $(PYTEST)

serve: $(INSTALLED) ## the service on port 8000
	@.venv/bin/memfit serve

lint: $(INSTALLED) ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

bench: $(INSTALLED) ## plan and measure every model at every budget; writes docs/results.md
	@$(PYTHON) -m bench.cells
