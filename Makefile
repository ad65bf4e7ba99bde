# Every target runs in .venv, which `make setup` creates once. PYTHON: the interpreter it is made from.
PYTHON   ?= python3
VENV     := .venv
PY       := $(VENV)/bin/python
STAMP    := $(VENV)/.bevshards-setup

VERSION  ?= v1.0-trainval
DATAROOT ?= data/nuscenes
OUT      ?= shards
SWEEPS   ?= 5
WORKERS  ?=
IMAGE_SIZE ?=
ARGS     ?=
# A folder as one word of the shell, whatever spaces and brackets are in it; ~/ stays outside the quotes, which would keep it.
folder    = $(if $(filter ~/%,$(firstword $(1))),~/"$(subst ^~/,,^$(1))","$(1)")

.PHONY: help setup demo test test-slow lint format shards bench bench-gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with everything (about 6 GB: torch with CUDA)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("bevshards needs Python 3.11 or 3.12, this is %d.%d; set PYTHON=python3.11" % v)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt setuptools wheel
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt --no-build-isolation -e '.[preprocess,dev]'
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps --force-reinstall pillow-simd==12.1.1.post0 2>$(VENV)/pillow-simd.log \
	  || { echo "pillow-simd could not be built (log: $(VENV)/pillow-simd.log): Pillow is kept, resizing is slower"; \
	       $(PY) -m pip install --disable-pip-version-check -q -c constraints.txt --force-reinstall --no-deps pillow; }
	@touch $@

demo: $(STAMP)  ## generated world -> shards -> training -> evaluation -> demo.png (no data needed)
	rm -rf demo
	$(PY) -m preprocess.synth --out demo/world --version v1.0-trainval --scenes 40 --samples 6 --sweeps 2
	$(PY) -m preprocess.run --version v1.0-trainval --dataroot demo/world --out demo/shards --sweeps 3 --train-shards 4 --val-shards 2
	$(PY) -m train.demo --shards demo/shards --out demo --picture demo.png $(ARGS)

test: $(STAMP)  ## run the tests on the CPU, two at a time; what was skipped, and why, comes last
	$(PY) -m pytest -n 2 -rs -m 'not slow' $(ARGS)

test-slow: $(STAMP)  ## run the longer proofs that make test leaves out
	$(PY) -m pytest -n 2 -rs -m slow $(ARGS)

lint: $(STAMP)  ## ruff: lint and format check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)  ## ruff: format and fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

shards: $(STAMP)  ## nuScenes -> shards (VERSION DATAROOT OUT WORKERS IMAGE_SIZE SWEEPS)
	@$(PY) -m preprocess.run --version $(VERSION) --dataroot $(call folder,$(DATAROOT)) --out $(call folder,$(OUT)) --sweeps $(SWEEPS) \
	  $(if $(WORKERS),--workers $(WORKERS)) $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE)) $(ARGS)

bench: $(STAMP)  ## print the benchmarks' table (ratios within this run; about 9 minutes)
	$(PY) -m tests.bench $(ARGS)

bench-gpu: $(STAMP)  ## everything that only a CUDA device can tell, into bench-gpu/ (8 minutes)
	$(PY) -m tests.bench.gpu --out bench-gpu $(ARGS)

clean:  ## remove what make demo wrote (never your shards or checkpoints)
	rm -rf demo demo.png
