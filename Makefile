# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUESTION ?= What color is the sky?
override QUESTION := $(value QUESTION)
export QUESTION  # to the shell as it was typed: it may hold quotes and dollars

.PHONY: demo test test-slow clean

$(VENV)/.ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "MiniMind-O needs Python 3.10 or newer; choose one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/.ready  ## ask the shipped nano model one question: streamed text and a WAV
	$(BIN)/python eval_omni.py --prompt "$$QUESTION"

test: $(VENV)/.ready  ## the fast tests: CPU, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-slow: $(VENV)/.ready  ## everything, including full-size and minutes-long tests
	$(BIN)/python -m pytest -q -m "" tests

clean:
	rm -rf $(VENV) .pytest_cache
