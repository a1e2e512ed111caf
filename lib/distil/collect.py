"""Collecting the distillation set: states where plans have gone stale, labelled by the replanning teacher.

The corrector must answer: *what would the planner do here, had it replanned?* So the states come from speculative
rollouts, where plans go stale, and every state at depth ≥ 1 is labelled with a full solve from the warm start that a
replan would use. Labels are the weighted elite mean. A second, independent solve on part of the states gives the
teacher's self-disagreement: the floor, half the mean squared difference of two solves, that no corrector can beat.

The planner whose plans go stale need not be the one that labels: plans of a right-sized planner are corrected towards
what the standard one would do. Later rounds execute the corrector of the rounds before (DAgger, Ross et al. 2011), so
that it is trained on the states that it will visit; with probability `beta` a decision executes the label instead.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lib.distil.states import SOURCES, DistillationError, DistillationSet
from lib.planner import MPPI, Plan
from lib.protocols import answered, rows_of
from lib.rollout import rollout
from lib.speculation import Proposal, SpeculativeController

FLOOR_SHARE = 0.1  # of the decisions are solved twice


def collect(
    planner: MPPI,
    labeller: MPPI,
    envs,
    seeds: list[int],
    execution_horizon: int = 6,
    corrector: nn.Module | None = None,
    beta: float = 0.2,
    decisions: int = 500,
    source: int = 0,
    what: str = "",
) -> DistillationSet:
    """Speculative rollouts with the plans of `planner`, one episode per seed; the label of `labeller` at every state of
    depth ≥ 1. `source` is the position of `planner` in `SOURCES`; `envs` and `what` are `lib.rollout.rollout`'s.

    All rows move through their plans in step, so each decision costs one batched solve: either the replan or the label.
    The result depends on the arguments alone, not on what the planners solved before. Raises `DistillationError` when
    the two planners do not fit together, or there is nothing to collect.
    """
    _check(planner, labeller, source)
    if execution_horizon < 2:
        raise DistillationError(
            f"execution_horizon={execution_horizon} leaves no step to label; it must be at least 2."
        )
    student = SpeculativeController(planner, corrector, execution_horizon=execution_horizon)
    taught = Taught(student, labeller, seeds, beta)
    for _ in rollout(taught, envs, seeds, decisions, what):
        pass
    if not (records := taught.records):
        raise DistillationError(
            f"nothing to collect: {decisions} decisions with execution horizon {execution_horizon}."
        )
    solved_twice = torch.cat([r.pop("solved_twice") for r in records])
    columns = {k: torch.cat([r[k] for r in records]) for k in records[0]}
    columns["source"] = torch.full_like(columns["depth"], source)
    return DistillationSet(**columns, again_index=solved_twice.nonzero().flatten())


class Taught:
    """A controller that does what `student` would, but has every decision between two plans labelled, and with
    probability `beta` executes the label. `records` are the columns of the set, decision by decision."""

    def __init__(self, student: SpeculativeController, labeller: MPPI, seeds: list[int], beta: float):
        self.student, self.labeller, self.seeds, self.beta = student, labeller, seeds, beta
        self.records: list[dict[str, Tensor]] = []
        self._seeds: list[int] = []  # `reset` begins

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start the episodes of `seeds`, whose labels have random streams of their own."""
        self.student.reset(batch_size, generators)
        self._seeds, self._decision, self._coin = self.seeds, 0, np.random.default_rng(self.seeds[0])
        self.labeller.reset_streams(self.seeds[0])
        # Not seed + 1, which plans the next episode.
        self._streams = [torch.Generator().manual_seed(seed + 2**31) for seed in self.seeds]

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self.student.keep(rows)
        self._seeds, self._streams = ([x[row] for row in rows] for x in (self._seeds, self._streams))

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim), and the student's records."""
        obs, alone = rows_of(obs, len(self._seeds), self.student.wm.device)
        step = self.student.propose(obs)
        executed = step.action
        if not step.planner_called.any():
            warm = self.student.warm_start()
            label = self.labeller(step.z, warm, self._streams)
            again = self.labeller(step.z, warm, self._streams) if self._coin.random() < FLOOR_SHARE else None
            about = {"episode": torch.tensor(self._seeds), "decision": torch.full((len(obs),), self._decision)}
            self.records.append(_record(step, self.student.plan, label, again) | about)
            teach = torch.from_numpy(self._coin.random(len(obs)) < self.beta).to(executed.device)
            executed = torch.where(teach.unsqueeze(-1), label.actions[:, 0], executed)
        self.student.commit(executed)
        self._decision += 1
        return answered(executed, step.info(), alone)


def _check(planner: MPPI, labeller: MPPI, source: int) -> None:
    if planner.wm is not labeller.wm:
        raise DistillationError("the planner and the labeller have different world models; give both the teacher's.")
    if planner.config.horizon != labeller.config.horizon:
        raise DistillationError(
            f"the planner plans {planner.config.horizon} steps and the labeller {labeller.config.horizon}; "
            "the labeller starts from the planner's plan, so give both the same horizon."
        )
    if labeller.config.action_selection != "mean":
        raise DistillationError('labels are the weighted mean of the elites; give a labeller with "mean" selection.')
    if not 0 <= source < len(SOURCES):
        raise DistillationError(f"source={source} is not a position in {SOURCES}.")


def _record(step: Proposal, plan: Tensor, label: Plan, again: Plan | None) -> dict[str, Tensor]:
    """What one labelled decision adds to the columns; B rows on the CPU, latents in half precision."""
    record = {
        "z_real": step.z.half(),
        "z_pred": step.z_pred.half(),
        "a_plan": step.a_plan,
        "a_policy": step.a_policy,
        "a_teacher": label.actions[:, 0],
        "plan": plan,
        "teacher_plan": label.actions,
        "depth": step.depth,
        "mismatch": step.mismatch,
        "solved_twice": torch.full_like(step.planner_called, again is not None),
        "a_again": label.actions[:0, 0] if again is None else again.actions[:, 0],
    }
    return {k: v.cpu().clone() for k, v in record.items()}  # the controller writes into its plans
