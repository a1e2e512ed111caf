"""The pipeline says what is made of what: sources exist, results are distinct, and a stage declares what it reads."""

import ast
import dataclasses
from itertools import chain

import pytest

from lib.records import paths
from lib.records.fingerprint import Code
from lib.records.jobs import Scope, cell_parameters, files, profile
from lib.records.needs import DRAFTS, LOOKS, PUBLIC, draft_files
from lib.records.notebook import read_parameters
from lib.records.paths import ROOT
from lib.records.pipeline import STAGES, jobs, made_by
from lib.study.arms import DRAFTED, correctors_of
from lib.study.profiles import PROFILES, Profile

FIELDS = {field.name for field in dataclasses.fields(Profile)} - {"name"}
# What is judged elsewhere: arms and their episodes row by row (lib.study.rows), timings that are made where they lack,
# and what says which jobs there are, what they make and which parameters they have.
JUDGED = {"arms", "side_arms", "draft_arms", "eval_episodes", "side_episodes", "cell_episodes"}
JUDGED |= {"latency_decisions", "batch_arms", "batch_decisions", "compile_all"}
JUDGED |= {"cells", "study_cells", "every_teacher", "offline_weights", "planner_tables", "statistics_tables"}
JUDGED |= {"correctors", "planner_options"}
JUDGED |= {"drafts", "draft_cells"}  # whose files have keys of their own
JUDGED |= {"perturb_cells", "perturb_arms", "perturb_more_cells", "perturb_more", "perturb_episodes", "perturbations"}
JUDGED |= {"deadlines_cells", "delays"}


@pytest.fixture(scope="module")
def code():
    return Code(ROOT)


def every(name):
    return list(jobs(Scope.of(profile(name))))


def test_sources_exist_and_names_are_distinct():
    assert all((ROOT / stage.source).is_file() for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_what_measures_time_runs_alone():
    timed = {"horizon", "planner", "deadlines", "realtime", "accelerate", "certified-steps"}
    assert {stage.name for stage in STAGES if stage.alone} == timed


@pytest.mark.parametrize("name", PROFILES)
def test_no_two_jobs_make_the_same_result(name):
    made = [out for job in every(name) for out in (*job.outs, *job.keeps)]
    assert len(set(made)) == len(made) and all(job.outs for job in every(name))
    assert len({job.name for job in every(name)}) == len(every(name))


@pytest.mark.parametrize("name", PROFILES)
def test_a_job_needs_what_is_shipped_or_made_by_those_before_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / profile)  # as in a new profile: nothing is there
    shipped, made = [paths.TEACHERS, paths.PAPER, *PUBLIC, LOOKS], set()
    for job in every(name):
        for need in job.needs:
            assert need in made or any(need.is_relative_to(place) for place in shipped), (job.name, need)
        made |= {*job.outs, *job.keeps}


def one(stage, name="paper", cells=()):
    """The only job of a stage."""
    (job,) = jobs(Scope.of(profile(name), cells), (stage,))
    return job


def test_second_figures_are_drawn_where_many_cells_are_evaluated():
    cells = ("a-1m-1", "b-1m-1", "c-5m-1", "d-1m-1")
    for count, second in ((2, ()), (3, ("pareto",)), (4, ("pareto", "horizon"))):
        for name in ("pareto", "horizon"):
            names = [out.stem for out in one(f"{name}-figure", cells=cells[:count]).outs]
            assert names == [name, *([f"{name}-cells"] if name in second else [])]
    sized = [stage for stage in (job.stage for job in jobs(Scope.of(profile("paper"), cells))) if "model_size" in stage]
    assert sized and not list(jobs(Scope.of(profile("paper"), cells[:2]), ("model_size-figure",)))


def test_new_timings_are_a_reason_to_summarise_again(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / profile)
    sidecar = tmp_path / "paper/latency/a-1m-1.csv.meta.json"
    sidecar.parent.mkdir(parents=True)
    sidecar.touch()
    cells = ("a-1m-1", "b-1m-1")
    needs = one("summary", cells=cells).needs
    assert [need for need in needs if need.is_relative_to(sidecar.parent)] == [sidecar]


def test_only_cells_that_the_profile_names_are_certified(monkeypatch, tmp_path):
    stages = ("certified", "certified-steps", "certified-summary", "certified-figure")
    play, timed, summary, figure = jobs(Scope.of(profile("smoke")), stages)
    assert (play.name, timed.name) == ("certified-walker-walk-1m-1", "certified-steps-walker-walk-1m-1")
    assert play.outs[0] in timed.needs and timed.alone and timed.timing
    assert set(summary.needs) >= set(play.outs) and figure.needs == [*summary.outs, LOOKS]
    assert not summary.keeps
    assert not list(jobs(Scope.of(profile("smoke"), ("a-1m-1",)), stages))
    one = dataclasses.replace(profile("paper"), certified_cells=("walker-walk-1m-1",))
    (*_, summary, _) = jobs(Scope.of(one), stages)
    assert [path.name for path in summary.keeps] == ["validity.csv"]


def test_certifying_makes_the_networks_that_no_other_stage_makes():
    paper = dataclasses.replace(profile("paper"), draft_cells=())
    beside = dataclasses.replace(paper, certified_cells=("finger-spin-1m-1",))
    made = [f"finger-spin-1m-1-{name}.safetensors" for name in ("two_tower", "distilled", "cloned")]
    assert set(correctors_of(list(chain(*paper.certification.chains.values())))) == {"two_tower", "distilled", "cloned"}

    def needed_and_kept(scope):
        job = list(jobs(scope, ("certified",)))[-1]
        return [[path.name for path in files if "finger-spin" in path.name] for files in (job.needs, job.keeps)]

    weights = ["finger-spin-1m-1.safetensors"]
    assert needed_and_kept(Scope.of(beside)) == [weights, made]
    assert needed_and_kept(Scope.of(beside, ("finger-spin-1m-1",))) == [weights, made]
    among = dataclasses.replace(beside, cells=("finger-spin-1m-1",))
    correctors = [f"finger-spin-1m-1-{arch}.safetensors" for arch in paper.correctors]
    assert needed_and_kept(Scope.of(among)) == [[*correctors, *weights], made[1:]]
    drafted = dataclasses.replace(among, draft_cells=("finger-spin-1m-1",))
    assert needed_and_kept(Scope.of(drafted)) == [[*correctors, *made[1:], *weights], []]


def test_only_cells_that_the_profile_names_are_played_with_delays(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / profile)
    stages = ("deadlines", "deadlines-summary", "deadlines-figure")
    play, summary, figure = jobs(Scope.of(profile("smoke")), stages)
    made = [out.relative_to(tmp_path / "smoke").as_posix() for out in (*play.outs, *play.keeps)]
    assert made == [
        "deadlines/walker-walk-1m-1.csv", "deadlines/perturbed/walker-walk-1m-1.csv",
        "deadlines/walker-walk-1m-1-steps.csv", "deadlines/walker-walk-1m-1-gates.json",
        "corrector/walker-walk-1m-1-delay_aware.safetensors", "corrector/walker-walk-1m-1-delay_aware-depth.csv",
    ]  # fmt: skip
    assert [need.stem for need in play.needs if need.is_relative_to(tmp_path)] == [
        f"walker-walk-1m-1-{name}" for name in ("two_tower", "temporal", "distilled")
    ]
    assert summary.needs == play.outs and {*summary.outs, LOOKS} >= set(figure.needs)
    assert [out.name for out in figure.outs] == ["deadlines.svg", "deadlines-delay.svg"]
    play, *_ = jobs(Scope.of(profile("quick")), stages)  # which has no changed world and no gate
    assert [out.name for out in (*play.outs, *play.keeps)] == ["walker-walk-1m-1.csv", "walker-walk-1m-1-steps.csv"]
    assert not list(jobs(Scope.of(profile("smoke"), ("a-1m-1",)), stages))
    none = dataclasses.replace(profile("paper"), deadlines_cells=())
    assert not list(jobs(Scope.of(none), stages))
    timed = tmp_path / "smoke/deadlines/walker-walk-1m-1-steps.csv.meta.json"
    timed.parent.mkdir(parents=True)
    timed.touch()
    _, summary, _ = jobs(Scope.of(profile("smoke")), stages)
    assert timed in summary.needs  # new timings are a reason to summarise again


@pytest.mark.parametrize("stage", ["action_error", "sequence"])
def test_cells_that_only_confirm_have_no_errors_of_actions_and_no_sequence_model(stage):
    study = profile("paper").study_cells
    asked = {(): study, ("a-1m-1", study[1]): study[1:], ("a-1m-1", "b-5m-1"): ("a-1m-1", "b-5m-1")}
    for cells, wanted in asked.items():
        assert tuple(job.cell for job in jobs(Scope.of(profile("paper"), cells), (stage,))) == wanted
    assert len(list(jobs(Scope.of(profile("paper")), ("horizon",)))) > len(study)


@pytest.mark.parametrize(("name", "tables"), [("quick", 3), ("smoke", 4), ("paper", 5)])
def test_the_planner_is_measured_as_far_as_the_profile_goes(name, tables):
    job = one("planner", name)
    assert len(job.outs) == tables and job.timing and bool(job.needs) == (name != "quick")


@pytest.mark.parametrize("name", PROFILES)
def test_notebooks_have_the_parameters_that_jobs_give(name):
    for job in {job.stage: job for job in every(name) if job.source.suffix == ".ipynb"}.values():
        assert read_parameters(job.source, job.parameters)[1].keys() == job.parameters.keys()


def test_who_makes_a_folder():
    makers = {
        "teacher": "01",
        "distillation": "02",
        "corrector": "03",
        "horizon": "04",
        "latency": "04",
        "offline": "06",
    }
    makers |= {"model_error": "05", "decision_transformer": "07", "planner": "08", "deadlines": "09"}
    assert {folder: made_by(f"{folder}/a.csv")[10:12] for folder in makers} == makers
    assert made_by("certified/a.csv") == "paper/certify.py"
    assert made_by("statistics/a.csv") == "paper/summary.py" and made_by("elsewhere/a.csv") == ""


def test_settings_are_fields_of_the_profile():
    assert all(set(stage.settings) <= FIELDS for stage in STAGES)


@pytest.mark.parametrize("stage", [s for s in STAGES if not s.timing], ids=lambda stage: stage.name)
def test_a_stage_declares_the_fields_of_the_profile_that_it_reads(code, stage):
    roots = stage.roots(Scope.of(profile("paper")))
    read = {name for target in code.reached(stage.source, *roots) for name in fields_read(code, target)}
    assert read - JUDGED == set(stage.settings) - JUDGED


METHODS = {("settings", "planner"), ("settings", "decisions")}


def fields_read(code, target):
    """The fields that a definition reads, of what is always called `profile` or by methods of `Settings`."""
    module = code.module(target.module)
    statements = module.bound[target.name] if target.name else module.body
    if target.name not in ("Settings", "Profile"):
        for node in (node for statement in statements for node in ast.walk(statement)):
            if isinstance(node, ast.Attribute) and node.attr in FIELDS:
                owner = ast.unparse(node.value).split(".")[-1]
                if owner == "profile" or (owner, node.attr) in METHODS:
                    yield node.attr


def test_unfinished_files_are_no_files_of_ours(tmp_path):
    for name in ("b.csv", "a.csv", ".c.1234.tmp.csv", "d.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.csv").mkdir()
    assert [file.name for file in files(tmp_path, "*.csv")] == ["a.csv", "b.csv"]


def test_cells_are_parameters_of_notebooks_and_an_option_of_scripts():
    assert cell_parameters("a.py", "cup-catch-1m-1") == {"cell": "cup-catch-1m-1"}
    assert cell_parameters("a.ipynb", "cup-catch-1m-1") == {"task": "cup-catch", "model_size": "1m", "seed": "1"}


def test_the_drafts_that_stages_need_are_the_studys():
    assert DRAFTS == DRAFTED
    scope = Scope.of(profile("smoke"))
    named = [file.stem for file in draft_files(scope, scope.cells[0], ["teacher", "16x1+draft+doubt-2", "prior+"])]
    assert named == [f"{scope.cells[0]}-{draft}" for draft in ("distilled", "prior+")]
    assert [
        file.stem[-6:] for file in draft_files(scope, scope.cells[0], ["clone+gated-3", "async+delay-aware+clone-d2"])
    ] == ["cloned"]
