# Every target sets up what it needs. On a fresh machine: make demo, make test.
#
#   make extract CORPUS=iemocap ROOT=/corpora/IEMOCAP CACHE=/cache/iemocap PRESET=full
#   make train-heads CORPUS=iemocap ROOT=/corpora/IEMOCAP CACHE=/cache/iemocap PRESET=full
#   make train-heads HEAD=mean_pool STREAM=ge2e_states

PYTHON ?= python3
EXTRAS ?= demo,minilm,egemaps,dev
CORPUS ?= demo
ROOT ?= data/$(CORPUS)
CACHE ?= cache/$(CORPUS)
RUNS ?= runs/$(CORPUS)
PRESET ?= demo
HEAD ?=
STREAM ?=
ARGS ?=

# The protocol each corpus is judged by, unless FOLDS says otherwise.
FOLDS_emodb := speaker
FOLDS_ravdess := speaker
FOLDS_crema_d := speaker
FOLDS_meld := split
FOLDS_emobox := column:fold
FOLDS ?= $(or $(FOLDS_$(CORPUS)),session)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MANIFEST := $(CACHE)/manifest.jsonl

.PHONY: help install demo extract train-heads report test test-heavy lint types bench

help:
	@sed -n 's/^# \{0,1\}//p' $(MAKEFILE_LIST) | head -6
	@echo "Targets: install demo extract train-heads report test test-heavy lint types bench"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("featcache needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' && command -v cc >/dev/null \
		|| { echo "resemblyzer needs webrtcvad, which is compiled here: on Debian, apt-get install gcc python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

# The manifest is read anew each time: it is cheap, and the corpus may have changed.
extract: $(STAMP)
	$(BIN)/featcache corpus $(CORPUS) $(ROOT) --out $(MANIFEST)
	$(BIN)/featcache extract $(MANIFEST) --cache $(CACHE) --preset $(PRESET) $(ARGS)

train-heads: $(STAMP)
	@test -f $(MANIFEST) || { echo "There is no $(MANIFEST). First: make extract CORPUS=$(CORPUS) ROOT=$(ROOT) CACHE=$(CACHE)" >&2; exit 1; }
	$(BIN)/featcache train-heads $(MANIFEST) --cache $(CACHE) --preset $(PRESET) --folds $(FOLDS) \
		$(if $(HEAD),--head $(HEAD) --out $(RUNS)/$(HEAD),--out $(RUNS)) $(if $(STREAM),--stream $(STREAM)) $(ARGS)

report: $(STAMP)
	$(BIN)/featcache report $(sort $(dir $(wildcard $(RUNS)/*/scores.csv))) --out $(RUNS)/report.html --title "$(CORPUS)"

demo:
	$(MAKE) extract CORPUS=demo PRESET=demo
	$(MAKE) train-heads CORPUS=demo PRESET=demo
	@echo "Late fusion of speech and text, 0.6 to 1"
	$(BIN)/featcache fuse runs/demo/speech runs/demo/text --weights 0.6,1.0 --out runs/demo/fused --overwrite
	$(MAKE) report CORPUS=demo
	@echo "Open runs/demo/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

test-heavy: $(STAMP)
	$(BIN)/python -m pytest -m heavy

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks
