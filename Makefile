# `make` lists what can be done. Everything runs in .venv, which `make setup` builds.

STAMP  := .venv/.stamp
BIN    := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

# PYTHON=... asks for one interpreter: build again if .venv has another.
ifneq ($(PYTHON),)
ifneq ($(PYTHON),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif
endif

.PHONY: help setup demo fleet-demo test check matrix bench man lock dist clean
.NOTPARALLEL:

help: ## list these targets
	@echo "usage: make TARGET [PYTHON=python3.x]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile

setup: $(STAMP) ## build .venv with the project and its tools (quick when it is current)
	@:

$(STAMP): pyproject.toml
	@sh scripts/setup.sh venv

demo: ## a guided tour on a throw-away blockstore
	@sh scripts/setup.sh demo
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python scripts/demo.py

fleet-demo: ## ten machines on three simulated hosts, by playbooks (as root)
	@sh scripts/setup.sh fleet
	@$(MAKE) --no-print-directory setup
	@sh scripts/setup.sh wheels
	@sh scripts/setup.sh sshd
	@$(BIN)/python scripts/fleet_demo.py

define lint
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/mypy
endef

check: setup ## lint, types and the quick tests
	$(lint)
	HYPOTHESIS_PROFILE=fast $(PYTEST) -m "not slow and not long"

test: ## lint, types and every test (PARALLAX_LONG=1 adds the long ones)
	@sh scripts/setup.sh test
	@$(MAKE) --no-print-directory setup
	@sh scripts/setup.sh wheels
	@sh scripts/setup.sh sshd
	@sh scripts/setup.sh sanity
	$(lint)
	HYPOTHESIS_PROFILE=ci $(PYTEST)

matrix: setup ## the tests of the Ansible collection, with other versions of Ansible and Python
	@sh scripts/setup.sh test
	@sh scripts/matrix.sh

bench: ## this project beside its peers, one run, one table
	@sh scripts/setup.sh test
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python benchmarks/bench.py

man: setup ## write docs/man again, from the help of the commands
	@$(BIN)/python scripts/manpages.py

lock: setup ## write requirements.lock again, with the newest releases that may be
	@sh scripts/lock.sh

dist: setup ## build wheel, sdist and collection of the commit into dist/, the same bytes each time
	@$(BIN)/python scripts/dist.py

clean: ## remove .venv, caches and everything built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
