# `make demo` and `make test` are each enough on a machine with Python 3.11 or newer, pip, make and a C compiler.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.test-tools
DOC_TOOLS := $(VENV)/.doc-tools
# Tests of a file share what takes long to prepare.
QUICK_TESTS := $(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow"

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow coverage soak lint format docs docs-serve clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## create .venv and install rapa into it

demo: $(INSTALLED) ## install, then train, evaluate, vote, attack and reduce on the embedded images
	$(BIN)/rapa demo

test: lint ## install the test tools, then run ruff, mypy and the quick tests
	$(QUICK_TESTS)

test-slow: $(TOOLS) ## run the tests that take longer than ten seconds
	$(BIN)/pytest -m slow

coverage: $(TOOLS) ## run the quick tests, and list the lines that none of them runs
	$(QUICK_TESTS) --cov --cov-report=term-missing

soak: $(TOOLS) ## kill trainings, run for long and damage files, with a report; an hour of one core
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.fuzz

lint: $(TOOLS) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TOOLS) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOC_TOOLS) ## build the pages of docs/ into build/docs
	$(BIN)/mkdocs build --strict --quiet
	@echo "open build/docs/index.html"

docs-serve: $(DOC_TOOLS) ## show the pages of docs/ at http://127.0.0.1:8000, as they are while they are written
	$(BIN)/mkdocs serve

clean: ## remove what the tools leave behind, but neither .venv nor runs
	rm -rf build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rapa_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer" >&2; \
		echo "hint: name one that is, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	touch $@

# pip reads dependency groups since 25.1; the one that a new .venv comes with can be older.
$(TOOLS): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --group test
	touch $@

$(DOC_TOOLS): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --group docs
	touch $@
