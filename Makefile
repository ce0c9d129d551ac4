# Two commands need only Python 3.11 or newer and pip: `make demo` and `make test`.
# Each makes the environments that it needs, and makes them again when pyproject.toml or the pins have changed.

PYTHON ?= python3
VENV   := .venv
VENV36 := .venv-triton36

# One process per core. tests/conftest.py gives each one thread, and Triton's interpreter unless TRITON_INTERPRET=0.
PYTEST := -m pytest -q -rs -n auto --maxprocesses 8 --dist worksteal

# The environment variables of the caller do not change the tests.
unexport TRITON_INTERPRET SPARSEVOX_BACKEND

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench gpu clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-8s %s\n", $$1, $$2 }'

DEMO ?=
demo: $(VENV)/demo.stamp ## Generate sixteen shapes with the weights in the package, in demo/ (DEMO="--train": train from scratch, 15 minutes)
	$(VENV)/bin/xcube demo $(DEMO)

# Triton's interpreter and its compiler exclude each other in one process: hence several runs.
# Under 3.6 every kernel is compiled, too, because GPU machines have that version. XCube needs packages that are missing there.
test: $(VENV)/dev.stamp $(VENV36)/test.stamp lint ## Lint, types and all tests, under Triton 3.9 and 3.6
	@echo "== Triton 3.6: kernels in the interpreter"
	$(VENV36)/bin/python $(PYTEST) -m "triton36 and not aot" --ignore tests/xcube
	@echo "== Triton 3.6: kernels compiled ahead of time"
	TRITON_INTERPRET=0 $(VENV36)/bin/python $(PYTEST) -m aot --ignore tests/xcube
	@echo "== Triton 3.9: kernels compiled ahead of time"
	TRITON_INTERPRET=0 $(VENV)/bin/python $(PYTEST) -m aot
	@echo "== Triton 3.9: everything else, kernels in the interpreter"
	$(VENV)/bin/python $(PYTEST) -m "not aot"

lint: $(VENV)/dev.stamp ## ruff (lint and format) and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/dev.stamp ## Format the code and sort the imports
	$(VENV)/bin/ruff check --select I --fix
	$(VENV)/bin/ruff format

NAMES ?=
bench: $(VENV)/bench.stamp ## Measure on the CPU (NAMES="bricks topology", all by default; OUT=folder)
	$(VENV)/bin/python -m bench $(NAMES) --out $${OUT:-bench/results}

# For machines on which nothing may be installed: uses the installed Python and Triton. Benchmarks run even after failed
# tests, and the exit status then reports the failure.
PY ?= python3
gpu: export PYTHONPATH := .:models$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu: ## GPU tests and benchmarks with the installed Python (PY=python3, OUT=folder)
	$(PY) -m pytest -q -m gpu --ignore tests/xcube; tests=$$?; \
	$(PY) -m bench --device cuda $(NAMES) --out $${OUT:-bench/results} && exit $$tests

clean: ## Remove the environments, the caches and the demos
	rm -rf $(VENV) $(VENV36) demo demo-trained .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find bench examples models sparsevox tests -name __pycache__ -prune -exec rm -rf {} +

# $(call environment,FOLDER,EXTRAS,PINS). Triton is pinned in a step of its own (below), because every CUDA build of
# torch asks for one exact version of it, which need not be ours.
define environment
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	grep -v '^triton==' $(3) > $(1)/pins.txt
	$(1)/bin/python -m pip install -q --disable-pip-version-check -e '.[$(2)]' -c $(1)/pins.txt
endef
# $(call triton,FOLDER,PINS)
triton = $(1)/bin/python -m pip install -q --disable-pip-version-check --no-deps "$$(grep '^triton==' $(2))"
comma := ,

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(call environment,$(VENV),xcube,constraints.txt)
	$(call triton,$(VENV),constraints.txt)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(call environment,$(VENV),dev,constraints.txt)
	$(call triton,$(VENV),constraints.txt)
	@touch $@

# spconv too, where there is a wheel of it; nothing in it replaces what is there.
$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(call environment,$(VENV),dev$(comma)bench,constraints.txt)
	$(call triton,$(VENV),constraints.txt)
	@touch $@

$(VENV36)/test.stamp: pyproject.toml constraints-triton36.txt
	$(call environment,$(VENV36),test,constraints-triton36.txt)
	$(call triton,$(VENV36),constraints-triton36.txt)
	@touch $@
