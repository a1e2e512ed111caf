"""Collecting the distillation set: states where plans have gone stale, labelled by the replanning teacher.

The corrector must answer: *what would the planner do here, had it replanned?* So the states come from speculative
rollouts, where plans go stale, and every state at depth ≥ 1 is labelled with a full solve from the warm start that a
replan would use. Labels are the weighted elite mean. A second, independent solve on part of the states gives the
teacher's self-disagreement: the floor, half the mean squared difference of two solves, that no corrector can beat.

Later rounds execute the corrector of the round before (DAgger, Ross et al. 2011), so that it is trained on the states
that it will visit; with probability `beta` a decision executes the teacher's label instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lib.planner import MPPI
from lib.speculation import Proposal, SpeculativeController
from lib.tasks import make_env
from lib.world_model import WorldModel

FLOOR_SHARE = 0.25  # of the decisions are solved twice


class DistillationError(ValueError):
    """A distillation set cannot be used; the message says which and why."""


@dataclass
class DistillationSet:
    """Labelled states, n rows. z_real, z_pred (n, L); a_plan, a_policy, a_teacher (n, A); depth, episode, decision (n,)
    int64; mismatch (n,). `again_index` (m,) are the rows solved a second time, `a_again` (m, A) what that gave."""

    z_real: Tensor
    z_pred: Tensor
    a_plan: Tensor
    a_policy: Tensor
    a_teacher: Tensor
    depth: Tensor
    mismatch: Tensor
    episode: Tensor
    decision: Tensor
    again_index: Tensor
    a_again: Tensor

    def __len__(self) -> int:
        return len(self.depth)

    def save(self, path: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> DistillationSet:
        """Read a saved set; `DistillationError` when the file is damaged, empty or not finite."""
        try:
            data = cls(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise DistillationError(f"{path} is not a distillation set: {error}.") from None
        rows = {len(v) for k, v in vars(data).items() if k not in ("again_index", "a_again")}
        if len(rows) > 1 or len(data.again_index) != len(data.a_again):
            raise DistillationError(f"{path} is not a distillation set: its columns differ in length.")
        if not len(data) or not all(torch.isfinite(v).all() for v in vars(data).values()):
            raise DistillationError(f"{path} is empty or holds values that are not finite; collect it again.")
        return data

    @classmethod
    def joined(cls, parts: list[DistillationSet]) -> DistillationSet:
        """Several sets as one; rows keep their order, `again_index` is moved along."""
        fields = {k: torch.cat([getattr(p, k) for p in parts]) for k in vars(parts[0])}
        starts = np.cumsum([0, *(len(p) for p in parts[:-1])])
        fields["again_index"] = torch.cat([p.again_index + int(s) for p, s in zip(parts, starts, strict=True)])
        return cls(**fields)

    def rows(self, keep: Tensor) -> DistillationSet:
        """The rows where `keep` (n,) is true."""
        new_place = keep.cumsum(0) - 1
        again = keep[self.again_index]
        fields = {k: v[keep] for k, v in vars(self).items() if k not in ("again_index", "a_again")}
        return DistillationSet(**fields, again_index=new_place[self.again_index[again]], a_again=self.a_again[again])

    def filtered(self, min_mismatch: float = 0.0, max_samples: int = 0) -> DistillationSet:
        """The rows that drifted at least `min_mismatch`; of these at most `max_samples` (0 = all), evenly spaced."""
        keep = self.mismatch >= min_mismatch
        if max_samples and keep.sum() > max_samples:
            spaced = torch.linspace(0, keep.sum().item() - 1, max_samples).long()
            keep = torch.zeros_like(keep).index_fill(0, keep.nonzero().flatten()[spaced], True)
        if not keep.any():
            raise DistillationError(
                f"no state has a mismatch of {min_mismatch}; the largest is {self.mismatch.max():.3f}."
            )
        return self.rows(keep)

    def floor_mse(self) -> float:
        """Half the mean squared difference of two independent teacher solves; NaN when nothing was solved twice."""
        if not len(self.again_index):
            return float("nan")
        return 0.5 * (self.a_teacher[self.again_index] - self.a_again).square().mean().item()


# ------------------------------------------------------------------------------------------------------ collecting


@torch.no_grad()
def collect(
    planner: MPPI,
    task: str,
    seeds: list[int],
    execution_horizon: int = 3,
    corrector: nn.Module | None = None,
    beta: float = 0.2,
    decisions: int = 500,
    what: str = "collecting",
) -> DistillationSet:
    """Speculative rollouts, one episode per seed, with the teacher's label at every state of depth ≥ 1.

    All rows move through their plans in step, so each decision costs one batched solve: either the replan or the label.
    """
    wm = planner.wm
    controller = SpeculativeController(planner, corrector, execution_horizon=execution_horizon)
    controller.reset(len(seeds), [torch.Generator().manual_seed(s) for s in seeds])
    label_streams = [torch.Generator().manual_seed(s + 2**31) for s in seeds]  # seed + 1 plans the next episode
    coin = np.random.default_rng(seeds[0])
    envs = [make_env(task, s) for s in seeds]
    obs = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)])
    alive = list(range(len(seeds)))
    records: list[dict[str, Tensor]] = []
    for decision in tqdm(range(decisions), desc=what, unit="decision", mininterval=2):
        step = controller.propose(torch.from_numpy(obs))
        executed = step.action
        if not step.planner_called.any():
            warm, streams = controller.warm_start(), [label_streams[i] for i in alive]
            label = planner(step.z, warm, streams).actions[:, 0]
            again = planner(step.z, warm, streams).actions[:, 0] if coin.random() < FLOOR_SHARE else None
            records.append(_record(wm, step, label, again, alive, seeds, decision))
            teach = torch.from_numpy(coin.random(len(alive)) < beta).to(label.device)
            executed = torch.where(teach.unsqueeze(-1), label, executed)
        controller.commit(executed)
        obs, alive = _step(envs, alive, executed.cpu().numpy(), controller)
        if not alive:
            break
    if not records:
        raise DistillationError(
            f"nothing to collect: {decisions} decisions with execution horizon {execution_horizon}."
        )
    again_rows = torch.cat([r.pop("again") for r in records])
    a_again = torch.cat([r.pop("a_again") for r in records])
    fields = {k: torch.cat([r[k] for r in records]) for k in records[0]}
    return DistillationSet(**fields, again_index=again_rows.nonzero().flatten(), a_again=a_again)


def _record(
    wm: WorldModel, step: Proposal, label: Tensor, again: Tensor | None, alive, seeds, decision: int
) -> dict[str, Tensor]:
    n = len(label)
    return {
        "z_real": step.z,
        "z_pred": step.z_pred,
        "a_plan": step.a_plan,
        "a_policy": wm.policy(step.z)[0],
        "a_teacher": label,
        "depth": step.depth,
        "mismatch": step.mismatch,
        "episode": torch.tensor([seeds[i] for i in alive]),
        "decision": torch.full((n,), decision),
        "again": torch.full((n,), again is not None),
        "a_again": label[:0] if again is None else again,
    }


def _step(envs, alive: list[int], actions: np.ndarray, controller) -> tuple[np.ndarray, list[int]]:
    """Step the living environments; drop those whose episode has ended from the batch."""
    obs, still = [], []
    for row, i in enumerate(alive):
        o, _, terminated, truncated, _ = envs[i].step(actions[row])
        if not (terminated or truncated):
            obs.append(o), still.append(row)
    if len(still) < len(alive):
        controller.keep(still)
    return np.array(obs), [alive[row] for row in still]
