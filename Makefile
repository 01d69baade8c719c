# Every command of the project. `make help` lists them. Needs python3 (3.11 to 3.13), make and a package index; no root.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := $(wildcard libs/*) $(wildcard services/*) clients/python deploy/local
MANIFESTS := $(addsuffix /pyproject.toml,$(PACKAGES))
# One more than the cores, at most 8: a test waits for processes half of its time.
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
BASE ?= $(shell git rev-parse --quiet --verify origin/main 2>/dev/null || echo HEAD)

.PHONY: help venv demo up test check lint format type imports protos gen models models-check efficientnet centerface deepbrain ppocr k8s bench role-matrix chaos api-fuzz fuzz-dicom deidentify-check dicom-report samples requirements docs clean

help: ## Show this list.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

venv: .venv/ready ## Make the virtual environment with everything pinned (the other targets do it by themselves).

.venv/ready: requirements/bootstrap.txt requirements/dev.txt services/dicom-worker/weights.txt $(MANIFESTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Fluoro needs Python 3.11 to 3.13; this is " + sys.version.split()[0] + ". Set PYTHON=…")'
	@echo "Making .venv …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/bootstrap.txt
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(foreach package,$(PACKAGES),-e $(package))
	@$(BIN)/python services/dicom-worker/weights.py
	@touch $@

# The model of mr-brain-mask does not ship, so it is made for the demonstration.
demo: export FLUORO_ML_MODELS_FOLDER ?= $(if $(filter mr-brain-mask,$(PIPELINE)),$(CURDIR)/.data/models)
demo: venv ## Run a CT and an MR through everything and write out/demo/ (INPUT=your DICOM file or folder, PIPELINE=imaging-report).
	@$(if $(filter mr-brain-mask,$(PIPELINE)),test -d .data/models/deepbrain || $(MAKE) --no-print-directory deepbrain FOLDER=.data/models)
	@$(BIN)/python -m fluoro_local demo $(if $(INPUT),--input "$(INPUT)") $(if $(PIPELINE),--pipeline "$(PIPELINE)")

up: venv ## Run Fluoro on this machine until Ctrl-C; prints the endpoint and what to try.
	@$(BIN)/python -m fluoro_local up

# A file of tests stays in one process, for its fixtures. Whole Fluoros come first and pure logic last (testpaths), so no process
# is left alone with a long file at the end.
test: venv check ## Run every check and every test (TEST_PROCESSES=3 at a time, each with servers of its own).
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: venv ## Run what needs no server: style, types, import rules, API rules.
	@$(MAKE) --no-print-directory -j $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) lint type imports protos

imports: venv
	@$(BIN)/lint-imports --no-cache

protos: venv
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against '.git#ref=$(BASE)'

lint: venv ## Check style.
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

format: venv ## Mend style where a machine can.
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

type: venv ## Check types of what we ship, the benchmarks, the examples, the chaos rig and the fuzzer.
	@$(BIN)/mypy $(addprefix -p ,$(filter-out buf fluoro open_inference,$(notdir $(patsubst %/py.typed,%,$(wildcard */*/src/*/py.typed)))))
	@$(BIN)/mypy benchmarks tests/chaos tests/fuzz/api.py tests/fuzz/dicom.py clients/python/examples

gen: venv ## Generate the Python code of protos/ anew.
	@$(BIN)/python libs/protos/generate.py

models: venv ## Build the ONNX models anew.
	@for build in services/ml-worker/src/ml_worker/models/*/*/build.py; do $(BIN)/python $$build || exit 1; done

models-check: venv ## Measure the reference models on held-out pictures, and hold their cards against it.
	@$(BIN)/python services/ml-worker/models_check.py

efficientnet: venv ## Make a model that gives photographs as vectors, of public weights (FOLDER=models).
	@$(BIN)/python services/ml-worker/efficientnet_lite0.py "$(or $(FOLDER),models)"

centerface: venv ## Make a model that finds faces and their eyes, of public weights (FOLDER=models).
	@$(BIN)/python services/ml-worker/centerface.py "$(or $(FOLDER),models)"

deepbrain: venv ## Make a model that finds the brain in MR of a head, of public weights (FOLDER=models).
	@$(BIN)/python services/ml-worker/deepbrain.py "$(or $(FOLDER),models)"

ppocr: venv ## Make a model that finds lines of text, of public weights (FOLDER=models).
	@$(BIN)/python services/ml-worker/ppocr.py "$(or $(FOLDER),models)"

k8s: venv ## Build the Kubernetes overlay and validate it strictly.
	@for overlay in deploy/k8s/overlays/*; do $(BIN)/python deploy/k8s/build.py $$overlay | $(BIN)/python deploy/k8s/validate.py || exit 1; done

bench: venv ## Measure against a peer in the same run (NAME=accept; without it, it lists all names).
	@test -f benchmarks/$(NAME).py || { echo "NAME must be one of: $$(cd benchmarks && ls [a-z]*.py | sed 's/\.py//' | xargs)"; exit 2; }
	@$(BIN)/python benchmarks/$(NAME).py

role-matrix: venv ## Call everything in every role, on one's own and others' things, and print what came of it.
	@$(BIN)/pytest -q -s tests/integration/test_gateway_roles.py -k every_call_asks

chaos: venv ## Hurt a whole Fluoro in seeded rounds, audit it after each, compare with stock Celery (ROUNDS=20 SEED=7).
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python tests/chaos/run.py --rounds $(or $(ROUNDS),20) --seed $(or $(SEED),7)

api-fuzz: venv ## Send generated calls to every method of a real gateway (N=50000 SEED=7).
	@$(BIN)/python tests/fuzz/api.py --calls $(or $(N),50000) --seed $(or $(SEED),7)

deidentify-check: venv ## De-identify seeded files with identifiers planted everywhere, and look for them (N=500 FRAMES=220 SEED=7).
	@FLUORO_CHECK_FILES=$(or $(N),500) FLUORO_CHECK_FRAMES=$(or $(FRAMES),220) FLUORO_CHECK_FILM=100 FLUORO_CHECK_SEED=$(or $(SEED),7) $(BIN)/pytest -q -s --timeout 3600 services/dicom-worker/tests/test_deidentify_check.py services/dicom-worker/tests/test_deidentify_pixels_check.py services/dicom-worker/tests/test_deidentify_film_check.py

dicom-report: venv ## Say of each file of pydicom's whether it comes out right, and by whose opinion.
	@$(BIN)/python -m dicom_worker.public_files

samples: venv ## Write one of every export into out/samples, with an index.html.
	@$(BIN)/python services/export-worker/samples.py

fuzz-dicom: venv ## Send damaged DICOM files through every operation, and a real worker (N=10000 SEED=7).
	@$(BIN)/python -W ignore tests/fuzz/dicom.py --files $(or $(N),10000) --seed $(or $(SEED),7)

requirements: venv ## Compile the pinned requirement files anew.
	@UV=$(BIN)/uv requirements/compile.sh

docs: venv ## Write the reference of the API and the tables in docs/ anew.
	@$(BIN)/python docs/tables.py
	@$(BIN)/python docs/api.py

clean: ## Remove the virtual environment, caches, local data and outputs.
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .data out
