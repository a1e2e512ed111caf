"""The TD-MPC2 world model: encoder, latent dynamics, reward, Q ensemble, policy prior (Hansen et al., 2024, §3.1).

Only torch is needed. Shapes: B a batch (any leading dimensions where "…" is written), L the latent width, A the
action dimensions, K the number of Q heads. Parameter names follow the official code without its bookkeeping, so that
`lib.weights.official` can map official weights one to one. A multi-task model is bound to a task when it is loaded: the
task's embedding is then part of the biases, and what is left is a single-task model with padded inputs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.config import WorldModelConfig

# ------------------------------------------------------------------------------------------------- small functions


class _Mish(torch.autograd.Function):
    """Mish whose gradient is written out: autograd's own would be 0 · ∞ where exp(x) overflows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        e = _bounded_exp(x)
        n = e * (e + 2.0)
        return x * (n / (n + 2.0))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        e = _bounded_exp(x)
        n = e * (e + 2.0)
        d = 1.0 / (n + 2.0)
        return gradient * (n * d + 4.0 * x * (e * d) * ((e + 1.0) * d))


def _bounded_exp(x: Tensor) -> Tensor:
    """exp(x), bounded where Mish is x in float32. Bounding x itself would take twice the time."""
    return x.exp().clamp(max=1e9)


def mish(x: Tensor) -> Tensor:
    """x · tanh(softplus(x)) with one `exp`: tanh(log(1 + e)) = e(e + 2) / (e(e + 2) + 2) for e = exp(x)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _Mish.apply(x)
    e = _bounded_exp(x)
    n = (e + 2.0).mul_(e)
    return n.div_(torch.add(n, 2.0, out=e)).mul_(x)  # in place: new memory costs an uncompiled solve more than the sums


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over the last dimension. x (…, M); weight, bias broadcast with it."""
    if torch.compiler.is_compiling():  # plain sums are fused with what follows; the compiler's Welford is slower
        x = x - x.mean(-1, keepdim=True)
        x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    elif weight.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias)
    else:
        x = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(bias, x, weight)


def simnorm(x: Tensor, group: int = 8) -> Tensor:
    """Softmax over groups of `group` features (SimNorm, TD-MPC2 section 3.1). (…, L) -> (…, L)."""
    shape = x.shape
    x = x.view(*shape[:-1], shape[-1] // group, group)
    e = (x - x.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).view(shape)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero a share p of x and scale the rest by 1 / (1 − p); p is rounded to a multiple of 2⁻¹⁶.

    Sixteen random bits decide on an element: on a CPU, drawing Bernoulli variables would be a tenth of a training step.
    """
    dropped = round(p * 2**16)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * keep * (2**16 / (2**16 - dropped))


def symlog(x: Tensor) -> Tensor:
    """sign(x) · log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def two_hot(x: Tensor, num_bins: int = 101, limit: float = 10.0) -> Tensor:
    """Soft two-hot encoding of scalars in symlog space. (…) -> (…, num_bins), rows sum to 1."""
    position = (symlog(x).clamp(-limit, limit) + limit) / (2 * limit / (num_bins - 1))
    bins = torch.arange(num_bins, dtype=x.dtype, device=x.device)
    return (1 - (position.unsqueeze(-1) - bins).abs()).clamp(min=0)  # a triangle over the two nearest bins


def two_hot_expectation(logits: Tensor, limit: float = 10.0) -> Tensor:
    """Expected value of two-hot logits, back from symlog space. (…, num_bins) -> (…)."""
    bins = torch.linspace(-limit, limit, logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return symexp(logits.softmax(-1) @ bins)


def total_variation(z: Tensor, other: Tensor, group: int = 8) -> Tensor:
    """Mean total-variation distance between the simplices of two SimNorm latents, in [0, 1]. (…, L) -> (…)."""
    return (z - other).abs().sum(-1) / (2 * (z.shape[-1] // group))


# ---------------------------------------------------------------------------------------------------------- layers


class NormedLinear(nn.Linear):
    """Linear -> LayerNorm -> activation ("mish" or "simnorm")."""

    def __init__(self, in_dim: int, out_dim: int, activation: str = "mish", group: int = 8):
        super().__init__(in_dim, out_dim)
        self.ln = nn.LayerNorm(out_dim)
        self.activation, self.group = activation, group

    def forward(self, x: Tensor) -> Tensor:
        x = layer_norm(F.linear(x, self.weight, self.bias), self.ln.weight, self.ln.bias)
        return mish(x) if self.activation == "mish" else simnorm(x, self.group)


def mlp(dims: list[int], final: str | None = None, group: int = 8) -> nn.Sequential:
    """Hidden layers with LayerNorm and Mish; the last layer plain, or with LayerNorm and SimNorm."""
    layers = [NormedLinear(a, b) for a, b in zip(dims[:-2], dims[1:-1], strict=True)]
    last = NormedLinear(dims[-2], dims[-1], final, group) if final else nn.Linear(dims[-2], dims[-1])
    return nn.Sequential(*layers, last)


class EnsembleLinear(nn.Module):
    """K independent linear layers, with LayerNorm and Mish unless `final`. Dropout acts before the norm (official)."""

    def __init__(self, heads: int, in_dim: int, out_dim: int, final: bool = False, dropout: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(heads, out_dim))
        if not final:
            self.ln_weight = nn.Parameter(torch.ones(heads, out_dim))
            self.ln_bias = nn.Parameter(torch.zeros(heads, out_dim))
        self.final, self.dropout = final, dropout

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """x (N, in) or (K, N, in) -> (K, N, out); `heads` (k,) evaluates only those, on (N, in) or (k, N, in)."""

        def pick(p):
            return p if heads is None else p[heads]

        weight, bias = pick(self.weight), pick(self.bias)
        if x.dim() == 2:
            x = x.expand(weight.shape[0], *x.shape)
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))  # (k, N, out)
        if self.final:
            return x
        if self.training and self.dropout:
            x = dropout(x, self.dropout)
        return mish(layer_norm(x, pick(self.ln_weight).unsqueeze(1), pick(self.ln_bias).unsqueeze(1)))


class QEnsemble(nn.Module):
    """K Q functions as registered parameters with a leading head dimension; returns two-hot logits."""

    def __init__(self, heads: int, in_dim: int, hidden: int, num_bins: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                EnsembleLinear(heads, in_dim, hidden, dropout=dropout),  # official: dropout on the first layer only
                EnsembleLinear(heads, hidden, hidden),
                EnsembleLinear(heads, hidden, num_bins, final=True),
            ]
        )

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """x (N, in) -> logits (k, N, num_bins)."""
        for layer in self.layers:
            x = layer(x, heads)
        return x


# ----------------------------------------------------------------------------------------------------- world model


class WorldModel(nn.Module):
    """TD-MPC2's networks: five, and a sixth where episodes can end early. Float32 unless the module was converted.

    A is the task's own action dimension everywhere. Weights that were trained on many tasks have wider inputs: they
    take native observations and actions, or ones already padded. `task` is the task they are bound to, if known.
    """

    def __init__(self, config: WorldModelConfig, task: str | None = None):
        super().__init__()
        c = self.config = config
        self.task = task
        za_dim, hidden = c.latent_dim + c.action_dim + c.action_padding, [c.mlp_dim, c.mlp_dim]
        encoder = [c.obs_dim + c.obs_padding, *[c.enc_dim] * max(c.num_enc_layers - 1, 1), c.latent_dim]
        self.encoder = mlp(encoder, "simnorm", c.simnorm_dim)
        self.dynamics = mlp([za_dim, *hidden, c.latent_dim], "simnorm", c.simnorm_dim)
        self.reward_head = mlp([za_dim, *hidden, c.num_bins])
        self.pi = mlp([c.latent_dim, *hidden, 2 * c.action_dim])
        self.q_heads = QEnsemble(c.num_q, za_dim, c.mlp_dim, c.num_bins, c.q_dropout)
        self.termination_head = mlp([c.latent_dim, *hidden, 1]) if c.episodic else None
        self.apply(_official_init)
        for last in (self.reward_head[-1].weight, self.q_heads.layers[-1].weight):
            nn.init.zeros_(last)
        self.target_q_heads = copy.deepcopy(self.q_heads).requires_grad_(False)

    @classmethod
    def from_size(cls, size: str, obs_dim: int, action_dim: int, **changes) -> WorldModel:
        """A freshly initialised single-task model of a named size; `ConfigError` for an unknown size."""
        return cls(WorldModelConfig.from_size(size, obs_dim, action_dim, **changes))

    @property
    def device(self) -> torch.device:
        return self.pi[-1].weight.device

    @property
    def action_dim(self) -> int:
        """A, the task's own action dimensions."""
        return self.config.action_dim

    @property
    def native_obs_dim(self) -> int:
        """The task's own observation dimensions."""
        return self.config.obs_dim

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    def train(self, mode: bool = True) -> WorldModel:
        super().train(mode)
        self.target_q_heads.train(False)  # targets are never dropped out
        return self

    def _with_action(self, z: Tensor, a: Tensor) -> Tensor:
        """What dynamics, reward and Q read: latent, action, and zeros for the padding of multi-task weights."""
        return torch.cat([z, _padded(a, self.config.action_dim, self.config.action_padding, "action")], -1)

    def encode(self, obs: Tensor) -> Tensor:
        """Observations (…, obs_dim), native or already padded, to latents (…, L). `ValueError` for any other width."""
        return self.encoder(_padded(obs, self.config.obs_dim, self.config.obs_padding, "observation"))

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """Latent dynamics d(z, a). (…, L), (…, A) -> (…, L)."""
        return self.dynamics(self._with_action(z, a))

    def reward_logits(self, z: Tensor, a: Tensor) -> Tensor:
        """(…, L), (…, A) -> (…, num_bins)."""
        return self.reward_head(self._with_action(z, a))

    def reward(self, z: Tensor, a: Tensor) -> Tensor:
        """Expected reward of one decision. (…, L), (…, A) -> (…)."""
        return two_hot_expectation(self.reward_logits(z, a), self.config.bin_limit)

    def q_logits(self, z: Tensor, a: Tensor, target: bool = False, heads: Tensor | None = None) -> Tensor:
        """(…, L), (…, A) -> (k, …, num_bins); `heads` (k,) evaluates only the drawn ones."""
        x = self._with_action(z, a)
        logits = (self.target_q_heads if target else self.q_heads)(x.flatten(0, -2), heads)
        return logits.view(logits.shape[0], *x.shape[:-1], -1)

    def q(self, z: Tensor, a: Tensor, target: bool = False, heads: Tensor | None = None) -> Tensor:
        """Expected values of the Q heads. (…, L), (…, A) -> (num_q, …)."""
        return two_hot_expectation(self.q_logits(z, a, target, heads), self.config.bin_limit)

    def termination_logit(self, z: Tensor) -> Tensor:
        """Log odds that the episode has ended early at z (…, L) -> (…), of a model with a termination head."""
        return self.termination_head(z).squeeze(-1)

    def termination(self, z: Tensor) -> Tensor | None:
        """Probability that the episode has ended early at z (…, L) -> (…); None without a termination head."""
        return self.termination_logit(z).sigmoid() if self.config.episodic else None

    def policy_parameters(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before squashing and log standard deviation, both (…, A)."""
        mean, log_std = self.pi(z).chunk(2, -1)
        low, high = self.config.log_std_min, self.config.log_std_max
        return mean, low + 0.5 * (high - low) * (log_std.tanh() + 1)

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Policy prior: mean (…, A) squashed to [−1, 1], and log standard deviation (…, A)."""
        mean, log_std = self.policy_parameters(z)
        return mean.tanh(), log_std

    def policy_sample(self, z: Tensor, noise: Tensor) -> Tensor:
        """Squashed Gaussian sample for standard normal `noise` (…, A)."""
        mean, log_std = self.policy_parameters(z)
        return (mean + noise * log_std.exp()).tanh()

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """Polyak step of the target heads towards the live heads."""
        torch._foreach_lerp_(list(self.target_q_heads.parameters()), list(self.q_heads.parameters()), tau)


def _official_init(module: nn.Module) -> None:
    """Truncated normal 0.02 weights, zero biases (official `init.py`)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, EnsembleLinear):
        for head in module.weight:
            nn.init.trunc_normal_(head, std=0.02)


def _padded(x: Tensor, native: int, padding: int, what: str) -> Tensor:
    """`x` (…, native) with `padding` zeros behind; an `x` that is already that wide is taken as it is."""
    if x.shape[-1] == native:
        return F.pad(x, (0, padding)) if padding else x
    if x.shape[-1] == native + padding:
        return x
    widths = f"{native} wide, or {native + padding} wide with padding" if padding else f"{native} wide"
    raise ValueError(f"this world model takes {what}s {widths}, got one of shape {tuple(x.shape)}.")
