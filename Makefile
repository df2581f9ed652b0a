# Needs Python 3.11 and a C++20 compiler; everything else comes from the package index into .venv.
# pip's own settings apply, so an index with CPU-only builds of torch is chosen with pip's environment variables.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
SANITIZE ?= address,undefined
TEST_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
BENCH ?= peak space_nb201 train_nb201 mixed_op finetune_nb201
export OMP_NUM_THREADS

BIN := .venv/bin
# Every version is pinned, so that two machines run the same code.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c .ci/constraints.txt
SOURCES := $(shell find csrc -type f)
CPP_SOURCES := $(shell find bench csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
EXTRAS := import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: .venv/.installed ## make .venv and build nasfast into it (does nothing when nothing changed)

.PHONY: rank
rank: .venv/.installed ## train a supernet on handwritten digits, then score all 15,625 architectures of NAS-Bench-201
	$(BIN)/nasfast train configs/nb201_digits.toml
	$(BIN)/nasfast rank runs/nb201_digits

# One OpenMP thread: two that spin on a busy two-core machine make a test fifty times slower. A process for each core.
.PHONY: test
test: .venv/.installed-dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist worksteal

.PHONY: test-cpp
test-cpp: ## run the C++ tests (needs cmake); SANITIZE=address,undefined or thread
	cmake -S . -B build/cpp-$(SANITIZE) -DNASFAST_SANITIZE=$(SANITIZE)
	cmake --build build/cpp-$(SANITIZE) --parallel 2
	ctest --test-dir build/cpp-$(SANITIZE) --parallel 2 --output-on-failure --no-tests=error

.PHONY: lint
lint: .venv/.installed-dev ## check style, types and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/typos
	! git grep -nIE '[[:space:]]+$$'

.PHONY: format
format: .venv/.installed-dev ## format the Python and C++ sources
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_SOURCES)

.PHONY: bench
bench: .venv/.installed-dev ## measure into bench/results; BENCH="peak ..." names the scripts, BENCH_FLAGS=--quick
	for name in $(BENCH); do $(BIN)/python bench/$$name.py $(BENCH_FLAGS) --json bench/results/$$name.json || exit 1; done

.PHONY: clean
clean: ## remove what was built (.venv too, runs not)
	rm -rf .venv build *.egg-info nasfast/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench nasfast tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv

# torch comes first: nasfast is compiled against it. Installed editable, so `git pull && make` needs no more than a build.
.venv/.installed: .venv/bin/python pyproject.toml setup.py .ci/constraints.txt $(SOURCES)
	@echo "installing torch and the other packages pinned in .ci/constraints.txt, then building nasfast"
	$(PIP_INSTALL) setuptools wheel pybind11 ninja numpy torch
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $@

# The extras alone: `--editable .[test,dev]` would compile once more.
.venv/.installed-dev: .venv/.installed
	$(PIP_INSTALL) $$($(BIN)/python -c '$(EXTRAS); print(*extras["test"], *extras["dev"])')
	$(PIP_INSTALL) --no-deps xautodl # the peer that tests compare with; its own pins are from 2021
	touch $@
