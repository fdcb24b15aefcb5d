# The only commands to learn. `make demo` and `make test` need Python >= 3.11 and git, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help install demo test browser interop faults soak bench fuzz lint format types docs constraints clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

help:  ## these targets
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/installed  ## .venv with the broker and what its tests need

demo: install  ## a whole installation on loopback: log in, watch tokens rotate (PORT=8080 for another port)
	$(BIN)/token-broker demo $(if $(PORT),--port $(PORT))

test: install  ## every test that needs nothing but Python: no root, no browser, no other servers
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not browser and not interop"

browser: install  ## the demo in a real Chromium
	$(BIN)/python -m pytest -m browser

interop: install  ## real authorization servers and gateways that nobody here wrote (needs node, java, nginx …)
	$(BIN)/python -m pytest -m interop

faults: install  ## storms, kill -9 at every await, store and provider outages
	$(BIN)/python -m pytest -m slow

soak: install  ## random faults from a seed for 90 s; SOAK_SECONDS and SOAK_SEED change that
	SOAK_SECONDS=$${SOAK_SECONDS:-90} $(BIN)/python -m pytest -s tests/system/test_faults_soak.py

fuzz: install  ## ten minutes of random input for everything that reads bytes from outside
	$(BIN)/python -m tests.fuzz.data_plane --minutes 10

bench: install  ## the broker beside other proxies; writes docs/reference/performance-results.md (needs nginx, haproxy, caddy, apache2 with mod_auth_openidc, redis, wrk)
	$(BIN)/python -m benchmarks $(BENCH)

lint: install  ## ruff with nearly all rules, import floors, spelling
	$(BIN)/ruff format --check broker tests benchmarks
	$(BIN)/ruff check broker tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/codespell broker tests docs README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md THREAT_MODEL.md

format: install  ## what lint would have
	$(BIN)/ruff format broker tests benchmarks
	$(BIN)/ruff check --fix broker tests benchmarks

types: install  ## mypy strict
	$(BIN)/mypy

docs: install  ## the reference pages that are printed from the code and its tests
	$(BIN)/token-broker schema > docs/reference/config.schema.json
	$(BIN)/token-broker schema --markdown > docs/reference/configuration.md
	$(BIN)/python -m tests.support.security_rows

clean:  ## .venv and the caches away
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

constraints: install  ## pin what is installed now
	(head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable) > constraints.new && mv constraints.new constraints.txt
