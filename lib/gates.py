"""Gates: may a step of the plan be executed, corrected or exchanged, or must the planner be asked?

    gate = ValueGate(threshold=0.4)
    action, score, promised = gate(world_model, look)      # (B, A), (B,), (B,)

A gate looks at what a decision without planning knows (`Look`), chooses the action, and scores the situation. Where the
score exceeds `threshold` the controller does not execute that action but refines the plan or replans. Scores need no
training: they come from the drift of the latent and from the world model itself. Thresholds are registered buffers, so
that a new one does not compile the controller anew; `lib.study.calibrate` finds them on held-out episodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.config import one_of
from lib.world_model import WorldModel


class Look(NamedTuple):
    """What a decision without planning knows. z, z_pred (B, L); mismatch (B,); a_plan, a_policy, corrected (B, A): the
    planned action, the policy prior's at z, the corrector's (the planned one where there is none)."""

    z: Tensor
    z_pred: Tensor
    mismatch: Tensor
    a_plan: Tensor
    a_policy: Tensor
    corrected: Tensor


class Gate(nn.Module):
    """Executes the corrected action wherever `score` is at most `threshold`; infinity never replans early."""

    kind = ""  # what results call it
    numbers = ("threshold",)  # that calibration finds: arguments of the class
    checks_value = False  # whether scores are a loss of value, so that a refined plan can be held to the same threshold

    def __init__(self, threshold: float = torch.inf):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, wm: WorldModel, look: Look) -> tuple[Tensor, Tensor, Tensor]:
        """The action (B, A), its score (B,), and what the plan promised (B,), which is zero if values are not read."""
        return look.corrected, self.score(wm, look), torch.zeros_like(look.mismatch)

    def score(self, wm: WorldModel, look: Look) -> Tensor:
        """The score (B,), which every gate that keeps the corrected action defines: the higher, the less to trust."""
        raise NotImplementedError


class DriftGate(Gate):
    """Replans where the latent has drifted too far: mean total variation over simplices, or plain L2 distance."""

    kind = "threshold"

    def __init__(self, threshold: float = torch.inf, measure: str = "tv"):
        super().__init__(threshold)
        self.measure = one_of("measure", measure, ("tv", "l2"))

    def score(self, wm: WorldModel, look: Look) -> Tensor:
        return look.mismatch if self.measure == "tv" else (look.z - look.z_pred).norm(dim=-1)


class SensitivityGate(Gate):
    """Replans where the drift matters: mismatch × how much the value, or the action, changes along it.

    The sensitivity is the finite difference along the drift itself, |f(z) − f(ẑ)| / mismatch with f the prior's action
    or its value, so that the product is |f(z) − f(ẑ)|. In the spirit of AdaReP (arXiv:2606.23079), which has no code.
    """

    kind = "sensitivity"

    def __init__(self, threshold: float = torch.inf, of: str = "action"):
        super().__init__(threshold)
        self.of = one_of("of", of, ("action", "value"))

    def score(self, wm: WorldModel, look: Look) -> Tensor:
        expected = wm.policy(look.z_pred)[0]
        if self.of == "action":
            return (look.a_policy - expected).abs().mean(-1)
        both = wm.q(torch.stack([look.z, look.z_pred]), torch.stack([look.a_policy, expected])).mean(0)
        return (both[0] - both[1]).abs()


class ValueGate(Gate):
    """Executes the best of {plan, corrected, policy prior} by the model's own Q at the real latent, and replans where
    even that is worth less than the plan had promised, Q(ẑ, planned action), by more than `threshold`."""

    kind = "value"
    checks_value = True

    def forward(self, wm: WorldModel, look: Look) -> tuple[Tensor, Tensor, Tensor]:
        candidates = torch.stack([look.a_plan, look.corrected, look.a_policy])
        value, promised = self._values(wm, look, candidates)
        best = value.argmax(0)
        action = candidates.gather(0, best.view(1, -1, 1).expand(1, -1, candidates.shape[2])).squeeze(0)
        return action, promised - value.amax(0), promised

    @staticmethod
    def _values(wm: WorldModel, look: Look, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Values (C, B) of candidates (C, B, A) at z, and the promise (B,): means over all heads, in one evaluation."""
        z = torch.cat([look.z.expand(len(candidates), *look.z.shape), look.z_pred.unsqueeze(0)])
        value = wm.q(z, torch.cat([candidates, look.a_plan.unsqueeze(0)])).mean(0)
        return value[:-1], value[-1]


class LadderGate(ValueGate):
    """The cheapest rung that passes its check: the plan as it is where the mismatch is at most `levels[0]`, its
    correction up to `levels[1]`, beyond that the value check. What fails it is refined or replanned."""

    kind, numbers = "ladder", ("threshold", "levels")

    def __init__(self, threshold: float = torch.inf, levels: tuple[float, float] = (0.0, 0.0)):
        super().__init__(threshold)
        self.register_buffer("levels", torch.tensor([float(level) for level in levels]))

    def forward(self, wm: WorldModel, look: Look) -> tuple[Tensor, Tensor, Tensor]:
        best, score, promised = super().forward(wm, look)
        as_planned, correctable = look.mismatch <= self.levels[0], look.mismatch <= self.levels[1]
        action = torch.where(correctable.unsqueeze(-1), look.corrected, best)
        action = torch.where(as_planned.unsqueeze(-1), look.a_plan, action)
        return action, score.masked_fill(as_planned | correctable, -torch.inf), promised
