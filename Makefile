# make app    starts the web app      make demo   trains and previews without a browser
# make test   all tests               make check  format, lint and types
PYTHON ?= python3
PORT ?= 7860

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
RUN := $(BIN)/python

.PHONY: app demo test check format soak bench clean

app: .venv/installed
	$(BIN)/atelier serve --port $(PORT)

demo: .venv/installed
	$(RUN) -m trainer.demo

test: .venv/installed-test
	$(RUN) -m tests.browser.install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(RUN) -m pytest -m "not slow" --reruns 2

soak: .venv/installed-test
	$(RUN) -m pytest -m slow

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo

# The stamps make a second run quick: nothing is installed again until what to install changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'LoRA Atelier needs Python 3.11 or newer; this is ' + sys.version.split()[0])"
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@
