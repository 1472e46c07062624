# Every target makes its own virtual environment on first use and installs again only when a requirement changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
# With what `accelerate launch` would otherwise guess, and say so in six lines.
LAUNCH = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow smoke lint format types docs wheel clean
.DELETE_ON_ERROR:

# Options for the recipe go into ARGS, for example `make demo ARGS="--seed 2"`.
demo: $(VENV)/.installed-run
	$(LAUNCH) recipes/sentiment.py $(ARGS)

# The suite's tensors are so small that a second thread only waits: six times as long on two busy cores.
test test-slow: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --timeout=600 $(ARGS)

# Every recipe end to end at a scale of seconds, offline; all are tried before the target fails.
smoke: $(VENV)/.installed-run
	@runs=$$(mktemp -d); failed=""; \
	for config in recipes/configs/*/smoke*.yaml; do \
	    task=$$(basename "$$(dirname "$$config")"); \
	    name="$$task/$$(basename "$$config" .yaml)"; \
	    echo "== $$name"; \
	    HF_HUB_OFFLINE=1 $(LAUNCH) "recipes/$$task.py" --config "$$config" --output_dir "$$runs/$$name" \
	        || failed="$$failed $$name"; \
	done; \
	rm -r "$$runs"; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed"; exit 1; fi

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy trl_ziegler recipes

# The site, into site/; a page without a place, a broken link or a wrong docstring fails.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# Sdist and wheel, and the wheel in a new environment beside the lowest and the highest TRL; some minutes of installing.
wheel:
	$(PYTHON) tests/wheel.py

clean:
	rm -rf $(VENV) site

$(BIN)/python:
	@echo "Making $(VENV) with $(PYTHON); the first installation takes a few minutes."
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-run: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e . -c $(CONSTRAINTS)
	touch $@

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[$*]" -c $(CONSTRAINTS)
	touch $@
