"""Correctors: small networks that repair a planned action when the real latent has drifted from the predicted one.

    corrector = TwoTowerCorrector(latent_dim=128, action_dim=6)
    action = corrector(z_real, z_pred, a_plan, a_policy, depth)            # (B, A) in [−1, 1]

    corrector = TemporalCorrector(latent_dim=128, action_dim=6)            # reads the last `history_len` mismatches too
    history = appended(history, token(z_real, z_pred, a_plan, depth))      # (B, K, L + A + 1), at every decision
    action = corrector(z_real, z_pred, a_plan, a_policy, depth, history)

Every corrector is residual: what it adds to an action is zero until it is trained. The two-tower and the temporal
corrector start from the plan (arXiv:2512.17250 has both shapes; that the last layer starts at zero and the output is
clamped is ours). The state corrector must not know the plan, so it starts from the policy prior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.config import ConfigError
from lib.world_model import NormedLinear

MAX_DEPTH = 12  # depths are given to the networks as a fraction of this
DROPOUT = 0.3
DRIFT_SCALE = 10.0  # latents are simplices with entries around 1/8 and drifts of a few hundredths: bring them near 1


# --------------------------------------------------------------------------------------------------------- history


def token(z_real: Tensor, z_pred: Tensor, a_plan: Tensor, depth: Tensor) -> Tensor:
    """One mismatch token: scaled drift, planned action, depth as a fraction of `MAX_DEPTH`.

    z_real, z_pred (…, L); a_plan (…, A); depth (…) int, at least 1 -> (…, L + A + 1).
    """
    position = (depth.to(a_plan.dtype) / MAX_DEPTH).unsqueeze(-1)
    return torch.cat([DRIFT_SCALE * (z_real - z_pred), a_plan, position], -1)


def appended(history: Tensor, current: Tensor) -> Tensor:
    """The history (B, K, L + A + 1) with the token `current` (B, L + A + 1) as its last; the oldest one goes."""
    return torch.cat([history[:, 1:], current.unsqueeze(1)], 1)


def masked(history: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """The history with what is no token of the current plan set to zero, and where that is: padding (B, K) bool.

    history (B, K, L + A + 1), oldest first; depth (B,) int. A plan at depth k has the tokens of depths 1…k, so the last
    min(k, K) entries count and what is older is left over from another plan. A token of depth 0 is none either:
    that is how a state that was not recorded looks in the distillation set.
    """
    length = history.shape[1]
    age = torch.arange(length - 1, -1, -1, device=history.device)  # of each entry in decisions; the current one has 0
    padding = (age >= depth.unsqueeze(-1)) | (history[..., -1] == 0)
    return history.masked_fill(padding.unsqueeze(-1), 0.0), padding


# ------------------------------------------------------------------------------------------------------ correctors


class Corrector(nn.Module):
    """What all correctors share: their shape, and the zero-initialised, gated, bounded correction of an action.

    The correction is tanh(mix) · (policy − start) + gate · 2 tanh(update): towards the policy prior's action, and
    anywhere; any action can be reached from any other, and the result is clamped. Sets are small, and without dropout
    a corrector learns its training episodes by heart.
    """

    arch: str
    history_len = 0  # K, how many tokens are read; 0: no history is needed

    def __init__(self, latent_dim: int, action_dim: int, width: int):
        super().__init__()
        self.latent_dim, self.action_dim, self.width = latent_dim, action_dim, width
        self.update_head = nn.Linear(width, action_dim)
        self.mix_head = nn.Linear(width, action_dim)
        self.gate_head = nn.Linear(width, action_dim)
        self.dropout = nn.Dropout(DROPOUT)
        for head in (self.update_head, self.mix_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @property
    def shape(self) -> dict[str, int]:
        """The arguments that make a corrector of the same shape."""
        return {"latent_dim": self.latent_dim, "action_dim": self.action_dim, "width": self.width}

    def _corrected(self, start: Tensor, a_policy: Tensor, x: Tensor) -> Tensor:
        """The action `start` (B, A), repaired by what the heads read in x (B, width)."""
        action = start + self.mix_head(x).tanh() * (a_policy - start)
        action = action + self.gate_head(x).sigmoid() * 2.0 * self.update_head(x).tanh()
        bounded = action.clamp(-1, 1)
        if self.training:  # the gradient passes the clamp: else an action pushed past its bound could never come back
            return action + (bounded - action).detach()
        return bounded


class TwoTowerCorrector(Corrector):
    """Towers read both latents, their difference, and both actions with the depth; a gated head repairs the plan."""

    arch = "two_tower"

    def __init__(self, latent_dim: int, action_dim: int, width: int = 128):
        super().__init__(latent_dim, action_dim, width)
        self.real_tower = NormedLinear(latent_dim, width)
        self.predicted_tower = NormedLinear(latent_dim, width)
        self.drift_tower = NormedLinear(latent_dim, width)
        self.action_tower = NormedLinear(2 * action_dim + 1, width)
        self.trunk = nn.Sequential(
            self.dropout, NormedLinear(4 * width, 2 * width), self.dropout, NormedLinear(2 * width, width)
        )

    def forward(
        self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, a_policy: Tensor, depth: Tensor, history=None
    ) -> Tensor:
        """z_real, z_pred (B, L); a_plan, a_policy (B, A); depth (B,) -> corrected action (B, A) in [−1, 1]."""
        position = (depth.to(a_plan.dtype) / MAX_DEPTH).unsqueeze(-1)
        towers = [
            self.real_tower(z_real),
            self.predicted_tower(z_pred),
            self.drift_tower(DRIFT_SCALE * (z_real - z_pred)),
            self.action_tower(torch.cat([a_plan, a_policy, position], -1)),
        ]
        return self._corrected(a_plan, a_policy, self.trunk(torch.cat(towers, -1)))


class TemporalCorrector(Corrector):
    """A Transformer encoder over the last K mismatch tokens and one token of the state; the latter repairs the plan."""

    arch = "temporal"
    heads = 3  # odd: for an even number torch acts with a fused kernel that it does not train with, nor compile

    def __init__(self, latent_dim: int, action_dim: int, width: int = 96, history_len: int = 4):
        super().__init__(latent_dim, action_dim, width)
        if width % self.heads or history_len < 1:
            raise ConfigError(
                f"a temporal corrector needs a width that {self.heads} divides and a history_len of at least 1, "
                f"not {width} and {history_len}."
            )
        self.history_len = history_len
        self.token_tower = NormedLinear(latent_dim + action_dim + 1, width)
        self.real_tower = NormedLinear(latent_dim, width)
        self.predicted_tower = NormedLinear(latent_dim, width)
        self.action_tower = NormedLinear(2 * action_dim + 1, width)
        self.state_tower = NormedLinear(3 * width, width)
        self.age = nn.Parameter(0.02 * torch.randn(history_len, width))  # tells the tokens apart by how old they are
        layer = nn.TransformerEncoderLayer(
            width, self.heads, 2 * width, dropout=DROPOUT, activation="gelu", batch_first=True, norm_first=True
        )
        # Nested tensors depend on how many tokens are padding, which a CUDA graph cannot follow.
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), enable_nested_tensor=False)

    @property
    def shape(self) -> dict[str, int]:
        return super().shape | {"history_len": self.history_len}

    def forward(
        self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, a_policy: Tensor, depth: Tensor, history: Tensor
    ) -> Tensor:
        """z_real, z_pred (B, L); a_plan, a_policy (B, A); depth (B,); history (B, K, L + A + 1), whose last token is
        the current one -> corrected action (B, A) in [−1, 1]."""
        tokens, padding = masked(history, depth)
        position = (depth.to(a_plan.dtype) / MAX_DEPTH).unsqueeze(-1)
        actions = self.action_tower(torch.cat([a_plan, a_policy, position], -1))
        towers = torch.cat([self.real_tower(z_real), self.predicted_tower(z_pred), actions], -1)
        state = self.state_tower(self.dropout(towers)).unsqueeze(1)
        x = torch.cat([self.token_tower(tokens) + self.age, state], 1)  # (B, K + 1, width)
        padding = torch.cat([padding, torch.zeros_like(padding[:, :1])], 1)  # the state is always there
        return self._corrected(a_plan, a_policy, self.encoder(self.dropout(x), src_key_padding_mask=padding)[:, -1])


class StateCorrector(Corrector):
    """Ablation: sees the real latent alone, so the plan cannot matter; it repairs the policy prior's mean instead."""

    arch = "state"

    def __init__(self, latent_dim: int, action_dim: int, width: int = 128):
        super().__init__(latent_dim, action_dim, width)
        self.trunk = nn.Sequential(
            NormedLinear(latent_dim, 2 * width),
            self.dropout,
            NormedLinear(2 * width, 2 * width),
            self.dropout,
            NormedLinear(2 * width, width),
        )

    def forward(
        self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, a_policy: Tensor, depth: Tensor, history=None
    ) -> Tensor:
        """z_real (B, L); a_policy (B, A); the rest is not read -> action (B, A) in [−1, 1], untrained a_policy."""
        return self._corrected(a_policy, a_policy, self.trunk(z_real))


class PublishedCorrector(nn.Module):
    """The gated two-tower corrector of arXiv:2512.17250 in the shape of its authors' code: see `lib.study.rivals`.

    Of four towers an update and a gate are made; gate · update + (1 − gate) · the planned action's features give Δ, and
    a_plan + tanh Δ the action, which is clamped when it acts and not when it learns. It does not start as the plan.
    """

    arch, history_len = "published", 0

    def __init__(self, latent_dim: int, action_dim: int, width: int = 256):
        super().__init__()
        self.latent_dim, self.action_dim, self.width = latent_dim, action_dim, width

        def layers(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

        self.towers = nn.ModuleList(layers(inputs) for inputs in (latent_dim, latent_dim, latent_dim, action_dim))
        self.update, self.gate = layers(4 * width), layers(4 * width)
        self.head = nn.Linear(width, action_dim)

    @property
    def shape(self) -> dict[str, int]:
        """The arguments that make a corrector of the same shape."""
        return {"latent_dim": self.latent_dim, "action_dim": self.action_dim, "width": self.width}

    def forward(
        self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, a_policy=None, depth=None, history=None
    ) -> Tensor:
        """z_real, z_pred (B, L); a_plan (B, A); the rest is not read -> action (B, A), in [−1, 1] but in training."""
        read = (z_real, z_pred, z_real - z_pred, a_plan)
        features = [tower(x) for tower, x in zip(self.towers, read, strict=True)]
        x = torch.cat(features, -1)
        gate = self.gate(x).sigmoid()
        action = a_plan + self.head(gate * self.update(x) + (1 - gate) * features[-1]).tanh()
        return action if self.training else action.clamp(-1, 1)


CORRECTORS = {c.arch: c for c in (TwoTowerCorrector, TemporalCorrector, StateCorrector, PublishedCorrector)}


class Trusted(nn.Module):
    """A corrector as far as it is trusted: `trust` has a number for each depth 1, 2, … of a plan, from 0, the plan, to
    1, the corrected action; what is deeper is trusted as the last of them."""

    def __init__(self, corrector: nn.Module, trust: tuple[float, ...]):
        super().__init__()
        self.corrector = corrector
        self.latent_dim, self.action_dim = corrector.latent_dim, corrector.action_dim
        self.history_len = corrector.history_len
        whole = [0.0, *trust] + [trust[-1] if trust else 0.0] * MAX_DEPTH
        self.register_buffer("trust", torch.tensor(whole[: MAX_DEPTH + 1]))

    def forward(self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, a_policy: Tensor, depth: Tensor, history=None):
        """As the corrector's; depth (B,) int, at most `MAX_DEPTH`."""
        corrected = self.corrector(z_real, z_pred, a_plan, a_policy, depth, history)
        return torch.lerp(a_plan, corrected, self.trust[depth].unsqueeze(-1))
