"""The simulator as a matched model of a task: exact states that are saved, set, stepped and restored, and their scores.

    oracle = Oracle("walker-walk")
    start = oracle.reset(seed=3)                       # a State
    rewards = oracle.step(action)                      # of the frames of one decision
    oracle.set(start)                                  # back, to the bit
    seen = oracle.imagine([start], actions)            # (1, N, H, A) -> (1, N, H, F): what would be seen
    oracle.scored.score(seen)                          # (1, N, H), larger is better

What a planner is told of a state is its `features` (F,): the observation, and behind it what the score needs and the
observation lacks. A learned model predicts the same features, so that one score serves both. Symbols: S states, N
action sequences, H decisions, A action dimensions, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lib.config import one_of
from lib.environments import ACTION_REPEAT, make_env

ROLLS = 512  # sequences that are simulated at once: walker's take 23 MB
WALKER_HEIGHT, WALKER_STANDS, WALKER_SPEED = 1.3, 1.2, 1.0  # m at rootz = 0, m, m/s: of dm_control's planar walker
REACHER_LINK = 0.12  # m from shoulder to wrist, and from wrist to finger


# ---------------------------------------------------------------------------------------------- what tasks are about


def _cartpole_features(qpos, qvel, sensors, target):
    x, angle = qpos[..., :1], qpos[..., 1:]
    return np.concatenate([x, np.cos(angle), np.sin(angle), qvel], -1)


def _reacher_features(qpos, qvel, sensors, target):
    first, both = qpos[..., 0], qpos.sum(-1)
    finger = REACHER_LINK * np.stack([np.cos(first) + np.cos(both), np.sin(first) + np.sin(both)], -1)
    return np.concatenate([qpos, target - finger, qvel], -1)


def _walker_features(qpos, qvel, sensors, target):
    torso, hips = qpos[..., 2:3], -qpos[..., 3:].reshape(*qpos.shape[:-1], 2, 3)  # legs bend against the torso's axis
    legs = torso[..., None] + hips.cumsum(-1)  # thigh, leg and foot of the right, then of the left (…, 2, 3)
    angle = np.concatenate([torso, legs.reshape(*qpos.shape[:-1], 6)], -1)
    orientations = np.stack([np.cos(angle), np.sin(angle)], -1).reshape(*qpos.shape[:-1], 14)
    return np.concatenate([orientations, WALKER_HEIGHT + qpos[..., :1], qvel, sensors[..., :1]], -1)


def _walker_score(features):
    from dm_control.utils.rewards import tolerance

    height, speed = features[..., 14], features[..., 24]
    standing = tolerance(height, (WALKER_STANDS, np.inf), margin=WALKER_STANDS / 2)
    moving = tolerance(speed, (WALKER_SPEED, np.inf), margin=WALKER_SPEED / 2, value_at_margin=0.5, sigmoid="linear")
    return standing * (1 + features[..., 0]) / 2 * (5 * moving + 1) / 6


@dataclass(frozen=True)
class Scored:
    """A task that planners without a value function can be asked to solve.

    `actions` (n, A) are what they choose from. `score` (…, F) → (…) says how good a state is, larger is better:
    cartpole, the cosine of the pole's angle; reacher, minus the distance to the target in m; walker, standing × upright
    × forward speed, each as the task's reward has it. An episode succeeds at the first frame whose reward is at least
    `success`. The first `obs_dim` features are the observation.
    """

    obs_dim: int
    actions: np.ndarray
    success: float
    features: Callable
    score: Callable


def _grid(values, dimensions: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[values] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)


SCORED = {
    "cartpole-swingup": Scored(
        5, _grid([-1, -0.5, 0, 0.5, 1.0], 1), 0.6, _cartpole_features, lambda features: features[..., 1]
    ),
    "reacher-easy": Scored(
        6, _grid([-1, 0, 1.0], 2), 0.5, _reacher_features, lambda features: -np.linalg.norm(features[..., 2:4], axis=-1)
    ),
    "walker-walk": Scored(24, np.random.default_rng(0).uniform(-1, 1, (64, 6)), 0.6, _walker_features, _walker_score),
}


# --------------------------------------------------------------------------------------------------- the simulator


@dataclass(frozen=True)
class State:
    """A state of the simulator: MuJoCo's `mjSTATE_INTEGRATION`, which has the solver's warm start; position and size of
    all geoms (geoms, 6), as reacher draws its target anew in each episode; and what is seen of it, features (F,)."""

    integration: np.ndarray
    geometry: np.ndarray
    features: np.ndarray


class Oracle:
    """A simulator of its own for one task, at 2 frames per decision, exactly as `lib.environments` steps it.

    Saving and setting states is exact to the bit, which dm_control's own `get_state` is not: it leaves out the warm
    start of the constraint solver. Raises `ConfigError` for a task that has no score.
    """

    def __init__(self, task: str):
        self.task, self.scored = task, SCORED[one_of("task", task, SCORED)]
        self._env = make_env(task)  # before mujoco is imported: it picks a rendering backend
        import mujoco

        self._mj, self._dm = mujoco, self._env.unwrapped._env
        self._model, self._data = self._dm.physics.model.ptr, self._dm.physics.data.ptr
        self._integration = mujoco.mjtState.mjSTATE_INTEGRATION.value
        self._physics = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        self._warm_start = mujoco.mjtState.mjSTATE_WARMSTART.value
        self._pool = [mujoco.MjData(self._model) for _ in range(torch.get_num_threads())]
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._target = names.index("target") if "target" in names else None

    @property
    def action_dim(self) -> int:
        return self._model.nu

    def reset(self, seed: int) -> State:
        """The start of an episode, the same as that of `make_env(task).reset(seed=seed)`."""
        self._env.reset(seed=seed)
        return self.save()

    def save(self) -> State:
        """The state that the simulator is in."""
        integration = np.empty(self._mj.mj_stateSize(self._model, self._integration))
        self._mj.mj_getState(self._model, self._data, integration, self._integration)
        geometry = np.concatenate([self._model.geom_pos, self._model.geom_size], 1)
        seen = self.features(self._part(integration, self._physics), self._data.sensordata.copy(), geometry)
        return State(integration, geometry, seen)

    def set(self, state: State) -> None:
        """Put the simulator into a state that this or another `Oracle` of the task has saved."""
        self._model.geom_pos[:], self._model.geom_size[:] = state.geometry[:, :3], state.geometry[:, 3:]
        self._mj.mj_setState(self._model, self._data, state.integration, self._integration)
        self._mj.mj_step1(self._model, self._data)  # dm_control ends a step with it and begins one as if it was done

    def reward(self) -> float:
        """The reward of the frame that the simulator is in, between 0 and 1."""
        return float(self._dm.task.get_reward(self._dm.physics))

    def step(self, action: np.ndarray) -> np.ndarray:
        """Do one decision: the rewards (2,) of its frames. action (A,) in [−1, 1], clipped.

        The clock of the episode is left alone, so that any number of decisions can be made from any state.
        """
        physics, task, rewards = self._dm.physics, self._dm.task, []
        for _ in range(ACTION_REPEAT):
            task.before_step(self._native(action), physics)
            physics.step(self._dm._n_sub_steps)
            task.after_step(physics)
            rewards.append(self.reward())
        return np.array(rewards)

    def imagine(self, states: list[State], actions: np.ndarray) -> np.ndarray:
        """Features (S, N, H, F) after each decision of sequences actions (S, N, H, A) in [−1, 1] from S states."""
        count, rows = actions.shape[1], np.arange(len(states)).repeat(actions.shape[1])
        physics = np.stack([self._part(s.integration, self._physics) for s in states])
        warm = np.stack([self._part(s.integration, self._warm_start) for s in states])
        geometry = np.stack([s.geometry for s in states])
        flat = actions.reshape(-1, *actions.shape[2:])
        seen = []
        for first in range(0, len(flat), ROLLS):
            part = rows[first : first + ROLLS]
            after, sensors = self.advance(physics[part], warm[part], flat[first : first + ROLLS])
            seen.append(self.features(after, sensors, geometry[part][:, None]))
        return np.concatenate(seen).reshape(len(states), count, *actions.shape[2:3], -1)

    def advance(self, physics: np.ndarray, warm: np.ndarray | None, actions: np.ndarray):
        """What R action sequences (R, H, A) lead to from R states: physics (R, H, P) and sensors (R, H, K) after each
        decision. physics (R, P) is `mjSTATE_FULLPHYSICS`; warm (R, nv) the solver's warm start, None for a cold one.
        """
        from mujoco import rollout

        frames = ACTION_REPEAT * self._dm._n_sub_steps
        control = self._native(actions).repeat(frames, axis=1)  # (R, H · frames, nu)
        # Sensors are those of the state before a step, so that one step more is taken to read the last ones.
        control = np.concatenate([control, control[:, -1:]], 1)
        states, sensors = rollout.rollout(
            self._model, self._pool, physics, control, initial_warmstart=warm, persistent_pool=True
        )
        return states[:, frames - 1 : -1 : frames], sensors[:, frames::frames]

    def features(self, physics: np.ndarray, sensors: np.ndarray, geometry: np.ndarray) -> np.ndarray:
        """Features (…, F) of physics (…, P) and sensors (…, K), for geometry (…, geoms, 6)."""
        nq, nv = self._model.nq, self._model.nv
        target = None if self._target is None else geometry[..., self._target, :2]
        return self.scored.features(physics[..., 1 : 1 + nq], physics[..., 1 + nq : 1 + nq + nv], sensors, target)

    def _part(self, integration: np.ndarray, signature: int) -> np.ndarray:
        part = np.empty(self._mj.mj_stateSize(self._model, signature))
        self._mj.mj_extractState(self._model, integration, self._integration, part, signature)
        return part

    def _native(self, action: np.ndarray) -> np.ndarray:
        """What `lib.environments` gives to dm_control for an action, to the bit."""
        spec = self._dm.action_spec()
        return spec.minimum + (np.clip(np.float64(action), -1, 1) + 1) * 0.5 * (spec.maximum - spec.minimum)

    def physics_of(self, states: list[State]) -> np.ndarray:
        """`mjSTATE_FULLPHYSICS` (S, P) of states."""
        return np.stack([self._part(s.integration, self._physics) for s in states])
