"""How many episodes the arms play, cell by cell, as notebook 04 looks them up."""

import dataclasses
import json
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest

from lib.config import PlannerConfig
from lib.records.paths import NOTEBOOKS
from lib.study.arms import DRAFTED, arm_name, make_arm
from lib.study.cells import Cell
from lib.study.delays import arms_of, changed_arms
from lib.study.profiles import PROFILES, CellEpisodes
from lib.study.stats.certification import CHAINS

PAPER = PROFILES["paper"]
NAMES = {"fnmatchcase": fnmatchcase, "arm_name": arm_name}


def counts(cell, profile=PAPER, arms="", execution_horizon=0, episodes=0) -> dict[str, int]:
    """Episodes of each arm by the lines of notebook 04 that say so, with these parameters."""
    cells = json.loads((NOTEBOOKS / "04_horizon_evaluation.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    (source,) = (source for source in sources if "settings.profile.counts" in source)
    given = {"settings": SimpleNamespace(profile=profile), "cell": cell, "arms": arms}
    given |= {"execution_horizon": execution_horizon, "episodes": episodes} | NAMES
    exec(source.split("correctors = ")[0], given)
    return given["counts"]


def each(arms, count: int) -> dict[str, int]:
    return {arm_name(arm): count for arm in arms}


def test_the_paper_plays_most_episodes_where_arms_are_told_apart():
    paper = dataclasses.replace(PAPER, draft_cells=())
    for cell in ("walker-walk-1m-1", "cartpole-swingup-1m-1"):
        assert counts(Cell.parse(cell), paper) == each(PAPER.arms, 50) | each(PAPER.side_arms, 20)
    for cell in ("reacher-easy-1m-1", "walker-walk-1m-11"):
        assert counts(Cell.parse(cell), paper) == each(PAPER.arms, 20)
    for cell in (Cell.parse("walker-walk-5m-1"), Cell("walker-walk", "?", 1, "official-[x]")):
        assert counts(cell, paper) == each(PAPER.arms, 10)


def test_drafts_play_where_there_are_drafts():
    study = dataclasses.replace(
        PAPER, arms=("teacher",), side_arms=(), draft_arms=("distilled",), draft_cells=("cup-catch-1m-1",)
    )
    assert counts(Cell.parse("cup-catch-1m-1"), study) == {"teacher": 20, "distilled": 20}
    assert counts(Cell.parse("reacher-easy-1m-1"), study) == {"teacher": 20}


def test_the_first_pattern_that_matches_counts():
    numbers = (CellEpisodes("cup-*", 3, 0), CellEpisodes("cup-catch-1m-1", 5, 2))
    study = dataclasses.replace(PAPER, cell_episodes=numbers, arms=("teacher",), side_arms=("policy",), draft_cells=())
    assert study.counts("cup-catch-1m-1") == {"teacher": 3}
    assert study.counts("walker-run-1m-1") == {"teacher": PAPER.eval_episodes}


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_other_profiles_play_as_many_everywhere(profile):
    own = PROFILES[profile]
    assert counts("any", own) == each(own.arms, own.eval_episodes)


def test_arms_that_are_asked_for_play_as_many_as_the_teacher_unless_the_profile_says_less():
    cell = Cell.parse("walker-walk-1m-1")
    assert counts(cell, arms="64×2+two-tower-3, 64x2+two-tower-4,hold-last-6") == {
        "teacher": 50, "64×2+two-tower-3": 50, "64×2+two-tower-4": 50, "hold-last-6": 20,
    }  # fmt: skip
    assert counts(cell, execution_horizon=4) == each(("teacher", "policy", "open-loop-4", "two-tower-4"), 50)
    assert counts(cell, arms="open-loop-3", episodes=7) == each(("teacher", "open-loop-3"), 7)
    assert counts(Cell.parse("reacher-easy-1m-1"), arms="hold-last-6") == each(("teacher", "hold-last-6"), 20)


def test_the_study_of_deadlines_has_what_decides_and_changed_worlds_that_others_have():
    paper = PROFILES["paper"]
    study, has = paper.delays, ("two_tower", "delay_aware", *DRAFTED)
    assert study.delays == (0, 2, 4, 6, 8) and max(study.trained_delays) == 4  # two that its corrector has not seen
    assert (study.episodes, study.study_episodes) == (20, 20)
    assert len(arms_of(study, has)) == len(arms_of(study, has, studied=True)) == 3 + 1 + 7 * 4
    assert changed_arms(study, has) == [
        "policy", "distilled", "cloned", "128×2+late-d0",
        *(f"128×2+async+delay-aware-d{delay}" for delay in (2, 4)),
    ]  # fmt: skip
    assert set(study.perturbations) <= set(paper.perturbations) and len(study.perturbations) == 2
    assert set(paper.perturb_cells) <= set(paper.draft_cells)  # drafts are among the arms of changed worlds
    assert set(paper.deadlines_cells) <= set(paper.cells)


def test_candidates_of_certification_are_arms_and_a_5m_cell_plays_fewer_episodes():
    study = PAPER.certification
    assert list(study.chains) == ["planners", "reuse", "drafts", "clone"] and len(study.chains) == CHAINS
    for arm in (name for chain in study.chains.values() for name in chain):
        assert make_arm(arm, PlannerConfig()).name == arm_name(arm) != "teacher"
    counts = [next(n for pattern, n in study.episodes if fnmatchcase(cell, pattern)) for cell in PAPER.cells]
    assert counts == [30 if "-5m-" in cell else 50 for cell in PAPER.cells]
