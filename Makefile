# Each target first sets up what it needs: a .venv with the versions of constraints.txt, made once.
#   make demo [SIZE=small|full]   the whole corridor on the example study
#   make test [TESTS=tests/jobs] [WORKERS=2]
#                                 the tests, by so many processes; those of data, MPI, Slurm, a compiler or a GPU
#                                 skip, with the reason, where there is none
#   make lint types bench clean
# PYTHON names the interpreter (3.11 or later) from which .venv is made.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,$(if $(shell \
	$(name) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(name))) python3)
SIZE ?= full
TESTS ?= tests
WORKERS ?= 2
STUDY_full := examples/alanine/demo.toml
STUDY_small := examples/alanine/demo-small.toml
READY := .venv/.ready

.PHONY: setup demo test lint types bench clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "making .venv: asked for Python 3.11 or later, found $$($(PYTHON) --version 2>&1 || true)." \
		     "Install one and say: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "making .venv: $(PYTHON) comes without venv. On Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[mpi,openmm,tensorboard,test]'
	@touch $@

demo: $(READY)
	@test -n "$(STUDY_$(SIZE))" || { echo "make demo: SIZE is small or full, found $(SIZE)" >&2; exit 2; }
	.venv/bin/hpc-cg run all $(STUDY_$(SIZE))

test: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --no-loadscope-reorder $(TESTS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(READY)
	.venv/bin/mypy

bench: $(READY)
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; .venv/bin/python "$$script"; done

clean:
	rm -rf .venv build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/slurm/run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
