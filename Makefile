# make demo   install what the demo needs, and run the main job on what the package bundles
# make test   install what the tests need besides, and run them
# make check  lint, formatting, types, who imports whom, the documentation site
# make pages  the documentation site, in site/

PYTHON ?= python3
VENV := .venv
# Python compiles a module when it is first imported, so pip need not compile all of them
PIP := $(VENV)/bin/python -m pip install --no-compile --editable
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: demo test slow check pages format clean

demo: $(INSTALLED)
	$(VENV)/bin/difflens demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	$(VENV)/bin/python -m pytest -m "not slow" -n auto --dist worksteal

slow: $(READY)
	$(PIP) ".[dev,slow]"
	$(VENV)/bin/python -m pytest -m slow

check: $(READY) pages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

pages: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

$(READY): $(INSTALLED)
	$(PIP) ".[dev]"
	touch $@
