"""The pipeline as a graph: what waits for what, also before anything is there, and in time for a thousand cells."""

import dataclasses
import time

import pytest

from lib.records import paths
from lib.records.graph import plan
from lib.records.jobs import Scope, profile
from lib.records.pipeline import jobs
from lib.study.profiles import PROFILES

CELL = "walker-walk-1m-1"


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / profile)
    return tmp_path


def after(name: str, **about) -> dict[str, set[str]]:
    return {node.name: set(node.after) for node in plan(Scope.of(profile(name)), **about)}


def test_a_job_waits_for_all_that_it_could_be_made_of():
    found = after("smoke")
    assert found[f"teacher-{CELL}"] == found[f"distillation-{CELL}"] == set()
    assert found[f"corrector-{CELL}"] == {f"distillation-{CELL}"}
    assert found["summary"] == {f"horizon-{CELL}"}  # of timings too, which are not there yet
    assert found["perturbed-figure"] == {"perturbed-summary"}
    assert found["perturbed-summary"] == {f"perturbed-{CELL}"}
    assert found["certified-summary"] == {f"certified-{CELL}", f"certified-steps-{CELL}"}
    assert {"offline", "planner", "summary", f"corrector-{CELL}"} <= found["claims"]


def test_all_cells_of_a_table_are_waited_for_though_one_is_there(nothing_there):
    scope = Scope.of(profile("paper"))
    (file,) = scope.result(f"horizon/{scope.cells[0]}.csv")
    file.parent.mkdir(parents=True)
    file.touch()
    assert {f"horizon-{cell}" for cell in scope.cells} <= after("paper")["summary"]


@pytest.mark.parametrize("name", PROFILES)
def test_jobs_stand_after_those_that_they_wait_for_and_none_is_lost(name):
    found, before = after(name), set()
    for job, needs in found.items():
        assert needs <= before, job
        before.add(job)
    assert {job.name for job in jobs(Scope.of(profile(name)))} <= before


def test_some_stages_wait_for_no_others():
    assert after("smoke", only=("summary", "profiles-figure")) == {"summary": set(), "profiles-figure": {"summary"}}


def thousand() -> Scope:
    cells = tuple(f"task{task}-1m-{seed}" for task in range(100) for seed in range(10))
    more = dict.fromkeys(("study_cells", "draft_cells", "perturb_cells", "certified_cells"), cells)
    return Scope.of(dataclasses.replace(profile("paper"), cells=cells, **more))


def test_a_thousand_cells_are_planned_in_seconds():
    started = time.process_time()
    assert len(plan(thousand())) > 9_000
    assert time.process_time() - started < 15  # seconds of a busy core; four on an idle one
