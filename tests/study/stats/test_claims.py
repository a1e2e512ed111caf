"""Facts of the evaluation, from small tables of which anybody can tell what they show."""

import math

import pandas as pd
import pytest

from lib.study.stats.claims import evaluation, headline, removed, side

RIVAL = "budget-64×2"
# model evaluations of an episode in thousands, corrected p of non-inferiority
ARMS = {"teacher": (4608, math.nan), "policy": (0, 1.0), RIVAL: (192, 0.01), "budget-16×1": (24, 0.2)}
ARMS |= {"gated-6": (900, 0.01), "64×2+open-loop-6": (32, 0.9), "64×2+gated-6": (40, 0.01)}


def tables(arms=ARMS, cell="walker-walk-1m-1", task="walker-walk", seed=1, **columns):
    """The rows of one cell in summary.csv and comparisons.csv; columns: name → arm → value, where not the usual one."""
    rows = [
        dict(cell=cell, task=task, size="1m", teacher_seed=seed, arm=arm, episodes=10, kept=0.99, gain_low=math.nan)
        | dict(gain_high=math.nan, model_evaluations=cost, calls_kept=0.5, evaluations_kept=cost / 4608)
        | {f"model_evaluations_{end}": cost for end in ("low", "high")}
        | {f"planner_calls_{end}": cost for end in ("low", "high")}
        for arm, (cost, _) in arms.items()
    ]
    summary = pd.DataFrame(rows)
    for column, values in columns.items():
        summary[column] = summary["arm"].map(values).fillna(summary[column])
    tests = [dict(cell=cell, arm=arm, role="teacher", p_holm=p) for arm, (_, p) in arms.items() if arm != "teacher"]
    return summary, pd.DataFrame(tests)


def facts(*cells):
    summary, comparisons = (pd.concat(parts) for parts in zip(*cells, strict=True))
    return evaluation(summary, comparisons, RIVAL)


@pytest.mark.parametrize(
    ("interval", "found"),
    [((1, 2), "above"), ((-2, -1), "below"), ((-1, 1), "unclear"), ((0, 1), "unclear"), ((math.nan, 1), None),
     ((3, 4, 1, 2), "above"), ((0, 0.5, 1, 2), "below"), ((0, 1, 1, 2), "unclear"), ((0, 1, None, None), None)],
)  # fmt: skip
def test_where_an_interval_lies(interval, found):
    assert side(*interval) == found


def test_arms_are_told_by_what_they_are_made_of():
    arms = facts(tables(gain_low={"gated-6": 1.0}, gain_high={"gated-6": 2.0}))["arms"]["walker-walk-1m-1"]
    about = {"whole": True, "non_inferior": True, "gain": "above", "plans": "standard", "corrected": False}
    assert arms["gated-6"] == about | {"gated": True, "every_step": "teacher"}
    about |= {"non_inferior": False, "gain": None, "plans": "smaller"}
    assert arms["64×2+open-loop-6"] == about | {"gated": False, "every_step": RIVAL}
    assert arms["policy"]["plans"] is None and arms["policy"]["every_step"] == "teacher"
    arms = facts(
        tables({"teacher": (1, math.nan), "64×2+temporal-3": (1, 1), "no-plan-3": (1, 1), "best-of-4": (0, 1)})
    )
    arms = arms["arms"]["walker-walk-1m-1"]
    assert [name for name, arm in arms.items() if arm["corrected"]] == ["64×2+temporal-3"]


@pytest.mark.parametrize(
    ("changes", "good", "cheapest", "rival", "below_rival"),
    [
        ({}, ["64×2+gated-6", RIVAL, "gated-6"], ("64×2+gated-6", RIVAL, "gated-6", "64×2+gated-6"), "undercut",
         ["64×2+gated-6"]),
        ({"64×2+gated-6": 0.05}, [RIVAL, "gated-6"], (RIVAL, RIVAL, "gated-6", None), "cheapest", []),
        ({RIVAL: 0.9}, ["64×2+gated-6", "gated-6"], ("64×2+gated-6", None, "gated-6", "64×2+gated-6"), "not shown",
         ["64×2+gated-6"]),
        (dict.fromkeys(ARMS, 1.0), [], (None,) * 4, "not shown", []),
        (dict.fromkeys(ARMS, math.nan), [], (None,) * 4, "not shown", []),
    ],
)  # fmt: skip
def test_the_cheapest_non_inferior_arms_of_a_cell(changes, good, cheapest, rival, below_rival):
    found = facts(tables({arm: (cost, changes.get(arm, p)) for arm, (cost, p) in ARMS.items()}))
    cell = found["cells"]["walker-walk-1m-1"]
    assert (cell["good"], cell["rival"], cell["below_rival"]) == (good, rival, below_rival)
    assert cell["cheapest"] == dict(zip(("all", "every step", "standard", "smaller"), cheapest, strict=True))


def test_nothing_is_concluded_of_arms_that_played_fewer_episodes():
    found = facts(tables(episodes={"64×2+gated-6": 5}))
    assert found["cells"]["walker-walk-1m-1"]["good"] == [RIVAL, "gated-6"]
    assert not found["arms"]["walker-walk-1m-1"]["64×2+gated-6"]["whole"]


def test_without_the_rival_nothing_is_below_it():
    found = facts(tables({arm: numbers for arm, numbers in ARMS.items() if arm != RIVAL}))["cells"]["walker-walk-1m-1"]
    assert found["rival"] == "not shown" and found["below_rival"] == [] and found["good"]


def test_the_least_costs_are_those_that_no_interval_lies_below():
    high = {"64×2+gated-6": 200, RIVAL: 250, "gated-6": 950}
    found = facts(tables(model_evaluations_high=high))["cells"]["walker-walk-1m-1"]["least"]
    assert found == {"planner_calls": ["64×2+gated-6"], "model_evaluations": ["64×2+gated-6", RIVAL], "step_ms": []}
    summary, comparisons = tables()
    times = dict(step_ms_low=summary["arm"].map({RIVAL: 3.0}), step_ms_high=summary["arm"].map({RIVAL: 4.0}))
    assert facts((summary.assign(**times), comparisons))["cells"]["walker-walk-1m-1"]["least"]["step_ms"] == [RIVAL]


def test_one_cell_says_nothing_over_cells_and_a_teacher_from_elsewhere_has_no_part():
    for cells in ([tables()], [tables(), tables(cell="mine-1a2b3c4d-walker-walk")]):
        found = facts(*cells)
        assert found["own"] == ["walker-walk-1m-1"] and found["everywhere"] == [] and found["averages"] == {}
        assert found["steady"] is found["steady_on_all"] is None


def test_the_steady_planner_is_shown_on_most_cells_and_the_cheapest_of_these():
    other = dict(cell="cup-catch-1m-1", task="cup-catch")
    found = facts(tables(), tables(**other))
    assert (found["steady"], found["steady_on_all"]) == (RIVAL, RIVAL) and found["shown_on"]["gated-6"] == 2
    assert found["averages"][RIVAL] == {"calls_kept": 0.5, "evaluations_kept": pytest.approx(192 / 4608)}
    found = facts(tables(), tables(ARMS | {RIVAL: (192, 0.3), "budget-16×1": (24, 0.01)}, **other))
    assert (found["steady"], found["steady_on_all"]) == ("budget-16×1", None)  # of two that are shown on one cell
    found = facts(tables(), tables({arm: ARMS[arm] for arm in ("teacher", "policy")}, **other))
    assert found["everywhere"] == ["teacher", "policy"] and found["steady"] is None


def picks(chosen="64×2+gated-6", cells=("walker-walk-1m-1",), picked="64×2+gated-6", earlier="", p=0.01):
    return pd.DataFrame(
        [
            dict(cell=cell, arm=arm, p_non_inferior=p, level=0.05, picked=arm == picked, chosen=arm == chosen)
            | {"earlier": arm == earlier}
            for cell in cells
            for arm in ("64×2+gated-6", "64×2+open-loop-6", "gated-6")
        ]
    )


SEVERAL = (tables(), tables(cell="walker-walk-1m-2", seed=2, kept={"64×2+gated-6": 0.8}))
SEVERAL += (tables(cell="cup-catch-1m-1", task="cup-catch", kept={"64×2+gated-6": 1.1}), tables(cell="elsewhere"))


def test_the_one_configuration_is_told_by_where_it_was_picked():
    summary = pd.concat([summary for summary, _ in SEVERAL])
    found = headline(picks(), summary, RIVAL)
    assert found["arm"] == found["picked"] == "64×2+gated-6" and found["passes"] and found["on_rival"]
    assert found["tried"] == ["walker-walk-1m-1"] and found["untried"] == ["walker-walk-1m-2", "cup-catch-1m-1"]
    assert found["known"] == ["walker-walk-1m-2"] and found["unseen"] == ["cup-catch-1m-1"]
    assert found["twin"] == "64×2+open-loop-6" and found["twin_everywhere"] and not found["gate_isolated"]
    assert found["best_cell"] == "cup-catch-1m-1" and found["kept_elsewhere"] == pytest.approx((0.99 + 0.8) / 2)
    assert found["earlier"] is None and not found["repicked"]
    found = headline(picks(cells=("walker-walk-1m-1", "walker-walk-1m-2", "cup-catch-1m-1")), summary, RIVAL)
    assert found["untried"] == found["known"] == found["unseen"] == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"p": 0.05}, {"passes": False}),
        ({"earlier": "gated-6"}, {"earlier": "gated-6", "repicked": True}),
        ({"earlier": "64×2+gated-6"}, {"earlier": "64×2+gated-6", "repicked": False}),
        ({"chosen": "gated-6"}, {"arm": "gated-6", "picked": "64×2+gated-6", "on_rival": False, "twin": None}),
        ({"chosen": "64×2+open-loop-6"}, {"gate_isolated": True}),
    ],
)
def test_the_one_configuration_and_what_was_picked_before(options, found):
    facts = headline(picks(**options), tables()[0], RIVAL)
    assert {key: facts[key] for key in found} == found and facts["kept_elsewhere"] is None


def test_where_none_was_chosen_there_is_no_configuration():
    assert headline(picks(chosen=""), tables()[0], RIVAL) is None


def test_what_a_corrector_removes_of_the_error():
    depths = dict(plan_mse=[1.0, 1.0, 0.1], corrector_mse=[0.6, 0.2, 0.5], teacher_floor_mse=[0.2, 0.2, 0.1])
    assert removed(pd.DataFrame(depths)) == {"shares": [pytest.approx(0.5), pytest.approx(1.0), 0.0], "worse": False}
    depths["corrector_mse"] = [1.4, 0.2, math.nan]
    assert removed(pd.DataFrame(depths)) == {"shares": [pytest.approx(-0.5), pytest.approx(1.0), None], "worse": False}
    assert removed(pd.DataFrame(depths)[:2])["worse"]
