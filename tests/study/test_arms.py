"""Arms by name: what they are made of, what they become, and what of them is written down."""

import dataclasses
import json
import math

import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.correctors import CORRECTORS, TwoTowerCorrector
from lib.drafts import Draft, DraftController
from lib.gates import DriftGate, LadderGate, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.realtime import LateController, RealTimeController
from lib.records import paths
from lib.records.store import read_sidecar
from lib.study.arms import (
    ARM_COLUMNS,
    CHECKED,
    DELAYED,
    DRAFTED,
    LABELS,
    SCHEMES,
    Arm,
    BesideArm,
    DelayArm,
    TrustedArm,
    correctors_of,
    make_arm,
    make_controller,
    numbers_of,
    recorded,
)
from lib.study.profiles import PROFILES
from lib.study.rivals import AdaptiveToleranceGate, LocalToleranceGate, PublishedGate
from tests.test_speculation import Twin, observations, play, random_corrector
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
        ("64x2+plan-ahead+two-tower-6", "plan-ahead+two-tower",
         Arm("64×2+plan-ahead+two-tower-6", PlannerConfig.budget(64, 2, horizon=6), 6, "two_tower", tail="plan")),
        ("trusted-6", "trusted", TrustedArm("trusted-6", BUDGET, 6, "two_tower", standard_planner=True)),
        ("published-3", "published",
         Arm("published-3", dataclasses.replace(BUDGET, action_selection="sample"), 3, "published", gate=PublishedGate,
             standard_planner=True)),
        ("budget-64x2-h5", "swept",
         Arm("budget-64×2-h5", PlannerConfig(5, samples=64, iterations=2, elites=8, policy_samples=16))),
        ("budget-512x6-t1", "swept", Arm("budget-512×6-t1", PlannerConfig(temperature=1.0))),
        ("budget-512x6-e32-s0.75", "swept", Arm("budget-512×6-e32-s0.75", PlannerConfig(elites=32, max_std=0.75))),
        ("budget-64x3-h2-t0.25-e4-s1", "swept",
         Arm("budget-64×3-h2-t0.25-e4-s1", PlannerConfig(2, 64, 3, 4, 16, temperature=0.25, max_std=1.0))),
    ],
)  # fmt: skip
def test_an_arm_is_made_by_its_name(name, scheme, arm):
    as_run = arm.planner and dataclasses.replace(arm.planner, mode=BUDGET.mode)
    assert make_arm(name, BUDGET) == dataclasses.replace(arm, scheme=scheme, planner=as_run)


@pytest.mark.parametrize(
    ("name", "gate", "corrector", "refined"),
    [
        ("gate-only-mismatch-6", DriftGate, "", False),
        ("gate-only-sensitivity-6", SensitivityGate, "", False),
        ("gated-6", DriftGate, "two_tower", False),
        ("sensitive-6", SensitivityGate, "two_tower", False),
        ("value-only-6", ValueGate, "", False),
        ("value-checked-6", ValueGate, "two_tower", False),
        ("ladder-6", LadderGate, "two_tower", True),
        ("64x2+ladder-6", LadderGate, "two_tower", True),
        ("adarep-6", AdaptiveToleranceGate, "", False),
        ("adarep-local-6", LocalToleranceGate, "", False),
    ],
)
def test_a_gated_arm_has_the_numbers_of_its_calibration(name, gate, corrector, refined):
    levels = [0.1, 0.2] if gate is LadderGate else None
    arm = make_arm(name, BUDGET, {"threshold": 0.3, "levels": [0.1, 0.2], "call_rate": 0.2})
    assert (arm.gate, arm.corrector, arm.threshold, arm.execution_horizon) == (gate, corrector, 0.3, 6)
    assert arm.levels == (levels and (0.1, 0.2)) and bool(arm.refiner) == refined
    assert arm.planner == (PlannerConfig.budget(64, 2, mode=BUDGET.mode) if "+" in name else BUDGET)
    wm, correctors = tiny_model(), {"two_tower": TwoTowerCorrector(LATENT, ACTIONS)}
    made = make_controller(arm, wm, correctors)
    assert type(made.gate) is gate and (made.refiner is not None) == refined
    assert {number: getattr(made.gate, number).tolist() for number in gate.numbers} == {
        number: pytest.approx(getattr(arm, number)) for number in gate.numbers
    }
    assert recorded(json.loads(json.dumps(arm.settings)) | {"key": "a", "decisions": 5}) == arm
    for number in gate.numbers:
        with pytest.raises(ConfigError, match=f"has no {number} yet; calibrate"):
            make_controller(dataclasses.replace(arm, **{number: None}), wm, correctors)
    with pytest.raises(ConfigError, match="has no threshold yet; calibrate"):
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
    labels = {"name": "", "scheme": "", "standard_planner": True}
    assert len({json.dumps(arm.settings | labels) for arm in arms}) == len(SCHEMES)
    gates = {arm.gate for arm in arms if arm.gate}
    assert "" not in (kinds := {gate.kind for gate in gates}) and len(kinds) == len(gates)
    assert correctors_of(["teacher", "gated-6", "gate-only-mismatch-6", "temporal-3", "64x2+ladder-3"]) == [
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
        "plan-ahead+temporal-3",
        "64x2+budget-64x2",
        "budget-64x2-t1-h5",
        "budget-64x2-t1.0",
        "budget-64x2-t.5",
        "budget-64x2-h0",
        "64x2-h5+open-loop-3",
    ],
)
def test_an_unknown_arm_is_an_error_that_lists_the_forms(name):
    with pytest.raises(
        ConfigError, match="is not known; write teacher, .*budget-NxI-hH-tT-eE-sS.*open-loop-E.*ladder-E"
    ):
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


def test_settings_that_cannot_be_are_refused_where_a_planner_is_made():
    for name, sentence in {
        "budget-16x1-e32": "elites=32 exceeds samples=16",
        "budget-16x1-t0": "temperature=0.0 must be positive",
        "budget-16x1-s0.01": "0 < min_std ≤ max_std, not 0.05 and 0.01",
        "budget-16x1-h501": "horizon=501 must be at most 500",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            make_arm(name, BUDGET)


# ---------------------------------------------------------------------------------------- keys, and what is committed


def test_arms_that_were_played_are_made_as_they_were():
    """Their settings are in their keys: a field more would make every episode of every arm anew."""
    kept = read_sidecar(paths.results("paper") / "horizon" / "walker-walk-1m-1.csv")["arms"]
    paper, compared = PROFILES["paper"], 0
    for name in (*paper.arms, *paper.side_arms):
        then = kept.get(make_arm(name, BUDGET).name)
        if then:  # else it has not been played under this name
            now = json.loads(json.dumps(make_arm(name, PlannerConfig.standard(6), then).settings))
            assert now == {k: v for k, v in then.items() if k not in ("key", "decisions")} | {k: now[k] for k in LABELS}
            compared += 1
    assert compared > 30


def test_only_a_trusted_arm_has_trust_in_its_settings_and_it_comes_back():
    arm = make_arm("trusted-gated-6", BUDGET, {"threshold": 0.3, "trust": [0.1, 0.4], "plan_mse": [0.1]})
    assert (arm.threshold, arm.trust, arm.gate) == (0.3, (0.1, 0.4), DriftGate)
    settings = json.loads(json.dumps(arm.settings | {"key": "a", "decisions": 5}))
    assert settings["trust"] == [0.1, 0.4] and recorded(settings) == arm
    for name in set(SCHEMES) - {"trusted", "trusted-gated"}:
        assert "trust" not in make_arm(f"{name}-6", BUDGET).settings
    for scheme, number in {"trusted": "trust", "trusted-gated": "threshold"}.items():
        with pytest.raises(ConfigError, match=f"arm {scheme}-6 has no {number} yet; calibrate"):
            make_controller(make_arm(f"{scheme}-6", BUDGET), tiny_model(), {"two_tower": random_corrector()})


def test_the_paper_plays_what_tells_parts_and_rivals_apart():
    paper = PROFILES["paper"]
    schemes = {
        "gate-only-mismatch", "plan-ahead", "plan-ahead+two-tower", "trusted", "trusted-gated", "adarep", "published",
    }  # fmt: skip
    assert schemes <= {make_arm(name, BUDGET).scheme for name in (*paper.arms, *paper.side_arms)}
    drafts = [make_arm(name, BUDGET) for name in paper.draft_arms]
    assert {arm.scheme for arm in drafts} == {*DRAFTED, *CHECKED} - {"clone+gated"}
    assert {*paper.certification.drafts, *paper.certification.clone} <= {
        *paper.draft_arms
    }  # or the steps of a pick would never be timed


# ---------------------------------------------------------------------------------------------- what they do, by hand


def steps_of(name, obs, wm, calibration=None, correctors=None):
    """Actions (T, B, A), records, and the controller of an arm of this name."""
    controller = make_controller(make_arm(name, BUDGET, calibration), wm, correctors or {})
    return *play(controller, obs), controller


def test_gate_only_mismatch_executes_the_plan_until_the_mismatch_passes_the_threshold():
    obs, wm = observations(9, 3), tiny_model()
    actions, info, _ = steps_of("gate-only-mismatch-5", obs, wm, {"threshold": 0.4})
    for row in range(3):
        twin = Twin(MPPI(wm, BUDGET), None, 0.4, 5, "policy", seed=row)
        steps = [twin.act(o) for o in obs[:, row]]
        torch.testing.assert_close(actions[:, row], torch.stack([s[0] for s in steps]), rtol=0, atol=1e-4)
        for number, record in enumerate(("planner_called", "fallback", "depth"), start=1):
            assert info[record][:, row].tolist() == [s[number] for s in steps]
    assert info["fallback"].any() and (info["depth"] > 0).any() and not info["delta_abs"].any()


def seen(name, obs, wm, corrector, calibration=None):
    """(proposal, the plans (B, H, A) then) of every decision of an arm with this corrector."""
    arm = make_arm(name, BUDGET, calibration)
    controller = make_controller(arm, wm, {arm.corrector: corrector})
    controller.reset(obs.shape[1], [torch.Generator().manual_seed(row) for row in range(obs.shape[1])])
    steps = []
    for o in obs:
        steps.append((controller.propose(o), controller.plan.clone()))
        controller.commit(steps[-1][0].action)
    return steps


def corrected(corrector, step):
    return corrector(step.z, step.z_pred, step.a_plan, step.a_policy, step.depth)


def test_plan_ahead_with_a_corrector_corrects_what_was_planned_that_far():
    wm, corrector = tiny_model(), random_corrector()
    steps = seen("plan-ahead+two-tower-5", observations(6, 2), wm, corrector)
    for number, (step, plans) in enumerate(steps):
        assert plans.shape[1] == 5 and step.depth.tolist() == [number % 5] * 2
        assert step.planner_called.tolist() == [number % 5 == 0] * 2
        assert torch.equal(step.a_plan, plans[:, number % 5])
        wanted = step.a_plan if number % 5 == 0 else corrected(corrector, step)
        torch.testing.assert_close(step.action, wanted)
    assert steps[4][0].delta_abs.min() > 1e-3  # it does correct, also beyond depth 3


@pytest.mark.parametrize("trust", [(), (1, 0, 0.3, 1), (0, 0.5)])
def test_trusted_goes_as_far_from_the_plan_to_the_correction_as_that_is_trusted(trust):
    wm, corrector = tiny_model(), random_corrector()
    steps = seen("trusted-5", observations(6, 2), wm, corrector, {"trust": list(trust)})
    for number, (step, _) in enumerate(steps):
        depth = number % 5
        share = ([0.0, *trust] + 5 * [*trust[-1:], 0.0][:1])[depth] if depth else 0.0
        wanted = step.a_plan + share * (corrected(corrector, step) - step.a_plan)
        torch.testing.assert_close(step.action, wanted)
        assert (step.delta_abs > 1e-3).all() == (share > 0)
    assert torch.equal(steps[4][0].a_plan, wm.policy(steps[4][0].z_pred)[0])  # beyond the plan's end, the prior's


def test_trusted_gated_also_asks_the_planner_where_the_drift_is_large():
    wm, corrector = tiny_model(), random_corrector()
    numbers = {"trust": [0, 1, 0], "threshold": 0.4}
    steps = seen("trusted-gated-5", observations(9, 3), wm, corrector, numbers)
    kinds = set()
    for step, _ in steps:
        for row, depth in enumerate(step.depth.tolist()):
            assert depth == 0 or step.mismatch[row] <= 0.4
            wanted = corrected(corrector, step)[row] if depth == 2 else step.a_plan[row]
            torch.testing.assert_close(step.action[row], wanted)
            kinds.add((depth == 0, depth == 2, bool(step.fallback[row])))
    assert {(True, False, True), (False, True, False), (False, False, False)} <= kinds


def test_the_axes_of_the_budget_are_those_of_its_plans():
    obs, wm = observations(3, 2), tiny_model()
    plain, _, _ = steps_of("budget-16x2", obs, wm)
    for name, horizon in {"budget-16x2-h5": 5, "budget-16x2-h1": 1, "budget-16x2-t8": 3, "budget-16x2-s0.5": 3}.items():
        actions, info, controller = steps_of(name, obs, wm)
        assert controller.plan.shape[1] == horizon and info["planner_called"].all()
        assert (actions - plain).abs().max() > 1e-3
    assert controller.planner.config == PlannerConfig.budget(16, 2, max_std=0.5, mode=BUDGET.mode)


def test_published_executes_drawn_elites_and_replans_where_latents_are_half_a_unit_apart():
    torch.manual_seed(0)
    wm, corrector = tiny_model(), CORRECTORS["published"](LATENT, ACTIONS, width=8).eval().requires_grad_(False)
    obs = 0.3 * observations(9, 3)
    steps, ungated = seen("published-4", obs, wm, corrector), set()
    for step, _ in steps:
        for row, depth in enumerate(step.depth.tolist()):
            apart = torch.dist(step.z[row], step.z_pred[row]).item()
            assert depth == 0 or apart <= 0.5
            wanted = corrected(corrector, step)[row] if depth else step.a_plan[row]
            torch.testing.assert_close(step.action[row], wanted)
            ungated.add(depth > 0)
    assert ungated == {True, False} and torch.stack([step.fallback for step, _ in steps]).any()
    sampled, mean = (MPPI(wm, make_arm(name, BUDGET).planner) for name in ("published-4", "published-tuned-4"))
    z, first = steps[0][0].z, steps[0][0].action
    streams = [[torch.Generator().manual_seed(row) for row in range(3)] for _ in range(2)]
    torch.testing.assert_close(first, sampled(z, None, streams[0]).actions[:, 0])
    assert (first - mean(z, None, streams[1]).actions[:, 0]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------------ drafts


def test_a_draft_alone_is_an_arm_that_never_plans():
    for name in ("distilled", "cloned", "prior+"):
        arm = make_arm(name, BUDGET)
        assert (arm.planner, arm.corrector, arm.gate, arm.scheme) == (None, name, None, name)
        assert correctors_of([name]) == [name] and numbers_of(arm) == ()


def test_a_gated_draft_says_who_is_asked_by_what_and_how_often():
    arm = make_arm("128x2+draft+gated-5-r20", BUDGET, {"thresholds": [0.1, 0.2, 0.3]})
    assert (arm.name, arm.execution_horizon, arm.rate) == ("128×2+draft+gated-5-r20", 5, 0.2)
    assert (arm.planner.samples, arm.planner.horizon, arm.thresholds) == (128, 5, (0.1, 0.2, 0.3))
    assert arm.scores == ("doubt", "value", "mismatch") and not arm.standard_planner
    alone = make_arm("draft+mismatch-3", BUDGET)
    assert (alone.planner, alone.scores, alone.rate, alone.thresholds) == (BUDGET, ("mismatch",), 0.1, None)
    assert numbers_of(alone) == ("thresholds",) and alone.standard_planner
    assert recorded(arm.settings) == arm
    clone = make_arm("128x2+clone+gated-5-r20", BUDGET, {"thresholds": [0.1, 0.2, 0.3]})
    assert (clone.corrector, arm.corrector, clone.scheme) == ("cloned", "distilled", "clone+gated")
    same = dict(name=arm.name, corrector=arm.corrector, scheme=arm.scheme)
    assert dataclasses.replace(clone, **same) == arm
    for wrong in (
        "draft+gated",
        "clone-3",
        "clone+doubt-3",
        "draft+gated-3-r0",
        "draft+gated-3-r100",
        "draft+all-3",
        "draft-3",
    ):
        with pytest.raises(ConfigError, match="is not known"):
            make_arm(wrong, BUDGET)


def test_what_a_draft_arm_is_made_of():
    wm, draft = tiny_model(), Draft(LATENT, ACTIONS, width=16).eval()
    alone = make_controller(make_arm("cloned", BUDGET), wm, {"cloned": draft})
    assert isinstance(alone, DraftController) and alone.planner is None and alone.draft is draft
    arm = make_arm("draft+doubt-2", BUDGET, {"thresholds": [0.25, None, None]})
    gated = make_controller(arm, wm, {"distilled": draft})
    assert gated.gate.thresholds.tolist() == [0.25, math.inf, math.inf] and gated.execution_horizon == 2
    with pytest.raises(ConfigError, match="draft.doubt-2 has no thresholds yet"):
        make_controller(make_arm("draft+doubt-2", BUDGET), wm, {"distilled": draft})


# ------------------------------------------------------------------------------------------------------------ delays


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("late-d2", DelayArm("late-d2", BUDGET, delay=2, controller="late")),
        ("late-hold-d12", DelayArm("late-hold-d12", BUDGET, 12, tail="hold", delay=12, controller="late")),
        ("async-d0", DelayArm("async-d0", BUDGET)),
        ("async-d3", DelayArm("async-d3", BUDGET, 3, delay=3)),
        ("async+two-tower-d1", DelayArm("async+two-tower-d1", BUDGET, 1, "two_tower", delay=1)),
        ("async+temporal-d4", DelayArm("async+temporal-d4", BUDGET, 4, "temporal", delay=4)),
        ("async+gated-d4", DelayArm("async+gated-d4", BUDGET, 4, "two_tower", gate=DriftGate, threshold=0.3, delay=4)),
        ("async+draft-d8", DelayArm("async+draft-d8", BUDGET, 8, "distilled", delay=8)),
        (
            "async+delay-aware+clone-d2",
            BesideArm("async+delay-aware+clone-d2", BUDGET, 2, "delay_aware", delay=2, beside="cloned"),
        ),
    ],
)
def test_an_arm_with_a_delay_is_made_by_its_name_on_either_planner(name, arm):
    scheme = name.rsplit("-", 1)[0]
    arm = dataclasses.replace(arm, scheme=scheme, standard_planner=True)
    assert make_arm(name, BUDGET, {"threshold": 0.3}) == arm
    small = {
        "name": f"64×2+{name}",
        "planner": PlannerConfig.budget(64, 2, mode=BUDGET.mode),
        "standard_planner": False,
    }
    assert make_arm(f"64x2+{name}", BUDGET, {"threshold": 0.3}) == dataclasses.replace(arm, **small)
    assert recorded(json.loads(json.dumps(arm.settings)) | {"key": "a", "decisions": 5}) == arm
    assert tuple(arm.columns) == ARM_COLUMNS
    assert correctors_of([name]) == [part for part in (arm.corrector, getattr(arm, "beside", "")) if part]


def test_arms_with_a_delay_differ_in_what_their_keys_read():
    labels = {"name": "", "scheme": "", "standard_planner": True}
    arms = [make_arm(f"{scheme}-d{delay}", BUDGET) for scheme in DELAYED for delay in (0, 1, 4)]
    assert len({json.dumps(arm.settings | labels) for arm in arms}) == len(arms)
    for name in SCHEMES:
        assert not {"delay", "controller"} & make_arm(f"{name}-6", BUDGET).settings.keys()
    for wrong in (
        "async",
        "async-d13",
        "async-d01",
        "async-2",
        "late-d",
        "async-d-1",
        "64x2-async-d2",
        "async+hold-d2",
    ):
        with pytest.raises(ConfigError, match=r"is not known; .*late-hold-dD.*async\+draft-dD, .*with .*D \(0 to 12\)"):
            make_arm(wrong, BUDGET)


def test_an_arm_with_a_delay_becomes_its_controller():
    wm, corrector, draft = tiny_model(), random_corrector(), Draft(LATENT, ACTIONS, width=16).eval()
    networks = dict.fromkeys(("two_tower", "temporal", "delay_aware"), corrector)
    networks |= dict.fromkeys(("distilled", "cloned"), draft)

    def made(name, calibration=None):
        return make_controller(make_arm(name, BUDGET, calibration), wm, networks)

    for hold, name in enumerate(("late-d2", "late-hold-d2")):
        late = made(name)
        assert isinstance(late, LateController) and (late.hold, late.fallback) == (bool(hold), None)
    for name, parts in {
        "async-d2": (None, None),
        "async+two-tower-d2": (corrector, None),
        "async+draft-d2": (None, draft),
        "async+delay-aware+clone-d2": (corrector, draft),
    }.items():
        controller = made(name)
        assert isinstance(controller, RealTimeController) and controller.gate is None
        assert (controller.corrector, controller.fallback) == parts
    gated = made("async+gated-d2", {"threshold": 0.25})
    assert type(gated.gate) is DriftGate and float(gated.gate.threshold) == 0.25 and gated.corrector is corrector
    with pytest.raises(ConfigError, match="arm async.gated-d2 has no threshold yet; calibrate"):
        made("async+gated-d2")
    for name, ages in {"async-d2": [2, 3, 2], "late-d2": [2, 2, 2], "late-hold-d2": [2, 3, 2]}.items():
        _, info = play(made(name), observations(5, 1))
        assert info["plan_age"].flatten()[2:].tolist() == ages
