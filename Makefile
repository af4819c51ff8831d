PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all test-kernels layers bench clean

demo: $(VENV)/installed
	$(BIN)/sdkeras demo

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=plugins:cli $(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

# The numerical packages under the arithmetic of other processors: order of summation, fused products.
test-kernels: $(VENV)/installed-test
	for kernel in Haswell Sandybridge Prescott; do \
		OPENBLAS_CORETYPE=$$kernel $(BIN)/python -m pytest -q -n 2 -m "not slow" tests/linalg tests/dimension tests/plugins \
			|| exit 1; \
	done

# Every layer, activation and loss of the installed Keras: are its Hessian-vector products right?
layers: $(VENV)/installed-test
	PYTHONPATH=tests $(BIN)/python -m layer_scan.scan --output examples/layers.md

bench: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/run.py

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sdkeras needs Python 3.11 or newer; say which one: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
