"""Arms by name: what they are made of, what they become, and what of them is written down."""

import dataclasses
import json

import pytest

from lib.config import ConfigError, PlannerConfig
from lib.correctors import TwoTowerCorrector
from lib.gates import DriftGate, LadderGate, SensitivityGate, ValueGate
from lib.policy import PolicyController
from lib.study.arms import ARM_COLUMNS, SCHEMES, Arm, correctors_of, make_arm, make_controller, recorded
from tests.tiny import ACTIONS, BUDGET, LATENT, tiny_model


@pytest.mark.parametrize(
    ("name", "scheme", "arm"),
    [
        ("policy", "policy", Arm("policy", None)),
        ("teacher", "teacher", Arm("teacher", BUDGET, standard_planner=True)),
        ("teacher-sample", "teacher-sample",
         Arm("teacher-sample", dataclasses.replace(BUDGET, action_selection="sample"), standard_planner=True)),
        ("open-loop-6", "open-loop", Arm("open-loop-6", BUDGET, 6, standard_planner=True)),
        ("hold-last-6", "hold-last", Arm("hold-last-6", BUDGET, 6, tail="hold", standard_planner=True)),
        ("two-tower-12", "two-tower", Arm("two-tower-12", BUDGET, 12, "two_tower", standard_planner=True)),
        ("budget-64x2", "budget",
         Arm("budget-64×2", PlannerConfig(samples=64, iterations=2, elites=8, policy_samples=16))),
        ("budget-256×3", "budget",
         Arm("budget-256×3", PlannerConfig(samples=256, iterations=3, elites=32, policy_samples=24))),
        ("best-of-32", "best-of", Arm("best-of-32", None, samples=32)),
        ("temporal-3", "temporal", Arm("temporal-3", BUDGET, 3, "temporal", standard_planner=True)),
        ("no-plan-3", "no-plan", Arm("no-plan-3", BUDGET, 3, "state", standard_planner=True)),
        ("plan-ahead-6", "plan-ahead",
         Arm("plan-ahead-6", dataclasses.replace(BUDGET, horizon=6), 6, tail="plan", standard_planner=True)),
        ("plan-ahead-2", "plan-ahead", Arm("plan-ahead-2", BUDGET, 2, tail="plan", standard_planner=True)),
        ("64x2+two-tower-3", "two-tower", Arm("64×2+two-tower-3", PlannerConfig.budget(64, 2), 3, "two_tower")),
    ],
)  # fmt: skip
def test_an_arm_is_made_by_its_name(name, scheme, arm):
    assert make_arm(name, BUDGET) == dataclasses.replace(arm, scheme=scheme)


@pytest.mark.parametrize(
    ("name", "gate", "corrector", "refined"),
    [
        ("gate-only-6", SensitivityGate, "", False),
        ("gated-6", DriftGate, "two_tower", False),
        ("sensitive-6", SensitivityGate, "two_tower", False),
        ("value-only-6", ValueGate, "", False),
        ("value-checked-6", ValueGate, "two_tower", False),
        ("ladder-6", LadderGate, "two_tower", True),
        ("64x2+ladder-6", LadderGate, "two_tower", True),
    ],
)
def test_a_gated_arm_has_the_numbers_of_its_calibration(name, gate, corrector, refined):
    levels = [0.1, 0.2] if gate is LadderGate else None
    arm = make_arm(name, BUDGET, {"threshold": 0.3, "levels": [0.1, 0.2], "call_rate": 0.2})
    assert (arm.gate, arm.corrector, arm.threshold, arm.execution_horizon) == (gate, corrector, 0.3, 6)
    assert arm.levels == (levels and (0.1, 0.2)) and bool(arm.refiner) == refined
    assert arm.planner == (PlannerConfig.budget(64, 2) if "+" in name else BUDGET)
    wm, correctors = tiny_model(), {"two_tower": TwoTowerCorrector(LATENT, ACTIONS)}
    made = make_controller(arm, wm, correctors)
    assert type(made.gate) is gate and (made.refiner is not None) == refined
    assert {number: getattr(made.gate, number).tolist() for number in gate.numbers} == {
        number: pytest.approx(getattr(arm, number)) for number in gate.numbers
    }
    assert recorded(json.loads(json.dumps(arm.settings)) | {"key": "a", "decisions": 5}) == arm
    for number in gate.numbers:
        with pytest.raises(ConfigError, match=f"has a gate but no {number}; calibrate"):
            make_controller(dataclasses.replace(arm, **{number: None}), wm, correctors)
    with pytest.raises(ConfigError, match="has a gate but no threshold; calibrate"):
        make_controller(make_arm(name, BUDGET), wm, correctors)


def test_columns_say_what_an_arm_is_made_of():
    columns = make_arm("64x2+gated-6", BUDGET).columns
    assert tuple(columns) == ARM_COLUMNS and columns == {
        "scheme": "gated", "standard_planner": False, "planner_samples": 64, "planner_iterations": 2,
        "planner_horizon": 3, "execution_horizon": 6, "corrector": "two_tower", "gate": "threshold", "tail": "policy",
    }  # fmt: skip
    nothing = {name: value for name, value in make_arm("policy", BUDGET).columns.items() if value is not None}
    assert nothing == {"scheme": "policy", "standard_planner": False, "execution_horizon": 1}
    assert make_arm("teacher", BUDGET).columns["planner_samples"] == BUDGET.samples


def test_schemes_have_pieces_and_gates_names_of_their_own():
    """The one line of a scheme is all that a new gate needs."""
    arms = [make_arm(f"{scheme}-6", BUDGET) for scheme in SCHEMES]
    assert len({tuple(arm.columns.items())[1:] for arm in arms}) == len(SCHEMES)
    gates = {arm.gate for arm in arms if arm.gate}
    assert "" not in (kinds := {gate.kind for gate in gates}) and len(kinds) == len(gates)
    assert correctors_of(["teacher", "gated-6", "gate-only-6", "temporal-3", "64x2+ladder-3"]) == [
        "two_tower",
        "temporal",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "64x2+teacher",
        "64x+open-loop-3",
        "best-of-0",
        "open-loop",
        "open-loop-0",
        "two_tower-3",
        "budget-64",
        "Teacher",
        "open-loop-3 ",
        "open-loop-13",
        "budget-999999999x1",
        "10000x1+open-loop-3",
        "best-of-99999",
        "open-loop-" + "9" * 5000,
    ],
)
def test_an_unknown_arm_is_an_error_that_lists_the_forms(name):
    with pytest.raises(ConfigError, match="is not known; write teacher, .*budget-NxI.*open-loop-E.*ladder-E"):
        make_arm(name, BUDGET)
    with pytest.raises(ConfigError, match="iterations=9999 must be at most 1,000"):
        make_arm("64x9999+open-loop-12", BUDGET)


def test_an_arm_becomes_its_controller():
    wm, corrector = tiny_model(), TwoTowerCorrector(LATENT, ACTIONS)
    assert isinstance(make_controller(make_arm("policy", BUDGET), wm, {}), PolicyController)
    made = make_controller(make_arm("two-tower-4", BUDGET), wm, {"two_tower": corrector})
    assert made.corrector is corrector and made.execution_horizon == 4 and made.gate is None
    made = make_controller(make_arm("hold-last-4", BUDGET), wm, {"two_tower": corrector})
    assert made.corrector is None and made.tail == "hold" and made.planner.config == BUDGET
