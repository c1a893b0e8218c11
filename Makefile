# The project's verbs. `make run` and `make test` need nothing but Python 3.11 and make.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BREAKING := PATH="$(CURDIR)/$(BIN):$$PATH" .ci/breaking
# How much `make soak` asks, and for how long at most.
DECISIONS ?= 10000000
SECONDS ?= 7200
# How often it kills a server under load on each database after that.
KILLS ?= 500
# Of which language `make stubs` makes stubs, and where.
LANGUAGE ?=
INTO ?= stubs/$(LANGUAGE)

# Each process that a test starts would compile the server anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run demo example tools test soak bench check check-types check-style check-protos check-schema release-image format proto proto-drift lock clean

help: ## what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the environment, from the lock file

$(READY): pyproject.toml .ci/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name it with 'make PYTHON=…'" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## start the development server on SQLite under var/
	@$(BIN)/texture-auth serve --development

demo: setup ## play the whole story against a server of its own
	@$(BIN)/python -m tests.demo

example: setup ## run the example service of client/examples beside a server, and call it as its customers would
	@$(BIN)/python -m tests.example

tools: setup ## make grpcurl for the tests: by Go, where Go is
	@.ci/tools $(VENV)

test: tools ## every test, with coverage
	@rm -f .coverage .coverage.*
	$(BIN)/pytest -n auto --dist worksteal --cov --cov-report= tests
	$(BIN)/coverage report
	@echo "coverage of server/domain, which must be whole:"
	$(BIN)/coverage report --include='server/domain/*' --fail-under=100

soak: setup ## processes that are stopped, killed and cut off decide ten million times: DECISIONS=…, SECONDS=…, KILLS=…
	@$(BIN)/python -m tests.history.soak --decisions $(DECISIONS) --seconds $(SECONDS) --kills $(KILLS)

bench: setup ## measure, in ratios, and write bench/RESULTS.md; ROWS=unary,batch for some rows (bench/rows names them)
	@$(BIN)/python -m bench --rows "$(ROWS)"

check: setup ## every check that is not a test
	@$(MAKE) --no-print-directory --jobs=2 check-types check-style check-protos proto-drift check-schema

check-types: setup
	$(BIN)/mypy

check-style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/lint-imports

check-protos: setup
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	$(BREAKING) check protos

check-schema: setup
	$(BIN)/pytest tests/store/test_schema.py

release-image: setup ## keep the protos as a release has them, for the breaking check: VERSION=0.1.0
	@$(BREAKING) keep protos "$(VERSION)"

format: setup ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format --write

proto: setup ## regenerate the stubs from protos/: Python, and Go and TypeScript where they are
	@.ci/stubs commit

proto-drift: setup # the committed stubs are what the protos say
	@.ci/stubs drift

.PHONY: stubs languages

stubs: setup ## stubs of another language: LANGUAGE=java INTO=folder; cpp, csharp, go, kotlin, objc, php, python, ruby, typescript
	@.ci/stubs make "$(LANGUAGE)" "$(INTO)"

languages: setup ## services in Go, TypeScript and Java ask a server of their own, where these languages are
	@.ci/languages

lock: setup ## choose newer versions of every dependency
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-index-url --no-strip-extras \
		--python-version 3.11 --extra dev pyproject.toml -o .ci/requirements.lock

clean: ## remove the environment and the development server's state
	rm -rf $(VENV) .tools stubs var .coverage .coverage.* .hypothesis
