# Speculative TD-MPC2: `make help` lists the targets. For GNU make 3.81 and later, on Linux and macOS.
#
# Targets are named steps, not files: `lib.records.run` decides by content what has to run, because git does not keep file times.
# For the same reason there is no .DELETE_ON_ERROR: a failed step leaves the earlier result, and lib.records.run knows it is old.
.NOTPARALLEL:
.DEFAULT_GOAL := all

PROFILE = quick
# The cells (<task>-<size>-<seed>) of each profile; `make all CELLS="…"` takes others.
CELLS_smoke = walker-walk-1m-1
CELLS_quick = walker-walk-1m-1
STUDY_paper = walker-walk-1m-1 cartpole-swingup-1m-1
CELLS_paper = $(STUDY_paper) cheetah-run-1m-1 reacher-easy-1m-1 cup-catch-1m-1 walker-run-1m-1 walker-walk-5m-1
CELLS = $(CELLS_$(PROFILE))
# The other cells of a profile put to the test what these found. Those alone have the errors of single actions and the
# sequence models, unless a command asks for none of them.
STUDY = $(or $(filter $(STUDY_$(PROFILE)),$(CELLS)),$(CELLS))
# What a sequence model is trained on, and with which seeds (SequenceStudy in lib/study/workload.py).
SEQUENCES = $(STUDY)
SEQUENCE_SEEDS_paper = 1 2 3
SEQUENCE_SEEDS = $(or $(SEQUENCE_SEEDS_$(PROFILE)),1)
# The paper shows every shipped teacher.
SHIPPED_paper = $(notdir $(basename $(wildcard data/teachers/*.safetensors)))
# Drawn where the cells have several sizes.
SIZES = $(sort $(foreach cell,$(CELLS),$(filter 1m 5m 19m 48m 317m,$(subst -, ,$(cell)))))
SIZES_FIGURE = $(if $(word 2,$(SIZES)),model_size-figure)
TEACHER_CELLS = $(sort $(CELLS) $(SHIPPED_$(PROFILE)))
ifeq ($(filter $(PROFILE),smoke quick paper),)
$(error PROFILE=$(PROFILE) is not known; use smoke, quick or paper)
endif

# RUN_MODE is run, warn or status (see lib/records/run.py); `paper` and `status` set it for the graph below.
RUN_MODE = run
FIGURE_MODE = run
STALE_LIST =
PYTHON ?=
PY = "$(if $(PYTHON),$(PYTHON),.venv/bin/python)"
R = data/results/$(PROFILE)
T = data/teachers
OFFICIAL = data/official_returns.csv
B = build/$(PROFILE)
RUN = $(PY) -m lib.records.run
# For scripts in folders of their own, where PYTHON= names an environment that has no `lib` installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
OPTIONS = -p profile $(PROFILE) --mode $(RUN_MODE) $(STALE_LIST)
STRIP = $(PY) -m nbstripout --extra-keys "metadata.papermill cell.metadata.papermill"

.PHONY: all paper status test test-slow lint html verify teachers clean help setup install graph summary pareto
.PHONY: planner planner-figure teachers-figure horizon-figure depth-figure replans-figure returns-figure film
.PHONY: profiles-figure model_error-figure offline offline-figure sequence-figure model_size-figure
.PHONY: $(TEACHER_CELLS:%=teacher-%) $(CELLS:%=distillation-%) $(CELLS:%=corrector-%) $(CELLS:%=horizon-%)
.PHONY: $(STUDY:%=action_error-%) $(TEACHER_CELLS:%=model_error-%) $(SEQUENCES:%=sequence-%)

all: graph  ## run what is stale, then the figures and the PDF, build/<profile>/paper.pdf (PROFILE=quick|paper|smoke)
	@rm -f $(B)/stale.txt
	@$(PY) paper/build.py --profile $(PROFILE)

paper: PDF_PROFILE = $(if $(filter command line,$(origin PROFILE)),$(PROFILE),paper)
paper: setup  ## the PDF of the paper profile from the results that are there, naming stale ones; runs no notebook
	@mkdir -p build/$(PDF_PROFILE) && : > build/$(PDF_PROFILE)/stale.txt
	@$(MAKE) --no-print-directory graph PROFILE=$(PDF_PROFILE) RUN_MODE=warn \
		STALE_LIST="--stale-list build/$(PDF_PROFILE)/stale.txt"
	@$(PY) paper/build.py --profile $(PDF_PROFILE)

status: setup  ## say which results are fresh or stale, why, and about how long they take; runs nothing
	@mkdir -p $(B) && : > $(B)/status.txt
	@$(MAKE) --no-print-directory graph RUN_MODE=status FIGURE_MODE=status STALE_LIST="--stale-list $(B)/status.txt"

test: setup  ## the tests, without the slow ones
	$(PY) -m pytest

test-slow: setup  ## the slow tests
	$(PY) -m pytest -m slow

lint: setup  ## style of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(wildcard notebooks/*.ipynb),$(STRIP) --verify $(wildcard notebooks/*.ipynb))

film: setup  ## draw figures/paper/film.gif from the committed results (needs a GL library)
	$(PY) -m figures.film --cell $(firstword $(CELLS_paper)) --profile paper

html: graph  ## executed notebooks as web pages in build/<profile>/html, after running what is stale
	@ls $(B)/*.ipynb >/dev/null 2>&1 || { echo "error: build/$(PROFILE) holds no executed notebook, as the results" \
		"came with the clone; run \`make html PROFILE=quick\`, or remove a result to make it again." >&2; exit 1; }
	$(PY) -m nbconvert --log-level WARN --to html --output-dir $(B)/html $(B)/*.ipynb

verify: setup  ## run a sample of the committed episodes again and compare
	$(PY) -m lib.study.verify --profile $(PROFILE)

teachers: setup  ## train the teachers that are missing (hours; nothing else ever trains one)
	$(PY) -m lib.teachers.cli zoo

# With git, only what is not committed goes; a copy without git has nothing committed in these folders. Training runs
# stay: they took hours and can be resumed.
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
ifeq ($(PYTHON),)
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

# ----------------------------------------------------------------------------------------------- results, figures

graph: setup $(TEACHER_CELLS:%=teacher-%) $(CELLS:%=horizon-%)
graph: teachers-figure pareto horizon-figure depth-figure replans-figure returns-figure profiles-figure
graph: model_error-figure offline-figure sequence-figure planner-figure $(SIZES_FIGURE)

$(TEACHER_CELLS:%=teacher-%): teacher-%: setup
	@$(RUN) notebooks/01_teacher.ipynb --cell $* $(OPTIONS) \
		--out $(R)/teacher/$*.csv \
		--out $(R)/teacher/$*-card.csv \
		--needs $(T)/$*.safetensors $(T)/$*.json $(T)/$*.csv $(OFFICIAL)

$(CELLS:%=distillation-%): distillation-%: setup
	@$(RUN) notebooks/02_collect_data.ipynb --cell $* $(OPTIONS) \
		--out $(R)/distillation/$*.csv \
		--needs $(T)/$*.safetensors

# The correctors that the profile's arms need (lib/study/workload.py).
CORRECTORS_quick = two_tower
CORRECTORS = $(or $(CORRECTORS_$(PROFILE)),two_tower temporal)

$(CELLS:%=corrector-%): corrector-%: distillation-%
	@$(RUN) notebooks/03_train_corrector.ipynb --cell $* $(OPTIONS) \
		-p corrector_type $(if $(filter temporal,$(CORRECTORS)),both,two_tower) \
		$(foreach a,$(CORRECTORS),$(addprefix --out $(R)/corrector/$*-$(a),.csv -depth.csv .safetensors)) \
		--needs $(R)/distillation/$*.csv $(T)/$*.safetensors

$(CELLS:%=horizon-%): horizon-%: corrector-%
	@$(RUN) notebooks/04_horizon_evaluation.ipynb --cell $* $(OPTIONS) \
		--out $(R)/horizon/$*.csv \
		--out $(R)/horizon/$*-depth.csv \
		--out $(R)/horizon/$*-phase.csv \
		--out $(R)/corrector/$*-calibration.json \
		--out $(R)/corrector/$*-candidates.csv \
		--out $(R)/latency/$*.csv \
		--needs $(CORRECTORS:%=$(R)/corrector/$*-%.safetensors) $(T)/$*.safetensors

$(STUDY:%=action_error-%): action_error-%: corrector-%
	@$(RUN) paper/action_errors.py -p cell $* $(OPTIONS) \
		--out $(R)/horizon/$*-action-error.csv \
		--needs $(CORRECTORS:%=$(R)/corrector/$*-%.safetensors) $(T)/$*.safetensors

$(TEACHER_CELLS:%=model_error-%): model_error-%: setup
	@$(RUN) notebooks/05_model_error.ipynb --cell $* $(OPTIONS) \
		--out $(R)/model_error/$*.csv \
		--out $(R)/model_error/$*_model_error.txt \
		--needs $(T)/$*.safetensors $(T)/$*.json $(wildcard $(T)/$*/*.safetensors)

# The snapshots that the study looks at (OfflineStudy in lib/study/workload.py), as far as they are shipped.
OFFLINE_smoke = $(T)/walker-walk-1m-1.safetensors
OFFLINE_quick = $(T)/cartpole-swingup-1m-1.safetensors $(T)/cartpole-swingup-1m-1/2500.safetensors
OFFLINE_TASKS = cartpole-swingup reacher-easy walker-walk
OFFLINE_paper = $(sort $(wildcard \
	$(OFFLINE_TASKS:%=$(T)/%-1m-[123].safetensors) $(OFFLINE_TASKS:%=$(T)/%-1m-[123]/*.safetensors)))

offline: setup
	@$(RUN) notebooks/06_offline_vs_downstream.ipynb $(OPTIONS) \
		$(foreach table,cells gaps correlations differences skipped,--out $(R)/offline/$(table).csv) \
		--needs $(OFFLINE_$(PROFILE))

# After the evaluation, whose episodes of the teacher and the policy prior it takes.
$(SEQUENCES:%=sequence-%): sequence-%: horizon-%
	@$(RUN) notebooks/07_decision_transformer.ipynb --cell $* $(OPTIONS) \
		$(foreach part,$(SEQUENCE_SEEDS) latency episodes summary,--out $(R)/decision_transformer/$*-expert-$(part).csv) \
		--needs $(T)/$*.safetensors

# Timings of this machine's CPU; the teacher plays only where float32 and bfloat16 are compared. For a GPU, on a machine
# that has one: papermill notebooks/08_planner_benchmark.ipynb build/out.ipynb -p profile paper -p device cuda
PLANNER_smoke = cpu cpu-step cpu-updates bfloat16
PLANNER_quick = cpu cpu-step cpu-updates
PLANNER_paper = cpu cpu-step cpu-updates cpu-memory bfloat16
PLANNER = $(PLANNER_$(PROFILE))
PLANNER_OPTIONS_quick = -p model_size 1m -p seconds 1  # compiling 5m as well would take minutes

planner: setup  ## measure the planner, unless that was done; nothing else should run meanwhile
	@$(RUN) notebooks/08_planner_benchmark.ipynb $(OPTIONS) $(PLANNER_OPTIONS_$(PROFILE)) \
		$(PLANNER:%=--out $(R)/planner/%.csv) \
		$(if $(filter bfloat16,$(PLANNER)),--needs $(T)/walker-walk-1m-1.safetensors)

# A figure takes a second, so `make paper` draws it wherever its inputs are there.
figure = $(RUN) figures/$(1).py -p profile $(PROFILE) \
	--mode $(if $(filter-out $(wildcard $(2)),$(2)),$(RUN_MODE),$(FIGURE_MODE)) $(STALE_LIST) \
	--out figures/$(PROFILE)/$(1).svg --needs $(2)

# ls and not $(wildcard): make remembers folders as they were before the notebooks ran.
TEACHERS = $(shell ls $(R)/teacher/*.csv 2>&-)
# Of these files the ones that are there, or all of them if none is.
there = $(or $(shell ls $(1) 2>&-),$(1))

teachers-figure: setup $(TEACHER_CELLS:%=teacher-%)
	@$(call figure,teachers,$(if $(TEACHERS),$(TEACHERS),$(CELLS:%=$(R)/teacher/%-card.csv)) $(OFFICIAL))

STATISTICS = comparisons power aggregate profiles
STATISTICS_smoke = headline
STATISTICS_paper = headline coverage

# Of the timings the sidecars: that a column of times has changed is otherwise no reason to do anything again.
summary: setup $(CELLS:%=horizon-%)
	@$(RUN) paper/summary.py $(OPTIONS) \
		--out $(R)/horizon/summary.csv --out $(R)/horizon/arms.json \
		$(foreach table,$(STATISTICS) $(STATISTICS_$(PROFILE)),--out $(R)/statistics/$(table).csv) \
		--needs $(call there,$(CELLS:%=$(R)/horizon/%.csv) $(CELLS:%=$(R)/corrector/%-candidates.csv)) \
			$(shell ls $(CELLS:%=$(R)/latency/%.csv.meta.json) 2>&-)

learnt = $(SEQUENCES:%=$(R)/decision_transformer/%-expert-$(1).csv)

# How many cells the summary has: the further ones are drawn apart.
more-than = $(shell cut -d, -f1 $(R)/horizon/summary.csv 2>&- | sed 1d | sort -u | sed 1,$(1)d)

pareto: summary $(SEQUENCES:%=sequence-%)
	@$(call figure,pareto,$(R)/horizon/summary.csv $(shell ls $(R)/statistics/aggregate.csv 2>&-) $(if $(SEQUENCES),$(shell ls $(call learnt,summary) 2>&-))) \
		$(if $(call more-than,2),--out figures/$(PROFILE)/pareto-cells.svg)

horizon-figure: summary
	@$(call figure,horizon,$(R)/horizon/summary.csv) \
		$(if $(call more-than,3),--out figures/$(PROFILE)/horizon-cells.svg)

profiles-figure: summary
	@$(call figure,profiles,$(R)/statistics/profiles.csv $(shell ls $(R)/statistics/headline.csv 2>&-))

model_size-figure: summary
	@$(call figure,model_size,$(R)/horizon/summary.csv)

depth-figure: setup $(CELLS:%=horizon-%) $(STUDY:%=action_error-%)
	@$(call figure,depth,$(call there,$(CELLS:%=$(R)/horizon/%-depth.csv) $(STUDY:%=$(R)/horizon/%-action-error.csv)))

replans-figure: setup $(CELLS:%=horizon-%)
	@$(call figure,replans,$(call there,$(CELLS:%=$(R)/horizon/%-phase.csv) $(CELLS:%=$(R)/horizon/%.csv)))

returns-figure: setup $(CELLS:%=horizon-%)
	@$(call figure,returns,$(call there,$(CELLS:%=$(R)/horizon/%.csv)))

model_error-figure: setup $(TEACHER_CELLS:%=model_error-%)
	@$(call figure,model_error,$(call there,$(TEACHER_CELLS:%=$(R)/model_error/%.csv)))

offline-figure: offline
	@$(call figure,offline,$(R)/offline/cells.csv $(R)/offline/correlations.csv) --out figures/$(PROFILE)/offline-cells.svg

sequence-figure: setup $(SEQUENCES:%=sequence-%)
	@$(call figure,decision_transformer,$(call learnt,summary) $(foreach seed,$(SEQUENCE_SEEDS),$(call learnt,$(seed))))

planner-figure: planner
	@$(call figure,planner,$(R)/planner/cpu.csv)
