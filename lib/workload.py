"""How much work each profile does.

A notebook's key (`lib.run`) has the values that it reads from here, not this file: an arm more must not train a
corrector again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.config import PlannerConfig


@dataclass(frozen=True)
class Profile:
    """How much work each notebook does. Zero-valued notebook parameters mean "as the profile says"."""

    name: str
    collect_episodes: int  # of each round of the distillation set
    rounds: int  # the first visits states with the bare plan, later ones with the corrector of the rounds before
    collect_horizon: int  # steps executed of each plan meanwhile: states of depths 1 to one less are collected
    epochs: int  # of corrector training
    calibrate_episodes: int  # played for each entry of the ladder's grid
    arms: tuple[str, ...]
    eval_episodes: int  # of each of them
    side_arms: tuple[str, ...]  # ablations and straw men
    side_episodes: int
    latency_decisions: int  # timed of each arm
    decisions: int = 500  # per episode; 500 is a whole one
    planner: PlannerConfig | None = None  # None: the standard budget for the task

    @property
    def episodes(self) -> dict[str, int]:
        """How many episodes each arm plays."""
        return dict.fromkeys(self.arms, self.eval_episodes) | dict.fromkeys(self.side_arms, self.side_episodes)


SMOKE_ARMS = ("teacher", "policy", "open-loop-3", "two-tower-3", "temporal-3", "gated-3", "16x1+ladder-3")
QUICK_ARMS = ("teacher", "policy", "budget-64x2", "open-loop-3", "two-tower-3")
QUICK_ARMS += tuple(f"64x2+{scheme}" for scheme in ("open-loop-3", "two-tower-3", "value-checked-6"))
_SCHEMES = ("open-loop-3", "open-loop-6", "two-tower-3", "two-tower-6", "temporal-3", "temporal-6")
_SCHEMES += ("gated-6",)
_ON_SMALLER = (*_SCHEMES, "value-checked-6", "ladder-6")
PAPER_ARMS = ("teacher", "policy", "budget-64x2", *_SCHEMES, *(f"64x2+{scheme}" for scheme in _ON_SMALLER))
PAPER_SIDE_ARMS = ("64x2+gate-only-6", "64x2+sensitive-6")

_TINY = PlannerConfig.budget(32, 1)
PROFILES = {
    "smoke": Profile("smoke", 2, 1, 3, 2, 1, SMOKE_ARMS, 2, (), 0, 6, decisions=12, planner=_TINY),
    "quick": Profile("quick", 4, 1, 6, 60, 1, QUICK_ARMS, 3, (), 0, 60),
    "paper": Profile("paper", 12, 2, 6, 100, 5, PAPER_ARMS, 10, PAPER_SIDE_ARMS, 10, 200),
}
