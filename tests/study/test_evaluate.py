"""Episodes that are paired, counted, kept, resumed, and re-run to verify what was committed."""

import dataclasses
import functools
import json

import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.correctors import TwoTowerCorrector
from lib.records import paths
from lib.records.store import describe, read_table
from lib.study import evaluate as evaluation
from lib.study.arms import ARM_COLUMNS, make_arm, make_controller
from lib.study.cells import Cell
from lib.study.evaluate import Stage, evaluate, evaluated_cells, read_cell, run_episodes, write_results
from lib.weights.distilled import NetworkError, save_network
from lib.weights.native import save_world_model, teacher_key
from tests.test_drafts import random_draft
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, tiny_model

CELL = Cell("tiny-task", "1m", 1)
ARMS = ["teacher", "policy", "open-loop-3", "two-tower-3", "hold-last-5", "budget-8x2"]
FIRST = 700_000_000  # the first trial seed: what smoke plays


# ----------------------------------------------------------------------------------------------------- evaluating


@pytest.fixture
def env(monkeypatch):
    made = fresh_env()
    monkeypatch.setattr(evaluation, "make_env", made)
    return made


@pytest.fixture
def home(monkeypatch, tmp_path, env):
    """Empty data folders with a random teacher and corrector, and free environments."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "TEACHERS", tmp_path / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    (tmp_path / "teachers").mkdir()
    new_teacher(0)
    return tmp_path


def new_teacher(seed):
    """Ship a random teacher with a corrector of its own; 4 Q heads, so that the drawn pairs matter."""
    save_world_model(tiny_model(num_q=4, seed=seed), paths.TEACHERS / f"{CELL}.safetensors")
    new_corrector(seed)


def new_corrector(seed):
    torch.manual_seed(seed)
    made = TwoTowerCorrector(LATENT, ACTIONS, width=8)
    torch.nn.init.normal_(made.update_head.weight, std=0.3)
    corrector_file().parent.mkdir(parents=True, exist_ok=True)
    save_network(made, corrector_file(), teacher_key(str(CELL)))


def corrector_file():
    return paths.results("smoke") / "corrector" / f"{CELL}-two_tower.safetensors"


def played(arms=ARMS, episodes=2, decisions=10, **options):
    files = {"two_tower": corrector_file()}
    options = {"corrector_files": files, "decisions": decisions, "planner": BUDGET, "calibration": None} | options
    planner, calibration = options.pop("planner"), options.pop("calibration")
    return evaluate(Stage.of(CELL, "smoke", **options), dict.fromkeys(arms, episodes), planner, calibration)


def score(*arguments, **options):
    """Rows per episode, rows per depth, and the configurations."""
    tables, configurations = played(*arguments, **options)
    return tables.episodes, tables.depths, configurations


def commit(arms=ARMS, episodes=2, **options):
    """Evaluate, write the results, and forget the cache, as in a clone."""
    tables, configurations = played(arms, episodes, **options)
    write_results(Stage.of(CELL, "smoke"), tables, configurations)
    for file in (paths.CACHE / "rollouts").glob("*"):
        file.unlink()
    return tables.episodes, tables.depths, configurations


@pytest.fixture
def blocks(monkeypatch):
    """The (arm, seeds) of every block that runs, counted from the first report seed; three episodes a block.

    `blocks.stop_at` makes the block of that number fail.
    """

    class Blocks(list):
        stop_at = None

    ran, real = Blocks(), run_episodes

    @functools.wraps(run_episodes)  # keys are of the code that it stands for
    def counted(arm, controller, task, seeds, decisions, what=""):
        if len(ran) == ran.stop_at:
            raise KeyboardInterrupt
        ran.append((arm.name, [s - FIRST for s in seeds]))
        return real(arm, controller, task, seeds, decisions)

    monkeypatch.setattr(evaluation, "run_episodes", counted)
    monkeypatch.setattr(evaluation, "BLOCK", 3)
    return ran


def assert_same_rows(some, others):
    """Equal but for rounding: the batch size of a block changes the order of sums."""
    assert [sorted(r) for r in some] == [sorted(r) for r in others]
    for a, b in zip(some, others, strict=True):
        assert a == {k: pytest.approx(v, abs=1e-3) if isinstance(v, float) else v for k, v in b.items()}


def test_every_arm_starts_from_the_same_states(home, env):
    rows, _, _ = score(episodes=3)
    per_arm = [env.starts[i : i + 3] for i in range(0, len(env.starts), 3)]
    assert len(per_arm) == len(ARMS) and all(starts == per_arm[0] for starts in per_arm)
    assert len(set(per_arm[0])) == 3
    assert [r["episode_seed"] for r in rows] == [FIRST, FIRST + 1, FIRST + 2] * len(ARMS)


def test_costs_are_counted_per_arm(home, env):
    rows, _, configurations = score()
    seen = {
        r["arm"]: (r["planner_calls"], r["model_evaluations"], r["corrector_calls"], r["execution_horizon"])
        for r in rows
    }
    assert seen == {
        "teacher": (10, 10 * 16 * 2 * 3, 0, 1),
        "policy": (0, 0, 0, 1),
        "open-loop-3": (4, 4 * 16 * 2 * 3, 0, 3),
        "two-tower-3": (4, 4 * 16 * 2 * 3, 6, 3),
        "hold-last-5": (2, 2 * 16 * 2 * 3, 0, 5),
        "budget-8×2": (10, 10 * 8 * 2 * 3, 0, 1),
    }
    assert all(r["length"] == 10 and r["fallbacks"] == 0 for r in rows)
    assert all((r["delta_abs"] is not None) == (r["arm"] == "two-tower-3") for r in rows)
    assert {r["arm"]: r["corrector_seed"] for r in rows}["two-tower-3"] == 0
    assert list(configurations) == [r["arm"] for r in rows[::2]]
    assert len({c["key"] for c in configurations.values()}) == len(ARMS)
    json.dumps(configurations)


def test_what_is_counted_is_what_the_planner_did(home, env):
    for name in ("teacher", "open-loop-3"):
        arm = make_arm(name, BUDGET)
        controller = make_controller(arm, tiny_model(), {})
        rows = run_episodes(arm, controller, "tiny", [1, 2], 8).episodes
        assert controller.planner.solves == sum(r["planner_calls"] for r in rows)


def test_arms_with_a_delay_are_played_and_counted(home, env):
    """A solve at the start, and at every arrival; late, one at each decision."""
    names = ["teacher", *(f"{name}-d{d}" for d in (0, 3) for name in ("late", "late-hold", "async", "async+two-tower"))]
    tables, configurations = played(names, calibration={})
    rows = {row["arm"]: row for row in tables.episodes if row["episode_seed"] == FIRST}
    assert len({c["key"] for c in configurations.values()}) == len(names)
    for name in names[1:5]:
        assert rows[name]["planner_calls"] == 10 and rows[name]["fallbacks"] == 0
        assert rows[name]["return"] == pytest.approx(rows["teacher"]["return"])
    calls = {"late-d3": 10, "late-hold-d3": 4, "async-d3": 4, "async+two-tower-d3": 4}
    assert {name: rows[name]["planner_calls"] for name in calls} == calls
    assert {rows[name]["fallbacks"] for name in calls} == {3}  # the decisions before the first plan
    assert {rows[name]["model_evaluations"] for name in list(calls)[1:]} == {4 * 16 * 2 * 3}
    depths = [d["depth"] for d in tables.depths if (d["arm"], d["episode_seed"]) == ("async+two-tower-d3", FIRST)]
    assert depths == [0, 3, 4, 5] and rows["async+two-tower-d3"]["delta_abs"] > 0


def test_who_acts_along_a_plan_that_is_late_is_counted_by_who_acts(home, env):
    """Not by when a solve is begun: the corrector once a plan has arrived, a draft while there is none left."""
    draft = home / "draft.safetensors"
    save_network(random_draft(), draft, teacher_key(str(CELL)))
    files = {"two_tower": corrector_file(), "distilled": draft}
    names = [f"{name}-d{d}" for name in ("async+two-tower", "async+draft") for d in (0, 3, 6)] + ["async-d3", "late-d3"]
    tables, _ = played(names, corrector_files=files, calibration={})
    rows = {row["arm"]: row for row in tables.episodes if row["episode_seed"] == FIRST}
    calls = {name: rows[name]["corrector_calls"] for name in names}
    assert calls == dict(zip(names, [0, 7, 4, 0, 3, 7, 0, 0], strict=True))  # of 10; a plan has 3 actions
    assert {name for name in names if rows[name]["delta_abs"]} == {"async+two-tower-d3", "async+two-tower-d6"}
    assert {rows[name]["delta_abs"] for name in names[3:6]} == {None}  # a draft changes no plan
    of = [d for d in tables.depths if (d["arm"], d["episode_seed"]) == ("async+two-tower-d3", FIRST) and d["depth"]]
    total = sum(d["delta_abs"] * d["count"] for d in of)
    assert rows["async+two-tower-d3"]["delta_abs"] == pytest.approx(total / 7)


def test_refinements_are_counted_with_those_that_were_in_vain(home, env):
    arm = make_arm("8x2+ladder-4", BUDGET, {"threshold": -0.5, "levels": [0.0, 0.0]})
    arm = dataclasses.replace(arm, refiner=PlannerConfig.budget(4, 1, mode="eager"))
    wm = tiny_model(num_q=4)
    controller = make_controller(arm, wm, {"two_tower": TwoTowerCorrector(LATENT, ACTIONS)})
    tables = run_episodes(arm, controller, "tiny", [1, 2, 3], 40)
    rows, depths = tables.episodes, tables.depths
    calls, refined, fallbacks = (sum(r[k] for r in rows) for k in ("planner_calls", "refinements", "fallbacks"))
    assert controller.planner.solves == calls and controller.refiner.solves == refined + fallbacks
    assert refined and fallbacks  # or nothing was tested
    spent = calls * 8 * 2 * 3 + (refined + fallbacks) * 4 * 1 * 3
    assert sum(r["model_evaluations"] for r in rows) == spent
    assert sum(r["corrector_calls"] for r in rows) == 120 - calls - refined
    assert sum(d["count"] for d in depths if d["depth"] == 0) == calls + refined


def test_returns_are_the_rewards_of_the_actions_that_were_executed(home, env):
    rows, _, _ = score(["open-loop-3"])
    for row in rows:
        world, total = env("tiny"), 0.0
        world.reset(seed=row["episode_seed"])
        for _, _, action in [s for s in env.steps if s[0] == row["episode_seed"]][:10]:
            total += world.step(action)[1]
        assert row["return"] == pytest.approx(total)


def test_depths_add_up_to_the_episode(home, env):
    env.ends[FIRST + 1] = 8
    rows, depths, _ = score()
    for row in rows:
        mine = [d for d in depths if (d["arm"], d["episode_seed"]) == (row["arm"], row["episode_seed"])]
        assert row["length"] == (8 if row["episode_seed"] == FIRST + 1 else 10)
        assert sum(d["count"] for d in mine) == row["length"]
        assert sum(d["count"] * d["reward"] for d in mine) == pytest.approx(row["return"])
        assert [d["depth"] for d in mine] == list(range(row["execution_horizon"]))
        assert all((d["mismatch"] is None) == (d["depth"] == 0) for d in mine)
        assert mine[0]["count"] == (row["planner_calls"] or row["length"])
        corrected = [d for d in mine if d["depth"] > 0 and row["arm"] == "two-tower-3"]
        if corrected:
            mean = sum(d["count"] * d["delta_abs"] for d in corrected) / sum(d["count"] for d in corrected)
            assert row["delta_abs"] == pytest.approx(mean)


@pytest.mark.parametrize("name", ["teacher", "policy", "open-loop-3", "two-tower-3"])
def test_an_episode_that_diverges_is_what_it_was_until_then(home, env, name):
    arm = make_arm(name, BUDGET)
    controller = make_controller(arm, tiny_model(num_q=4), {"two_tower": TwoTowerCorrector(LATENT, ACTIONS)})
    env.ends = {2: 5}
    ended = run_episodes(arm, controller, "tiny", [1, 2, 3], 10)
    env.ends, env.breaks = {}, {2: 6}  # the sixth step is left out
    broken = run_episodes(arm, controller, "tiny", [1, 2, 3], 10)
    assert [row["length"] for row in broken.episodes] == [10, 5, 10]
    assert_same_rows(broken.episodes, ended.episodes)
    assert_same_rows(broken.depths, ended.depths)


def test_an_episode_that_diverges_at_once_returns_nothing(home, env):
    env.breaks[FIRST] = 1
    commit(["teacher", "two-tower-3"])
    rows = read_cell("smoke", str(CELL))
    assert rows["length"].tolist() == [0, 10] * 2
    assert (rows[["return", "planner_calls", "corrector_calls"]][::2] == 0).all(axis=None)
    assert (read_cell("smoke", str(CELL), "-depth")["episode_seed"] == FIRST + 1).all()


def test_phases_of_gated_arms_add_up_to_the_episode(home, env, monkeypatch):
    monkeypatch.setattr(evaluation, "PHASE", 4)
    env.ends[FIRST + 1] = 6
    tables, _ = played(["open-loop-3", "gated-4"], calibration={"gated-4": {"threshold": 0.01}})
    assert {r["arm"] for r in tables.phases} == {"gated-4"}
    for row in tables.episodes[2:]:
        mine = [p for p in tables.phases if p["episode_seed"] == row["episode_seed"]]
        assert [p["decision"] for p in mine] == list(range(0, row["length"], 4))
        assert [p["count"] for p in mine] == ([4, 2] if row["length"] == 6 else [4, 4, 2])
        for column, total in (("count", "length"), *((c, c) for c in ("planner_calls", "fallbacks", "refinements"))):
            assert sum(p[column] for p in mine) == row[total]
        assert row["fallbacks"]  # or nothing was tested
        assert sum(p["count"] * p["reward"] for p in mine) == pytest.approx(row["return"])


def test_phases_are_committed_and_come_back(home, blocks):
    given = dict(arms=["policy", "gated-4"], calibration={"gated-4": {"threshold": 0.01}})
    made = played(**given)
    commit(**given)
    del blocks[:]
    assert played(**given) == made and blocks == []


def test_tables_of_a_cell_have_the_columns_of_its_arms(home):
    commit([*ARMS, "gated-4"], calibration={"gated-4": {"threshold": 0.01}})
    assert evaluated_cells("smoke") == [str(CELL)]
    episodes, phases = read_cell("smoke", CELL), read_cell("smoke", CELL, "-phase")
    for name, rows in [*episodes.groupby("arm"), *phases.groupby("arm")]:
        columns = rows[list(ARM_COLUMNS)].drop_duplicates().astype(object).where(lambda c: c.notna(), None)
        assert columns.to_dict("records") == [make_arm(name, BUDGET).columns]
    depths = read_table(paths.results("smoke") / "horizon" / f"{CELL}-depth.csv")
    assert read_cell("smoke", CELL, "-depth")[list(depths)].equals(depths)
    assert read_cell("smoke", CELL, "-action-error").empty


def test_an_arm_that_is_named_twice_runs_once(home, blocks):
    rows, _, _ = score(["policy", "budget-8x2", "policy", "budget-8×2"])
    assert [r["arm"] for r in rows] == ["policy"] * 2 + ["budget-8×2"] * 2 and len(blocks) == 2


def test_a_corrected_arm_needs_its_corrector(home):
    with pytest.raises(ConfigError, match="arm two-tower-3 lacks its two_tower network"):
        score(["two-tower-3"], corrector_files={})


def test_any_device_that_notebooks_take(home):
    assert len(score(["two-tower-3"], device="auto")[0]) == 2


# ------------------------------------------------------------------------------------------------- kept, resumed


def test_an_interrupted_evaluation_goes_on_where_it_was(home, blocks):
    blocks.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        score(["teacher", "open-loop-3"], 6)
    assert blocks == [("teacher", [0, 1, 2]), ("teacher", [3, 4, 5]), ("open-loop-3", [0, 1, 2])]
    blocks.stop_at = None
    rows, depths, _ = score(["teacher", "open-loop-3"], 6)
    assert blocks[3:] == [("open-loop-3", [3, 4, 5])]
    assert [(r["arm"], r["episode_seed"] - FIRST) for r in rows] == [
        (a, i) for a in ("teacher", "open-loop-3") for i in range(6)
    ]
    assert sum(d["count"] for d in depths) == 12 * 10


def test_arms_may_play_different_numbers_of_episodes(home, blocks):
    tables, _ = evaluate(Stage.of(CELL, "smoke", decisions=4), {"policy": 2, "best-of-4": 1})
    assert [(r["arm"], r["episode_seed"] - FIRST) for r in tables.episodes] == [
        ("policy", 0),
        ("policy", 1),
        ("best-of-4", 0),
    ]


def test_two_processes_that_record_the_same_arm_lose_nothing(home, monkeypatch):
    """Another process records episode 0 while this one runs episodes 0 and 1."""
    stage, arm = Stage.of(CELL, "smoke", decisions=4), make_arm("policy", BUDGET)

    @functools.wraps(run_episodes)
    def meanwhile(*arguments):
        monkeypatch.setattr(evaluation, "run_episodes", run_episodes)
        stage.play(arm, [FIRST, FIRST + 7])
        return run_episodes(*arguments)

    monkeypatch.setattr(evaluation, "run_episodes", meanwhile)
    assert [r["episode_seed"] for r in stage.play(arm, [FIRST, FIRST + 1])[0].episodes] == [FIRST, FIRST + 1]
    nothing = functools.wraps(run_episodes)(lambda *_: pytest.fail("nothing is left to run"))
    monkeypatch.setattr(evaluation, "run_episodes", nothing)
    tables, _ = stage.play(arm, [FIRST, FIRST + 1, FIRST + 7])
    assert [r["episode_seed"] for r in tables.episodes] == [FIRST, FIRST + 1, FIRST + 7]


def test_more_episodes_run_only_the_new_ones(home, blocks):
    few, few_depths, _ = score(["open-loop-3"], 2)
    more, more_depths, _ = score(["open-loop-3"], 6)
    assert blocks == [("open-loop-3", [0, 1]), ("open-loop-3", [2, 3, 4]), ("open-loop-3", [5])]
    assert more[:2] == few and more_depths[: len(few_depths)] == few_depths
    assert score(["open-loop-3"], 2) == (few, few_depths, score(["open-loop-3"], 6)[2]) and len(blocks) == 3


def test_an_episode_does_not_depend_on_its_block(home, monkeypatch):
    rows, depths, _ = score(["teacher", "two-tower-3"], 4)
    for file in (paths.CACHE / "rollouts").glob("*"):
        file.unlink()
    monkeypatch.setattr(evaluation, "BLOCK", 1)
    others, other_depths, _ = score(["teacher", "two-tower-3"], 4)
    assert_same_rows(others, rows)
    assert_same_rows(other_depths, depths)


@pytest.mark.parametrize(
    ("change", "stale"),
    [("teacher", ARMS), ("corrector", ["two-tower-3"]), ("decisions", ARMS), ("planner", [*ARMS[:1], *ARMS[2:5]]),
     ("mode", []), ("nothing", []), ("threshold", ["gated-4"])],
)  # fmt: skip
def test_what_an_arm_depends_on_runs_it_again(home, blocks, change, stale):
    arms, calibration = ARMS, None
    if change == "threshold":
        arms, calibration = [*ARMS, "gated-4"], {"gated-4": {"threshold": 0.1}}
    score(arms, calibration=calibration)
    del blocks[:]
    options = {"calibration": calibration}
    match change:
        case "teacher":
            new_teacher(1)
        case "corrector":
            new_corrector(1)
        case "decisions":
            options = {"decisions": 9}
        case "planner":
            options = {"planner": PlannerConfig.budget(16, 1, mode="eager")}
        case "mode":
            options = {"planner": PlannerConfig.budget(16, 2, mode="auto")}
        case "threshold":
            options = {"calibration": {"gated-4": {"threshold": 0.2}}}
    score(arms, **options)
    assert [name for name, _ in blocks] == [name.replace("x", "×") for name in stale]


def test_another_teachers_corrector_is_not_evaluated(home):
    save_world_model(tiny_model(num_q=4, seed=1), paths.TEACHERS / f"{CELL}.safetensors")
    with pytest.raises(NetworkError, match="another teacher"):
        score(["two-tower-3"])


def test_committed_episodes_are_not_run_again(home, blocks):
    rows, depths, configurations = commit()
    del blocks[:]
    again = score()
    assert blocks == [] and again == (rows, depths, configurations)
    more, _, _ = score(episodes=3)
    assert blocks == [(make_arm(name, BUDGET).name, [2]) for name in ARMS]
    assert [r for r in more if r["episode_seed"] < FIRST + 2] == rows


def test_only_the_paper_profile_plays_the_reported_start_states(home):
    seeds = {}
    for profile in ("smoke", "quick", "paper"):
        tables, _ = evaluate(Stage.of(CELL, profile, decisions=4), {"policy": 2})
        seeds[profile] = [row["episode_seed"] for row in tables.episodes]
    assert seeds == {"smoke": [FIRST, FIRST + 1], "quick": [FIRST, FIRST + 1], "paper": [500_000_000, 500_000_001]}


@pytest.mark.parametrize("how", ["edited", "gone", "depths gone", "sidecar gone", "older sidecar"])
def test_committed_episodes_that_cannot_be_trusted_are_run_again(home, blocks, how):
    rows, _, _ = commit(["policy"])
    del blocks[:]
    file = paths.results("smoke") / "horizon" / f"{CELL}.csv"
    match how:
        case "edited":
            file.write_text(file.read_text().replace(str(rows[0]["return"]), "999.0"))
        case "gone":
            file.unlink()
        case "depths gone":
            file.with_name(f"{CELL}-depth.csv").unlink()
        case "sidecar gone":
            file.with_name(f"{CELL}.csv.meta.json").unlink()
        case "older sidecar":  # the rows of earlier code
            file.with_name(f"{CELL}.csv.meta.json").unlink()
            describe(file, arms={"policy": {"key": "another key"}})
    assert score(["policy"])[0] == rows and blocks == [("policy", [0, 1])]
