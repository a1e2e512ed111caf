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

from lib.config import ConfigError, PlannerConfig
from lib.gates import make_gate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.speculation import SpeculativeController
from lib.world_model import WorldModel

SCHEMES = {
    "open-loop": {},
    "hold-last": {"tail": "hold"},
    "plan-ahead": {"tail": "plan"},
    "two-tower": {"corrector": "two_tower"},
    "temporal": {"corrector": "temporal"},
    "no-plan": {"corrector": "state"},
    "gate-only": {"gate": "sensitivity"},
    "gated": {"corrector": "two_tower", "gate": "threshold"},
    "sensitive": {"corrector": "two_tower", "gate": "sensitivity"},
    "value-only": {"gate": "value"},
    "value-checked": {"corrector": "two_tower", "gate": "value"},
    "ladder": {"corrector": "two_tower", "gate": "ladder", "refiner": PlannerConfig.budget(32, 1, max_std=0.5)},
}


@dataclass(frozen=True)
class Arm:
    """One way to control. `planner=None` is the policy prior alone, or the best of `samples` draws from it.

    `corrector` names an architecture, `gate` a kind of gate; empty means none. `threshold` and `levels` are the gate's.
    """

    name: str
    planner: PlannerConfig | None
    execution_horizon: int = 1
    corrector: str = ""
    tail: str = "policy"
    gate: str = ""
    threshold: float | None = None
    levels: tuple[float, float] | None = None
    refiner: PlannerConfig | None = None
    samples: int = 0

    @classmethod
    def from_dict(cls, settings: dict) -> Arm:
        """The arm of a result's sidecar; what else the sidecar says is left out."""
        fields = {f.name: settings[f.name] for f in dataclasses.fields(cls)}
        for name in ("planner", "refiner"):
            fields[name] = fields[name] and PlannerConfig(**fields[name])
        return cls(**fields | {"levels": fields["levels"] and tuple(fields["levels"])})


def arm_name(name: str) -> str:
    """The name of an arm as results have it: with ×, which may be written x."""
    return re.sub(r"(\d)x(\d)", r"\1×\2", name)


def make_arm(name: str, standard: PlannerConfig, calibration: dict | None = None) -> Arm:
    """An arm by its name (see above). `standard` is the teacher's planner; `calibration` has the gate's numbers.

    Raises `ConfigError` that lists the forms for an unknown name, and for a gate without a threshold.
    """
    name = arm_name(name)
    if name == "policy":
        return Arm(name, None)
    if name == "teacher":
        return Arm(name, standard)
    if name == "teacher-sample":
        return Arm(name, dataclasses.replace(standard, action_selection="sample"))
    if match := re.fullmatch(r"best-of-([1-9]\d*)", name):
        return Arm(name, None, samples=int(match[1]))
    if match := re.fullmatch(r"budget-([1-9]\d*)×([1-9]\d*)", name):
        return Arm(name, PlannerConfig.budget(int(match[1]), int(match[2])))
    if match := re.fullmatch(rf"(?:([1-9]\d*)×([1-9]\d*)\+)?({'|'.join(SCHEMES)})-([1-9]\d*)", name):
        samples, iterations, scheme, steps = match.groups()
        planner = PlannerConfig.budget(int(samples), int(iterations)) if samples else standard
        arm = Arm(name, planner, int(steps), **SCHEMES[scheme])
        if arm.tail == "plan":
            arm = dataclasses.replace(
                arm, planner=dataclasses.replace(planner, horizon=max(planner.horizon, int(steps)))
            )
        return _with_thresholds(arm, calibration or {}) if arm.gate else arm
    raise ConfigError(
        f"arm {name!r} is not known; write teacher, teacher-sample, policy, best-of-N, budget-NxI, or one of "
        f"{', '.join(f'{scheme}-E' for scheme in SCHEMES)}, with numbers for E, N and I; NxI+ before one of the last "
        "puts it on a smaller planner."
    )


def _with_thresholds(arm: Arm, calibration: dict) -> Arm:
    if calibration.get("threshold") is None:
        raise ConfigError(f"arm {arm.name} has a gate but no threshold; calibrate it with lib.study.calibrate first.")
    levels = calibration.get("levels") if arm.gate == "ladder" else None
    if arm.gate == "ladder" and levels is None:
        raise ConfigError(f"arm {arm.name} has no levels; calibrate it with lib.study.calibrate first.")
    return dataclasses.replace(arm, threshold=calibration["threshold"], levels=levels and tuple(levels))


def correctors_of(names: list[str]) -> list[str]:
    """The architectures that arms of these names need."""
    schemes = (SCHEMES.get(scheme_of(name), {}) for name in names)
    return list(dict.fromkeys(scheme["corrector"] for scheme in schemes if "corrector" in scheme))


def has_gate(name: str) -> bool:
    """Whether an arm of this name needs numbers from `lib.study.calibrate`."""
    return "gate" in SCHEMES.get(scheme_of(name), {})


def scheme_of(name: str) -> str:
    """The scheme in the name of an arm: value-checked of 64×2+value-checked-6."""
    return name.split("+")[-1].rsplit("-", 1)[0]


def make_controller(arm: Arm, wm: WorldModel, correctors: dict[str, nn.Module]):
    """The controller that acts as the arm says."""
    if arm.planner is None:
        return PolicyController(wm, arm.samples)
    corrector = correctors[arm.corrector] if arm.corrector else None
    gate = make_gate(arm.gate, arm.threshold, arm.levels).to(wm.device) if arm.gate else None
    refiner = MPPI(wm, arm.refiner) if arm.refiner else None
    return SpeculativeController(MPPI(wm, arm.planner), corrector, gate, arm.execution_horizon, arm.tail, refiner)
