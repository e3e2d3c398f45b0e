# `make demo` shows what recuse does, `make test` checks all of it; both work on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
RECUSE := $(BIN)/recuse

# i2cdetect and its like are in /usr/sbin, which is not on everybody's path.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help install demo test lint bench clean

help:
	@echo 'make demo     run real programs against devices written in Python'
	@echo 'make test     check style, types and behaviour'
	@echo 'make lint     check style and types only'
	@echo 'make bench    measure, also against other ways to do the same'
	@echo 'make install  only make .venv, with recuse and its tools in it'
	@echo 'make clean    remove .venv and what the tools left behind'

# The stamps say for which pyproject.toml and requirements.txt the environment was made.
$(BIN)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo 'No virtual environment: on Debian, apt-get install python3-venv'; rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BIN)/.installed-bench: benchmarks/requirements.txt $(BIN)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

install: $(BIN)/.installed

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	@.ci/packages test
	$(BIN)/pytest -n 2

bench:
	@.ci/packages bench
	@$(MAKE) --no-print-directory $(BIN)/.installed-bench
	$(BIN)/python -m benchmarks

# Make itself prints each command before it runs it.
demo: install
	@.ci/packages demo
	@echo
	@echo '# /dev/echo is a class of a few lines of Python: see examples/echo.py.'
	$(RECUSE) run -d examples/echo.py -- sh -c 'ls -l /dev/echo; echo hello >/dev/echo; cat /dev/echo'

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
