# Every target makes what it needs: the first run creates .venv and installs into it, a later run
# starts at once. Another interpreter: make test PYTHON=python3.12. More for pytest: make test
# PYTEST_ARGS="-k batchnorm".
PYTHON ?= python3
PYTEST_ARGS ?=
JOBS ?= 2

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
# One BLAS thread a test process: JOBS of them share the machine.
TEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: verify figures lint test test-fast bench dist guide clean

verify: .venv/installed
	@echo "measuring the claims on networks trained on handwritten digits, and on random walks (a minute or two)"
	@$(BIN)/python -m theory

guide: .venv/installed-guide
	$(BIN)/python -m sphinx -W --keep-going -q -b html guide build/site
	$(BIN)/python -m theory --report build/site/claims
	@echo "the site: build/site/index.html"

# From the kept results, in a minute or two; `python -m figures` computes them anew.
figures: .venv/installed
	$(BIN)/python -m figures --archive figures/results/quick/runs.xz
	$(BIN)/python -m figures --preset laptop --archive figures/results/laptop/runs.xz \
		--data-note "JPEG q75"

# What every file keeps, whatever it does: style, types, the direction of imports.
lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: .venv/installed-test
	$(TEST) $(PYTEST_ARGS)

test-fast: .venv/installed-test
	$(TEST) -m "not slow" $(PYTEST_ARGS)

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks

# What a release uploads, built from the source distribution and checked; nothing is uploaded.
dist: .venv/installed-release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The stamps are written last, so a broken installation is begun again.
.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "$(PYTHON) is \
	Python %d.%d; 3.10 or later is needed: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "making a Python environment in .venv"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed: setup.cfg pyproject.toml | .venv/created
	@echo "installing numpy, numba, scipy, matplotlib and some smaller packages into .venv (about a minute, once)"
	@$(PIP_INSTALL) .
	@touch $@

.venv/installed-%: setup.cfg pyproject.toml | .venv/created
	@echo "installing what '$*' needs into .venv, beside the package itself (some minutes, once)"
	@$(PIP_INSTALL) ".[$*]"
	@touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .benchmarks .import_linter_cache .mypy_cache .ruff_cache
