"""The one loop that steps environments: a controller's episodes as a batch, decision by decision.

    for step in rollout(controller, partial(make_env, "walker-walk"), seeds=[3, 4], decisions=500):
        returns[step.rows] += step.rewards

Evaluation, collection, cards, buffers, action errors and films read what it yields. (Timing takes turns between many
controllers, and only starts its episodes here; training plays vectorised environments in rounds.)

Where a simulator diverges, that is, a reward or an observation is not finite, the episode ends as a failure: a line on
stderr says so, the step is left out, and what came before it counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the package imports this module, and must not take the time that numpy and torch do
    import gymnasium
    import numpy as np

    from lib.protocols import Controller


@dataclass
class Decision:
    """One decision of the episodes that still run: `rows`, their positions among the seeds (B,); what the controller
    saw, obs (B, obs_dim), and did, actions (B, A); its records `info`, each (B,); what came of it: the rewards (B,),
    what is seen then, next_obs (B, obs_dim), and whether the episode has ended, but not by its time limit, terminated
    (B,)."""

    rows: list[int]
    obs: np.ndarray
    actions: np.ndarray
    info: dict[str, np.ndarray]
    rewards: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray


def start(controller: Controller, envs: Sequence[gymnasium.Env], seeds: Sequence[int]) -> np.ndarray:
    """Begin one episode per seed, with the random streams that belong to it: the first observations (B, obs_dim)."""
    import numpy as np
    import torch

    from lib.environments import EnvironmentFailed, failure

    controller.reset(len(seeds), [torch.Generator().manual_seed(seed) for seed in seeds])
    begun = [env.reset(seed=seed) for env, seed in zip(envs, seeds, strict=True)]
    for why in filter(None, (failure(info) for _, info in begun)):
        raise EnvironmentFailed(f"{why}.")
    return np.stack([obs for obs, _ in begun])


def rollout(
    controller: Controller,
    envs: Sequence[gymnasium.Env] | Callable[[int], gymnasium.Env],
    seeds: Sequence[int],
    decisions: int,
    what: str = "",
) -> Iterator[Decision]:
    """One episode per seed as a batch, decision by decision, for at most `decisions` of them; none without seeds.

    `envs` are the seeds' own environments, or make the one of a seed. Episodes that end leave the batch. `what` is the
    label of a progress bar; there is none without it. Raises `EnvironmentFailed` where an environment other than the
    suite's raised or gave what is not finite.
    """
    import numpy as np
    import torch

    from lib.environments import EnvironmentFailed, failure

    if not seeds:
        return
    envs = [envs(seed) for seed in seeds] if callable(envs) else envs
    obs, rows, counted = start(controller, envs, seeds), list(range(len(seeds))), range(decisions)
    if what:
        from tqdm import tqdm

        counted = tqdm(counted, desc=what, unit="decision", mininterval=2)
    for decision in counted:
        actions, info = controller.act(torch.from_numpy(obs))
        actions = actions.cpu().numpy()
        steps = [envs[i].step(action) for i, action in zip(rows, actions, strict=True)]
        info, rewards = {k: v.cpu().numpy() for k, v in info.items()}, np.array([step[1] for step in steps])
        after = np.stack([step[0] for step in steps])
        sound = np.isfinite(rewards) & np.isfinite(after).all(1)
        if not sound.all():
            for row in np.flatnonzero(~sound):
                if why := failure(steps[row][4]):
                    raise EnvironmentFailed(f"{why}; this was the episode with seed {seeds[rows[row]]}.")
                where = f"at decision {decision} of the episode with seed {seeds[rows[row]]}, which ends there"
                print(f"{what or 'rollout'}: the simulator diverged {where}", file=sys.stderr, flush=True)
            if not (usable := np.flatnonzero(sound).tolist()):
                break
            controller.keep(usable)
            rows, steps = [rows[row] for row in usable], [steps[row] for row in usable]
            obs, actions, rewards, after = (x[usable] for x in (obs, actions, rewards, after))
            info = {k: v[usable] for k, v in info.items()}
        terminated = np.array([step[2] for step in steps])
        yield Decision(rows, obs, actions, info, rewards, after, terminated)
        running = [row for row, (_, _, terminated, truncated, _) in enumerate(steps) if not (terminated or truncated)]
        if not running:
            break
        if len(running) < len(rows):
            controller.keep(running)
        obs, rows = after[running], [rows[row] for row in running]
