# `make serve` and `make test` do all their own set-up, once, in .venv; see scripts/preflight for what must be there.
#   make serve ARGS="--port 9000"      arguments go to `trivet serve`
#   make test TESTS=tests/engine       one folder; ARGS goes to pytest
#   PYTHON=/path/to/python3.11 CXX=g++-12 make serve

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-all check generate clean

ifeq ($(origin CXX),default)
CXX :=
endif
export PYTHON CXX
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-input
# Folders too, so that a file that comes or goes is noticed.
CORE := CMakeLists.txt pyproject.toml $(shell find native)
TESTS ?= tests
SHARDS ?= 4
SHARD ?= $(shell seq 1 $(SHARDS))

help:
	@echo 'make serve     set up if needed, then serve the bundled model on 127.0.0.1:8000 (ARGS="--port 9000")'
	@echo 'make test      set up if needed, then run the tests (under 15 minutes; TESTS=tests/engine for a part)'
	@echo 'make test-all  the slow tests too, in $(SHARDS) shards of under an hour (SHARD=2: only that one)'
	@echo 'make check     format, lint and types; make generate: write generated files anew; make clean: remove what was built'

setup: $(VENV)/.core

serve: $(VENV)/.core
	@exec $(VENV)/bin/trivet serve $(ARGS)

test: $(VENV)/.core $(VENV)/.tests
	@exec $(PY) -m pytest -m "not slow" $(TESTS) $(ARGS)

test-all: $(VENV)/.core $(VENV)/.tests
	@for shard in $(SHARD); do $(PY) -m pytest --shard $$shard/$(SHARDS) $(TESTS) $(ARGS) || exit 1; done

check: $(VENV)/.core $(VENV)/.tests
	@exec scripts/check

generate: $(VENV)/.core $(VENV)/.tests
	@exec $(PY) scripts/generate.py

clean:
	rm -rf $(VENV) build

$(VENV)/.made: scripts/preflight
	@python=$$(sh scripts/preflight) && echo "set-up: virtual environment in $(VENV), from $$python" >&2 && "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.build-tools: $(VENV)/.made pyproject.toml
	@echo "set-up: build tools" >&2
	@$(PY) scripts/requirements.py build > $(VENV)/build.txt && $(PIP) -r $(VENV)/build.txt
	@touch $@

$(VENV)/.core: $(VENV)/.build-tools $(CORE)
	@echo "set-up: native core and what Trivet needs (the first time takes a minute or two)" >&2
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.made pyproject.toml
	@echo "set-up: what the tests need (PyTorch among it, as the reference)" >&2
	@$(PY) scripts/requirements.py test > $(VENV)/tests.txt && $(PIP) -r $(VENV)/tests.txt
	@! $(PY) -m pip list --disable-pip-version-check 2>/dev/null | grep -q '^nvidia-' || \
	  echo "note: pip chose a PyTorch with CUDA (several GB); the CPU build is enough, if pip is pointed at an index that has it" >&2
	@touch $@
