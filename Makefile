# `make demo` and `make test` need Python 3.11+ and make; they make .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# The CPU build where pip finds one; on a GPU machine: make install TORCH=torch
TORCH ?= torch==2.13.0

.PHONY: help docs install demo test test-long test-cluster test-gpu check bench clean demo-curate chaos chaos-rollout bench-serve soak bench-data bench-order bench-train bench-recovery bench-curate bench-selection bench-evaluate bench-gpu

help:  ## Show what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Make .venv and install Warren and its tools into it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps easy-vqa
	touch $@

demo: install  ## The whole way on this machine: raw pairs to REST answer (KEEP=1 leaves the endpoint up)
	$(BIN)/python jobs/demo.py $(if $(KEEP),--keep) $(ARGS)

demo-curate: install  ## Raw pairs to a selected dataset and a report of it, on this machine
	$(BIN)/python jobs/demo_curate.py $(ARGS)

PYTEST := $(BIN)/python -m pytest
test: install  ## The tests of CI: unit tests on two processes, then one Ray cluster (ARGS=tests/unit/data: only those)
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(PYTEST) -n 2 tests/unit tests/architecture tests/gpu
	$(PYTEST) tests/integration
endif

test-long: install  ## The kill and soak tests, and the whole way on the tests' cluster
	$(PYTEST) -m long $(ARGS)

test-cluster: install  ## Train over nodes of this machine's own while nodes and links fail (needs root and kubectl)
	PYTHONPATH=tests $(BIN)/python -m pods $(ARGS)

test-gpu: install  ## The tests on one GPU, beside a CPU's numbers; without a GPU it says so and runs nothing
	$(PYTEST) -m gpu tests/gpu $(ARGS)

chaos: install  ## Train a small recipe in peace and again while its parts are killed: the same weights, bit for bit
	$(BIN)/python jobs/chaos.py $(ARGS)

chaos-rollout: install  ## Good and broken releases roll in under load while parts are killed (ARGS=--quick: a short form)
	$(BIN)/python -m benchmarks.rollout $(ARGS)

# Without a cache: how imports sort depends on which files exist, and a cached result does not see a new file.
check: install  ## Format, lint, types and import rules
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-serve: install  ## The endpoint's speed beside one-at-a-time, static batches and vLLM (VLLM_PYTHON=…); ARGS=--quick
	$(BIN)/python -m benchmarks.serve $(ARGS)

soak: install  ## Good, bad, slow, cancelled and oversized requests for 30 minutes (ARGS="--minutes 5")
	$(BIN)/python -m benchmarks.serve.soak $(ARGS)

bench-order: install  ## Cost of planning up to 10^9 samples, and how well they are mixed
	$(BIN)/python -m benchmarks.order $(ARGS)

bench-train: install  ## Speed and memory of a training step against a plain loop and Hugging Face's trainer
	$(BIN)/python -m benchmarks.train $(ARGS)

bench-recovery: install  ## Kill a training worker, and tell whose code runs until the next step
	$(BIN)/python -m benchmarks.recovery $(ARGS)

bench-curate: install  ## Cost of a coreset of 10^4 to 10^7 embeddings beside plain numpy and faiss (ARGS="--sizes 10000 100000")
	$(BIN)/python -m benchmarks.curate $(ARGS)

bench-selection: install  ## Train on selected against random halves of pairs (ARGS="FOLDER --model MODEL")
	$(BIN)/python -m benchmarks.selection_training $(ARGS)

bench-evaluate: install  ## Speed of asking a benchmark beside one question at a time and lmms-eval (LMMS_EVAL_PYTHON=…); ARGS=--quick
	$(BIN)/python -m benchmarks.evaluate $(ARGS)

bench-gpu: install  ## Training and generation on one GPU: tokens a second, and MFU against its data sheet
	$(BIN)/python -m benchmarks.gpu $(ARGS)

PEERS := .venv-bench-data
bench-data: install  ## Compare the data loader with torch's, webdataset and mosaicml-streaming (installs the latter two)
	$(PYTHON) -m venv --without-pip $(PEERS)
	$(BIN)/python benchmarks/data/link_packages.py $(PEERS)
	$(BIN)/python -m pip --python $(PEERS)/bin/python install --quiet --no-deps --requirement benchmarks/data/peers.txt
	$(BIN)/python benchmarks/data/bench.py --peers $(PEERS)/bin/python $(ARGS)

DOCS := .venv-docs
docs:  ## Build the documentation site into site/; a broken link or anchor is an error
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "mkdocs-material>=9.6,<10"
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

clean:  ## Remove .venv and what the demo wrote
	rm -rf $(VENV) .venv-bench-data .venv-docs site demo-output
