# make demo    see a network train itself sparse (sets everything up first)
# make test    what CI checks: format, lint, types, doctests, tests, coverage
# make install set up the environment, for the commands of experiments/ and benchmarks/
# make docs    build the user guide into docs/_build/html, running its code
# make bench   benchmark tables that need neither data nor a GPU; benchmarks/ has more
# make lock    renew constraints.txt
#
# `make test PYTHON=python3.13` uses another interpreter, in an environment of its own.

PYTHON ?= python3
ifeq ($(origin PYTHON),file)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt
DEMO_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test install check format docs bench lock clean

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "optax_grda needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.experiments: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, some minutes) ..."
	@$(INSTALL) --editable '.[experiments,onnx]'
	@touch $@

$(VENV)/.all: $(VENV)/.experiments
	@echo "installing what tests and benchmarks need into $(VENV) ..."
	@$(INSTALL) --editable '.[experiments,onnx,mnn,datasets,test]'
	@touch $@

demo: $(VENV)/.experiments
	$(BIN)/python -m experiments.compare $(DEMO_OPTIONS)

install: $(VENV)/.all

check: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Modules in order: the longest come first, not last. On two cores, a third worker runs
# while others wait for processes that they started.
test: check
	$(BIN)/python -m pytest --doctest-modules optax_grda models tests \
		-n 3 --dist loadscope --no-loadscope-reorder \
		--cov --cov-report=term --durations=10

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs: $(VENV)/.experiments
	@echo "installing what the user guide needs into $(VENV) ..."
	@$(INSTALL) --editable '.[experiments,docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -q -j 2 docs docs/_build/html
	@echo "the guide is docs/_build/html/index.html"

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.optimizer_step
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.curvature
	$(BIN)/python -m benchmarks.scaling

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras \
		--no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
		--upgrade --output-file constraints.txt

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .coverage dist docs/_build
