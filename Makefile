# Only python3 and make are needed; what needs .venv creates it first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PARALLEL := -n auto  # one process per core
EXIT_IF_OLD := sys.exit(sys.version_info < (3, 11))
# Whether the Python of .venv is there, new enough and complete; -I ignores the user's settings.
USABLE := $(RUN) -I -c 'import pip, sys; $(EXIT_IF_OLD)' 2>/dev/null
CHECK_PYTHON = $(PYTHON) -c 'import sys; $(EXIT_IF_OLD)' 2>/dev/null || { echo "$(PYTHON) is missing or older than Python 3.11: install a newer one, then run make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }

# What users have set for their other programs, or git for its hooks.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONWARNINGS MPLBACKEND MATPLOTLIBRC
unexport GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

# A .venv whose Python is gone, too old or without pip is made anew, however new its .ready is.
ifneq ($(shell $(USABLE) && echo yes),yes)
.PHONY: $(VENV)/.ready
endif

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
	@$(CHECK_PYTHON)
	@$(PYTHON) -m tools.colab --repository "$(REPO)"

$(VENV)/.ready: requirements.txt requirements-notebook.txt constraints.txt
	@$(USABLE) || $(CHECK_PYTHON)
	@$(USABLE) || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(RUN) -m pip install -r requirements.txt -c constraints.txt || { echo "The packages could not be installed: run make $(MAKECMDGOALS) again, after make clean if an earlier installation was interrupted"; exit 2; }
	touch $@

# runs/ stays: it may hold hours of training
clean:
	rm -rf $(VENV)
