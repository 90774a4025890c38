# `make demo` and `make test` need Python 3.11 or later and a package registry, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/benchmarks
# One process a core: the models here are too small for two threads.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

# What is imported is compiled once and kept, whatever the environment says: nothing else is compiled beforehand.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all lint bench clean

# torch first and pinned: what comes after finds it there and fetches no other build. Python compiles what is imported;
# compiling all that is installed takes longer than installing it.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
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
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_stream.py --out $(OUT)/bench_stream.jsonl
	$(BIN)/python benchmarks/bench_grad_dots.py --device cpu --out $(OUT)/bench_grad_dots.jsonl
	$(BIN)/python benchmarks/bench_one_step_head.py --device cpu --out $(OUT)/bench_one_step_head.jsonl
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl --parameters lora
	$(BIN)/python benchmarks/bench_scoring.py --device cpu --out $(OUT)/bench_scoring.jsonl --shape digitmath

# On a CUDA machine, with the Python that holds its torch and triton; installs nothing. Every phase runs, whatever became
# of those before it; the exit status tells. Benchmarks first: what they record stands, however soon the machine goes.
GPU_BENCHES := gpu-bench_grad_dots gpu-bench_one_step_head gpu-bench_scoring
GPU_TESTS := gpu-test_bf16 gpu-test_fp16 gpu-test_fp32
AFTER_FAILURES := $(MAKE) --keep-going --jobs=1 --no-print-directory

gpu:
	$(AFTER_FAILURES) gpu-bench gpu-test

gpu-bench:
	$(AFTER_FAILURES) $(GPU_BENCHES)

# At once: nearly all of their time is compiling, one core each.
gpu-test:
	$(MAKE) --keep-going --jobs=3 --no-print-directory $(GPU_TESTS)

$(GPU_TESTS) $(GPU_BENCHES): export PYTHONPATH := .:kernels:selectors$(addprefix :,$(PYTHONPATH))
gpu-test_bf16: CHOSEN := bfloat16
gpu-test_fp16: CHOSEN := not bfloat16 and not float32
gpu-test_fp32: CHOSEN := float32
# Neither the tests' common fixtures nor pytest-timeout: such a machine may lack the packages. Nor are its warnings errors.
$(GPU_TESTS):
	$(PYTHON) -m pytest -m cuda -k "$(CHOSEN)" -W ignore::pytest.PytestConfigWarning -p no:warnings -p no:cacheprovider \
		--confcutdir=tests/kernels tests/kernels

SWEEP ?= --sweep
gpu-bench_grad_dots: OPTIONS := $(SWEEP)
gpu-bench_scoring: OPTIONS := --shape 1b
$(GPU_BENCHES): gpu-%:
	$(PYTHON) benchmarks/$*.py --device cuda --out $(OUT)/$*.jsonl $(OPTIONS)

.PHONY: gpu gpu-test gpu-bench $(GPU_BENCHES) $(GPU_TESTS)

clean:
	rm -rf $(VENV) build dist *.egg-info
