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
ARCHIVES ?=
ARGS     ?=
# A folder as one word of the shell, whatever spaces and brackets are in it; ~/ stays outside the quotes, which would keep it.
folder    = $(if $(filter ~/%,$(firstword $(1))),~/"$(subst ^~/,,^$(1))","$(1)")

.PHONY: help setup demo demo-maps test test-slow lint format shards bench bench-gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with everything (about 6 GB: torch with CUDA; SYSTEM_TORCH=1 keeps the torch of PYTHON)

# With SYSTEM_TORCH=1 the packages of $(PYTHON) are seen from .venv, and its torch and torchvision are held as they are.
PIP    := $(PY) -m pip --disable-pip-version-check
HELD   := $(VENV)/constraints.txt
define SEE_SYSTEM_TORCH
import os, sys
from importlib.metadata import version
try:
    import torch, torchvision
except ImportError as error:
    sys.exit(f"SYSTEM_TORCH=1: {sys.executable} has no torch or torchvision ({error}); set PYTHON to one that has, or leave SYSTEM_TORCH out")
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"SYSTEM_TORCH=1: torch {torch.__version__} is older than 2.11; set PYTHON to a newer one's, or leave SYSTEM_TORCH out")
own, held = sys.argv[1:]
with open(f"{own}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/zz_system_torch.pth", "w") as file:
    file.write("\n".join(sorted({os.path.dirname(os.path.dirname(m.__file__)) for m in (torch, torchvision)})))
with open(held, "a") as file:
    file.write(f"torch=={version('torch')}\ntorchvision=={version('torchvision')}\n")
print(f"torch {torch.__version__} and torchvision {torchvision.__version__} of {sys.executable} are kept")
endef
export SEE_SYSTEM_TORCH

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("bevshards needs Python 3.11 or 3.12, this is %d.%d; set PYTHON=python3.11" % v)'
	@echo "$(VENV): $(if $(SYSTEM_TORCH),1 GB beside the torch of $(PYTHON); a minute or two,6 GB, most of it torch with CUDA; about five minutes. SYSTEM_TORCH=1 keeps the torch of $(PYTHON))"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
ifdef SYSTEM_TORCH
	@grep -vE '^(torch|torchvision|triton)==' constraints.txt > $(HELD)
	@$(PYTHON) -c "$$SEE_SYSTEM_TORCH" $(VENV) $(HELD)
else
	@cp constraints.txt $(HELD)
endif
	@echo "[1/3] build tools"
	@$(PIP) install -q -c $(HELD) setuptools wheel
	@echo "[2/3] packages"
	$(PIP) install -c $(HELD) --no-build-isolation -e '.[preprocess,dev]'
	@echo "[3/3] pillow-simd, compiled here"
	@$(PIP) install -q --no-deps --force-reinstall pillow-simd==12.1.1.post0 2>$(VENV)/pillow-simd.log \
	  || { echo "pillow-simd could not be built (log: $(VENV)/pillow-simd.log): Pillow is kept, resizing is slower"; \
	       $(PIP) install -q -c $(HELD) --force-reinstall --no-deps pillow; }
	@touch $@
	@echo "$(VENV): $$(du -sh $(VENV) | cut -f1). Next: make demo, or $(VENV)/bin/bevshards --help"

demo: $(STAMP)  ## generated world -> shards -> training -> evaluation -> demo.png (no data needed); goes on where it was stopped
	@$(PY) -m train.demo $(ARGS)

demo-maps: $(STAMP)  ## the same with five classes, three of them from the map
	@$(PY) -m train.demo --maps $(ARGS)

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

shards: $(STAMP)  ## nuScenes -> shards (VERSION DATAROOT or ARCHIVES OUT WORKERS IMAGE_SIZE SWEEPS)
	@$(PY) -m preprocess.run --version $(VERSION) --dataroot $(call folder,$(DATAROOT)) --out $(call folder,$(OUT)) --sweeps $(SWEEPS) \
	  $(if $(ARCHIVES),--archives '$(ARCHIVES)') $(if $(WORKERS),--workers $(WORKERS)) $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE)) $(ARGS)

bench: $(STAMP)  ## print the benchmarks' table (ratios within this run; about 9 minutes)
	$(PY) -m tests.bench $(ARGS)

bench-gpu: $(STAMP)  ## everything that only a CUDA device can tell, into bench-gpu/ (8 minutes)
	$(PY) -m tests.bench.gpu --out bench-gpu $(ARGS)

clean:  ## remove what make demo wrote (never your shards or checkpoints)
	rm -rf demo demo.png demo-quick demo-quick.png demo-maps demo-maps.png
