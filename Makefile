# Speculative TD-MPC2: `make help` lists the verbs. For GNU make 3.81 and later, on Linux and macOS.
#
# What is made of what is declared in lib/records/pipeline.py, and lib/records/run.py decides by content what has to run,
# because git does not keep file times.
.NOTPARALLEL:
.DEFAULT_GOAL := all

PROFILE = quick
# The cells (<task>-<size>-<seed>); empty: the profile's. `ONLY` are stages by name; empty: all. AGAIN=1 runs what is
# fresh, too.
CELLS =
ONLY =
AGAIN =
# How many stages side by side, with the cores shared out; empty: two in quick where there are two cores, else one.
JOBS =
# slurm: stages as jobs of a cluster, through submitit, in this PARTITION; empty: processes here.
EXECUTOR =
PARTITION =
ROWS = 1
STAGE =
PYTHON ?=
ifneq ($(words $(PROFILE)) $(filter smoke quick paper,$(PROFILE)),1 $(PROFILE))
$(error PROFILE=$(PROFILE) is not known; use smoke, quick or paper)
endif
PY = exec "$(if $(PYTHON),$(PYTHON),.venv/bin/python)"
# (exec makes what is run a child of make itself: it hears what make is told, and sees when make is gone.)
# For scripts in folders of their own, where PYTHON= names an environment that has no `lib` installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
RUN = $(PY) -m lib.records.run
OPTIONS = $(if $(CELLS),--cells "$(CELLS)") $(if $(ONLY),--only "$(ONLY)")
HOW = $(if $(AGAIN),--again) $(if $(JOBS),--jobs $(JOBS)) $(if $(EXECUTOR),--executor $(EXECUTOR)) \
	$(if $(PARTITION),--partition $(PARTITION))
PAPER = $(if $(filter command line,$(origin PROFILE)),$(PROFILE),paper)
STRIP = $(PY) -m nbstripout --extra-keys "metadata.papermill cell.metadata.papermill"

.PHONY: all results paper status audit planner demo test test-slow lint html site film verify teachers clean help \
	setup install

all: setup  ## run what is stale, then the figures and the PDF, build/<profile>/paper.pdf (PROFILE=quick|paper|smoke)
	@$(RUN) run --profile $(PROFILE) $(OPTIONS) $(HOW) --pdf

results: setup  ## run what is stale (CELLS=, ONLY= narrow it; JOBS=4 side by side; AGAIN=1 runs what is fresh, too)
	@$(RUN) run --profile $(PROFILE) $(OPTIONS) $(HOW)

paper: setup  ## the PDF of the paper profile from the results that are there, naming stale ones; runs no notebook
	@$(RUN) warn --profile $(PAPER) $(OPTIONS)
	@$(PY) paper/build.py --profile $(PAPER)

status: setup  ## say which results are fresh or stale, why, and about how long they take; runs nothing
	@$(RUN) status --profile $(PROFILE) $(OPTIONS)

audit: setup  ## show by replay which results changed code would make again bit for bit (STAGE=, ROWS=)
	@$(PY) -m lib.records.audit --profile $(PAPER) --rows $(ROWS) $(if $(STAGE),--stages "$(STAGE)")

planner: setup  ## measure the planner, unless that was done; nothing else should run meanwhile
	@$(RUN) run --profile $(PROFILE) --only planner

test: setup  ## the tests, without the slow ones
	$(PY) -m pytest

test-slow: setup  ## the slow tests
	$(PY) -m pytest -m slow

lint: setup  ## style of code and notebooks, and which part imports which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo
	$(if $(wildcard notebooks/*.ipynb),$(STRIP) --verify $(wildcard notebooks/*.ipynb))

demo: setup  ## a minute with a certified controller, beside its teacher, and a film: build/demo.gif
	@$(PY) -m figures.demo

film: setup  ## draw figures/paper/film.gif from the committed results (needs a GL library)
	$(PY) -m figures.film --cell walker-run-1m-1 --profile paper

html: results  ## executed notebooks as web pages in build/<profile>/html, after running what is stale
	@ls build/$(PROFILE)/*.ipynb >/dev/null 2>&1 || { echo "error: build/$(PROFILE) holds no executed notebook, as the results" \
		"came with the clone; run \`make html PROFILE=quick\`, or remove a result to make it again." >&2; exit 1; }
	$(PY) -m nbconvert --log-level WARN --to html --output-dir build/$(PROFILE)/html build/$(PROFILE)/*.ipynb

site: setup  ## the web edition, build/site/index.html: findings, explorer, notebooks; runs none, names what is stale
	@$(RUN) warn --profile paper $(OPTIONS)
	@$(PY) -m paper.web

verify: setup  ## run a sample of the committed episodes again and compare
	$(PY) -m lib.study.verify --profile $(PROFILE)

teachers: setup  ## train the teachers that are missing (hours; nothing else ever trains one)
	$(PY) -m lib.teachers.cli zoo

# With git, only what is not committed goes; a copy without git has nothing committed in these folders. Training runs
# stay: they took hours and can be resumed. So does compiled code, in the user's cache, which all checkouts share.
clean:  ## remove what can be made again: build, caches, results and figures other than the paper's
	@for folder in build data/cache/*/ data/results/*/ figures/*/; do \
		folder=$${folder%/}; \
		case $$folder in */paper | */training) continue ;; esac; \
		[ -d "$$folder" ] || continue; \
		if [ -e .git ]; then git clean -ffdxq -- "$$folder" || exit 1; else rm -rf "$$folder"; fi; \
		echo "cleaned $$folder"; \
	done

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "PYTHON=/path/to/python uses that environment as it is, instead of .venv."

# ------------------------------------------------------------------------------------------------- environment

setup:
ifneq ($(PYTHON),)
	@$(PY) -m lib.records.environment
else
	@cmp -s requirements.lock .venv/requirements.lock && cmp -s pyproject.toml .venv/pyproject.toml \
		|| $(MAKE) --no-print-directory install
endif

# The upper bound is labmaze's, which dm_control needs and which has no wheels for later versions.
install:
	@[ -x .venv/bin/pip ] || { \
		found=; \
		for python in python3.11 python3.12 python3 python; do \
			$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>&- \
				&& { found=$$python; break; }; \
		done; \
		[ -n "$$found" ] || { echo "error: no Python 3.11 or 3.12 with venv is on the PATH; install one, or name an" \
			"environment that has everything of requirements.lock: make PYTHON=/path/to/python." >&2; exit 1; }; \
		$$found -m venv --clear .venv; \
	}
	@echo "installing requirements.lock into .venv (minutes, the first time)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@cp requirements.lock pyproject.toml .venv/
