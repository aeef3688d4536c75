# Everything a fresh clone needs. `make install` makes .venv; the other targets call it when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
# One thread a process: two torch threads that share a busy core wait for each other.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: install test lint quickstart clean
install: $(VENV)/.installed

# torch comes first and alone, pinned: asked for by another package, pip would take the newest build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

test: install
	$(TEST_ENV) $(PY) -m pytest tests

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# DPOK on the embedded model, then before and after: runs/quickstart/report.html
quickstart: install
	$(PY) -m agents.cli quickstart --out runs/quickstart

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
