"""What needs no teacher: random actions, and none. A teacher that returns no more than these has nothing to keep."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lib.study.accelerate.plan import LEAST
from lib.study.accelerate.playing import again
from lib.study.certify import RANDOM, random_episodes, random_returns
from lib.study.evaluate import Stage
from lib.study.stats.certification import above, student_p

STILL = "still"
TRIVIAL = {RANDOM: "a random policy", STILL: "doing nothing"}
SURE = 0.05  # the chance that a teacher that has learnt nothing passes for one that has


class Still:
    """No action at all, which is what a planner comes to whose model has learnt nothing."""

    def __init__(self, action_dim: int):
        self.action_dim = action_dim

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        self._batch = batch_size

    def keep(self, rows: list[int]) -> None:
        self._batch = len(rows)

    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(self._batch, self.action_dim), {}


def trivial_returns(stage: Stage, seeds: list[int]) -> dict[str, np.ndarray]:
    """Trivial policy → its returns on these start states."""
    controller = Still(stage.wm.action_dim)
    still = again(lambda: random_returns(controller, stage.cell.task, seeds, stage.decisions))
    random = again(lambda: random_episodes(stage, seeds))
    return {RANDOM: random["return"].to_numpy(), STILL: np.array([row["return"] for row in still])}


def nothing_learnt(teacher, trivial: dict[str, np.ndarray]) -> str:
    """Why there may be nothing to keep, "" for a teacher that has learnt something: fewer than `LEAST` episodes may not
    show it, nor may more that a test does not tell apart. All returns are of the same start states.

    Raises `NothingToKeep` where the teacher returns no more than a trivial policy over `LEAST` episodes.
    """
    doubt = ""
    for name, returns in trivial.items():
        difference = np.asarray(teacher) - returns
        many = len(difference) >= LEAST
        if many:
            above(teacher, returns.mean(), f"the return of {TRIVIAL[name]} on the same start states")
        if student_p(difference) > SURE if many else difference.mean() <= 0:
            episodes = f"{len(difference)} episode{'s' * (len(difference) > 1)}"
            why = f"which a test of {episodes} does not tell apart" if many else f"over no more than {episodes}"
            doubt = (
                f"The teacher returns {np.mean(teacher):.4g} on average, and {TRIVIAL[name]} {returns.mean():.4g}, "
                f"{why}: there is nothing that is known to be worth keeping, so the full planner stays. Train it "
                "longer, or give more minutes."
            )
    return doubt
