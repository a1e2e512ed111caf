"""Cards as rows of results: of shipped teachers as they are, of any other measured here, beside the official agent."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.planner import MPPI
from lib.records import paths
from lib.records.seeds import SEED_BLOCKS
from lib.records.store import write_table
from lib.study import cards
from lib.study.cards import card_row, expert_return, measured_card, official_return, teacher_card
from lib.study.cells import Cell, resolve
from lib.study.stats.intervals import bootstrap_ci
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import record
from lib.weights.native import CheckpointError, save_world_model
from tests import tiny

CARD = dict(task="walker-walk", size="1m", seed=1, decisions=20_000, frames=40_000, minutes=60.0, return_mean=900.0,
            returns=[880.0, 890.0, 930.0], planner={"samples": 512, "iterations": 6}, collect_samples=128,
            collect_iterations=2, config={"eval_episodes": 3, "eval_samples": 128, "eval_iterations": 2})  # fmt: skip
CURVE = {"decision": 20_000, "frames": 40_000, "return": 890.0, "episodes": 3, "minutes": 60.0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Folders of a repository of its own, with two official returns, and an environment that costs nothing."""
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    rows = [("walker-walk", 100_000, 1000.0), ("walker-walk", 200_000, 950.0), ("tiny-task", 100_000, 10.0)]
    write_table(paths.DATA / "official_returns.csv", pd.DataFrame(rows, columns=["task", "frames", "return"]))
    write_table(paths.DATA / "expert_returns.csv", [{"task": "gym:Hop-v5", "return": 4000.0}])
    paths.TEACHERS.mkdir()
    env = tiny.fresh_env()
    monkeypatch.setattr(cards, "make_env", env)
    return env


def settings(**changes):
    defaults = dict(profile="smoke", task="tiny-task", model_size="1m", seed=7, teacher="", device="cpu")
    return resolve(**defaults | changes)


def weights(path, seed=0):
    wm = tiny.tiny_model(seed=seed)
    wm.task = "tiny-task"
    save_world_model(wm, path)
    return wm


def test_the_official_return_is_never_one_of_fewer_frames(home):
    assert official_return("walker-walk", 40_000) == official_return("walker-walk", 100_000) == (100_000, 1000.0)
    assert official_return("walker-walk", 100_001) == (200_000, 950.0)
    assert official_return("walker-walk", 200_001) == official_return("dog-run", 1) == (None, None)


def test_the_committed_official_returns_are_complete():
    table = cards.read_table(paths.DATA / "official_returns.csv")
    frames = table.groupby("task")["frames"].apply(tuple).unique().tolist()
    assert frames == [(100_000, 200_000, 500_000, 1_000_000)]
    assert table["return"].between(0, 1000).all() and len(table) == 52
    assert official_return("hopper-stand", 150_000) == (200_000, 262) and official_return("walker-run", 1)[1] == 723


def test_a_public_expert_stands_where_the_official_agent_has_none(home):
    row = card_row(CARD | {"task": "gym:Hop-v5"})
    assert (row["official_return"], row["expert_return"]) == (None, 4000.0) and card_row(CARD)["expert_return"] is None


def test_the_committed_expert_returns_are_those_of_the_shipped_tasks():
    assert expert_return("gym:HalfCheetah-v5") == 11448.22 and expert_return("gym:Hopper-v5") == 4098.17


def test_a_row_says_what_the_card_says(home):
    row = card_row(CARD)
    assert (row["return_low"], row["return_high"]) == bootstrap_ci(CARD["returns"]) and row["return_low"] < 900
    assert row["official_frames"] == 100_000 and row["official_share"] == pytest.approx(0.9)
    wanted = dict(task="walker-walk", decisions=20_000, episodes=3, return_mean=900.0, samples=512, collect_samples=128,
                  eval_iterations=2, stopped_early=None)  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted


def test_a_shipped_teacher_keeps_its_card_and_curve(home):
    weights(file := paths.TEACHERS / "tiny-task-1m-7.safetensors")
    file.with_suffix(".json").write_text(json.dumps(CARD))
    write_table(file.with_suffix(".csv"), [CURVE])
    for given in (settings(), settings(teacher=str(file))):
        card, curve = teacher_card(given, given.cell)
        assert card == CARD and curve.to_dict("records") == [CURVE] and not home.steps


def test_any_other_teacher_is_measured_once(home, tmp_path):
    file = tmp_path / "mine.safetensors"
    wm = weights(file)
    given = settings(teacher=str(file))
    card, curve = teacher_card(given, given.cell)
    seeds = [SEED_BLOCKS["card"] + 7_000_000 + i for i in range(given.profile.eval_episodes)]
    assert curve is None and card["episode_seeds"] == seeds and card["task"] == "tiny-task" and card["seed"] == 7
    assert len(home.steps) == len(seeds) * given.profile.decisions
    controller = ReplanningController(MPPI(wm, given.planner(tiny.ACTIONS)))
    played = record(controller, tiny.fresh_env(), seeds, given.profile.decisions)
    assert card["returns"] == pytest.approx([float(e.rewards.sum()) for e in played])
    assert card["return_mean"] == pytest.approx(np.mean(card["returns"])) and len(set(card["returns"])) == len(seeds)

    home.steps.clear()
    assert teacher_card(given, given.cell)[0] == card and not home.steps
    weights(file, seed=1)  # other weights under the same path are another teacher
    assert measured_card(given, given.cell, str(file))["returns"] != card["returns"]


def test_what_is_not_known_is_empty_in_the_row(home, tmp_path):
    weights(tmp_path / "mine.safetensors")
    given = settings(teacher=str(tmp_path / "mine.safetensors"))
    row = card_row(teacher_card(given, given.cell)[0])
    assert row["return_low"] <= row["return_mean"] <= row["return_high"] and row["samples"] == 32
    assert {row[name] for name in ("decisions", "frames", "minutes", "collect_samples", "official_share")} == {None}


def test_no_such_teacher_is_a_sentence(home):
    given = settings(teacher="nobody")
    with pytest.raises(CheckpointError, match="there is no teacher 'nobody'"):
        teacher_card(given, given.cell)
    assert isinstance(given.cell, Cell)
