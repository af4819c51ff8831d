PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all test-kernels layers docs docs-figures bench bench-peers bench-growth bench-xla bench-devices clean

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

# The site, in site/; then the numbers and figures in it, from trainings of seconds.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-figures: $(VENV)/installed
	$(BIN)/python docs/gallery.py
	$(BIN)/python docs/figures.py

# Speed against the targets, against other libraries and as sizes grow; each remakes a table of tests/benchmarks.
bench: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/targets.py

bench-peers: $(VENV)/installed-test $(VENV)-peers/installed
	$(BIN)/python tests/benchmarks/peers.py $(VENV)-peers/bin/python

bench-growth: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/growth.py

bench-xla: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/xla.py

bench-devices: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/devices.py

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

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

# PyTorch and what is built on it, which would not share an environment with TensorFlow.
$(VENV)-peers/installed: tests/benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install -q -r $<
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-peers build dist site .mypy_cache .ruff_cache .pytest_cache
