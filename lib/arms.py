"""The arms of the evaluation: every way to control, by name.

arm = make_arm("two-tower-3", PlannerConfig.standard(action_dim))
controller = make_controller(arm, world_model, {"two_tower": corrector})
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from torch import nn

from lib.config import ConfigError, PlannerConfig
from lib.planner import MPPI
from lib.speculation import PolicyController, SpeculativeController
from lib.world_model import WorldModel


@dataclass(frozen=True)
class Arm:
    """One way to control. `planner=None` is the policy prior alone; `corrector` names an architecture or is empty."""

    name: str
    planner: PlannerConfig | None
    execution_horizon: int = 1
    corrector: str = ""
    tail: str = "policy"


def make_arm(name: str, standard: PlannerConfig) -> Arm:
    """An arm by its name: teacher, teacher-sample, policy, open-loop-E, hold-last-E, two-tower-E, budget-N×I (or NxI).

    `standard` is the teacher's planner. Raises `ConfigError` that lists the forms for an unknown name.
    """
    if name == "policy":
        return Arm(name, None)
    if name == "teacher":
        return Arm(name, standard)
    if name == "teacher-sample":
        return Arm(name, dataclasses.replace(standard, action_selection="sample"))
    if match := re.fullmatch(r"(open-loop|hold-last|two-tower)-([1-9]\d*)", name):
        kind, steps = match[1], int(match[2])
        corrector = "two_tower" if kind == "two-tower" else ""
        return Arm(name, standard, steps, corrector, tail="hold" if kind == "hold-last" else "policy")
    if match := re.fullmatch(r"budget-([1-9]\d*)[x×]([1-9]\d*)", name):
        return Arm(name.replace("x", "×"), PlannerConfig.budget(int(match[1]), int(match[2])))
    raise ConfigError(
        f"arm {name!r} is not known; write teacher, teacher-sample, policy, open-loop-E, hold-last-E, two-tower-E "
        f"or budget-NxI, with numbers for E, N and I."
    )


def make_controller(arm: Arm, wm: WorldModel, correctors: dict[str, nn.Module]):
    """The controller that acts as the arm says."""
    if arm.planner is None:
        return PolicyController(wm)
    corrector = correctors[arm.corrector] if arm.corrector else None
    return SpeculativeController(MPPI(wm, arm.planner), corrector, None, arm.execution_horizon, arm.tail)
