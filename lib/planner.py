"""MPPI in the latent space of a TD-MPC2 world model, for a batch of latents at once (TD-MPC2 paper, section 3.2).

    planner = MPPI(world_model, PlannerConfig.standard(action_dim))
    plan = planner(z)                                   # z (B, L); the start of an episode
    plan = planner(z, warm_start=plan.shifted(3))       # after three steps of the old plan were executed

Symbols: B latents, N samples, H horizon, A action dimensions, E elites. All noise is drawn by `MPPI.draw_noise` before
the solve, so that a row's result depends only on its own latent, warm start and noise, and so that the slow twin in
the tests can be given the same noise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.compilation import CPU_OPTIONS, Captured, Compiled, resolve_mode
from lib.config import ConfigError, PlannerConfig
from lib.planning_networks import PlanningNetworks
from lib.protocols import PlannerNetworks
from lib.world_model import WorldModel

__all__ = ["MPPI", "Plan", "PlanNoise", "PlannerConfig", "shift"]

WORTH_COMPILING = 64  # samples in all iterations; nobody waits a minute for the compiler to plan with fewer


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
    """Model predictive path integral control over a world model's latents.

    `networks` are the model's functions as planning needs them; packed from `world_model` unless they are given.
    Where a model has more than two Q heads, a stream of the planner's own draws them and goes on from solve to solve:
    controllers restart it with an episode, and so does who plans by hand (`reset_streams`) to play one again.
    Raises `ConfigError` for CUDA graphs without a CUDA device, `ValueError` for weights that are not finite.
    """

    def __init__(
        self, world_model: WorldModel, config: PlannerConfig | None = None, networks: PlannerNetworks | None = None
    ):
        self.wm = world_model
        c = self.config = config or PlannerConfig.standard(world_model.action_dim)
        self.networks = networks or PlanningNetworks(world_model, getattr(torch, c.dtype))
        self.solves = 0  # plans made so far, one per row: every call is counted, wherever it happens
        self.head_stream = torch.Generator().manual_seed(0)
        device = self.wm.device
        self.mode = resolve_mode(c.mode, device, worthwhile=c.samples * c.iterations >= WORTH_COMPILING)
        self._parts = [_roll_prior, _improve, _evaluate]
        if self.mode != "eager":
            options, batched = CPU_OPTIONS if device.type == "cpu" else None, (range(2, 4), range(3, 9), range(2, 4))
            self._parts = [Compiled(f, "planner", options, b) for f, b in zip(self._parts, batched, strict=True)]
        self._solve = functools.partial(_solve, self.networks, c, self.wm.config.discount, self._parts)
        if self.mode == "cudagraph":
            self._solve = Captured(self._solve)

    @property
    def compile_seconds(self) -> float:
        """What compiling has cost so far."""
        return sum(getattr(part, "seconds", 0.0) for part in self._parts)

    def reset_streams(self, seed: int = 0) -> None:
        """Restart the stream that draws Q heads, so that an episode can be played again."""
        self.head_stream.manual_seed(seed)

    def draw_noise(self, batch: int, generator: torch.Generator | list[torch.Generator] | None = None) -> PlanNoise:
        """Noise for `batch` rows: from one generator, or one per row (then a row ignores its neighbours)."""
        c, device = self.config, self.wm.device
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch:
                raise ConfigError(f"{len(generator)} generators were given for a batch of {batch}; give one per row.")
            rows = [self._draw(1, g) for g in generator]
            samples, terminal = (torch.cat([r[i] for r in rows], 1) for i in (0, 2))
            prior, choice = (torch.cat([r[i] for r in rows], 0) for i in (1, 3))
        else:
            samples, prior, terminal, choice = self._draw(batch, generator)
        num_q = self.wm.config.num_q
        heads = torch.stack([torch.randperm(num_q, generator=self.head_stream)[:2] for _ in range(c.iterations)])
        return PlanNoise(*(t.to(device) for t in (samples, prior, terminal, heads, choice)))

    def _draw(self, batch: int, generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, a, device = self.config, self.wm.action_dim, generator.device if generator else self.wm.device

        def normal(*shape):
            return torch.randn(shape, generator=generator, device=device)

        samples = normal(c.iterations, batch, c.horizon, c.samples - c.policy_samples, a)
        prior = normal(batch, c.horizon, c.policy_samples, a)
        terminal = normal(c.iterations, batch, c.samples, a)
        uniform = torch.rand(batch, c.elites, generator=generator, device=device)
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

        A sample whose value is NaN counts as worth 0, as in the official code. Raises `ValueError` when a latent, the
        warm start, a weight, or the value of the plan is not finite: a plan from NaN would look like a plan.
        """
        shape = len(z), self.config.horizon, self.wm.action_dim
        if warm_start is None:
            warm_start = torch.zeros(shape, device=z.device)
        if warm_start.shape != shape:
            raise ValueError(f"a warm start of shape {tuple(warm_start.shape)} was given; it must be {shape} here.")
        if not torch.isfinite(z).all() or not torch.isfinite(warm_start).all():
            raise ValueError("the planner was given a non-finite latent or warm start; check observations and weights.")
        self.networks.refresh()
        noise = noise or self.draw_noise(len(z), generator)
        self.solves += len(z)
        fields = (noise.samples, noise.prior, noise.terminal, noise.heads, noise.choice)
        plan = Plan(*self._solve(z.float(), warm_start.float(), *fields))
        if not torch.isfinite(plan.value).all():
            raise ValueError("the world model gives the plan a value that is not finite; check its weights.")
        return plan


def _solve(nets, c: PlannerConfig, discount: float, parts, z, mean, samples, prior, terminal, heads, choice):
    """The fields of `Plan`, for latents z (B, L), a first mean (B, H, A) and the fields of `PlanNoise`."""
    roll_prior, improve, evaluate = parts
    start = nets.enter(z).unsqueeze(1)  # (B, 1, L)
    rolled = roll_prior(nets, discount, start, prior) if c.policy_samples else None
    std = torch.full_like(mean, c.max_std)
    for i in range(c.iterations):
        mean, std, score, elites = improve(
            nets, c, discount, start, mean, std, rolled, samples[i], terminal[i], heads[i]
        )
    if c.action_selection == "mean":
        chosen = mean.clamp(-1, 1)
    else:
        pick = (score.log() + choice).argmax(1)  # Gumbel-max: an elite drawn by its weight
        chosen = elites.gather(2, pick.view(-1, 1, 1, 1).expand(-1, c.horizon, 1, mean.shape[2])).squeeze(2)
    latents, value = evaluate(nets, discount, start, chosen)
    return chosen, mean, std, nets.leave(latents), value


# The three parts of a solve. `nets` is `PlanningNetworks`, or anything with its functions; z (B, 1, L) is the latent
# that all samples of a row start from. They are functions so that planners of one shape share what is compiled.


def _step(nets, weight: float, z: Tensor, actions: Tensor, total, alive: Sequence[Tensor]):
    """One step of the model with actions (B, N, A): the sum of rewards (B, N), who is alive, and the new latents.

    `alive` is empty, or one tensor (B, N) of ones and zeros where episodes can end early: a sample that has likelier
    than not ended at its new latent has this step's reward still, but no later one and no value behind (official).
    """
    reward, z = nets.step(z, actions)
    total = total + weight * _of_the_living(reward, alive)
    ended = nets.ends(z)
    return total, alive if ended is None else (_of_the_living((~ended).float(), alive),), z


def _of_the_living(value: Tensor, alive: Sequence[Tensor]) -> Tensor:
    return value * alive[0] if alive else value


def _roll_prior(nets, discount: float, z: Tensor, noise: Tensor):
    """Sampled policy trajectories for noise (B, H, P, A), which are the same in every iteration.

    Returns their actions (B, H, P, A), sums of rewards (B, P), last latents (B, P, L), the prior's mean and log_std at
    these, and where episodes can end early which trajectories have not, (B, P).
    """
    total, alive, actions = 0.0, (), []
    for t in range(noise.shape[1]):
        mean, log_std = nets.policy(z)
        actions.append((mean + noise[:, t] * log_std.exp()).tanh())
        total, alive, z = _step(nets, discount**t, z, actions[-1], total, alive)
    return torch.stack(actions, 1), total, z, *nets.policy(z), *alive


def _improve(nets, c: PlannerConfig, discount: float, z, mean, std, prior, noise, terminal, heads):
    """One iteration: sample around mean and std (B, H, A), estimate returns, refit to the elites.

    noise (B, H, S, A), terminal (B, N, A), heads (2,), prior from `_roll_prior` or None. Returns the new mean and std,
    the elites' weights (B, E), best first, and the elites (B, H, E, A).
    """
    horizon, action_dim = mean.shape[1:]
    actions = (mean.unsqueeze(2) + std.unsqueeze(2) * noise).clamp(-1, 1)  # (B, H, S, A)
    if actions.shape[2]:
        total, alive = 0.0, ()
        for t in range(horizon):
            total, alive, z = _step(nets, discount**t, z, actions[:, t], total, alive)
        rolled = actions, total, z, *nets.policy(z), *alive
        rolled = (
            rolled
            if prior is None
            else [torch.cat(x, 2 if x[0].dim() == 4 else 1) for x in zip(prior, rolled, strict=True)]
        )
    else:
        rolled = prior
    actions, total, z, prior_mean, log_std, *alive = rolled
    last = (prior_mean + terminal * log_std.exp()).tanh()  # (B, N, A)
    value = (total + discount**horizon * _of_the_living(nets.q(z, last, heads), alive)).nan_to_num(0.0)
    elite_value, elite = value.topk(c.elites, dim=1)  # (B, E)
    elites = actions.gather(2, elite[:, None, :, None].expand(-1, horizon, -1, action_dim))
    score = (c.temperature * (elite_value - elite_value[:, :1])).exp()
    score = score / score.sum(1, keepdim=True)
    weight = score[:, None, :, None]  # (B, 1, E, 1)
    mean = (weight * elites).sum(2)
    std = (weight * (elites - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(c.min_std, c.max_std)
    return mean, std, score, elites


def _evaluate(nets, discount: float, z: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (B, H+1, L) under actions (B, H, A), and their return with the mean Q of the prior's mean action."""
    latents, total, alive, horizon = [z], 0.0, (), actions.shape[1]
    for t in range(horizon):
        total, alive, z = _step(nets, discount**t, z, actions[:, t : t + 1], total, alive)
        latents.append(z)
    q = _of_the_living(nets.q(z, nets.policy(z)[0].tanh(), None), alive)
    return torch.cat(latents, 1), (total + discount**horizon * q).squeeze(1)
