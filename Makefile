# Each target makes what it needs. make PYTHON=/path/to/python3.11 chooses the interpreter, make demo ARGS="..." passes on.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check format bench docs lock

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PACKAGES := recsys parameter_server experiments training serving replay runtime benchmarks

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.stamp .venv/.stamp-dev ## The virtual environment, with all that runs and all that checks

demo: .venv/.stamp ## The whole system with simulated viewers and the feed page
	$(BIN)/recsys demo $(ARGS)

test-fast: .venv/.stamp-dev ## The pure tests: about a minute, no process started
	$(BIN)/pytest -q $(ARGS)

# Two processes share what stands for itself; live systems come after it, one at a time, for they want the machine.
test: .venv/.stamp-dev ## All tests, with a real broker, Valkey, Ray and a browser
ifdef ARGS
	$(BIN)/pytest -q -m "" $(ARGS)
else
	$(BIN)/pytest -q -m "not services" -n 2
	$(BIN)/pytest -q -m services
endif

check: .venv/.stamp-dev ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

format: .venv/.stamp-dev ## Formats and mends what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.stamp ## The benchmarks, small
	$(BIN)/recsys bench $(ARGS)

docs: .venv/.stamp-docs ## The site of the documentation, into build/site; a broken link or a failing notebook ends it
	PYTHONPATH=$(CURDIR) $(BIN)/sphinx-build -q -W --keep-going -j auto -b html -c docs/site -d build/site-trees . build/site
	@echo "file://$(CURDIR)/build/site/index.html"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python that fits: python3 is '$$(python3 -V 2>&1)', needed is 3.11, 3.12 or 3.13." \
		"Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) is '$$($(PYTHON) -V 2>&1)', needed is 3.11, 3.12 or 3.13." >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) can't make a virtual environment; on Debian its venv module is a package of its own" >&2; exit 1; }

# pyproject.toml counts too: it names the command and the packages of the editable install.
.venv/.stamp: requirements.lock requirements-nodeps.lock pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.stamp-dev: requirements-dev.lock .venv/.stamp
	$(BIN)/python -m pip install -q -r requirements-dev.lock
	@touch $@

.venv/.stamp-docs: requirements-docs.lock .venv/.stamp
	$(BIN)/python -m pip install -q -r requirements-docs.lock
	@touch $@

# Resolves pyproject.toml anew, without the locks: look at the difference, then run everything before committing it.
FREEZE = .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude recsys-swipe \
	| grep -vE '^(nvidia-|cuda-|triton=)' | sed -E 's/^torch==.*/torch>=2.13,<2.14/'
lock: ## Writes requirements.lock, requirements-dev.lock and requirements-docs.lock from pyproject.toml
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q hatchling editables
	.venv-lock/bin/python -m pip install -q --no-build-isolation -e .
	{ sed -n '/^#/p' requirements.lock; $(FREEZE); } > .venv-lock/requirements.lock
	.venv-lock/bin/python -m pip install -q --no-build-isolation -e '.[dev]'
	{ sed -n '/^[#-]/p' requirements-dev.lock; $(FREEZE) | grep -vxFf .venv-lock/requirements.lock; } \
		> .venv-lock/requirements-dev.lock
	.venv-lock/bin/python -m pip install -q --no-build-isolation -e '.[docs]'
	{ sed -n '/^[#-]/p' requirements-docs.lock; \
		$(FREEZE) | grep -vxFf .venv-lock/requirements.lock | grep -vxFf .venv-lock/requirements-dev.lock; } \
		> .venv-lock/requirements-docs.lock
	mv .venv-lock/requirements*.lock . && rm -rf .venv-lock
