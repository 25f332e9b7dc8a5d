# `make demo` runs the main job, `make test` all checks, `make bench` measures how much CPU is saved,
# `make docs` builds the site.
# Each sets up a `.venv` by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo docs types test test-quick test-slow test-soak bench clean

demo: $(READY)
	$(BIN)/cliptune demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --jobs=2 --keep-going test-slow types docs test-quick test-soak

# Tests that start a Ray cluster wait more than they work, and no two clusters may
# run at once: they run one after another beside all the others, and say what came of it at the end.
test-quick test-slow test-soak: export OMP_NUM_THREADS := 1
test-quick: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow > $(VENV)/slow.log 2>&1; code=$$?; cat $(VENV)/slow.log; exit $$code

# Kills, flips and cuts at random, of a seed that is new each day and printed.
test-soak: $(READY)
	rm -rf $(VENV)/soak
	$(BIN)/python -m tests.soak --minutes 2 --out $(VENV)/soak

types: $(READY)
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python -m benchmarks

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cliptune needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
