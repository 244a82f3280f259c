# The tasks of this repository. On a new machine git, make and Python are enough; everything goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test faults chaos fuzz lint check venv bench-load constraints clean docs coverage test-pythons pictures picture-report hashes
.PHONY: tried schedule venv-airflow test-airflow run-dataflow metadata template template-classic run-flink test-runners
.PHONY: bench-throughput bench-shapes bench-images bench-examples bench-startup bench-memory bench-gil bench-guard bench-scale bench-edges bench-tail bench-gpu bench-forecast bench-smoke bench-peers
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Only what is typed after `make` counts: a variable MODEL in the environment is nobody's wish.
GIVEN := $(strip $(foreach name,MODEL INPUT OUTPUT,$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
MISSING := $(filter-out $(GIVEN),MODEL INPUT OUTPUT)
quoted = '$(subst ','\'',$($(1)))'

ifeq ($(GIVEN),)
run: venv ## the demo; with MODEL=… INPUT=… OUTPUT=… [ARGS=…], the same on your own model and data
	@$(BIN)/python -m headrace.pipeline.demo $(ARGS)
else ifeq ($(MISSING),)
run: venv
	$(BIN)/headrace --model=$(call quoted,MODEL) --input=$(call quoted,INPUT) --output=$(call quoted,OUTPUT) $(ARGS)
else
run:
	@echo "make run has $(GIVEN:%=%=…) but lacks $(MISSING:%=%=…). Give MODEL, INPUT and OUTPUT, or none for the demo." >&2; exit 2
endif

# As for `make run`; ARGS may hold any further flag of headrace or Beam.
DATAFLOW := PROJECT REGION MODEL INPUT OUTPUT
typed = $(strip $(foreach name,$(1),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
lacking = $(filter-out $(call typed,$(1)),$(1))

ifeq ($(call lacking,$(DATAFLOW)),)
run-dataflow: venv ## on Dataflow: PROJECT=… REGION=… MODEL=… INPUT=… OUTPUT=… [ARGS=…]
	$(BIN)/headrace --runner=DataflowRunner --project=$(call quoted,PROJECT) --region=$(call quoted,REGION) \
	  --model=$(call quoted,MODEL) --input=$(call quoted,INPUT) --output=$(call quoted,OUTPUT) $(ARGS)
else
run-dataflow:
	@echo "make run-dataflow lacks $(patsubst %,%=…,$(call lacking,$(DATAFLOW))). docs/dataflow.md has an example." >&2; exit 2
endif

METADATA := templates/flex/metadata.json templates/classic/metadata.json

metadata: venv ## the templates' parameters, made again from the flags: after a change to a flag or its help
	$(BIN)/python -m headrace.pipeline.flags.template_parameters metadata > templates/flex/metadata.json
	$(BIN)/python -m headrace.pipeline.flags.template_parameters classic > templates/classic/metadata.json
	@git diff --stat -- $(METADATA)

tried: venv ## the table of the models that the tests load, in docs/models.md: after a change to the tests' models
	$(BIN)/python -m tests.support.tried_models --write
	@git diff --stat -- docs/models.md

TEMPLATE := BUCKET IMAGE

ifeq ($(call lacking,$(TEMPLATE)),)
template: venv ## the flex template's image and spec: BUCKET=… IMAGE=LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG [GPU=1]
	@mkdir -p build/flex
	$(BIN)/python -m headrace.pipeline.flags.template_parameters spec $(call quoted,IMAGE) > build/flex/headrace.json
	docker build --file=templates/flex/Dockerfile --build-arg=IMAGE=$(call quoted,IMAGE) $(if $(GPU),--build-arg=EXTRAS=gpu) --tag=$(call quoted,IMAGE) .
	docker push $(call quoted,IMAGE)
	gcloud storage cp build/flex/headrace.json gs://$(call quoted,BUCKET)/templates/headrace.json
else
template:
	@echo "make template lacks $(patsubst %,%=…,$(call lacking,$(TEMPLATE))). templates/flex/README.md has an example." >&2; exit 2
endif

CLASSIC := BUCKET PROJECT REGION

ifeq ($(call lacking,$(CLASSIC)),)
template-classic: venv ## the classic template, staged without data: BUCKET=… PROJECT=… REGION=… [ARGS=…]
	$(BIN)/python -m headrace.pipeline.commands.stage_template --project=$(call quoted,PROJECT) --region=$(call quoted,REGION) \
	  --temp_location=gs://$(call quoted,BUCKET)/tmp --template_location=gs://$(call quoted,BUCKET)/templates/headrace-classic $(ARGS)
	gcloud storage cp templates/classic/metadata.json gs://$(call quoted,BUCKET)/templates/headrace-classic_metadata
else
template-classic:
	@echo "make template-classic lacks $(patsubst %,%=…,$(call lacking,$(CLASSIC))). templates/classic/README.md has an example." >&2; exit 2
endif

# What the tests of a file share is made once, in one process. Two processes leave a sixth of two cores idle.
AT_ONCE := -n 3 --dist=loadfile --no-loadscope-reorder

test: venv ## every test; PYTEST_ARGS=… for some of them
	$(BIN)/python -m pytest $(AT_ONCE) $(PYTEST_ARGS)

coverage: venv ## every test, and how much of the code they run; [PYTEST_ARGS=…]; a page of it in build/coverage/html
	@mkdir -p build/coverage
	$(BIN)/python -m pytest $(AT_ONCE) --cov --cov-report=term --cov-report=html:build/coverage/html $(PYTEST_ARGS)

PYTHONS ?= python3.11 python3.12 python3.13
TENSORFLOWS ?= newest
FAST := tests/layout/test_imports.py $(wildcard tests/transforms/columns/test_*.py tests/transforms/storage/test_*.py) \
  tests/transforms/models/keras_model/test_keras_archive.py tests/transforms/shards/test_shard.py tests/transforms/beam/test_plan.py tests/jobs/test_job.py
# What loads models, and what breaks where private names of TensorFlow and Keras are gone.
LOADING := tests/transforms/models/saved_model $(wildcard tests/transforms/models/test_tflite*.py) tests/transforms/models/test_operations.py \
  tests/transforms/models/streaming/test_dlpack.py tests/transforms/models/keras_model/test_keras_zoo.py tests/transforms/models/keras_model/test_keras_private.py \
  tests/transforms/models/keras_model/test_keras_legacy.py tests/transforms/models/keras_model/test_orbax_checkpoint.py tests/transforms/models/keras_model/test_hub_preset.py

# An older TensorFlow takes the place of the one that constraints.txt names, with the packages that go with it.
with = $$environment/bin/python -m uv pip install --quiet --python=$$environment/bin/python \
  "tensorflow==$$tensorflow.*" "tf-keras==$$tensorflow.*" "tensorflow-text==$$tensorflow.*"

test-pythons: ## the fast tests, and those that load models, on each of PYTHONS that is here with each of TENSORFLOWS (newest 2.20); [PYTEST_ARGS=…]; minutes and 3 GB for each, removed again
	@failed=; for python in $(PYTHONS); do for tensorflow in $(TENSORFLOWS); do \
	  command -v $$python >/dev/null || { echo "There is no $$python here: not tried."; continue; }; \
	  version=$$($$python -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'); environment=build/pythons/$$version-$$tensorflow; \
	  echo "Python $$version, TensorFlow $$tensorflow:"; \
	  $(MAKE) --no-print-directory venv PYTHON=$$python VENV=$$environment \
	    && { test $$tensorflow = newest || $(with); } \
	    && $(MAKE) --no-print-directory test PYTHON=$$python VENV=$$environment PYTEST_ARGS='$(or $(PYTEST_ARGS),$(FAST) $(LOADING))' \
	    || failed="$$failed $$version-$$tensorflow"; \
	  rm -rf $$environment; \
	done; done; test -z "$$failed" || { echo "Failed on Python$$failed." >&2; exit 1; }

test-runners: venv ## the demo on the Direct runner, on two machines apart, Prism, Flink and Dask, as a table; fetches what they need
	@$(BIN)/python -m tests.support.runners $(RUNNERS)

run-flink: venv ## the demo on a Flink of its own: a JobManager, two TaskManagers; [JOB_SERVER=the jar of Beam's job server]
	@$(if $(JOB_SERVER),JOB_SERVER=$(call quoted,JOB_SERVER)) $(BIN)/python -m tests.support.runners flink

faults: venv ## 1,000 loads of small models under random faults; LOADS=… SEED=…
	HEADRACE_FAULT_LOADS=$(or $(LOADS),1000) HEADRACE_FAULT_SEED=$(or $(SEED),1) $(BIN)/python -m pytest tests/transforms/models/test_load_faults.py -s -k each_load

fuzz: venv ## every parser on mutated files, MINUTES=10 of CPU time each; [TARGETS="hdf5 archive …"]
	$(BIN)/python -m tests.support.fuzzing --minutes=$(or $(MINUTES),10) $(TARGETS)

FAULTED := tests/jobs/test_chaos.py tests/transforms/models/test_load_faults.py tests/jobs/test_disk_full.py tests/pipeline/checks/test_verify.py

chaos: venv ## jobs killed, doubled and fed with faults, held against undisturbed ones; RUNS=… SEED=…; rewrites docs/faults.md
	rm -f docs/faults.md
	HEADRACE_CHAOS_RUNS=$(or $(RUNS),20) HEADRACE_CHAOS_SEED=$(or $(SEED),1) HEADRACE_CHAOS_TABLE=docs/faults.md \
	  HEADRACE_FAULT_LOADS=$$((5 * $(or $(RUNS),20))) $(BIN)/python -m pytest -n 2 $(FAULTED)

picture-report: venv ## docs/report-light.png and -dark.png, of a real run; needs chromium and chromium-driver
	$(BIN)/python -m tests.support.report_picture docs

pictures: venv ## docs/terminal.svg anew: a real job on a terminal
	$(BIN)/python -m tests.support.pictures docs/terminal.svg

lint: venv ## format, lint, plain words and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tests.support.plain_words
	$(BIN)/mypy

check: lint ## the same, and who imports whom, and the documents' examples
	$(BIN)/python -m pytest tests/layout/test_imports.py tests/docs/test_readme.py tests/docs/test_documents.py

docs: venv ## the documents as a site, with no warning, into build/site
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet --conf-dir=docs --doctree-dir=build/doctrees . build/site
	@echo "The site is build/site/index.html."

PEERS ?= .venv-peers
IN_WORK = $(if $(WORK),--work=$(call quoted,WORK))
BENCHES := throughput shapes images examples startup memory gil guard scale edges tail gpu forecast against

bench-throughput: venv ## rows per second beside six peers; [WORK=folder] [RUNS=5] [ARGS=--svg=FILE]; half an hour
	-@$(MAKE) --no-print-directory bench-peers
	$(BIN)/python -m benchmarks.throughput $(IN_WORK) --runs=$(or $(RUNS),5) --peers_python=$(PEERS)/bin/python $(ARGS)

bench-shapes: venv ## tables of five shapes beside Spark, Ray and the model alone; [WORK=folder] [RUNS=3] [ARGS=--only wide]; an hour
	-@$(MAKE) --no-print-directory bench-peers
	$(BIN)/python -m benchmarks.shapes $(IN_WORK) --runs=$(or $(RUNS),3) --peers_python=$(PEERS)/bin/python $(ARGS)

bench-images: venv ## images per second through ResNet50, beside a bare loop; [WORK=folder] [RUNS=3]
	$(BIN)/python -m benchmarks.images $(IN_WORK) --runs=$(or $(RUNS),3) $(ARGS)

bench-examples: venv ## rows per CPU second that become tf.train.Example, beside a function row by row; [RUNS=9]
	$(BIN)/python -m benchmarks.examples --runs=$(or $(RUNS),9) $(ARGS)

bench-startup: venv ## seconds of a job of 1,000 rows, beside the imports and the model alone; [RUNS=7]
	$(BIN)/python -m benchmarks.startup $(IN_WORK) --runs=$(or $(RUNS),7) $(ARGS)

bench-memory: venv ## peak memory for shards of 10^5 and 10^7 rows; [WORK=folder] [RUNS=3]
	$(BIN)/python -m benchmarks.memory $(IN_WORK) --runs=$(or $(RUNS),3) $(ARGS)

bench-gil: venv $(VENV)/.bench ## how often a running job holds the interpreter's lock; [WORK=folder] [RUNS=3]
	$(BIN)/python -m benchmarks.gil $(IN_WORK) --runs=$(or $(RUNS),3) $(ARGS)

bench-guard: venv ## CPU of reading checked Parquet, beside pyarrow; [WORK=folder] [RUNS=9]
	$(BIN)/python -m benchmarks.guard $(IN_WORK) --runs=$(or $(RUNS),9) $(ARGS)

bench-scale: venv ## planning at 10^6 files, memory and files per second; [RUNS=1]; half an hour
	$(BIN)/python -m benchmarks.scale $(IN_WORK) --runs=$(or $(RUNS),1) $(ARGS)

bench-against: venv ## this checkout beside an earlier one, REV=…: start-up, rows, loading; [WORK=folder] [RUNS=7]; ten minutes
	$(BIN)/python -m benchmarks.against $(IN_WORK) --runs=$(or $(RUNS),7) $(ARGS) $(or $(REV),HEAD)

bench-edges: venv ## all but predicting at 10^6 shards of 50 columns, seconds and memory; [RUNS=1] [ARGS=--only parts]; half an hour
	$(BIN)/python -m benchmarks.edges $(IN_WORK) --runs=$(or $(RUNS),1) $(ARGS)

bench-tail: venv ## simulation: how much longer a job takes when one worker is five times slower; [ARGS=--cores 2 16]
	$(BIN)/python -m benchmarks.tail $(ARGS)

bench-forecast: venv ## how far the forecasts of plan --trial are off, for five jobs; [WORK=folder] [ARGS=--kinds small strings]
	$(BIN)/python -m benchmarks.forecast $(IN_WORK) --runs=$(or $(RUNS),1) $(ARGS)

bench-gpu: venv $(VENV)/.gpu ## on a GPU, beside the native model: loading, a job, too little memory; [WORK=folder] [RUNS=3]
	$(BIN)/python -m benchmarks.gpu $(IN_WORK) --runs=$(or $(RUNS),3) $(ARGS)

bench-smoke: venv $(VENV)/.bench ## that the benches run, on little work, two at a time; without Spark and Ray
	@$(MAKE) --no-print-directory -j2 $(BENCHES:%=smoke-%)

smoke-%: venv
	$(BIN)/python -m benchmarks.$* --quick

bench-peers: $(PEERS)/.installed ## the environment of Spark and Ray, which bench-throughput asks for

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@$(python_fits)
	@echo "Installing Spark and Ray into $(PEERS), once: this takes some minutes."
	@test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	@$(call install,$(PEERS),--requirement=benchmarks/peers/requirements.txt)
	@touch $@

$(VENV)/.bench: $(INSTALLED)
	@$(call install,$(VENV),--constraint=constraints.txt --editable '.[bench]')
	@touch $@

$(VENV)/.gpu: $(INSTALLED)
	@$(call install,$(VENV),--constraint=constraints.txt --editable '.[gpu]')
	@touch $@

bench-load: venv ## time, memory and bytes to a ready model, beside copying it first; [WORK=folder] [RUNS=3] [ARGS=--quick]
	$(BIN)/python -m benchmarks.load $(if $(WORK),--work=$(call quoted,WORK)) --runs=$(or $(RUNS),3) $(ARGS)

venv: $(INSTALLED) ## the environment that all the others use

# uv takes seconds for what takes pip minutes. It does not read pip's configuration, so that where it fails, pip may do.
install = $(1)/bin/python -m pip install --quiet 'uv>=0.9' && $(1)/bin/python -m uv pip install --quiet --python=$(1)/bin/python $(2) \
  || $(1)/bin/python -m pip install --quiet $(2)

# uv leaves compiling to whoever imports first, which may keep nothing (PYTHONDONTWRITEBYTECODE): each of the tests' many processes
# would compile them again. A file that Python cannot compile stays as it is.
HEAVY := tensorflow keras apache_beam

# Installed anew only when what is asked for has changed.
$(INSTALLED): setup.py constraints.txt
	@$(python_fits)
	@echo "Installing into $(VENV), once: this takes a minute or two."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(call install,$(VENV),--constraint=constraints.txt --editable '.[dev]')
	@$(BIN)/python -m compileall -qq -j 2 $(HEAVY:%=$(BIN)/../lib/python*/site-packages/%) || true
	@touch $@

define python_fits
command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=…" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	echo "$$($(PYTHON) --version 2>&1) does not fit: TensorFlow has wheels for 3.10 to 3.13, and headrace needs 3.11 or newer." >&2; \
	echo "Install Python 3.11, 3.12 or 3.13 and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) cannot make environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

# Made from a clean install of the newest that setup.py allows: no paths, no URLs.
constraints: ## constraints.txt anew, from the newest versions that setup.py allows
	@$(python_fits)
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet '.[dev]'
	{ echo "# The tested versions, from a clean install: made by \`make constraints\`, used by \`make venv\`."; \
	  echo "# On Python 3.13, Beam asks for a newer google-apitools than elsewhere."; \
	  build/constraints/bin/python -m pip freeze --all --exclude=pip --exclude=headrace \
	  | sed 's/^google-apitools==.*/&; python_version < "3.13"/'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints

hashes: venv ## templates/flex/hashes*.txt anew, from constraints.txt: the files that pip chooses here, without and with GPUs
	@mkdir -p build/flex
	for extra in '' '[gpu]'; do \
	  $(BIN)/python -m pip install --quiet --dry-run --ignore-installed --constraint=constraints.txt \
	    --report="build/flex/report$$extra.json" ".$$extra" || exit; done
	$(BIN)/python templates/flex/hashes.py build/flex/report.json > templates/flex/hashes.txt
	$(BIN)/python templates/flex/hashes.py 'build/flex/report[gpu].json' build/flex/report.json > templates/flex/hashes-gpu.txt

VALUES ?= templates/scheduler/values.env

schedule: ## nightly jobs for Cloud Scheduler and data pipelines into build/scheduler; [VALUES=templates/scheduler/values.env]
	@$(PYTHON) templates/scheduler/render.py $(call quoted,VALUES) build/scheduler

AIRFLOW ?= .venv-airflow

venv-airflow: $(AIRFLOW)/.installed ## the environment that test-airflow uses

test-airflow: venv venv-airflow ## templates/airflow loaded, rendered and run by a real Airflow in an environment of its own
	HEADRACE_AIRFLOW=$(abspath $(AIRFLOW)) $(BIN)/python -m pytest tests/templates/test_airflow.py

$(AIRFLOW)/.installed: templates/airflow/requirements.txt
	@$(python_fits)
	@echo "Installing Airflow and its providers into $(AIRFLOW), once: this takes some minutes."
	@test -x $(AIRFLOW)/bin/pip || $(PYTHON) -m venv $(AIRFLOW)
	@$(call install,$(AIRFLOW),--requirement=templates/airflow/requirements.txt)
	@touch $@

clean: ## what was built or cached, the environment included
	rm -rf $(VENV) $(PEERS) $(AIRFLOW) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
