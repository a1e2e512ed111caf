"""Rivals as published, as far as their texts tell: AdaReP, and the corrector with its threshold of arXiv:2512.17250.

What the texts leave open is decided here, and said; where it may matter there is an arm for either reading.

**AdaReP** (arXiv:2606.23079), `adarep-E`. Known are its abstract and others' notes, no code: a cached plan is reused
until the current deviation from its rollout passes a tolerance, which an estimate of the local sensitivity of the
dynamics adapts; nothing is trained, and neither model nor planner changes. Decided: deviations d are L2 distances of
latents. The tolerance is ε / s, so that the planner is asked where s · d > ε. The sensitivity s is that of the model's
next latent to its present one at the predicted latent ẑ and the planned action, along the deviation and in no other
direction: ‖d(ẑ + h (z − ẑ), a) − d(ẑ, a)‖ / (h ‖z − ẑ‖). With h = 1 the score s · d is the deviation that the model
expects one decision later; `adarep-local-E` has the derivative instead (h = 0.01). ε is calibrated as all thresholds
are, to a rate of planner calls. A plan is reused for E steps at most; beyond its end the policy prior goes on.

**arXiv:2512.17250**, `published-E`. Known are its abstract and its authors' public code, which we read and did not
copy. Plans are those of the standard planner, 512 × 6, and execute one elite drawn at random, as there. The corrector
(`lib.correctors.PublishedCorrector`) reads the real latent, the predicted one, their difference and the planned action;
neither the policy prior's action nor the depth; it has no dropout and no normalisation. The planner is asked where the
L2 distance of the latents passes 0.5, whatever their width: theirs have 512 numbers, those of our 1m models 128, where
this rule is laxer. Beyond the plan's end the policy prior goes on (their later code repeats the last action). Not as
there, and to its advantage: it learns from our states at all depths, with our optimiser, and keeps the best validation
epoch (theirs: depth 1, Adam, 10 to 20 epochs); it does not act at depth 0, as their notes say and the code does not; a
warm start moves by the steps executed; a miss is one planner call. Actions are clamped to [−1, 1], as those of all
controllers here are; theirs leave that to the simulator. `published-tuned-E` is its best case: plans are the elites'
mean, and the threshold is calibrated as ours are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.gates import DriftGate, Gate, Look
from lib.world_model import WorldModel


class AdaptiveToleranceGate(Gate):
    """AdaReP: replans where the deviation passes a tolerance that falls with the sensitivity of the dynamics."""

    kind = "tolerance"
    step = 1.0  # h above: how far along the deviation the sensitivity is measured

    def score(self, wm: WorldModel, look: Look) -> Tensor:
        near = look.z_pred + self.step * (look.z - look.z_pred)
        ahead = wm.next(torch.stack([near, look.z_pred]), look.a_plan.expand(2, *look.a_plan.shape))
        return (ahead[0] - ahead[1]).norm(dim=-1) / self.step


class LocalToleranceGate(AdaptiveToleranceGate):
    """The same with the derivative of the dynamics along the deviation."""

    kind, step = "tolerance-local", 0.01


class DistanceGate(DriftGate):
    """Replans where the latent has drifted too far by plain L2 distance."""

    kind = "distance"

    def __init__(self, threshold: float = torch.inf):
        super().__init__(threshold, "l2")


class PublishedGate(DistanceGate):
    """The same with the threshold of arXiv:2512.17250, which nothing calibrates."""

    kind, numbers = "published", ()

    def __init__(self):
        super().__init__(0.5)
