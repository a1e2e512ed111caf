"""The arms of the evaluation: every way to control, by name.

arm = make_arm("64x2+value-checked-6", PlannerConfig.standard(action_dim), {"threshold": 0.4})
controller = make_controller(arm, world_model, {"two_tower": corrector})

teacher, teacher-sample     replan at every step; execute the elites' mean, or a random elite (the official code does)
budget-NxI                  replan at every step with N samples × I iterations
policy, best-of-N           no planning: the prior's mean, or the best of N of its samples by the model's Q
open-loop-E                 execute E steps of a plan, beyond its end the prior's inside the model
hold-last-E, plan-ahead-E   the same, but beyond the plan's end hold its last action, or plan that far
two-tower-E, temporal-E     a corrector at every depth ≥ 1
no-plan-E                   a corrector that sees the real latent alone (ablation)
gate-only-E                 no corrector; replan early where the drift changes the prior's action
gated-E, sensitive-E        a corrector, and replan early by drift, or by sensitivity
value-only-E                the better of {plan, prior} by the model's Q, replan where neither holds up
value-checked-E             the best of {plan, corrected, prior}, replan where none holds up
ladder-E                    plan, corrected, value check, refine, replan: the cheapest that passes its check

Any of those with an E may stand on a smaller planner: `64x2+two-tower-3`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from torch import nn

from lib.config import ConfigError, PlannerConfig, as_dict, one_of, quoted
from lib.correctors import MAX_DEPTH, StateCorrector, TemporalCorrector, TwoTowerCorrector
from lib.gates import DriftGate, Gate, LadderGate, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.speculation import SpeculativeController
from lib.world_model import WorldModel

_TWO_TOWER = {"corrector": TwoTowerCorrector.arch}
SCHEMES = {
    "open-loop": {},
    "hold-last": {"tail": "hold"},
    "plan-ahead": {"tail": "plan"},
    "two-tower": _TWO_TOWER,
    "temporal": {"corrector": TemporalCorrector.arch},
    "no-plan": {"corrector": StateCorrector.arch},
    "gate-only": {"gate": SensitivityGate},
    "gated": _TWO_TOWER | {"gate": DriftGate},
    "sensitive": _TWO_TOWER | {"gate": SensitivityGate},
    "value-only": {"gate": ValueGate},
    "value-checked": _TWO_TOWER | {"gate": ValueGate},
    "ladder": _TWO_TOWER | {"gate": LadderGate, "refiner": PlannerConfig.budget(32, 1, max_std=0.5)},
}
# Larger numbers are slips of the keyboard: what they ask for would not fit into memory, or never end.
NUMBER, STEPS = "([1-9][0-9]{0,3})", f"({'|'.join(map(str, range(1, MAX_DEPTH + 1)))})"
LABELS = ("scheme", "standard_planner")  # fields that only say what an arm is called: no episode depends on them


@dataclass(frozen=True)
class Arm:
    """One way to control. `planner=None` is the policy prior alone, or the best of `samples` draws from it.

    `corrector` names an architecture, empty for none; `threshold` and `levels` are the gate's, missing until it is
    calibrated. `scheme` is the kind of arm: one of `SCHEMES`, or what stands in a name without an execution horizon.
    `standard_planner` is whether it stands on the teacher's planner.
    """

    name: str
    planner: PlannerConfig | None
    execution_horizon: int = 1
    corrector: str = ""
    tail: str = "policy"
    gate: type[Gate] | None = None
    threshold: float | None = None
    levels: tuple[float, float] | None = None
    refiner: PlannerConfig | None = None
    samples: int = 0
    scheme: str = ""
    standard_planner: bool = False

    @property
    def columns(self) -> dict:
        """What tables of results say of the arm beside its name: plain values, None for what it does not have."""
        planner = {name: getattr(self.planner, name, None) for name in ("samples", "iterations", "horizon")}
        return {
            "scheme": self.scheme,
            "standard_planner": self.standard_planner,
            **{f"planner_{name}": value for name, value in planner.items()},
            "execution_horizon": self.execution_horizon,
            "corrector": self.corrector or None,
            "gate": self.gate and self.gate.kind,
            "tail": self.tail if self.execution_horizon > 1 else None,
        }

    @property
    def settings(self) -> dict:
        """The arm as plain values, which sidecars keep and `recorded` reads."""
        return as_dict(self) | {"gate": self.gate.kind if self.gate else ""}


ARM_COLUMNS = tuple(Arm("", None).columns)


def recorded(settings: dict) -> Arm:
    """The arm of a result's sidecar; what else the sidecar says is left out, and labels that it lacks are empty."""
    fields = {f.name: settings[f.name] for f in dataclasses.fields(Arm) if f.name in settings}
    for name in ("planner", "refiner"):
        fields[name] = fields[name] and PlannerConfig(**fields[name])
    gates = {gate.kind: gate for scheme in SCHEMES.values() if (gate := scheme.get("gate"))}
    gate = gates[one_of("gate", fields["gate"], gates)] if fields["gate"] else None
    return Arm(**fields | {"gate": gate, "levels": fields["levels"] and tuple(fields["levels"])})


def arm_name(name: str) -> str:
    """The name of an arm as results have it: with ×, which may be written x."""
    return re.sub(r"(\d)x(\d)", r"\1×\2", name)


def make_arm(name: str, standard: PlannerConfig, calibration: dict | None = None) -> Arm:
    """An arm by its name (see above). `standard` is the teacher's planner; `calibration` has the gate's numbers.

    Only here are names taken apart. Raises `ConfigError` that lists the forms for an unknown name.
    """
    name = arm_name(name)
    if name == "policy":
        return Arm(name, None, scheme=name)
    if name == "teacher":
        return Arm(name, standard, scheme=name, standard_planner=True)
    if name == "teacher-sample":
        planner = dataclasses.replace(standard, action_selection="sample")
        return Arm(name, planner, scheme=name, standard_planner=True)
    if match := re.fullmatch(rf"best-of-{NUMBER}", name):
        return Arm(name, None, samples=int(match[1]), scheme="best-of")
    if match := re.fullmatch(rf"budget-{NUMBER}×{NUMBER}", name):
        return Arm(name, PlannerConfig.budget(int(match[1]), int(match[2])), scheme="budget")
    if match := re.fullmatch(rf"(?:{NUMBER}×{NUMBER}\+)?({'|'.join(SCHEMES)})-{STEPS}", name):
        samples, iterations, scheme, steps = match.groups()
        planner = PlannerConfig.budget(int(samples), int(iterations)) if samples else standard
        pieces = SCHEMES[scheme] | {"scheme": scheme, "standard_planner": not samples}
        if pieces.get("tail") == "plan":
            planner = dataclasses.replace(planner, horizon=max(planner.horizon, int(steps)))
        for number in pieces["gate"].numbers if calibration and "gate" in pieces else ():
            value = calibration.get(number)
            pieces[number] = tuple(value) if isinstance(value, list) else value
        return Arm(name, planner, int(steps), **pieces)
    raise ConfigError(
        f"arm {quoted(name)} is not known; write teacher, teacher-sample, policy, best-of-N, budget-NxI, or one of "
        f"{', '.join(f'{scheme}-E' for scheme in SCHEMES)}, with numbers for E (at most {MAX_DEPTH}), N and I (at "
        "most 9999); NxI+ before one of the last puts it on a smaller planner."
    )


def correctors_of(names: list[str]) -> list[str]:
    """The architectures that arms of these names need."""
    arms = (make_arm(name, PlannerConfig()) for name in names)
    return list(dict.fromkeys(arm.corrector for arm in arms if arm.corrector))


def make_controller(arm: Arm, wm: WorldModel, correctors: dict[str, nn.Module]):
    """The controller that acts as the arm says. Raises `ConfigError` for a gate whose numbers are missing."""
    if arm.planner is None:
        return PolicyController(wm, arm.samples)
    numbers = {number: getattr(arm, number) for number in (arm.gate.numbers if arm.gate else ())}
    for number in (number for number, value in numbers.items() if value is None):
        raise ConfigError(f"arm {arm.name} has a gate but no {number}; calibrate it with lib.study.calibrate first.")
    corrector = correctors[arm.corrector] if arm.corrector else None
    gate = arm.gate(**numbers).to(wm.device) if arm.gate else None
    refiner = MPPI(wm, arm.refiner) if arm.refiner else None
    return SpeculativeController(MPPI(wm, arm.planner), corrector, gate, arm.execution_horizon, arm.tail, refiner)
