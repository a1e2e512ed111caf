"""Arms in perturbed worlds: against episodes played by hand, paired, kept, and apart from those of the evaluation."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import ConfigError, PlannerConfig, WorldModelConfig
from lib.environments import make_env
from lib.records import paths
from lib.records.store import read_sidecar, read_table
from lib.rollout import rollout
from lib.simulators.perturbations import Perturbation, perturbed
from lib.study import evaluate as evaluation
from lib.study import perturb, rows
from lib.study.arms import make_arm, make_controller
from lib.study.cells import Cell, Settings
from lib.study.evaluate import Stage, evaluate, run_episodes
from lib.study.perturb import deviations, run_perturbed, std_file, worlds, write_perturbed
from lib.study.profiles import PROFILES
from lib.weights.native import save_world_model
from lib.world_model import WorldModel

CELL, FIRST = Cell.parse("walker-walk-1m-1"), 700_000_000
BUDGET = PlannerConfig.budget(8, 1, mode="eager")
ARMS, NAMES = ["teacher", "policy"], ["mass-1.5", "mass-1", "noise-0.1", "push-0"]
STD = np.linspace(0, 1, 24)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with a small random teacher of walker-walk."""
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setenv("CXX", "no-compiler")  # compiling would take longer than all tests here
    paths.TEACHERS.mkdir()
    torch.manual_seed(0)
    wm = WorldModel(WorldModelConfig(24, 6, 16, 16, 16, 2, 2))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    save_world_model(wm.eval(), paths.TEACHERS / f"{CELL}.safetensors")


def stage(decisions=8):
    return Stage.of(CELL, "smoke", decisions=decisions)


def write(arms=ARMS, names=NAMES, episodes=2, **options):
    return read_table(write_perturbed(stage(**options), arms, names, episodes, BUDGET, std=STD))


@pytest.fixture
def played(monkeypatch):
    """(world, arm, seeds) of every block that is played in a perturbed world, and of the others."""
    blocks, real, own = [], run_perturbed, run_episodes

    @functools.wraps(run_perturbed)  # keys are of the code that it stands for
    def noted(arm, controller, world, seeds, *rest):
        blocks.append((str(world[1]), arm.name, [s - FIRST for s in seeds]))
        return real(arm, controller, world, seeds, *rest)

    @functools.wraps(run_episodes)
    def noted_too(arm, controller, task, seeds, *rest):
        blocks.append(("none", arm.name, [s - FIRST for s in seeds]))
        return own(arm, controller, task, seeds, *rest)

    monkeypatch.setattr(perturb, "run_perturbed", noted)
    monkeypatch.setattr(evaluation, "run_episodes", noted_too)
    return blocks


def test_every_row_is_an_episode_played_by_hand(home):
    table = write()
    assert table.columns.tolist() == [*perturb.ABOUT, *perturb.PLAYED]
    assert table["perturbation"].drop_duplicates().tolist() == ["none", "mass", "noise"] and len(table) == 3 * 2 * 2
    assert table["severity"].dropna().unique().tolist() == [1.5, 0.1]
    for (arm, kind), mine in table.groupby(["arm", "perturbation"]):
        assert mine["episode_seed"].tolist() == [FIRST, FIRST + 1]
        controller = make_controller(make_arm(arm, BUDGET), stage().wm, {})
        change = None if kind == "none" else Perturbation(kind, mine["severity"].iloc[0])
        envs = [perturbed(make_env(CELL.task), change, std=STD) if change else make_env(CELL.task) for _ in range(2)]
        steps = list(rollout(controller, envs, mine["episode_seed"].tolist(), 8))
        np.testing.assert_allclose(sum(step.rewards for step in steps), mine["return"], rtol=1e-5)
        calls = sum(step.info["planner_called"].astype(int) for step in steps)
        assert calls.tolist() == mine["planner_calls"].tolist() and mine["length"].tolist() == [8, 8]
    returns = table.groupby(["arm", "perturbation"])["return"].mean()
    assert returns.round(6).nunique() == 6
    about = read_sidecar(perturb.perturbed_file("smoke", CELL))["changes"]
    assert about["mass-1.5"] == "walker-walk, mass-1.5: masses and inertias of 7 bodies × 1.5"


def test_without_effect_episodes_are_those_of_the_evaluation(home):
    arm, seeds = make_arm("policy", BUDGET), [FIRST, FIRST + 1]
    controller = make_controller(arm, stage().wm, {})
    own = run_episodes(arm, controller, CELL.task, seeds, 8).episodes
    for name in ("mass-1", "noise-0"):
        found = run_perturbed(arm, controller, (CELL.task, Perturbation.parse(name), STD), seeds, 8).episodes
        assert found == [{k: row[k] for k in found[0]} for row in own]


def test_the_worlds_key_says_what_is_changed_and_that_of_the_evaluation_does_not_know(home):
    arm, where = make_arm("policy", BUDGET), stage()
    found = worlds(where, ["mass-1.5", "mass-2", "noise-0.1", "noise-0"], STD)
    assert list(found) == ["none", "mass-1.5", "mass-2", "noise-0.1"] and found["none"] is where
    keys = {name: world.key(arm) for name, world in found.items()}
    keys["other noise"] = worlds(where, ["noise-0.1"], 2 * STD)["noise-0.1"].key(arm)
    keys["shorter"] = worlds(stage(7), ["mass-2"], STD)["mass-2"].key(arm)
    assert len(set(keys.values())) == 6
    assert worlds(where, ["mass-2"], None)["mass-2"].key(arm) == keys["mass-2"]  # only noise asks for deviations
    assert keys["none"] == evaluation.arm_key(arm, CELL, str(CELL), None, 8)


def test_what_was_played_is_not_played_again(home, played):
    evaluate(stage(), {"policy": 1}, BUDGET)
    assert played == [("none", "policy", [0])]
    whole = write(["policy"])
    assert played[1:] == [("none", "policy", [1]), ("mass-1.5", "policy", [0, 1]), ("noise-0.1", "policy", [0, 1])]
    del played[:]
    pd.testing.assert_frame_equal(write(["policy"]), whole)
    assert played == []
    write(["policy"], ["mass-1.5", "mass-2"], episodes=3)
    assert played == [("none", "policy", [2]), ("mass-1.5", "policy", [2]), ("mass-2", "policy", [0, 1, 2])]


def test_committed_episodes_are_taken_where_the_cache_is_gone(home, played):
    whole = write(["policy"])
    for file in (paths.CACHE / "rollouts").glob("*"):
        file.unlink()
    del played[:]
    again = write(["policy"])
    pd.testing.assert_frame_equal(again, whole)
    assert played == [("none", "policy", [0, 1])]  # those are the evaluation's, and committed with it
    file = perturb.perturbed_file("smoke", CELL)
    file.write_text(file.read_text().replace("mass", "Mass"))  # edited by hand
    for stored in (paths.CACHE / "rollouts").glob("*"):
        stored.unlink()
    del played[:]
    write(["policy"])
    assert [world for world, *_ in played] == ["none", "mass-1.5", "noise-0.1"]


def test_kinds_that_a_task_has_not_are_left_out(home, capsys):
    assert perturb.refused("reacher-easy", "friction").startswith("reacher-easy has nothing that can touch")
    assert not perturb.refused("walker-walk", "friction") and not perturb.refused("tests.own_envs:Limited", "noise")
    where = stage()
    where.cell = Cell("cartpole-swingup", "1m", 1)
    assert list(worlds(where, ["friction-0.4", "mass-2"], None)) == ["none", "mass-2"]
    with pytest.raises(ConfigError, match="perturbation='masses' is not known"):
        worlds(where, ["masses-2"], None)


def test_deviations_are_those_of_the_teachers_own_observations(home, monkeypatch):
    settings = Settings(PROFILES["smoke"], (CELL,), "", "cpu")
    std = deviations(settings, CELL)
    episodes = perturb.generate(settings, CELL, "teacher", perturb.OBSERVED, noise=0.0).episodes
    every = np.concatenate([episode.obs for episode in episodes]).astype(float)
    assert len(episodes) == 10 and episodes[0].obs.shape == (13, 24)
    np.testing.assert_allclose(std, np.sqrt(((every - every.mean(0)) ** 2).mean(0)), rtol=1e-9)
    monkeypatch.setattr(perturb, "generate", functools.wraps(perturb.generate)(lambda *a, **k: pytest.fail("again")))
    np.testing.assert_array_equal(deviations(settings, CELL), std)
    assert std_file("smoke", CELL).name == "walker-walk-1m-1-std.csv"


def test_rows_say_what_is_stale(home, monkeypatch):
    profile = PROFILES["smoke"]
    settings = Settings(profile, (CELL,), "", "cpu")
    std = deviations(settings, CELL)
    assert profile.perturbations == ("mass-1.5", "noise-0.1") and profile.perturb_arms == ("teacher", "policy")
    for episodes, why in ((1, "has 1 of 2 episodes"), (2, "")):
        write_perturbed(stage(12), ["teacher", "policy"], profile.perturbations, episodes, profile.planner, std=std)
        found = rows.perturbed("smoke", str(CELL))
        assert [row.name for row in found] == [
            f"{world} arm {arm}" for world in ("none", "mass-1.5", "noise-0.1") for arm in ("teacher", "policy")
        ]
        assert [row.why for row in found] == [why and f"{row.name} {why}" for row in found]
        assert all(row.kept == row.now for row in found)
    write_perturbed(stage(12), ["policy"], ["mass-1.5"], 2, profile.planner)
    stale = {row.name for row in rows.perturbed("smoke", str(CELL)) if row.why.endswith("was never played")}
    assert stale == {f"{w} arm teacher" for w in ("none", "mass-1.5", "noise-0.1")} | {"noise-0.1 arm policy"}
