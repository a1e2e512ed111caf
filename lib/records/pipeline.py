"""The stages of the study, declared once: what makes which results of what. Who runs, judges or audits reads it here.

    for job in jobs(Scope.of(profile("quick"))):       # in the order in which they can run
        print(job.source, job.outs, job.needs)

Settings are the fields of the profile that a stage reads, roots the objects whose code counts beside the source's,
because they are found by name at run time. The study is named and not imported: this package is below it.
"""

from __future__ import annotations

from collections.abc import Iterator

from lib.files import files
from lib.records import paths
from lib.records.jobs import Job, Scope, Stage, chosen
from lib.records.needs import (
    ACTING,
    COLLECTED,
    ENDS,
    PUBLIC,
    changed,
    concluded_from,
    corrector_files,
    correctors,
    draft_files,
    drawn,
    learnt,
    making_correctors,
    network_files,
    noisy,
    offline_weights,
    played,
    seeds,
    sizes,
    tables,
    weights,
)
from lib.records.studies import CERTIFIED, DEADLINES

# --------------------------------------------------------------------------------------------------------- the stages


KEYED = "coverage"  # a table of simulations, which has a key of its own
STAGES = (
    Stage(
        "teacher",
        "notebooks/01_teacher.ipynb",
        ("teacher",),
        lambda scope, cell: scope.result(f"teacher/{cell}.csv", f"teacher/{cell}-card.csv"),
        lambda scope, cell: [
            *weights(cell),
            *(weights(cell)[0].with_suffix(suffix) for suffix in (".json", ".csv")),
            *PUBLIC,
        ],
        each=lambda scope: scope.teacher_cells,
        settings=("decisions", "planner"),
    ),
    Stage(
        "distillation",
        "notebooks/02_collect_data.ipynb",
        ("distillation",),
        lambda scope, cell: scope.result(f"distillation/{cell}.csv"),
        lambda scope, cell: weights(cell),
        each=lambda scope: scope.cells,
        settings=COLLECTED,
        roots=lambda scope: (ACTING,),
    ),
    Stage(
        "corrector",
        "notebooks/03_train_corrector.ipynb",
        ("corrector",),
        lambda scope, cell: scope.result(
            *(f"corrector/{cell}-{arch}{end}" for arch in scope.profile.correctors for end in ENDS)
        ),
        lambda scope, cell: [*scope.result(f"distillation/{cell}.csv"), *weights(cell)],
        each=lambda scope: scope.cells,
        settings=COLLECTED,
        roots=correctors,
        rows="lib.study.rows:learnt",
        parameters=lambda scope, cell: {
            "corrector_type": "both" if "temporal" in scope.profile.correctors else "two_tower"
        },
    ),
    Stage(
        "drafts",
        "notebooks/11_drafts.ipynb",
        ("distilled", "drafts"),
        lambda scope, cell: scope.result(f"distilled/{cell}.csv"),
        lambda scope, cell: weights(cell),
        each=lambda scope: tuple(cell for cell in scope.cells if cell in scope.profile.draft_cells),
        settings=("drafts", "study_cells", "decisions", "planner"),
        keeps=lambda scope, cell: draft_files(scope, cell),
    ),
    Stage(
        "accelerate",
        "notebooks/10_your_own_teacher.ipynb",
        ("accelerated",),
        lambda scope, cell: scope.result(f"accelerated/{cell}.csv"),
        lambda scope, cell: weights(cell),
        alone=True,
        each=lambda scope: scope.cells[:1] if scope.profile.accelerate else (),
        settings=("accelerate",),
        timing=True,
    ),
    Stage(
        "drafts-summary",
        "paper/drafts.py",
        (),
        lambda scope, _: scope.result("statistics/drafts.csv"),
        lambda scope, _: scope.there(*(f"distilled/{cell}.csv" for cell in scope.profile.draft_cells)),
        wanted=lambda scope: bool(scope.profile.draft_cells),
    ),
    drawn(
        "drafts",
        lambda scope: scope.result("statistics/drafts.csv"),
        wanted=lambda scope: bool(scope.profile.draft_cells),
    ),
    Stage(
        "horizon",
        "notebooks/04_horizon_evaluation.ipynb",
        ("horizon", "latency"),
        lambda scope, cell: scope.result(
            *(f"horizon/{cell}{end}.csv" for end in ("", "-depth", "-phase")), f"corrector/{cell}-candidates.csv"
        ),
        lambda scope, cell: [*network_files(scope, cell, played(scope, cell)), *weights(cell)],
        each=lambda scope: scope.cells,
        settings=(*COLLECTED, "calibrate_episodes", "candidates", "trials"),
        keeps=lambda scope, cell: scope.result(f"corrector/{cell}-calibration.json", f"latency/{cell}.csv"),
        rows="lib.study.rows:rows", alone=True,
    ),
    Stage(
        "many_tasks",
        "lib/study/many_tasks.py",
        ("many_tasks",),
        lambda scope, _: scope.result("many_tasks/returns.csv", "many_tasks/summary.csv"),
        settings=("many_tasks", "decisions", "planner"),
        wanted=lambda scope: scope.profile.many_tasks is not None,
    ),
    *CERTIFIED,
    drawn(
        "teachers",
        lambda scope: [
            *scope.there(*(f"teacher/{cell}{end}.csv" for cell in scope.teacher_cells for end in ("", "-card"))),
            PUBLIC[0],
        ],
    ),
    Stage(
        "summary",
        "paper/summary.py",
        ("statistics",),
        lambda scope, _: scope.result(
            "horizon/summary.csv",
            "horizon/arms.json",
            *(f"statistics/{table}.csv" for table in scope.profile.statistics_tables if table != KEYED),
        ),
        lambda scope, _: scope.there(*tables(scope, "horizon"), *tables(scope, "corrector", "-candidates"))
        + scope.timed(scope.cells),
        settings=("headline", "earlier"),
        keeps=lambda scope, _: scope.result(
            *(f"statistics/{table}.csv" for table in scope.profile.statistics_tables if table == KEYED)
        ),
    ),
    Stage(
        "sequence",
        "notebooks/07_decision_transformer.ipynb",
        ("decision_transformer",),
        lambda scope, cell: learnt(scope, cell, *seeds(scope), "latency", "episodes", "summary"),
        lambda scope, cell: weights(cell),
        each=lambda scope: scope.study_cells,
        settings=("sequence", "eval_episodes", "decisions", "planner"),
    ),
    drawn(
        "pareto",
        lambda scope: [
            *scope.result("horizon/summary.csv"),
            *(p for p in scope.result("statistics/aggregate.csv") if p.is_file()),
            *(p for cell in scope.study_cells for p in learnt(scope, cell, "summary") if p.is_file()),
        ],
        "pareto-cells",
    ),
    drawn("horizon", lambda scope: scope.result("horizon/summary.csv"), "horizon-cells"),
    drawn("choices", lambda scope: scope.result("horizon/summary.csv")),
    drawn(
        "overview",
        lambda scope: [
            *scope.result("horizon/walker-run-1m-1.csv"),
            *corrector_files(scope, "walker-run-1m-1"),
            *weights("walker-run-1m-1"),
        ],
        wanted=lambda scope: "walker-run-1m-1" in scope.cells,
    ),
    Stage(
        "action_error",
        "paper/action_errors.py",
        ("horizon",),
        lambda scope, cell: scope.result(f"horizon/{cell}-action-error.csv"),
        lambda scope, cell: [*corrector_files(scope, cell), *weights(cell)],
        each=lambda scope: scope.study_cells,
        settings=("error_arms", "error_states", *COLLECTED),
        roots=making_correctors,
    ),
    drawn(
        "depth",
        lambda scope: scope.there(
            *tables(scope, "horizon", "-depth"), *(f"horizon/{cell}-action-error.csv" for cell in scope.study_cells)
        ),
    ),
    Stage(
        "perturbed",
        "paper/perturbed.py",
        ("perturbed",),
        lambda scope, cell: scope.result(f"perturbed/{cell}.csv"),
        lambda scope, cell: [*network_files(scope, cell, scope.profile.perturbing(cell)), *weights(cell)],
        each=lambda scope: tuple(cell for cell in scope.cells if cell in scope.profile.perturb_cells),
        settings=(*COLLECTED, "calibrate_episodes"),
        roots=making_correctors,
        keeps=lambda scope, cell: scope.result(f"perturbed/{cell}-std.csv") if noisy(scope) else [],
        rows="lib.study.rows:perturbed",
    ),
    Stage(
        "perturbed-summary",
        "paper/changed.py",
        (),
        lambda scope, _: scope.result("perturbed/summary.csv", "statistics/changed.csv"),
        lambda scope, _: changed(scope),
        settings=("perturb_arms", "perturb_cells"),
        wanted=lambda scope: bool(changed(scope)),
    ),
    drawn(
        "perturbed",
        lambda scope: scope.result("perturbed/summary.csv"),
        "perturbed-cells",
        changed,
        wanted=lambda scope: bool(changed(scope)),
    ),
    *DEADLINES,
    drawn("replans", lambda scope: scope.there(*tables(scope, "horizon", "-phase"), *tables(scope, "horizon"))),
    drawn("returns", lambda scope: scope.there(*tables(scope, "horizon"))),
    drawn(
        "profiles",
        lambda scope: [
            *scope.result("statistics/profiles.csv", "horizon/summary.csv"),
            *(p for p in scope.result("statistics/headline.csv") if p.is_file()),
        ],
    ),
    Stage(
        "model_error",
        "notebooks/05_model_error.ipynb",
        ("model_error",),
        lambda scope, cell: scope.result(f"model_error/{cell}.csv", f"model_error/{cell}_model_error.txt"),
        lambda scope, cell: [
            *weights(cell),
            weights(cell)[0].with_suffix(".json"),
            *files(paths.TEACHERS / cell, "*.safetensors"),
        ],
        each=lambda scope: scope.teacher_cells,
        settings=("errors", "decisions", "planner"),
    ),
    drawn("model_error", lambda scope: scope.there(*(f"model_error/{cell}.csv" for cell in scope.teacher_cells))),
    Stage(
        "offline",
        "notebooks/06_offline_vs_downstream.ipynb",
        ("offline",),
        lambda scope, _: scope.result(
            *(f"offline/{table}.csv" for table in ("cells", "gaps", "correlations", "differences", "skipped"))
        ),
        lambda scope, _: offline_weights(scope),
        settings=("offline",),
        rows="lib.study.model_quality.bench:rows",
    ),
    drawn("offline", lambda scope: scope.result("offline/cells.csv", "offline/correlations.csv"), "offline-cells"),
    drawn(
        "decision_transformer",
        lambda scope: [p for a in ("summary", *seeds(scope)) for c in scope.study_cells for p in learnt(scope, c, a)],
    ),
    Stage(
        "planner",
        "notebooks/08_planner_benchmark.ipynb",
        ("planner",),
        lambda scope, _: scope.result(*(f"planner/{table}.csv" for table in scope.profile.planner_tables)),
        lambda scope, _: weights("walker-walk-1m-1") if "bfloat16" in scope.profile.planner_tables else [],
        parameters=lambda scope, _: {name: str(value) for name, value in scope.profile.planner_options.items()},
        timing=True, alone=True,
    ),
    drawn("planner", lambda scope: scope.result("planner/cpu.csv")),
    Stage(
        "claims",
        "paper/claims.py",
        (),
        lambda scope, _: scope.result("statistics/claims.json"),
        lambda scope, _: [path for path in concluded_from(scope) if path.is_file()],
    ),
    drawn("model_size", lambda scope: scope.result("horizon/summary.csv"), wanted=lambda scope: len(sizes(scope)) > 1),
)  # fmt: skip


def jobs(scope: Scope, only: tuple[str, ...] = ()) -> Iterator[Job]:
    """The jobs of a scope, each after those whose results it needs; `only` some stages, by name.

    One by one, as what a stage needs may depend on what those before it have made.
    """
    for stage in chosen(STAGES, only):
        yield from stage.jobs(scope)


def made_by(result: str) -> str:
    """The source of the first stage that writes into the folder of a result, named as under the profile's results."""
    return next((stage.source for stage in STAGES if result.split("/")[0] in stage.folders), "")
