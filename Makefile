# Two commands for a new user: `make demo` and `make test`. Each makes its own environment from Python 3.11 or
# later and the package index; a second run finds it ready. PYTHON chooses the interpreter.

PYTHON ?= python3
DEMO := .venv
TEST := build/venv
TRAIN := build/train
PIP := -m pip --disable-pip-version-check install --quiet
PYTEST := $(TEST)/bin/python -m pytest

.PHONY: demo test test-slow test-train test-arm test-arm-system lint clean

demo: $(DEMO)/.ready
	$(DEMO)/bin/edgegemma warmup demo
	$(DEMO)/bin/python -m bench demo

test: $(TEST)/.ready
	$(PYTEST) -m "not slow and not arm"

test-slow: $(TEST)/.ready
	$(PYTEST) -m "slow and not arm"

test-train: $(TRAIN)/.ready
	$(TRAIN)/bin/python -m pytest tests/test_train*.py tests/test_qat.py

test-arm: $(TEST)/.ready
	$(PYTEST) -m arm

# By hand, 20 minutes for E2B: make test-arm-system PACKAGE=~/models/gemma-4-E2B
test-arm-system:
	tests/arm/setup.sh .arm64
	tests/arm/system.sh .arm64 "$(PACKAGE)" /job/tests/arm/session.py /data

lint: $(TEST)/.ready
	$(TEST)/bin/ruff check
	$(TEST)/bin/ruff format --check
	$(TEST)/bin/mypy
	$(TEST)/bin/lint-imports

$(DEMO)/.ready: WANTED := .
$(TEST)/.ready: WANTED := .[dev]
$(TRAIN)/.ready: WANTED := .[dev,train]

%/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("edgegemma needs Python 3.11 or later; try: make PYTHON=python3.13" if sys.version_info < (3, 11) else 0)'
	@echo "making $* from the package index (once)"
	@$(PYTHON) -m venv $*
	@$*/bin/python $(PIP) --editable "$(WANTED)"
	@touch $@

clean:
	rm -rf $(DEMO) $(TEST) $(TRAIN) build/lib build/bdist.* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
