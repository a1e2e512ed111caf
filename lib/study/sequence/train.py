"""Training a policy on trajectories alone: Decision Transformer and behaviour cloning, saved and resumed.

    policy, curve = train(DecisionTransformer, data, OfflineTraining(), seed=1, folder=folder, play=play)
    save_policy(policy, path, {"env": "walker-walk"})
    policy, about = load_policy(path)

A run's folder has `state.pt` (weights, the best ones, optimiser, schedule, random streams) and `curve.csv`. What comes
out are the weights of the evaluation with the least validation loss; returns measured on the way are only shown.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from lib.config import ConfigError
from lib.records.store import atomic_path, write_table
from lib.study.profiles import SequenceStudy
from lib.study.sequence.behaviour_cloning import BehaviourCloning
from lib.study.sequence.decision_transformer import DecisionTransformer
from lib.study.sequence.windows import OfflineDataError, OfflinePolicy, TrajectorySet, Windows, return_scale
from lib.weights.official import CheckpointError, check_tensors

FORMAT = "offline-policy/1"
POLICIES = {policy.arm: policy for policy in (DecisionTransformer, BehaviourCloning)}
HELD_OUT = 0.1  # of the trajectories
CHUNK = 256  # windows at a time where no gradient is needed
SAVE_SECONDS = 60


@dataclass(frozen=True)
class OfflineTraining:
    """AdamW with a linear warm-up. The defaults are from Chen et al. 2021, appendix A, but for the updates and the
    warm-up, which are a tenth of theirs or less."""

    updates: int = 10_000
    warm_up: int = 500
    lr: float = 1e-4
    weight_decay: float = 1e-4
    batch_size: int = 64  # windows
    grad_clip: float = 0.25
    evaluate_every: int = 1_000

    @classmethod
    def of(cls, size: SequenceStudy) -> OfflineTraining:
        """The training of a profile."""
        told = ("updates", "warm_up", "lr", "batch_size", "evaluate_every")
        return cls(**{name: getattr(size, name) for name in told})

    def __post_init__(self):
        for name in ("updates", "warm_up", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"OfflineTraining.{name}={getattr(self, name)} must be at least 1.")


class _Run:
    """A resumable training run; everything that the next update depends on is in `state`."""

    def __init__(
        self, policy: type[OfflinePolicy], data: TrajectorySet, training: OfflineTraining, seed: int, device: str
    ):
        self.training, self.device = training, torch.device(device)
        train, held = data.split(HELD_OUT, seed)
        torch.manual_seed(seed)
        self.model = policy.of(train, **_fitted(policy, data)).to(device)
        self.windows, self.held = (Windows(side.trajectories, self.model.shape.context) for side in (train, held))
        self.rng = np.random.default_rng(seed)
        c = training
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=c.lr, weight_decay=c.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda u: min((u + 1) / c.warm_up, 1.0))
        self.updates, self.minutes, self.losses = 0, 0.0, []
        self.curve, self.best, self.best_weights = [], float("inf"), None

    def update(self) -> None:
        self.model.train()
        loss = self.model.loss(self.windows.sample(self.rng, self.training.batch_size).to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.training.grad_clip)
        self.optimiser.step()
        self.schedule.step()
        self.updates += 1
        self.losses.append(loss.item())

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Of every held-out decision, in consecutive windows."""
        self.model.eval()
        total = count = 0
        for rows in np.array_split(self.held.covering(), -(-len(self.held.covering()) // CHUNK)):
            batch = self.held.starting_at(rows).to(self.device)
            decisions = int(batch.mask.sum())
            total, count = total + decisions * self.model.loss(batch).item(), count + decisions
        return total / count

    def evaluate(self, play: Callable[[OfflinePolicy], dict] | None) -> dict:
        """A row of the curve; the random streams of the training are left alone."""
        loss = self.validation_loss()
        row = {"updates": self.updates, "minutes": self.minutes, "action_loss": float(np.mean(self.losses))}
        with torch.random.fork_rng():  # what is played on the way may draw
            self.curve.append(row | {"val_loss": loss} | (play(self.model) if play else {}))
        self.losses = []
        if loss < self.best:
            self.best, self.best_weights = loss, copy.deepcopy(self.model.state_dict())
        return self.curve[-1]

    def state(self) -> dict:
        plain = ("updates", "minutes", "losses", "curve", "best", "best_weights")
        streams = {"rng": torch.get_rng_state(), "sampler": json.dumps(self.rng.bit_generator.state)}
        if self.device.type == "cuda":
            streams["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        parts = ("model", "optimiser", "schedule")
        return {k: getattr(self, k) for k in plain} | {k: getattr(self, k).state_dict() for k in parts} | streams

    def resume(self, state: dict) -> None:
        for name in ("model", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("updates", "minutes", "losses", "curve", "best", "best_weights"):
            setattr(self, name, state[name])
        self.rng.bit_generator.state = json.loads(state["sampler"])
        torch.set_rng_state(state["rng"].cpu())
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


def _fitted(policy: type[OfflinePolicy], data: TrajectorySet) -> dict:
    """Of a model that knows time and returns: room for the longest trajectory, and the returns' scale."""
    if policy is not DecisionTransformer:
        return {}
    return {"max_decisions": max(1000, *map(len, data.trajectories)), "return_scale": return_scale(data)}


def train(
    policy: type[OfflinePolicy],
    data: TrajectorySet,
    training: OfflineTraining,
    seed: int,
    folder: Path,
    play: Callable[[OfflinePolicy], dict] | None = None,
    device: str = "cpu",
    what: str = "",
) -> tuple[OfflinePolicy, list[dict]]:
    """The weights with the least validation loss, and the curve: updates, minutes, action_loss (mean over the updates
    since the row before), val_loss, and what `play(model)` adds.

    Saves itself in `folder` and goes on from there: whoever gives a folder answers for its being one of the same
    policy, data, training and seed. Raises `OfflineDataError` when no validation loss is finite.
    """
    run, state = _Run(policy, data, training, seed, device), folder / "state.pt"
    if state.is_file():
        run.resume(torch.load(state, weights_only=True, map_location=device))
    started = saved = time.monotonic()
    started -= 60 * run.minutes
    bar = tqdm(total=training.updates, initial=run.updates, desc=what, unit="update", mininterval=2, disable=not what)
    while run.updates < training.updates:
        run.update()
        bar.update(1)
        run.minutes = (time.monotonic() - started) / 60
        last = run.updates == training.updates
        if due := last or run.updates % training.evaluate_every == 0:
            row = run.evaluate(play)
            bar.set_postfix({k: f"{row[k]:.4g}" for k in ("action_loss", "val_loss", "return_mean") if k in row})
            write_table(folder / "curve.csv", run.curve)
        if due or time.monotonic() - saved > SAVE_SECONDS:
            with atomic_path(state) as path:
                torch.save(run.state(), path)
            saved = time.monotonic()
    bar.close()
    if run.best_weights is None:
        raise OfflineDataError(f"no validation loss of {training.updates} updates is finite; train with a smaller lr.")
    run.model.load_state_dict(run.best_weights)
    return run.model.eval(), run.curve


# ------------------------------------------------------------------------------------------------------ checkpoints


def save_policy(policy: OfflinePolicy, path: Path, about: dict) -> None:
    """Write weights, normalisation, sizes and `about` as safetensors."""
    said = {"format": FORMAT, "arm": policy.arm, "shape": dataclasses.asdict(policy.shape), "about": about}
    tensors = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()}
    # One entry: safetensors writes several in random order, and equal policies are to be equal files.
    save_file(tensors, path, metadata={"offline_policy": json.dumps(said, sort_keys=True)})


def load_policy(path: Path, device: str = "cpu") -> tuple[OfflinePolicy, dict]:
    """A policy in eval mode, and its `about`. `CheckpointError` for a file that is none of ours or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("offline_policy", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {str(error).rstrip('.')}.") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("arm") not in POLICIES:
        raise CheckpointError(f"{path} is no policy of this project; give one that 07_decision_transformer trained.")
    kind = POLICIES[said["arm"]]
    try:
        policy = kind(kind.Shape(**said["shape"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its sizes cannot be used: {str(error).rstrip('.')}.") from None
    check_tensors(tensors, {k: v.shape for k, v in policy.state_dict().items()}, path)
    policy.load_state_dict(tensors)
    return policy.eval().to(device), said["about"]
