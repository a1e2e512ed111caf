"""What a run keeps for the next one: the plan, and which start states tests have had."""

import contextlib
import functools

import pytest

from lib.config import PlannerConfig
from lib.environments import EnvironmentFailed
from lib.records import paths
from lib.study.accelerate import search
from lib.study.accelerate.plan import MOST, Costs, OutOfTime, measured
from lib.study.accelerate.search import Search
from tests import own_envs
from tests.study.accelerate.made import TASK, teacher

COSTS = Costs(fixed=0.0, evaluation=2.1e-4, step=1e-3, update=0.6, compile=0.0, decisions=20)


@pytest.fixture
def search_for(tmp_path, monkeypatch):
    """A search within so many minutes, with its plan."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(search, "measured", functools.wraps(measured)(lambda *given: COSTS))
    weights = str(teacher(tmp_path / "weights.safetensors", updates=0))

    def made(minutes, task=TASK):
        found = Search(weights, task, 0.0, 0.98, minutes, planner=PlannerConfig.budget(128, 2))
        found.prepare()
        return found

    return made


def asked(monkeypatch, found, killed=0):
    """The numbers of episodes that `certify` is asked for, which has no time for any; the run is killed at a number."""
    counts = []

    def refuse(stage, chains, planner, calibration, count, keep, fits, first):
        assert first == found.before
        counts.append(count)
        raise KeyboardInterrupt if count == killed else OutOfTime("the teacher's take longer")

    monkeypatch.setattr(search, "certify", refuse)
    with pytest.raises(KeyboardInterrupt) if killed else contextlib.nullcontext():
        assert found.choose()[0].empty
    return counts


def test_other_minutes_test_on_start_states_that_no_test_has_seen(search_for, monkeypatch, capsys):
    more = search_for(40)
    assert more.plan.certification == 50 and more.mode == "auto"
    assert search_for(40).plan == more.plan
    first = search_for(9)  # nothing has been tested
    count = first.plan.certification
    assert 25 <= count <= 28 and first.mode == "eager"  # of 9 minutes, less a few seconds
    assert asked(monkeypatch, first, killed=count) == [count]
    capsys.readouterr()
    again = search_for(9)
    assert again.plan == first.plan and again.before == 0
    assert asked(monkeypatch, again) == [count]
    assert again.left_out[-1] == f"the test: an earlier run has begun it with {count} episodes of each"
    other = search_for(40)
    assert f"a test of 9 minutes was begun on {count} start states; this one has others" in capsys.readouterr().err
    assert (other.plan.certification, other.mode, other.before) == (50, "auto", MOST)
    asked(monkeypatch, other, killed=50)
    assert search_for(40).before == MOST and search_for(9).before == 2 * MOST


def test_a_test_that_was_made_smaller_stays_so(search_for, monkeypatch):
    assert asked(monkeypatch, search_for(40)) == [50, 25, 12]  # none was begun that there was time for
    assert asked(monkeypatch, search_for(40), killed=25) == [50, 25]
    assert asked(monkeypatch, search_for(40)) == [25]


class Breaking(own_envs.Guess):
    """The episodes of some seeds raise."""

    bad = frozenset()

    def step(self, action):
        if self.seed in self.bad:
            raise RuntimeError("a cable broke")
        return super().step(action)


def test_what_was_played_before_an_environment_failed_is_not_lost(search_for, monkeypatch, capsys):
    stage = search_for(9, "tests.study.accelerate.test_search:Breaking").stage
    policy, seeds = search_for(9).arm("policy"), list(range(12))  # in blocks of ten, and two
    monkeypatch.setattr(Breaking, "bad", frozenset({11}))
    with pytest.raises(EnvironmentFailed, match="RuntimeError: a cable broke; this was the episode with seed 11."):
        stage.play(policy, seeds)
    said = capsys.readouterr().err
    assert said.count("It is tried again") == 2
    monkeypatch.setattr(Breaking, "bad", frozenset(range(10)))  # none of those is played again
    assert [row["episode_seed"] for row in stage.play(policy, seeds)[0].episodes] == seeds
