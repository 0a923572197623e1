# `make help` lists what there is. Everything is installed into .venv; nothing outside this folder is touched,
# but for the browser that `make test` needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Which build of torch: unset takes what pip finds (on Linux with an ordinary index that is the CUDA build). The addresses
# of the CPU and CUDA builds are on PyTorch's "get started" page: make run TORCH_INDEX_URL=<address>
TORCH_INDEX_URL ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off -qq
PYTEST := $(BIN)/python -m pytest

export PYTHONDONTWRITEBYTECODE ?= 1
export TOKENIZERS_PARALLELISM := false
# Threads that wait for each other spin for a moment, then sleep: several processes share the cores
# (docs/decisions/sharing-two-cores.md).
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 30000

.PHONY: help run test test-slow lint suites bench screenshots lock messages settings clean

help: ## list the targets
	@grep -hE '^[a-z%.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "  TORCH_INDEX_URL=<address>  takes the CPU or CUDA build of torch from there (README, Torch)"
	@echo "  PYTHON=python3.12          makes .venv with another Python, 3.11 or newer"
	@echo "  POLICY=org/model           starts from a model of yours: a hub id or a folder (make run)"
	@echo "  ARGS='--port 9000'         goes to the command of make run; docs/settings.md has every setting"

# ---- running ---------------------------------------------------------------------------------------------------------

run: .venv/run.stamp ## install what is missing, then serve on http://127.0.0.1:8000
	@exec $(BIN)/python -m app serve $(if $(POLICY),--policy "$(POLICY)") $(ARGS)

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Pairwright needs Python 3.11 or newer; $(PYTHON) is older or missing. Set PYTHON=/path/to/python3.11." >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
	  || { echo "A virtual environment could not be made. On Debian and Ubuntu: apt-get install python3-venv." >&2; exit 1; }
	@touch $@

.venv/torch.stamp: .venv/python.stamp
	@echo "Downloading torch into .venv: about 200 MB as the CPU build, about 3 GB with CUDA (see TORCH_INDEX_URL in make help)."
	@$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	@touch $@

.venv/run.stamp: .ci/locks/run.lock pyproject.toml .venv/torch.stamp
	@echo "Downloading the other packages into .venv: about 130 MB, each checked against its hash."
	@$(PIP) --no-deps --require-hashes --requirement .ci/locks/run.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# ---- proving ---------------------------------------------------------------------------------------------------------

test: lint suites ## lint, types, floors, and every test of seconds (installs what is missing, a browser too)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/djlint templates --lint --quiet

# Suites that time things or share a screen run one after the other; the rest uses both cores.
suites: .venv/test.stamp
	@mkdir -p build && rm -f build/junit-*.xml
	$(eval export PAIRWRIGHT_CHROMIUM := $(shell .ci/chromium))
	@test -n "$$PAIRWRIGHT_CHROMIUM"
	OMP_NUM_THREADS=1 $(PYTEST) -q -n 2 -m "not slow" --ignore tests/browser --ignore tests/faults --junitxml build/junit-parallel.xml
	$(PYTEST) -q -m "not slow" --junitxml build/junit-serial.xml tests/faults tests/browser

test-slow: .venv/test.stamp ## the long proofs: kill campaigns, training on real data
	@mkdir -p build
	$(eval export PAIRWRIGHT_CHROMIUM := $(shell .ci/chromium))
	@# pytest exits with 5 where nothing was selected
	$(PYTEST) -q -m slow --timeout 1800 --junitxml build/junit-slow.xml || test $$? -eq 5

.venv/test.stamp: .ci/locks/test.lock .venv/run.stamp
	@echo "Downloading the test tools into .venv: about 90 MB, each checked against its hash."
	@$(PIP) --no-deps --require-hashes --requirement .ci/locks/test.lock
	@touch $@

# ---- measuring and showing -------------------------------------------------------------------------------------------

bench: .venv/test.stamp ## every benchmark, one after the other (long; benchmarks/ says what each measures)
	@for file in $$(grep -l "^if __name__" benchmarks/*.py benchmarks/*/__main__.py | sed "s|/__main__.py|.py|"); do $(MAKE) --no-print-directory "bench-$$(basename "$$file" .py | tr _ -)"; done

bench-%: .venv/test.stamp ## one benchmark: bench-rehearsal, ...
	$(BIN)/python -m benchmarks.$(subst -,_,$*) $(ARGS)

screenshots: .venv/test.stamp ## take the screenshots of the README anew
	$(eval export PAIRWRIGHT_CHROMIUM := $(shell .ci/chromium))
	$(BIN)/python -m tests.browser.screenshots

# ---- keeping ---------------------------------------------------------------------------------------------------------

lock: .venv/test.stamp ## write .ci/locks anew from pyproject.toml (needs uv)
	@command -v uv > /dev/null || $(PIP) uv
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/locks/compile

messages: .venv/test.stamp ## write build/messages.pot, what translators need
	$(BIN)/python .ci/messages build/messages.pot

settings: .venv/run.stamp ## write docs/settings.md anew from app/settings.py
	$(BIN)/python -m app settings > docs/settings.md

clean: ## remove .venv and what tests left behind; the data folder .pairwright stays
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache ./*.egg-info
