# `make help` lists the targets. Variables: TEACHERS CORPUS ID CACHE WEIGHTS NAME (cache), CONFIG (fit), PYTHON.
# The name of a group of teachers begins with its modality, which decides how CORPUS is read.
# The studies behind docs/results.md have a Makefile of their own: benchmarks/Makefile.
TEACHERS ?= mol
CACHE ?= cache
CONFIG ?= configs/mol.yaml
PYTHON ?= python3
BIN := .venv/bin
READER := $(if $(filter vision%,$(TEACHERS)),image.ImageFolder,$(if $(filter text%,$(TEACHERS)),text.TextFile,molecule.SmilesFile))
GROUPS := $(basename $(notdir $(wildcard configs/cache/*.yaml)))
export WEIGHTS

# refused before anything is installed
$(if $(wildcard configs/cache/$(TEACHERS).yaml),,$(error no teacher group "$(TEACHERS)"; TEACHERS can be: $(GROUPS)))

# imported once at the install: pip compiles what it installs, uv leaves that to the first import, here 5,000 modules
USED := cache_tools.cli, distill.cli.fit, distill.evaluation.probes, distill.report.page, rdkit.Chem.Descriptors, torch_geometric.nn, transformers

# $(call environment,FOLDER,PACKAGES): uv needs a quarter of pip's time; where it cannot be had, or fails, pip installs
COMMA := ,
define environment
$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --disable-pip-version-check --quiet uv && $(1)/bin/uv pip install --python $(1) $(2) \
	  || $(1)/bin/pip install --disable-pip-version-check --quiet --progress-bar on $(2)
endef

.DEFAULT_GOAL := help
.PHONY: help install demo cache fit probe lint type test test-slow docs notebooks test-oldest wheel release bench bench-peers clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24
	@echo "teacher groups (TEACHERS=...): $(GROUPS)"

install: $(BIN)/.installed ## make the environment .venv (every other target does this when it is missing)

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(call environment,.venv,-e '.[all$(COMMA)dev]' -c constraints.txt)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c 'import $(USED)'
	@touch $@

demo: install ## cache, fit, test and report on the molecules that RDKit ships: offline, 4 to 5 minutes after the install
	$(BIN)/distill-cache build --config configs/cache/mol.yaml --cache $(CACHE)
	$(BIN)/distill fit --config configs/demo.yaml --data.corpus $(CACHE)/mol
	$(BIN)/distill test --config configs/demo.yaml --data.corpus $(CACHE)/mol

cache: install ## run a group of teachers over a corpus: TEACHERS=mol CORPUS=file-or-folder ID=column CACHE=cache NAME=mol WEIGHTS=folder
	$(BIN)/distill-cache build --config configs/cache/$(TEACHERS).yaml --cache "$(CACHE)" $(if $(NAME),--name "$(NAME)") \
	  $(if $(CORPUS),--corpus cache_tools.corpora.$(READER) --corpus.path "$(CORPUS)") $(if $(ID),--corpus.id "$(ID)")

fit: install ## train a student: CONFIG=configs/mol.yaml
	$(BIN)/distill fit --config $(CONFIG)

probe: install ## probe the newest student on the tasks of its configuration
	$(BIN)/distill test

lint: install ## check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

type: install ## check types
	$(BIN)/mypy

docs: install ## write the documentation as a site to build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: install ## run the tutorials again and keep their outputs: docs/tutorials/NAME.py becomes NAME.ipynb
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[notebooks]' -c constraints.txt
	$(BIN)/python -m ipykernel install --sys-prefix --name python3
	rm -rf build/tutorials && mkdir -p build/tutorials
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupytext --to ipynb --execute --run-path "$(CURDIR)/build/tutorials" docs/tutorials/*.py

test: install ## check style, imports and types, and run the tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: install ## the tests that take minutes: Ray, ranks and nodes that are killed, every row of the benchmarks once
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m slow tests

test-oldest: ## run the tests with the oldest versions that pyproject.toml allows, in an environment of their own
	$(call environment,.venv-oldest,--resolution lowest-direct -e '.[mol$(COMMA)text$(COMMA)vision$(COMMA)mordred$(COMMA)onnx$(COMMA)parquet$(COMMA)hub$(COMMA)properties]')
	$(call environment,.venv-oldest,pytest pytest-timeout hypothesis build setuptools)
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest tests

wheel: ## build wheel and sdist into dist/, and try the wheel in an empty environment
	rm -rf dist .venv-wheel
	$(call environment,.venv-wheel,build)
	.venv-wheel/bin/python -m build
	$(call environment,.venv-wheel,"$$(echo dist/*.whl)[mol$(COMMA)text$(COMMA)vision]")
	cd dist && ../.venv-wheel/bin/distill students && ../.venv-wheel/bin/distill fit --config mol --print_config > /dev/null
	cd dist && ../.venv-wheel/bin/python -c 'import distill; print(distill.load_student("text-static").embed(["a cat"]))'

release: install ## put an export into the package, as a released student, and test it: STUDENT=folder
	rm -rf "distill/released/$(notdir $(STUDENT))" && mkdir -p distill/released && cp -r "$(STUDENT)" distill/released
	WRITE_RELEASED=true $(BIN)/pytest tests/distill/export/test_released.py

bench: install ## measure speed as ratios, side by side: WEIGHTS=folder DATA=folder for rows that need them; ROWS=pattern
	$(BIN)/python benchmarks/run.py

bench-peers: .venv-bench/.installed ## compare the cache with litdata, mosaicml-streaming and webdataset, in an environment of their own
	.venv-bench/bin/python benchmarks/peers.py

.venv-bench/.installed: pyproject.toml
	$(call environment,.venv-bench,-e '.[mol$(COMMA)bench]')
	@touch $@

clean: ## remove the environments and the files of tools; caches and runs stay
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
