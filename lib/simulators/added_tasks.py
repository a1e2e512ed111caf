"""The eleven tasks that the TD-MPC2 authors added to DMControl's suite, as changes of the suite's own tasks.

    environment = ADDED_TASKS["cup-spin"](seed)      # a dm_control environment

Goals, speeds and lengths are those of nicklashansen/tdmpc2 (MIT), for whose weights of 30 tasks they are here. Speeds
in m/s or rad/s, heights in m. Importing this needs dm_control; `lib.environments` does so where one is asked for.
"""

from __future__ import annotations

from functools import partial
from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance


def at_least(value: float, target: float, margin: float, at_margin: float = 0.0, sigmoid: str = "linear") -> float:
    """1 from `target` up; down to `at_margin` where `margin` is missing, and 0 soon after."""
    return tolerance(value, bounds=(target, np.inf), margin=margin, value_at_margin=at_margin, sigmoid=sigmoid)


class WalkerBackwards(walker.PlanarWalker):
    """Walk or run backwards, upright, as the suite's walker does forwards."""

    def get_reward(self, physics):
        speed = self._move_speed
        standing = tolerance(physics.torso_height(), (walker._STAND_HEIGHT, np.inf), walker._STAND_HEIGHT / 2)
        stand = (3 * standing + (1 + physics.torso_upright()) / 2) / 4
        return stand * (5 * at_least(-physics.horizontal_velocity(), speed, speed / 2, 0.5) + 1) / 6


class CheetahBackwards(cheetah.Cheetah):
    """Run backwards, at 8."""

    def get_reward(self, physics):
        return at_least(-physics.speed(), 0.8 * cheetah._RUN_SPEED, 0.8 * cheetah._RUN_SPEED)


CHEETAH_UP, CHEETAH_STILL = 1.2, 0.5


class CheetahJump(cheetah.Cheetah):
    """Bring torso and both feet up, without running away."""

    def get_reward(self, physics):
        torso, *feet = (physics.named.data.xpos[part, "z"] for part in ("torso", "bfoot", "ffoot"))
        high = [tolerance((torso + foot) / 2, (CHEETAH_UP, np.inf), CHEETAH_UP / 2) for foot in feet]
        still = at_least(-abs(physics.speed()), -CHEETAH_STILL, CHEETAH_STILL)
        return (5 * sum(high) / 2 + still) / 6


class CheetahOnOneFoot(cheetah.Cheetah):
    """Run at 6 with the torso and one foot, `up`, in the air."""

    def __init__(self, up: str, random=None):
        super().__init__(random)
        self._up = up

    def get_reward(self, physics):
        torso, foot = (
            tolerance(physics.named.data.xpos[part, "z"], (CHEETAH_UP, np.inf), CHEETAH_UP / 2)
            for part in ("torso", self._up)
        )
        running = at_least(physics.speed(), 0.6 * cheetah._RUN_SPEED, 0.6 * cheetah._RUN_SPEED)
        return (3 * foot + 2 * torso) / 5 * (5 * running + 1) / 6


class HopperBackwards(hopper.Hopper):
    """Hop backwards, at half the speed of the suite's hopper."""

    def get_reward(self, physics):
        standing = tolerance(physics.height(), (hopper._STAND_HEIGHT, 2))
        return standing * at_least(-physics.speed(), hopper._HOP_SPEED / 2, hopper._HOP_SPEED / 4, 0.5)


class CupSpin(ball_in_cup.BallInCup):
    """Swing the ball around the cup, fast and far out; nine of ten episodes begin with the ball in it."""

    FAR, FAST = 0.5, 6.0

    def initialize_episode(self, physics):
        anywhere = self.random.uniform() < 0.1
        while True:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            if physics.data.ncon == 0 and (anywhere or physics.in_target()):
                break
        base.Task.initialize_episode(self, physics)

    def get_reward(self, physics):
        far = at_least(np.linalg.norm(physics.ball_to_target()), self.FAR, self.FAR / 2, 0.5)
        fast = at_least(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]), self.FAST, self.FAST / 2, 0.5)
        return (1 - physics.in_target()) * (far + 2 * fast) / 3


class PendulumSpin(pendulum.SwingUp):
    """Turn round and round."""

    FAST = 9.0

    def get_reward(self, physics):
        return at_least(np.linalg.norm(physics.angular_velocity()), self.FAST, self.FAST / 2, 0.5)


def three_links() -> tuple[str, dict]:
    """The suite's reacher with a third link: 9 cm from joint to joint, and all joints but the first within ±80°."""
    text, assets = reacher.get_model_and_assets()
    model = ElementTree.fromstring(text)
    arm, hand, finger = (model.find(f".//body[@name='{name}']") for name in ("arm", "hand", "finger"))
    forearm = ElementTree.SubElement(arm, "body", name="forearm")
    ElementTree.SubElement(forearm, "geom", arm.find("geom").attrib | {"name": "forearm"})
    ElementTree.SubElement(forearm, "joint", name="elbow", limited="true", range="-80 80")
    arm.remove(hand)
    forearm.append(hand)
    hand.find("joint").set("range", "-80 80")
    for link in (arm, forearm):
        link.find("geom").set("fromto", "0 0 0 0.09 0 0")
    for body in (forearm, hand, finger):
        body.set("pos", ".09 0 0")
    model.find("actuator").insert(1, ElementTree.Element("motor", name="elbow", joint="elbow"))
    return ElementTree.tostring(model, encoding="unicode"), assets


def _environment(suite, task, model, step: float | None, seed: int) -> control.Environment:
    physics = suite.Physics.from_xml_string(*model())
    limit = suite._DEFAULT_TIME_LIMIT
    return control.Environment(physics, task(random=seed), time_limit=limit, control_timestep=step)


def _like(suite, task, model=None, step: float | None = None):
    """Environments of `task` by seed, in a domain of the suite; `step` is its control step in seconds."""
    return partial(_environment, suite, task, model or suite.get_model_and_assets, step)


ADDED_TASKS = {
    "walker-walk-backwards": _like(walker, partial(WalkerBackwards, walker._WALK_SPEED), step=walker._CONTROL_TIMESTEP),
    "walker-run-backwards": _like(walker, partial(WalkerBackwards, walker._RUN_SPEED), step=walker._CONTROL_TIMESTEP),
    "cheetah-run-backwards": _like(cheetah, CheetahBackwards),
    "cheetah-run-front": _like(cheetah, partial(CheetahOnOneFoot, "bfoot")),
    "cheetah-run-back": _like(cheetah, partial(CheetahOnOneFoot, "ffoot")),
    "cheetah-jump": _like(cheetah, CheetahJump),
    "hopper-hop-backwards": _like(hopper, partial(HopperBackwards, None), step=hopper._CONTROL_TIMESTEP),
    "reacher-three-easy": _like(reacher, partial(reacher.Reacher, reacher._BIG_TARGET), three_links),
    "reacher-three-hard": _like(reacher, partial(reacher.Reacher, reacher._SMALL_TARGET), three_links),
    "cup-spin": _like(ball_in_cup, CupSpin, step=ball_in_cup._CONTROL_TIMESTEP),
    "pendulum-spin": _like(pendulum, PendulumSpin),
}
