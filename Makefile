# make demo       the whole story on the embedded data; results in runs/demo
# make test       the test suite; make test-all also runs what repeats it at a larger size
# make test-data  the tests of files and atlases with the newest versions of all libraries, on Python 3.13 or 3.12
# make docs      the site in docs/_build/html; SCFUSION_NOTEBOOKS=off leaves the notebooks without outputs
# make benchmarks  the tables of docs/benchmarks.md, measured anew, in a quarter of an hour
# make models    the models that come with the package, anew: make models DATA=DIR; docs/models.md
# make dist      wheel and source distribution in dist; make smoke tries the wheel in a new environment
# A Linux machine without a GPU gets the smaller CPU build of torch with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3.11
# The first of these that runs.
DATA_PYTHON ?= $(shell for p in python3.13 python3.12; do $$p -c '' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
BIN := .venv/bin
DATA_BIN := .venv-data/bin
DOCS_BIN := .venv-docs/bin
DEMO := runs/demo
# The commands are found by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Threads that wait for one another give the core away soon: on a busy machine, spinning is ruinous.
export GOMP_SPINCOUNT ?= 1000

.PHONY: benchmarks demo docs models test test-all test-data lint clean dist smoke

demo: $(DEMO)/report.html $(DEMO)/shipped.h5mu
	@echo
	@echo "Done. Look at $(DEMO)/report.html"
	@echo "  pretrained model    $(DEMO)/model"
	@echo "  annotation          $(DEMO)/annotation"
	@echo "  protein prediction  $(DEMO)/cross_modal"
	@echo "  your file with it   $(DEMO)/cells.h5mu"
	@echo "  by shipped models   $(DEMO)/shipped.h5mu (they have learned from these cells)"

models: .venv/ready
	@test -n "$(DATA)" || { echo "name the directory of the public files: make models DATA=DIR" >&2; exit 1; }
	python scripts/make_models.py runs/models --data $(DATA)

# The files that take longest come first, and each stays on one of the workers: its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(PYTEST)

test-all: .venv/ready
	SCFUSION_KILLS=6 $(PYTEST) -m 'slow or not slow' --hypothesis-profile thorough

test-data: export PATH := $(CURDIR)/$(DATA_BIN):$(PATH)
test-data: .venv-data/ready
	$(DATA_BIN)/python -m pytest -n 2 tests/data

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

benchmarks: .venv/ready
	python scripts/run_benchmarks.py

docs: .venv-docs/ready
	rm -rf docs/generated docs/_build
	$(DOCS_BIN)/python -m sphinx --jobs auto --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "Done. Look at docs/_build/html/index.html"

# The wheel is made of the source distribution, so that both are known to be complete.
dist: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python scripts/check_wheel.py dist

# The wheel in a new environment, as a user has it: first the base install, then what each extra is for.
smoke: dist
	rm -rf .venv-smoke
	$(PYTHON) -m venv .venv-smoke
	.venv-smoke/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv-smoke/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	du -sm --apparent-size .venv-smoke
	.venv-smoke/bin/python scripts/smoke.py .venv-smoke/bin
	.venv-smoke/bin/pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[pretrain,eval,explore]"
	.venv-smoke/bin/python scripts/smoke.py .venv-smoke/bin --extras pretrain eval explore

clean:
	rm -rf $(DEMO)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the site needs beside the packages of .venv, which it sees: two of them would be another 3 GB.
.venv-docs/ready: .venv/ready
	$(BIN)/python -m venv .venv-docs
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" \
	  > $$($(DOCS_BIN)/python -c 'import site; print(site.getsitepackages()[0])')/packages_of_venv.pth
	$(DOCS_BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Without torch: nothing in scfusion_fm/data needs it, but for the two modules that give tensors.
.venv-data/ready: pyproject.toml requirements-newest.txt
	@test -n "$(DATA_PYTHON)" || { echo "python3.13 or python3.12 must be found, to test today's versions;" \
	  "install one, or name it: make $(MAKECMDGOALS) DATA_PYTHON=/path/to/python3.13" >&2; exit 1; }
	$(DATA_PYTHON) -m venv .venv-data
	$(DATA_BIN)/pip install --quiet --requirement requirements-newest.txt
	$(DATA_BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(DEMO)/atlas.zarr/manifest.json: .venv/ready
	@echo "== 1/6 prepare"
	rm -rf $(DEMO)/atlas.zarr
	scfusion prepare --config configs/data/demo.yaml

$(DEMO)/model/config.json: $(DEMO)/atlas.zarr/manifest.json
	@echo "== 2/6 pretrain"
	deepspeed --num_accelerators 2 pretrain/run.py --config configs/pretrain/demo.yaml
	@echo "== 3/6 export"
	rm -rf $(DEMO)/model
	python pretrain/export.py $(DEMO)/pretrain $(DEMO)/model

$(DEMO)/annotation/results.json: $(DEMO)/model/config.json
	@echo "== 4/6 fine-tune: cell types"
	rm -rf $(DEMO)/annotation
	python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml

$(DEMO)/cross_modal/results.json: $(DEMO)/annotation/results.json
	@echo "== 4/6 fine-tune: proteins from RNA"
	rm -rf $(DEMO)/cross_modal
	python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml

$(DEMO)/cells.h5mu: $(DEMO)/cross_modal/results.json
	@echo "== 5/6 use"
	rm -f $(DEMO)/embedded.h5mu $(DEMO)/annotated.h5mu $@
	scfusion embed $(DEMO)/model data/demo_teaseq_pbmc.h5mu $(DEMO)/embedded.h5mu
	scfusion annotate $(DEMO)/annotation/model $(DEMO)/embedded.h5mu $(DEMO)/annotated.h5mu
	scfusion predict-protein $(DEMO)/cross_modal/model $(DEMO)/annotated.h5mu $@

$(DEMO)/report.html: $(DEMO)/cells.h5mu
	@echo "== 6/6 report"
	scfusion report --pretraining $(DEMO)/pretrain --annotation $(DEMO)/annotation \
	  --cross-modal $(DEMO)/cross_modal --output $@

# What the models that come with the package say of the same file.
$(DEMO)/shipped.h5mu: $(DEMO)/report.html
	@echo "== the models that come with the package"
	scfusion models
	rm -f $(DEMO)/shipped_types.h5mu $@
	scfusion annotate scfusion-human-blood-types data/demo_teaseq_pbmc.h5mu $(DEMO)/shipped_types.h5mu
	scfusion predict-protein scfusion-human-blood-proteins $(DEMO)/shipped_types.h5mu $@
