# `make` lists the targets. The virtual environment lives in .venv and is brought up to date
# only when what it is installed from changed: requirements, or the native kernels.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED_FROM := pyproject.toml constraints.txt setup.py $(wildcard kernels/luma_kernels/cpu/src/*)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-gpu check lint docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=python3.12      the interpreter that makes .venv (now $(PYTHON))"
	@echo "  PYTEST_ARGS='-k lamb'  more arguments for pytest; -n0 for one process"

setup: $(VENV)/.installed-dev ## make .venv with everything a developer needs

demo: $(VENV)/.installed-base ## install luma and its server, and run the demo
	$(BIN)/luma demo

test: $(VENV)/.installed-dev ## run the tests; PYTEST_ARGS adds arguments
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal $(PYTEST_ARGS)

test-gpu: ## run the kernels' tests on this machine's GPU, with PYTHON's own torch and triton
	PYTHONPATH=.:kernels:client:server $(PYTHON) -m pytest tests/kernels/triton tests/core/optim/offload/test_offload_gpu.py tests/core/checkpoint/staging/test_staging.py -m 'gpu or not gpu' $(PYTEST_ARGS)

check: lint test ## what CI runs: lint, then the tests

lint: $(VENV)/.installed-dev ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python tools/structure.py

docs: $(VENV)/.installed-dev ## build the documentation site into build/site; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b dirhtml docs build/site

format: $(VENV)/.installed-dev ## rewrite the code the way lint wants it
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) build dist luma_state.egg-info kernels/luma_kernels/cpu/_native.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear also removes the stamps of an environment whose interpreter is gone.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "LUMA needs Python 3.11 or newer and '$(PYTHON)' is older or missing:" \
	    "run make with PYTHON=/path/to/python3.11." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed-base: $(INSTALLED_FROM) $(BIN)/python
	$(PIP_INSTALL) -e '.[server]'
	@touch $@

$(VENV)/.installed-dev: $(INSTALLED_FROM) $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed-base
