# Every target does all its set-up: plain venv and pip, versions from requirements.lock. What has a list in requirements/
# is installed from there, and pip refuses every file whose hash is not in that list.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check --constraint requirements.lock
HASHED := $(BIN)/pip install -qq --disable-pip-version-check --require-hashes --no-deps --requirement
EXTRAS := train,outcomes,checks,distributed,feeds,signing,redis,own,dev
# One more than there are cores: some tests wait for other processes.
PROCESSES := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
EXPORT := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes \
	--constraint requirements.lock pyproject.toml requirements/build.in

.PHONY: help demo local serve-local test test-encoders test-gateway test-local check docs dist lock clean

help:                            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed            ## the whole line on the simulated sample log: train, evaluate, route
	$(BIN)/broker demo

local: .venv/local               ## two real models on this machine: ask, log, audit, train, route; installs 380 MB of models
	$(BIN)/python examples/local/run.py

serve-local: .venv/local .venv/gateway   ## both models behind `broker serve`, after `make local`
	$(BIN)/python examples/local/serve.py

test: .venv/installed            ## all tests of what is installed; set BROKER_REAL_LOGS for those on real logs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-encoders: .venv/encoders    ## the tests of transformer encoders; installs torch
	$(BIN)/python -m pytest tests/test_transformer.py tests/test_minilm.py

test-gateway: .venv/gateway      ## the tests of the LiteLLM gateway; installs litellm[proxy]
	$(BIN)/python -m pytest tests/test_gateway.py tests/test_gateway_plans.py tests/test_serve.py tests/test_telemetry.py

test-local: .venv/local .venv/gateway    ## the test of examples/local: ninety tasks for two real models
	$(BIN)/python -m pytest tests/test_local_example.py

check: .venv/installed           ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs                 ## the documentation as a site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: .venv/installed            ## the wheel and the source distribution, in dist
	$(BIN)/python -m hatchling build -d dist

lock: .venv/installed            ## resolve anew what requirements.lock pins, and the lists with hashes from it
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--all-extras --output-file requirements.lock pyproject.toml requirements/build.in
	$(EXPORT) --extra train --extra outcomes --extra checks --extra distributed --extra feeds --extra signing --extra redis --extra own --extra dev --output-file requirements/dev.lock
	$(EXPORT) --extra train --extra outcomes --extra feeds --extra signing --output-file requirements/train.lock
	$(EXPORT) --extra gateway --extra telemetry --extra outcomes --extra checks --extra feeds --extra signing --extra redis --output-file requirements/gateway.lock

clean:                           ## remove what the other targets made
	rm -rf .venv build dist models/demo* models/local* models/.cache examples/*/node_modules

.venv/installed: pyproject.toml requirements/dev.lock
	$(PYTHON) -m venv .venv
	$(HASHED) requirements/dev.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/encoders: .venv/installed
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[$(EXTRAS),encoders]'
	touch $@

.venv/docs: .venv/installed
	$(PIP) --editable '.[$(EXTRAS),docs]'
	touch $@

.venv/gateway: .venv/installed
	$(HASHED) requirements/gateway.lock
	touch $@

.venv/local: .venv/installed examples/local/requirements.txt
	$(HASHED) examples/local/requirements.txt
	touch $@
