"""Thresholds of gates, and how far correctors are trusted, from labelled states that no corrector learnt from.

    numbers = calibrate(ValueGate(), wm, held_out, corrector, call_rate=0.25)      # {"threshold": …, …}
    numbers = trust_by_depth(held_out, corrector, execution_horizon=6)             # {"trust": [0.4, 0.9, …], …}

A gate's score needs no planner call, so every labelled state of the distillation set has one, and a plan that was
executed to its end there tells at which depth any threshold would have cut it short. That gives the planner-call rate
of every threshold, and the teacher's labels give the error of what it lets pass. Validation episodes also chose the
corrector's epoch: their errors are a little optimistic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lib.config import ConfigError
from lib.correctors import Corrector
from lib.distil.states import DistillationSet
from lib.distil.train import corrected_actions
from lib.gates import Gate, Look
from lib.world_model import WorldModel

CHUNK = 4096  # states that are scored at once


@torch.no_grad()
def judged(gate: Gate, wm: WorldModel, data: DistillationSet, corrector: Corrector | None) -> tuple[Tensor, Tensor]:
    """The gate's score (n,) at every state, and the mean squared error (n,) of the action that it would execute."""
    scores, errors = [], []
    corrected = data.a_plan if corrector is None else corrected_actions(corrector, data, wm.device)
    known = data.z_real, data.z_pred, data.mismatch, data.a_plan, data.a_policy, corrected
    gate = gate.to(wm.device)
    for rows in torch.arange(len(data)).split(CHUNK):
        action, score, _ = gate(wm, Look(*(x[rows].to(wm.device).float() for x in known)))
        scores.append(score.cpu())
        errors.append((action.cpu() - data.a_teacher[rows]).square().mean(-1))
    return torch.cat(scores), torch.cat(errors)


def plan_ends(data: DistillationSet, score: Tensor, threshold: float, execution_horizon: int) -> Tensor:
    """Steps (plans,) that each plan of the set would have been executed: to the first score above the threshold, to the
    execution horizon, or to the end of its episode."""
    start = torch.stack([data.episode, data.source, data.decision - data.depth], 1)
    _, plan = start.unique(dim=0, return_inverse=True)
    length = torch.zeros(int(plan.max()) + 1, dtype=torch.long).scatter_reduce(0, plan, data.depth + 1, "amax")
    cut = torch.where(score > threshold, data.depth, execution_horizon)
    first = torch.full_like(length, execution_horizon).scatter_reduce(0, plan, cut, "amin")
    return torch.minimum(length, first)


def calls_per_decision(data: DistillationSet, score: Tensor, threshold: float, execution_horizon: int) -> float:
    """Planner calls per decision at a threshold, if the states that are visited stay what they are."""
    ends = plan_ends(data, score, threshold, execution_horizon)
    return len(ends) / ends.sum().item()


def calibrate(
    gate: Gate,
    wm: WorldModel,
    data: DistillationSet,
    corrector: Corrector | None = None,
    execution_horizon: int = 6,
    call_rate: float | None = None,
    action_error: float | None = None,
    quantile: float = 0.9,
) -> dict[str, float]:
    """The gate's threshold for a wanted planner-call rate (calls per decision), or for a wanted `quantile` of the mean
    squared action error among the steps that it lets pass; and what both then are on the held-out states `data`.

    Raises `ConfigError` when neither or both are wanted, or when no threshold reaches what is wanted.
    """
    if (call_rate is None) == (action_error is None):
        raise ConfigError("calibrate needs a call_rate or an action_error, and not both.")
    score, error = judged(gate, wm, data, corrector)
    if score.isnan().any() or score.isposinf().any():
        raise ConfigError("the gate's scores on the held-out states are not finite; check the world model's weights.")
    if call_rate is not None:
        threshold = _threshold_for_rate(data, score, call_rate, execution_horizon)
    else:
        threshold = _threshold_for_error(score, error, action_error, quantile)
    passed = error[score <= threshold]
    return {
        "threshold": threshold,
        "call_rate": calls_per_decision(data, score, threshold, execution_horizon),
        "action_error": float(passed.quantile(quantile)) if len(passed) else None,
        "quantile": quantile,
        "states": len(data),
    }


@torch.no_grad()
def trust_by_depth(
    data: DistillationSet, corrector: Corrector, execution_horizon: int, device: torch.device | str = "cpu"
) -> dict[str, list | int]:
    """How far a corrector is trusted at each depth below the execution horizon: the share of its correction, from 0 to
    1, that leaves the least squared error to the teacher's actions. And mean squared errors at each depth: the plan's,
    the corrector's, and with trust, which is told of episodes that did not set it (two halves take turns). Depths that
    no state of `data` has are judged as the deepest is.
    """
    wanted = data.a_teacher - data.a_plan
    correction, deepest = corrected_actions(corrector, data, device) - data.a_plan, int(data.depth.max())
    first = torch.isin(data.episode, data.episode.unique()[::2])
    found = {"trust": [], "plan_mse": [], "corrector_mse": [], "trusted_mse": []}
    for depth in range(1, execution_horizon):
        at = data.depth == min(depth, deepest)
        found["trust"].append(_least_squares(correction[at], wanted[at]))
        found["plan_mse"].append(wanted[at].square().mean().item())
        found["corrector_mse"].append((wanted - correction)[at].square().mean().item())
        total = 0.0
        for half in (first, ~first):
            trust = _least_squares(correction[at & ~half], wanted[at & ~half])
            total += (wanted - trust * correction)[at & half].square().sum().item()
        found["trusted_mse"].append(total / max(wanted[at].numel(), 1))
    return found | {"states": len(data)}


def _least_squares(correction: Tensor, wanted: Tensor) -> float:
    """The factor from 0 to 1 by which a correction is nearest to the wanted one; 0 where there is none."""
    size = correction.square().sum().item()
    return min(max((correction * wanted).sum().item() / size, 0.0), 1.0) if size else 0.0


def _threshold_for_rate(data: DistillationSet, score: Tensor, wanted: float, execution_horizon: int) -> float:
    """The smallest score that is a threshold with at most the wanted rate: the rate falls as the threshold rises.

    States that need no check, of score −∞, are no candidates: a threshold must be a finite loss of value.
    """
    candidates = score[score > -torch.inf].unique()  # in ascending order
    if not len(candidates):
        raise ConfigError("no held-out state has a score, as all are below the gate's levels; lower these.")
    low, high = 0, len(candidates) - 1
    if calls_per_decision(data, score, candidates[high].item(), execution_horizon) > wanted:
        least = calls_per_decision(data, score, torch.inf, execution_horizon)
        raise ConfigError(f"call_rate={wanted} is out of reach: executing every plan to its end calls at {least:.3f}.")
    while low < high:
        middle = (low + high) // 2
        if calls_per_decision(data, score, candidates[middle].item(), execution_horizon) <= wanted:
            high = middle
        else:
            low = middle + 1
    return candidates[low].item()


def _threshold_for_error(score: Tensor, error: Tensor, wanted: float, quantile: float) -> float:
    """The largest score that is a threshold whose accepted states have at most the wanted quantile of errors."""
    order = score.argsort()
    ranked = error[order].numpy()
    for count in _counts(score[order]):
        if np.quantile(ranked[:count], quantile) <= wanted:
            return score[order[count - 1]].item()
    raise ConfigError(
        f"action_error={wanted} is out of reach: no threshold leaves so small an error; want a larger one."
    )


def _counts(ordered: Tensor, most: int = 256) -> list[int]:
    """How many states thresholds accept, most first: each distinct score, or `most` of them evenly spaced."""
    ends = (torch.cat([ordered[1:] > ordered[:-1], torch.tensor([True])]).nonzero().flatten() + 1).flip(0)
    spaced = torch.linspace(0, len(ends) - 1, min(most, len(ends))).round().long().unique()
    return ends[spaced].tolist()
