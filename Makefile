# `make demo` and `make test` need nothing else; `make real` needs a folder of public data sets.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
DATA := $(or $(ISOGLOSS_DATA),../shared/data)

.PHONY: demo real test docs compare clean

demo: $(READY) ## Tune, distil and evaluate the embedded default; prints the table and says where the report is.
	$(VENV)/bin/isogloss run

real: $(READY) ## The whole job on Gemma 3 270M and real data in twelve languages; about an hour on 2 cores with bf16 products.
	@test -d "$(DATA)" || { echo "make real needs a folder of public data sets (massive, sib-200, XNLI-1.0, pawsx, xcopa,"; \
	  echo "flores101_dataset): set ISOGLOSS_DATA to it; \`isogloss suites\` says where each comes from"; exit 2; }
	$(VENV)/bin/isogloss run examples/real.yaml --data-root "$(DATA)"

compare: $(READY) ## Our method and reinforcement learning on the same work; costs of reaching the same accuracy.
	$(PYTHON) -m experiments.compare_methods --points 7 --set distill.epochs=3 --set evaluate.items=56 --set evaluate.sentences=100

test: $(READY) ## Format, lint, layers, types, tests.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright --pythonpath $(PYTHON)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile

docs: $(VENV)/.docs ## The documentation as a site in site/; a link that leads nowhere is an error.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "site/index.html"

$(VENV)/.docs: $(READY)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(VENV)/.docs

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build site *.egg-info
