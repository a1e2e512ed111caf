"""Who plays episodes to learn from: a planner that replans at every decision, disturbed or not, and nobody.

    episodes = record(ReplanningController(MPPI(wm)), partial(make_env, "walker-walk"), episode_seeds("card", 10), 500)

What is played does not depend on how a teacher was trained, so that results from it outlive changes of the training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.planner import MPPI
from lib.protocols import answered, one_each, rows_of, unsound


class RandomController:
    """Uniform actions from the rows' own streams."""

    def __init__(self, action_dim: int):
        self.action_dim, self._generators = action_dim, []

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes with the rows' own random streams."""
        self._generators = one_each(generators, batch_size) or [None] * batch_size

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._generators = [self._generators[i] for i in rows]

    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and no records."""
        _, alone = rows_of(obs, len(self._generators), "cpu")
        actions = torch.stack([2 * torch.rand(self.action_dim, generator=g) - 1 for g in self._generators])
        return answered(actions, {}, alone)


class ReplanningController:
    """The first action of a plan made at every decision, and Gaussian noise on top, clipped to [−1, 1].

    The noise has the standard deviation `noise` (half the range of an action is 1), and `exploration` times that of the
    plan, as in training. It comes from the rows' own streams; warm starts know nothing of it. The planner's stream that
    draws Q heads begins with `heads_seed` at every start, and goes on from one decision to the next.
    """

    def __init__(self, planner: MPPI, noise: float = 0.0, exploration: float = 0.0, heads_seed: int = 0):
        self.planner, self.noise, self.exploration, self.heads_seed = planner, noise, exploration, heads_seed
        self._generators = []  # `reset` begins

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no warm start, and the rows' own random streams."""
        self._generators, self._warm = one_each(generators, batch_size) or [None] * batch_size, None
        self.planner.reset_streams(self.heads_seed)

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._generators = [self._generators[i] for i in rows]
        self._warm = None if self._warm is None else self._warm[rows]

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and no records."""
        wm = self.planner.wm
        obs, alone = rows_of(obs, len(self._generators), wm.device)
        z = wm.encode(obs)
        if not torch.isfinite(z).all():
            raise ValueError(unsound(obs))
        plan = self.planner(z, self._warm, self._generators)
        action, self._warm = plan.actions[:, 0], plan.shifted(1)
        if self.noise or self.exploration:
            drawn = torch.stack([torch.randn(wm.action_dim, generator=g) for g in self._generators])
            spread = self.noise or self.exploration * plan.std[:, 0]
            action = (action + spread * drawn.to(action.device)).clamp(-1, 1)
        return answered(action, {}, alone)
