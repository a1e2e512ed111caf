"""Training a corrector on a distillation set, and its errors against the references.

    trained = train_corrector(data, CorrectorTraining("temporal", epochs=60), wm)
    rows = errors_by_depth(trained.validation, trained.corrector)

The loss of a row is the squared error to the teacher's action. Three terms are optional:

- `lambda_reg` λ adds λ‖a − a_plan‖²;
- `rollout_weight` ω adds ω times the error of H corrected steps inside the world model, against the teacher's plan;
- `q_weighted` counts rows more where the stale plan loses more value (`value_weights`).

The set may be larger than the memory that is left: only batches and the validation rows are ever copied.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.config import ConfigError, one_of
from lib.correctors import CORRECTORS, Corrector, appended, token
from lib.distil.states import DistillationError, DistillationSet
from lib.world_model import WorldModel

CHUNK = 1024  # rows at a time where no gradient is needed
WEIGHT_LIMITS = (0.1, 10.0)  # of a row in a value-weighted loss: none is lost, none rules a batch


@dataclass(frozen=True)
class CorrectorTraining:
    """How a corrector is trained; the module says what λ, ω and `q_weighted` add to the loss.

    Training ends `patience` epochs after the best validation loss. `history_len` is for the temporal corrector.
    """

    arch: str = "two_tower"
    epochs: int = 100
    batch_size: int = 256
    lr: float = 1e-3
    lambda_reg: float = 0.0
    rollout_weight: float = 0.0
    q_weighted: bool = False
    history_len: int = 4
    patience: int = 30
    seed: int = 0

    def __post_init__(self):
        one_of("arch", self.arch, CORRECTORS)
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"epochs={self.epochs} and batch_size={self.batch_size} must be at least 1.")


@dataclass
class TrainedCorrector:
    """The best corrector by validation loss, its curve (one row per epoch and split) and its validation rows."""

    corrector: Corrector
    curve: list[dict]
    validation: DistillationSet


@dataclass
class States:
    """B rows of a distillation set in float32. plan, teacher_plan (B, H, A); history (B, K, L + A + 1) or None."""

    z_real: Tensor
    z_pred: Tensor
    a_plan: Tensor
    a_policy: Tensor
    a_teacher: Tensor
    plan: Tensor
    teacher_plan: Tensor
    depth: Tensor
    history: Tensor | None

    @classmethod
    def of(cls, data: DistillationSet, rows: Tensor, index: Tensor | None = None, device="cpu") -> States:
        """The rows (B,) of `data`; with `index` = `data.history_index(K)` (n, K), their history too."""
        columns = {k: getattr(data, k)[rows].to(device) for k in cls.__annotations__ if k != "history"}
        columns |= {k: columns[k].float() for k in ("z_real", "z_pred")}
        return cls(**columns, history=None if index is None else history_tokens(data, index[rows]).to(device))

    def corrected(self, corrector: Corrector) -> Tensor:
        """The corrector's actions (B, A)."""
        return corrector(self.z_real, self.z_pred, self.a_plan, self.a_policy, self.depth, self.history)


def history_tokens(data: DistillationSet, index: Tensor) -> Tensor:
    """Tokens (B, K, L + A + 1) of the rows `index` (B, K), oldest first; zeros where it is −1."""
    rows = index.clamp(min=0)
    tokens = token(data.z_real[rows].float(), data.z_pred[rows].float(), data.a_plan[rows], data.depth[rows])
    return tokens.masked_fill((index < 0).unsqueeze(-1), 0.0)


def split_by_episode(data: DistillationSet, fraction: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Row masks (n,) for training and validation; an episode is never on both sides.

    Of every source of plans that has two episodes or more, at least one is held out. Raises `DistillationError` when no
    source has.
    """
    random = torch.Generator().manual_seed(seed)
    validation = torch.zeros(len(data), dtype=torch.bool)
    for source in data.source.unique():
        mine = data.source == source
        episodes = data.episode[mine].unique()
        order = episodes[torch.randperm(len(episodes), generator=random)]
        held_out = order[: max(round(fraction * len(episodes)), 1)] if len(episodes) > 1 else order[:0]
        validation |= mine & torch.isin(data.episode, held_out)
    if not validation.any():
        raise DistillationError("the distillation set holds one episode of a planner; two are needed to hold one out.")
    return ~validation, validation


# ---------------------------------------------------------------------------------------------------------- losses


def rollout_error(corrector: Corrector, wm: WorldModel, states: States, action: Tensor) -> Tensor:
    """Mean squared error (B,) to the teacher's plan over its H steps, acting on with the corrector in the world model.

    `action` (B, A) is what the corrector does first. z and ẑ both follow it: z_{j+1} = d(z_j, a_j),
    ẑ_{j+1} = d(ẑ_j, a_j), as in the controller; past its end the stale plan goes on with the policy prior at ẑ.
    """
    z, z_pred, history = states.z_real, states.z_pred, states.history
    steps, length = states.teacher_plan.shape[1], states.plan.shape[1]
    rows = torch.arange(len(z), device=z.device)
    error = (action - states.teacher_plan[:, 0]).square().mean(-1)
    for j in range(1, steps):
        z, z_pred, depth = wm.next(z, action), wm.next(z_pred, action), states.depth + j
        planned = states.plan[rows, depth.clamp(max=length - 1)]
        a_plan = torch.where((depth < length).unsqueeze(-1), planned, wm.policy(z_pred)[0])
        if history is not None:
            history = appended(history, token(z, z_pred, a_plan, depth))
        action = corrector(z, z_pred, a_plan, wm.policy(z)[0], depth, history)
        error = error + (action - states.teacher_plan[:, j]).square().mean(-1)
    return error / steps


@torch.no_grad()
def value_weights(data: DistillationSet, wm: WorldModel) -> Tensor:
    """Weight of each row (n,), on average 1: how much value the stale plan's action loses there against the teacher's.

    The loss of value is max(0, Q(z, a_teacher) − Q(z, a_plan)), Q the mean over the heads; it is divided by its mean,
    clipped to `WEIGHT_LIMITS`, and divided by its mean again. Without any loss of value all weights are 1.
    """
    lost = []
    for rows in torch.arange(len(data)).split(CHUNK):
        z, *actions = (getattr(data, k)[rows].to(wm.device).float() for k in ("z_real", "a_teacher", "a_plan"))
        teacher, plan = (wm.q(z, a).mean(0) for a in actions)
        lost.append((teacher - plan).clamp(min=0).cpu())
    lost = torch.cat(lost)
    if lost.sum() == 0:
        return torch.ones(len(data))
    weights = (lost / lost.mean()).clamp(*WEIGHT_LIMITS)
    return weights / weights.mean()


# -------------------------------------------------------------------------------------------------------- training


def train_corrector(
    data: DistillationSet,
    training: CorrectorTraining,
    wm: WorldModel | None = None,
    progress: bool = True,
) -> TrainedCorrector:
    """Minimise the loss that the settings give; keep the weights of the best validation epoch.

    Training runs on the device of `wm`, the teacher's frozen world model in eval mode, else on the CPU; the corrector
    comes back on the CPU. Rows of the curve: `loss` is what is minimised, `action_mse` and `delta_abs` are plain means.
    Raises `ConfigError` for a history longer than the episodes, and a loss that needs the world model without one that
    fits; `DistillationError` when no validation loss is finite.
    """
    _check(data, training, wm)
    run = _Run(data, training, wm)
    best, best_weights, since, curve = np.inf, None, 0, []
    epochs = range(1, training.epochs + 1)
    if progress:
        from tqdm import tqdm

        epochs = tqdm(epochs, f"training {training.arch}", unit="epoch", mininterval=2)
    for epoch in epochs:
        learnt, held = run.epoch()
        for split, values in (("train", learnt), ("validation", held)):
            numbers = dict(zip(("loss", "action_mse", "delta_abs"), values, strict=True))
            curve.append({"epoch": epoch, "split": split, **numbers})
        if progress:
            epochs.set_postfix({"train": f"{learnt[1]:.4f}", "validation": f"{held[1]:.4f}"})
        since += 1
        if held[0] < best:
            best, best_weights, since = held[0], copy.deepcopy(run.corrector.state_dict()), 0
        if since >= training.patience:
            break
    if best_weights is None:
        raise DistillationError(
            f"no validation loss of {training.epochs} epochs is finite; train longer, or with a smaller lr."
        )
    run.corrector.load_state_dict(best_weights)
    held_out = torch.zeros(len(data), dtype=torch.bool).index_fill(0, run.validation, True)
    return TrainedCorrector(run.corrector.cpu().eval().requires_grad_(False), curve, data.rows(held_out))


def _check(data: DistillationSet, training: CorrectorTraining, wm: WorldModel | None) -> None:
    """`ConfigError` unless the settings, the states and the world model fit together."""
    latent_dim, action_dim = data.z_real.shape[1], data.a_plan.shape[1]
    if (training.rollout_weight or training.q_weighted) and wm is None:
        raise ConfigError("rollout_weight and q_weighted need the world model; pass the teacher's as wm.")
    if wm is not None and (wm.latent_dim, wm.action_dim) != (latent_dim, action_dim):
        raise ConfigError(
            f"the states have latents of {latent_dim} and {action_dim} actions, the world model {wm.latent_dim} and "
            f"{wm.action_dim}; pass the teacher that they were collected with."
        )
    longest = int(data.decision.max()) + 1
    if training.arch == "temporal" and training.history_len > longest:
        raise ConfigError(
            f"history_len={training.history_len} is longer than the longest episode, {longest} decisions."
        )


class _Run:
    """A corrector in training: its optimiser, the rows of each side, and what an epoch does."""

    def __init__(self, data: DistillationSet, training: CorrectorTraining, wm: WorldModel | None):
        torch.manual_seed(training.seed)
        self.data, self.training, self.wm = data, training, wm
        self.device = "cpu" if wm is None else wm.device
        shape = {"history_len": training.history_len} if training.arch == "temporal" else {}
        kind = CORRECTORS[training.arch]
        self.corrector = kind(data.z_real.shape[1], data.a_plan.shape[1], **shape).to(self.device)
        self.parameters = list(self.corrector.parameters())
        self.index = data.history_index(self.corrector.history_len) if self.corrector.history_len else None
        self.weights = value_weights(data, wm) if training.q_weighted else torch.ones(len(data))
        sides = split_by_episode(data, seed=training.seed)
        self.train, self.validation = (side.nonzero().flatten() for side in sides)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=training.lr, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, training.epochs)

    def epoch(self) -> tuple[list[float], list[float]]:
        """One pass over the training rows in random order; the means of both sides."""
        self.corrector.train()
        learnt = self.means(self.train[torch.randperm(len(self.train))], self.training.batch_size, learn=True)
        self.schedule.step()
        self.corrector.eval()
        with torch.no_grad():
            return learnt, self.means(self.validation, CHUNK, learn=False)

    def means(self, rows: Tensor, size: int, learn: bool) -> list[float]:
        """Loss, action MSE and |a − a_plan| over the rows; `learn` steps the optimiser after each `size` of them."""
        sums = torch.zeros(3)
        for part in rows.split(size):
            states, weight = States.of(self.data, part, self.index, self.device), self.weights[part].to(self.device)
            values = self.losses(states, weight)
            if learn:
                self.optimiser.zero_grad(set_to_none=True)
                values[0].backward(inputs=self.parameters)
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimiser.step()
            sums += len(part) * values.detach().cpu()
        return (sums / len(rows)).tolist()

    def losses(self, states: States, weight: Tensor) -> Tensor:
        """The loss with row weights (B,), the action MSE, and the mean |a − a_plan|, stacked (3,)."""
        action, omega = states.corrected(self.corrector), self.training.rollout_weight
        error = row_loss = (action - states.a_teacher).square().mean(-1)
        if omega:
            row_loss = row_loss + omega * rollout_error(self.corrector, self.wm, states, action)
        delta = action - states.a_plan
        loss = (weight * row_loss).mean() + self.training.lambda_reg * delta.square().mean()
        return torch.stack([loss, error.mean(), delta.abs().mean()])


# ---------------------------------------------------------------------------------------------------------- errors


@torch.no_grad()
def corrected_actions(corrector: Corrector, data: DistillationSet, device="cpu") -> Tensor:
    """The action (n, A) of a corrector on `device` at every state. Histories are read: `data` holds whole episodes."""
    index = data.history_index(corrector.history_len) if corrector.history_len else None
    parts = torch.arange(len(data)).split(CHUNK)
    return torch.cat([States.of(data, rows, index, device).corrected(corrector).cpu() for rows in parts])


@torch.no_grad()
def errors_by_depth(data: DistillationSet, corrector: Corrector | None = None) -> list[dict]:
    """Action MSE to the teacher per depth: the plan, the corrector, the policy prior, and the teacher's own floor.

    `data` holds whole episodes: the temporal corrector at a depth reads the states before it.
    """
    errors = {"plan_mse": (data.a_plan - data.a_teacher).square().mean(-1)}  # (n,) each
    if corrector is not None:
        errors["corrector_mse"] = (corrected_actions(corrector, data) - data.a_teacher).square().mean(-1)
    errors["policy_mse"] = (data.a_policy - data.a_teacher).square().mean(-1)
    table = []
    for depth in data.depth.unique().tolist():
        at = data.depth == depth
        row = {"depth": depth, "samples": int(at.sum()), "mismatch": data.mismatch[at].mean().item()}
        row |= {name: error[at].mean().item() for name, error in errors.items()}
        table.append(row | {"teacher_floor_mse": data.rows(at).floor_mse()})
    return table
