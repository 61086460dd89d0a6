# The commands of this project. Everything runs from a virtual environment in the checkout; nothing else is touched.
PYTHON ?= python3
VENV := .venv
# Called as modules: scripts with a shebang break in a path with spaces.
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-stamp
LOYALTY := $(PY) -m services.cli
PROTOS = $(shell find proto/loyalty proto/buf -name '*.proto')
WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help setup up proto proto-check lint test bench soak chaos demo clean lock

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(STAMP) ## set up, run the main job on embedded servers, print what came out
	@$(LOYALTY) demo

test: $(STAMP) ## set up, run the tests (WORKERS=4 in parallel: many wait)
	@$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

setup: $(STAMP) ## create .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

up: $(STAMP) ## run the whole house on this machine until Ctrl-C
	@$(LOYALTY) up

proto: $(STAMP) ## generate proto/gen from the protos
	@rm -rf proto/gen && mkdir -p proto/gen
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m grpc_tools.protoc -I proto --python_out=proto/gen --grpc_python_out=proto/gen \
		--mypy_out=proto/gen --mypy_grpc_out=async_only:proto/gen $(PROTOS:proto/%=%)
	@find proto/gen -name '*_pb2_grpc.py*' | while read -r f; do grep -q add_ "$$f" || rm "$$f"; done

proto-check: $(STAMP) ## lint the protos, compare with the released contract, check for drift
	@cd proto && ../$(VENV)/bin/buf lint && ../$(VENV)/bin/buf format -d --exit-code . && ../$(VENV)/bin/buf breaking --against released.binpb
	@$(MAKE) --no-print-directory proto && git diff --exit-code --stat -- proto/gen

lint: $(STAMP) ## ruff, mypy --strict, import contracts
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m mypy services tests
	@$(PY) -c 'from importlinter.cli import lint_imports_command as c; c()'

bench: $(STAMP) ## measure, as ratios in one run (QUICK=1: within five minutes)
	@$(PY) -m tests.bench $(if $(QUICK),--quick)

soak: $(STAMP) ## a steady load for MINUTES on FRONT, and what grew
	@$(PY) -m tests.bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FRONT),--front $(FRONT))

chaos: $(STAMP) ## kill and starve everything at random for MINUTES, each fault TIMES, with SEED, on FRONT
	@$(PY) -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(TIMES),--times $(TIMES)) $(if $(SEED),--seed $(SEED)) $(if $(FRONT),--front $(FRONT))

lock: ## renew both locks from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --all-extras pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --constraint requirements.lock pyproject.toml -o requirements-runtime.lock

clean: ## remove .venv and caches
	@rm -rf $(VENV) .loyalty .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
