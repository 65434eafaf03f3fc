# Each target makes what it needs. make PYTHON=/path/to/python3.11 chooses the interpreter, make demo ARGS="..." passes on.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check format bench docs lock

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles what is imported; compiling every installed module takes longer and 300 MB more.
export PIP_NO_COMPILE := 1
PACKAGES := recsys parameter_server experiments training serving replay runtime benchmarks

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.stamp-dev ## The virtual environment, with everything that runs, checks and documents

demo: .venv/.stamp-kuairand ## The whole system with simulated viewers and the feed page
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

docs: .venv/.stamp-dev ## The site of the documentation, into build/site; a broken link or a failing notebook ends it
	PYTHONPATH=$(CURDIR) $(BIN)/sphinx-build -q -W --keep-going -j auto -b html -c docs/site -d build/site-trees . build/site
	@echo "file://$(CURDIR)/build/site/index.html"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python that fits: python3 is '$$(python3 -V 2>&1)', needed is 3.11, 3.12 or 3.13." \
		"Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) is '$$($(PYTHON) -V 2>&1)', needed is 3.11, 3.12 or 3.13." >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) can't make a virtual environment; on Debian its venv module is a package of its own" >&2; exit 1; }

# Locks hold every dependency with its hashes, so pip resolves nothing. torch alone is a range without a hash: its
# CPU build depends on the machine. torchrec comes without its dependencies (see pyproject.toml).
INSTALL := $(BIN)/python -m pip install -q --no-deps --require-hashes

# pyproject.toml is a prerequisite too: it names the command and the packages of the editable install.
.venv/.stamp: requirements/run.lock pyproject.toml | .venv/bin/python
	$(INSTALL) -r requirements/run.lock
	$(BIN)/python -m pip install -q "torch>=2.13,<2.14"
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.stamp-kuairand: requirements/kuairand.lock .venv/.stamp
	$(INSTALL) -r requirements/kuairand.lock
	@touch $@

.venv/.stamp-dev: requirements/dev.lock .venv/.stamp-kuairand
	$(INSTALL) -r requirements/dev.lock
	@touch $@

# Resolves pyproject.toml for Python 3.11 to 3.13 on all platforms. Read the difference and run all tests before
# committing it. CUDA packages, which torch names for Linux, are left to torch's own installation.
COMPILE = .venv-lock/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package torch --no-emit-package triton
WITHOUT_CUDA = awk '/^[a-z]/ {cuda = /^(nvidia|cuda)-/} !cuda'
lock: ## Writes requirements/*.lock from pyproject.toml
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q uv
	printf "hatchling\neditables\n" > .venv-lock/build.in
	echo torchrec==1.8.0 | $(COMPILE) --no-deps - > .venv-lock/torchrec.lock
	$(COMPILE) pyproject.toml .venv-lock/build.in | $(WITHOUT_CUDA) | cat - .venv-lock/torchrec.lock > requirements/run.lock
	echo polars | $(COMPILE) -c requirements/run.lock - > requirements/kuairand.lock
	$(COMPILE) pyproject.toml -c requirements/run.lock -c requirements/kuairand.lock --extra kuairand \
		--extra kafka-broker --extra tracing --extra dev --extra docs | $(WITHOUT_CUDA) > requirements/dev.lock
	rm -rf .venv-lock
