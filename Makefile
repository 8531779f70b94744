# `make help` says what there is. Variables: TEACHERS CORPUS CACHE WEIGHTS NAME (cache), CONFIG (fit), PYTHON.
# A group of teachers is named for its modality first: that says how CORPUS is read.
TEACHERS ?= mol
CACHE ?= cache
CONFIG ?= configs/mol.yaml
PYTHON ?= python3
BIN := .venv/bin
READER := $(if $(filter vision%,$(TEACHERS)),image.ImageFolder,$(if $(filter text%,$(TEACHERS)),text.TextFile,molecule.SmilesFile))
GROUPS := $(basename $(notdir $(wildcard configs/cache/*.yaml)))
SPECIALISTS := $(patsubst configs/%.yaml,runs/%.safetensors,$(wildcard configs/specialists/*.yaml))
export WEIGHTS

.DEFAULT_GOAL := help
.PHONY: help install demo cache fit probe lint type test bench bench-peers study-methods study-steps study-ablations study-quantised study-teachers study-consolidation clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24
	@echo "teacher groups (TEACHERS=...): $(GROUPS)"

install: $(BIN)/.installed ## make the environment .venv (every other target does so when it is missing)

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on -e '.[all,dev]' -c constraints.txt
	@touch $@

demo: install ## cache, fit, test and report on molecules that RDKit ships: offline, some minutes
	$(BIN)/distill-cache build --config configs/cache/mol.yaml --cache $(CACHE)
	$(BIN)/distill fit --config configs/demo.yaml --data.corpus $(CACHE)/mol
	$(BIN)/distill test --config configs/demo.yaml --data.corpus $(CACHE)/mol

cache: install ## run a group of teachers over a corpus: TEACHERS=mol CORPUS=file-or-folder CACHE=cache NAME=mol WEIGHTS=folder
	$(if $(wildcard configs/cache/$(TEACHERS).yaml),,$(error no teacher group "$(TEACHERS)"; TEACHERS can be: $(GROUPS)))
	$(BIN)/distill-cache build --config configs/cache/$(TEACHERS).yaml --cache "$(CACHE)" $(if $(NAME),--name "$(NAME)") \
	  $(if $(CORPUS),--corpus cache_tools.corpora.$(READER) --corpus.path "$(CORPUS)")

fit: install ## train a student: CONFIG=configs/mol.yaml
	$(BIN)/distill fit --config $(CONFIG)

probe: install ## probe the newest student on the tasks of its configuration
	$(BIN)/distill test

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

type: install ## types
	$(BIN)/mypy

test: install ## all tests, with style and types
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: install ## speed as ratios, measured side by side
	$(BIN)/python benchmarks/run.py

bench-peers: .venv-bench/.installed ## the cache beside litdata, mosaicml-streaming and webdataset, in an environment of their own
	.venv-bench/bin/python benchmarks/peers.py

.venv-bench/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --disable-pip-version-check --quiet --progress-bar on -e '.[mol,bench]'
	@touch $@

study-quantised: install ## what int8 columns cost: students of float16 and of int8 teachers, probed alike
	$(BIN)/distill-cache build --config configs/cache/mol.yaml --cache $(CACHE) --name mol
	$(BIN)/distill-cache build --config configs/cache/mol.yaml --cache $(CACHE) --name mol-int8 --settings.dtype int8
	$(BIN)/distill study --config configs/studies/quantised.yaml

study-teachers: install ## what each of three teachers brings to the demo's student, by all of their subsets
	$(BIN)/distill-cache build --config configs/cache/mol.yaml --cache $(CACHE)
	$(BIN)/distill study --config configs/studies/mol-teachers.yaml

# with a GPU the large version: all rows, larger students, more epochs
SIZE ?= $(if $(shell command -v nvidia-smi),large,small)
LARGE := $(filter large,$(SIZE))
LARGE_mol := --corpus.limit null
LARGE_text := --corpus.every 1
LARGE_vision := --corpus.per_folder null

study-methods: study-methods-mol study-methods-text study-methods-vision ## every method on molecules, texts and images, resumable: WEIGHTS=../shared/weights SIZE=small|large
	$(BIN)/distill compare --studies $(foreach each,mol text vision,docs/reports/methods-$(each)$(LARGE:%=-%)) --out docs/reports/methods$(LARGE:%=-%)

study-methods-%: install ## one of these: -mol, -text, -vision
	WEIGHTS=$(or $(WEIGHTS),../shared/weights)/$* $(BIN)/distill-cache build --config configs/studies/$*-cache.yaml --cache $(CACHE) \
	  $(if $(LARGE),--name study-$*-large $(LARGE_$*))
	$(BIN)/distill study --config configs/studies/methods.yaml --base '[configs/studies/$*-fit.yaml$(LARGE:%=, configs/studies/$*-%.yaml)]' \
	  --runs runs/methods-$*$(LARGE:%=-%) --out docs/reports/methods-$*$(LARGE:%=-%)

study-steps: study-steps-mol study-steps-text study-steps-vision ## do longer fits change the order of methods, resumable: WEIGHTS=../shared/weights
	$(BIN)/distill compare --studies docs/reports/steps-mol docs/reports/steps-text docs/reports/steps-vision --out docs/reports/steps

study-steps-%: install ## one of these: -mol, -text, -vision
	WEIGHTS=$(or $(WEIGHTS),../shared/weights)/$* $(BIN)/distill-cache build --config configs/studies/$*-cache.yaml --cache $(CACHE)
	$(BIN)/distill study --config configs/studies/steps.yaml --base '[configs/studies/$*-fit.yaml, configs/ablations/longer.yaml]' \
	  --runs runs/steps-$* --out docs/reports/steps-$*

study-ablations: install ## what else makes a student of molecules better, resumable: WEIGHTS=../shared/weights/mol
	WEIGHTS=$(or $(WEIGHTS),../shared/weights/mol) $(BIN)/distill-cache build --config configs/studies/mol-cache.yaml --cache $(CACHE)
	$(BIN)/distill study --config configs/studies/ablations-mol.yaml

study-consolidation: install $(SPECIALISTS) ## students of tuned specialists, of a generalist, and of both, resumable: WEIGHTS=../shared/weights/vision
	WEIGHTS=$(or $(WEIGHTS),../shared/weights/vision) $(BIN)/distill-cache build --config configs/studies/consolidation-cache.yaml --cache $(CACHE)
	$(BIN)/distill study --config configs/studies/consolidation.yaml

runs/specialists/%.safetensors: configs/specialists/%.yaml | $(BIN)/.installed
	WEIGHTS=$(or $(WEIGHTS),../shared/weights/vision) $(BIN)/distill specialise --config $< --out $@

clean: ## remove the environment and what tools left; caches and runs stay
	rm -rf .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
