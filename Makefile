# Each target builds its prerequisites. make PYTHON=/path/to/python3.11 selects the interpreter, make demo ARGS="..."
# passes arguments to the command.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-pure test-steady test-services test-live test-fast test-long mutants check format bench docs lock client client-test test-hosts test-brokers

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Else all tests are compiled again in each process: 10 s of each run.
unexport PYTHONDONTWRITEBYTECODE
PACKAGES := recsys parameter_server experiments training serving replay runtime plugins examples benchmarks

help: ## Lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.stamp-dev ## Creates the virtual environment, with the tools for tests, checks and docs

demo: .venv/.stamp-kuairand ## Runs the whole system with simulated viewers and the feed page
	$(BIN)/recsys demo $(ARGS)

test-fast: .venv/.stamp-dev ## Tests that start no process, in two workers: under two minutes
	$(BIN)/pytest -q $(or $(ARGS),-n 2 --dist worksteal)

test: .venv/.stamp-dev ## All tests, with a Kafka broker, Valkey, Ray and a browser
ifdef ARGS
	$(BIN)/pytest -q -m "" $(ARGS)
else
	@for part in pure steady services live; do $(MAKE) --no-print-directory test-$$part || exit; done
endif

# All tests in four parts, by markers (pyproject.toml). Steady ones only compute. Tests of services that bear each other's
# load run in two processes, the longest (by rank) first; those of live systems follow one at a time.

test-pure: .venv/.stamp-dev
	$(BIN)/pytest -q -m "not services and not steady" -n 2 --dist worksteal

# With a limit that only a hanging test reaches: .ci/run gives them what computing time others leave.
test-steady: .venv/.stamp-dev
	$(BIN)/pytest -q -m "steady" -o timeout=3600 -n 2 --dist worksteal

test-services: .venv/.stamp-dev
	$(BIN)/pytest -q -m "services and pairs and not brokers" -n 2 --dist loadfile --no-loadscope-reorder

test-live: .venv/.stamp-dev
	$(BIN)/pytest -q -m "services and not pairs and not hosts and not brokers"

test-hosts: .venv/.stamp-dev ## Tests on three hosts, which are network namespaces: some minutes, as root
	$(BIN)/pytest -q -m hosts tests/live/test_cluster.py

test-brokers: .venv/.stamp-dev ## Tests on three brokers of Apache Kafka, whose folder libs KAFKA_LIBS names: 12 minutes
	$(BIN)/pytest -q -s -m brokers tests/recsys/log/test_protocol.py tests/live/test_kafka_brokers.py

# Needs node and npm alone.
TYPESCRIPT := clients/typescript
client: $(TYPESCRIPT)/node_modules/.package-lock.json ## Builds the TypeScript client in clients/typescript/dist
	cd $(TYPESCRIPT) && npm run --silent build

client-test: client ## Tests the TypeScript client in node: seconds
	cd $(TYPESCRIPT) && npm test --silent

$(TYPESCRIPT)/node_modules/.package-lock.json: $(TYPESCRIPT)/package-lock.json
	cd $(TYPESCRIPT) && npm ci --no-audit --no-fund
	@touch $@

mutants: .venv/.stamp-dev ## Changes the core line by line; counts the changes that no test notices
	$(BIN)/python -m tests.support.mutation $(ARGS)

test-long: .venv/.stamp-dev ## All seeds and examples of tests that draw some: an hour
	RECSYS_TEST_LONG=1 RECSYS_FUZZ_S=120 $(BIN)/pytest -q -m "not services" -o timeout=3600 -n 2 --dist worksteal $(ARGS)

check: .venv/.stamp-dev ## Checks lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

format: .venv/.stamp-dev ## Formats and fixes with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.stamp ## Runs the benchmarks at small sizes
	$(BIN)/recsys bench $(ARGS)

docs: .venv/.stamp-dev ## Builds the documentation site in build/site; fails on a broken link or notebook
	PYTHONPATH=$(CURDIR) $(BIN)/sphinx-build -q -W -D nb_execution_timeout=600 --keep-going -j auto -b html -c docs/site -d build/site-trees . build/site
	@echo "file://$(CURDIR)/build/site/index.html"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python that fits: python3 is '$$(python3 -V 2>&1)', needed is 3.11, 3.12 or 3.13." \
		"Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) is '$$($(PYTHON) -V 2>&1)', needed is 3.11, 3.12 or 3.13." >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) can't make a virtual environment; on Debian its venv module is a package of its own" >&2; exit 1; }

# The lock files pin every dependency with hashes, so pip resolves nothing. Only torch and pip itself are ranges without
# a hash: torch's build depends on the machine, and an old pip takes half a minute longer. torchrec is installed without
# its dependencies (see pyproject.toml).
INSTALL := $(BIN)/python -m pip install -q --no-compile --no-deps --require-hashes
# On all cores, where pip takes one: else the first processes would each compile what they import. Packages have files
# of other versions of Python, which fail.
PRECOMPILE = @$(BIN)/python -W ignore -m compileall -q -j 0 .venv/lib >/dev/null || true

# pyproject.toml is a prerequisite since it declares the command and packages of the editable install.
.venv/.stamp: requirements/run.lock pyproject.toml | .venv/bin/python
	@$(BIN)/python -m pip install -q "pip>=26" || echo "pip isn't upgraded: the installation takes longer" >&2
	$(INSTALL) -r requirements/run.lock
	$(BIN)/python -m pip install -q --no-compile "torch>=2.13,<2.14"
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	$(PRECOMPILE)
	@touch $@

.venv/.stamp-kuairand: requirements/kuairand.lock .venv/.stamp
	$(INSTALL) -r requirements/kuairand.lock
	@touch $@

.venv/.stamp-dev: requirements/dev.lock .venv/.stamp-kuairand
	$(INSTALL) -r requirements/dev.lock
	$(PRECOMPILE)
	@touch $@

# Resolves pyproject.toml for Python 3.11 to 3.13 on all platforms. Review the diff and run all tests before
# committing it. CUDA packages, which torch requires on Linux, come with torch's own installation.
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
		--extra kafka-broker --extra dev --extra docs | $(WITHOUT_CUDA) > requirements/dev.lock
	rm -rf .venv-lock
