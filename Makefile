# Only python3 and make are needed; what needs .venv creates it first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PARALLEL := -n auto  # one process per core
CHECK_PYTHON = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: install a newer one, then run make PYTHON=python3.11"; exit 2; }

.PHONY: help session7 session8 session9 test check coverage bench publish colab clean
.DELETE_ON_ERROR:

help:
	@echo "make session9            train session 9 (also session8, session7); DATA=digits make session9: other images"
	@echo "make test                the tests, and short notebook runs"
	@echo "make check               formatter, linter, types"
	@echo "make coverage            which lines the tests execute"
	@echo "make bench               images per second, compared with the classic pipeline"
	@echo "make publish SESSION=9   publish the run in runs/session9/"
	@echo "make colab               write the repository's address into badges and setup cells"
	@echo "make clean               remove .venv"

# DATA=path of a folder of images, cifar10, digits or auto (the default)
session7 session8 session9: $(VENV)/.ready
	$(RUN) -m tools.execute $(@:session%=%)

test: $(VENV)/.ready
	$(RUN) -m pytest --nbval-lax $(PARALLEL)

# formatter, linter, types
check: $(VENV)/.ready
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy

coverage: $(VENV)/.ready
	$(RUN) -m coverage run -m pytest tests $(PARALLEL)
	$(RUN) -m coverage combine
	$(RUN) -m coverage report --skip-covered

# images per second of each session, compared with the classic pipeline
bench: $(VENV)/.ready
	$(RUN) -m benchmarks.throughput

# make publish SESSION=9: publish the run in runs/session9/
publish: $(VENV)/.ready
	$(RUN) -m tools.publish $(SESSION)
	$(RUN) -m benchmarks.seeds
	@test -z "$(REPO)" || $(RUN) -m tools.colab --repository "$(REPO)" || test "$(REPO)" = origin

# make colab: write the repository's address into badges and setup cells; default: that of "origin".
# REPO=owner/name or the address of a repository on GitHub; make publish REPO= leaves all links alone
REPO ?= origin
colab:
	$(CHECK_PYTHON)
	@$(PYTHON) -m tools.colab --repository "$(REPO)"

$(VENV)/.ready: requirements.txt requirements-notebook.txt constraints.txt
	$(CHECK_PYTHON)
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install -r requirements.txt -c constraints.txt
	touch $@

# runs/ stays: it may hold hours of training
clean:
	rm -rf $(VENV)
