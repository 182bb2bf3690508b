# Two commands do everything on a fresh machine: `make run` and `make test`.
# PYTHON picks another interpreter (3.11 to 3.13): make test PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The tests start some 2,000 processes: without bytecode each compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: mutants run check test full faults clusters bench bench-compare guest notebooks docs docs-tables package clean

run: .venv/installed-run
	$(BIN)/ivsim run doorbell_storm

# Lint, types, and the tests that start no process: for every save.
check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & $(BIN)/python -m pytest -n 2 tests/nodes tests/topologies tests/test_architecture.py; code=$$?; wait $$! && exit $$code

# Tests of real processes wait more than they compute: three at a time on two CPUs. While mypy keeps one CPU busy, the
# tests are collected, which compiles them: three processes at once would each do that anew.
test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --collect-only -qq >/dev/null & $(BIN)/mypy; code=$$?; wait; exit $$code
	$(BIN)/python -m pytest -n 3 --dist worksteal

# All of that with the full figures: every seed, every case, more examples of each property.
full: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal --full

# The fault matrix with its full figures, and the table of it: some forty minutes.
faults: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal --faults full -o faulthandler_timeout=0

# Sweeps on hosts that are network namespaces of this machine; as root: some ten minutes.
clusters: .venv/installed-test
	$(BIN)/python -m pytest --full -o faulthandler_timeout=0 tests/system/test_cluster_hosts.py

# Every mutant of tests/mutants, tried in parallel: none may survive without a reason.
mutants: .venv/installed-test
	$(BIN)/python -m tests.mutation

bench: .venv/installed-test
	$(BIN)/python -m tests.bench --keep runs/bench $(ARGS)

# The last two results of `make bench` side by side.
bench-compare: .venv/installed-test
	$(BIN)/python -m tests.bench.compare $(ARGS)

# Debian's kernel and an initramfs for `ivsim run linux_guest`, in build/guest/; installs nothing.
guest:
	$(PYTHON) examples/linux_guest/build.py

# Runs the notebooks anew and keeps their outputs.
notebooks: .venv/installed-test
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

# Takes the pictures of README and docs/ anew; needs Chromium, and a quiet host for figures worth showing.
pictures: .venv/installed-test
	$(BIN)/python -m docs.pictures

# The site of the documentation in build/site, to be read without a network. Needs npm, once, for two scripts.
docs: .venv/installed-run build/docs/mermaid.min.js build/docs/iframe-worker.js
	$(INSTALL) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

build/docs/mermaid.min.js:
	mkdir -p $(@D) && cd $(@D) && tar xzOf "$$(npm pack --silent mermaid@11.17.2)" package/dist/mermaid.min.js > part && mv part $(@F)

build/docs/iframe-worker.js:
	mkdir -p $(@D) && cd $(@D) && tar xzOf "$$(npm pack --silent iframe-worker@1.0.4)" package/shim/index.js > part && mv part $(@F)

# The wheel and the source distribution in dist/, checked, and installed in an empty environment that runs a topology.
package:
	rm -rf build/package dist
	$(PYTHON) -m venv build/package
	build/package/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/package/bin/python -m build --outdir dist .
	build/package/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear build/package
	build/package/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	build/package/bin/ivsim run ping_pong --quiet --runs build/package/runs --set run.duration_s=1

# Rewrites the generated blocks of README and docs/ from the declarations and the examples.
docs-tables: .venv/installed-test
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/installed-run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, {sys.executable} is {v.major}.{v.minor}; try make PYTHON=python3.13")'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

.venv/installed-test: .venv/installed-run
	$(INSTALL) --editable '.[notebook,dev]'
	@touch $@
