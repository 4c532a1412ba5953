# Two commands: `make report` runs the experiment named in config.yaml, `make test` runs every check.

PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := envs/requirements.txt
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: report test test-all lint embedded-models clean

report: .venv/installed
	$(BIN)/snakemake $(SNAKEMAKE)
	@echo "report: $(CURDIR)/results/embedded/report.html"

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/installed lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# Trains the models of resources/models/ again, from a seed (hours on two cores).
embedded-models: .venv/installed
	$(BIN)/python workflow_scripts/train_embedded.py all

# torch and torchvision first and in one command: installed later, another package's range would pull in another build.
.venv/installed: $(REQUIREMENTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $$(grep -E '^(torch|torchvision)==' $(REQUIREMENTS))
	$(BIN)/pip install --quiet --requirement $(REQUIREMENTS)
	touch $@

clean:
	rm -rf results .snakemake
