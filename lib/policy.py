"""Control without planning.

controller = PolicyController(wm)
controller.reset(batch_size=8)
actions, info = controller.act(obs)      # (8, obs_dim) -> (8, A)
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lib.compilation import prepared, resolve_mode
from lib.protocols import answered, one_each, rows_of, unsound
from lib.world_model import WorldModel


class PolicyController:
    """No planning: the mean of the policy prior, the cheapest arm, or the best of `samples` draws by the model's Q."""

    def __init__(self, wm: WorldModel, samples: int = 0, mode: str = "auto"):
        self.wm, self.samples, self._generators = wm, samples, None
        self._batch = 0  # `reset` begins
        self._act = prepared(resolve_mode(mode, wm.device), functools.partial(_prior, wm), range(2))

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes with the rows' own random streams."""
        self._batch, self._generators = batch_size, one_each(generators, batch_size)

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._batch, self._generators = len(rows), self._generators and [self._generators[i] for i in rows]

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one of either is not finite."""
        (obs, alone), noise = rows_of(obs, self._batch, self.wm.device), None
        if self.samples:
            if not torch.isfinite(obs).all():  # before the streams move on
                raise ValueError(unsound(obs))
            generators = self._generators or [None] * len(obs)
            draws = [torch.randn(self.samples, self.wm.action_dim, generator=g) for g in generators]
            noise = torch.stack(draws).to(self.wm.device)
        action, sound, never, depth, mismatch, delta = self._act(obs, noise)
        if not sound:
            raise ValueError(unsound(obs))
        flags = dict.fromkeys(("planner_called", "fallback", "refined"), never)
        return answered(action, flags | {"depth": depth, "mismatch": mismatch, "delta_abs": delta}, alone)


def _prior(wm: WorldModel, obs: Tensor, noise: Tensor | None):
    """The prior's mean action (B, A), or the best by Q of the samples that `noise` (B, N, A) makes; whether all
    observations and actions are finite; and what there is to record of a decision without a plan, each (B,)."""
    z = wm.encode(obs)
    if noise is None:
        action = wm.policy(z)[0]
    else:
        z = z.unsqueeze(1).expand(-1, noise.shape[1], -1)
        actions = wm.policy_sample(z, noise)  # (B, N, A)
        best = wm.q(z, actions).mean(0).argmax(1)  # (B,)
        action = actions.gather(1, best.view(-1, 1, 1).expand(-1, 1, actions.shape[2])).squeeze(1)
    zero = torch.zeros_like(action[:, 0])
    sound = torch.isfinite(obs).all() & torch.isfinite(action).all()
    return action, sound, zero.bool(), zero.long(), zero + torch.nan, zero
