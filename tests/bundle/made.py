"""Small controllers of every kind that a folder can hold, by name."""

import dataclasses

from lib.config import PlannerConfig
from lib.correctors import CORRECTORS, Trusted
from lib.drafts import DraftController, DraftGate, PriorDraft
from lib.gates import DriftGate, LadderGate, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.realtime import RealTimeController
from lib.speculation import SpeculativeController
from lib.world_model import WorldModel
from tests.test_correctors import corrector
from tests.test_drafts import random_draft
from tests.tiny import ACTIONS, BUDGET, LATENT, tiny_model

SMALL = PlannerConfig.budget(8, 1, mode="eager")


def speculative(arch=None, gate=None, horizon=4, trusted=None, wm=None, budget=BUDGET, refiner=None, **settings):
    wm = wm or tiny_model(num_q=3)
    repairs = arch and corrector(arch).requires_grad_(False)
    repairs = repairs if trusted is None else Trusted(repairs, trusted)
    settings |= {"refiner": refiner and MPPI(wm, refiner)}
    return SpeculativeController(MPPI(wm, budget), repairs, gate, horizon, **settings)


def drafting(draft, gate=None, horizon=0, **settings):
    wm = tiny_model()
    return DraftController(wm, draft.requires_grad_(False), gate and MPPI(wm, BUDGET), gate, horizon, **settings)


def other_model(**changes):
    """A tiny world model of another configuration, random in every layer."""
    return tiny_model(num_q=3, kind=lambda config: WorldModel(dataclasses.replace(config, **changes), "walker-walk"))


CONTROLLERS = {
    "open loop": lambda: speculative(),
    "every step": lambda: speculative(horizon=1),
    "held tail": lambda: speculative(horizon=5, tail="hold"),
    "a sampled elite, planned as far": lambda: speculative(
        tail="plan", budget=dataclasses.replace(BUDGET, horizon=4, action_selection="sample")
    ),
    "drift": lambda: speculative("two_tower", DriftGate(0.2)),
    "drift in L2": lambda: speculative("two_tower", DriftGate(0.3, "l2")),
    "sensitivity of the action": lambda: speculative("two_tower", SensitivityGate(0.1)),
    "sensitivity of the value": lambda: speculative("two_tower", SensitivityGate(0.1, "value")),
    "value": lambda: speculative("temporal", ValueGate(0.05), 6),
    "value that never asks": lambda: speculative("two_tower", ValueGate()),
    "ladder": lambda: speculative("state", LadderGate(0.05, (0.1, 0.3))),
    "refined": lambda: speculative("two_tower", ValueGate(0.05), refiner=SMALL),
    "trusted by depth": lambda: speculative("temporal", ValueGate(0.05), trusted=(0.25, 1.0, 0.0)),
    "trusted nowhere": lambda: speculative("two_tower", trusted=()),
    "of many tasks": lambda: speculative("two_tower", wm=other_model(obs_padding=3, action_padding=2)),
    "episodes that end": lambda: speculative("two_tower", wm=other_model(episodic=True, discount=0.97)),
    "draft": lambda: drafting(random_draft(), mode="eager"),
    "draft of modes": lambda: drafting(random_draft(modes=2, members=2), mode="eager"),
    "prior draft": lambda: drafting(PriorDraft(LATENT, ACTIONS, 16).eval(), mode="eager"),
    "draft and planner": lambda: drafting(random_draft(), DraftGate(0.385, 0.1, 0.48)),
    "draft that looks without asking": lambda: drafting(
        random_draft(), DraftGate(0.05, looks=("value", "mismatch")), 2
    ),
    "real time": lambda: RealTimeController(MPPI(tiny_model(num_q=3), BUDGET), delay=3),
    "real time, with all parts": lambda: RealTimeController(
        MPPI(tiny_model(num_q=3), BUDGET),
        corrector("temporal").requires_grad_(False),
        DriftGate(0.4),
        (2, 0, 1),
        random_draft().requires_grad_(False),
    ),
    "policy": lambda: PolicyController(tiny_model(), mode="eager"),
    "policy samples": lambda: PolicyController(tiny_model(), samples=5, mode="eager"),
} | {arch: lambda arch=arch: speculative(arch) for arch in CORRECTORS}
