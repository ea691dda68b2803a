# make setup | demo | compare | test | check | docs | slow | release | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo compare test test-lowest test-newest check format docs site slow release clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   create $(VENV) and install"
	@echo "make demo    train on the nine-mode mixture, print the table, draw the picture"
	@echo "make compare agents and baselines side by side on two targets (10 minutes on 2 cores)"
	@echo "make test    fast tests (minutes)        make slow    trainings as tests"
	@echo "make check   format, lint, strict types of the built package"
	@echo "make docs    build the documentation and serve it on localhost:8000"
	@echo "make test-lowest, test-newest   the fast tests on the oldest and newest dependencies"
	@echo "make release audit the dependencies, build wheel and sdist twice, compare their bytes"
	@echo "make format  rewrite the sources in the project's format"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,all,clients,jax,ase,rivals,docs]"
	touch $@

demo: setup
	$(BIN)/python scripts/train.py --config configs/gmm9.yaml --ceiling true

# Equal wall-clock, one core a run; runs/compare/seconds=40 holds table, pictures and curves.
compare: setup
	$(BIN)/python scripts/compare.py --env GMM9,Funnel10 --seeds 1 --budget seconds=40 \
		--agents vgs,pis,tb,sb3-ppo,sb3-sac-kernel,tianshou-ppo,mala,hmc,ais,pt

# A file of tests is one worker's, so that what its tests share is made once. Byte code is kept for
# the commands that tests start.
test: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not slow"

# In an environment of their own under build/: the oldest versions that pyproject.toml allows, and
# the newest that there are. What an extra needs is left out, and its tests are skipped.
test-lowest test-newest: test-%:
	rm -rf build/$*
	$(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(filter lowest,$*),-c constraints-lowest.txt,--upgrade --upgrade-strategy eager) \
		-e ".[dev]"
	build/$*/bin/python -m pip list --format freeze
	OMP_NUM_THREADS=1 build/$*/bin/pytest -n auto --dist loadfile -m "not slow"

# pip-audit knows the reported vulnerabilities of what is installed; it needs the network, and is
# strict: a package that it cannot look up is a failure. Builds such as +cpu are audited as releases.
release: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	mkdir -p build
	$(BIN)/python -m pip list --format freeze --exclude-editable | sed 's/+.*//' > build/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r build/installed.txt
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python scripts/check_reproducible.py dist
	$(BIN)/python scripts/check_wheel.py dist

slow: setup
	$(BIN)/pytest -m slow

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The type check and the import test run on the wheel, which is what users get.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	rm -rf build
	$(BIN)/python scripts/check_wheel.py dist

# Strict: a broken link or a name that the API pages do not find ends it.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: site
	$(BIN)/python -m http.server 8000 --bind localhost --directory build/site

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
