# Set-up, demo, tests and lint; `make help` lists the targets. Installation is explained in
# docs/install.md.

# PYTHON makes the virtual environment; everything else runs with PY, the environment's own.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PYTEST_ARGS ?=

# What `make demo` asks of its eight scenes: what is on them, and a few names that are not.
SCENE_NAMES := sand; sunset sky; cobblestone; brick wall; snow; foliage; wood floor; asphalt; \
  checkered tablecloth; curtain; corrugated metal; flower meadow; concrete; articulated lorry; \
  octopus; cheese wedge; taco; saxophone; chopsticks; otter; chocolate bar; beans; pickup truck; \
  basket; bug; cockroach; nesting dolls; pinata; microscope; hot pepper; dress; hamster; \
  ginger root; kimono; fly; deciduous tree; couch and lamp; scorpion; bat; raccoon; spaghetti; \
  unicorn; jack-o'-lantern; auto rickshaw; crab; banjo; automobile; whale; rooster; axe; crayon; \
  tiger; violin; pizza; rocket; trophy; water; night sky

REQUIREMENTS := requirements.txt requirements-demo.txt requirements-dev.txt requirements-emoji.txt
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup install demo test lint format check-env clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## create .venv and install everything (PYTHON=python3.11 chooses the interpreter)

# Written last, so that an interrupted set-up is taken up again by the next call.
$(STAMP): $(REQUIREMENTS) setup.py tools/install_detectron2.py | $(VENV)/bin/python
	@$(MAKE) --no-print-directory install
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package goes first because that is where pip refuses a Python that setup.py excludes: in
# seconds, before the large downloads.
install:  ## install into an existing environment (PY=/path/to/its/python)
	@$(PY) -m pip install --quiet --no-deps --editable . || { \
	  echo "$$($(PY) --version) at $(PY) cannot hold DCP-CLIP. If pip says above that it is the" \
	    "wrong Python: rm -r $(VENV), then make setup PYTHON=python3.11" >&2; exit 1; }
	$(PY) -m pip install $(foreach file,$(REQUIREMENTS),-r $(file))
	$(PY) tools/install_detectron2.py
	$(PY) -m dcp_clip.check_env

check-env: setup  ## print versions, devices and what is wrong
	$(PY) -m dcp_clip.check_env

demo: setup  ## label photographs, and scenes drawn on the spot, with shipped weights, into output/demo
	$(PY) demo/demo.py --samples --vocabulary "sky; building; tree; road" \
	  --output output/demo/photographs
	$(PY) datasets/prepare_emoji_scenes.py --source pip --root output/demo \
	  --subsets unseen_test --scenes 8
	$(PY) demo/demo.py --config-file configs/emoji_scenes/dcp_clip_tiny.yaml \
	  --input output/demo/emoji_scenes/images/unseen_test --vocabulary "$(SCENE_NAMES)" \
	  --output output/demo/scenes

test: setup lint  ## lint, then all tests (PYTEST_ARGS="-k vocabulary" for some)
	$(PY) -m pytest $(PYTEST_ARGS)

lint: setup  ## check format and code
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: setup  ## format the code and mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
