# make serve   install, export a model, serve it, classify a first photo
# make exact IMAGES=FOLDER   FP32's best class at nearly INT8's cost, on a CPU with VNNI; then make serve again (docs/guides/cascade.md)
# make test    what CI runs: style, types, tests
# make bench   images per second and latency beside the machine's baseline
# make loadtest SCENARIO=spike   steady, ramp, spike, soak, sizes or bad, on a running server; without one, a web page
# make mlperf  MLPerf's LoadGen tests a server and gives its verdict
# make soak MINUTES=30   kills, reloads and bad requests: nothing may be lost, memory may not grow
# make fuzz    half a million images through the decoder, then 100,000 requests over raw sockets
# make protobuf   generate the messages of gRPC, after a change to server/grpc/inference.proto
# make compare this server beside LitServe, BentoML, mosec, Ray Serve, Triton and plain FastAPI (an hour; FLAGS=--help)
# make audit   ask the Python Package Index for known vulnerabilities of the installed packages
# make wheels  check that all pins have wheels for each system and Python (docs/operations/platforms.md)
# make ray-test   test a Ray cluster on this machine (docs/measurements/ray.md; some minutes)
# make programs  run clients of Triton, PyTriton and KServe against a server (docs/guides/programs.md; some minutes)
# make docs    the pages of docs/ as a site, in site/; strict: a broken link or an orphan fails
# make help    all targets

# A Python that can make virtual environments, for which Debian's needs an extra package.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
NAMES := python3.11 python3.12 python3.13 python3.14 python3
CHOSEN := $(PYTHON)
PYTHON ?= $(shell for name in $(NAMES); do $$name -c '$(SUITABLE)' 2>/dev/null && echo $$name && break; done)
PHOTO ?= export/photos/cat.jpg
MODEL ?=
IMAGES ?= export/photos
PORT ?= 8000
FLAGS ?=
SCENARIO ?=
MINUTES ?= 30
SYSTEMS ?= x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin

VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(COMPILED)
COMPILED :=
READY := $(VENV)/ready.json
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

# Tests that only compute run beside the others, which mostly wait, at a lower priority. Builds of images, and then the load
# tests, run beside both.
EXPORTING := tests/export tests/models tests/docs
COMPUTING := tests/server/images tests/server/engine/backends \
    tests/server/test_deepest.py tests/server/test_every_network.py tests/server/test_real_photos.py
BUILDING := tests/test_containers.py tests/test_packages.py
MEASURING := tests/loadtest

.PHONY: help serve model exact test lint style bench compare loadtest mlperf soak fuzz protobuf audit wheels ray-test programs docs clean right-python

help:
	@sed -n 's/^# make/make/p' Makefile

# The photo goes to the address at which the server became ready, whatever FLAGS say; if the server ends, nothing waits.
serve: model
	@! grep -sqwE 'avx512_vnni|avx_vnni' /proc/cpuinfo || ls -d model_repository/*-exact >/dev/null 2>&1 || \
	    echo "This CPU has VNNI: 'make exact IMAGES=FOLDER' gives the same best classes at nearly INT8's price (docs/guides/cascade.md)"
	@rm -f $(READY); \
	    { until [ -s $(READY) ]; do kill -0 $$$$ 2>/dev/null || exit; sleep 0.2; done; \
	    $(BIN)/classify --url "$$(sed 's/.*"url": "\([^"]*\)".*/\1/' $(READY))" $(PHOTO); } & \
	    exec $(BIN)/python -m server --ready-file $(READY) --port $(PORT) $(FLAGS)

model: $(VENV)/export.done
	@$(BIN)/python export/to_onnx.py $(MODEL)

exact: model
	@$(BIN)/python export/cascade.py --exact $(MODEL) --images $(IMAGES)

test: export PYTHONDONTWRITEBYTECODE :=  # or each of hundreds of processes would compile its imports
test: COMPILED := --no-compile  # most of what is installed is never imported
# PyTorch's threads spin while they wait for those that other tests keep from running.
test: export OMP_NUM_THREADS := 1
test: export EXPORTED := $(CURDIR)/$(VENV)/exported
# A crash of the interpreter is told with where it was, even after the last test.
test: PYTEST := $(BIN)/python -X faulthandler $(BIN)/pytest
test: style
	@rm -rf "$(EXPORTED)" && mkdir "$(EXPORTED)"
	@nice -n 10 $(PYTEST) $(EXPORTING) >$(VENV)/exporting.log 2>&1 & exporting=$$!; \
	nice -n 10 $(PYTEST) $(COMPUTING) >$(VENV)/computing.log 2>&1 & computing=$$!; \
	nice -n 10 $(BIN)/mypy >$(VENV)/types.log 2>&1 & typing=$$!; \
	$(PYTEST) $(BUILDING) $(MEASURING) >$(VENV)/building.log 2>&1 & building=$$!; \
	trap "kill $$exporting $$computing $$typing $$building; exit 130" INT TERM; \
	$(PYTEST) $(addprefix --ignore=,$(EXPORTING) $(COMPUTING) $(BUILDING) $(MEASURING)); serving=$$?; \
	wait $$exporting; exported=$$?; wait $$computing; computed=$$?; wait $$typing; typed=$$?; wait $$building; built=$$?; \
	cat $(VENV)/exporting.log $(VENV)/computing.log $(VENV)/types.log $(VENV)/building.log; \
	echo "exit codes: serving $$serving, exporting $$exported, computing $$computed, types $$typed, building $$built"; \
	exit $$((serving | exported | computed | typed | built))

lint: style
	$(BIN)/mypy

style: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: model $(VENV)/test.done
	$(BIN)/python loadtest/bench.py $(FLAGS)

compare: $(VENV)/test.done
	$(BIN)/python loadtest/compare $(FLAGS)

loadtest: $(VENV)/test.done
	$(BIN)/locust -f loadtest/locustfile.py --host http://127.0.0.1:$(PORT) \
	    $(if $(SCENARIO),--headless --scenario $(SCENARIO)) $(FLAGS)

mlperf: model $(VENV)/test.done
	$(BIN)/python loadtest/mlperf.py $(FLAGS)

soak: model $(VENV)/test.done
	$(BIN)/python loadtest/soak.py --minutes $(MINUTES) --write loadtest/reports/soak $(FLAGS)

fuzz: $(VENV)/test.done
	@mkdir -p .fuzz
	$(BIN)/python -m tests.fuzz.decoder -runs=500000 -artifact_prefix=.fuzz/ $(FLAGS)
	$(BIN)/python -m tests.fuzz.surface --requests 100000

protobuf: $(BIN)/python  # in its own environment; its output is committed, so nobody else needs the compiler
	$(BIN)/python -m venv $(VENV)/protobuf
	$(VENV)/protobuf/bin/pip install --disable-pip-version-check grpcio-tools==1.80.0
	$(VENV)/protobuf/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. server/grpc/inference.proto

# In its own environment; --strict: a package that the index does not know is a failure.
audit: $(VENV)/test.done
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --disable-pip-version-check pip-audit==2.10.1
	$(BIN)/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(VENV)/audit/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/audit/installed.txt

# In its own environment; SYSTEMS by uv's names. ONNX Runtime needs macOS 14.
wheels: export MACOSX_DEPLOYMENT_TARGET := 14.0
wheels:
	$(PYTHON) -m venv $(VENV)/wheels
	$(VENV)/wheels/bin/pip install --disable-pip-version-check uv==0.13.9
	@for system in $(SYSTEMS); do for python in 3.11 3.12 3.13 3.14; do \
	    $(VENV)/wheels/bin/uv pip compile --quiet --no-build --python-platform $$system --python-version $$python \
	        --constraint constraints.txt --extra export --extra grpc --extra tracing pyproject.toml client/pyproject.toml \
	        --output-file $(VENV)/wheels/$$system-$$python.txt || exit 1; \
	    echo "$$system, Python $$python: all pins have wheels"; \
	done; done

ray-test: model $(VENV)/ray.done $(VENV)/test.done
	$(BIN)/pytest -s -m ray tests/deploy/test_ray.py

programs: $(VENV)/test.done $(patsubst tests/programs/%.txt,$(VENV)/programs/%/done,$(wildcard tests/programs/*.txt))
	$(BIN)/pytest -s -m programs tests/programs

docs: $(VENV)/test.done
	$(BIN)/python -m docs.reference
	$(BIN)/python -m sphinx -q -W --keep-going -n -d $(VENV)/doctrees docs site
	@echo "site/index.html"

clean:
	rm -rf $(VENV) .compare model_repository weights site

$(BIN)/python:
	@"$(or $(PYTHON),python3)" -c '$(SUITABLE)' 2>/dev/null || { \
	    echo "$(if $(PYTHON),$(PYTHON) is not,None of $(NAMES) is) a Python 3.11 to 3.14 with venv and ensurepip" \
	        "(Debian and Ubuntu: apt install python3-venv); name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear $(VENV)

right-python: $(BIN)/python
	@version='import sys; print("%d.%d" % sys.version_info[:2])'; there=$$($(BIN)/python -c "$$version"); \
	wanted=$(if $(CHOSEN),$$("$(CHOSEN)" -c "$$version" 2>/dev/null),$$there); \
	case "$$there" in "$$wanted") ;; *) there= ;; esac; \
	case "$$there" in 3.11 | 3.12 | 3.13 | 3.14) ;; *) \
	    echo "$(VENV) has another Python than $(or $(CHOSEN),3.11 to 3.14): remove it first (rm -r $(VENV))" >&2; exit 1 ;; \
	esac

$(VENV)/export.done: pyproject.toml client/pyproject.toml constraints.txt $(BIN)/python | right-python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null  # after an interrupted installation
	@# Without an NVIDIA GPU, the CPU build of torch saves gigabytes; if it fails, the package index's build follows below.
	@nvidia-smi -L >/dev/null 2>&1 || \
	    $(PIP) --no-deps --index-url $(CPU_WHEELS) --retries 0 --timeout 5 $(TORCH) 2>/dev/null || \
	    echo "the CPU build of torch cannot be downloaded: using the package index's"
	$(PIP) --editable '.[export]'
	$(PIP) --editable ./client  # after the server, whose older releases had the command, too
	@touch $@

$(VENV)/test.done: $(VENV)/export.done tests/libraries.txt
	$(PIP) --editable '.[export,loadtest,test]' --editable './client[parquet]'
	$(PIP) --no-deps --requirement tests/libraries.txt
	@touch $@

$(VENV)/ray.done: deploy/requirements.py loadtest/compare/rivals/ray.txt pyproject.toml  # in its own environment
	$(BIN)/python -m venv $(VENV)/ray
	$(BIN)/python deploy/requirements.py >$(VENV)/ray/ours.txt
	$(VENV)/ray/bin/pip install --disable-pip-version-check -r loadtest/compare/rivals/ray.txt -r $(VENV)/ray/ours.txt \
	    --editable ./client
	@touch $@

$(VENV)/programs/%/done: tests/programs/%.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check -r $<
	@touch $@
