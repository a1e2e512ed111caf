"""How many episodes the arms play, cell by cell."""

from lib.profiles import Cell
from lib.workload import PAPER_ARMS, PAPER_SIDE_ARMS, PROFILES, of_cell


def test_the_first_pattern_that_matches_counts():
    table = {"walker-walk-1m-1": "exact", "*-1m-*": "size", "*": "rest"}
    assert of_cell(table, Cell.parse("walker-walk-1m-1")) == "exact"
    assert of_cell(table, Cell.parse("walker-walk-1m-11")) == of_cell(table, "cup-catch-1m-1") == "size"
    assert of_cell(table, "walker-walk-5m-1") == of_cell(table, Cell("walker-walk", "?", 1, "official-x")) == "rest"
    assert of_cell({"*": 1}, "[any] name") == 1


def test_the_paper_plays_most_episodes_where_arms_are_told_apart():
    plays = PROFILES["paper"].episodes
    for cell in ("walker-walk-1m-1", "cartpole-swingup-1m-1"):
        assert of_cell(plays, cell) == dict.fromkeys(PAPER_ARMS, 50) | dict.fromkeys(PAPER_SIDE_ARMS, 20)
    assert of_cell(plays, "reacher-easy-1m-1") == dict.fromkeys(PAPER_ARMS, 20)
    assert of_cell(plays, "walker-walk-5m-1") == of_cell(plays, "official-dog-run-1") == dict.fromkeys(PAPER_ARMS, 10)


def test_other_profiles_play_as_many_everywhere():
    for profile in (PROFILES["smoke"], PROFILES["quick"]):
        assert profile.episodes == {"*": dict.fromkeys(profile.arms, profile.eval_episodes)}
