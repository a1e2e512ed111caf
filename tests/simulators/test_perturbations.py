"""Perturbed worlds against models that MuJoCo compiled so, against mechanics, and against themselves."""

import gymnasium
import mujoco
import numpy as np
import pytest

from lib.config import ConfigError
from lib.environments import make_env
from lib.simulators.perturbations import KINDS, PUSH_EVERY, Perturbation, perturbed

PLAIN = "tests.own_envs:Limited"  # no MuJoCo, and constant observations


def world(name, task="walker-walk", seed=None, **options):
    return perturbed(make_env(task, seed=seed), Perturbation.parse(name), seed, **options)


def model(env):
    return env.unwrapped.physics.model.ptr


def data(env):
    return env.unwrapped.physics.data.ptr


def play(env, seed=3, decisions=20, actions=0):
    """What is seen, earned, and pushed at each decision under random actions of a stream."""
    rng, seen, found = np.random.default_rng(actions), [env.reset(seed=seed)[0]], []
    for _ in range(decisions):
        obs, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        seen.append(obs)
        found.append((reward, *getattr(env, "force", np.zeros(3))))
    return np.array(seen), np.array(found)[:, 0], np.array(found)[:, 1:]


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["mass-1.5", "gain-0.7", "friction-0.4", "push-0.3", "noise-0.1", "mass-2", "push-0"])
def test_names_are_read_and_written(name):
    kind, severity = name.split("-")
    found = Perturbation.parse(name)
    assert found == Perturbation(kind, float(severity)) and str(found) == name
    assert found.without_effect == (name == "push-0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masses-1.5", "perturbation='masses' is not known; use one of: mass, gain, .*Did you mean mass"),
        ("mass", "'mass' has no severity; write one as in mass-1.5"),
        ("mass-heavy", "'mass-heavy' has no severity"),
        ("mass-0", "mass of severity 0.0 makes no sense; give a factor above 0"),
        ("gain--1", "gain of severity -1.0 makes no sense"),
        ("push--0.1", "push of severity -0.1 makes no sense; give at least 0"),
        ("noise-nan", "noise of severity nan makes no sense"),
        ("friction-inf", "friction of severity inf makes no sense"),
    ],
)
def test_names_that_make_no_sense_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        Perturbation.parse(name)


# ----------------------------------------------------------------------------------------------------- no effect


@pytest.mark.parametrize("kind", KINDS)
def test_a_severity_of_no_effect_is_the_environment_itself(kind):
    seen, rewards, pushes = play(perturbed(make_env("walker-walk"), Perturbation(kind, KINDS[kind])))
    twin_seen, twin_rewards, _ = play(make_env("walker-walk"))
    assert np.array_equal(seen, twin_seen) and np.array_equal(rewards, twin_rewards) and not pushes.any()


@pytest.mark.parametrize(("name", "options"), [("mass-1.5", {}), ("gain-0.7", {}), ("friction-0.4", {}),
                                              ("push-0.3", {}), ("noise-0.1", {"std": np.ones(24)})])  # fmt: skip
def test_any_other_is_another_world_and_the_same_twice(name, options):
    plain, first, again = play(make_env("walker-walk")), *(play(world(name, **options)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    longer = play(world(name, **options), decisions=PUSH_EVERY + 10)  # there is a push by then, and a foot has slipped
    assert not np.array_equal(longer[0], play(make_env("walker-walk"), decisions=PUSH_EVERY + 10)[0])
    assert np.array_equal(first[1], plain[1]) or name != "noise-0.1"


# ------------------------------------------------------------------------------------------ masses, gains, friction


def test_masses_are_those_of_a_model_that_was_compiled_so():
    """cheetah.xml sets its total mass: MuJoCo compiles all that follows from another one."""
    from dm_control.suite import cheetah

    text, assets = cheetah.get_model_and_assets()
    heavier = text.replace(b'settotalmass="14"', b'settotalmass="21"')
    assert heavier != text
    twin = cheetah.Physics.from_xml_string(heavier, assets).model.ptr
    original, found = model(make_env("cheetah-run")), model(world("mass-1.5", "cheetah-run"))
    fields = [n for n in dir(twin) if not n.startswith("_") and isinstance(getattr(twin, n), np.ndarray)]
    numbers = [n for n in fields if getattr(twin, n).dtype == float]
    differ = {n for n in numbers if not np.allclose(getattr(original, n), getattr(twin, n), rtol=1e-6)}
    assert differ >= {"body_mass", "body_inertia", "body_subtreemass", "dof_M0", "dof_invweight0", "body_invweight0"}
    for name in numbers:
        np.testing.assert_allclose(getattr(found, name), getattr(twin, name), rtol=1e-9, err_msg=name)
    assert found.stat.meaninertia == pytest.approx(twin.stat.meaninertia)


def test_changes_are_of_the_original_model_in_every_episode():
    env, original = world("mass-1.5"), model(make_env("walker-walk")).body_mass.copy()
    for episode in range(3):
        env.reset(seed=episode)
        env.step(np.zeros(6))
        np.testing.assert_array_equal(model(env).body_mass, 1.5 * original)
    assert str(env) == "walker-walk, mass-1.5: masses and inertias of 7 bodies × 1.5"
    with pytest.raises(ConfigError, match="walker-walk is perturbed already, by mass-1.5; make another environment"):
        perturbed(env, Perturbation.parse("mass-1.5"))
    with pytest.raises(ConfigError, match="perturbed already"):
        perturbed(env.env, Perturbation.parse("gain-0.7"))


def test_gravity_pulls_twice_as_much_at_twice_the_mass():
    pulls = []
    for name in ("mass-1", "mass-2"):
        env = world(name)
        env.reset(seed=3)
        data(env).qvel[:] = 0
        mujoco.mj_forward(model(env), data(env))
        pulls.append(data(env).qfrc_bias.copy())  # of resting bodies: gravity's alone
    np.testing.assert_allclose(pulls[1], 2 * pulls[0], rtol=1e-12)
    weight = 9.81 * model(make_env("walker-walk")).body_mass.sum()
    assert pulls[1][0] == pytest.approx(2 * weight)  # along the slide upwards


@pytest.mark.parametrize(("task", "servos"), [("walker-walk", False), ("quadruped-walk", True)])
def test_actuators_push_less_at_the_same_command_and_state(task, servos):
    forces, states = [], []
    for name in ("gain-1", "gain-0.7"):
        env = world(name, task)
        env.reset(seed=3)
        states.append(data(env).qpos.copy())
        mine = data(env)
        mine.ctrl[:], mine.qvel[:] = 0.5, 0.3
        mine.act[:] = 0.4
        mujoco.mj_forward(model(env), mine)
        forces.append(mine.actuator_force.copy())
        assert (model(env).actuator_biasprm != 0).any() == servos
    np.testing.assert_array_equal(*states)
    np.testing.assert_allclose(forces[1], 0.7 * forces[0], rtol=1e-12)
    assert np.abs(forces[0]).min() > 0 and str(env).endswith(f"forces of {len(forces[0])} actuators × 0.7")


def test_sliding_friction_alone_is_scaled():
    original, env = model(make_env("walker-walk")).geom_friction.copy(), world("friction-0.4")
    found = model(env).geom_friction
    np.testing.assert_array_equal(found[:, 0], 0.4 * original[:, 0])
    np.testing.assert_array_equal(found[:, 1:], original[:, 1:])
    assert str(env) == "walker-walk, friction-0.4: sliding friction of 8 geoms × 0.4"
    for decision in range(40):  # contacts have it
        env.reset(seed=3) if not decision else env.step(np.zeros(6))
    pushed = data(env).contact.friction[: data(env).ncon, 0]
    assert len(pushed) and set(pushed) == {0.4 * original[0, 0]}


@pytest.mark.parametrize("task", ["cartpole-swingup", "reacher-easy", "pendulum-swingup"])
def test_friction_is_refused_where_nothing_touches(task):
    with pytest.raises(ConfigError, match=f"{task} has nothing that can touch with friction; leave friction out"):
        world("friction-0.4", task)


BALLS = """<mujoco><option><flag {flag}/></option><worldbody>
  <geom name="floor" type="plane" size="1 1 1" {floor}/>
  <body name="a"><freejoint/><geom name="a" size=".1" mass="2" {a}/>
    <body name="b" pos="0 0 .05"><joint/><geom name="b" size=".1" mass="1" {b}/></body></body>
</worldbody>{more}</mujoco>"""
EXCLUDED = "".join(f'<exclude body1="world" body2="{body}"/>' for body in "ab")
APART = dict(flag='contact="enable"', floor='contype="0" conaffinity="0"', a="", b="", more="")


@pytest.mark.parametrize(
    ("change", "touch"),
    [
        ({}, False),  # parent and child
        ({"floor": ""}, True),
        ({"floor": "", "flag": 'contact="disable"'}, False),
        ({"floor": "", "a": 'contype="2" conaffinity="2"', "b": 'contype="2" conaffinity="2"'}, False),
        ({"floor": 'condim="1"', "a": 'condim="1"', "b": 'condim="1"'}, False),
        ({"flag": 'filterparent="disable"'}, True),
        ({"floor": "", "more": f"<contact>{EXCLUDED}</contact>"}, False),
        ({"more": '<contact><pair geom1="a" geom2="floor" friction="1 .8 .1 .1 .1"/></contact>'}, True),
    ],
)  # fmt: skip
def test_what_can_touch_is_what_does_at_the_same_place(change, touch):
    """All three lie in each other: a contact with friction is there if one can be."""
    from lib.simulators.perturbations import _can_touch, _changed

    made = mujoco.MjModel.from_xml_string(BALLS.format(**APART | change))
    state = mujoco.MjData(made)
    mujoco.mj_forward(made, state)
    assert _can_touch(made) == touch == bool(state.ncon and (state.contact.dim > 1).any())
    if "pair" in change.get("more", ""):
        assert _changed(made, "friction", 0.5, "balls")[0]["pair_friction"].tolist() == [[0.5, 0.4, 0.1, 0.1, 0.1]]


def test_muscles_are_refused():
    from lib.simulators.perturbations import _changed

    muscle = '<actuator><muscle joint="j" ctrlrange="0 1" lengthrange="0 1"/></actuator>'
    text = f'<mujoco><worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody>{muscle}</mujoco>'
    with pytest.raises(ConfigError, match="an-arm has actuators that are no motors and no servos"):
        _changed(mujoco.MjModel.from_xml_string(text), "gain", 0.7, "an-arm")


# --------------------------------------------------------------------------------------------------------- pushes


def momentum(env):
    mujoco.mj_subtreeVel(model(env), data(env))
    return model(env).body_subtreemass[1] * data(env).subtree_linvel[1]


def test_a_push_is_an_impulse_of_so_much_body_weight_times_a_second():
    """A humanoid that falls: in the decision of the push its momentum changes by that more than its twin's."""
    env, twin = (world(name, "humanoid-walk") for name in ("push-0.2", "push-0"))
    for e in (env, twin):
        e.reset(seed=1)
        data(e).qpos[2] += 20  # nothing is touched
    weight = 9.81 * model(env).body_mass.sum()
    for _ in range(PUSH_EVERY):
        before = momentum(env)
        for e in (env, twin):
            e.step(np.zeros(21))
        if env.force.any():
            break
        np.testing.assert_array_equal(momentum(env), momentum(twin))
    change = momentum(env) - momentum(twin)
    assert np.linalg.norm(env.force[:2]) * 0.05 == pytest.approx(0.2 * weight) and env.force[2] == 0
    np.testing.assert_allclose(change, env.force * 0.05, atol=0.02 * 0.2 * weight)
    fallen = momentum(twin)[2] - before[2]
    assert fallen == pytest.approx(-weight * 0.05, rel=0.02)  # what gravity does in a decision, for scale
    assert not data(env).xfrc_applied.any()
    assert str(env).startswith(f"humanoid-walk, push-0.2: impulses of {0.2 * weight:.4g} N s on torso, one in 50 dec")


def test_pushes_are_the_episodes_own_one_in_every_window_whatever_is_done():
    env = world("push-0.1")
    pushes = [play(env, seed, 3 * PUSH_EVERY, actions)[2] for seed, actions in ((3, 0), (3, 1), (4, 0))]
    assert np.array_equal(pushes[0], pushes[1]) and not np.array_equal(pushes[0], pushes[2])
    for found in pushes:
        assert found.any(1).reshape(3, PUSH_EVERY).sum(1).tolist() == [1, 1, 1]
    rows = np.concatenate(pushes)[np.concatenate(pushes).any(1)]
    assert len(np.unique(np.round(np.arctan2(rows[:, 1], rows[:, 0]), 6))) == 6  # of seeds 3 and 4
    assert np.ptp(np.linalg.norm(rows, axis=1)) < 1e-9


def test_where_there_is_no_torso_the_first_body_that_moves_is_pushed():
    assert " on cart, one in" in str(world("push-0.1", "cartpole-swingup"))
    assert " on cup, one in" in str(world("push-0.1", "cup-catch"))


# ---------------------------------------------------------------------------------------------------------- noise


def test_noise_is_of_the_asked_size_and_rewards_know_none():
    std = np.linspace(0, 2, 24)
    noisy, rewards, _ = play(world("noise-0.5", std=std), decisions=400)
    plain, twin_rewards, _ = play(make_env("walker-walk"), decisions=400)
    assert np.array_equal(rewards, twin_rewards) and noisy.dtype == np.float32
    difference = noisy.astype(float) - plain
    assert not difference[:, 0].any()  # what is constant stays so
    np.testing.assert_allclose(difference[:, 1:].std(0), 0.5 * std[1:], rtol=0.15)
    np.testing.assert_allclose(difference.mean(0), 0, atol=0.15)
    assert abs(np.corrcoef(difference[:-1, 5], difference[1:, 5])[0, 1]) < 0.15  # each decision has its own


def test_noise_is_the_same_whatever_is_done():
    found = []
    for actions in (0, 1):
        noisy, plain = (
            play(e, 3, 10, actions)[0] for e in (world("noise-1", std=np.ones(24)), make_env("walker-walk"))
        )
        found.append(noisy - plain)
    np.testing.assert_allclose(*found, atol=1e-5)
    assert not np.allclose(found[0], play(world("noise-1", std=np.ones(24)), 4, 10)[0] - plain, atol=1e-2)


def test_noise_needs_no_model_and_follows_on_without_a_seed():
    env = world("noise-0.1", PLAIN, seed=7, std=np.ones(3))
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second) and str(env).endswith("observations + 0.1 of their deviations")
    np.testing.assert_array_equal(world("noise-0.1", PLAIN, std=np.ones(3)).reset(seed=7)[0], first)
    assert env.decisions == 10


@pytest.mark.parametrize("std", [None, np.ones(2), -np.ones(3), np.full(3, np.nan)])
def test_noise_needs_deviations(std):
    with pytest.raises(ConfigError, match=r"noise-0.1 needs std, deviations at least 0 of shape \(3,\)"):
        world("noise-0.1", PLAIN, std=std)


# ------------------------------------------------------------------------------------------------- other environments


@pytest.mark.parametrize("name", ["mass-1.5", "gain-0.7", "friction-0.4", "push-0.3"])
def test_without_mujoco_nothing_but_noise_is_possible(name):
    with pytest.raises(ConfigError, match=f"Limited has no MuJoCo model, which {name} is to change; use noise"):
        world(name, PLAIN)


def test_gymnasiums_models_are_changed_too():
    native = gymnasium.make("HalfCheetah-v5").unwrapped
    for name in ("mass-1.5", "gain-0.7", "friction-0.4"):
        env = world(name, "gym:HalfCheetah-v5")
        env.reset(seed=0)
        found = env.unwrapped.model
        factor = Perturbation.parse(name).severity
        field = {"m": "body_mass", "g": "actuator_gainprm", "f": "geom_friction"}[name[0]]
        np.testing.assert_array_equal(getattr(found, field)[..., 0], factor * getattr(native.model, field)[..., 0])
    env = world("push-0.1", "gym:HalfCheetah-v5")
    pushes = play(env, decisions=PUSH_EVERY)[2]
    weight = 9.81 * native.model.body_mass.sum()
    assert np.linalg.norm(pushes.sum(0)) * native.dt == pytest.approx(0.1 * weight)


def test_an_environment_that_makes_its_model_anew_is_refused(monkeypatch):
    env = world("mass-1.5", "gym:HalfCheetah-v5")
    base = env.unwrapped
    monkeypatch.setattr(base, "reset_model", lambda: (base.model.body_mass.fill(1), type(base).reset_model(base))[1])
    with pytest.raises(ConfigError, match="changes its body_mass at a reset, where mass-1.5 must hold"):
        env.reset(seed=0)
