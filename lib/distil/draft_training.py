"""Training a draft on labelled states, and its rivals at equal labels.

    trained = train_draft(states, DraftTraining(modes=1))        # trained.draft, trained.curve, trained.held_out
    errors = draft_errors(trained.held_out, trained.draft)       # beside the prior's, and the labels' own floor

With one mode the loss is the squared error of every member to the label; with several, the negative logarithm of a
mixture of Gaussians of the width `spread`. Members see the same states in other orders, and start from other weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.config import ConfigError
from lib.distil.labels import LabelledStates
from lib.distil.states import DistillationError
from lib.drafts import Draft

CHUNK = 4096  # rows at a time where no gradient is needed


@dataclass(frozen=True)
class DraftTraining:
    """How a draft is trained; training ends `patience` epochs after the best error on held-out episodes."""

    epochs: int = 100
    batch_size: int = 256
    lr: float = 1e-3
    width: int = 256
    members: int = 3
    modes: int = 1
    spread: float = 0.3  # of a mode, in actions, where there are several
    patience: int = 20
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "width", "members", "modes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"DraftTraining.{name}={getattr(self, name)} must be at least 1.")
        if not self.spread > 0:
            raise ConfigError(f"DraftTraining.spread={self.spread} must be above 0.")


@dataclass
class TrainedDraft:
    """The best draft by held-out error, its curve (one row per epoch) and the states of the held-out episodes."""

    draft: Draft
    curve: list[dict]
    held_out: LabelledStates


def split_states(states: LabelledStates, fraction: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Row masks (n,) for training and held-out states: whole episodes, of every round in their share.

    Raises `DistillationError` where there is only one episode.
    """
    random, held_out = torch.Generator().manual_seed(seed), torch.zeros(len(states), dtype=torch.bool)
    for number in states.round.unique():
        episodes = states.episode[states.round == number].unique()
        order = episodes[torch.randperm(len(episodes), generator=random)]
        out = order[: max(round(fraction * len(order)), 1)] if len(order) > 1 else order[:0]
        held_out |= (states.round == number) & torch.isin(states.episode, out)
    if not held_out.any() or held_out.all():
        raise DistillationError("the labelled states are of one episode; two are needed to hold one out.")
    return ~held_out, held_out


def draft_loss(draft: Draft, z: Tensor, a_policy: Tensor, label: Tensor, spread: float) -> Tensor:
    """The loss (M, B) of each member at states z, a_policy, label, each (M, B, ·)."""
    actions, weights = draft.components(z, a_policy)  # (M, B, K, A), (M, B, K)
    error = (actions - label.unsqueeze(-2)).square()
    if draft.modes == 1:
        return error.squeeze(-2).mean(-1)
    return -(weights - error.sum(-1) / (2 * spread**2)).logsumexp(-1)


def train_draft(states: LabelledStates, training: DraftTraining, progress: bool = True) -> TrainedDraft:
    """Minimise the loss; keep the weights of the best epoch on held-out episodes: by the error of the draft's action,
    with several modes by the loss, as the mean of two good actions has the least error and may be a bad one.

    So the held-out error is a little optimistic. Raises `DistillationError` when none is finite.
    """
    torch.manual_seed(training.seed)
    shape = {"width": training.width, "members": training.members, "modes": training.modes}
    draft = Draft(states.z.shape[1], states.a_label.shape[1], **shape)
    learnt, held = (mask.nonzero().flatten() for mask in split_states(states, seed=0))
    held_out = states.rows(torch.zeros(len(states), dtype=torch.bool).index_fill(0, held, True))
    optimiser = torch.optim.AdamW(draft.parameters(), lr=training.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.epochs)
    best, best_weights, since, curve = np.inf, None, 0, []
    epochs = range(1, training.epochs + 1)
    if progress:
        from tqdm import tqdm

        epochs = tqdm(epochs, "training a draft", unit="epoch", mininterval=2)
    for epoch in epochs:
        draft.train()
        orders = torch.stack([learnt[torch.randperm(len(learnt))] for _ in range(training.members)])  # (M, n)
        total = 0.0
        for rows in orders.split(training.batch_size, 1):
            z, a_policy, label = (x[rows].float() for x in (states.z, states.a_policy, states.a_label))
            loss = draft_loss(draft, z, a_policy, label, training.spread).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
            optimiser.step()
            total += loss.item() * rows.shape[1]
        schedule.step()
        draft.eval()
        error, loss = draft_errors(held_out, draft)["draft_mse"], held_out_loss(held_out, draft, training.spread)
        curve.append({"epoch": epoch, "loss": total / len(learnt), "held_out_loss": loss, "held_out_mse": error})
        since, judged = since + 1, error if training.modes == 1 else loss
        if judged < best:
            best, best_weights, since = judged, copy.deepcopy(draft.state_dict()), 0
        if since >= training.patience:
            break
    if best_weights is None:
        raise DistillationError(f"no held-out error of {training.epochs} epochs is finite; train with a smaller lr.")
    draft.load_state_dict(best_weights)
    return TrainedDraft(draft.eval().requires_grad_(False), curve, held_out)


@torch.no_grad()
def held_out_loss(states: LabelledStates, draft: Draft, spread: float) -> float:
    """The mean loss of the members."""
    total = 0.0
    for rows in torch.arange(len(states)).split(CHUNK):
        each = (x[rows].float().expand(draft.members, -1, -1) for x in (states.z, states.a_policy, states.a_label))
        total += draft_loss(draft, *each, spread).mean(0).sum().item()
    return total / len(states)


@torch.no_grad()
def draft_errors(states: LabelledStates, draft: Draft) -> dict[str, float]:
    """Mean squared errors to the labels: the draft's, the policy prior's, and the labels' `disagreement`."""
    total = 0.0
    for rows in torch.arange(len(states)).split(CHUNK):
        action, _ = draft(states.z[rows].float(), states.a_policy[rows])
        total += (action - states.a_label[rows]).square().mean(-1).sum().item()
    prior = (states.a_policy - states.a_label).square().mean().item()
    return {"draft_mse": total / len(states), "policy_mse": prior, **states.disagreement()}
