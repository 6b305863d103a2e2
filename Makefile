# Every target does all its set-up: plain venv and pip, versions from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint requirements.lock

.PHONY: demo test test-encoders test-gateway check lock clean

demo: .venv/installed            ## the whole line on the simulated sample log: train, evaluate, route
	$(BIN)/broker demo

test: .venv/installed            ## all tests of what is installed; set BROKER_REAL_LOGS for those on real logs
	$(BIN)/python -m pytest

test-encoders: .venv/encoders    ## the tests of transformer encoders; installs torch
	$(BIN)/python -m pytest tests/test_transformer.py tests/test_minilm.py

test-gateway: .venv/gateway      ## the tests of the LiteLLM gateway; installs litellm[proxy]
	$(BIN)/python -m pytest tests/test_gateway.py

check: .venv/installed           ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/installed            ## resolve anew what requirements.lock pins
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--all-extras --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv models/demo* models/.cache examples/*/node_modules

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[train,outcomes,distributed,dev]'
	touch $@

.venv/encoders: .venv/installed
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train,outcomes,distributed,dev,encoders]'
	touch $@

.venv/gateway: .venv/installed
	$(PIP) --editable '.[train,outcomes,distributed,dev,gateway]'
	touch $@
