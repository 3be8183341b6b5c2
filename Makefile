# make          the environments in which everything here runs
# make demo     a job is killed in the middle, comes back, and ends with the same answer
# make test     all tests; as root, all of them a second time as a plain user
# make soak     every MPI and job is killed and resumed, 20 times each; takes hours
# make bench    how long checkpoints and restarts take, as ratios to limits; wants a quiet machine, takes ten minutes
# make lint     ruff and mypy
# make docs     docs/kinds.md, made from the code
# make clean    away with all that was made
#
# make test ARGS="-k heat -x" passes arguments on to pytest.

# A Python of one user's (pyenv) is of no use to another, so the system's goes first, where it can make
# environments; Debian's can't without the package python3-venv.
FIT := -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON := $(shell /usr/bin/python3 $(FIT) && echo /usr/bin/python3 || echo python3)

VENV := .venv
# Two MPIs can't share an environment; crhpc's agents have MPICH, jobs have either. Debian's MPICH, where it is
# installed, is found by mpi4py under the name that MPICH's own builds have.
VENV_OPENMPI := .venv-openmpi
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: all demo test soak lint docs clean venvs
all: venvs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) -e '.[mpi]'
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	$(VENV)/bin/python $(PIP) -e '.[mpi,test]'
	@touch $@

$(VENV_OPENMPI)/.installed:
	$(PYTHON) -m venv $(VENV_OPENMPI)
	$(VENV_OPENMPI)/bin/python $(PIP) 'openmpi>=5' mpi4py numpy
	mkdir -p $(VENV_OPENMPI)/mpich-abi
	ln -sf /usr/lib/$(shell uname -m)-linux-gnu/libmpich.so.12 $(VENV_OPENMPI)/mpich-abi/libmpi.so.12
	@touch $@

venvs: $(VENV)/.installed-tests $(VENV_OPENMPI)/.installed

demo: $(VENV)/.installed
	$(VENV)/bin/python jobs/demo.py

test: venvs
	$(VENV)/bin/python tests/run.py $(ARGS)

soak: venvs
	$(VENV)/bin/python jobs/soak.py $(ARGS)

bench: $(VENV)/.installed
	for name in checkpoint restart freeze wholejobs idle; do \
	    echo "== $$name"; PYTHONPATH=. $(VENV)/bin/python jobs/bench/$$name.py || exit 1; done

lint: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

docs: $(VENV)/.installed
	$(VENV)/bin/python -m crhpc.kinds > docs/kinds.md.new
	mv docs/kinds.md.new docs/kinds.md

clean:
	rm -rf $(VENV) $(VENV_OPENMPI) demo-run build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
