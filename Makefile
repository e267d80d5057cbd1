# Each target makes the environment that it needs: Python 3.11 or later is enough. Lint, types, documentation and other
# versions are sessions of noxfile.py. Everything is installed in the versions of constraints.txt; CONSTRAINTS=/dev/null
# takes the newest ones.
# `make test PYTHON=python3.13 VENV=.venv-3.13` uses another interpreter, in another environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export CONSTRAINTS ?= constraints.txt
INSTALL = $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

CHECK = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.13")'

.PHONY: demo test test-all nightly soak broken mutation bench scale rabbitmq constraints freeze release clean

demo: $(VENV)/demo.stamp
	@$(BIN)/mailglass-reconcile demo

test: $(VENV)/test.stamp
	$(PYTEST) -m "not slow or guard" $(ARGS)

# Every test, also those that are too slow for `make test` or for CI.
test-all: $(VENV)/test.stamp
	$(PYTEST) $(ARGS)

# What CI leaves out: the many variants of a promise, and `make test` on each other Python that is here.
nightly: $(VENV)/test.stamp $(VENV)/nox.stamp
	code=0; $(PYTEST) -m nightly $(ARGS) || code=$$?; $(BIN)/nox --session tests || code=$$?; exit $$code

soak: $(VENV)/test.stamp
	PYTHONPATH=tests:tests/support $(BIN)/python -m faults.soak $(ARGS)

# Breaks copies of the package, each in another way, and writes which quick test notices into tests/faults/breaks.txt.
# ARGS="words" selects the breaks whose names have these words.
broken: $(VENV)/test.stamp
	PYTHONPATH=tests:tests/support $(BIN)/python -m faults.broken $(ARGS)

# Changes the Python of rules, sweep, record and projector, one expression after the other, and lists the changes that
# no test catches, which takes hours. ARGS="mailglass_reconcile.rules*" selects a part, ARGS="'*7'" about every tenth
# change by its number; the results stay in mutants/.
mutation: $(VENV)/mutation.stamp
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

# Takes half an hour on an idle machine, and prints the figures; ARGS="calls" runs one part, ARGS="--help" lists the options.
bench: $(VENV)/test.stamp
	$(BIN)/python -m bench $(ARGS)

# Measures costs against events in the ledger and against processes in three minutes, and draws docs/growth.svg;
# ARGS="--history 100000 1000000 10000000" measures larger ledgers.
scale: $(VENV)/test.stamp
	$(BIN)/python -m bench growth --output bench/figures.json $(ARGS)
	$(BIN)/python docs/reference.py

# Needs Debian's package rabbitmq-server, and says so if it is missing.
rabbitmq: $(VENV)/test.stamp
	$(BIN)/python tests/support/rabbitmq.py $(BIN)/python -m pytest tests/stories/test_celery.py $(ARGS)

# Adds to constraints.txt what pyproject.toml needs; ARGS=--upgrade raises every version.
constraints: $(VENV)/nox.stamp
	@$(BIN)/nox --session constraints -- $(ARGS)

# Freezes the schema and dates the changelog for a release, in a clean checkout; commit what it changes.
freeze: $(VENV)/test.stamp
	@$(BIN)/python .ci/freeze.py '$(VERSION)'

# Tries the release of a clean clone of HEAD, and publishes nothing; it needs the package index only.
release: $(VENV)/release.stamp
	@$(BIN)/python .ci/release.py '$(VERSION)' $(if $(ADDRESS),--address '$(ADDRESS)')

clean:
	rm -rf $(VENV)

# An existing environment is used, because readers of the README make `.venv` themselves.
$(VENV)/venv.stamp: $(CONSTRAINTS)
	@[ -x $(BIN)/pip ] || { $(CHECK) && echo "Making $(VENV); this takes about a minute, and only the first time." && $(PYTHON) -m venv $(VENV); }
	@$(INSTALL) --upgrade pip
	@touch $@

$(VENV)/demo.stamp: $(VENV)/venv.stamp pyproject.toml
	@$(INSTALL) --build-constraint $(CONSTRAINTS) --editable '.[demo]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/venv.stamp pyproject.toml
	@$(INSTALL) --build-constraint $(CONSTRAINTS) --editable . --group test
	@touch $@

$(VENV)/nox.stamp: $(VENV)/venv.stamp
	@$(INSTALL) --group environments
	@touch $@

$(VENV)/release.stamp: $(VENV)/test.stamp
	@$(INSTALL) --group release
	@touch $@

$(VENV)/mutation.stamp: $(VENV)/test.stamp
	@$(INSTALL) --group mutation
	@touch $@
