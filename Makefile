# make run    set everything up and analyze a real chest CT
# make test   set everything up, check and test
# make bench  seconds per stage on this machine
# make numbers  put the tables of Resources/results into README and model card

PYTHON ?= python3
SAMPLE ?= chest-nifti
OUTPUT ?= output

# What tests and benchmarks compare with. Without their dependencies: torchvision would want CUDA, OpenCV a screen.
PEERS := zennit==0.5.1 quantus==0.6.0

# The panel is tested in PySide6 and drawn by VTK, on a screen of its own (Xvfb); a bare Debian lacks these.
SCREEN := xvfb libgl1 libegl1 libxkbcommon0 libxkbcommon-x11-0 libdbus-1-3 libfontconfig1 libxcb-cursor0 \
	libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0

BIN := .venv/bin
READY := .venv/ready

.PHONY: run test check screen bench numbers clean
.DELETE_ON_ERROR:

run: $(READY)
	@mkdir -p $(OUTPUT)
	@scan="$$($(BIN)/covid-ct sample $(SAMPLE))" && \
	$(BIN)/covid-ct analyze "$$scan" --output $(OUTPUT)/$(SAMPLE) --picture $(OUTPUT)/$(SAMPLE).png
	@echo "Picture                 $(OUTPUT)/$(SAMPLE).png"

test: check screen
	$(BIN)/python -m pytest

screen: $(READY)
	@{ command -v Xvfb >/dev/null && $(BIN)/python -c 'import PySide6.QtWidgets' 2>/dev/null; } || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq $(SCREEN); } || \
	{ echo "System packages are missing: sudo apt-get install $(SCREEN)"; exit 1; }

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/covid-ct bench

numbers: $(READY)
	$(BIN)/python Resources/results/publish.py

clean:
	rm -rf .venv $(OUTPUT)

$(READY): pyproject.toml constraints.txt $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(PEERS)
	@touch $@

# Debian and Ubuntu keep venv in a package of its own; nothing else is needed from the system, as the wheels
# bring their libraries.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	{ echo "Python 3.10 to 3.13 is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq python3-venv libstdc++6; } || \
	{ echo "The system package python3-venv is missing: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
