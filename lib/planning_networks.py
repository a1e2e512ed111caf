"""The world model's networks as a planner runs them: the same functions in fewer and larger matrix products.

    networks = PlanningNetworks(wm, torch.float32)
    z = networks.enter(z0).unsqueeze(1)       # (B, 1, L): a latent that all samples of its row share
    reward, z = networks.step(z, actions)     # actions (B, N, A) -> (B, N), (B, N, L)

A shared latent's part of a first layer is computed once for all samples. Dynamics and reward read the same input, and
so do the Q heads that an estimate draws: their first layers are one wide product. Matrices are kept transposed, without
the columns of a multi-task model's padding, and with the bins padded to a width that vector units like. Inside, latents
hold the simplices' first entries, then their second, …: so a softmax over each simplex is plain vector arithmetic.
`enter` and `leave` convert. Only torch is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.world_model import WorldModel, layer_norm, mish, symexp

LANES = 16  # float32 numbers in an AVX-512 register; the bins are padded to a multiple


class PlanningNetworks:
    """Packed weights of a world model in one dtype. Sums, norms and values are float32 whatever the dtype."""

    def __init__(self, wm: WorldModel, dtype: torch.dtype = torch.float32):
        self._wm, self.dtype = wm, dtype
        c = wm.config
        self.group, self.low, self.high, self.num_q = c.simnorm_dim, c.log_std_min, c.log_std_max, c.num_q
        self.episodic = c.episodic
        self.order = torch.arange(c.latent_dim, device=wm.device).view(-1, self.group).t().flatten()
        self.inverse = self.order.argsort()
        used = [wm.encoder, wm.dynamics, wm.reward_head, wm.pi, wm.q_heads, *([wm.termination_head] * c.episodic)]
        self._places = [(m._parameters, name) for net in used for m in net.modules() for name in m._parameters]
        self._packed_from = None
        self.refresh()

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Pack the weights anew if they have changed since the last time; `ValueError` if one is not finite.

        Changes are seen by torch's own count of in-place writes and by the memory that a weight lives in, but not
        writes behind torch's back (`p.data.mul_()`, `p.numpy()`). They are packed into the same memory, which a
        captured CUDA graph goes on reading.
        """
        weights = [owner[name] for owner, name in self._places]
        now = [(p.data_ptr(), p._version) for p in weights]
        if now == self._packed_from:
            return
        finite = torch.stack(torch._foreach_norm(weights, torch.inf)).isfinite()
        if not finite.all():
            names = [name for name, p in self._wm.named_parameters() if not torch.isfinite(p).all()]
            raise ValueError(f"the world model's weights are not finite in {', '.join(names)}; no plan can be made.")
        for name, packed in self._pack().items():
            if (old := getattr(self, name, None)) is None:
                setattr(self, name, packed)
            else:
                old.copy_(packed)
        self._packed_from = now

    def _pack(self) -> dict[str, Tensor]:
        wm, c = self._wm, self._wm.config
        padding = -c.num_bins % LANES
        columns = torch.cat([self.order, torch.arange(c.latent_dim, c.latent_dim + c.action_dim, device=wm.device)])

        def matrix(weight: Tensor) -> Tensor:
            return weight.transpose(-1, -2).to(self.dtype, copy=True).contiguous()

        def bins(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            """The last layer of a two-hot head; padded bins have the logit −∞."""
            wide = torch.cat([weight, weight.new_zeros(*weight.shape[:-2], padding, weight.shape[-1])], -2)
            return matrix(wide), torch.cat([bias, bias.new_full((*bias.shape[:-1], padding), -torch.inf)], -1).float()

        def norm(*layers) -> Tensor:
            """Bias of the product, gain and bias of the norm, of layers that run side by side (3, layers, M)."""
            return torch.stack([torch.stack([n.bias, n.ln.weight, n.ln.bias]) for n in layers], 1).float()

        pair, pi, (first, middle, last) = (wm.dynamics, wm.reward_head), wm.pi, wm.q_heads.layers
        reward_out, reward_bias = bins(pair[1][2].weight, pair[1][2].bias)
        q_out, q_bias = bins(last.weight, last.bias)
        limits = torch.linspace(-c.bin_limit, c.bin_limit, c.num_bins, device=wm.device)
        end = wm.termination_head
        ending = {
            "end_in": matrix(end[0].weight[:, self.order]),
            "end_mid": matrix(end[1].weight),
            "end_out": matrix(end[2].weight),
            "end_norm_in": norm(end[0])[:, 0],
            "end_norm_mid": norm(end[1])[:, 0],
            "end_bias": end[2].bias.to(torch.float32, copy=True),
        } if c.episodic else {}  # fmt: skip
        return ending | {
            "bins": torch.cat([limits, limits.new_zeros(padding)]),
            "step_in": matrix(torch.cat([net[0].weight for net in pair])[:, columns]),  # (L + A, 2M)
            "step_mid": matrix(torch.stack([net[1].weight for net in pair])),  # (2, M, M)
            "step_norm_in": norm(*(net[0] for net in pair)),
            "step_norm_mid": norm(*(net[1] for net in pair)),
            "dynamics_out": matrix(pair[0][2].weight[self.order]),  # (M, L)
            "dynamics_norm": norm(pair[0][2])[:, 0, self.order],
            "reward_out": reward_out,  # (M, bins)
            "reward_bias": reward_bias,
            "pi_in": matrix(pi[0].weight[:, self.order]),
            "pi_mid": matrix(pi[1].weight),
            "pi_out": matrix(pi[2].weight),
            "pi_norm_in": norm(pi[0])[:, 0],
            "pi_norm_mid": norm(pi[1])[:, 0],
            "pi_bias": pi[2].bias.to(torch.float32, copy=True),
            "q_in": matrix(first.weight[..., columns]),  # (K, L + A, M)
            "q_mid": matrix(middle.weight),  # (K, M, M)
            "q_out": q_out,  # (K, M, bins)
            "q_norm_in": torch.stack([first.bias, first.ln_weight, first.ln_bias]).float(),  # (3, K, M)
            "q_norm_mid": torch.stack([middle.bias, middle.ln_weight, middle.ln_bias]).float(),
            "q_bias": q_bias,
        }

    # ------------------------------------------------------------------------------------------------- the functions

    def enter(self, z: Tensor) -> Tensor:
        """A world model's latents (…, L) in the order that is used here."""
        return z[..., self.order]

    def leave(self, z: Tensor) -> Tensor:
        """The inverse of `enter`."""
        return z[..., self.inverse]

    def step(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward (B, N) and next latent (B, N, L) of actions a (B, N, A) at z (B, N or 1, L)."""
        x = self._first(z, a, self.step_in).unflatten(-1, (2, -1))  # (B N, 2, M)
        x = _norm_mish(x, self.step_norm_in).to(self.dtype).transpose(0, 1).contiguous()
        x = _norm_mish(torch.bmm(x, self.step_mid), self.step_norm_mid.unsqueeze(2)).to(self.dtype)  # (2, B N, M)
        z = _norm(x[0] @ self.dynamics_out, self.dynamics_norm).unflatten(-1, (self.group, -1))
        e = (z - z.amax(1, keepdim=True)).exp()
        z = (e * (1 / e.sum(1, keepdim=True))).view(*a.shape[:-1], -1)
        return self._expectation((x[1] @ self.reward_out).float() + self.reward_bias).view(a.shape[:-1]), z

    def ends(self, z: Tensor) -> Tensor | None:
        """Whether the episode has likelier than not ended at z (B, N, L) -> (B, N); None without a termination head."""
        if not self.episodic:
            return None
        x = z.flatten(0, 1).to(self.dtype)
        x = _norm_mish(x @ self.end_in, self.end_norm_in).to(self.dtype)
        x = _norm_mish(x @ self.end_mid, self.end_norm_mid).to(self.dtype)
        return ((x @ self.end_out).float() + self.end_bias > 0).view(z.shape[:-1])

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before squashing and log standard deviation of the prior at z (B, N, L), both (B, N, A)."""
        x = z.flatten(0, 1).to(self.dtype)
        x = _norm_mish(x @ self.pi_in, self.pi_norm_in).to(self.dtype)
        x = _norm_mish(x @ self.pi_mid, self.pi_norm_mid).to(self.dtype)
        mean, log_std = ((x @ self.pi_out).float() + self.pi_bias).view(*z.shape[:-1], -1).chunk(2, -1)
        return mean, self.low + 0.5 * (self.high - self.low) * (log_std.tanh() + 1)

    def q(self, z: Tensor, a: Tensor, heads: Tensor | None) -> Tensor:
        """Mean over the Q heads (k,), None for all, of the value of actions a (B, N, A) at z (B, N, L) -> (B, N)."""
        every = heads is None or heads.shape[0] == self.num_q  # in any order: their mean is taken
        k = self.num_q if every else heads.shape[0]

        def drawn(packed: Tensor, dim: int = 0) -> Tensor:
            return packed if every else packed.index_select(dim, heads)

        x = self._first(z, a, drawn(self.q_in).transpose(0, 1).flatten(1)).unflatten(-1, (k, -1))  # (B N, k, M)
        x = _norm_mish(x, drawn(self.q_norm_in, 1)).to(self.dtype).transpose(0, 1).contiguous()
        x = _norm_mish(torch.bmm(x, drawn(self.q_mid)), drawn(self.q_norm_mid, 1).unsqueeze(2)).to(self.dtype)
        logits = torch.bmm(x, drawn(self.q_out)).float() + drawn(self.q_bias).unsqueeze(1)  # (k, B N, bins)
        return self._expectation(logits).mean(0).view(a.shape[:-1])

    def _first(self, z: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """[z, a] · weight as rows of B N; the part of a shared latent is one product for all its samples."""
        z, a = z.to(self.dtype), a.to(self.dtype)
        if z.shape[1] == a.shape[1]:
            return torch.cat([z, a], -1).flatten(0, 1) @ weight
        shared = z.flatten(0, 1) @ weight[: z.shape[-1]]  # (B, out)
        own = (a.flatten(0, 1) @ weight[z.shape[-1] :]).view(*a.shape[:-1], -1)
        return (own.float() + shared.float().unsqueeze(1)).flatten(0, 1)

    def _expectation(self, logits: Tensor) -> Tensor:
        e = (logits - logits.amax(-1, keepdim=True)).exp()
        return symexp((e * self.bins).sum(-1) / e.sum(-1))


def _norm(x: Tensor, norm: Tensor) -> Tensor:
    """Bias and layer norm in float32: x (…, M), norm (3, …, M)."""
    return layer_norm(x.float() + norm[0], norm[1], norm[2])


def _norm_mish(x: Tensor, norm: Tensor) -> Tensor:
    return mish(_norm(x, norm))
