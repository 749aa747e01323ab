# Each command makes or renews .venv/ first, which takes no time when nothing has changed. `make` lists them.
SHELL := /bin/sh
BIN := .venv/bin
# The first Python that is new enough, in the order that a person would try.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench soak docs lock clean

help: ## these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: ## make .venv/ with everything in it
	@command -v $(PYTHON) >/dev/null || { echo "setup: Python 3.11 or newer is needed, and no python3 was found" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

demo: setup ## ask questions over real documents: this project's, or DOCS=folder
	@$(BIN)/python -m xnai.deploy.demo $(if $(DOCS),"$(DOCS)")

test: setup ## run the tests, two at a time; ARGS go to pytest
	@$(BIN)/python -m pytest -q -n 2 $(ARGS)

check: setup ## style, types, and who may import whom
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_structure.py

format: setup ## put the code into its form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## measure against the floor; NAME=start of a name
	@$(BIN)/python -m benchmarks $(NAME)

soak: setup ## ask the shared model for everything at once, for ten minutes or SECONDS, and look for what broke
	@$(BIN)/python -m benchmarks.soak $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

docs: setup ## build site/
	@$(BIN)/mkdocs build --strict

lock: ## pin the newest versions that fit; ARGS=--upgrade moves those that are pinned
	@PYTHON=$(PYTHON) tools/lock.sh $(ARGS)

clean: ## remove what the commands made, the caches of the user aside
	rm -rf .venv .links build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
