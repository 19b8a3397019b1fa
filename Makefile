# make demo: everything from nothing to one prompt shown token by token.   make test: everything that is checked.
# Both only need Python 3.11 or 3.12 and pip; everything is installed into .venv, the model into the user's cache.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES = $(shell find geomcli kernels server_patch -name '*.py') pyproject.toml
PROMPT ?= What is the capital of France?

.PHONY: demo test check unit install model clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,2p' Makefile | sed 's/^# //'

demo: install model
	$(BIN)/geom run --serve --max-tokens 60 "$(PROMPT)"
	@echo
	$(BIN)/geom traces show
	@echo
	@echo "Next:"
	@echo "  $(BIN)/geom serve                                 # keep an engine running"
	@echo "  $(BIN)/geom run 'Why is the sky blue?'            # in another terminal"
	@echo "  $(BIN)/geom traces ls                             # every answer is kept"
	@echo "  $(BIN)/geom traces export last > trace.jsonl      # and can be taken along"

test: check model
	$(BIN)/pytest

# Style, types and the direction of dependencies. Run from outside the tree: its folders are not importable as they lie.
check: install $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p geomcli
	cd $(VENV) && bin/lint-imports --config ../pyproject.toml

install: $(VENV)/installed

model: install
	$(BIN)/geom models pull smollm2

# The CPU engine: pinned SGLang beside a CPU torch. On a machine with a GPU see the README.
$(VENV)/engine: requirements/engine-cpu.txt requirements/engine-cpu-nodeps.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/engine-cpu.txt
	$(PIP) --no-deps -r requirements/engine-cpu-nodeps.txt
	touch $@

$(VENV)/installed: $(VENV)/engine $(SOURCES)
	rm -rf build
	$(PIP) .
	touch $@

$(VENV)/dev: requirements/dev.txt $(VENV)/engine
	$(PIP) -r requirements/dev.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
