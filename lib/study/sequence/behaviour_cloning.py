"""Behaviour cloning: the data's action from the observation alone, whatever came of it.

model = BehaviourCloning.of(trajectories)
loss = model.loss(batch)
controller = model.controller()

It is trained as the Decision Transformer is, on the same batches; what that one does better, it owes to its history and
to the return that it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib.protocols import answered, rows_of, unsound
from lib.study.sequence.windows import OfflinePolicy, WindowBatch


@dataclass(frozen=True)
class Shape:
    """Sizes of a cloned policy; `context` only says in which windows its data comes."""

    obs_dim: int
    action_dim: int
    context: int = 20
    width: int = 256
    layers: int = 2  # hidden ones
    dropout: float = 0.1


class BehaviourCloning(OfflinePolicy):
    """A multilayer perceptron from the normalised observation to the action, with a tanh at its end."""

    arm, Shape = "behaviour-cloning", Shape

    def __init__(self, shape: Shape):
        super().__init__(shape)
        widths = [shape.obs_dim, *[shape.width] * shape.layers]
        hidden = [
            part
            for i, o in zip(widths[:-1], widths[1:], strict=True)
            for part in (nn.Linear(i, o), nn.ReLU(), nn.Dropout(shape.dropout))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], shape.action_dim), nn.Tanh())

    def forward(self, obs: Tensor) -> Tensor:
        """Actions (…, A) in [−1, 1] for observations (…, obs_dim)."""
        return self.layers(self.normalised(obs))

    def loss(self, batch: WindowBatch) -> Tensor:
        """Mean squared error to the actions of the decisions that count."""
        return (self(batch.obs[batch.mask]) - batch.actions[batch.mask]).square().mean()

    def controller(self, target_return=None) -> BehaviourCloningController:
        """The model as a controller; it cannot be asked for a return."""
        return BehaviourCloningController(self)


class BehaviourCloningController:
    """Acts in a batch of episodes, without memory."""

    def __init__(self, model: BehaviourCloning):
        self.model, self._batch = model.eval(), 0

    def reset(self, batch_size: int = 1, generators=None) -> None:
        """Start `batch_size` episodes. Nothing of them is kept, and nothing drawn."""
        self._batch = batch_size

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._batch = len(rows)

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict]:
        """Actions (B, A) for observations (B, obs_dim), and no records; `ValueError` when one is not finite."""
        obs, alone = rows_of(obs, self._batch, self.model.device, self.model.shape.obs_dim)
        action = self.model(obs)
        if not (torch.isfinite(obs).all() and torch.isfinite(action).all()):
            raise ValueError(unsound(obs))
        return answered(action, {}, alone)

    def observe(self, rewards: np.ndarray) -> None:
        """Rewards do not matter to it."""
