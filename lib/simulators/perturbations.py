"""Environments whose world is not the one that a controller was made in: other masses, motors, friction, pushes, noise.

    env = perturbed(make_env("walker-walk"), Perturbation.parse("mass-1.5"))
    print(env)                # walker-walk, mass-1.5: masses and inertias of 7 bodies × 1.5
    obs, _ = env.reset(seed=3)

What is changed holds in every episode and is relative to the original model. Pushes and noise are drawn from a stream
of the episode's own seed, as many numbers at each decision whatever the controller does: all controllers meet the same.

mass-S      masses and inertias of all bodies × S, and what MuJoCo derives of them (armatures are the motors' own)
gain-S      forces of all actuators × S at the same command and state: of servos the restoring force and damping, too
friction-S  sliding friction of all geoms × S; rolling and spinning friction stay
push-S      once in every `PUSH_EVERY` decisions, at one drawn evenly, an impulse of S × body weight × one second along
            a horizontal direction drawn evenly, as a constant force for that decision; it acts at the centre of mass of
            the body "torso", else of the first body with joints. Body weight is that of all that hangs on its root.
            A free body is S × 9.81 m/s faster then; what a planar model cannot follow of the direction has no effect.
noise-S     what the controller sees, + S × the standard deviation of each number × a normal one; rewards know no noise
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lib.config import ConfigError, one_of, quoted

if TYPE_CHECKING:
    import gymnasium

KINDS = {"mass": 1.0, "gain": 1.0, "friction": 1.0, "push": 0.0, "noise": 0.0}  # and the severity without effect
PUSH_EVERY = 50  # decisions


@dataclass(frozen=True)
class Perturbation:
    """One change of a world, written `<kind>-<severity>`. `ConfigError` for an unknown kind and a severity that makes
    no sense: factors are above 0, pushes and noise at least 0."""

    kind: str
    severity: float

    def __post_init__(self):
        factor = bool(KINDS[one_of("perturbation", self.kind, KINDS)])
        if not (math.isfinite(self.severity) and (self.severity > 0 if factor else self.severity >= 0)):
            need = "a factor above 0" if factor else "at least 0"
            raise ConfigError(f"perturbation {self.kind} of severity {self.severity} makes no sense; give {need}.")

    @classmethod
    def parse(cls, name: str) -> Perturbation:
        kind, _, number = name.partition("-")
        one_of("perturbation", kind, KINDS)
        try:
            severity = float(number)
        except ValueError:
            raise ConfigError(f"perturbation {quoted(name)} has no severity; write one as in mass-1.5.") from None
        return cls(kind, severity)

    def __str__(self) -> str:
        return f"{self.kind}-{self.severity:.12g}"

    @property
    def without_effect(self) -> bool:
        return self.severity == KINDS[self.kind]


def perturbed(
    env: gymnasium.Env, perturbation: Perturbation, seed: int | None = None, std: np.ndarray | None = None
) -> gymnasium.Env:
    """A perturbed environment around one of `make_env`, which it changes: perturb each of them once.

    `seed` is that of the first episode where a reset has none, as with `make_env`; std (obs_dim,) are the standard
    deviations of the observation that `noise` is a part of. `str` of what is returned says what was changed. Raises
    `ConfigError` where there is no MuJoCo model to change (noise needs none), or nothing in it that this could change.
    """
    return _perturbed()(env, perturbation, seed, std)


# ------------------------------------------------------------------------------------------------- MuJoCo's model


def _mujoco(env: gymnasium.Env):
    """MuJoCo's own (MjModel, MjData) of an environment, as they are now; None where it has none."""
    import mujoco

    base = env.unwrapped
    physics = getattr(base, "physics", None)  # dm_control's
    model, data = (getattr(physics or base, name, None) for name in ("model", "data"))
    model, data = getattr(model, "ptr", model), getattr(data, "ptr", data)
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None


def _changed(model, kind: str, factor: float, task: str) -> tuple[dict[str, np.ndarray], str]:
    """Field → its new values, from the original model, and the change in words."""
    import mujoco

    if kind == "mass":
        words = f"masses and inertias of {np.count_nonzero(model.body_mass)} bodies"
        fields = "body_mass", "body_inertia"
    elif kind == "gain":  # force = gain · command + bias(state): a weaker servo is one with both scaled
        known = [int(gain) for gain in (mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtGain.mjGAIN_AFFINE)]
        if not np.isin(model.actuator_gaintype, known).all():
            raise ConfigError(f"{task} has actuators that are no motors and no servos; leave gain out there.")
        words, fields = f"forces of {model.nu} actuators", ("actuator_gainprm", "actuator_biasprm")
    else:
        if not _can_touch(model):
            raise ConfigError(f"{task} has nothing that can touch with friction; leave friction out there.")
        words, fields = f"sliding friction of {model.ngeom} geoms", ("geom_friction", "pair_friction")
    new = {name: getattr(model, name) * factor for name in fields}
    if kind == "friction":  # after the sliding ones, of which a pair has two directions
        new["geom_friction"][:, 1:] = model.geom_friction[:, 1:]
        new["pair_friction"][:, 2:] = model.pair_friction[:, 2:]
    return new, f"{words} × {factor:g}"


def _can_touch(model) -> bool:
    """Whether any two geoms can be in contact with friction, by MuJoCo's rules of who collides with whom."""
    import mujoco

    if model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT:
        return False
    body = model.geom_bodyid
    weld = model.body_weldid[body]
    parent = model.body_weldid[model.body_parentid[weld]]
    asked = model.geom_contype[:, None] & model.geom_conaffinity
    can = ((asked | asked.T) != 0) & (weld[:, None] != weld)
    if not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT:
        child = (parent[:, None] == weld) & (weld != 0) & (weld[:, None] != 0)
        can &= ~(child | child.T)
    pair = (body[:, None] << 16) + body
    can &= ~(np.isin(pair, model.exclude_signature) | np.isin(pair.T, model.exclude_signature))
    can &= np.maximum.outer(model.geom_condim, model.geom_condim) > 1
    return bool(can.any() or (model.pair_dim > 1).any())


def _pushable(model, task: str) -> tuple[int, float]:
    """The body that pushes act on and the weight (N) of all that hangs on its root; `ConfigError` without gravity."""
    import mujoco

    torso = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "torso")
    body = torso if torso > 0 else int(np.flatnonzero(model.body_jntnum)[0])
    weight = float(model.body_subtreemass[model.body_rootid[body]] * np.linalg.norm(model.opt.gravity))
    if not weight:
        raise ConfigError(f"{task} has no gravity, so that no push can be told in body weights; leave push out there.")
    return body, weight


# ---------------------------------------------------------------------------------------------------- the wrapper


@functools.cache
def _perturbed() -> type[gymnasium.Env]:
    """The class of the environments, made when one is first asked for: nothing else here needs gymnasium."""
    import gymnasium

    class Perturbed(gymnasium.Wrapper):
        """See the module. `force` (3,) in N is what pushes during the present or last decision, in world axes."""

        def __init__(self, env, perturbation: Perturbation, seed: int | None, std):
            super().__init__(env)
            if before := getattr(env, "perturbation", None):
                raise ConfigError(f"{env.task} is perturbed already, by {before}; make another environment.")
            self.task, self.decisions, self.perturbation = env.task, env.decisions, perturbation
            self._kind, severity = perturbation.kind, perturbation.severity
            self._random, self._new, self._decision, self.force = self._stream(seed or 0), {}, 0, np.zeros(3)
            if perturbation.without_effect:
                self._kind, self._said = "", "nothing is changed"
            elif self._kind == "noise":
                if np.shape(std) != env.observation_space.shape or not (np.asarray(std) >= 0).all():
                    shape = env.observation_space.shape
                    raise ConfigError(f"{self.task}: {perturbation} needs std, deviations at least 0 of shape {shape}.")
                self._std, self._said = severity * np.asarray(std), f"observations + {severity:g} of their deviations"
            elif (found := _mujoco(env)) is None:
                raise ConfigError(f"{self.task} has no MuJoCo model, which {perturbation} is to change; use noise.")
            elif self._kind == "push":
                if not hasattr(env.unwrapped, "dt"):
                    raise ConfigError(f"{self.task} does not tell its seconds per step, dt, which a push lasts.")
                self._body, weight = _pushable(found[0], self.task)
                self._strength = severity * weight / (env._repeat * env.unwrapped.dt)
                self._said = f"impulses of {severity * weight:.4g} N s on {found[0].body(self._body).name}, one in "
                self._said += f"{PUSH_EVERY} decisions"
            else:
                self._new, self._said = _changed(found[0], self._kind, severity, self.task)
                self._change(found[0])
            env.perturbation = perturbation

        def __str__(self) -> str:
            return f"{self.task}, {self.perturbation}: {self._said}"

        def _stream(self, seed: int) -> np.random.Generator:
            return np.random.default_rng([seed, list(KINDS).index(self.perturbation.kind)])

        def _change(self, model) -> None:
            import mujoco

            for name, values in self._new.items():
                getattr(model, name)[:] = values
            if self._kind == "mass":  # of masses MuJoCo derives what makes contacts soft, and the weights of subtrees
                mujoco.mj_setConst(model, mujoco.MjData(model))
                model.stat.meaninertia = model.dof_M0.mean()  # the unit of the solver's tolerance

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """Start an episode, with the pushes and the noise of its seed; without one they follow on."""
            self._random, self._decision = self._random if seed is None else self._stream(seed), 0
            obs, info = self.env.reset(seed=seed, options=options)
            for name, values in self._new.items():
                if not np.array_equal(getattr(_mujoco(self.env)[0], name), values):
                    raise ConfigError(
                        f"{self.task} changes its {name} at a reset, where {self.perturbation} must hold."
                    )
            return self._seen(obs), info

        def step(self, action):
            self.force = self._push()
            self._decision += 1
            if not self.force.any():
                obs, *rest = self.env.step(action)
                return self._seen(obs), *rest
            _, data = _mujoco(self.env)
            data.xfrc_applied[self._body, :3] = self.force
            try:
                return self.env.step(action)
            finally:
                data.xfrc_applied[self._body, :3] = 0

        def _push(self) -> np.ndarray:
            """The force (3,) in the coming decision."""
            if self._kind != "push":
                return self.force
            if self._decision % PUSH_EVERY == 0:
                self._at = self._decision + int(self._random.integers(PUSH_EVERY))
                self._angle = self._random.uniform(0, 2 * math.pi)
            if self._decision != self._at:
                return np.zeros(3)
            return self._strength * np.array([math.cos(self._angle), math.sin(self._angle), 0.0])

        def _seen(self, obs: np.ndarray) -> np.ndarray:
            if self._kind != "noise":
                return obs
            return (obs + self._std * self._random.standard_normal(obs.shape)).astype(np.float32)

    return Perturbed
