# Every target makes .venv if there is none, and reinstalls after a change of pyproject.toml or the constraints.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup study test check audit bench faults golden reference dist clean
.DEFAULT_GOAL := help

help:  ## lists these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup: $(STAMP)  ## makes .venv and installs hpstudy with what its tests need

$(STAMP): pyproject.toml .ci/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

study: $(STAMP)  ## runs or resumes a study: make study NAME=quickstart ARGS="--wandb offline"
ifdef NAME
	@$(BIN)/hpstudy run $(NAME) $(ARGS)
else
	@echo "which one? make study NAME=..."
	@$(BIN)/hpstudy status
endif

test: $(STAMP)  ## runs the tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(STAMP)  ## ruff, mypy and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(STAMP)  ## known vulnerabilities of what is installed, if their data can be fetched
	@$(BIN)/python .ci/audit.py

bench: $(STAMP)  ## races against other trainers: make bench ARGS="--peers" or ARGS="--study"
	@$(BIN)/python -m tests.bench $(ARGS)

faults: $(STAMP)  ## kills studies at random moments and prints what they lost: make faults ARGS="--long"
	@$(BIN)/python -m tests.bench.faults $(ARGS)

golden: $(STAMP)  ## records the golden loss curves again; say why in the commit
	@$(BIN)/python -m tests.golden.curves

reference: $(STAMP)  ## writes studies/README.md from the schema
	@$(BIN)/hpstudy reference > studies/README.md

dist: $(STAMP)  ## builds the wheel and the sdist
	@rm -rf dist && $(BIN)/python -m build --quiet --outdir dist .

clean:  ## removes what can be made again, but never runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
