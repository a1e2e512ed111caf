"""The contracts of the method: what a controller, a world model and a planner's networks have to offer.

Letters: B rows of a batch (parallel episodes), obs_dim, A action dimensions, L latent width, H the plan's horizon, N
samples. All of them are structural: a class fulfils one by having its methods, it need not inherit from it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lib.config import ConfigError


@runtime_checkable
class Controller(Protocol):
    """One way to control a batch of episodes that go in step; `lib.rollout` plays it."""

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes and forget all others; `generators` are the rows' own random streams.

        The controller's own streams, such as the one that draws Q heads, start anew: the same generators and
        observations give the same actions again. Alone and in a batch a row's actions are equal up to rounding only.
        """

    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and per-row records of the decision, each (B,).

        Observations are whatever `rows_of` takes; one without a batch, (obs_dim,), is answered by an action (A,) and
        records (). Where the controller knows them, the records are `planner_called`, `fallback`, `refined`, `depth`,
        `mismatch`, `score` and `delta_abs`. Raises `ValueError` for an observation that is not finite, or misshapen.
        """

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch: the others' episodes have ended."""


# ------------------------------------------------------------------------- what every controller does with a batch


def rows_of(obs, batch: int, device: torch.device | str, width: int = 0) -> tuple[Tensor, bool]:
    """Observations as float32 rows (batch, obs_dim) on a device, and whether they were one alone, (obs_dim,).

    Takes tensors, arrays and lists of real numbers. Raises `ValueError` for other things and shapes, another number of
    rows than episodes, and rows that are not `width` wide, where that is known.
    """
    # What loops hand over is ready: a step without planning is so short that each operation counts.
    if isinstance(obs, Tensor) and obs.dtype == torch.float32 and obs.dim() == 2 and len(obs) == batch:
        if not width or obs.shape[1] == width:
            return obs.to(device), False
    rows, dtype = _real(obs)
    given = f"shape {tuple(rows.shape)} and dtype {dtype}"
    if rows.dim() not in (1, 2):
        raise ValueError(f"act() takes observations (episodes, obs_dim), or one alone (obs_dim,), not {given}.")
    alone = rows.dim() == 1
    rows = rows.unsqueeze(0) if alone else rows
    if len(rows) != batch or not batch:
        what = f"{len(rows)} observation{'s' * (len(rows) != 1)} for {batch} episodes"
        raise ValueError(f"{what}, of {given}; call reset(batch_size={len(rows)}) first.")
    if width and rows.shape[1] != width:
        raise ValueError(f"this controller takes observations {width} wide, not {given}.")
    return rows.to(device, torch.float32), alone


def _real(obs) -> tuple[Tensor, str]:
    """Real numbers of any kind as a tensor, and what their type was."""
    kind = type(obs).__name__
    try:
        if isinstance(obs, (list, tuple)) and any(isinstance(row, Tensor) for row in obs):
            obs = torch.stack([torch.as_tensor(row) for row in obs])
        if isinstance(obs, Tensor):
            real, dtype = not obs.is_complex(), str(obs.dtype)
        else:
            obs = np.array(obs)  # a copy: what is read only or runs backwards is no tensor
            real, dtype = obs.dtype.kind in "biuf", str(obs.dtype)
            with np.errstate(over="ignore"):  # infinite is told of where it matters
                obs = torch.from_numpy(obs.astype(np.float32)) if real else obs
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error) or kind).splitlines()[0].rstrip(".")
        raise ValueError(f"act() takes rows of real numbers; this {kind} is none: {reason}.") from None
    if not real:
        shape = tuple(obs.shape)
        raise ValueError(f"act() takes rows of real numbers, not a {kind} of shape {shape} and dtype {dtype}.")
    return obs, dtype


def answered(actions: Tensor, info: dict[str, Tensor], alone: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """What `act` returns: the batch, or its only row where the observation came alone."""
    return (actions[0], {name: value[0] for name, value in info.items()}) if alone else (actions, info)


def one_each(generators: list[torch.Generator] | None, batch: int) -> list[torch.Generator] | None:
    """The random streams of `batch` episodes, if any were given. `ConfigError` when they are not as many."""
    if generators is not None and len(generators) != batch:
        raise ConfigError(f"{len(generators)} generators were given for {batch} episodes; give one per episode.")
    return generators


NOT_FINITE = "an action is not finite; check the weights of the networks that made it."
LARGE = 1e15  # no quantity of a robot is as large, and somewhat above it the squares of a norm overflow in float32


def unsound(obs: Tensor) -> str:
    """Why a decision has no sound action."""
    infinite, large = ((~(obs.abs() < limit)).any(-1).nonzero().flatten().tolist() for limit in (torch.inf, LARGE))
    if infinite:
        return f"observations of rows {infinite} are not finite in float32."
    if large:
        return f"observations of rows {large} reach {obs.abs().max():.0e}, where networks overflow; check their units."
    return NOT_FINITE


# ------------------------------------------------------------------------------------------- models and planners


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
