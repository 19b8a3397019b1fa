# make demo: everything from nothing to one prompt shown token by token.   make test: everything that is checked.
# Both only need Python 3.11 or 3.12 and pip; everything is installed into .venv, the model into the user's cache.

PYTHON ?= python3
VENV ?= .venv
# The SGLang release of the CPU engine: 0.5.20 or 0.5.23.
SGLANG ?= 0.5.20
ENGINE = $(VENV)/engine-$(SGLANG)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
SOURCES = $(shell find geomcli eviction kernels server_patch sidecar tui -name '*.py' -o -name '*.tcss' -o -name '*.jsonl') pyproject.toml
PROMPT ?= Why is the sky blue? Answer in two sentences.

.PHONY: demo demo-recording snapshots keys-page test test-kernels check compatibility install model kernel-report gpu-payload clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,2p' Makefile | sed 's/^# //'

demo: install model
	$(BIN)/geom run --serve --max-tokens 60 "$(PROMPT)" < /dev/null
	@echo
	$(BIN)/geom traces show
	@echo
	@echo "Next:"
	@echo "  $(BIN)/geom serve                                 # keep an engine running"
	@echo "  $(BIN)/geom run 'Why is the sky blue?'            # in another terminal"
	@echo "  $(BIN)/geom traces ls                             # every answer is kept"
	@echo "  $(BIN)/geom traces export last > trace.jsonl      # and can be taken along"

# The engine's tests mostly wait for engines to start; the others run beside them, those of the kernels first, in Triton's
# interpreter, which has to be chosen before Triton is imported, and some of the engine's last, so that both take as long.
# LIMIT: a command before each pytest, such as timeout.
LIMIT ?=
LAST = tests/engine/families tests/engine/test_triton.py tests/engine/test_radix_policy.py
test: check model
	@{ TRITON_INTERPRET=1 $(LIMIT) $(BIN)/pytest tests/kernels; kernels=$$?; \
	   $(LIMIT) $(BIN)/pytest tests/library tests/discovery tests/evaluation tests/sidecar tests/cli tests/tui tests/canary $(LAST) && exit $$kernels; } > $(VENV)/others.log 2>&1 & others=$$!; \
	$(LIMIT) $(BIN)/pytest tests/engine $(LAST:%=--ignore %); status=$$?; \
	wait $$others || status=1; cat $(VENV)/others.log; exit $$status

test-kernels: install $(VENV)/dev
	TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels

# Style, types and the direction of dependencies. Run from outside the tree: its folders are not importable as they lie.
check: install $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p geomcli
	cd $(VENV) && bin/lint-imports --config ../pyproject.toml

# Runs every family on the engine and writes what was compared into docs/compatibility.md.
compatibility: install model $(VENV)/dev
	GEOM_WRITE_TABLE=1 $(BIN)/pytest tests/engine/families

install: $(VENV)/installed

model: install
	$(BIN)/geom models pull smollm2

# The CPU engine: SGLang beside a CPU torch, without what its metadata asks of a CUDA machine. On a GPU: see the README.
# One stamp at a time: another SGLANG is another engine in the same environment.
$(ENGINE): requirements/engine-cpu-common.txt requirements/engine-cpu-$(SGLANG).txt
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null || \
	{ echo "geom: $$python is not Python 3.11 or 3.12. Try: make demo PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/engine $(VENV)/engine-*
	$(PIP) -r requirements/engine-cpu-$(SGLANG).txt
	$(PIP) --no-deps sglang==$(SGLANG) torchvision==0.28.0 compressed-tensors==0.18.0
	touch $@

$(VENV)/installed: $(ENGINE) $(SOURCES)
	rm -rf build
	$(PIP) '.[discover]'
	touch $@

$(VENV)/dev: requirements/dev.txt $(ENGINE)
	$(PIP) -r requirements/dev.txt
	touch $@

# Registers, spills and shared memory for sm_90 with the Triton of torch 2.11, 2.13 and 2.14; no GPU needed.
kernel-report: install
	$(BIN)/python benchmarks/kernel_resources.py --triton 3.6.0 3.7.1 3.8.0

# For a GPU machine without a network: packs SGLang by a recipe (build_site.sh, pack.sh) with this plugin laid over it.
# FA3=1 adds the library of the fa3 attention backend, cut down to what a 16-bit model needs.
GPU_RECIPE ?=
FA3 ?=
gpu-payload: install
	@test -x "$(GPU_RECIPE)/pack.sh" || { echo "make gpu-payload GPU_RECIPE=DIR: the folder with build_site.sh and pack.sh"; exit 2; }
	rm -rf .gpu/plugin
	$(PIP) --no-deps --target .gpu/plugin .
	test -f .gpu/build/site.tar.xz || $(GPU_RECIPE)/build_site.sh .gpu/build
	mkdir -p .git/info
	PLUGIN=.gpu/plugin $(GPU_RECIPE)/pack.sh . .gpu/build
	test -z "$(FA3)" || $(BIN)/python benchmarks/fa3_library.py .gpu/build/whl/sglang_kernel-*.whl .sgl/fa3.tar.xz

# What `geom tui --demo` plays, recorded anew with the default model.
demo-recording: install model
	$(BIN)/python -P benchmarks/record_demo.py

# Pictures of the explorer for its tests and for the README, written anew: look at what changed before it is committed.
snapshots: install $(VENV)/dev
	GEOM_WRITE_SNAPSHOTS=1 $(BIN)/pytest tests/tui/test_snapshots.py

# The table of keys in docs/explorer.md.
keys-page: install $(VENV)/dev
	GEOM_WRITE_TABLE=1 $(BIN)/pytest tests/tui/test_keys_page.py

clean:
	rm -rf $(VENV) build .gpu .sgl .sgl2 *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
