"""MPPI in the latent space of a TD-MPC2 world model, for a batch of latents at once (TD-MPC2 paper, section 3.2).

    planner = MPPI(world_model, PlannerConfig.standard(action_dim))
    plan = planner(z)                                   # z (B, L); the start of an episode
    plan = planner(z, warm_start=plan.shifted(3))       # after three steps of the old plan were executed

Symbols: B latents, N samples, H horizon, A action dimensions, E elites. All noise is drawn by `MPPI.draw_noise` before
the solve, so that a row's result depends only on its own latent, warm start and noise, and so that the slow twin in
the tests can be given the same noise.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.config import ConfigError, PlannerConfig
from lib.world_model import WorldModel

__all__ = ["MPPI", "Plan", "PlanNoise", "PlannerConfig", "shift"]


@dataclass
class Plan:
    """A solved batch of plans.

    actions: (B, H, A) to execute; mean, std: (B, H, A) of the last iteration; latents: (B, H+1, L) predicted under
    `actions`; value: (B,) the model's return of `actions` (H rewards and the mean Q of the prior's action at the end).
    """

    actions: Tensor
    mean: Tensor
    std: Tensor
    latents: Tensor
    value: Tensor

    def shifted(self, steps: int | Tensor) -> Tensor:
        """The next warm start (B, H, A): `mean` moved by the steps executed, an int or one per row (B,)."""
        return shift(self.mean, steps)


def shift(mean: Tensor, steps: int | Tensor) -> Tensor:
    """Move plans (B, H, A) by the steps executed, an int or one per row (B,); zeros behind."""
    batch, horizon, _ = mean.shape
    steps = torch.as_tensor(steps, device=mean.device).expand(batch)
    index = torch.arange(horizon, device=mean.device) + steps.unsqueeze(1)  # (B, H)
    moved = mean.gather(1, index.clamp(max=horizon - 1).unsqueeze(-1).expand_as(mean))
    return moved * (index < horizon).unsqueeze(-1)


@dataclass
class PlanNoise:
    """Standard normal draws of one solve, and the Q heads of each iteration.

    samples (I, B, H, N − P, A) around the mean; prior (B, H, P, A) for the P policy trajectories; terminal (I, B, N, A)
    for the action at the end of each trajectory; heads (I, 2); choice (B, E) Gumbel noise that picks an elite.
    """

    samples: Tensor
    prior: Tensor
    terminal: Tensor
    heads: Tensor
    choice: Tensor


class MPPI:
    """Model predictive path integral control over a world model's latents."""

    def __init__(self, world_model: WorldModel, config: PlannerConfig | None = None):
        self.wm = world_model
        self.config = config or PlannerConfig.standard(world_model.action_dim)
        self.solves = 0  # plans made so far, one per row: every call is counted, wherever it happens
        self.head_stream = torch.Generator().manual_seed(0)
        self._estimate = self._compiled_value() if self._wants_compiled() else self._value

    def _wants_compiled(self) -> bool:
        c = self.config
        if c.mode == "auto":  # small budgets gain nothing, and compiling takes half a minute
            return c.samples * c.iterations >= 1024 and bool(shutil.which(os.environ.get("CXX", "c++")))
        return c.mode == "compiled"

    def _compiled_value(self):
        """`_value`, compiled at its first call for each batch size; the eager one when compilation is not possible."""
        compiled = torch.compile(self._value, dynamic=False)

        def estimate(*inputs):
            try:
                return compiled(*inputs)
            except RuntimeError as error:  # what inductor raises for a missing compiler, header or operator
                reason = str(error).strip().splitlines()[0]
                print(f"planner: compilation is not possible here, going on without it ({reason})", file=sys.stderr)
                self._estimate = self._value
                return self._value(*inputs)

        return estimate

    def reset_streams(self, seed: int = 0) -> None:
        """Restart the stream that draws Q heads, so that a whole evaluation can be repeated."""
        self.head_stream.manual_seed(seed)

    def draw_noise(self, batch: int, generator: torch.Generator | list[torch.Generator] | None = None) -> PlanNoise:
        """Noise for `batch` rows: from one generator, or one per row (then a row ignores its neighbours)."""
        c, a, device = self.config, self.wm.action_dim, self.wm.device
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch:
                raise ConfigError(f"{len(generator)} generators were given for a batch of {batch}; give one per row.")
            rows = [self._draw(1, g, c, a) for g in generator]
            samples, terminal = (torch.cat([r[i] for r in rows], 1) for i in (0, 2))
            prior, choice = (torch.cat([r[i] for r in rows], 0) for i in (1, 3))
        else:
            samples, prior, terminal, choice = self._draw(batch, generator, c, a)
        num_q = self.wm.config.num_q
        heads = torch.stack([torch.randperm(num_q, generator=self.head_stream)[:2] for _ in range(c.iterations)])
        return PlanNoise(*(t.to(device) for t in (samples, prior, terminal, heads, choice)))

    @staticmethod
    def _draw(batch: int, generator, c: PlannerConfig, a: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def normal(*shape):
            return torch.randn(shape, generator=generator, device=generator.device if generator else None)

        samples = normal(c.iterations, batch, c.horizon, c.samples - c.policy_samples, a)
        prior = normal(batch, c.horizon, c.policy_samples, a)
        terminal = normal(c.iterations, batch, c.samples, a)
        uniform = torch.rand(batch, c.elites, generator=generator, device=generator.device if generator else None)
        gumbel = -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
        return samples, prior, terminal, gumbel

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        warm_start: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: PlanNoise | None = None,
    ) -> Plan:
        """Plan from latents z (B, L). `warm_start` (B, H, A) is `Plan.shifted`; None or a zero row starts an episode.

        Raises `ValueError` when a latent or the warm start is not finite: a plan from NaN would look like a plan.
        """
        c, wm = self.config, self.wm
        batch, horizon = z.shape[0], c.horizon
        if not torch.isfinite(z).all() or (warm_start is not None and not torch.isfinite(warm_start).all()):
            raise ValueError("the planner was given a non-finite latent or warm start; check observations and weights.")
        noise = noise or self.draw_noise(batch, generator)
        self.solves += batch

        actions = torch.empty(batch, horizon, c.samples, wm.action_dim, device=z.device)
        if c.policy_samples:
            actions[:, :, : c.policy_samples] = self._prior_actions(z, noise.prior)
        mean = torch.zeros(batch, horizon, wm.action_dim, device=z.device) if warm_start is None else warm_start
        std = torch.full_like(mean, c.max_std)
        for i in range(c.iterations):
            drawn = mean.unsqueeze(2) + std.unsqueeze(2) * noise.samples[i]
            actions[:, :, c.policy_samples :] = drawn.clamp_(-1, 1)
            value = self._estimate(z, actions, noise.terminal[i], noise.heads[i]).nan_to_num(0.0)  # (B, N)
            elite_value, elite = value.topk(c.elites, dim=1)  # (B, E)
            elite_actions = actions.gather(2, elite[:, None, :, None].expand(-1, horizon, -1, wm.action_dim))
            score = (c.temperature * (elite_value - elite_value[:, :1])).exp()
            score = score / score.sum(1, keepdim=True)
            weight = score[:, None, :, None]  # (B, 1, E, 1)
            mean = (weight * elite_actions).sum(2)  # (B, H, A)
            std = (weight * (elite_actions - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(c.min_std, c.max_std)

        if c.action_selection == "mean":
            chosen = mean.clamp(-1, 1)
        else:
            pick = (score.log() + noise.choice).argmax(1)  # Gumbel-max: an elite drawn by its weight
            chosen = elite_actions[torch.arange(batch, device=z.device), :, pick]
        latents, value = self._roll(z, chosen)
        return Plan(chosen, mean, std, latents, value)

    def _prior_actions(self, z: Tensor, noise: Tensor) -> Tensor:
        """Sampled policy trajectories: z (B, L), noise (B, H, P, A) -> (B, H, P, A)."""
        z = z.unsqueeze(1).expand(-1, noise.shape[2], -1)
        actions = []
        for t in range(noise.shape[1]):
            actions.append(self.wm.policy_sample(z, noise[:, t]))
            if t + 1 < noise.shape[1]:
                z = self.wm.next(z, actions[-1])
        return torch.stack(actions, 1)

    def _value(self, z: Tensor, actions: Tensor, noise: Tensor, heads: Tensor) -> Tensor:
        """Estimated return of action sequences: z (B, L), actions (B, H, N, A), noise (B, N, A) -> (B, N)."""
        wm = self.wm
        z = z.unsqueeze(1).expand(-1, actions.shape[2], -1)
        total, discount = 0.0, 1.0
        for t in range(actions.shape[1]):
            total = total + discount * wm.reward(z, actions[:, t])
            z = wm.next(z, actions[:, t])
            discount *= wm.config.discount
        return total + discount * wm.q(z, wm.policy_sample(z, noise), heads=heads).mean(0)

    def _roll(self, z: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, H+1, L) under actions (B, H, A), and their return with the mean Q of the prior's mean action."""
        latents, total, discount = [z], 0.0, 1.0
        for t in range(actions.shape[1]):
            total = total + discount * self.wm.reward(latents[-1], actions[:, t])
            latents.append(self.wm.next(latents[-1], actions[:, t]))
            discount *= self.wm.config.discount
        last = latents[-1]
        value = total + discount * self.wm.q(last, self.wm.policy(last)[0]).mean(0)
        return torch.stack(latents, 1), value
