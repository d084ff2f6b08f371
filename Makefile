# make demo   set up and run the main job on what the package bundles
# make test   set up and run the tests
# make check  lint, formatting, types, who imports whom

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test slow check format clean

demo: $(READY)
	$(VENV)/bin/difflens demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	$(VENV)/bin/python -m pytest -m "not slow" -n auto --dist worksteal

slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable ".[dev]"
	touch $@
