"""What policies that learnt offline return: asked for several returns, beside the teacher and its prior, and timed.

    policy, curve = trained(DecisionTransformer, data, OfflineTraining(), seed=1)
    rows = evaluated(policy, "walker-walk", seeds, 500, targets(data.returns.max(), "walker-walk", (0.5, 1.0)))
    table = summarise_offline(pd.DataFrame(rows), "walker-walk")

Environments are DMControl tasks by their official names, and gymnasium's MuJoCo tasks (v5): hopper, halfcheetah,
walker2d. All arms start from the same states.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch

from lib.config import ConfigError
from lib.environments import EPISODE_DECISIONS, episode_decisions, make_env
from lib.records import paths
from lib.records.keys import key_of
from lib.records.ledger import name_of
from lib.records.store import cached, write_json
from lib.rollout import rollout
from lib.study.sequence.train import OfflineTraining, train
from lib.study.sequence.windows import OfflinePolicy, TrajectorySet
from lib.study.speed.timing import summary, timed
from lib.study.stats.intervals import Estimate, bootstrap_ci, kept_return

MUJOCO = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
MUJOCO_DECISIONS = 1000
# Returns of a random policy and of an expert, between which scores are normalised (D4RL, Fu et al. 2020; they were
# measured with earlier versions of the tasks). DMControl's rewards are at most 1 per frame, and an episode has 1000.
REFERENCES = {
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "hopper": (-20.272305, 3234.3),
}
DMCONTROL_REFERENCE = (0.0, 1000.0)
ROWS = 32  # episodes at a time


# ----------------------------------------------------------------------------------------------------- environments


def make_task(env: str, seed: int | None = None) -> gymnasium.Env:
    """A task by its name (see the module). `ConfigError` that suggests near names when it is unknown."""
    return gymnasium.make(MUJOCO[env]) if env in MUJOCO else make_env(env, seed)


def episode_length(env: str, decisions: int = EPISODE_DECISIONS) -> int:
    """Decisions of a whole episode, or `decisions` of a profile that cuts episodes short."""
    if env not in MUJOCO:
        return episode_decisions(env, decisions)
    return MUJOCO_DECISIONS if decisions >= EPISODE_DECISIONS else decisions


def reference(env: str) -> tuple[float, float]:
    """Returns that score 0 and 100."""
    return REFERENCES.get(env, DMCONTROL_REFERENCE)


def normalised_score(env: str, returns):
    """D4RL's score: 0 for the return of a random policy, 100 for an expert's (of DMControl: for none, and for all)."""
    low, high = reference(env)
    return 100 * (np.asarray(returns, dtype=float) - low) / (high - low)


def check_fits(data: TrajectorySet | OfflinePolicy, env: str) -> None:
    """`ConfigError` unless trajectories, or the sizes of a policy, are as wide as the task is."""
    task, has = make_task(env), data.shape if isinstance(data, OfflinePolicy) else data
    wide = tuple(space.shape[0] for space in (task.observation_space, task.action_space))
    if wide != (has.obs_dim, has.action_dim):
        raise ConfigError(
            f"{getattr(data, 'name', 'the checkpoint')} has {has.obs_dim} observations and {has.action_dim} actions, "
            f"but {env} has {wide[0]} and {wide[1]}; say with -p env which task it is of."
        )


def targets(best: float, env: str, asked: tuple[float, ...]) -> dict[float, float]:
    """Share → return that is asked for: shares of the way from a random policy's to the `best` return of the data."""
    low = reference(env)[0]
    return {share: low + share * (best - low) for share in asked}


# --------------------------------------------------------------------------------------------------------- training


def trained(
    policy: type[OfflinePolicy],
    data: TrajectorySet,
    training: OfflineTraining,
    seed: int,
    watch: dict | None = None,
    device: str = "cpu",
) -> tuple[OfflinePolicy, list[dict]]:
    """A trained policy and its curve, kept under a key of code, data, settings and seed (`lib.study.sequence.train`).

    `watch` are the arguments of `curve_returns` for what is shown on the way, the policy left out.
    """
    key = name_of(key_of([train, policy, curve_returns], data.key, training, seed, watch))
    play = partial(curve_returns, **watch) if watch else None
    folder = paths.CACHE / "decision_transformer" / f"{policy.arm}-{seed}-{key}"
    return train(policy, data, training, seed, folder, play, device, f"{policy.arm} {data.name} seed {seed}")


def curve_returns(policy: OfflinePolicy, env: str, target: float, seeds: list[int], decisions: int) -> dict:
    """What is shown of a policy on the way: return_mean and return_std over a few episodes, and the score."""
    returns = [row["return"] for row in evaluate_policy(policy, env, seeds, decisions, {1.0: target})]
    return {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if len(returns) > 1 else None,
        "normalised_score": float(normalised_score(env, returns).mean()),
    }


# ------------------------------------------------------------------------------------------------------- evaluation


def returned(controller, env: str, seeds: list[int], decisions: int, what: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns (n,) and lengths (n,) of one episode per seed, played as a batch; the controller is told its rewards."""
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=int)
    for step in rollout(controller, partial(make_task, env), seeds, decisions, what):
        controller.observe(step.rewards)
        returns[step.rows] += step.rewards
        lengths[step.rows] += 1
    return returns, lengths


def evaluate_policy(
    policy: OfflinePolicy, env: str, seeds: list[int], decisions: int, asked: dict[float, float] | None = None, what=""
) -> list[dict]:
    """A row for every return that is `asked` for (see `targets`; none of a policy that cannot be) and every seed: arm,
    asked, target_return, episode_seed, return, length, and what it cost, which is no planning."""
    asks = [(*ask, seed) for ask in (asked or {None: math.nan}).items() for seed in seeds]
    rows = []
    for start in range(0, len(asks), ROWS):
        part = asks[start : start + ROWS]
        wanted = torch.tensor([target for _, target, _ in part])
        returns, lengths = returned(policy.controller(wanted), env, [seed for *_, seed in part], decisions, what)
        for (share, target, seed), total, length in zip(part, returns, lengths, strict=True):
            row = {"arm": policy.arm, "asked": share, "target_return": target, "episode_seed": seed}
            rows.append(row | {"return": float(total), "length": int(length), "planner_calls": 0})
            rows[-1] |= {"model_evaluations": 0, "execution_horizon": 1}
    return rows


def evaluated(
    policy: OfflinePolicy, env: str, seeds: list[int], decisions: int, asked: dict[float, float] | None = None, what=""
) -> list[dict]:
    """The same rows, played once and kept under a key of code, weights and arguments: a killed run plays on."""
    weights = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        weights.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    arguments = (env, seeds, decisions, sorted((asked or {}).items()))
    key = key_of([evaluate_policy, type(policy)], weights.hexdigest(), policy.shape, policy.device.type, arguments)
    file = paths.CACHE / "decision_transformer" / "episodes" / f"{name_of(key)}.json"

    def make(path: Path) -> None:
        write_json(path, evaluate_policy(policy, env, seeds, decisions, asked, what))

    return json.loads(cached(file, key, make, f"episodes of {what or policy.arm}").read_text(encoding="utf-8"))


def step_times(policies: dict[str, OfflinePolicy], env: str, decisions: int) -> list[dict]:
    """Rows like those of `lib.study.steps`: milliseconds of a control step at batch 1, of every policy in turns.

    A step is from the observation in host memory to the action in host memory, with a full context.
    """
    obs, functions = torch.from_numpy(make_task(env).reset(seed=0)[0]).unsqueeze(0), {}
    for arm, policy in policies.items():
        controller = policy.controller(0.0)
        controller.reset(1)
        functions[arm] = partial(lambda controller: controller.act(obs)[0].cpu().numpy(), controller)
    device = next(iter(policies.values())).device
    context = max(policy.shape.context for policy in policies.values())
    times = timed(functions, 0, decisions, device, warm_up=context)
    return [
        {
            "arm": arm,
            "part": "step",
            **summary(values),
            "mean_ms": float(values.mean()),
            "share": 1.0,
            "steps_per_s": 1e3 / float(values.mean()),
            "calls_per_decision": 0.0,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "dtype": "float32",
        }
        for arm, values in times.items()
    ]


def summarise_offline(rows: pd.DataFrame, env: str) -> pd.DataFrame:
    """A row per arm and return that was asked for: what it returns and scores, and what it keeps of the arm `teacher`.

    rows: those of `evaluate_policy` with a column training_seed, and below them those of `lib.study.evaluate`. The
    interval of the return is over training seeds where there are several, each the mean of its episodes, and else over
    episodes. Return kept pairs episodes, each the mean over training seeds; it is missing without a teacher.
    """
    teacher = rows[rows["arm"] == "teacher"].set_index("episode_seed")["return"]
    table = []
    for (arm, share), mine in rows.groupby(["arm", "asked"], sort=False, dropna=False):
        runs, episodes = (mine.groupby(unit)["return"].mean() for unit in ("training_seed", "episode_seed"))
        low, high = bootstrap_ci(runs if len(runs) > 1 else episodes)
        kept = kept_return(episodes, teacher.reindex(episodes.index)) if len(teacher) else Estimate(*[math.nan] * 3)
        row = {"arm": arm, "asked": share, "target_return": mine["target_return"].iloc[0]}
        row |= {"training_seeds": len(runs) or None, "episodes": len(episodes)}
        row |= {"return_mean": float(episodes.mean()), "return_low": low, "return_high": high}
        row |= {"normalised_score": float(normalised_score(env, episodes).mean())}
        row |= {"kept": kept.value, "kept_low": kept.low, "kept_high": kept.high}
        costs = ("planner_calls", "model_evaluations", "execution_horizon")
        table.append(row | {name: float(mine[name].mean()) for name in costs})
    return pd.DataFrame(table)
