"""Speculative TD-MPC2, a method that stands alone: plan in a learned world model, execute, correct, check, replan.

    from lib import MPPI, SpeculativeController, load_world_model, make_env, rollout

What is named here is loaded when it is first used, so that importing the package costs nothing, and whoever has no
simulator installed can still control. paper/docs/library.md says what the wings around the method hold.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lib.rollout import rollout  # at once: else the module of that name would take its place

if TYPE_CHECKING:  # for whoever reads names without running them, as fingerprints do
    from lib.bundle import load_controller
    from lib.config import PlannerConfig
    from lib.correctors import TemporalCorrector, TwoTowerCorrector
    from lib.environments import make_env
    from lib.planner import MPPI
    from lib.policy import PolicyController
    from lib.realtime import RealTimeController
    from lib.speculation import SpeculativeController
    from lib.weights.native import load_world_model
    from lib.world_model import WorldModel

_PLACES = {
    "load_world_model": "lib.weights.native",
    "WorldModel": "lib.world_model",
    "MPPI": "lib.planner",
    "PlannerConfig": "lib.config",
    "SpeculativeController": "lib.speculation",
    "RealTimeController": "lib.realtime",
    "PolicyController": "lib.policy",
    "TwoTowerCorrector": "lib.correctors",
    "TemporalCorrector": "lib.correctors",
    "make_env": "lib.environments",
    "load_controller": "lib.bundle",
}

__all__ = ["rollout", *_PLACES]  # noqa: PLE0604 - they are strings


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
