# Two commands do everything: `make build` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
TOOLKITS := .venv/.toolkits
MODEL ?= edge_sam_demo
TARGET ?= onnx
JOBS ?= $(shell nproc)
# a file of tests stays with one worker, which shares what it built; each worker has a core to itself
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile
# what gradio wants does not fit beside the rest
DEMO := .venv-demo/.installed
PICTURE ?= examples/scene.jpg
PROMPT ?= --box 330,96,540,296

.PHONY: build test test-all lint format bench demo test-demo mutate demo-weights package-check docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(TOOLKITS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,coreml,tflite,qnn,openvino,train]'
	touch $(TOOLKITS)

$(DEMO): pyproject.toml constraints-demo.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-demo.txt --editable '.[demo]'
	touch $(DEMO)

build: $(READY) ## build the default model, prove it, and try it on a picture
	$(BIN)/edgesam-deploy build $(MODEL) --target $(TARGET) --out out/$(MODEL)/$(TARGET) --overwrite
	$(BIN)/edgesam-deploy verify out/$(MODEL)/$(TARGET)
	$(BIN)/edgesam-deploy run out/$(MODEL)/$(TARGET) $(PICTURE) $(PROMPT) --out out/$(MODEL)/scene

test: $(TOOLKITS) ## the tests that decide: under 20 minutes on 2 cores, no network
	$(PYTEST)

test-all: $(TOOLKITS) ## also the slow ones
	$(PYTEST) -m ''

lint: $(TOOLKITS) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TOOLKITS) ## against the reference scripts' export, interleaved; writes benchmarks/results
	$(BIN)/python -m benchmarks.latency_vs_reference
	$(BIN)/python -m pytest -q benchmarks

demo: $(DEMO) ## the bundle of `make build` in the browser, on this machine alone
	.venv-demo/bin/edgesam-deploy demo out/$(MODEL)/$(TARGET)

test-demo: $(DEMO) ## the demo's page in a browser; needs Chromium or Chrome
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-demo.txt --editable '.[demo,train]' pytest
	OMP_NUM_THREADS=1 .venv-demo/bin/python -m pytest -q -m '' tests/demo tests/benchmarks/test_demo_click.py

mutate: $(TOOLKITS) ## break the passes' source place by place: do the tests notice? Hours; writes benchmarks/results/mutation.md
	$(BIN)/python -m benchmarks.mutate $(MUTATE)

demo-weights: $(TOOLKITS) ## train the demonstration model on synthetic scenes, from nothing; the same command resumes
	$(BIN)/edgesam-deploy train demo --out out/demo
	$(BIN)/python -m benchmarks.demo_weights --run out/demo

docs: $(TOOLKITS) ## the documentation site, strictly, into out/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m release.catalogue
	$(BIN)/python -m release.options
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

package-check: ## build wheel and sdist, install them into fresh environments and use them; EXTRAS="torch demo", or every
	$(PYTHON) -m release.check_package $(EXTRAS)

clean:
	rm -rf .venv .venv-demo out .mypy_cache .ruff_cache .pytest_cache
