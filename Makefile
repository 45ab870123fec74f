# Every target does its own set-up on a fresh machine and is quick the second time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Four test processes on two cores: much of the time goes into waiting for other processes.
TEST_PROCESSES ?= 4
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo lint test test-all train-demo clean

help:
	@echo "make demo      generate 16 stereo pairs offline with the embedded models, then verify them"
	@echo "make test      lint, types, layer rules and the fast tests"
	@echo "make test-all  the same with the slow tests: the full kill-and-resume matrix"
	@echo "make train-demo  train the embedded models anew into build/train; hours on a CPU, goes on where it stopped"
	@echo "make setup     only the virtual environment (PYTHON=python3.12 VENV=.venv to choose)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/stereo-jobs demo --output out/demo
	$(BIN)/stereo-jobs verify out/demo
	$(BIN)/stereo-jobs report out/demo
	@echo "For the command stereo-jobs in this shell: source $(BIN)/activate"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not slow" --durations=10 $(PYTEST_ARGS)

test-all: lint
	$(PYTEST) --hypothesis-profile=default --cov --cov-report=term:skip-covered --durations=20 $(PYTEST_ARGS)

train-demo: setup
	$(BIN)/python -m stereo_jobs.toyscapes all --work build/train

clean:
	rm -rf out .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
