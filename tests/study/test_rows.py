"""Rows with keys of their own, on the committed results: an arm more is a reason to play that arm, and no other."""

import dataclasses

from lib.study.profiles import PROFILES
from lib.study.rows import learnt, rows

CELL = "cheetah-run-1m-1"


def stale(profile="paper"):
    return {row.name: row.why for row in rows(profile, CELL) if row.why}


def test_new_arms_and_more_episodes_are_the_only_rows_to_do(monkeypatch):
    before, paper = stale(), PROFILES["paper"]
    monkeypatch.setitem(PROFILES, "paper", dataclasses.replace(paper, arms=(*paper.arms, "open-loop-5", "gated-5")))
    new = {
        "arm open-loop-5": "arm open-loop-5 was never played",
        "the gate of gated-5": "the gate of gated-5 has no threshold yet",
        "arm gated-5": "arm gated-5 was never played",
    }
    assert stale() == before | new
    more = tuple(cells._replace(each_arm=cells.each_arm + 1) for cells in paper.cell_episodes)
    monkeypatch.setitem(PROFILES, "paper", dataclasses.replace(paper, arms=("teacher",), cell_episodes=more))
    assert stale()["arm teacher"] == "arm teacher has 20 of 21 episodes"


def test_another_setting_of_collection_makes_other_states_than_were_learnt(monkeypatch):
    before = [row.now for row in learnt("paper", CELL)]
    monkeypatch.setitem(PROFILES, "paper", dataclasses.replace(PROFILES["paper"], collect_horizon=5))
    after = learnt("paper", CELL)
    assert all(row.why and row.now != now for row, now in zip(after, before, strict=True)) and len(after) == 2
