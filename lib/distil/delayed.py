"""Collecting what a corrector of late plans learns from: plans of every age, and what the planner would do now.

    data = collect_delayed(MPPI(wm, config), envs, seeds, 2_000, corrector, beta=0.5, delays=(1, 2, 3, 4))

The states are those of asynchronous rollouts, in which every solve takes a number of decisions that is drawn anew
(`lib.realtime.RealTimeController`): a plan that took d of them, with one behind it that takes e, is between d and
d + e − 1 decisions old. Every decision at which the corrector would act is labelled by the planner, which starts warm
from its label before, as it would if it planned at every step. With probability `beta` the label is executed, else what
the corrector does (DAgger, Ross et al. 2011). Beyond a plan's end the action to be corrected is the prior's inside the
model, as it is in control.

The column `plan` of such a set begins where the plan arrived, not at depth 0, and plans follow each other without a
gap: the losses and histories of `lib.distil.train` that need those are not for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lib.correctors import MAX_DEPTH, TwoTowerCorrector
from lib.distil.collect import FLOOR_SHARE
from lib.distil.states import SOURCES, DistillationError, DistillationSet
from lib.planner import MPPI
from lib.realtime.delayed import RealTimeController, Seen, State, planned
from lib.rollout import rollout

RIGHT_SIZED = SOURCES.index("right-sized")


def collect_delayed(
    planner: MPPI,
    envs,
    seeds: list[int],
    labels: int,
    corrector: nn.Module | None = None,
    beta: float = 1.0,
    delays: Sequence[int] = (1, 2, 3, 4),
    decisions: int = 500,
    what: str = "",
) -> DistillationSet:
    """At least so many `labels`, of whole episodes with the first of these seeds, at least two, one at every decision
    after the first plan has arrived. `envs` and `what` are `lib.rollout.rollout`'s; without a corrector labels are
    executed, whatever `beta` is. A `depth` is a plan's age, `MAX_DEPTH` at most.

    Raises `DistillationError` for delays below 1, a beta outside 0…1, a planner whose actions are no means, and where
    there are too few seeds.
    """
    if not delays or min(delays) < 1:
        raise DistillationError(f"delays={tuple(delays)} must be at least 1: a plan that is at once there is not late.")
    if planner.config.action_selection != "mean":
        raise DistillationError('labels are the weighted mean of the elites; give a planner with "mean" selection.')
    if not 0 <= beta <= 1:
        raise DistillationError(f"beta={beta} is a probability; give a number in 0…1.")
    records, found, taken = [], 0, 0
    while found < labels or taken < 2:
        block = seeds[taken : taken + max(math.ceil((labels - found) / decisions), 1 if taken else 2)]
        if not block:
            wanted = f"{labels} labels of two episodes or more"
            raise DistillationError(f"{len(seeds)} seeds are too few for {wanted}: they have {found}; give more seeds.")
        taught = TaughtLate(planner, corrector, 1.0 if corrector is None else beta, delays, block)
        for _ in rollout(taught, envs, block, decisions, what):
            pass
        records, taken = records + taught.records, taken + len(block)
        found = sum(len(r["depth"]) for r in records)
    again = torch.cat([r.pop("solved_twice") for r in records])
    columns = {k: torch.cat([r[k] for r in records]) for k in records[0]}
    columns["source"] = torch.full_like(columns["depth"], RIGHT_SIZED)
    return DistillationSet(**columns, again_index=again.nonzero().flatten())


class TaughtLate(RealTimeController):
    """Acts as `RealTimeController` would, but has every decision labelled, and with probability `beta` executes the
    label, which the solves that begin and the next prediction know. `records` are the columns by decision."""

    def __init__(self, planner: MPPI, corrector, beta: float, delays: Sequence[int], seeds: list[int]):
        wm = planner.wm
        if corrector is None:  # untrained, so that what it repairs stays as it is
            corrector = TwoTowerCorrector(wm.latent_dim, wm.action_dim).to(wm.device).eval()
        super().__init__(planner, corrector, delay=lambda generator: delays[_below(len(delays), generator)])
        self.beta, self.seeds = beta, seeds
        self.records: list[dict[str, Tensor]] = []

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start the episodes of `seeds`, whose labels have random streams of their own."""
        super().reset(batch_size, generators)
        self._seeds, self._warm = self.seeds, None
        self._coins = [np.random.default_rng([seed, 1]) for seed in self.seeds]
        self._twice = np.random.default_rng(self.seeds[0])
        self._streams = [torch.Generator().manual_seed(seed + 2**31) for seed in self.seeds]

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        super().keep(rows)
        self._seeds, self._coins, self._streams = (
            [x[row] for row in rows] for x in (self._seeds, self._coins, self._streams)
        )
        self._warm = None if self._warm is None else self._warm[rows]

    def _looked(self, obs: Tensor, state: State, judged: list[int]) -> Seen:
        """What is seen, with the action that is executed."""
        seen = super()._looked(obs, state, judged)
        self.planner.reset_streams(self._decision)  # so that labels do not depend on when plans begin
        label = self.planner(seen.z, self._warm, self._streams)
        twice = bool(self._twice.random() < FLOOR_SHARE)
        again = self.planner(seen.z, self._warm, self._streams) if twice else None
        self._warm = label.shifted(1)
        if seen.acts.any():
            self._note(seen, state, label, again)
        teach = torch.tensor([coin.random() < self.beta for coin in self._coins], device=obs.device).unsqueeze(-1)
        action = torch.where(teach, label.actions[:, 0], seen.action)
        return seen._replace(action=action, ahead=self.wm.next(seen.z_pred, action))

    def _note(self, seen: Seen, state: State, label, again) -> None:
        """Record the rows in which the corrector acts; latents in half precision."""
        a_plan, _ = planned(self.wm, True, seen.z_pred, state.plan, seen.position, state.known)
        columns = {
            "z_real": seen.z.half(),
            "z_pred": seen.z_pred.half(),
            "a_plan": a_plan,
            "a_policy": self.wm.policy(seen.z)[0],
            "a_teacher": label.actions[:, 0],
            "plan": state.plan,
            "teacher_plan": label.actions,
            "depth": state.depth.clamp(max=MAX_DEPTH),
            "mismatch": seen.mismatch,
            "episode": torch.tensor(self._seeds, device=seen.z.device),
            "decision": torch.full_like(state.depth, self._decision),
            "solved_twice": torch.full_like(seen.acts, again is not None),
        }
        record = {k: v[seen.acts].cpu().clone() for k, v in columns.items()}
        second = label.actions[:0, 0] if again is None else again.actions[seen.acts, 0]
        self.records.append(record | {"a_again": second.cpu().clone()})


def _below(most: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(most, (1,), generator=generator))
