# Every verb sets up what it needs in .venv: torch 2.13.0 (CPU) where no torch is there, then tilewright itself, built here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: build test demo bench gpu lint format check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q setuptools wheel ninja cmake numpy
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"

$(VENV)/.built: $(BIN)/python $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install -q --no-build-isolation -e ".[test,bench,demo,lint,gpu]"
	touch $@

build: $(VENV)/.built

# One thread for each of the test processes: two spinning thread teams on two cores take ten times as long. Work is stolen,
# because xdist otherwise gives the first eighth of all tests, and with it every long one, to one process.
test: build  ## builds from scratch in a clean checkout and runs every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist worksteal

demo: build  ## trains two real models, native and accelerated side by side
	$(BIN)/python -m tilewright demo

bench: build  ## the benchmark suite against native; make bench ARGS=--quick
	$(BIN)/python -m tilewright bench $(ARGS)

# Uses the Python and the CUDA build of torch that are there: such a machine may have no network to fill .venv from.
gpu:  ## on a machine with an NVIDIA GPU: build, test and measure there; make gpu ARGS="--only layer_norm"
	PYTHONPATH=python:. $(PYTHON) -m benchmarks.gpu $(ARGS)

check: build  ## every op against float64 references, on each ISA of this machine
	$(BIN)/python -m tilewright check

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build $(VENV) python/tilewright/*.so python/tilewright/_build.py
