# Everything runs in .venv, made here where it is missing; nothing needs a GPU, nor, once installed, a network.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/installed  ## train both denoisers on digits, compare them, write pictures to demo/
	$(BIN)/dyndiff demo --out demo

test: lint  ## all tests, the notebooks in smoke mode, the book
	$(BIN)/python -m pytest
	DYNDIFF_MODE=smoke $(BIN)/python -m pytest --nbval-lax --nbval-current-env $(NOTEBOOKS)
	$(MAKE) html

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: .venv/installed  ## run every notebook on this machine, then build the book
	$(BIN)/python -m dyndiff.experiments.budget $(NOTEBOOKS)
	$(MAKE) html

# --all: a page built before a reference or a chapter was added would keep its old numbers and links.
html: .venv/installed  ## build the book from the outputs that the notebooks hold
	$(BIN)/jupyter-book build . --config _config.yml --toc book/_toc.yml -W -n --keep-going --all
	@echo "The book: _build/html/index.html"

install: .venv/installed  ## make .venv and install everything into it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[book,data,dev]"
	touch $@

clean:  ## remove what was built, .venv aside
	rm -rf _build demo .pytest_cache .ruff_cache .mypy_cache

.PHONY: help demo test lint book html install clean
