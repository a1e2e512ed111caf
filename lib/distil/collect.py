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
from tqdm import tqdm

from lib.distil.states import SOURCES, DistillationError, DistillationSet
from lib.environments import make_env
from lib.planner import MPPI, Plan
from lib.speculation import Proposal, SpeculativeController

FLOOR_SHARE = 0.1  # of the decisions are solved twice


@torch.no_grad()
def collect(
    planner: MPPI,
    labeller: MPPI,
    task: str,
    seeds: list[int],
    execution_horizon: int = 6,
    corrector: nn.Module | None = None,
    beta: float = 0.2,
    decisions: int = 500,
    source: int = 0,
    what: str = "collecting",
) -> DistillationSet:
    """Speculative rollouts with the plans of `planner`, one episode per seed; the label of `labeller` at every state of
    depth ≥ 1. `source` is the position of `planner` in `SOURCES`.

    All rows move through their plans in step, so each decision costs one batched solve: either the replan or the label.
    The result depends on the arguments alone, not on what the planners solved before. Raises `DistillationError` when
    the two planners do not fit together, or there is nothing to collect.
    """
    _check(planner, labeller, source)
    if execution_horizon < 2:
        raise DistillationError(
            f"execution_horizon={execution_horizon} leaves no step to label; it must be at least 2."
        )
    for solver in (planner, labeller):
        solver.reset_streams(seeds[0])
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
            label = labeller(step.z, warm, streams)
            again = labeller(step.z, warm, streams) if coin.random() < FLOOR_SHARE else None
            records.append(_record(step, controller.plan, label, again))
            records[-1] |= {
                "episode": torch.tensor([seeds[i] for i in alive]),
                "decision": torch.full((len(alive),), decision),
                "source": torch.full((len(alive),), source),
            }
            teach = torch.from_numpy(coin.random(len(alive)) < beta).to(executed.device)
            executed = torch.where(teach.unsqueeze(-1), label.actions[:, 0], executed)
        controller.commit(executed)
        obs, alive = _step(envs, alive, executed.cpu().numpy(), controller)
        if not alive:
            break
    if not records:
        raise DistillationError(
            f"nothing to collect: {decisions} decisions with execution horizon {execution_horizon}."
        )
    solved_twice = torch.cat([r.pop("solved_twice") for r in records])
    columns = {k: torch.cat([r[k] for r in records]) for k in records[0]}
    return DistillationSet(**columns, again_index=solved_twice.nonzero().flatten())


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
