# Two commands: `make report` runs the embedded experiment, or another one (make report EXPERIMENT=smoke), and
# `make test` runs every check but those that need the libraries of `make backends`, or install conda environments,
# which `make test-all` adds; `make test-unit` those that run no workflow.

.DEFAULT_GOAL := help

EXPERIMENT ?= embedded
DEVICE ?= cpu
PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := envs/requirements.txt
TRITON := triton==3.7.1
WORKERS ?= 2
MINUTES ?= 9
# tests/conftest.py says what one worker runs; its threads would wait for those of the other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install report book evidence test test-unit test-all lint docs reference readme-figure embedded-models backends slurm plan doctor kernels clean
.PHONY: bench-kernels bench-solvers bench-measure bench-intervals bench-scale gpu-evidence gpu-tables

help:
	@echo "make install                     everything into .venv: about 2 GB"
	@echo "make report [EXPERIMENT=smoke]   runs an experiment: results/EXPERIMENT/report.html"
	@echo "            [DEVICE=cuda]        where (of itself: config.yaml's device)"
	@echo "make book                        one page of all results, and of those that ship: results/book.html"
	@echo "make plan [EXPERIMENT=smoke]     how many jobs are left, and how long they take"
	@echo "make doctor [EXPERIMENT=smoke]   what this machine has and lacks for an experiment"
	@echo "make kernels [DEVICE=cuda]       which kernel computes each format on this machine"
	@echo "make gpu-evidence [MINUTES=9]    what only a GPU shows: kernels, sensor, denoisers, solvers; goes on when run again"
	@echo "make docs                        the documentation as a site: build/site/index.html"
	@echo "make test                        every check: ten to eighteen minutes; make test-unit: no runs of the workflow"
	@echo "make test-all                    also those with libraries of their own"
	@echo "Experiments: $(basename $(notdir $(wildcard resources/experiments/*.yaml)))"

install: .venv/installed

# DEVICE only where it was given: else config.yaml's.
GIVEN_DEVICE = $(if $(filter-out file,$(origin DEVICE)),device=$(DEVICE))

report: .venv/installed
	$(BIN)/snakemake --config experiment=$(EXPERIMENT) $(GIVEN_DEVICE)
	@echo "The report: $(CURDIR)/results/$(EXPERIMENT)/report.html"

# One page of every finished result, and of the bundles that ship with the project.
book: .venv/installed
	set -e; for table in $(wildcard results/*/tables/summary.csv); do \
		$(BIN)/python workflow_scripts/tools/bundle.py --results $${table%/tables/summary.csv}; \
	done
	$(BIN)/python workflow_scripts/tools/book.py $(wildcard resources/book/*.zip) \
		$(patsubst %/tables/summary.csv,%/bundle.zip,$(wildcard results/*/tables/summary.csv))

# How many jobs are left, and for how many hours: make plan EXPERIMENT=imagenet64-brecq DEVICE=cuda
plan: .venv/installed
	$(BIN)/python workflow_scripts/tools/plan.py --experiment $(EXPERIMENT) --config device=$(DEVICE)

# What this machine has and lacks, for everything and for one experiment: make doctor EXPERIMENT=smoke DEVICE=cuda
doctor: .venv/installed
	$(BIN)/python workflow_scripts/tools/doctor.py --experiment $(EXPERIMENT) --config $(GIVEN_DEVICE)

# Ten to eighteen minutes on two cores, one for each of WORKERS.
test: .venv/installed lint
	$(PYTEST) -m "not slow"

# Without whole runs of the workflow.
test-unit: .venv/installed lint
	$(PYTEST) -m "not slow" tests/unit

# PyTorch's CUDA build brings Triton along, whose interpreter runs the kernels of GPUs on a CPU; its CPU build does not.
test-all: .venv/installed backends slurm lint
	$(BIN)/pip install --quiet $(TRITON)
	$(PYTEST) -m "not slow"
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/ty check
	$(BIN)/snakemake --lint
	PYTHONPATH=workflow_scripts $(BIN)/lint-imports

# The documentation as a site, by MkDocs in an environment of its own. REPOSITORY_URL: where files of the project are read.
docs: .venvs/docs/installed
	.venvs/docs/bin/mkdocs build --strict
	@echo "The documentation: $(CURDIR)/build/site/index.html (with a search: .venvs/docs/bin/mkdocs serve)"

# Makes docs/reference/ anew, from the schemas, the scripts' parsers, the rules and the tables.
reference: .venv/installed
	$(BIN)/python workflow_scripts/tools/reference_pages.py

.venvs/docs/installed: envs/docs.txt
	$(PYTHON) -m venv --clear .venvs/docs
	.venvs/docs/bin/pip install --quiet --requirement $<
	touch $@

# README's figures (of the page in Chromium) and what they are drawn from, from the results of `make report`, of the two studies' small forms, and
# of `make bench-solvers`, `bench-kernels`, `bench-measure` and `bench-intervals`.
STUDIES := embedded-mixdq embedded-digits
readme-figure: results/embedded/report.html results/embedded/figures/quality_vs_cost.png results/benchmarks/solvers.png results/benchmarks/kernels.png \
		results/benchmarks/measure.png results/benchmarks/intervals.png \
		results/embedded-mixdq/figures/budget.png results/embedded-digits/figures/steps.png
	mkdir -p resources/readme resources/measurements
	$(BIN)/python tests/browser/screenshot.py $< resources/readme/report.png
	cp $(filter %.png,$^) resources/readme/
	cp results/embedded/tables/summary.csv results/benchmarks/*.json resources/measurements/
	for study in $(STUDIES); do cp results/$$study/tables/summary.csv resources/measurements/$$study.csv; done

# Trains the models of resources/models/ again, from a seed (hours on two cores; texts five minutes, digits twenty).
embedded-models: .venv/installed
	$(BIN)/python workflow_scripts/training/train_embedded.py
	$(BIN)/python workflow_scripts/training/train_text.py
	$(BIN)/python workflow_scripts/training/train_few_step.py
	$(BIN)/python workflow_scripts/training/train_digits.py

# Which kernel computes each format on this machine, how fast, and why where none does: a minute.
kernels: .venv/installed
	$(BIN)/python workflow_scripts/tools/list_kernels.py --device $(DEVICE)

# Times every kernel against float products and other libraries, whole blocks by their width, and the embedded model:
# results/benchmarks/kernels.json, kernels.png and pipeline.json. Half an hour on two cores, alone; docs/kernels.md says how its shorter run was made.
bench-kernels: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/bench_kernels.py --device $(DEVICE)

# Times GPTQ and Qronos against the libraries: results/benchmarks/solvers.json and .png; and in each format against
# integers: solver_formats.json.
bench-solvers: .venv/installed backends
	$(BIN)/python workflow_scripts/benchmarks/bench_solvers.py
	$(BIN)/python workflow_scripts/benchmarks/bench_solver_formats.py

# What reading the GPU's power costs the measured program, how long methods take to measure how closely, and how many
# intervals of the baseline against itself hold 1: results/benchmarks/measure.json and .png. 25 minutes on two cores, alone.
bench-measure: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/bench_measure.py

# Which interval of a ratio holds it in 95 % of simulated measurements: results/benchmarks/intervals.json and .png. Six
# minutes on one core.
bench-intervals: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python workflow_scripts/benchmarks/bench_intervals.py

# Fills the tables of docs/evidence.md; `evidence_tables.py --add results/embedded-formats` takes a finished run's first.
evidence: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/evidence_tables.py

# What only a GPU shows, in stages: results/gpu-evidence/STAGE.json. The same command goes on where the last one stopped.
gpu-evidence: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/gpu_evidence.py --minutes $(MINUTES)

# Adds them to resources/measurements/gpu/, and makes the table of docs/kernels.md and its figure.
gpu-tables: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/gpu_tables.py --add results/gpu-evidence

# Memory and time of writing, features and scores of 1,000, 4,000 and 16,000 images: results/benchmarks/scale.json.
bench-scale: .venv/installed
	$(BIN)/python workflow_scripts/benchmarks/bench_scale.py

# SLURM from Debian's packages, for the tests that bring it up: root's make installs it by apt-get, else they are skipped.
slurm:
	$(PYTHON) tests/slurm/cluster.py

# The libraries that solve layers in environments of their own, where there is no conda: rules find them in .venvs.
backends: .venvs/auto-gptq/installed .venvs/gptqmodel/installed

.venvs/%/installed: envs/%.yaml envs/%.post-deploy.sh
	$(PYTHON) -m venv --clear .venvs/$*
	.venvs/$*/bin/pip install --quiet $$(sed -n 's/^ *- \(torch==.*\)/\1/p' $<)
	.venvs/$*/bin/pip install --quiet $$(sed -n 's/^ *- \(.*==.*\)/\1/p' $<)
	PATH="$(CURDIR)/.venvs/$*/bin:$$PATH" bash -e envs/$*.post-deploy.sh
	touch $@

# torch and torchvision first and in one command: installed later, another package's range would pull in another build.
# --no-compile: Python compiles a module when it is first imported, and of these 18,000 few ever are.
.venv/installed: $(REQUIREMENTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile $$(grep -E '^(torch|torchvision)==' $(REQUIREMENTS))
	$(BIN)/pip install --quiet --no-compile --requirement $(REQUIREMENTS)
	$(BIN)/pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf results .snakemake
