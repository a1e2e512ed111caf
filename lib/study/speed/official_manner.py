"""The yardstick: the same planner and the same update, in the manner of the official TD-MPC2 code.

    twin = OfficialPlanner(world_model, PlannerConfig.standard(action_dim))
    actions, mean, std = twin(z, warm_start)            # (B, L), (B, H, A) -> three times (B, H, A)
    learner = OfficialLearner(world_model, TeacherConfig())

Written anew after the official code (github.com/nicklashansen/tdmpc2), in its manner: torch's own layers, Mish and
softmax; a Q ensemble by `vmap` that evaluates all heads and then picks two; every sample rolled from a repeated z_0 in
every iteration; no compilation unless asked for. The weights are the given model's own tensors. Given the same noise,
results equal `lib.planner.MPPI`'s and `lib.teachers.learner.Learner`'s (tests), so that a ratio of times compares two
ways to compute one thing. Multi-task weights arrive bound to a task (see `lib.world_model`): their padding is kept, a
batch of several tasks is not supported. Only torch is needed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.config import PlannerConfig
from lib.planner import PlanNoise
from lib.teachers.config import TeacherConfig
from lib.teachers.replay import Batch
from lib.world_model import NormedLinear, QEnsemble, WorldModel, symexp, symlog

# ------------------------------------------------------------------------------------------------------------- scalars


def two_hot(x: Tensor, num_bins: int, limit: float) -> Tensor:
    """Scalars (N, 1) to soft two-hot rows (N, num_bins), by two scatters."""
    width = 2 * limit / (num_bins - 1)
    x = torch.clamp(symlog(x), -limit, limit).squeeze(1)
    index = torch.floor((x + limit) / width)
    offset = ((x + limit) / width - index).unsqueeze(-1)
    index = index.long().unsqueeze(1)
    rows = torch.zeros(x.shape[0], num_bins, device=x.device, dtype=x.dtype)
    return rows.scatter(1, index, 1 - offset).scatter(1, (index + 1) % num_bins, offset)


def soft_cross_entropy(logits: Tensor, target: Tensor, limit: float) -> Tensor:
    """Logits (N, bins), targets (N, 1) -> (N, 1)."""
    return -(two_hot(target, logits.shape[-1], limit) * F.log_softmax(logits, -1)).sum(-1, keepdim=True)


# -------------------------------------------------------------------------------------------------------------- layers


class SimNorm(nn.Module):
    """Softmax over groups of features."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        return F.softmax(x.view(*shape[:-1], -1, self.group), -1).view(shape)


def network(layers: nn.Sequential) -> nn.Sequential:
    """The official layout of one of our networks: Linear, LayerNorm, activation; the last layer may be plain."""
    made = []
    for layer in layers:
        made.append(nn.Linear(layer.in_features, layer.out_features, device="meta"))
        made[-1].weight, made[-1].bias = layer.weight, layer.bias  # the tensors themselves
        if isinstance(layer, NormedLinear):
            made += [layer.ln, nn.Mish() if layer.activation == "mish" else SimNorm(layer.group)]
    return nn.Sequential(*made)


class Ensemble:
    """K heads with stacked parameters, evaluated by `vmap` over one head's layers."""

    def __init__(self, heads: QEnsemble):
        modules, self.parameters = [], {}
        for layer in heads.layers:
            _, out_dim, in_dim = layer.weight.shape
            made = [(nn.Linear(in_dim, out_dim, device="meta"), {"weight": layer.weight, "bias": layer.bias})]
            if not layer.final:
                norm = {"weight": layer.ln_weight, "bias": layer.ln_bias}
                made += [(nn.Dropout(layer.dropout), {})] if layer.dropout else []
                made += [(nn.LayerNorm(out_dim, device="meta"), norm), (nn.Mish(), {})]
            for module, tensors in made:
                self.parameters |= {f"{len(modules)}.{name}": tensor for name, tensor in tensors.items()}
                modules.append(module)
        self.head = nn.Sequential(*modules)

    def __call__(self, x: Tensor, detach: bool = False, training: bool = False) -> Tensor:
        """x (…, in) -> logits of all heads (K, …, num_bins)."""
        self.head.train(training)
        parameters = {k: p.detach() for k, p in self.parameters.items()} if detach else self.parameters
        one = torch.vmap(lambda p, x: functional_call(self.head, p, (x,)), (0, None), randomness="different")
        return one(parameters, x)


class OfficialNetworks:
    """The world model's networks over the same tensors. Latents z (…, L), actions a (…, A)."""

    def __init__(self, wm: WorldModel):
        c = self.config = wm.config
        self.encoder, self.dynamics, self.reward_head, self.pi_head = (
            network(part) for part in (wm.encoder, wm.dynamics, wm.reward_head, wm.pi)
        )
        self.q_heads, self.target_q_heads = Ensemble(wm.q_heads), Ensemble(wm.target_q_heads)
        self.bins = torch.linspace(-c.bin_limit, c.bin_limit, c.num_bins, device=wm.device)
        self.training = False  # the official code plans in eval mode: only an update drops out

    def expectation(self, logits: Tensor) -> Tensor:
        """Two-hot logits (…, num_bins) to scalars (…, 1)."""
        return symexp(torch.sum(F.softmax(logits, -1) * self.bins, -1, keepdim=True))

    def _joined(self, z: Tensor, a: Tensor) -> Tensor:
        if self.config.action_padding:
            a = F.pad(a, (0, self.config.action_padding))
        return torch.cat([z, a], -1)

    def encode(self, obs: Tensor) -> Tensor:
        """Native observations (…, obs_dim) -> (…, L)."""
        return self.encoder(F.pad(obs, (0, self.config.obs_padding)) if self.config.obs_padding else obs)

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        return self.dynamics(self._joined(z, a))

    def reward(self, z: Tensor, a: Tensor) -> Tensor:
        """-> logits (…, num_bins)."""
        return self.reward_head(self._joined(z, a))

    def pi(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squashed mean and sample (…, A), and the sample's scaled log probability (…, 1): always all three."""
        mean, log_std = self.pi_head(z).chunk(2, -1)
        low, high = self.config.log_std_min, self.config.log_std_max
        log_std = low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)
        log_prob = (-0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
        log_prob = log_prob * noise.shape[-1]
        action = mean + noise * log_std.exp()
        mean, action = torch.tanh(mean), torch.tanh(action)
        log_prob = log_prob - torch.log(F.relu(1 - action.pow(2)) + 1e-6).sum(-1, keepdim=True)
        return mean, action, log_prob

    def q_logits(self, z: Tensor, a: Tensor, target: bool = False, detach: bool = False) -> Tensor:
        """-> logits of all heads (K, …, num_bins)."""
        heads = self.target_q_heads if target else self.q_heads
        return heads(self._joined(z, a), detach, self.training and not target)

    def q(self, z: Tensor, a: Tensor, heads: Tensor, how: str = "avg", **options: bool) -> Tensor:
        """Mean ("avg") or minimum ("min") of two heads (2,), after all were evaluated -> (…, 1)."""
        first, second = self.expectation(self.q_logits(z, a, **options)[heads])
        return torch.min(first, second) if how == "min" else (first + second) / 2


# ------------------------------------------------------------------------------------------------------------- planner


class OfficialPlanner:
    """MPPI in the official manner, for B rows of N samples flattened into one batch. `compile` as it does on a GPU."""

    def __init__(self, wm: WorldModel, config: PlannerConfig | None = None, compile: bool = False):
        self.wm, self.net = wm, OfficialNetworks(wm)
        self.config = config or PlannerConfig.standard(wm.action_dim)
        if compile:
            self.plan = torch.compile(self.plan, mode="reduce-overhead", dynamic=False)

    @torch.no_grad()
    def __call__(
        self, z: Tensor, warm_start: Tensor | None = None, noise: PlanNoise | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, L), warm_start (B, H, A) -> the actions to execute, mean and std, each (B, H, A).

        Without `noise` (see `lib.planner.PlanNoise`) the draws are made on the way from torch's global stream.
        """
        return self.plan(z, warm_start, noise)

    def plan(self, z: Tensor, warm_start: Tensor | None, noise: PlanNoise | None) -> tuple[Tensor, Tensor, Tensor]:
        """What `__call__` does without gradients. Inside, time comes first."""
        c, net = self.config, self.net
        (batch, _), a_dim, rest = z.shape, self.wm.action_dim, c.samples - c.policy_samples
        draw = torch.randn if noise is None else None
        actions = torch.empty(c.horizon, batch, c.samples, a_dim, device=z.device)

        # Policy trajectories.
        if c.policy_samples:
            _z = z.unsqueeze(1).repeat(1, c.policy_samples, 1).flatten(0, 1)  # (B P, L)
            for t in range(c.horizon):
                eps = draw(len(_z), a_dim, device=z.device) if draw else noise.prior[:, t].flatten(0, 1)
                action = net.pi(_z, eps)[1]
                actions[t, :, : c.policy_samples] = action.view(batch, -1, a_dim)
                if t < c.horizon - 1:
                    _z = net.next(_z, action)

        z = z.unsqueeze(1).repeat(1, c.samples, 1).flatten(0, 1)  # (B N, L)
        mean = torch.zeros(c.horizon, batch, a_dim, device=z.device)
        if warm_start is not None:
            mean = mean + warm_start.transpose(0, 1)
        std = torch.full_like(mean, c.max_std)
        for i in range(c.iterations):
            shape = c.horizon, batch, rest, a_dim
            eps = draw(*shape, device=z.device) if draw else noise.samples[i].transpose(0, 1)
            actions[:, :, c.policy_samples :] = (mean.unsqueeze(2) + std.unsqueeze(2) * eps).clamp(-1, 1)
            last_eps = draw(len(z), a_dim, device=z.device) if draw else noise.terminal[i].flatten(0, 1)
            heads = torch.randperm(net.config.num_q, device=z.device)[:2] if draw else noise.heads[i]

            value = self._estimate_value(z, actions.flatten(1, 2), last_eps, heads).nan_to_num(0)  # (B N, 1)
            elite_value, elite = torch.topk(value.view(batch, c.samples), c.elites, dim=1)  # (B, E)
            index = elite.view(1, batch, c.elites, 1).expand(c.horizon, -1, -1, a_dim)
            elite_actions = torch.gather(actions, 2, index)  # (H, B, E, A)

            score = torch.exp(c.temperature * (elite_value - elite_value.max(1, keepdim=True).values))
            score = (score / score.sum(1, keepdim=True)).unsqueeze(-1)  # (B, E, 1)
            total = score.sum(1) + 1e-9
            mean = (score * elite_actions).sum(2) / total
            std = ((score * (elite_actions - mean.unsqueeze(2)) ** 2).sum(2) / total).sqrt()
            std = std.clamp(c.min_std, c.max_std)

        if c.action_selection == "mean":
            chosen = mean.clamp(-1, 1)
        else:
            gumbel = -torch.empty_like(score).exponential_().log() if draw else noise.choice.unsqueeze(-1)
            pick = (score.log() + gumbel).argmax(1)  # (B, 1)
            chosen = elite_actions[:, torch.arange(batch, device=z.device), pick.squeeze(-1)]
        return tuple(x.transpose(0, 1) for x in (chosen, mean, std))

    def _estimate_value(self, z: Tensor, actions: Tensor, noise: Tensor, heads: Tensor) -> Tensor:
        """Return of every trajectory from the start: z (B N, L), actions (H, B N, A) -> (B N, 1)."""
        total, discount = 0, 1
        for t in range(len(actions)):
            reward = self.net.expectation(self.net.reward(z, actions[t]))
            z = self.net.next(z, actions[t])
            total = total + discount * reward
            discount = discount * self.net.config.discount
        return total + discount * self.net.q(z, self.net.pi(z, noise)[1], heads)


# ------------------------------------------------------------------------------------------------------------- learner


class OfficialLearner:
    """The TD-MPC2 update in the official manner: torch's own Adam and losses, loops over time and heads, eager."""

    def __init__(self, wm: WorldModel, config: TeacherConfig):
        self.wm, self.config, self.net = wm.train(), config, OfficialNetworks(wm)
        self.scale = torch.ones((), device=wm.device)
        parts = (wm.encoder, wm.dynamics, wm.reward_head, wm.q_heads)
        groups = [{"params": list(part.parameters())} for part in parts]
        groups[0]["lr"] = config.lr * config.encoder_lr_scale
        self._model_parameters = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.Adam(groups, lr=config.lr)
        self.policy_optimiser = torch.optim.Adam(wm.pi.parameters(), lr=config.lr, eps=1e-5)

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the model and of the policy, with `Learner.update`'s draws in its order; returns the losses."""
        c, net, limit = self.config, self.net, self.wm.config.bin_limit
        net.training = True
        horizon, size, a_dim = batch.actions.shape
        noise = torch.randn(horizon, size, a_dim, device=self.wm.device)
        heads = torch.randperm(self.wm.config.num_q)[:2]
        with torch.no_grad():
            next_z = net.encode(batch.obs[1:])
            next_q = net.q(next_z, net.pi(next_z, noise)[1], heads, "min", target=True)
            td_target = batch.rewards.unsqueeze(-1) + self.wm.config.discount * next_q  # (H, B, 1)

        z, consistency = [net.encode(batch.obs[0])], 0
        for t in range(horizon):
            z.append(net.next(z[t], batch.actions[t]))
            consistency = consistency + F.mse_loss(z[t + 1], next_z[t]) * c.rho**t
        z = torch.stack(z)  # (H+1, B, L)
        q_logits = net.q_logits(z[:-1], batch.actions)  # (K, H, B, bins)
        reward_logits, reward, value = net.reward(z[:-1], batch.actions), 0, 0
        for t in range(horizon):
            target = batch.rewards[t].unsqueeze(-1)
            reward = reward + soft_cross_entropy(reward_logits[t], target, limit).mean() * c.rho**t
            for head in q_logits[:, t]:
                value = value + soft_cross_entropy(head, td_target[t], limit).mean() * c.rho**t
        consistency, reward, value = consistency / horizon, reward / horizon, value / (horizon * len(q_logits))
        loss = c.consistency_coef * consistency + c.reward_coef * reward + c.value_coef * value
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model_parameters, c.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

        policy_loss = self._update_policy(z.detach())
        with torch.no_grad():
            for target, live in zip(self.wm.target_q_heads.parameters(), self.wm.q_heads.parameters(), strict=True):
                target.lerp_(live, c.tau)
        net.training = False
        parts = {"loss": loss, "policy_loss": policy_loss, "grad_norm": norm}
        parts |= {"consistency": consistency, "reward": reward, "value": value}
        return {k: v.item() for k, v in parts.items()}

    def _update_policy(self, z: Tensor) -> Tensor:
        """One step of the policy on latents z (H+1, B, L); returns the loss."""
        c, net = self.config, self.net
        noise = torch.randn(*z.shape[:2], self.wm.action_dim, device=z.device)
        heads = torch.randperm(self.wm.config.num_q)[:2]
        _, action, log_prob = net.pi(z, noise)
        q = net.q(z, action, heads, detach=True)
        low, high = torch.quantile(q[0].detach(), torch.tensor([0.05, 0.95], device=z.device, dtype=z.dtype))
        self.scale = self.scale + c.tau * ((high - low).clamp(min=1.0) - self.scale)
        rho = c.rho ** torch.arange(len(z), device=z.device)
        loss = ((c.entropy_coef * log_prob - q / self.scale).mean((1, 2)) * rho).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.wm.pi.parameters(), c.grad_clip)
        self.policy_optimiser.step()
        self.policy_optimiser.zero_grad(set_to_none=True)
        return loss.detach()
