"""Distilling the replanning teacher into a corrector: training, validating, and the artefacts that are kept.

data, key = distillation_set(settings, cell)                       # collected once, then read from the cache
trained, errors = make_corrector(settings, cell, "two_tower", data, key, epochs=60)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib import paths
from lib.checkpoints import load_world_model, teacher_key
from lib.collection import DistillationError, DistillationSet, collect
from lib.config import Cell, Settings, as_dict, episode_seeds, one_of
from lib.correctors import CORRECTORS, CorrectorError, load_corrector, save_corrector
from lib.planner import MPPI
from lib.results import SETTINGS_MODULES, cached, combine, module_key, write_artefact, write_table

# -------------------------------------------------------------------------------------------------------- training


@dataclass
class TrainedCorrector:
    """The best corrector by validation error, its curve (one row per epoch and split) and its validation rows."""

    corrector: nn.Module
    curve: list[dict]
    validation: DistillationSet


def split_by_episode(data: DistillationSet, fraction: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Row masks (n,) for training and validation; an episode is never on both sides."""
    episodes = data.episode.unique()
    if len(episodes) < 2:
        raise DistillationError(f"the distillation set holds {len(episodes)} episode; two are needed to hold one out.")
    order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))]
    held_out = order[: max(round(fraction * len(episodes)), 1)]
    validation = torch.isin(data.episode, held_out)
    return ~validation, validation


def train_corrector(
    data: DistillationSet,
    arch: str = "two_tower",
    epochs: int = 60,
    batch_size: int = 256,
    lr: float = 1e-3,
    lambda_reg: float = 0.0,
    patience: int = 15,
    seed: int = 0,
    progress: bool = True,
) -> TrainedCorrector:
    """Minimise the squared error to the teacher's action + λ‖Δa‖²; keep the weights of the best validation epoch."""
    train_rows, validation_rows = split_by_episode(data, seed=seed)
    train, validation = data.rows(train_rows), data.rows(validation_rows)
    torch.manual_seed(seed)
    corrector = CORRECTORS[one_of("arch", arch, CORRECTORS)](data.z_real.shape[1], data.a_plan.shape[1])
    optimiser = torch.optim.AdamW(corrector.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    best, best_weights, since, curve = np.inf, None, 0, []
    bar = tqdm(range(1, epochs + 1), desc=f"training {arch}", unit="epoch", disable=not progress, mininterval=2)
    for epoch in bar:
        corrector.train()
        order = torch.randperm(len(train))
        sums = np.zeros(3)
        for rows in order.split(batch_size):
            loss, action_mse, delta_abs = _loss(corrector, train, rows, lambda_reg)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(corrector.parameters(), 1.0)
            optimiser.step()
            sums += len(rows) * np.array([loss.item(), action_mse.item(), delta_abs.item()])
        schedule.step()
        corrector.eval()
        with torch.no_grad():
            held = [x.item() for x in _loss(corrector, validation, slice(None), lambda_reg)]
        for split, values in (("train", sums / len(train)), ("validation", held)):
            numbers = dict(zip(("loss", "action_mse", "delta_abs"), map(float, values), strict=True))
            curve.append({"epoch": epoch, "split": split, **numbers})
        bar.set_postfix({"train": f"{sums[1] / len(train):.4f}", "validation": f"{held[1]:.4f}"})
        since += 1
        if held[0] < best:
            best, best_weights, since = held[0], copy.deepcopy(corrector.state_dict()), 0
        if since >= patience:
            break
    if best_weights is None:
        raise DistillationError(
            f"no validation error of {epochs} epochs is finite; train longer, or with a smaller lr."
        )
    corrector.load_state_dict(best_weights)
    return TrainedCorrector(corrector.eval().requires_grad_(False), curve, validation)


def _loss(corrector: nn.Module, data: DistillationSet, rows, lambda_reg: float) -> tuple[Tensor, Tensor, Tensor]:
    action = corrector(data.z_real[rows], data.z_pred[rows], data.a_plan[rows], data.depth[rows])
    action_mse = (action - data.a_teacher[rows]).square().mean()
    delta = action - data.a_plan[rows]
    return action_mse + lambda_reg * delta.square().mean(), action_mse, delta.abs().mean()


@torch.no_grad()
def errors_by_depth(data: DistillationSet, corrector: nn.Module | None = None) -> list[dict]:
    """Action MSE to the teacher per depth: the plan, the corrector, the policy prior, and the teacher's own floor."""
    table = []
    for depth in data.depth.unique().tolist():
        part = data.rows(data.depth == depth)
        row = {"depth": depth, "samples": len(part), "mismatch": part.mismatch.mean().item()}
        row["plan_mse"] = (part.a_plan - part.a_teacher).square().mean().item()
        if corrector is not None:
            corrected = corrector(part.z_real, part.z_pred, part.a_plan, part.depth)
            row["corrector_mse"] = (corrected - part.a_teacher).square().mean().item()
        row["policy_mse"] = (part.a_policy - part.a_teacher).square().mean().item()
        row["teacher_floor_mse"] = part.floor_mse()
        table.append(row)
    return table


# -------------------------------------------------------------------------------- kept artefacts, made when lacking


def distillation_set(
    settings: Settings, cell: Cell, episodes: int = 0, plan_horizon: int = 3, execution_horizon: int = 3
) -> tuple[DistillationSet, str]:
    """The profile's distillation set of a cell and its key; kept under `data/cache/distillation/`, one file a round."""
    teacher = settings.teacher_name(cell)
    episodes, profile = episodes or settings.profile.collect_episodes, settings.profile
    wm = load_world_model(teacher, task=cell.task, device=settings.device)
    config = settings.planner(wm.action_dim, horizon=plan_horizon)
    parts: list[DistillationSet] = []
    key = combine(
        module_key("lib.collection", without=SETTINGS_MODULES),
        {k: v for k, v in as_dict(config).items() if k != "mode"},
        [teacher_key(teacher), cell.task, profile.decisions, execution_horizon],
    )
    for number in range(1, profile.rounds + 1):
        seeds = episode_seeds("collect", episodes, cell.seed, first=(number - 1) * episodes)
        key = combine(key, seeds)
        if number > 1:  # the corrector of the round before is part of how it came about
            key = combine(key, profile.epochs, module_key("lib.distillation", without=SETTINGS_MODULES))
        path = paths.CACHE / "distillation" / f"{cell}-{key[:16]}.safetensors"

        def make(temporary: Path, seeds=seeds, number=number) -> None:
            what = f"{cell} collecting, round {number}/{profile.rounds}"
            planner, corrector = MPPI(wm, config), None
            if number > 1:
                trained = train_corrector(DistillationSet.joined(parts), epochs=profile.epochs)
                corrector = trained.corrector.to(wm.device)
            collect(
                planner, cell.task, seeds, execution_horizon, corrector, decisions=profile.decisions, what=what
            ).save(temporary)

        parts.append(DistillationSet.load(cached(path, key, make, f"the distillation set of {cell}, round {number}")))
    return DistillationSet.joined(parts), key


def corrector_path(settings: Settings, cell: Cell, arch: str) -> Path:
    """Where a profile's corrector of a cell is kept."""
    return paths.results(settings.profile.name) / "corrector" / f"{cell}-{arch}.safetensors"


def make_corrector(
    settings: Settings, cell: Cell, arch: str, data: DistillationSet, key: str, **training
) -> tuple[TrainedCorrector, list[dict]]:
    """Train a corrector and write its learning curve, errors by depth, and weights. Returns it and the errors."""
    trained = train_corrector(data, arch, **training)
    errors = errors_by_depth(trained.validation, trained.corrector)
    path = corrector_path(settings, cell, arch)
    about = {"distillation_key": key, "samples": len(data), "training": training}
    write_table(path.with_suffix(".csv"), trained.curve, **about)
    write_table(path.with_name(f"{path.stem}-depth.csv"), errors, **about)
    teacher = teacher_key(settings.teacher_name(cell))
    write_artefact(path, lambda temporary: save_corrector(trained.corrector, temporary, teacher), **about)
    return trained, errors


def ensure_corrector(settings: Settings, cell: Cell, arch: str) -> Path:
    """The profile's corrector of a cell; made as the profile says when it is lacking or of another teacher."""
    path = corrector_path(settings, cell, arch)
    try:
        load_corrector(path, teacher_key(settings.teacher_name(cell)))
    except CorrectorError:
        data, key = distillation_set(settings, cell)
        make_corrector(settings, cell, arch, data, key, epochs=settings.profile.epochs)
    return path
