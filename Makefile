# `make demo` and `make test` are the two commands of the README; each makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
DEEPSPEED_VENV ?= .venv-deepspeed
BIN = $(VENV)/bin
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-vllm test-deepspeed check bench clean

demo: $(VENV)/.package
	$(BIN)/atlantis quickstart

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -x -n 2 --ignore tests/equivalence
# In fresh processes: these fork, and a fork of a process that has drawn charts hangs.
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -x -n 2 tests/equivalence

test-vllm: $(VLLM_VENV)/.ready
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/pytest -q -W default tests/vllm

# The first run compiles DeepSpeed's CPU optimizer, which takes minutes.
test-deepspeed: $(DEEPSPEED_VENV)/.ready
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$(abspath $(DEEPSPEED_VENV))/extensions \
	PATH=$(abspath $(DEEPSPEED_VENV))/bin:$$PATH pytest -q -W default tests/training -k deepspeed

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.package
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/choices.py
	$(BIN)/python benchmarks/weighing.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/proxy.py

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info

# torch first and alone: a range in another package would otherwise pull the CUDA build and its
# gigabytes onto a machine that has an index with a CPU build.
$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.package
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# vLLM has an environment of its own (constraints-vllm.txt says why).
$(VLLM_VENV)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q -c constraints-vllm.txt torch
	$(VLLM_VENV)/bin/pip install -q --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/pip install -q -c constraints-vllm.txt -e '.[dev]'
	touch $@

# DeepSpeed is built from source, against the torch that is there.
$(DEEPSPEED_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEEPSPEED_VENV)
	$(DEEPSPEED_VENV)/bin/pip install -q -c constraints.txt torch setuptools wheel ninja
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(DEEPSPEED_VENV)/bin/pip install -q -c constraints.txt \
	--no-build-isolation deepspeed
	$(DEEPSPEED_VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
