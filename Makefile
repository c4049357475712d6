# Set-up, demo and tests, each by one command; needs Python 3.11 to 3.13 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Without compiled files, which uv leaves to the first import, every command would compile 3,000 modules anew: 10 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo lectures test lint types unit
help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import pathlib, tomllib; print(*tomllib.loads(pathlib.Path("pyproject.toml").read_text())["tool"]["trifocal"]["constraints"], sep="\n")' > .venv/constraints.txt
	$(BIN)/python -m pip install -q uv || echo "uv cannot be installed; pip serves"
	if test -x $(BIN)/uv; then $(BIN)/uv pip install -q --python $(BIN)/python -c .venv/constraints.txt -e . ; else $(BIN)/python -m pip install -q -c .venv/constraints.txt -e . ; fi
	touch $@

.venv/ready-dev: .venv/ready
	if test -x $(BIN)/uv; then $(BIN)/uv pip install -q --python $(BIN)/python -c .venv/constraints.txt -e '.[dev]' ; else $(BIN)/python -m pip install -q -c .venv/constraints.txt -e '.[dev]' ; fi
	touch $@

setup: .venv/ready ## create .venv with the pinned packages
demo: .venv/ready ## train, test and picture the three-task network on built-in data
	$(BIN)/lightning demo
lectures: .venv/ready ## train the experiments of docs/lectures.md and write its tables, twenty minutes
	$(BIN)/python benchmarks/lectures.py
lint: .venv/ready-dev ## lint, format and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
types: .venv/ready-dev ## strict typing
	$(BIN)/mypy
unit: .venv/ready-dev ## the tests
	$(BIN)/pytest
test: lint types unit ## everything that must pass
