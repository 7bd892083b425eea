# Two commands matter: `make demo` and `make test`. Both set up everything they need in .venv first,
# in the versions of constraints.txt.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
SUITE := -m pytest -n 2 --dist loadfile -m "not parity and not long and not page and not rehearsal" tests
PURE := tests/test_geometry.py tests/test_grpo.py tests/test_rewards.py tests/test_parsing.py tests/test_prompting.py \
	tests/test_metrics.py tests/test_collate.py tests/test_sampler.py tests/test_sampling.py tests/test_imageio.py \
	tests/conf/test_schema.py
export OMP_NUM_THREADS ?= 1
export DEMO_DIR ?= outputs/demo

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo:  ## train four tiny policies on drawn scenes and write a report (10 minutes on two cores); the page is grasp-rl demo
	@bash scripts/setup.sh $(VENV) launch
	@bash scripts/demo.sh $(BIN) $(DEMO_DIR)

test:  ## the test suite (under 12 minutes on two cores)
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/python $(SUITE)

test-page:  ## the page of grasp-rl demo and the report in a headless Chromium, which it installs on Debian where it may
	@bash scripts/setup.sh $(VENV) dev
	@bash scripts/chromium.sh
	@$(BIN)/python -m pytest -m page tests/test_demo_browser.py tests/test_report_browser.py

rehearse:  ## every recipe in small, two steps each, and a table of it (resumable)
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/grasp-rl rehearse --all --first

rehearse-six:  ## six recipes in small that together touch every part, two at a time (3 minutes on two cores)
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/python -m pytest -n 2 --dist load -m rehearsal --durations=6 tests/test_rehearsal.py

ablations:  ## the small ablations, 120 runs in and out of domain, with tables (2 to 4 hours on two cores, resumable)
	@bash scripts/setup.sh $(VENV) launch
	@$(BIN)/python scripts/ablations.py outputs/ablations

test-newest:  ## the suite with the newest versions within the bounds of pyproject.toml, in .venv-newest
	@bash scripts/setup.sh .venv-newest dev newest
	@.venv-newest/bin/python $(SUITE)

test-oldest:  ## the suite with every lower bound of pyproject.toml at once, in .venv-oldest
	@bash scripts/setup.sh .venv-oldest dev oldest
	@.venv-oldest/bin/python $(SUITE)

lock:  ## write constraints.txt, the versions all other commands install, anew; then run make check parity
	@bash scripts/lock.sh

quick:  ## lint, types and the tests without a model or a process of their own (under 90 s)
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && $(BIN)/mypy && $(BIN)/python -m pytest -q -n 2 $(PURE)

check: lint  ## everything CI checks: format, lint, types, layers, tests
	@$(MAKE) --no-print-directory test

lint:  ## ruff, mypy and the import layers
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

parity:  ## the same numbers as TRL's GRPOTrainer
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/python -m pytest -m parity tests/parity tests/test_bench_step.py

parity-sam2:  ## the SAM ports against Meta's packages, in an environment of its own
	@bash scripts/parity_sam2.sh .venv-sam2

faults:  ## the long set of faults: kill -9 fifty times, W&B down, and the quick set
	@bash scripts/setup.sh $(VENV) dev
	@bash scripts/faults.sh $(BIN) outputs/faults

fuzz:  ## 500 mutated run folders, 500 configs, 500 datasets: no traceback, no wait, nothing outside changed
	@bash scripts/setup.sh $(VENV) dev
	@$(BIN)/python -m pytest -q -s -m long tests/security/test_fuzz.py

format:  ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-sam2 outputs build dist *.egg-info

.PHONY: help demo test test-page rehearse rehearse-six ablations test-newest test-oldest lock quick check lint parity parity-sam2 faults fuzz format clean
