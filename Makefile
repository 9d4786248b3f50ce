# Every target makes its own .venv when there is none, and reinstalls when pyproject.toml changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup study test check audit bench faults golden clean
.DEFAULT_GOAL := help

help:  ## lists these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup: $(STAMP)  ## makes .venv and installs hpstudy with what its tests need

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
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

audit: $(STAMP)  ## known vulnerabilities of what is installed, where their data can be had
	@$(BIN)/python .ci/audit.py

bench: $(STAMP)  ## speed on this machine against its limit: make bench ARGS="--peers"
	@$(BIN)/hpstudy bench $(ARGS)

faults: $(STAMP)  ## kills studies at random moments and prints what they lost: make faults ARGS="--long"
	@$(BIN)/python -m tests.faults $(ARGS)

golden: $(STAMP)  ## records the golden loss curves anew; say why in the commit
	@$(BIN)/python -m tests.golden.curves

clean:  ## removes what can be made again; never runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
