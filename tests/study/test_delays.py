"""Episodes at delays: against episodes played by hand, against no delay, kept, resumed, and judged row by row."""

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.environments import make_env
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import read_sidecar, read_table, write_artefact
from lib.rollout import rollout
from lib.simulators.perturbations import Perturbation, perturbed
from lib.study import arms, delays, rows
from lib.study import evaluate as evaluation
from lib.study.arms import make_arm, make_controller, network_file
from lib.study.cells import Cell, Settings
from lib.study.delay_training import delay_aware_key
from lib.study.delays import arms_of, available, changed_arms, label, period_ms, places, timed_arms, write_delayed
from lib.study.evaluate import Stage, evaluate
from lib.study.profiles import PROFILES, DelayStudy
from tests.realtime.test_delayed import Lawful
from tests.study.test_perturb import BUDGET, CELL, FIRST, home  # noqa: F401  (a fixture)
from tests.tiny import ACTIONS, LATENT, LatentModel, latents, tiny_model

NAMES = ["policy", "late-d0", "late-d2", "late-hold-d2", "async-d2", "4x1+late-d0", "4x1+async-d3"]
STUDY = DelayStudy(delays=(0, 2), arms=("late", "async"), unplanned=("policy",), planners=("4x1",), episodes=2)


def stage(decisions=8):
    return Stage.of(CELL, "smoke", decisions=decisions)


def write(names=NAMES, changes=(), episodes=2, **options):
    return read_table(write_delayed(places(stage(**options), changes), names, episodes, BUDGET))


@pytest.fixture
def played(monkeypatch):
    """(world, arm, seeds) of every block; the block of number `stop_at` fails. One episode a block."""

    class Blocks(list):
        stop_at = None

    blocks, real = Blocks(), delays.run_delayed

    @functools.wraps(real)  # keys are of the code that it stands for
    def noted(arm, controller, world, seeds, *rest):
        if len(blocks) == blocks.stop_at:
            raise KeyboardInterrupt
        blocks.append((str(world[1] or "none"), arm.name, [s - FIRST for s in seeds]))
        return real(arm, controller, world, seeds, *rest)

    monkeypatch.setattr(delays, "run_delayed", noted)
    monkeypatch.setattr(evaluation, "BLOCK", 1)
    return blocks


def forget():
    for file in (paths.CACHE / "rollouts").glob("*"):
        file.unlink()


# ------------------------------------------------------------------------------------------------------------ arms


def test_no_delay_is_played_once_for_each_planner_and_the_teachers_on_study_cells_alone():
    study = dataclasses.replace(STUDY, standard_delays=(4, 0))
    small = ["policy", "4×1+late-d0", "4×1+late-d2", "4×1+async-d2"]
    assert arms_of(study, ()) == small and arms_of(STUDY, (), studied=True) == small
    assert arms_of(study, (), studied=True) == [*small, "late-d0", "late-d4", "async-d4"]
    assert changed_arms(dataclasses.replace(study, perturbed_arms=("async",), perturbed_delays=(0, 1)), (), True) == [
        "policy", "4×1+late-d0", "4×1+async-d1",
    ]  # fmt: skip
    assert timed_arms(study, (), True) == ["policy", "4×1+late-hold-d8", "4×1+async-d8", "late-hold-d8", "async-d8"]
    with pytest.raises(ConfigError, match=r"delays=\(2, 4\) must have 0 among them"):
        arms_of(dataclasses.replace(study, delays=(2, 4)), ())


def test_the_key_of_an_arm_with_a_draft_beside_its_corrector_knows_both(tmp_path, home):  # noqa: F811
    files = {name: tmp_path / name for name in ("delay_aware", "cloned", "distilled")}
    both, one = (make_arm(f"4x1+async+delay-aware{end}-d2", BUDGET) for end in ("+clone", ""))
    keys = set()
    for changed in (None, *files):
        for name, file in files.items():
            file.write_bytes(f"{name}, {name == changed}".encode())
        place = places(dataclasses.replace(stage(), corrector_files=files))["none"]
        keys.add(place.key(both))
        assert place.key(one) != place.key(both)
    assert len(keys) == 3  # it does not read the third
    with pytest.raises(ConfigError, match="lacks its cloned network"):
        dataclasses.replace(stage(), corrector_files={"delay_aware": files["delay_aware"]}).play(both, [1])


def test_arms_whose_corrector_or_draft_is_not_there_are_left_out():
    study = DelayStudy(delays=(0, 2), planners=("4x1",))
    everything = ["late", "late-hold", "async", "async+two-tower", "async+temporal", "async+gated", "async+draft"]
    everything.append("async+delay-aware")
    kinds = {(): everything[:3], ("two_tower",): [*everything[:4], everything[5]]}
    kinds |= {("two_tower", "temporal"): everything[:6], ("delay_aware",): [*everything[:3], everything[7]]}
    kinds |= {("two_tower", "temporal", "distilled", "delay_aware"): everything}
    for has, wanted in kinds.items():
        unplanned = ["policy", "distilled"] if "distilled" in has else ["policy"]
        assert arms_of(study, has) == [*unplanned, "4×1+late-d0", *(f"4×1+{arm}-d2" for arm in wanted)]
    paper = PROFILES["paper"]
    asked = dataclasses.replace(study, unplanned=("cloned",), perturbed_arms=("async+draft",), arms=("async+temporal",))
    asking = dataclasses.replace(paper, delays=asked)
    assert available(asking, "cup-catch-1m-1") == ("cloned", "temporal", "distilled")
    assert available(asking, Cell.parse("walker-walk-5m-1")) == ("temporal",)
    everything = dataclasses.replace(paper, delays=study)
    assert available(everything, "cup-catch-1m-1") == ("distilled", "two_tower", "temporal", "delay_aware")


def test_rows_say_the_arms_kind_its_planner_and_its_delay():
    standard = PlannerConfig.standard(6)
    for name, wanted in {
        "policy": ("policy", None, None),
        "distilled": ("distilled", None, None),
        "late-d0": ("every-step", "512×6", 0),
        "64x2+async+two-tower-d3": ("async+two-tower", "64×2", 3),
        "128x2+late-hold-d12": ("late-hold", "128×2", 12),
    }.items():
        assert tuple(label(make_arm(name, standard)).values()) == wanted


# -------------------------------------------------------------------------------------------------------- episodes


def by_hand(name, seed, change=None, decisions=8):
    controller = make_controller(make_arm(name, BUDGET), stage().wm, {})
    env = perturbed(make_env(CELL.task), Perturbation.parse(change), seed) if change else make_env(CELL.task)
    steps = list(rollout(controller, [env], [seed], decisions))
    ages = [float(step.info["plan_age"][0]) for step in steps if "plan_age" in step.info]
    moves = [np.abs(a.actions[0] - b.actions[0]).mean() for a, b in zip(steps[1:], steps, strict=False)]
    calls = sum(int(step.info["planner_called"][0]) for step in steps)
    return sum(float(step.rewards[0]) for step in steps), np.nanmean(ages) if ages else math.nan, np.mean(moves), calls


@pytest.mark.parametrize("changes", [(), ("mass-1.5", "push-0.05", "mass-1")])
def test_every_row_is_an_episode_played_by_hand(home, changes):  # noqa: F811
    table = write(changes=changes)
    assert table.columns.tolist() == [*delays.ABOUT, *delays.WORLD[: 2 * len(changes)], *delays.PLAYED]
    worlds = ["mass-1.5", "push-0.05"] if changes else [None]
    named = [(world, name, seed) for world in worlds for name in NAMES for seed in (FIRST, FIRST + 1)]
    for (world, name, seed), row in zip(named, table.to_dict("records"), strict=True):
        about = label(make_arm(name, BUDGET))
        assert [row[k] if row[k] == row[k] else None for k in about] == list(about.values())
        assert row["episode_seed"] == seed
        assert not world or f"{row['perturbation']}-{row['severity']:g}" == world
        found = [row[k] for k in ("return", "plan_age", "action_change", "planner_calls")]
        np.testing.assert_allclose(found, by_hand(name, seed, world), rtol=1e-4)
    calls = table.groupby(["arm", "planner"], dropna=False)["planner_calls"].unique().map(list).to_dict()
    assert calls["every-step", "8×1"] == calls["late", "8×1"] == [8] and calls["late-hold", "8×1"] == [4]
    assert calls["async", "4×1"] == [3] and table["return"].nunique() > len(table) / 2


def test_no_delay_is_the_planner_at_every_step(home):  # noqa: F811
    table = write(["late-d0", "async-d0"])
    every_step, _ = evaluate(stage(), {"teacher": 2}, BUDGET)
    assert table["return"].tolist() == [row["return"] for row in every_step.episodes] * 2
    assert set(table["arm"]) == {"every-step"} and table["plan_age"].eq(0).all()


class Model:
    """An environment that is the world model, on its latents."""

    wm = tiny_model(kind=LatentModel)

    def __init__(self, task, seed=None):
        pass

    def reset(self, *, seed):
        self.z = latents(1, seed)
        return self.z[0].numpy(), {}

    def step(self, action):
        a = torch.from_numpy(action)[None]
        reward, self.z = float(self.wm.reward(self.z, a)), self.wm.next(self.z, a)
        return self.z[0].numpy(), reward, False, False, {}


def test_where_the_model_is_the_world_plans_from_the_background_lose_nothing(home, monkeypatch):  # noqa: F811
    """The plan is what the prior would do, so that it does not matter either who acts before the first arrives."""
    wm = Model.wm

    class OfPrior(Lawful):
        law = staticmethod(lambda z: wm.policy(z)[0])

    monkeypatch.setattr(delays, "make_env", Model)
    monkeypatch.setattr(arms, "MPPI", OfPrior)
    where = delays.Delayed(CELL, "smoke", str(CELL), wm, {}, 20)
    names = ["policy", "late-d0", *(f"async-d{delay}" for delay in (1, 2, 3, 4, 8)), "late-d2", "late-hold-d3"]
    returns = {}
    for name in names:
        arm = make_arm(name, PlannerConfig.budget(4, 1, horizon=3, mode="eager"))
        controller = make_controller(arm, wm, {})
        found = delays.run_delayed(arm, controller, (CELL.task, None), [1, 2, 3], 20).episodes
        returns[name] = np.array([row["return"] for row in found])
    assert where.key(make_arm("policy", BUDGET)) and (LATENT, ACTIONS) == (wm.latent_dim, wm.action_dim)
    for name in names[1:7]:
        np.testing.assert_allclose(returns[name], returns["policy"], rtol=1e-5)
    for name in names[7:]:  # which plan for a state that is gone
        assert np.abs(returns[name] - returns["policy"]).max() > 1e-3


def test_an_episode_of_one_decision_has_no_change_of_action_and_no_plan_that_arrived(home):  # noqa: F811
    table = write(["policy", "async-d2"], decisions=1)
    assert table["action_change"].isna().all() and table["plan_age"].isna().all()
    assert table["planner_calls"].tolist() == [0, 0, 1, 1]


# ------------------------------------------------------------------------------------------------- kept and resumed


def test_a_killed_run_goes_on_where_it_was(home, played):  # noqa: F811
    played.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        write(["policy", "async-d2"])
    played.stop_at = None
    table = write(["policy", "async-d2"])
    assert played == [("none", arm, [seed]) for arm in ("policy", "async-d2") for seed in (0, 1)]
    del played[:]
    pd.testing.assert_frame_equal(write(["policy", "async-d2"]), table)
    assert not played
    write(["policy", "async-d2"], episodes=3)
    assert played == [("none", "policy", [2]), ("none", "async-d2", [2])]


@pytest.mark.parametrize("changes", [(), ("mass-1.5", "mass-2")])
def test_committed_episodes_are_taken_unless_they_were_edited(home, played, changes):  # noqa: F811
    names = ["policy", "late-d0", "late-d2", "4x1+late-d2"]
    table = write(names, changes)
    forget()
    del played[:]
    pd.testing.assert_frame_equal(write(names, changes), table)
    assert not played
    file = delays.deadlines_file("smoke", CELL, bool(changes))
    file.write_text(file.read_text().replace("late", "Late"))
    forget()
    write(names[:1], changes[:1])
    assert [arm for _, arm, _ in played] == ["policy", "policy"]


def test_episodes_are_other_ones_for_another_delay_length_or_world(home):  # noqa: F811
    keys = [place.key(make_arm(name, BUDGET)) for place in places(stage(), ("mass-2", "push-0.1")).values()
            for name in ("async-d2", "async-d3")]  # fmt: skip
    keys += [places(stage(n))["none"].key(make_arm("async-d2", BUDGET)) for n in (8, 9)]
    keys += [stage().key(make_arm("async-d2", BUDGET))]
    assert len(set(keys)) == len(keys) == 7


def test_worlds_that_are_not_played_with_delays_are_refused_or_left_out(home):  # noqa: F811
    with pytest.raises(ConfigError, match="perturbations=noise-0.1 is not played with delays; take a change of"):
        places(stage(), ["mass-2", "noise-0.1"])
    with pytest.raises(ConfigError, match="perturbation='masses' is not known"):
        places(stage(), ["masses-2"])
    where = stage()
    where.cell = Cell("cartpole-swingup", "1m", 1)
    assert list(places(where, ["friction-0.4", "mass-2", "mass-1"])) == ["mass-2"]


# ------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("task", "period"),
    [("walker-walk", 50), ("cheetah-run", 20), ("reacher-easy", 40), ("gym:HalfCheetah-v5", 50),
     ("tests.own_envs:Limited", math.nan)],
)  # fmt: skip
def test_the_period_is_the_physics_of_a_decision(task, period):
    assert period_ms(task) == pytest.approx(period, nan_ok=True)


def test_step_times_are_told_by_arm_planner_and_part(home):  # noqa: F811
    assert delays.step_table("smoke", CELL).empty
    write(["policy", "late-d0"])
    assert read_sidecar(delays.deadlines_file("smoke", CELL))["standard"]["samples"] == 8
    columns = ["arm", "part", "batch", "steps", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms"]
    values = [("policy", "between", 1), ("policy", "step", 1), ("4×1+async-d8", "between", 1), ("async-d8", "solve", 1),
              ("async-d8", "between", 10)]  # fmt: skip
    table = pd.DataFrame([[*of, *range(7)] for of in values], columns=columns).assign(
        device="cpu", threads=1, dtype="x"
    )
    table.to_csv(delays.steps_file("smoke", CELL), index=False)
    found = delays.step_table("smoke", str(CELL))
    assert found[["arm", "planner", "part"]].fillna("").to_numpy().tolist() == [
        ["policy", "", "foreground"], ["async", "4×1", "foreground"], ["async", "8×1", "solve"],
    ]  # fmt: skip
    assert found["cell"].eq(str(CELL)).all() and found["p95_ms"].eq(2).all()
    assert delays.deadline_cells("smoke") == [str(CELL)]


def test_without_results_the_sentence_says_what_to_do(home):  # noqa: F811
    with pytest.raises(ResultError, match="holds no cell; run `make all"):
        delays.deadline_cells("smoke")


# --------------------------------------------------------------------------------------------------------- rows


def test_rows_say_what_is_stale(home, monkeypatch):  # noqa: F811
    study = dataclasses.replace(
        STUDY, study_episodes=2, decisions=8, perturbations=("mass-1.5",), perturbed_arms=("async",)
    )
    study = dataclasses.replace(study, perturbed_delays=(0, 2))
    own = dataclasses.replace(PROFILES["smoke"], planner=BUDGET, delays=study, correctors=(), draft_cells=())
    monkeypatch.setitem(PROFILES, "smoke", own)

    def stale():
        return {row.name: row.why for row in rows.deadlines("smoke", str(CELL)) if row.why}

    mine = ["policy", "4×1 d0 arm every-step", "4×1 d2 arm late", "4×1 d2 arm async"]
    named = [f"none {name if ' arm ' in name else f'arm {name}'}" for name in mine]
    changed = [name.replace("none", "mass-1.5") for name in named if "late" not in name]
    assert stale() == {name: f"{name} was never played" for name in named + changed}
    names, fewer = arms_of(study, ()), changed_arms(study, ())
    write(names, episodes=1)
    assert stale() == {name: f"{name} has 1 of 2 episodes" for name in named} | {
        name: f"{name} was never played" for name in changed
    }
    write(names)
    write(fewer, study.perturbations)
    assert not stale() and len(rows.deadlines("smoke", str(CELL))) == 7
    assert all(row.name.split(" ")[-1] in ("policy", "every-step", "late", "async") for row in rows.deadlines(
        "smoke", str(CELL)))  # fmt: skip
    write(names, decisions=7)
    assert stale() == {name: f"{name} was made by other code, settings or weights" for name in named}


def test_rows_name_the_corrector_of_late_plans(home, monkeypatch):  # noqa: F811
    study = dataclasses.replace(STUDY, arms=("async+delay-aware",))
    own = dataclasses.replace(PROFILES["smoke"], planner=BUDGET, delays=study, correctors=(), draft_cells=())
    monkeypatch.setitem(PROFILES, "smoke", own)
    network, why = "the corrector delay_aware", {row.name: row.why for row in rows.deadlines("smoke", str(CELL))}
    assert why == {network: f"{network} was never made"}
    settings = Settings(own, (CELL,), "", "cpu")
    write_artefact(network_file("smoke", CELL, "delay_aware"), lambda file: file.write_bytes(b""), network_key="other")
    why = {row.name: row.why for row in rows.deadlines("smoke", str(CELL))}
    assert why[network] == f"{network} would learn other labels today"
    assert why["none 4×1 d2 arm async+delay-aware"].endswith("was never played")
    key = delay_aware_key(settings, CELL)
    write_artefact(network_file("smoke", CELL, "delay_aware"), lambda file: file.write_bytes(b""), network_key=key)
    assert not {row.name: row.why for row in rows.deadlines("smoke", str(CELL))}[network]
