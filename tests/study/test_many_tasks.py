"""Weights that know many tasks, played on each: against episodes played by hand, and what is refused."""

import dataclasses
from functools import partial

import pandas as pd
import pytest

from lib.config import ConfigError, PlannerConfig
from lib.environments import make_env
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import file_hash
from lib.records.seeds import episode_seeds
from lib.study import cards
from lib.study.many_tasks import COLUMNS, returns, summary
from lib.study.profiles import PROFILES, ManyTasks
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import record
from lib.weights.names import find
from lib.weights.native import CheckpointError, load_world_model

TINY = str(paths.ROOT / "tests" / "fixtures" / "official_tiny_mt30_new.pt")
TASKS = ("walker-walk-backwards", "cup-spin")  # one of six actions, one of two, both added by the authors
STUDY = ManyTasks(TINY, file_hash(TINY), 30, PlannerConfig.budget(16, 2), TASKS, episodes=2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)


def test_the_returns_are_those_of_episodes_played_by_hand(cache):
    profile = PROFILES["smoke"]
    table = returns(profile, STUDY)
    assert list(table.columns) == COLUMNS and len(table) == 4 and set(table["teacher"]) == {TINY}
    assert set(table["samples"]) == {16} and set(table["iterations"]) == {2}
    for task, mine in table.groupby("task"):
        seeds = episode_seeds("card", 2, 1)
        controller = ReplanningController(MPPI(load_world_model(TINY, task=task), STUDY.planner))
        played = record(controller, partial(make_env, task), seeds, profile.decisions)
        assert mine["episode_seed"].tolist() == seeds
        assert mine["return"].tolist() == [float(e.rewards.sum()) for e in played]


def test_a_task_is_played_once(cache, monkeypatch):
    first = returns(PROFILES["smoke"], STUDY)
    monkeypatch.setattr(cards, "write_json", lambda *a: pytest.fail("played again"))
    assert returns(PROFILES["smoke"], STUDY).equals(first)


def test_weights_of_another_checksum_are_refused(cache):
    with pytest.raises(ConfigError, match="has the sha256 .* profiles.toml says 0000"):
        returns(PROFILES["smoke"], dataclasses.replace(STUDY, sha256="0" * 64))


def test_a_task_that_they_do_not_know_is_refused(cache):
    with pytest.raises(CheckpointError, match="humanoid-walk"):
        returns(PROFILES["smoke"], dataclasses.replace(STUDY, tasks=("humanoid-walk",)))


def test_the_paper_plays_all_tasks_of_the_listed_weights():
    study = PROFILES["paper"].many_tasks
    assert find(study.teacher).sha256 == study.sha256 and (study.tasks, study.count) == ((), 30)


def test_the_summary_counts_each_task_alike():
    rows = [("a", 1.0), ("a", 3.0), ("b", 10.0), ("b", 30.0), ("b", 50.0)]
    table = summary(pd.DataFrame(rows, columns=["task", "return"])).set_index("task")
    assert table.loc["a"].tolist() == [2, 2.0, 1.0, 3.0] and table.loc["b"].tolist() == [3, 30.0, 10.0, 50.0]
    assert table.loc["all"].tolist() == [5, 16.0, 2.0, 30.0]
