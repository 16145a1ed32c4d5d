# `make demo` and `make test` work from a bare clone: they need Python 3.11 or newer and make, nothing else.
# TORCH chooses the build of PyTorch, e.g. make test TORCH="torch==2.13.0 --index-url <your CUDA or CPU index>"

PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST ?= transformers==5.16.1
BIN := .venv/bin

.PHONY: demo test quick lint oldest clean

demo: .venv/installed
	$(BIN)/dynts demo

test: .venv/installed
	$(BIN)/python -m pytest

quick: .venv/installed
	$(BIN)/python -m pytest -m quick

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the quick subset on the oldest supported transformers, in an environment of its own
oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -m quick

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet $(TORCH)
	.venv-oldest/bin/pip install --quiet --editable ".[dev]" $(OLDEST)
	touch $@

clean:
	rm -rf .venv .venv-oldest
