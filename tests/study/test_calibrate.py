"""The choice of the ladder's numbers, and what is kept of every arm's."""

import functools
import json

import numpy as np
import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.distil.thresholds import trust_by_depth
from lib.drafts import SCORES, Draft, DraftGate
from lib.rollout import rollout
from lib.study import calibrate as calibration
from lib.study.arms import DelayArm, make_arm, make_controller
from lib.study.calibrate import calibrate_ladder, ensure_calibration, gate_numbers
from lib.study.cells import Cell, resolve
from lib.study.evaluate import Stage, Tables
from tests.distil.test_thresholds import states
from tests.study.test_evaluate import CELL, corrector_file, env, home, new_corrector  # noqa: F401  (fixtures)
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, tiny_model


@pytest.fixture
def stage(home):  # noqa: F811
    return Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()}, decisions=12)


GATED = ("gated", "gate-only-mismatch", "trusted-gated")
NAMES = ["gated-4", "8x2+ladder-4", "teacher", "8x2+open-loop-3", "value-only-4"]


def calibrated(stage, tmp_path, names=NAMES):
    return ensure_calibration(stage, names, states, "code-states", tmp_path / "calibration.json", BUDGET, 2)


def test_the_ladder_is_the_cheapest_that_keeps_the_return(stage, monkeypatch):
    arm = calibration.make_arm("8x2+ladder-4", BUDGET, {"threshold": 0.0, "levels": (0.0, 0.0)})
    returns = {0.05: 99.0, 0.15: 90.0}  # by the quantile of the lower level: the second is cheaper, but too bad

    def play(self, arm, seeds):
        if arm.name == "teacher":
            return Tables([{"return": 100.0}] * len(seeds)), ""
        low = arm.levels[0] == pytest.approx(states().mismatch.quantile(0.05).item())
        row = {"return": returns[0.05 if low else 0.15], "length": 10, "model_evaluations": 100 if low else 50}
        return Tables([row] * len(seeds)), ""

    monkeypatch.setattr(Stage, "play", play)
    chosen = calibrate_ladder(stage, arm, states(), 2, BUDGET)
    assert all(np.isfinite([t["threshold"], *t["levels"]]).all() for t in chosen["tried"])
    for wanted, kept, cost in ((0.98, 0.99, 10), (0.8, 0.9, 5), (1.1, 0.99, 10)):
        chosen = calibrate_ladder(stage, arm, states(), 2, BUDGET, wanted)
        assert chosen["kept"] == pytest.approx(kept) and chosen["evaluations_per_decision"] == cost
        assert len(chosen["tried"]) == 4 and chosen["episode_seeds"] == [401_000_000, 401_000_001]


def test_numbers_are_kept_until_what_they_depend_on_changes(stage, tmp_path, monkeypatch):
    made = calibrated(stage, tmp_path)
    assert list(made) == ["gated-4", "8×2+ladder-4", "value-only-4"]
    assert made["8×2+ladder-4"]["levels"] and made == json.loads((tmp_path / "calibration.json").read_text())
    calls, real = [], calibration.calibrate

    @functools.wraps(real)  # keys are made of its name
    def counted(*given, **options):
        calls.append(given)
        return real(*given, **options)

    monkeypatch.setattr(calibration, "calibrate", counted)
    before = (tmp_path / "calibration.json").stat().st_ino
    assert calibrated(stage, tmp_path) == made and not calls
    after = (tmp_path / "calibration.json").stat().st_ino
    assert after != before  # `lib.records.run` takes it for a result of this run
    calibrated(stage, tmp_path, [*NAMES, "sensitive-4"])
    assert len(calls) == 1
    monkeypatch.setattr(calibration, "CALLS_PER_PLAN", 2.0)
    again = calibrated(stage, tmp_path)
    assert len(calls) > 3 and again["gated-4"]["threshold"] < made["gated-4"]["threshold"]


def test_thresholds_come_from_states_of_the_arms_own_kind_of_planner(stage, tmp_path):
    made = calibrated(stage, tmp_path, ["gated-4", "8x2+gated-4"])
    for name, mine in zip(("gated-4", "8×2+gated-4"), states().mismatch.chunk(2), strict=True):
        assert made[name]["states"] == len(mine) and made[name]["threshold"] in mine.tolist()
    assert PlannerConfig.budget(8, 2) != BUDGET


def test_without_the_corrector_a_gate_has_the_same_threshold(stage, tmp_path):
    """It scores what the corrector cannot change, so that the arms differ in the corrector alone."""
    made = calibrated(stage, tmp_path, [f"{size}{name}-4" for size in ("", "8x2+") for name in GATED])
    for size in ("", "8×2+"):
        gated, alone, trusted = (made[f"{size}{name}-4"] for name in GATED)
        assert gated["threshold"] == alone["threshold"] == trusted["threshold"]
        assert gated["call_rate"] == alone["call_rate"] and gated["action_error"] != alone["action_error"]
    assert made["gated-4"]["threshold"] != made["8×2+gated-4"]["threshold"]


def test_trust_is_kept_and_made_anew_with_the_corrector(stage, tmp_path):
    names = ["trusted-4", "8x2+trusted-4", "trusted-gated-4", "adarep-4", "published-4", "open-loop-4"]
    made = calibrated(stage, tmp_path, names)
    assert list(made) == ["trusted-4", "8×2+trusted-4", "trusted-gated-4", "adarep-4"]  # a fixed threshold is no number
    for name, source in {"trusted-4": 0, "8×2+trusted-4": 1, "trusted-gated-4": 0}.items():
        mine = states().rows(states().source == source)
        wanted = trust_by_depth(mine, stage.correctors["two_tower"], 4)
        assert {k: made[name][k] for k in wanted} == wanted and len(wanted["plan_mse"]) == 3
    assert "threshold" not in made["trusted-4"] and made["adarep-4"]["threshold"] > 0
    keys = [made[name]["key"] for name in ("trusted-4", "trusted-gated-4")]
    assert calibrated(stage, tmp_path, names) == made
    new_corrector(7)
    again = calibrated(Stage.of(CELL, "smoke", corrector_files=stage.corrector_files, decisions=12), tmp_path, names)
    assert [again[name]["key"] for name in ("trusted-4", "trusted-gated-4")] != keys
    assert again["trusted-4"]["corrector_mse"] != made["trusted-4"]["corrector_mse"]
    assert again["adarep-4"] == made["adarep-4"]  # it has no corrector


def test_a_threshold_that_is_given_leaves_trust_to_calibration(stage, monkeypatch):
    asked = []
    monkeypatch.setattr(calibration, "distillation_key", lambda settings, cell: "code-states")
    monkeypatch.setattr(calibration, "read_sidecar", lambda file: {"distillation_key": "code-states"})

    def made(stage, names, *rest):
        asked.append(names)
        return {name: {"trust": [0.5], "threshold": 0.9} for name in names}

    monkeypatch.setattr(calibration, "ensure_calibration", made)
    settings = resolve("smoke", "walker-walk", "1m", 1, "", "cpu")
    numbers = gate_numbers(settings, stage, ["teacher", "gated-4", "trusted-4", "trusted-gated-4"], BUDGET, 0.3)
    assert asked == [["trusted-4", "trusted-gated-4"]]
    assert numbers["gated-4"] == {"threshold": 0.3, "levels": (0.0, 0.0)}
    assert numbers["trusted-gated-4"]["threshold"] == 0.3 and numbers["trusted-4"]["trust"] == [0.5]
    assert gate_numbers(settings, stage, ["gated-4"], BUDGET, 0.3).keys() == {"gated-4"} and len(asked) == 1


# ------------------------------------------------------------------------------------------------------------ drafts


@pytest.mark.parametrize(("scores", "rate"), [("doubt", 0.25), ("mismatch", 0.1), ("gated", 0.2)])
def test_a_drafts_gate_asks_as_often_as_it_says_on_the_drafts_own_episodes(monkeypatch, scores, rate):
    env = fresh_env()
    monkeypatch.setattr(calibration, "make_env", env)
    torch.manual_seed(0)
    draft = Draft(LATENT, ACTIONS, width=16)
    torch.nn.init.normal_(draft.head.weight, std=0.5)
    wm, cell = tiny_model(), Cell("tiny-task", "1m", 1)
    stage = Stage(cell, "smoke", "nobody", wm, {}, decisions=40)
    stage.correctors = {"distilled": draft.eval().requires_grad_(False)}  # in place of what would be read
    arm = make_arm(f"draft+{scores}-2-r{round(100 * rate)}", BUDGET)
    found = calibration.draft_thresholds(stage, arm, episodes=3)
    assert found["episode_seeds"] == [401_000_000, 401_000_001, 401_000_002] == [seed for seed, _ in env.starts]
    assert found["decisions"] == 120 and found["asked"] == pytest.approx(rate, abs=0.03)
    assert [t is not None for t in found["thresholds"]] == [name in arm.scores for name in SCORES]
    seen = []
    for seed in found["episode_seeds"]:  # one after the other, by hand
        z_pred, world = None, env("tiny")
        obs = world.reset(seed=seed)[0]
        for _ in range(40):
            z = wm.encode(torch.from_numpy(obs)[None])
            prior = wm.policy(z)[0]
            drafted, doubt = draft(z, prior)
            predicted = z if z_pred is None else z_pred
            seen.append(DraftGate(looks=SCORES).scores(wm, z, predicted, prior, drafted, doubt)[0])
            z_pred, obs = wm.next(z, drafted), world.step(drafted[0].numpy())[0]
    levels = torch.tensor([t if t is not None else torch.inf for t in found["thresholds"]])
    assert (torch.stack(seen) > levels).any(1).float().mean() == pytest.approx(found["asked"], abs=0.02)


# ------------------------------------------------------------------------------------------- plans that arrive late

LATE = ["async+gated-d1", "async+gated-d4", "8x2+async+gated-d2", "async+two-tower-d2"]


def test_the_gate_on_arriving_plans_would_drop_a_tenth_of_them_at_one_delay(stage, monkeypatch, env):  # noqa: F811
    monkeypatch.setattr(calibration, "make_env", env)
    found = calibration.arrival_threshold(stage, make_arm("async+gated-d7", BUDGET, calibration.UNCALIBRATED), 3)
    ungated = make_controller(make_arm("async+two-tower-d2", BUDGET), stage.wm, stage.correctors)
    seeds = [401_000_000, 401_000_001, 401_000_002]
    steps = list(rollout(ungated, [env("tiny", seed) for seed in seeds], seeds, 12))
    arrived = np.concatenate([step.info["mismatch"] for step in steps[2::2]])  # at every second decision
    assert found["plans"] == len(arrived) == 15 and found["delay"] == 2 and found["episode_seeds"] == seeds
    assert found["threshold"] == pytest.approx(np.quantile(arrived, 0.9))
    assert 0 < (arrived > found["threshold"]).sum() <= 2


def test_all_delays_have_the_same_threshold_which_is_made_once(stage, tmp_path, monkeypatch, env):  # noqa: F811
    monkeypatch.setattr(calibration, "make_env", env)
    calls, real = [], calibration.arrival_threshold

    @functools.wraps(real)
    def counted(stage, arm, episodes):
        calls.append(arm.name)
        return real(stage, arm, episodes)

    monkeypatch.setitem(calibration.PLAYED, DelayArm, counted)
    made = calibrated(stage, tmp_path, LATE)
    assert calls == ["async+gated-d1", "8×2+async+gated-d2"] == [list(made)[0], list(made)[2]]
    assert made["async+gated-d1"] == made["async+gated-d4"] != made["8×2+async+gated-d2"]
    assert calibrated(stage, tmp_path, LATE) == made and len(calls) == 2
    monkeypatch.setattr(calibration, "DROPPED", 0.5)
    assert calibrated(stage, tmp_path, LATE)["async+gated-d4"]["threshold"] < made["async+gated-d4"]["threshold"]
    new_corrector(7)
    again = calibrated(Stage.of(CELL, "smoke", corrector_files=stage.corrector_files, decisions=12), tmp_path, LATE)
    assert again["async+gated-d4"]["key"] != made["async+gated-d4"]["key"] and len(calls) == 6


def test_without_a_plan_that_arrives_there_is_no_threshold(stage, monkeypatch, env):  # noqa: F811
    monkeypatch.setattr(calibration, "make_env", env)
    stage.decisions = 2
    with pytest.raises(
        ConfigError, match=r"async\+gated-d4: no plan arrived in 3 episodes of tiny-task-1m-1.*; play l"
    ):
        calibration.arrival_threshold(stage, make_arm("async+gated-d4", BUDGET, calibration.UNCALIBRATED), 3)


def test_numbers_may_be_kept_in_a_file_of_their_own(stage, tmp_path, monkeypatch, env):  # noqa: F811
    monkeypatch.setattr(calibration, "make_env", env)
    settings = resolve("smoke", "walker-walk", "1m", 1, "", "cpu")
    monkeypatch.setattr(calibration, "distillation_key", lambda *a: "a-b")
    monkeypatch.setattr(calibration, "read_sidecar", lambda file: {"distillation_key": "a-b"})
    found = gate_numbers(settings, stage, ["async+gated-d2"], BUDGET, path=tmp_path / "own.json")
    assert json.loads((tmp_path / "own.json").read_text()) == found and found["async+gated-d2"]["threshold"] > 0
    assert not calibration.calibration_file("smoke", CELL).is_file()
