"""What a run keeps for the next one: the plan, and which start states tests have had."""

import contextlib
import dataclasses
import functools

import pytest

from lib.config import PlannerConfig
from lib.environments import EnvironmentFailed
from lib.records import paths
from lib.study.accelerate import search
from lib.study.accelerate.plan import LEAST, MOST, Costs, OutOfTime, measured
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

    def made(minutes, task=TASK, rate=0.0, keep=0.98):
        found = Search(weights, task, rate, keep, minutes, planner=PlannerConfig.budget(128, 2))
        found.prepare()
        return found

    return made


def asked(monkeypatch, found, killed=0):
    """The numbers of episodes that `certify` is asked for, which has no time for any; the run is killed at a number."""
    counts = []

    def refuse(stage, chains, planner, calibration, count, keep, fits, first):
        assert first == found.tests.first
        counts.append(count)
        raise KeyboardInterrupt if count == killed else OutOfTime("the teacher's take longer")

    monkeypatch.setattr(search, "certify", refuse)
    with pytest.raises(KeyboardInterrupt) if killed else contextlib.nullcontext():
        assert found.choose()[0].empty
    return counts


def test_other_minutes_test_on_start_states_that_no_test_has_seen(search_for, monkeypatch, capsys):
    monkeypatch.setattr(Search, "room", lambda self, chains: self.plan.certification)
    more = search_for(40)
    assert more.plan.certification == 50 and more.mode == "auto"
    assert search_for(40).plan == more.plan
    first = search_for(9)  # nothing has been tested
    count = first.plan.certification
    assert LEAST < count < MOST and first.mode == "eager"
    assert asked(monkeypatch, first, killed=count) == [count]
    capsys.readouterr()
    again = search_for(9)
    assert again.plan == first.plan and again.tests.first == 0
    assert asked(monkeypatch, again) == [count]
    assert again.left_out[-1] == f"the test: an earlier run has begun it with {count} episodes of each"
    other = search_for(40)
    assert "1 other test was begun of this teacher; this one has other start states" in capsys.readouterr().err
    assert (other.plan.certification, other.mode, other.tests.first) == (50, "auto", MOST)
    asked(monkeypatch, other, killed=50)
    assert search_for(40).tests.first == MOST
    assert search_for(9).tests.first == 2 * MOST  # planned anew, with other labels perhaps


def test_another_share_or_rate_has_start_states_of_its_own(search_for, monkeypatch):
    """What failed at 98 % and is asked for at 95 % would else be judged by the same returns."""
    asked(monkeypatch, search_for(40), killed=50)
    assert search_for(40, keep=0.95).tests.first == MOST and search_for(40, rate=2.0).tests.first == MOST
    asked(monkeypatch, search_for(40, keep=0.95), killed=50)
    assert search_for(40).tests.first == 0 and search_for(40, rate=2.0).tests.first == 2 * MOST
    for file in (paths.CACHE / "accelerate").glob("*-plan-*"):
        file.unlink()
    assert search_for(40).tests.first == 2 * MOST  # a plan that is lost does not bring seen ones back


def test_a_candidate_without_time_ends_its_own_chain_alone(search_for, monkeypatch):
    """Those before it in the chain, and other chains, are as they were."""
    found = search_for(9)
    found.tested, played = 10, []

    def run(self, arm, controller, seeds, what):
        played.append(arm.name)
        if arm.name == "policy":
            raise OutOfTime("policy would take 9 minutes")
        return real(self, arm, controller, seeds, what)

    real = search.Playing.run
    monkeypatch.setattr(search.Playing, "run", run)
    assert found.fits("budget-16×1", "certify") and not found.fits("policy", "certify")
    assert found.left_out == ["policy, and what is cheaper in its chain: policy would take 9 minutes"]
    assert found.fits("budget-16×1", "certify") and played == ["budget-16×1", "policy"]
    assert found.fits("teacher", "certify") and not found.fits("budget-16×1", "trial")


def test_minutes_that_were_not_needed_go_into_the_test(search_for, monkeypatch):
    found = search_for(9)
    planned = found.plan.certification
    monkeypatch.setattr(search.Clock, "left", 540.0)  # nothing before it took any time
    found.clock.pace = 0.5
    (count, *_) = asked(monkeypatch, found, killed=MOST)
    assert planned < count == MOST
    names = {"teacher", *(name for chain in found.candidates.values() for name in chain)}
    each = sum(found.stage.costs.episode(found.arm(name)) for name in names)
    left = 540 - search.REPORT - found.plan.seconds["time"] - found.plan.seconds["check"]
    found.clock.pace = 1.0
    assert found.room(found.candidates) == int(left / each)


def test_a_slow_machine_has_a_smaller_test_so_that_the_pick_is_checked(search_for, monkeypatch):
    found = search_for(30)
    assert found.plan.check >= LEAST
    found.plan = dataclasses.replace(found.plan, certification=40)
    monkeypatch.setattr(search.Clock, "left", 60 + found.plan.seconds["check"] + found.plan.seconds["time"])
    (count, *_) = asked(monkeypatch, found, killed=LEAST)
    assert count == LEAST


def test_episodes_that_can_end_early_are_counted_as_long_as_the_prior_plays(search_for, monkeypatch):
    found = search_for(9)
    assert found.usual_length() == found.length
    lengths = [3, 4, 6]
    monkeypatch.setattr(search, "random_returns", lambda prior, *given: [{"length": n} for n in lengths])
    found.stage.wm.config = dataclasses.replace(found.stage.wm.config, episodic=True)
    assert found.usual_length() == 5  # of 4.33


def test_a_check_that_was_begun_is_made_of_as_many_episodes(search_for, monkeypatch):
    found = search_for(40)
    found.tested, counts = 50, []
    monkeypatch.setattr(search.Playing, "play", lambda self, arm, seeds: counts.append(len(seeds)) or 1 / 0)
    for left in (1_000.0, 2_000.0):
        monkeypatch.setattr(search.Clock, "left", left)
        with pytest.raises(ZeroDivisionError):
            found.checked("policy", 0.0)
    assert counts[0] == counts[1] == found.tests.mine["check"] > 0


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
    assert said.count("These episodes are played one by one.") == 1 and said.count("It is tried again") == 2
    monkeypatch.setattr(Breaking, "bad", frozenset(range(10)))  # none of those is played again
    assert [row["episode_seed"] for row in stage.play(policy, seeds)[0].episodes] == seeds
