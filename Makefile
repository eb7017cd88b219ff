# Conveyor Runtime. `make` alone lists the targets.

PYTHON ?= python3
# Twice the processors: most tests wait for processes of their own.
JOBS ?= $(shell echo $$((2 * $$(nproc))))
PYTEST_ARGS ?=
BENCH ?= *

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:

PY := .venv/bin/python
PIP_INSTALL := $(PY) -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt

# .venv/.ready says which folder it was made in and is newer than what it was made from. A .venv that was moved,
# whose interpreter is gone, or that another PYTHON is now asked for, is made again.
READY := $(shell $(PY) -c 'pass' 2>/dev/null && [ "$$(cat .venv/.ready 2>/dev/null)" = "$$PWD" ] && echo yes)
ifneq ($(READY),yes)
.PHONY: .venv/.ready
endif
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) -V 2>&1),$(shell $(PY) -V 2>&1))
OTHER_PYTHON := yes
.PHONY: .venv/.ready
endif
endif

.PHONY: help
help: ## list the targets
	@echo 'make demo is the product in one minute, make test the proof. All targets:'
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1 \2/p' Makefile | while read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done
	@echo
	@echo 'Variables: PYTHON=python3.12  PYTEST_ARGS="-k name -x"  JOBS=4 (test workers)  BENCH=name'
	@echo '           CONVEYOR_REQUIRE=docker (a missing Docker engine fails the tests instead of skipping some)'

.PHONY: setup
setup: .venv/.ready ## make .venv with the pinned dependencies; instant when nothing changed

.PHONY: demo
demo: .venv/.ready ## clone and build a real git repository through the four drivers, with live logs
	@exec .venv/bin/conveyor demo

.PHONY: test
test: .venv/.ready ## run the tests; installs what they need and starts a private Docker engine if none answers
	@exec $(PY) -m tests.support.environment $(PY) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

.PHONY: lint
lint: .venv/.ready ## ruff, its formatter, mypy --strict and the import layers; runs them all, fails if one does
	@failed=; \
	for check in 'ruff check .' 'ruff format --check .' mypy lint-imports; do \
		echo "lint: $$check"; .venv/bin/$$check || failed="$$failed '$$check'"; \
	done; \
	[ -z "$$failed" ] || { echo "lint: failed:$$failed" >&2; exit 1; }

.PHONY: chaos
chaos: .venv/.ready ## break real processes every second under load and check I1-I8 (CHAOS_SEED, CHAOS_SECONDS, CHAOS_REPLICAS)
	@exec $(PY) -m tests.chaos

.PHONY: bench
bench: .venv/.bench ## run the benchmarks in tests/benchmarks (BENCH=name picks one)
	@found=; failed=; \
	for file in tests/benchmarks/bench_$(BENCH).py; do \
		[ -e "$$file" ] || continue; \
		found=yes; name=$$(basename "$$file" .py); \
		echo "bench: $${name#bench_}"; \
		$(PY) -m "tests.benchmarks.$$name" || failed="$$failed $$name"; \
	done; \
	[ -n "$$found" ] || { echo 'bench: there is no tests/benchmarks/bench_$(BENCH).py' >&2; exit 1; }; \
	[ -z "$$failed" ] || { echo "bench: failed:$$failed" >&2; exit 1; }

# The benchmarks go on without the peers, and say so.
.venv/.bench: .venv/.ready
	@if $(PIP_INSTALL) --no-build-isolation -e '.[bench]'; then touch $@; \
	else echo 'bench: pip could not install the peers; they are left out' >&2; fi

.PHONY: constraints
constraints: ## write constraints.txt anew from the newest releases that pyproject.toml allows
	@$(check_python)
	@set -e; new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; trap 'exit 130' INT TERM; \
	echo 'constraints: installing the newest releases into a throw-away environment'; \
	$(PYTHON) -m venv "$$new/venv"; \
	install="$$new/venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet"; \
	$$install $(BUILD_TOOLS); \
	$$install --no-build-isolation -e '.[dev,bench]'; \
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  "$$new/venv/bin/python" -m pip freeze --exclude-editable | LC_ALL=C sort -f; } > "$$new/constraints.txt"; \
	if grep -n -e '://' -e ' @ ' "$$new/constraints.txt"; then \
		echo 'constraints: the lines above name a place; constraints.txt is left as it was' >&2; exit 1; fi; \
	cp "$$new/constraints.txt" constraints.txt; \
	echo "constraints: $$(grep -c == constraints.txt) packages pinned; now run make lint test"

.PHONY: clean
clean: ## remove .venv and every cache and build product
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -----------------------------------------------------------------------------------------------

# What pyproject.toml's build-system asks for, installed first so that pip need not fetch it unpinned for itself.
BUILD_TOOLS := hatchling editables

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "setup: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | head -n 1)." >&2; \
	for name in python3.14 python3.13 python3.12 python3.11; do \
		if $$name -c pass 2>/dev/null; then echo "setup: this works: make setup PYTHON=$$name" >&2; break; fi; \
	done; exit 1; }
endef

# Debian's python3 comes without ensurepip unless python3-venv is installed; its own pip can then fill the .venv.
define make_venv
if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv .venv; \
elif $(PYTHON) -m pip --version >/dev/null 2>&1 && $(PYTHON) -c 'import venv' 2>/dev/null; then \
	$(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(PY) --no-input install --quiet pip; \
else \
	echo "setup: '$(PYTHON)' has neither ensurepip nor pip (on Debian: apt-get install python3-venv)." >&2; exit 1; \
fi
endef

# .venv/.unfinished stands from before the first step of a making until after its last.
.venv/.ready: pyproject.toml constraints.txt
	@$(check_python)
	@if [ -e .venv/.unfinished ] || [ -n '$(OTHER_PYTHON)' ] || ! $(PY) -m pip --version >/dev/null 2>&1 \
		|| { [ -e .venv/.ready ] && [ "$$(cat .venv/.ready)" != "$$PWD" ]; }; then rm -rf .venv; fi
	@mkdir -p .venv && : > .venv/.unfinished
	@[ -x $(PY) ] || { echo "setup: making .venv with $$($(PYTHON) -V)"; $(make_venv); }
	@echo "setup: installing $$(grep -c == constraints.txt) pinned packages (a minute or two the first time)"
	@$(PIP_INSTALL) $(BUILD_TOOLS) && $(PIP_INSTALL) --no-build-isolation -e '.[dev]' || { \
		echo 'setup: pip could not install the dependencies: its reason is above. It needs a network or a local' >&2; \
		echo 'setup: package folder (PIP_FIND_LINKS), and room on the disk. Run make setup again afterwards.' >&2; \
		exit 1; }
	@printf '%s\n' "$$PWD" > .venv/.ready
	@rm .venv/.unfinished
	@echo 'setup: done'
