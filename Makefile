# `make demo` and `make test` need Python 3.11 or later and a package registry, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= benchmarks/results
# One process a core: the models here are too small for two threads.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all lint bench gpu clean

# torch first and pinned: what comes after finds it there and fetches no other build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/ostlight benchmark configs/demo.yaml

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not cuda"

test-all: test
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not cuda"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_stream.py --out $(OUT)/bench_stream.jsonl
	$(BIN)/python benchmarks/bench_grad_dots.py --device cpu --out $(OUT)/bench_grad_dots.jsonl
	$(BIN)/python benchmarks/bench_one_step_head.py --device cpu --out $(OUT)/bench_one_step_head.jsonl
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl --scope lora
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl --shape digitmath
	$(BIN)/python benchmarks/bench_deita_filter.py --out $(OUT)/bench_deita_filter.jsonl

# On a CUDA machine, with the Python that holds its torch and triton; installs nothing.
gpu: export PYTHONPATH := .:kernels:selectors
gpu:
	$(PYTHON) -m pytest -m cuda tests/kernels
	$(PYTHON) benchmarks/bench_grad_dots.py --device cuda --out $(OUT)/bench_grad_dots.jsonl
	$(PYTHON) benchmarks/bench_one_step_head.py --device cuda --out $(OUT)/bench_one_step_head.jsonl
	$(PYTHON) benchmarks/bench_scoring.py --device cuda --out $(OUT)/bench_scoring.jsonl --shape 1b

clean:
	rm -rf $(VENV) build dist *.egg-info
