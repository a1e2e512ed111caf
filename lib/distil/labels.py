"""Collecting what a draft learns from: states that it visits, labelled by the planner (DAgger, Ross et al. 2011).

    states = collect_labels(MPPI(wm, small), MPPI(wm, standard), envs, seeds, 2_000, draft, beta=0.5)
    states = LabelledStates.load(*files)

Every decision is labelled, by a planner that starts warm from the label before, as it would if it acted at every step.
With probability `beta` the label is executed, else what the draft would do. A tenth of the decisions is labelled twice
more: again by the same planner, whose disagreement with itself no draft can beat, and by the standard one, which says
whether the cheap labels are as good.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.distil.states import DistillationError
from lib.planner import MPPI
from lib.protocols import answered, rows_of
from lib.rollout import rollout

FORMAT = "labels/1"
AGAIN_SHARE = 0.1  # of the decisions are labelled by both planners once more


@dataclass
class LabelledStates:
    """n states: latents z (n, L) float16, the prior's actions a_policy and the labels a_label (n, A); seed of the
    `episode`, `decision` and `round` (n,) int64; of the rows `again_index` (m,) the same planner's second label a_again
    and the standard planner's a_standard (m, A). `about` says where they come from."""

    z: Tensor
    a_policy: Tensor
    a_label: Tensor
    episode: Tensor
    decision: Tensor
    round: Tensor
    again_index: Tensor
    a_again: Tensor
    a_standard: Tensor
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.decision)

    def columns(self) -> dict[str, Tensor]:
        """All columns by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "about"}

    def rows(self, keep: Tensor) -> LabelledStates:
        """The rows where `keep` (n,) is true."""
        again = keep[self.again_index]
        chosen = {name: column[again if name.startswith("a_again") or name == "a_standard" else keep]
                  for name, column in self.columns().items() if name != "again_index"}  # fmt: skip
        index = (keep.cumsum(0) - 1)[self.again_index[again]]
        return LabelledStates(**chosen, again_index=index, about=self.about)

    def disagreement(self) -> dict[str, float]:
        """Mean squared errors on the rows that were labelled again: `floor`, half the difference of two labels of the
        same planner; `to_standard`, that of a label and the standard planner's. NaN where there are none."""
        label = self.a_label[self.again_index]
        return {
            "floor": 0.5 * (label - self.a_again).square().mean().item(),
            "to_standard": (label - self.a_standard).square().mean().item(),
        }

    def save(self, path: Path) -> None:
        """Write the columns and `about`."""
        metadata = {"labels": json.dumps({"format": FORMAT, "about": self.about}, sort_keys=True)}
        save_file({k: v.contiguous() for k, v in self.columns().items()}, path, metadata=metadata)

    @classmethod
    def load(cls, *files: Path) -> LabelledStates:
        """The rows of all files, in order; `DistillationError` for a file that is none, or of another teacher."""
        parts, start = [], 0
        for file in files:
            part = cls._read(file)
            if parts and part.about.get("teacher_key") != parts[0].about.get("teacher_key"):
                raise DistillationError(f"{file} is labelled by another teacher than {files[0]}.")
            if any(set(part.episode.tolist()) & set(other.episode.tolist()) for other in parts):
                raise DistillationError(f"{file} holds an episode that the files before it hold too; leave it out.")
            part.again_index += start
            start += len(part)
            parts.append(part)
        columns = {k: torch.cat([part.columns()[k] for part in parts]) for k in parts[0].columns()}
        return cls(**columns, about=parts[0].about)

    @classmethod
    def _read(cls, file: Path) -> LabelledStates:
        try:
            with safe_open(file, framework="pt") as opened:
                said = json.loads((opened.metadata() or {})["labels"])
                part = cls(**{name: opened.get_tensor(name) for name in opened.keys()}, about=dict(said["about"]))
                found = said["format"], len({len(part.columns()[k]) for k in ("z", "a_label", "episode", "round")})
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DistillationError(f"{file} holds no labelled states: {str(error).rstrip('.')}.") from None
        sound = all(torch.isfinite(column).all() for column in part.columns().values())
        if found != (FORMAT, 1) or not len(part) or not sound:
            raise DistillationError(f"{file} is damaged, or of another format than {FORMAT}; collect it again.")
        return part


def collect_labels(
    labeller: MPPI,
    standard: MPPI,
    envs,
    seeds: list[int],
    labels: int,
    draft: nn.Module | None = None,
    beta: float = 1.0,
    decisions: int = 500,
    number: int = 1,
    what: str = "",
) -> LabelledStates:
    """At least so many `labels`, of whole episodes with the first of these seeds, at least two, of the round `number`;
    one label of `labeller` at every decision. `envs` and `what` are `lib.rollout.rollout`'s. `about` has
    `label_minutes`, which the labels alone have taken.

    Without a draft the labels are executed. Raises `DistillationError` when the planners do not fit together, or the
    episodes end so early that there are too few seeds.
    """
    if labeller.wm is not standard.wm or labeller.config.horizon != standard.config.horizon:
        raise DistillationError("both planners need the teacher's world model and the same horizon.")
    if {labeller.config.action_selection, standard.config.action_selection} != {"mean"}:
        raise DistillationError('labels are the weighted mean of the elites; give planners with "mean" selection.')
    records, taken, seconds = [], 0, 0.0
    while (lacking := labels - sum(len(r["decision"]) for r in records)) > 0 or taken < 2:
        block = seeds[taken : taken + max(math.ceil(lacking / decisions), 1 if taken else 2)]
        if not block:
            raise DistillationError(f"{taken} episodes have {lacking} labels too few; their ends come too early.")
        taught = Labelled(labeller, standard, draft, block, 1.0 if draft is None else beta)
        for _ in rollout(taught, envs, block, decisions, what):
            pass
        records, taken, seconds = records + taught.records, taken + len(block), seconds + taught.seconds
    again = torch.cat([r.pop("again") for r in records])
    columns = {k: torch.cat([r[k] for r in records]) for k in records[0]}
    columns |= {"round": torch.full_like(columns["decision"], number), "again_index": again.nonzero().flatten()}
    return LabelledStates(**columns, about={"label_minutes": seconds / 60})


class Labelled:
    """Executes the label with probability `beta`, else the draft's action. `records` are columns by decision."""

    def __init__(self, labeller: MPPI, standard: MPPI, draft: nn.Module | None, seeds: list[int], beta: float):
        self.labeller, self.standard, self.draft, self.seeds, self.beta = labeller, standard, draft, seeds, beta
        self.records: list[dict[str, Tensor]] = []
        self._seeds: list[int] = []  # `reset` begins

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start the episodes of `seeds` with the rows' own random streams."""
        self._seeds, self._streams, self._warm = self.seeds, generators, None
        self._decision, self._twice, self.seconds = 0, np.random.default_rng(self.seeds[0]), 0.0
        self._coins = [np.random.default_rng([seed, 1]) for seed in self.seeds]  # the rows' own: episodes end early
        for planner in (self.labeller, self.standard):
            planner.reset_streams(self.seeds[0])

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        lists = self._seeds, self._streams, self._coins
        self._seeds, self._streams, self._coins = ([x[row] for row in rows] for x in lists)
        self._warm = self._warm[rows]

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim), and no records."""
        wm = self.labeller.wm
        obs, alone = rows_of(obs, len(self._seeds), wm.device)
        z = wm.encode(obs)
        a_policy = wm.policy(z)[0]
        started = time.perf_counter()
        plan = self.labeller(z, self._warm, self._streams)
        label, nothing = plan.actions[:, 0], plan.actions[:0, 0]
        self.seconds += time.perf_counter() - started if self._decision else 0  # the first may wait for the compiler
        twice = bool(self._twice.random() < AGAIN_SHARE)
        again = {
            "a_again": self.labeller(z, self._warm, self._streams).actions[:, 0] if twice else nothing,
            "a_standard": self.standard(z, self._warm, self._streams).actions[:, 0] if twice else nothing,
        }
        record = {"z": z.half(), "a_policy": a_policy, "a_label": label, **again}
        about = {"episode": torch.tensor(self._seeds), "decision": torch.full((len(obs),), self._decision)}
        about |= {"again": torch.full((len(obs),), twice)}
        self.records.append({k: v.cpu().clone() for k, v in record.items()} | about)
        teach = torch.tensor([coin.random() < self.beta for coin in self._coins], device=label.device)
        action = label if self.draft is None else self.draft(z, a_policy)[0]
        self._warm, self._decision = plan.shifted(1), self._decision + 1
        return answered(torch.where(teach.unsqueeze(-1), label, action), {}, alone)
