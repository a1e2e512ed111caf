"""The contracts of the method: what a controller, a world model and a planner's networks have to offer.

Letters: B rows of a batch (parallel episodes), obs_dim, A action dimensions, L latent width, H the plan's horizon, N
samples. All of them are structural: a class fulfils one by having its methods, it need not inherit from it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Controller(Protocol):
    """One way to control a batch of episodes that go in step; `lib.rollout` plays it."""

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes and forget all others; `generators` are the rows' own random streams."""

    def act(self, obs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and per-row records of the decision, each (B,).

        Where the controller knows them, the records are `planner_called`, `fallback`, `refined`, `depth`, `mismatch`,
        `score` and `delta_abs`. Raises `ValueError` where an observation is not finite.
        """

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch: the others' episodes have ended."""


NOT_FINITE = "an action is not finite; check the weights of the corrector and of the world model."


def unsound(obs: Tensor) -> str:
    """Why a decision has no sound action."""
    rows = (~torch.isfinite(obs)).any(-1).nonzero().flatten().tolist()
    return f"observations of rows {rows} are not finite." if rows else NOT_FINITE


@runtime_checkable
class LatentModel(Protocol):
    """A world model that acts in latent space. Leading dimensions are any, written …"""

    def encode(self, obs: Tensor) -> Tensor:
        """Latents (…, L) of observations (…, obs_dim)."""

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """The latent (…, L) one decision after z (…, L), with action a (…, A)."""

    def reward(self, z: Tensor, a: Tensor) -> Tensor:
        """Expected reward (…) of that decision."""

    def q(self, z: Tensor, a: Tensor, target: bool = False, heads: Tensor | None = None) -> Tensor:
        """Expected returns (k, …) by each Q head, or by those in `heads` (k,); of the target heads with `target`."""

    def termination(self, z: Tensor) -> Tensor | None:
        """Probability (…) that the episode has ended early at z (…, L); None where no episode of the task does."""

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The policy prior at z (…, L): mean in [−1, 1] and log standard deviation before squashing, both (…, A)."""


@runtime_checkable
class PlannerNetworks(Protocol):
    """A world model's functions as `lib.planner.MPPI` runs them, in whatever latents they like inside."""

    def refresh(self) -> None:
        """Called before every solve: take note of changed weights; `ValueError` if one is not finite."""

    def enter(self, z: Tensor) -> Tensor:
        """A world model's latents (…, L) as the functions below take them."""

    def leave(self, z: Tensor) -> Tensor:
        """The inverse of `enter`."""

    def step(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Expected rewards (B, N) and next latents (B, N, ·) of actions a (B, N, A) at z (B, N or 1, ·)."""

    def ends(self, z: Tensor) -> Tensor | None:
        """Whether the episode has likelier than not ended at z (B, N, ·) -> (B, N); None where none ends early."""

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before squashing and log standard deviation of the prior at z (B, N, ·), both (B, N, A)."""

    def q(self, z: Tensor, a: Tensor, heads: Tensor | None) -> Tensor:
        """Mean over the Q heads (k,), None for all, of the value of actions a (B, N, A) at z (B, N, ·) -> (B, N)."""
