# make demo     the whole pipeline on the sample corpus, a few minutes on two CPU cores
# make quick    style, types and the tests that are not slow, under two minutes
# make test     style, types and all tests
# make cluster  the tests on two Slurm nodes and on Ray; starts and stops its own, needs no root (make test skips what is missing)
# make bench    every stage against its stock peer, side by side
# make audit    known vulnerabilities of the locked packages
# make faults   the longer run of the fault tests: 200 random faults over all commands, 30,000 spoiled files
# make soak     an hour of training under random faults (tests/faults/soak.py); MINUTES=60 SEED=0

PYTHON ?= python3
MINUTES ?= 60
SEED ?= 0
BIN := $(CURDIR)/.venv/bin
AUDIT := $(CURDIR)/.venv/audit
REQUIREMENTS := pretraining/requirements.txt pretraining/requirements-dev.txt
LOCK := pretraining/requirements.lock

.PHONY: demo quick test style cluster bench audit faults soak

demo: .venv/installed
	cd pretraining && python=$(BIN)/python sh scripts/demo.sh

quick: style
	$(BIN)/python -m pytest -m "not slow"

test: style
	$(BIN)/python -m pytest

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cluster: .venv/installed
	@$(BIN)/python -m tests.cluster.two_nodes true
	$(BIN)/pip install --quiet --requirement pretraining/requirements-cluster.txt
	CLUSTER=full $(BIN)/python -m pytest tests/cluster

bench: .venv/installed
	$(BIN)/python benchmarks/bench.py

faults: .venv/installed
	FAULTS=200 FUZZ_INPUTS=5000 $(BIN)/python -m pytest tests/faults

soak: .venv/installed
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

audit: .venv/installed
	@test -x $(AUDIT)/bin/pip-audit || { $(BIN)/python -m venv $(AUDIT) && $(AUDIT)/bin/pip install -qq pip-audit==2.10.1; } || { echo "error: make audit: pip-audit cannot be installed from this package index" >&2; exit 2; }
	@$(AUDIT)/bin/pip-audit --progress-spinner off --disable-pip --requirement $(LOCK) >$(AUDIT)/report.txt 2>&1; status=$$?; \
	if grep -q 'could not be audited' $(AUDIT)/report.txt || ! grep -qE '^(No|Found [0-9]+) known vulnerabilit' $(AUDIT)/report.txt; then \
		echo "error: make audit: the vulnerability service cannot be reached or does not know all packages, so nothing is known; see $(AUDIT)/report.txt" >&2; exit 2; \
	fi; \
	cat $(AUDIT)/report.txt; exit $$status

.venv/installed: pyproject.toml $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
