"""The TD-MPC2 update: losses, optimisers, target networks (TD-MPC2 paper, section 3.1; official `tdmpc2.py`).

H is the training horizon, B the batch, L the latent width, A the action dimensions. Under torchrun every rank calls
`update` with batches of its own: gradients are averaged, so that all ranks make the step of the batches put together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import functional as F

from lib.compilation import Compiled, resolve_mode
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import ALONE, Ranks, accumulating
from lib.teachers.replay import Batch
from lib.world_model import WorldModel, two_hot


class RunningScale:
    """Running 5–95 percentile range of Q, at least 1: keeps the policy loss on one scale across tasks."""

    def __init__(self, tau: float):
        self.tau, self.value = tau, torch.ones(())

    def update(self, q: Tensor) -> None:
        """q: any shape; moves the scale by tau towards this batch's range."""
        low, high = torch.quantile(q.flatten(), torch.tensor([0.05, 0.95], device=q.device))
        self.value = self.value.to(q.device).lerp((high - low).clamp(min=1.0), self.tau)


def soft_cross_entropy(logits: Tensor, target: Tensor, bin_limit: float) -> Tensor:
    """Cross-entropy of two-hot logits (…, bins) against scalar targets (…) -> (…)."""
    return -(two_hot(target, logits.shape[-1], bin_limit) * logits.log_softmax(-1)).sum(-1)


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Log density of mean + noise · std under the unsquashed Gaussian, summed over actions. (…, A) -> (…)."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


class Learner:
    """The TD-MPC2 update: world-model loss, policy loss, target update. One call = one step of each optimiser."""

    def __init__(self, wm: WorldModel, config: TeacherConfig, ranks: Ranks = ALONE):
        self.wm, self.config, self.ranks = wm.train(), config, ranks
        self.scale = RunningScale(config.tau)
        heads = (wm.dynamics, wm.reward_head, wm.q_heads, *([wm.termination_head] * config.episodic))
        others = [p for part in heads for p in part.parameters()]
        encoder = list(wm.encoder.parameters())
        groups = [{"params": encoder, "lr": config.lr * config.encoder_lr_scale}, {"params": others}]
        self._model_parameters = encoder + others
        self._policy_parameters = list(wm.pi.parameters())
        self.optimiser = torch.optim.Adam(groups, lr=config.lr, fused=True)
        self.policy_optimiser = torch.optim.Adam(self._policy_parameters, lr=config.lr, eps=1e-5, fused=True)
        self._model_loss, self._policy_terms = self.model_loss, self.policy_terms
        if config.compile and resolve_mode("auto", wm.device, "learner") != "eager":
            # torch 2.13's pattern matcher fails on this update, and its own random numbers are slow on a CPU.
            options = {"pattern_matcher": False, "fallback_random": True}
            self._model_loss = Compiled(self.model_loss, "learner", options)
            self._policy_terms = Compiled(self.policy_terms, "learner", options)
        self._model_loss = ranks.averaged(self._model_loss, wm, self._model_parameters)
        self._policy_terms = ranks.averaged(self._policy_terms, wm, self._policy_parameters)

    def draw_heads(self) -> Tensor:
        """The two Q heads of one estimate."""
        return torch.randperm(self.wm.config.num_q)[:2].to(self.wm.device)

    def model_loss(self, batch: Batch, noise: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Consistency, reward, value (and termination) loss. noise (H, B, A) for the targets' actions, heads (2,).

        Decisions that were not played count as zero. Returns the loss, the rolled latents (H+1, B, L) and the parts.
        """
        c, wm = self.config, self.wm
        horizon = len(batch.actions)
        weight = c.rho ** torch.arange(horizon, device=noise.device, dtype=noise.dtype)  # (H,)
        with torch.no_grad():
            next_z = wm.encode(batch.obs[1:])  # (H, B, L)
            next_action = wm.policy_sample(next_z, noise)
            target_q = wm.q(next_z, next_action, target=True, heads=heads).amin(0)
            if c.episodic:
                target_q = (1 - batch.terminated) * target_q
            td_target = batch.rewards + wm.config.discount * target_q  # (H, B)
        latents = [wm.encode(batch.obs[0])]
        for t in range(horizon):
            latents.append(wm.next(latents[-1], batch.actions[t]))
        z = torch.stack(latents)  # (H+1, B, L)
        limit = wm.config.bin_limit
        error = (z[1:] - next_z).square()
        reward = soft_cross_entropy(wm.reward_logits(z[:-1], batch.actions), batch.rewards, limit)
        value = soft_cross_entropy(wm.q_logits(z[:-1], batch.actions), td_target.expand(wm.config.num_q, -1, -1), limit)
        if c.episodic:
            error, reward, value = error * batch.played.unsqueeze(-1), reward * batch.played, value * batch.played
        consistency = (weight * error.mean((1, 2))).mean()
        reward = (weight * reward.mean(1)).mean()
        value = (weight * value.mean((0, 2))).mean()
        loss = c.consistency_coef * consistency + c.reward_coef * reward + c.value_coef * value
        parts = {"consistency": consistency, "reward": reward, "value": value}
        if c.episodic:
            logit = wm.termination_logit(z[1:])
            termination = F.binary_cross_entropy_with_logits(logit, batch.terminated, batch.played)
            loss, parts["termination"] = loss + c.termination_coef * termination, termination
        return loss, z.detach(), parts

    def policy_terms(self, z: Tensor, noise: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability and Q of the policy's sampled action on latents z (H+1, B, L), both (H+1, B)."""
        wm = self.wm
        mean, log_std = wm.policy_parameters(z)
        action = (mean + noise * log_std.exp()).tanh()
        # Official entropy: the Gaussian part counted once per action dimension, then the squashing correction.
        log_prob = gaussian_log_prob(noise, log_std) * action.shape[-1]
        log_prob = log_prob - (F.relu(1 - action.square()) + 1e-6).log().sum(-1)
        return log_prob, wm.q(z, action, heads=heads).mean(0)

    def state_dict(self) -> dict:
        """Everything a resumed run needs beside the weights, as tensors and plain values."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "scale": self.scale.value,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.policy_optimiser.load_state_dict(state["policy_optimiser"])
        self.scale.value = state["scale"]

    def update(self, *batches: Batch) -> dict[str, float]:
        """One step of the model and of the policy; returns the losses.

        Several batches are micro-batches of one step: their gradients are averaged, and one of them at a time is in
        memory with its graph of the model loss. Losses are means over this rank's batches.
        """
        wm, c, count = self.wm, self.config, len(batches)
        self.optimiser.zero_grad(set_to_none=True)
        latents, sums = [], {}
        for i, batch in enumerate(batches):
            with accumulating(self._model_loss, last=i == count - 1):
                loss, z, parts = self._model_loss(batch, self._noise(batch.actions), self.draw_heads())
                (loss / count).backward()
            latents.append(z)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0) + value.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._model_parameters, c.grad_clip)
        self.optimiser.step()
        increment_version(self._model_parameters)  # fused Adam does not, and a planner looks at it

        policy_loss = self.update_policy(latents, [batch.played for batch in batches] if c.episodic else None)
        wm.update_target(c.tau)
        means = {name: value.item() / count for name, value in sums.items()}
        return means | {"policy_loss": policy_loss, "grad_norm": norm.item()}

    def update_policy(self, latents: list[Tensor], played: list[Tensor] | None = None) -> float:
        """One step of the policy alone, at the latents (T, B, L) of every micro-batch; returns its loss.

        Latents that follow decisions which were not `played` (T−1, B) count as zero: nothing was learnt there.
        """
        self.wm.q_heads.requires_grad_(False)  # it sees Q as a fixed function: its gradient may not move the heads
        loss = self._policy_loss(latents, played)
        self.policy_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._policy_parameters, self.config.grad_clip)
        self.policy_optimiser.step()
        increment_version(self._policy_parameters)
        self.wm.q_heads.requires_grad_(True)
        return loss.item()

    def _noise(self, like: Tensor) -> Tensor:
        """Standard normal noise for the policy's actions at `like` (T, B, …) -> (T, B, A)."""
        return torch.randn(*like.shape[:2], self.wm.action_dim, device=self.wm.device)

    def _policy_loss(self, latents: list[Tensor], played: list[Tensor] | None = None) -> Tensor:
        """Policy loss at the latents (H+1, B, L) of every micro-batch; moves the running scale once.

        The scale is that of all micro-batches of all ranks, and needed for each of them: so all graphs are held, and
        backpropagated together. They are small beside those of the model loss.
        """
        terms = []
        for i, z in enumerate(latents):
            with accumulating(self._policy_terms, last=i == len(latents) - 1):
                terms.append(self._policy_terms(z, self._noise(z), self.draw_heads()))
        self.scale.update(self.ranks.concatenated(torch.cat([q[0].detach() for _, q in terms])))
        c, z = self.config, latents[0]
        weight = c.rho ** torch.arange(len(z), device=z.device, dtype=z.dtype)
        losses = [c.entropy_coef * log_prob - q / self.scale.value for log_prob, q in terms]  # (T, B) each
        if played is not None:
            losses = [x * torch.cat([torch.ones_like(p[:1]), p]) for x, p in zip(losses, played, strict=True)]
        return sum((weight * loss.mean(1)).mean() for loss in losses) / len(losses)
