"""Correctors: small networks that repair a planned action when the real latent has drifted from the predicted one.

    corrector = TwoTowerCorrector(latent_dim=128, action_dim=6)
    action = corrector(z_real, z_pred, a_plan, depth)      # (B, L), (B, L), (B, A), (B,) -> (B, A) in [−1, 1]

Every corrector is residual and starts as the identity: untrained, it executes the plan (arXiv:2512.17250 has both
shapes; that its last layer starts at zero and its output is clamped is ours).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.world_model import NormedLinear

MAX_DEPTH = 12  # depths are given to the network as a fraction of this


class CorrectorError(RuntimeError):
    """A corrector cannot be used; the message says which and why."""


class TwoTowerCorrector(nn.Module):
    """Towers read the real and the predicted latent, their difference, and the plan; a gated residual head repairs it.

    The correction is gate · 2 tanh(update), so any action can be reached from any other; the result is clamped.
    """

    arch = "two_tower"

    def __init__(self, latent_dim: int, action_dim: int, width: int = 96):
        super().__init__()
        self.latent_dim, self.action_dim, self.width = latent_dim, action_dim, width
        self.real_tower = NormedLinear(latent_dim, width)
        self.predicted_tower = NormedLinear(latent_dim, width)
        self.drift_tower = NormedLinear(latent_dim, width)
        self.plan_tower = NormedLinear(action_dim + 1, width)
        self.trunk = nn.Sequential(NormedLinear(4 * width, 2 * width), NormedLinear(2 * width, width))
        self.update_head = nn.Linear(width, action_dim)
        self.gate_head = nn.Linear(width, action_dim)
        nn.init.zeros_(self.update_head.weight)
        nn.init.zeros_(self.update_head.bias)

    def forward(self, z_real: Tensor, z_pred: Tensor, a_plan: Tensor, depth: Tensor) -> Tensor:
        """z_real, z_pred (B, L); a_plan (B, A); depth (B,) -> corrected action (B, A) in [−1, 1]."""
        position = (depth.to(a_plan.dtype) / MAX_DEPTH).unsqueeze(-1)
        towers = [
            self.real_tower(z_real),
            self.predicted_tower(z_pred),
            # Latents are simplices with entries around 1/8 and drifts of a few hundredths: bring them near 1.
            self.drift_tower(10.0 * (z_real - z_pred)),
            self.plan_tower(torch.cat([a_plan, position], -1)),
        ]
        x = self.trunk(torch.cat(towers, -1))
        delta = self.gate_head(x).sigmoid() * 2.0 * self.update_head(x).tanh()
        action = (a_plan + delta).clamp(-1, 1)
        if self.training:  # the gradient passes the clamp: else an action pushed past its bound could never come back
            return a_plan + delta + (action - a_plan - delta).detach()
        return action


CORRECTORS = {c.arch: c for c in (TwoTowerCorrector,)}


def save_corrector(corrector: nn.Module, path: Path, teacher: str) -> None:
    """Write weights, shape, and the sha256 of the teacher it was distilled from to a safetensors file."""
    shape = {k: getattr(corrector, k) for k in ("latent_dim", "action_dim", "width")}
    # One entry: safetensors writes several in random order, and equal correctors must be equal files (keys hash them).
    about = {"corrector": json.dumps({"arch": corrector.arch, "shape": shape, "teacher": teacher}, sort_keys=True)}
    save_file({k: v.detach().cpu().contiguous() for k, v in corrector.state_dict().items()}, path, metadata=about)


def load_corrector(path: Path, teacher: str | None = None) -> nn.Module:
    """A corrector in eval mode. `CorrectorError` when the file is damaged, or was distilled from another teacher."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["corrector"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        corrector = CORRECTORS[about["arch"]](**about["shape"])
        corrector.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")  # torch lists what does not fit over several lines
        raise CorrectorError(f"{path} is not a corrector of this project: {reason}.") from None
    if not all(torch.isfinite(v).all() for v in tensors.values()):
        raise CorrectorError(f"{path} holds weights that are not finite; train it again with 03_train_corrector.")
    if teacher is not None and about.get("teacher") != teacher:
        raise CorrectorError(f"{path} was distilled from another teacher; train it again with 03_train_corrector.")
    return corrector.eval().requires_grad_(False)
