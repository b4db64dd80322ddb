# make demo   sets up and trains the embedded model: base, SFT, GRPO, evaluation
# make reproduce   trains and compares all that both papers compare; hours, goes on after a stop
# make test   sets up and runs the tests
# make quick  the tests of the core, in about a minute
# make lint   what the tests check of style, alone
PYTHON ?= python3
BIN := .venv/bin
CORE := $(patsubst %,tests/test_%.py,loss grpo ppo sft rollout sample model tokenizer) tests/isolation/test_sandbox.py

.PHONY: demo reproduce test quick lint format clean
demo: .venv/run
	$(BIN)/python demo.py --resume

reproduce: .venv/run
	$(BIN)/python -m analysis.reproduce

test: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

quick: .venv/test
	$(BIN)/python -m pytest -m 'not slow' $(CORE)

lint: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/test
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/run: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[plot]'
	touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[plot,oracle,tasks,test]'
	touch $@ .venv/run

clean:
	rm -rf .venv runs *.egg-info
