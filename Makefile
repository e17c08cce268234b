# Set-up, demo, tests and lint; `make help` lists the targets. docs/install.md explains installation.

# PYTHON creates the virtual environment. Everything else runs with PY, the environment's own.
PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python
EXTRAS ?= video,geo,demo,emoji,onnx,docs,dev
# pytest-xdist runs the tests in two processes with one thread each; WORKERS=0 runs them in one.
WORKERS ?= 2
PYTEST_ARGS ?=

# The oldest supported environment.
OLDEST_PYTHON ?= python3.10
OLDEST_VENV = .venv-oldest
OLDEST_PY = $(OLDEST_VENV)/bin/python
OLDEST = tests/oldest-constraints.txt

# What `make demo` asks of its eight scenes: their categories and a few others.
SCENE_NAMES := sand; sunset sky; cobblestone; brick wall; snow; foliage; wood floor; asphalt; \
  checkered tablecloth; curtain; corrugated metal; flower meadow; concrete; articulated lorry; \
  octopus; cheese wedge; taco; saxophone; chopsticks; otter; chocolate bar; beans; pickup truck; \
  basket; bug; cockroach; nesting dolls; pinata; microscope; hot pepper; dress; hamster; \
  ginger root; kimono; fly; deciduous tree; couch and lamp; scorpion; bat; raccoon; spaghetti; \
  unicorn; jack-o'-lantern; auto rickshaw; crab; banjo; automobile; whale; rooster; axe; crayon; \
  tiger; violin; pizza; rocket; trophy; water; night sky

# worksteal: the slowest tests come last, and one process would run them alone.
RUN_TESTS = -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup install demo app test test-oldest gpu lint format check-env docs audit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 20

setup: $(VENV)/.installed  ## create .venv and install everything (PYTHON=python3.12 chooses the interpreter)

# The stamp is written last, so that the next call continues an interrupted set-up.
$(VENV)/.installed: pyproject.toml setup.py tools/install_detectron2.py | $(VENV)/bin/python
	@$(MAKE) --no-print-directory install
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

install:  ## install into an existing environment (PY=/path/to/its/python)
	$(PY) -m pip install --editable ".[$(EXTRAS)]"
	$(PY) tools/install_detectron2.py
	$(PY) tools/check_env.py

check-env: setup  ## print versions, devices and problems
	$(PY) tools/check_env.py

demo: setup  ## label a photograph and generated scenes with the shipped weights, into output/demo
	$(PY) demo/demo.py --samples --vocabulary "sky; building; tree; road" --unknown-below 0.5 \
	  --output output/demo/photographs --overwrite --opts INPUT.MIN_SIZE_TEST 320
	$(PY) datasets/prepare_emoji_scenes.py --source pip --root output/demo \
	  --subsets unseen_test --scenes 8
	$(PY) demo/demo.py --config-file configs/emoji_scenes/dcp_clip_tiny.yaml \
	  --input output/demo/emoji_scenes/images/unseen_test --vocabulary "$(SCENE_NAMES)" \
	  --unknown-below 0.4 --output output/demo/scenes --overwrite
	$(PY) tools/montage.py output/demo/photographs output/demo/scenes --columns 3 \
	  --output output/demo/demo.png
	@echo "Open output/demo/demo.png."

app: setup  ## serve a page for the browser that segments images (docs/app.md)
	$(PY) -c "import gradio" 2>/dev/null || $(PY) -m pip install --editable ".[app]"
	$(PY) demo/app.py

test: setup lint  ## lint, then all tests (PYTEST_ARGS="-k vocabulary" for some)
	OMP_NUM_THREADS=1 $(PY) $(RUN_TESTS) $(PYTEST_ARGS)

test-oldest: $(OLDEST_VENV)/.installed  ## all tests with the oldest supported versions, in .venv-oldest
	OMP_NUM_THREADS=1 $(OLDEST_PY) $(RUN_TESTS) $(PYTEST_ARGS)

$(OLDEST_VENV)/.installed: pyproject.toml setup.py tools/install_detectron2.py $(OLDEST)
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_PY) -m pip install --constraint $(OLDEST) --editable ".[demo,emoji,dev]"
	$(OLDEST_PY) tools/install_detectron2.py
	@touch $@

# One table for each model: forward pass in fp32 and bf16, and a training step.
GPU_CONFIGS = $(addprefix configs/coco_stuff/dcp_clip_,convnext_b.yaml convnext_l.yaml vit_l14_336.yaml)
GPU_BENCHMARK = $(PY) tools/benchmark.py --device cuda --config-file $(GPU_CONFIGS)
gpu: setup  ## tests and costs that need a GPU (docs/cost.md); figures go to output/gpu
	$(PY) -m pytest tests/gpu
	mkdir -p output/gpu
	$(GPU_BENCHMARK) --json output/gpu/fp32.json
	$(GPU_BENCHMARK) --json output/gpu/bf16.json --opts MODEL.DCP_CLIP.BF16 True
	$(GPU_BENCHMARK) --train --vocabulary-sizes 150 --json output/gpu/train.json

lint: setup  ## check format and code
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: setup  ## format the code and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup  ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

audit: setup  ## report known vulnerabilities of the installed packages
	$(PY) -m pip install --quiet pip-audit
	$(PY) -m pip_audit --local --skip-editable

clean:  ## remove the environments, built files and all caches
	rm -rf $(VENV) $(OLDEST_VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
