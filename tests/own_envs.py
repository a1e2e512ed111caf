"""Environments as users may have them: each a few lines, found by `tests.own_envs:<name>`."""

import gymnasium
import numpy as np
from gymnasium import spaces


def box(*shape, limit=1.0, dtype=np.float32):
    return spaces.Box(-limit, limit, shape, dtype)


class Plain(gymnasium.Env):
    """Obs (3,), action (1,), ten frames, reward 1; what differs is told by the subclasses."""

    observation_space, action_space, frames = box(3, limit=np.inf), box(1), 10

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.frame = seed or 0, 0
        return self.seen(), {}

    def step(self, action):
        self.frame += 1
        return self.seen(), self.reward(action), False, False, {}

    def seen(self):
        return np.zeros(3, np.float32)

    def reward(self, action):
        return 1.0


class Limited(Plain):
    """As a class whose instances have a time limit of their own: what `make` would return."""

    def __new__(cls):
        return gymnasium.wrappers.TimeLimit(object.__new__(cls), cls.frames)


class Nested(Limited):
    observation_space = spaces.Dict(
        apple=spaces.Tuple([box(2, 2, limit=9.0, dtype=np.float64), spaces.Discrete(3)]), zebra=box(2, limit=9.0)
    )
    action_space = spaces.Box(np.array([-10.0, -5.0], np.float32), np.array([30.0, 5.0], np.float32))

    def seen(self):
        return {"zebra": np.array([7, 8], np.int64), "apple": (np.arange(1.0, 5.0).reshape(2, 2), 1)}

    def reward(self, action):
        return float(action.sum())


class Pixels(Limited):
    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Unbounded(Limited):
    action_space = box(1, limit=np.inf)


class Endless(Plain):
    pass


class Short(Limited):
    observation_space = box(4)


class Shuffled(Limited):
    """Parts of an observation come in another order after each step."""

    observation_space = spaces.Dict(a=box(1, limit=9.0), b=box(1, limit=9.0))

    def seen(self):
        parts = {"a": np.ones(1), "b": np.full(1, 2.0)}
        return {key: parts[key] for key in ("ab", "ba")[self.frame % 2]}


class Failing(Limited):
    """With seed 1 the second step raises, and with seed 2 its reward is NaN; with 3 and 4 the reset does."""

    def seen(self):
        if self.seed == 3 and not self.frame:
            raise RuntimeError("a cable broke")
        return np.full(3, np.nan if self.seed == 4 else 0.0, np.float32)

    def reward(self, action):
        if self.frame == 2 and self.seed == 1:
            raise RuntimeError("a cable broke")
        return float("nan") if self.frame == 2 and self.seed == 2 else 1.0


class FailsAlone(Limited):
    """The episode of seed 3 is cut after four frames; one of no seed raises at its second."""

    def reset(self, *, seed=None, options=None):
        self.unasked = seed is None
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        if self.unasked and self.frame == 2:
            raise RuntimeError("nobody asked")
        return obs, reward, False, truncated or (self.seed == 3 and self.frame == 4), info


class Falling(Limited):
    """The episode of an odd seed ends early, at the fifth frame; the first number seen counts the frames."""

    frames = 12

    def seen(self):
        return np.array([self.frame / 10, self.seed % 2, 1], np.float32)

    def reward(self, action):
        return self.frame * (1 + self.seed % 2) / 10

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.seed % 2 == 1 and self.frame >= 5, truncated, info


def twice_limited():
    return gymnasium.wrappers.TimeLimit(Limited(), 100)


def a_number():
    return 3


def broken():
    raise KeyError("x")


class Guess(Limited):
    """Two new numbers are seen at every frame, and an action is worth more the nearer it is to the first of them."""

    observation_space, frames = box(2), 20

    def seen(self):
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x

    def step(self, action):
        reward, self.frame = float(np.exp(-4 * (float(action[0]) - self.x[0]) ** 2)), self.frame + 1
        return self.seen(), reward, False, False, {}


class NowAndThen(Guess):
    """The same, but that the step raises now and then, whatever the seed."""

    steps = 0

    def step(self, action):
        NowAndThen.steps += 1
        if NowAndThen.steps % 3_001 == 3_000:
            raise RuntimeError("a cable broke")
        return super().step(action)


class AlwaysFailing(Guess):
    def step(self, action):
        raise RuntimeError("no power")
