# make setup | repro | tidy | plots BASE=main | recipe NAME=fashion_fast | test | test-all | bench | chaos
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: setup repro tidy plots recipe lint test test-all bench chaos

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

repro: setup
	$(BIN)/python -m resnets.mend
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo; cat reports/leaderboard.md
	@echo "plots:  plots/ and reports/curves.png (as a page: $(BIN)/dvc plots show)"
	@echo "report: reports/index.html, a page to open in a browser; reports/leaderboard.md"
	@echo "model:  artifacts/export/model.onnx, described in artifacts/export/model_card.md"

tidy: setup
	$(BIN)/python -m resnets.mend

# the page of `dvc plots`, whose scripts come from a CDN, as one file that needs no network later
VEGA := .dvc/tmp/vega
SCRIPTS := vega@5.33.1 vega-lite@5.23.0 vega-embed@6.29.0
plots: setup $(VEGA)/page.html
	$(BIN)/dvc plots $(if $(BASE),diff $(BASE),show) --html-template $(VEGA)/page.html

$(VEGA)/page.html:
	npm install --silent --no-save --no-audit --prefix $(VEGA) $(SCRIPTS)
	{ echo '<!DOCTYPE html><meta charset="utf-8">'; \
	for script in vega vega-lite vega-embed; do \
	echo '<script>'; cat $(VEGA)/node_modules/$$script/build/$$script.min.js; echo '</script>'; \
	done; echo '{plot_divs}'; } > $@

recipe: setup
	$(BIN)/python recipes/run.py $(NAME)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# one test per core, each on one thread: tiny networks gain nothing from a second
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

# all of them take hours: SCRIPTS="training_step prepare" runs some, and the page keeps the rest
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python benchmarks/run.py $(SCRIPTS)

# 200 kills over all stages at seeded instants: 22 minutes on two cores, beside the tests
chaos: setup
	PYTHONPATH=. $(BIN)/python -m tests.chaos --kills 200 --seed 0 --out tests/chaos_result.txt
