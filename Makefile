# Every target makes what it needs: an own .venv from constraints.txt, and Debian's packages for the
# tests that drive a real browser and a real Prometheus. A stamp makes the second call quick.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SIZE   ?= full
# Not empty: the demo's UI runs until Ctrl-C.
KEEP   ?=
# Most tests wait for processes more than they compute, so there is one more run of them than cores.
# A file's tests stay together: they share clusters. The longest files come first (tests/conftest.py).
JOBS   ?= 3
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PYTEST_ARGS ?=

# Command that each Debian package brings: the package is installed only if the command is missing.
APT_NEEDS := chromium:chromium prometheus:prometheus psql:postgresql

# pip says a line for each of some 200 packages, or nothing for minutes. Kept of that: files of 10 MB
# and more, and where unpacking begins. Its errors go to the terminal as they are.
comma := ,
install = { PYTHONUNBUFFERED=1 $(PIP) install -e '$(1)' -c constraints.txt || touch $(VENV)/.failed; } \
  | sed -u -n -E -e 's/^ *(Downloading|Using cached) (.*\([0-9]{2,}(\.[0-9]+)? MB\)).*/  \1 \2/p' \
    -e 's/^ *Installing collected packages.*/  Unpacking/p'; \
  if [ -e $(VENV)/.failed ]; then rm $(VENV)/.failed; exit 1; fi

.DEFAULT_GOAL := help
.PHONY: help demo test test-all pytest pytest-all lint compiled compat bench pictures docs apt clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / — /' | sed 's/^/make /'

demo: $(VENV)/.stamp-demo  ## run a real flow on this machine (SIZE=tiny|small|full; KEEP=1 leaves its UI running)
	$(BIN)/deepflow demo --size $(SIZE) $(if $(KEEP),--keep)

test: $(VENV)/.stamp-dev apt  ## lint, types, layers, and every test but the slow ones
	@$(MAKE) --no-print-directory -j2 lint pytest

test-all: $(VENV)/.stamp-dev apt  ## the slow ones too (prefect-dask's whole suite on every kind of cluster)
	@$(MAKE) --no-print-directory -j2 lint pytest-all

pytest: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) $(PYTEST_ARGS)

pytest-all: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One of them: make compat COMPAT=3.9.1/2026.3.0. To enter what came of it: COMPAT=--write.
COMPAT ?=
compat: $(VENV)/.stamp-dev  ## a telling part of the tests on each supported Prefect and Dask (ten minutes each)
	$(BIN)/python .ci/compat.py $(COMPAT)

compiled: $(VENV)/.stamp-dev  ## compile what decides where a task runs, into build/ and a wheel in dist/ (some minutes)
	nice $(BIN)/python .ci/compiled.py

bench: $(VENV)/.stamp-dev  ## compare with prefect-dask, Prefect's threads and bare Dask
	$(BIN)/python -m tests.benchmarks.dispatch

pictures: $(VENV)/.stamp-dev  ## make the pictures of README and docs anew, from runs now (some ten minutes)
	$(BIN)/python -m tests.benchmarks.pictures

docs: $(VENV)/.stamp-dev  ## write the reference from the code and build the site into site/
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q
	@echo "site/index.html is there; to read it with search: $(BIN)/python -m http.server -d site"

clean:  ## remove the virtual environment, the site and caches
	rm -rf $(VENV) .compat site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "deepflow needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# prefect-dask comes with the demo for the comparison.
$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing deepflow and what the demo needs into $(VENV): Prefect, Dask, torch, pandas,"
	@echo "matplotlib, prefect-dask. The first time that takes some minutes; large files are named."
	@$(call install,.[demo$(comma)bench])
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing deepflow and what its tests need into $(VENV); large files are named."
	@$(call install,.[dev])
	@touch $@ $(VENV)/.stamp-demo

# Without the rights to install, the tests that need these programs skip and say so.
apt:
	@missing=""; \
	for need in $(APT_NEEDS); do \
	  command -v $${need%%:*} >/dev/null 2>&1 || missing="$$missing $${need##*:}"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	if ! command -v apt-get >/dev/null 2>&1; then \
	  echo "not installed, and no apt-get here:$$missing (their tests will skip)"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=""; \
	elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as="sudo"; \
	else echo "not installed, and no right to install:$$missing (their tests will skip)"; exit 0; fi; \
	echo "installing$$missing"; \
	$$as apt-get update -q && \
	DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -q --no-install-recommends $$missing
