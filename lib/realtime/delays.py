"""How long plans take, in decisions, and what controllers do who have to live with it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.config import ConfigError, quoted
from lib.world_model import WorldModel

# A number of decisions; several, gone through again and again, one for each solve of a row; or a function that draws
# one from the row's random stream (None where `reset` was given none).
Delay = int | Sequence[int] | Callable[[torch.Generator | None], int]


LONGEST = 10_000  # the model is rolled that far; no episode is as long


class Delays:
    """Delays of solve after solve; `given` are the numbers, None for a function.

    Raises `ConfigError` for one that is no whole number, or negative.
    """

    def __init__(self, delay: Delay):
        self._draw, self.given = delay if callable(delay) else None, None
        if self._draw is None:
            self.given = [_decisions(d) for d in (delay if isinstance(delay, (list, tuple, range)) else [delay])]
            if not self.given:
                raise ConfigError("delay=() has none; give at least one number of decisions.")

    def __call__(self, solve: int, generator: torch.Generator | None) -> int:
        """How many decisions a row's solve of this number (from 0) takes."""
        return self.given[solve % len(self.given)] if self._draw is None else _decisions(self._draw(generator))


def _decisions(delay) -> int:
    try:
        whole = operator.index(delay)
    except TypeError:
        whole = -1
    if isinstance(delay, bool) or not 0 <= whole <= LONGEST:
        raise ConfigError(f"delay={quoted(delay)} must be a whole number of decisions in 0…{LONGEST:,}.")
    return whole


def fitting(what: str, network: nn.Module | None, wm: WorldModel) -> nn.Module | None:
    """The network, if it was made for latents and actions as the world model's are; else a `ConfigError`."""
    if network is not None and (network.latent_dim, network.action_dim) != (wm.latent_dim, wm.action_dim):
        raise ConfigError(
            f"the {what} was made for latent {network.latent_dim} and {network.action_dim} actions, the world model "
            f"has {wm.latent_dim} and {wm.action_dim}; train one for this teacher."
        )
    return network


def at_once(wm: WorldModel, draft: nn.Module | None, z: Tensor, a_policy: Tensor) -> Tensor:
    """The action (B, A) of who needs no plan at z (B, L): the draft's, or without one the prior's, a_policy (B, A)."""
    return a_policy if draft is None else draft(z, a_policy)[0]
