# Batchsight: everything a person runs. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
# The torch release, and where its build comes from: another index or build for a GPU machine, for example
#   make demo TORCH_INDEX=https://your.index/cu130
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# The kernel tests run Triton under its interpreter; a CUDA build of torch brings its own.
TRITON ?= triton==3.9.0
# pytest's own arguments, for example: make test TESTS=tests/unit ARGS='-k tiles'
TESTS ?= tests
ARGS ?=
WORKERS ?= 2
# The proof under fire wants the whole machine, so it runs after the others, and alone: `make suite TESTS=tests/chaos` for
# that phase alone, `make chaos` for the long run.
MARKS ?= not chaos
FOLDER ?= .batchsight

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo up down test lint types imports suite fmt bench chaos openapi lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

venv: $(STAMP) ## the environment: packages at their pinned versions

$(STAMP): pyproject.toml deploy/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Batchsight needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r deploy/requirements.lock
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TRITON)' \
		|| echo "no Triton for this platform: the tests of its kernel are skipped"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## start everything, run a mixed load, print the results, leave nothing running
	@$(BIN)/python -m deploy.local demo

up: $(STAMP) ## keep the stack up; prints its addresses and a first API key
	@$(BIN)/python -m deploy.local up --folder $(FOLDER)

down: $(STAMP) ## stop what `make up` started
	@$(BIN)/python -m deploy.local down --folder $(FOLDER)

test: lint types imports suite ## everything CI checks

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy .

imports: $(STAMP) ## which room may import which
	$(BIN)/lint-imports

suite: $(STAMP) ## the test suite, against real servers
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile -m '$(MARKS)' $(ARGS)
	$(if $(filter tests tests/chaos,$(TESTS)),$(BIN)/python -m pytest tests/chaos -n 0 -m chaos $(ARGS) || [ $$? -eq 5 ]) # 5: ARGS leave none of them

fmt: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure: tables here, JSON below bench-results/
	@mkdir -p bench-results
	@for bench in $$(grep -l '^if __name__ ==' tests/bench/*.py); do \
		name=$$(basename $$bench .py); \
		echo; echo "== $$name"; \
		$(BIN)/python -m tests.bench.$$name --json bench-results/$$name.json || exit 1; \
	done

chaos: $(STAMP) ## the long proof: 40,000 items, every fault, 50 kills (an hour); ARGS='--items 4000 --seed 1'
	$(BIN)/python -m tests.chaos $(ARGS)

openapi: $(STAMP) ## write the OpenAPI snapshot again
	$(BIN)/python -m tests.api.test_openapi

lock: ## pin the newest versions that fit, from a fresh environment
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	.venv-lock/bin/python -m pip install --quiet 'setuptools>=77' wheel
	.venv-lock/bin/python -m pip install --quiet --no-build-isolation '.[local,dev]'
	{ echo '# Made by `make lock`. torch itself is installed before these, by the Makefile.'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude torch --exclude batchsight --exclude pip | grep -vE '^(nvidia-|cuda-|triton=)'; \
	} > deploy/requirements.lock
	rm -rf .venv-lock build *.egg-info

clean: ## remove the environment and what the tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench-results build *.egg-info
