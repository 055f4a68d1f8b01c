# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks examples docs

# `make test` writes its files into memory, where there is room: they are synced tens of thousands of times, and there
# nothing waits for the disk. They are removed if all tests pass.
ROOM := $(shell df --output=avail /dev/shm 2>/dev/null | tail -1)
FILES := $(shell [ "0$(ROOM)" -gt 8000000 ] && echo /dev/shm/graft-tests-$$PPID)

# Two processes of one thread each use two cores better than one of two, and threads of C that wait leave the cores to
# others. More cores: `make test WORKERS=8`.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: setup demo quick test slow families faults speed check format clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/dev: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/graft demo

# The answer in a minute, while you work: style, types, order of folders, docstrings' examples, laws in fp32.
quick: $(VENV)/dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(PYTEST) -m quick tests/contract tests/test_*.py

test: setup
	$(if $(FILES),mkdir $(FILES))
	$(if $(FILES),TMPDIR=$(FILES)) $(PYTEST) -m "not slow"
	-$(if $(FILES),rm -rf $(FILES))

slow: setup
	$(BIN)/python -m pytest -m slow --timeout=0

# The C kernels with sanitizers, then with AVX-512 emulated (needs SIMD Everywhere: Debian's libsimde-dev).
kernels: setup
	for way in sanitized emulated; do \
		GRAFT_KERNELS_BUILD=$$way $(BIN)/python setup.py -q build_ext \
			--build-lib build/$$way --build-temp build/$$way/objects && \
		GRAFT_KERNELS_LIBRARY=build/$$way/graft/kernels/libgraft.so.1 ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels tests/base/test_native_decoder.py || exit 1; \
	done

# Every family of models in the installed transformers, and the table of what works with what.
families: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/families/run.py

# Every kind of fault at release level, and the table of what held: hours. Interrupted, it goes on where it was.
# One part: `make faults FAULTS="--part crash flips"`, some minutes: `make faults FAULTS="--level quick"`.
faults: setup
	$(BIN)/python benchmarks/reliability/run.py $(FAULTS)
	$(BIN)/python benchmarks/collect.py reliability
	$(BIN)/python benchmarks/reliability/table.py

# Speed and memory beside the peers: hours, on an otherwise idle machine. One row: `make speed ROWS=qlora-160m-512`.
speed: setup
	$(BIN)/python benchmarks/speed/run.py $(ROWS)
	$(BIN)/python benchmarks/collect.py speed
	$(BIN)/python benchmarks/speed/table.py

# Everything that a change must pass before it is committed.
check: quick test

format: $(VENV)/dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# What type checkers and editors know of the public names: write it anew after adding one, or a key of train.
.PHONY: stub
stub: setup
	$(BIN)/python docs/write_stub.py

.PHONY: docs
docs: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/build_site.py

clean:
	rm -rf $(VENV) build dist site
