# make reproduce   everything from nothing: prompts, training, sampling, scoring, tables   (QUICK=1: a few minutes)
# make test        the tests            make ui      compare runs in MLflow, on this machine only (PORT=5000)
# make evidence    tables and figures from the collected runs in $(EVIDENCE)/data, without training, and the page that quotes them checked; none are collected at full strength yet
# make kit CONFIG=... TASK=...   everything tried small on this machine, one file to send back (docs/kit.md)
# make lint        ruff                 make report  one HTML page of the results
# make test-slurm  the pipeline on a real SLURM of two nodes, both here; needs slurm-wlm and munge (apt), so not part of `make test`
# make test-easyocr   EasyOCR itself, in an environment of its own (.venv-easyocr); not part of `make test`
# make bench       what training costs: parts, STAR over scalar, plain Flow-GRPO, matrix rate; minutes (docs/benchmarks.md)
# make test-kill   trainings killed at 24 random moments, each resumed and compared; some minutes, not part of `make test`
# make test-families   every model family as the workflow, killed once and resumed, and the presets' plans; minutes, not part of `make test`
# make test-browser   the MLflow pages and the page of `star compare` in Debian's chromium, screenshots in results/screenshots; not part of `make test`

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(if $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(p))))
CONFIG ?= config/miniature$(if $(QUICK),-quick).yaml
CORES ?= all
PORT ?= 5000
EVIDENCE ?= docs/results/evidence
BIN := .venv/bin
RESULTS = $(BIN)/python -c "from star.config import load; c = load('$(CONFIG)'); print(c.results + '/' + c.experiment)"
STAMP := .venv/installed

.PHONY: install reproduce evidence test test-slurm test-easyocr test-kill test-families test-browser bench lint ui report schema kit
.DEFAULT_GOAL := reproduce

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(if $(PYTHON),,echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into .venv with $(PYTHON): about three minutes and 2.4 GB"
	@$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -e '.[dev]'
	@touch $@

reproduce: install
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)
	@results=$$($(RESULTS)) && echo && cat $$results/tables/main.md && echo && \
	echo "Look     $$results/report.html (one page: pictures, curves, tables, maps)" && \
	echo "Before and after   $$results/figures/samples.svg" && \
	echo "Next     make ui (compare runs in MLflow), docs/tutorial.md (your own reward and prompts)"

evidence: install
	$(BIN)/star evidence --config config/experiments/evidence-miniature.yaml --data $(EVIDENCE)/data --out $(EVIDENCE) --check $(EVIDENCE).md

test: install # two at a time, of one thread each
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slurm: install
	$(BIN)/python -c 'import snakemake_executor_plugin_slurm' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[slurm]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/slurm

test-easyocr:
	test -d .venv-easyocr || $(PYTHON) -m venv .venv-easyocr
	.venv-easyocr/bin/python -m pip install --quiet --disable-pip-version-check -r tests/easyocr_engine/requirements.txt
	.venv-easyocr/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/easyocr_engine/weights.txt
	PYTHONPATH=. OMP_WAIT_POLICY=PASSIVE .venv-easyocr/bin/python -m pytest tests/easyocr_engine

test-kill: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -rP tests/kill

test-families: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/families_workflow

test-browser: install
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { echo "make: no chromium found; install it (Debian: apt install chromium chromium-driver)" >&2; exit 2; }
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/browser

bench: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.training --out docs/benchmarks/miniature

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

ui: install
	@exec $(BIN)/star ui --config $(CONFIG) --port $(PORT)

kit: install
	@$(BIN)/star fetch --config $(CONFIG)
	@out=$$($(RESULTS))/kit && $(BIN)/star kit --config $(CONFIG) --task $(TASK) --out $$out

report: install
	@page=$$($(RESULTS))/report.html && $(BIN)/star report --config $(CONFIG) --out $$page && echo "Open $$page"

schema: install # after a change of star/config: the JSON schema and the tables of keys in config/README.md
	$(BIN)/python -m star.config.reference
