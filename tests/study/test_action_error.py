"""Action errors: against a slow twin, their floor in expectation, the states they are drawn from, and resuming."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.planner import MPPI
from lib.records import paths
from lib.records.seeds import SEED_BLOCKS, episode_seeds
from lib.records.store import intact, read_sidecar, read_table
from lib.rollout import rollout
from lib.study import action_error
from lib.study.action_error import COLUMNS, measure, stream, teacher_actions, visit, write_action_errors
from lib.study.arms import make_arm, make_controller
from lib.study.evaluate import Stage, run_episodes
from tests.study.test_evaluate import CELL, FIRST, corrector_file, env, home, new_teacher  # noqa: F401 - fixtures
from tests.tiny import BUDGET, tiny_model

GATES = {"gated-4": {"threshold": 0.55}}  # of the mismatches of the random model, about half are above
ARMS = ["teacher", "policy", "open-loop-3", "gated-4"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, env):  # noqa: F811 - the fixture
    monkeypatch.setattr(action_error, "make_env", env)
    monkeypatch.setenv("CXX", "no-compiler")  # compiling the policy prior would take longer than all tests here


def stage(decisions=12, **options):
    return Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()}, decisions=decisions, **options)


def write(arms=ARMS, states=30, decisions=12, planner=BUDGET):
    return read_table(write_action_errors(stage(decisions), arms, planner, GATES, states))


@torch.no_grad()
def slow_rows(where: Stage, arm, table: pd.DataFrame):
    """The rows of an arm anew: its episodes one at a time, its states one by one, each with a planner of its own."""
    mine, again = table[table["arm"] == arm.name], []
    for seed, rows in mine.groupby("episode_seed"):
        controller = make_controller(arm, where.wm, where.correctors)
        played = list(rollout(controller, action_error.make_env, [seed], where.decisions))
        for row in rows.to_dict("records"):
            step = played[row["decision"]]
            z = where.wm.encode(torch.from_numpy(step.obs))
            label, other = (first_action(where.wm, z, seed, row["decision"], solve) for solve in (0, 1))
            again.append(
                row
                | {"depth": int(step.info["depth"][0]), "delta_abs": float(step.info["delta_abs"][0])}
                | {"action_mse": ((step.actions[0] - label) ** 2).mean()}
                | {"teacher_floor_mse": ((label - other) ** 2).mean() / 2}
            )
    return pd.DataFrame(again)[COLUMNS]


def first_action(wm, z, seed, decision, solve):
    planner = MPPI(wm, BUDGET)
    planner.reset_streams(solve)
    return planner(z, None, [stream(seed, decision, solve)]).actions[0, 0].numpy()


def test_every_row_is_what_a_slow_twin_finds(home):
    table, where = write(), stage()
    assert list(table) == COLUMNS and table["arm"].value_counts().to_dict() == dict.fromkeys(ARMS, 30)
    for name in ARMS:
        arm = make_arm(name, BUDGET, GATES.get(name))
        mine, twin = table[table["arm"] == name].reset_index(drop=True), slow_rows(where, arm, table)
        assert mine["teacher_floor_mse"].notna().tolist() == [i % 5 == 0 for i in range(30)]
        twin["teacher_floor_mse"] = twin["teacher_floor_mse"].where(mine["teacher_floor_mse"].notna())
        pd.testing.assert_frame_equal(mine, twin, check_dtype=False, rtol=1e-3, atol=1e-4)
    means = table.groupby("arm")["action_mse"].mean()
    assert means.min() > 1e-3 and means["policy"] != pytest.approx(means["teacher"], rel=0.05)  # or nothing was tested


def test_an_independent_solve_has_twice_the_floor(home):
    """At decision 0 the teacher starts cold too, with noise of its own: only then is its error that of two solves."""
    table = write(["teacher"], states=800, decisions=1)
    assert table["decision"].eq(0).all() and table["episode_seed"].nunique() == 800
    floor = table["teacher_floor_mse"].dropna()
    assert len(floor) == 160 and table["action_mse"].mean() == pytest.approx(2 * floor.mean(), rel=0.25)


def test_the_floor_is_the_variance_of_a_solve():
    """Half the mean squared difference of pairs of solves, against the variance over many solves of the same state."""
    wm, obs = tiny_model(), np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32)
    rows = pd.DataFrame({"episode_seed": range(1000), "decision": 3})
    first, second = (teacher_actions(MPPI(wm, BUDGET), rows, obs.repeat(1000, 0), solve) for solve in (0, 1))
    floor = 0.5 * (first - second).square().mean().item()
    assert floor == pytest.approx(torch.cat([first, second]).var(0).mean().item(), rel=0.1) and floor > 1e-3


def test_labels_do_not_depend_on_how_the_states_are_batched(monkeypatch):
    wm, obs = tiny_model(num_q=2), np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)
    rows = pd.DataFrame({"episode_seed": 7, "decision": range(11)})
    whole = teacher_actions(MPPI(wm, BUDGET), rows, obs, 0)
    monkeypatch.setattr(action_error, "CHUNK", 4)
    torch.testing.assert_close(teacher_actions(MPPI(wm, BUDGET), rows, obs, 0), whole, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in whole.tolist()}) == 11


def test_streams_differ_by_episode_decision_and_solve_and_from_the_arms_own():
    seeds = episode_seeds("trial", 10, first=action_error.FIRST)
    made = {stream(s, d, n).initial_seed() for s in seeds for d in range(100) for n in (0, 1)}
    assert len(made) == 2000 and max(made) < 2**32 and not made & set(seeds)
    assert stream(5, 3, 1).initial_seed() == stream(5, 3, 1).initial_seed()


# ------------------------------------------------------------------------------------------------- which states


def test_no_reported_start_state_is_visited(home, env):
    write()
    first = SEED_BLOCKS["trial"] + action_error.FIRST
    assert {seed for seed, _ in env.starts} == {first, first + 1, first + 2}
    assert first > FIRST + 100_000 and not set(range(first, first + 100)) & set(episode_seeds("report", 10_000))


def test_states_are_drawn_from_all_decisions_and_shared_by_the_arms(home):
    table = write(states=60, decisions=40)
    drawn = [list(zip(t["episode_seed"], t["decision"], strict=True)) for _, t in table.groupby("arm", sort=False)]
    assert all(d == drawn[0] == sorted(set(d)) for d in drawn)
    assert table["decision"].min() < 8 and table["decision"].max() > 31
    open_loop = table[table["arm"] == "open-loop-3"]
    assert (open_loop["depth"] == open_loop["decision"] % 3).all() and set(open_loop["depth"]) == {0, 1, 2}
    assert open_loop["delta_abs"].eq(0).all()
    gated = table[table["arm"] == "gated-4"]
    assert gated.loc[gated["depth"] > 0, "delta_abs"].gt(0).all() and gated["depth"].max() > 1
    assert (gated["depth"] != gated["decision"] % 4).any()  # where the gate has asked early


def test_what_is_drawn_is_what_the_arm_does(home, env):  # noqa: F811 - the fixture
    """The whole episode drawn: its depths and corrections are those that an evaluation records."""
    where, arm = stage(), make_arm("gated-4", BUDGET, GATES["gated-4"])
    controller = make_controller(arm, where.wm, where.correctors)
    rows, obs, actions = visit(controller, env, [1, 2], 12, 24)
    assert len(rows) == len(obs) == len(actions) == 24
    expected = {(d["episode_seed"], d["depth"]): d for d in run_episodes(arm, controller, "tiny", [1, 2], 12).depths}
    found = rows.groupby(["episode_seed", "depth"])["delta_abs"].agg(["mean", "size"])
    assert found["size"].to_dict() == {key: row["count"] for key, row in expected.items()}
    assert found["mean"].to_dict() == pytest.approx({k: row["delta_abs"] for k, row in expected.items()}, abs=1e-5)


def test_an_episode_that_ends_early_has_fewer_states(home, env):
    first = SEED_BLOCKS["trial"] + action_error.FIRST
    env.ends |= {first: 4, first + 1: 12, first + 2: 12}
    table = write(["policy"], states=36)
    assert table.groupby("episode_seed").size().tolist() == [4, 12, 12]


def test_more_states_than_an_episode_gives_play_more_episodes(home):
    for states, decisions, episodes in ((5, 12, 1), (36, 12, 3), (250, 150, 3)):
        assert write(["policy"], states, decisions)["episode_seed"].nunique() == episodes


# ---------------------------------------------------------------------------------------------- kept and resumed


@pytest.fixture
def measured(monkeypatch):
    """The names of the arms that are measured; the arm called `measured.stop_at` fails."""

    class Names(list):
        stop_at = None

    names = Names()

    @functools.wraps(measure)  # keys are of the code that it stands for
    def noted(where, arm, *rest):
        if arm.name == names.stop_at:
            raise KeyboardInterrupt
        names.append(arm.name)
        return measure(where, arm, *rest)

    monkeypatch.setattr(action_error, "measure", noted)
    return names


def test_a_killed_run_goes_on_at_the_next_arm(home, measured):
    whole = write(["policy"])
    del measured[:]
    measured.stop_at = "open-loop-3"
    with pytest.raises(KeyboardInterrupt):
        write()
    assert measured == ["teacher"]
    file = paths.results("smoke") / "horizon" / f"{CELL}-action-error.csv"
    pd.testing.assert_frame_equal(read_table(file), whole)  # the earlier result stays until there is a whole new one
    measured.stop_at = None
    table = write()
    assert measured == ["teacher", "open-loop-3", "gated-4"] and table["arm"].unique().tolist() == ARMS
    assert intact(file) and list(read_sidecar(file)["keys"]) == ARMS
    pd.testing.assert_frame_equal(table[table["arm"] == "policy"].reset_index(drop=True), whole)


def test_committed_rows_are_taken_where_the_cache_is_gone(home, measured):
    table = write()
    for file in (paths.CACHE / "action-errors").glob("*"):
        file.unlink()
    del measured[:]
    pd.testing.assert_frame_equal(write(), table)
    assert measured == [] and write(["policy", "budget-8x2"])["arm"].unique().tolist() == ["policy", "budget-8×2"]
    assert measured == ["budget-8×2"]
    file = paths.results("smoke") / "horizon" / f"{CELL}-action-error.csv"
    file.write_text(file.read_text().replace("policy", "Policy"))  # edited by hand
    write(["policy"])
    assert measured == ["budget-8×2", "policy"]


@pytest.mark.parametrize("change", ["teacher", "states", "planner", "mode"])
def test_what_the_errors_depend_on_measures_again(home, measured, change):
    write(["policy"])
    options = {"states": {"states": 31}, "planner": {"planner": PlannerConfig.budget(16, 1, mode="eager")}}
    options["mode"] = {"planner": PlannerConfig.budget(16, 2, mode="auto")}
    if change == "teacher":
        new_teacher(1)
    write(["policy"], **options.get(change, {}))
    assert measured == ["policy"] * (1 if change == "mode" else 2)


def test_bad_input_is_a_sentence(home):
    with pytest.raises(ConfigError, match="states=0 must be at least 1"):
        write(states=0)
    with pytest.raises(ConfigError, match='give a planner with "mean"'):
        write(planner=PlannerConfig.budget(16, 2, mode="eager", action_selection="sample"))
    with pytest.raises(ConfigError, match="arm two-tower-3 needs a two_tower corrector"):
        write_action_errors(Stage.of(CELL, "smoke", decisions=4), ["two-tower-3"], BUDGET, {}, 4)
