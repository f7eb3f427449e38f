# make demo    the whole pipeline on the sample corpus, a few minutes on two CPU cores
# make test    style checks and all tests
# make bench   every stage against its stock peer, side by side
# make audit   known vulnerabilities of the pinned packages
# make faults  the longer run of the fault tests

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin

.PHONY: demo test bench audit faults

demo: .venv/installed
	cd pretraining && python=$(BIN)/python sh scripts/demo.sh

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

bench: .venv/installed
	$(BIN)/python benchmarks/bench.py

faults: .venv/installed
	FAULT_ROUNDS=10 $(BIN)/python -m pytest tests/faults

audit: .venv/installed
	$(BIN)/pip install --quiet pip-audit==2.10.1
	$(BIN)/pip-audit --requirement pretraining/requirements.txt

.venv/installed: pretraining/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement pretraining/requirements.txt
	touch $@
