"""Whole episodes of a controller that plans at every decision, as a `lib.teachers.replay.Episode` of each.

    episodes = play(MPPI(wm), "walker-walk", episode_seeds("card", 10))     # planned for as one batch

What is played does not depend on how the teacher was trained, so that results from it outlive changes of the training.
"""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from lib.environments import EPISODE_DECISIONS, make_env
from lib.planner import MPPI
from lib.teachers.replay import Episode


@torch.no_grad()
def play(planner: MPPI, task: str, seeds: list[int], decisions: int = EPISODE_DECISIONS, what="") -> list[Episode]:
    """Whole episodes of a teacher that replans at every decision, one per seed, planned as one batch."""
    envs = [make_env(task, seed) for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    obs = [[env.reset(seed=seed)[0]] for env, seed in zip(envs, seeds, strict=True)]
    actions, rewards = [[] for _ in envs], [[] for _ in envs]
    alive, warm = list(range(len(envs))), None
    for _ in tqdm(range(decisions), desc=what, unit="decision", disable=not what, mininterval=2):
        if not alive:
            break
        z = planner.wm.encode(torch.from_numpy(np.stack([obs[i][-1] for i in alive])).to(planner.wm.device))
        plan = planner(z, warm, [generators[i] for i in alive])
        first, warm, still = plan.actions[:, 0].cpu().numpy(), plan.shifted(1), []
        for row, i in enumerate(alive):
            o, r, terminated, truncated, _ = envs[i].step(first[row])
            obs[i].append(o), actions[i].append(first[row]), rewards[i].append(r)
            if not (terminated or truncated):
                still.append(row)
        alive, warm = [alive[row] for row in still], warm[still]
    return [episode_of(*parts) for parts in zip(obs, actions, rewards, strict=True)]


def episode_of(obs: list, actions: list, rewards: list) -> Episode:
    """An `Episode` of what was noted at each decision; `obs` has one more, the last."""
    return Episode(np.array(obs), np.array(actions), np.array(rewards, np.float32))
