# Everything happens in an environment of its own, .venv unless VENV names another; `make` alone lists the targets.

PYTHON ?= $(shell for python in python3.12 python3.13 python3.11 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= -n 2 --dist loadfile --max-worker-restart 0 --no-loadscope-reorder
# Files with long tests first: a worker that gets one last would leave the other idle.
TESTS := tests/e2e tests/multidevice tests/laws tests/unit tests/kernels fedjax_sim kernels

.DEFAULT_GOAL := help
.PHONY: help setup run test quick check format build bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.package ## train on the embedded digits; options in ARGS="--rounds 20"
	$(BIN)/fedjax-sim run $(ARGS)

test: $(VENV)/.dev ## the whole test suite; options in ARGS="-k scaffold"
	$(BIN)/python -m pytest $(WORKERS) --doctest-modules $(TESTS) $(ARGS)

quick: $(VENV)/.dev ## the test suite without what is slow
	$(BIN)/python -m pytest $(WORKERS) --doctest-modules -m "not slow" $(TESTS) $(ARGS)

check: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(VENV)/.dev ## the wheel, in dist/
	$(BIN)/python -m build --wheel

bench: $(VENV)/.package ## rounds per second, lanes against one client at a time
	$(BIN)/python benchmarks/rounds.py $(ARGS)

docs: $(VENV)/.docs ## the documentation as a site, in site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo site/index.html

setup: $(VENV)/.dev ## the environment and nothing else

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that somebody made by hand is used as it is: the two stamps say what was installed into it.
$(VENV)/.package: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not a Python >= 3.11: name another, make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing fedjax_sim into $(VENV); the first time this takes a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"  # older ones lack --group
	@$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo "installing the tools for tests and checks into $(VENV)"
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@echo "installing the tools for the documentation into $(VENV)"
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@
