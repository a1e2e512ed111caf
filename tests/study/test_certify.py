"""The certified choice of a cell: what is played, admitted, picked and checked; refused, killed and taken up again."""

import ast
import dataclasses
import functools
import json
import math
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import ConfigError
from lib.correctors import TwoTowerCorrector
from lib.records import paths
from lib.records.keys import ResultError, file_hash
from lib.records.seeds import SEED_BLOCKS, episode_seeds
from lib.records.store import read_sidecar, read_table, write_artefact, write_table
from lib.study import certify as certifying
from lib.study import evaluate as evaluation
from lib.study import rows as keyed
from lib.study import steps
from lib.study.arms import make_arm
from lib.study.calibrate import UNCALIBRATED, calibration_key
from lib.study.cells import Cell, Settings
from lib.study.certify import COLUMNS, FRESH, certify, picks, random_episodes, write_certified
from lib.study.evaluate import Stage, run_episodes
from lib.study.picked import certified_cells, summary, time_picks
from lib.study.profiles import PROFILES, Certification
from lib.study.stats.certification import keeps_less
from lib.weights.distilled import save_network
from lib.weights.native import save_world_model, teacher_key
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, tiny_model

CELL = Cell("tiny-task", "1m", 1)
STUDY = Certification((("*-5m-*", 2), ("*", 6)), ("budget-8x2", "budget-8x1"), ("open-loop-3", "two-tower-3"))


def test_nothing_else_starts_from_the_states_of_certification():
    assert SEED_BLOCKS["certify"] == 900_000_000
    users = set()
    for file in (f for folder in ("lib", "paper", "figures") for f in (paths.ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("episode_seeds"):
                users |= {file.name} if "'certify'" in ast.unparse(node) else set()
    assert users == {"certify.py", "search.py"}  # which counts those that were played, of somebody's own teacher
    assert not any('\\"certify\\"' in file.read_text(encoding="utf-8") for file in paths.NOTEBOOKS.glob("*.ipynb"))


# ------------------------------------------------------------------------------------ what is tried, on made-up returns


class Told:
    """A stage whose arms return what the test says, as parts of 900, and cost what it says; it notes what is asked."""

    def __init__(self, arms, task="walker-walk", profile="paper"):
        self.cell, self.profile, self.decisions = Cell(task, "1m", 1), profile, 500
        self.arms, self.asked = {"teacher": (1.0, 1000)} | arms, []

    def play(self, arm, seeds):
        self.asked.append((arm.name, seeds))
        kept, cost = self.arms[arm.name]
        swing = 5 * np.random.default_rng(len(self.asked)).standard_normal(len(seeds))
        rows = [
            {"arm": arm.name, "episode_seed": s, "return": 900 * kept + x, "length": 500, "planner_calls": 5,
             "model_evaluations": cost, "refinements": 0}
            for s, x in zip(seeds, swing, strict=True)
        ]  # fmt: skip
        return type("Tables", (), {"episodes": rows}), f"key of {arm.name}"


@pytest.fixture
def random_returns(monkeypatch):
    """What a random policy returns: `returns[0]` on every start state."""
    returns = [20.0]

    def played(stage, seeds):
        return pd.DataFrame({"episode_seed": seeds, "return": returns[0], "length": 500}).reindex(columns=COLUMNS)

    monkeypatch.setattr(certifying, "random_episodes", played)
    return returns


GOOD, BAD = 0.995, 0.95
CHAINS = {
    "planners": ("budget-256x2", "budget-64x2", "budget-16x1"),
    "reuse": ("64x2+open-loop-3", "open-loop-6"),
    "drafts": (),
}
ARMS = {
    "budget-256×2": (GOOD, 500), "budget-64×2": (BAD, 100), "budget-16×1": (GOOD, 10),
    "64×2+open-loop-3": (GOOD, 33), "open-loop-6": (GOOD, 160),
}  # fmt: skip


def test_a_smaller_share_admits_more_and_a_larger_one_less(random_returns):
    for keep, admitted in ((0.9, ["budget-256×2", "budget-64×2", "budget-16×1"]), (0.999, [])):
        table, _, _ = certify(Told(ARMS), {"planners": CHAINS["planners"]}, BUDGET, {}, 20, keep)
        assert table.loc[table["admitted"], "candidate"].tolist() == ["teacher", *admitted]


def test_what_does_not_fit_ends_its_chain_and_is_not_checked(random_returns):
    stage = Told(ARMS)
    table, episodes, found = certify(
        stage, CHAINS, BUDGET, {}, 20, fits=lambda name, block: block == "certify" and name != "64×2+open-loop-3"
    )
    reuse = table[table["chain"] == "reuse"].set_index("candidate")
    assert not reuse.loc[["64×2+open-loop-3", "open-loop-6"], ["tried", "admitted"]].any(axis=None)
    assert [name for name, _ in stage.asked] == ["teacher", "budget-256×2", "budget-64×2"]
    assert set(episodes["block"]) == {"certify"} and found["picks"]["reuse"] == "teacher"


def test_a_chain_is_played_until_its_first_failure_and_picks_are_checked_on_fresh_states(random_returns):
    stage = Told(ARMS)
    table, episodes, found = certify(stage, CHAINS, BUDGET, {}, count=20)
    own, fresh = episode_seeds("certify", 20), episode_seeds("report", 20, first=FRESH)
    tried = ["teacher", "budget-256×2", "budget-64×2", "64×2+open-loop-3", "open-loop-6"]
    assert stage.asked[:5] == [(name, own) for name in tried]
    assert stage.asked[5:] == [(name, fresh) for name in ("teacher", "budget-256×2", "64×2+open-loop-3")]
    rows = table.set_index(["chain", "candidate"])
    planners = rows.loc["planners"]
    assert planners["tried"].tolist() == [True, True, True, False]
    assert planners["admitted"].tolist() == [True, True, False, False] and rows.loc["reuse", "admitted"].all()
    assert planners.loc["budget-16×1", ["episodes", "kept", "p", "falls", "evaluations"]].isna().all()
    returns = episodes[episodes["block"] == "certify"].pivot(index="episode_seed", columns="arm", values="return")
    for name, row in planners.loc[["budget-256×2", "budget-64×2"]].iterrows():
        assert row["p"] == keeps_less(returns[name], returns["teacher"])
        assert row["kept"] == pytest.approx(returns[name].mean() / returns["teacher"].mean())
    assert rows["episodes"].dropna().eq(20).all() and rows["falls"].dropna().eq(0).all()
    assert rows["falls_high"].dropna().tolist() == pytest.approx([1 - 0.025 ** (1 / 20)] * 7)
    # The cheapest, not the last: plans of the standard planner cost more than those of the small one.
    assert found["picks"] == {
        "planners": "budget-256×2", "reuse": "64×2+open-loop-3", "drafts": "teacher", "all": "64×2+open-loop-3",
    }  # fmt: skip
    assert set(episodes["block"]) == {"certify", "report"} and found["floor"] == 0
    assert found["arms"]["budget-64×2"]["key"] == "key of budget-64×2"


def test_other_profiles_check_on_trial_states(random_returns):
    stage = Told(ARMS, profile="quick")
    certify(stage, {"planners": ()}, BUDGET, {}, count=3)
    assert stage.asked == [
        ("teacher", episode_seeds("certify", 3)), ("teacher", episode_seeds("trial", 3, first=FRESH)),
    ]  # fmt: skip


def test_who_tests_once_more_has_other_start_states(random_returns):
    stage = Told(ARMS)
    certify(stage, {"planners": ()}, BUDGET, {}, count=3, first=50)
    assert stage.asked == [
        ("teacher", [900_000_050, 900_000_051, 900_000_052]), ("teacher", [500_001_050, 500_001_051, 500_001_052]),
    ]  # fmt: skip


def test_equal_costs_and_a_teacher_that_is_named(random_returns):
    columns = ["chain", "candidate", "admitted", "evaluations"]
    rows = [("a", "teacher", True, 9), ("a", "x", True, 5), ("a", "y", True, 5), ("a", "z", False, math.nan)]
    assert picks(pd.DataFrame(rows, columns=columns)) == {"a": "y", "all": "y"}
    chained = certify(Told(ARMS), {"planners": ("teacher", "budget-256x2")}, BUDGET, {}, count=3)[0]
    assert chained["candidate"].tolist() == ["teacher", "budget-256×2"]


@pytest.mark.parametrize(("task", "floor"), [("walker-walk", 0.0), ("gym:Pendulum-v1", 600.0)])
def test_the_floor_is_a_rule_of_the_task(random_returns, task, floor):
    random_returns[0] = 600.0
    _, _, found = certify(Told({"budget-256×2": (0.99, 1)}, task), {"a": ("budget-256x2",)}, BUDGET, {}, count=20)
    assert found["floor"] == floor
    # It loses 9 of 900, and of 300 above the floor: 97 %.
    assert found["picks"]["a"] == ("budget-256×2" if floor == 0 else "teacher")


def test_a_teacher_no_better_than_random_is_refused(random_returns):
    random_returns[0] = 910.0
    with pytest.raises(ConfigError, match="a random policy's return on walker-walk-1m-1 is 910: there is nothing"):
        certify(Told({}), CHAINS, BUDGET, {}, count=3)


# ------------------------------------------------------------------------------------------------ played, and written


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with a random teacher and corrector, free environments, and a git repository.

    No policy is worse than random here: a random one is said to return less than nothing.
    """
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "TEACHERS", tmp_path / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setattr(certifying, "LISTS", tmp_path / "profiles.toml")
    certifying.LISTS.write_text("lists")
    made = fresh_env()
    for module in (evaluation, certifying):
        monkeypatch.setattr(module, "make_env", made)
        monkeypatch.setattr(module, "BLOCK", 3)
    real = certifying.random_returns

    @functools.wraps(real)
    def worse(*about):
        return [row | {"return": row["return"] - 100} for row in real(*about)]

    monkeypatch.setattr(certifying, "random_returns", worse)
    (tmp_path / "teachers").mkdir()
    save_world_model(tiny_model(num_q=4), paths.TEACHERS / f"{CELL}.safetensors")
    for profile in ("smoke", "paper"):
        new_corrector(profile)
    return made


def new_corrector(profile, seed=0):
    torch.manual_seed(seed)
    made, file = TwoTowerCorrector(LATENT, ACTIONS, width=8), corrector_file(profile)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_network(made, file, teacher_key(str(CELL)))


def corrector_file(profile):
    return paths.results(profile) / "corrector" / f"{CELL}-two_tower.safetensors"


def settings(profile="smoke", **changes):
    changes = {"certification": STUDY, "planner": BUDGET, "decisions": 8} | changes
    return Settings(dataclasses.replace(PROFILES["smoke"], name=profile, **changes), (CELL,), "", "cpu")


def test_a_cell_from_its_chains_to_its_summary(home):
    file = write_certified(settings(), CELL)
    table, about = read_table(file), read_sidecar(file)
    assert file == paths.results("smoke") / "certified" / f"{CELL}.csv"
    episodes = read_table(file.with_name(f"{CELL}-episodes.csv"))
    assert set(episodes["arm"]) >= {"teacher", "random", "budget-8×2", "open-loop-3"}
    assert set(episodes["episode_seed"]) == {*range(900_000_000, 900_000_006), *range(700_001_000, 700_001_006)}
    assert episodes.groupby(["block", "arm"]).size().eq(6).all()
    assert episodes[episodes["arm"] == "teacher"]["model_evaluations"].eq(8 * 16 * 2 * 3).all()
    assert about["chains"]["planners"] == ["budget-8x2", "budget-8x1"] and about["floor"] == 0
    weights = paths.TEACHERS / f"{CELL}.safetensors"
    assert {facts["sha256"] for facts in about["used"].values()} == {
        file_hash(path) for path in (weights, corrector_file("smoke"), certifying.LISTS)
    }
    assert certified_cells("smoke") == [str(CELL)]
    rows = summary("smoke", str(CELL)).set_index("chain")
    assert rows.index.tolist() == [*STUDY.chains, "all"] and rows["pick"].to_dict() == about["picks"]
    assert (rows.loc["drafts", ["pick", "fallback", "verdict"]] == ["teacher", True, "shown"]).all()
    assert rows.loc["drafts", ["kept", "kept_low", "kept_high", "evaluations_ratio"]].tolist() == [1, 1, 1, 1]
    assert rows["episodes"].eq(6).all() and rows[["step_ratio", "p999_ratio"]].isna().all(axis=None)
    assert table["admitted"].dtype == bool and table.loc[table["candidate"] == "teacher", "admitted"].all()
    assert all(not row.why for row in keyed_rows())
    save_world_model(tiny_model(num_q=4, seed=1), weights)
    assert {row.why for row in keyed_rows()} == {f"arm {a} was made by other code, settings or weights" for a in
                                                 about["arms"]}  # fmt: skip


def keyed_rows():
    """The rows of the cell as the pipeline asks for them, whatever the tiny task is called."""
    original = keyed._networks
    keyed._networks = lambda profile, cell: (settings(), {"two_tower": corrector_file("smoke")})
    try:
        return keyed.certified("smoke", str(CELL))
    finally:
        keyed._networks = original


def test_killed_in_the_middle_it_goes_on_where_it_was(home, monkeypatch):
    whole = write_certified(settings(), CELL)
    before = {path.name: path.read_bytes() for path in whole.parent.glob("*.csv")}
    for made in (paths.CACHE, whole.parent):
        shutil.rmtree(made)
    ran, stop = [], [4]

    @functools.wraps(run_episodes)  # keys are of the code that it stands for
    def counted(arm, controller, task, seeds, *more):
        if len(ran) == stop[0]:
            raise KeyboardInterrupt
        ran.append((arm.name, seeds[0]))
        return run_episodes(arm, controller, task, seeds, *more)

    monkeypatch.setattr(evaluation, "run_episodes", counted)
    with pytest.raises(KeyboardInterrupt):
        write_certified(settings(), CELL)
    assert len(ran) == 4 and not list(whole.parent.glob("*.csv"))
    stop[0] = None
    assert write_certified(settings(), CELL) == whole
    assert {path.name: path.read_bytes() for path in whole.parent.glob("*.csv")} == before
    assert len(set(ran)) == len(ran)  # no block was played twice
    write_certified(settings(), CELL)
    assert len(set(ran)) == len(ran)


def test_the_picks_are_timed_beside_the_teacher(home, monkeypatch):
    monkeypatch.setattr(steps, "make_env", home)
    given = settings(certified_steps=30, compile_all=False)
    with pytest.raises(ResultError, match=f"certified/{CELL}.csv"):
        time_picks(given, CELL)
    table = write_certified(given, CELL)
    about = read_sidecar(table, "picks", "arms", "floor")
    about["picks"]["all"] = "open-loop-3"  # as if it had been admitted
    write_table(table, read_table(table), **{name: about[name] for name in ("picks", "arms", "floor")})
    file = time_picks(given, CELL)
    rows = read_table(file).query("part == 'step' and batch == 1").set_index("arm")
    assert set(rows.index) == {"teacher", "open-loop-3"} and rows["steps"].eq(30).all()
    row = summary("smoke", str(CELL)).iloc[0]
    assert (row["pick"], row["step_ratio"]) == ("teacher", 1) and math.isnan(row["p999_ratio"])
    before = file.read_bytes()
    assert time_picks(given, CELL).read_bytes() == before  # timed once


def test_a_random_policy_is_played_by_hand_and_once(home):
    stage = Stage.of(CELL, "smoke", decisions=8)
    home.ends[12] = 5
    rows = random_episodes(stage, [11, 12, 13, 14])
    for seed, total, length in rows[["episode_seed", "return", "length"]].itertuples(index=False):
        world, mine = home("tiny"), [action for s, _, action in home.steps if s == seed]
        world.reset(seed=seed)
        assert total + 100 == pytest.approx(sum(world.step(action)[1] for action in mine[:length]))
    assert rows["length"].tolist() == [8, 5, 8, 8]
    played = len(home.steps)
    assert random_episodes(stage, [11, 12, 13, 14]).equals(rows) and len(home.steps) == played


# ------------------------------------------------------------------------------------------- fixed before it is played


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_under_the_paper_profile_nothing_is_played_before_all_is_committed(home, tmp_path):
    def git(*words):
        options = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    corrector = corrector_file("paper").name
    with pytest.raises(ConfigError, match=f"profiles.toml, .*{corrector}.*: not committed as of now; what {CELL} is"):
        write_certified(settings("paper"), CELL)
    git("add", ".")
    git("commit", "-qm", "one")
    new_corrector("paper", seed=1)
    with pytest.raises(ConfigError, match=corrector) as refused:
        write_certified(settings("paper"), CELL)
    assert "profiles.toml" not in str(refused.value) and not home.steps
    git("commit", "-qam", "another corrector")
    file = write_certified(settings("paper"), CELL)
    used = {name.split("/")[-1]: facts["commit"] for name, facts in read_sidecar(file)["used"].items()}
    assert used[corrector] == git("rev-parse", "HEAD") and used["profiles.toml"] == git("rev-parse", "HEAD~1")
    assert home.steps and {s for s, _, _ in home.steps} >= {900_000_000, 500_001_000}
    played, lists = len(home.steps), certifying.LISTS
    lists.write_text(lists.read_text() + "# of other cells\n")
    git("commit", "-qam", "after the play")
    again = read_sidecar(write_certified(settings("paper"), CELL))["used"]
    assert {name.split("/")[-1]: facts["commit"] for name, facts in again.items()} == used and len(home.steps) == played
    more = dataclasses.replace(STUDY, episodes=tuple((cells, count + 1) for cells, count in STUDY.episodes))
    again = read_sidecar(write_certified(settings("paper", certification=more), CELL))["used"]
    named = {name.split("/")[-1]: facts["commit"] for name, facts in again.items()}
    assert named["profiles.toml"] == git("rev-parse", "HEAD") and len(home.steps) > played  # who looked names today's
    new_corrector("paper", seed=2)
    git("commit", "-qam", "before another play")
    again = read_sidecar(write_certified(settings("paper"), CELL))["used"]
    assert {facts["commit"] for facts in again.values()} >= {git("rev-parse", "HEAD"), git("rev-parse", "HEAD~1")}


def test_thresholds_are_read_and_not_written_again(home, monkeypatch):
    monkeypatch.setattr(certifying, "distillation_key", lambda *about: "code-states")
    monkeypatch.setattr(certifying, "gate_numbers", lambda *about: pytest.fail("made again"))
    given = settings()
    stage = Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file("smoke")}, decisions=8)
    key = calibration_key(stage, make_arm("gated-3", BUDGET, UNCALIBRATED), "code-states", 1)
    kept = {"gated-3": {"threshold": 0.25, "key": key}, "gated-5": {"threshold": 1.0, "key": "old"}}
    file = certifying.calibration_file("smoke", CELL)
    write_artefact(file, lambda path: path.write_text(json.dumps(kept)))
    before = file.stat().st_mtime_ns
    names = ["two-tower-3", "gated-3"]
    assert certifying.thresholds(given, stage, names, BUDGET) == {"gated-3": kept["gated-3"]}
    assert file.stat().st_mtime_ns == before and certifying.thresholds(given, stage, names[:1], BUDGET) == {}
    monkeypatch.setattr(certifying, "gate_numbers", lambda settings, stage, names, planner: names)
    assert certifying.thresholds(given, stage, ["gated-3", "gated-5"], BUDGET) == ["gated-3", "gated-5"]


# ---------------------------------------------------------------------------------------------------- the picks


def written(picked: dict, fresh: dict, floor=0.0, latency=None):
    """The tables of a cell: chain → pick, arm → (returns, evaluations) on fresh states, arm → (ms, ms at the end)."""
    folder = paths.results("smoke")
    rows = [("teacher", chain, True, 1e6) for chain in picked] + [(p, chain, True, 1.0) for chain, p in picked.items()]
    table = pd.DataFrame(rows, columns=["candidate", "chain", "admitted", "evaluations"])
    episodes = [
        {"block": "trial", "arm": arm, "episode_seed": seed, "return": value, "length": 10, "planner_calls": 10,
         "model_evaluations": cost, "refinements": 0}
        for arm, (returns, cost) in fresh.items() for seed, value in enumerate(returns)
    ]  # fmt: skip
    write_table(folder / "certified" / "x-1m-1-episodes.csv", episodes)
    write_table(folder / "certified" / "x-1m-1.csv", table, floor=floor)
    if latency:
        times = [
            {"arm": arm, "part": part, "batch": 1, "mean_ms": ms, "mean_error_ms": 0.1, "turns": 9, "p95_ms": ms}
            | {"p999_ms": last if part == "step" else None}
            for arm, (ms, last) in latency.items() for part in ("step", "plan")
        ]  # fmt: skip
        write_table(folder / "certified" / "x-1m-1-steps.csv", times)
    return summary("smoke", "x-1m-1").set_index("chain")


def test_the_summary_by_hand(home):
    teacher = [90.0, 110.0, 100.0, 100.0]
    fresh = {"teacher": (teacher, 1000), "a": ([90.0, 109.0, 100.0, 99.0], 50), "b": ([60.0, 80.0, 71.0, 69.0], 0)}
    picked = {"planners": "a", "reuse": "b"}
    rows = written(picked, fresh, latency={"teacher": (80.0, 120.0), "a": (4.0, 10.0)})
    assert rows.loc["planners", ["kept", "verdict", "fallback"]].tolist() == [0.995, "shown", False]
    assert rows.loc["reuse", ["kept", "verdict", "fallback"]].tolist() == [0.7, "broken", False]
    ratios = ["evaluations_ratio", "step_ratio", "p999_ratio"]
    assert rows.loc["planners", ratios].tolist() == pytest.approx([20, 20, 12])
    assert rows.loc["reuse", "evaluations_ratio"] == math.inf and rows.loc["reuse", ratios[1:]].isna().all()
    # Of what is above a floor of −100, less is lost.
    assert written(picked, fresh, floor=-100.0).loc["reuse", "kept"] == pytest.approx(0.85)
    file = write_table(paths.results("smoke") / "certified" / "summary.csv", rows.reset_index())
    assert read_table(file)["evaluations_ratio"].tolist()[1] == math.inf


def test_times_without_the_last_percentile_are_read(home):
    fresh = {"teacher": ([1.0, 1.0], 1000)}
    written({"planners": "teacher"}, fresh, latency={"teacher": (80.0, None)})
    file = paths.results("smoke") / "certified" / "x-1m-1-steps.csv"
    for table in (read_table(file), read_table(file).drop(columns="p999_ms")):
        write_table(file, table)
        row = summary("smoke", "x-1m-1").iloc[0]
        assert row["step_ratio"] == 1 and math.isnan(row["p999_ratio"])


def test_no_certified_cell_is_an_error(home):
    with pytest.raises(ResultError, match="certified holds no certified cell; run `make all"):
        certified_cells("smoke")
