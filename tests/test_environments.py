"""DMControl tasks against dm_control itself, and environments of others: order, actions, lengths, seeding, errors."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from lib import environments
from lib.config import ConfigError
from lib.environments import EPISODE_DECISIONS, TOLD, episode_decisions, failure, identity, make_env, task_names
from lib.records.paths import ROOT
from lib.simulators.suite import DOMAIN_ALIASES, _official


def twin(task, seed):
    """dm_control's own environment at the same start."""
    make_env(task)  # chooses the rendering backend before dm_control is imported
    from dm_control import suite

    domain, name = task.split("-", 1)
    return suite.load(DOMAIN_ALIASES.get(domain, domain), name.replace("-", "_"), task_kwargs={"random": seed})


def flat(time_step, spec):
    return np.concatenate([np.ravel(time_step.observation[key]) for key in spec]).astype(np.float32)


@pytest.mark.parametrize("task", ["walker-walk", "reacher-easy", "cup-catch"])
def test_observations_and_rewards_are_those_of_dm_control(task):
    env, native = make_env(task, seed=7), twin(task, seed=7)
    spec = native.observation_spec()
    obs, _ = env.reset()  # the first reset keeps the seed given to make_env
    np.testing.assert_array_equal(obs, flat(native.reset(), spec))
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(30):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        frames = [native.step(action) for _ in range(2)]
        np.testing.assert_allclose(obs, flat(frames[-1], spec), rtol=1e-6)
        assert reward == pytest.approx(sum(frame.reward for frame in frames))
        assert not terminated and not truncated
        total += reward
    assert total > 0 or task != "walker-walk"


def test_the_official_order_is_not_alphabetical():
    spec = list(twin("walker-walk", 0).observation_spec())
    assert spec == ["orientations", "height", "velocity"] != sorted(spec)
    obs, _ = make_env("walker-walk").reset(seed=0)
    assert obs[14] > 1.0  # the torso's height, behind 14 orientations


def test_an_episode_is_500_decisions_and_is_truncated_not_terminated():
    env = make_env("cartpole-swingup", seed=0)
    for _ in range(2):  # the second episode counts from zero
        env.reset()
        for decision in range(1, EPISODE_DECISIONS + 1):
            *_, terminated, truncated, _ = env.step(np.zeros(1))
            assert not terminated and truncated == (decision == 500), decision


def test_actions_are_clipped():
    env, obs = make_env("cartpole-swingup"), {}
    for action in (5.0, 1.0, 0.9):
        env.reset(seed=1)
        obs[action] = env.step([action])[0]
    assert np.array_equal(obs[5.0], obs[1.0]) and not np.array_equal(obs[1.0], obs[0.9])


def test_seeds_fix_the_start_and_differ():
    env = make_env("reacher-easy", seed=3)
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second)  # the episodes of one environment follow each other
    np.testing.assert_array_equal(env.reset(seed=11)[0], make_env("reacher-easy", seed=5).reset(seed=11)[0])
    np.testing.assert_array_equal(make_env("reacher-easy", seed=3).reset()[0], first)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(5)])
    assert len(np.unique(starts, axis=0)) == 5
    for _ in range(3):  # a used environment, too, plays the same episode again
        env.step(np.ones(2))
    np.testing.assert_array_equal(env.reset(seed=0)[0], starts[0])


def test_two_runs_with_the_same_seed_are_identical():
    episodes = []
    for _ in range(2):
        env, rng = make_env("hopper-stand"), np.random.default_rng(1)
        env.reset(seed=2)
        episodes.append([env.step(rng.uniform(-1, 1, 4))[0] for _ in range(20)])
    np.testing.assert_array_equal(*episodes)


@pytest.mark.parametrize(
    "task, message",
    [("walker-wakl", "Did you mean .*walker-walk"), ("ball_in_cup-catch", "cup-catch"), (3, "must be a name")],
)
def test_unknown_tasks_suggest_near_names(task, message):
    with pytest.raises(ConfigError, match=message):
        make_env(task)


@pytest.mark.parametrize(
    ("task", "why"),
    [("lqr-lqr-2-1", "no bounds"), ("lqr-lqr-6-2", "no bounds"), ("quadruped-escape", "draws its terrain")],
)
def test_tasks_that_cannot_be_stepped_soundly_are_refused(task, why):
    with pytest.raises(ConfigError, match=f"task='{task}' is not offered: .*{why}.*; take another"):
        make_env(task)


@pytest.mark.slow
def test_every_task_that_is_offered_has_bounds_and_can_be_stepped():
    for task in task_names():
        env = make_env(task, 0)
        spec = env.unwrapped._env.action_spec()
        assert np.abs([spec.minimum, spec.maximum]).max() <= 1e3, task
        obs, _ = env.reset(seed=0)
        after, reward, terminated, _, info = env.step(np.ones(env.action_space.shape))
        assert np.isfinite([*obs, *after, reward]).all() and not terminated and TOLD not in info, task


@pytest.mark.parametrize("frame", [1, 2])
def test_a_simulator_that_diverges_ends_the_episode(frame):
    """As MuJoCo itself reports it, in either frame of a decision."""
    env, fine = make_env("walker-walk", seed=0), make_env("walker-walk", seed=0)
    env.reset(seed=4), fine.reset(seed=4)
    obs = env.step(np.ones(6))[0]
    assert np.array_equal(obs, fine.step(np.ones(6))[0])
    frames, native = [], env.env.step

    def broken(action):
        frames.append(action)
        if len(frames) == frame:
            env.unwrapped._env.physics.data.qvel[:] = 1e12
        return native(action)

    env.env.step = broken
    seen, reward, terminated, truncated, info = env.step(np.zeros(6))
    assert np.array_equal(seen, obs) and np.isnan(reward) and (terminated, truncated) == (True, False)
    assert len(frames) == frame and "mjWARN_BADQVEL" in info[TOLD]
    assert np.array_equal(env.reset(seed=4)[0], fine.reset(seed=4)[0])  # and the next one is as ever
    assert env.step(np.ones(6))[1] == fine.step(np.ones(6))[1]


@pytest.mark.parametrize("part", ["get_reward", "get_observation"])
def test_what_is_not_finite_is_a_divergence(part, monkeypatch):
    env = make_env("pendulum-swingup", seed=0)
    obs, _ = env.reset(seed=1)
    task, huge = env.unwrapped._env.task, {"orientation": np.array([1e300, 0.0]), "velocity": np.zeros(1)}
    monkeypatch.setattr(task, part, lambda physics: np.nan if part == "get_reward" else huge)  # too large for float32
    seen, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert np.array_equal(seen, obs) and np.isnan(reward) and (terminated, truncated) == (True, False)
    assert info == {TOLD: "diverged: pendulum-swingup, decision 0: its reward or observation is not finite"}
    assert failure(info) == ""  # of the suite: an episode's end


@pytest.mark.parametrize("action", [np.zeros(5), np.zeros((1, 6)), 0.0, [np.nan] * 6, [np.inf] * 6])
def test_wrong_actions_are_refused(action):
    env = make_env("walker-walk", seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"walker-walk takes finite actions of shape \(6,\)"):
        env.step(action)


def test_every_name_maps_back_to_a_suite_task():
    names = task_names()
    from dm_control import suite

    assert len(names) == len(set(names)) == 48 + 11
    without = {("lqr", "lqr_2_1"), ("lqr", "lqr_6_2"), ("quadruped", "escape")}
    assert {_official(*task) for task in set(suite.ALL_TASKS) - without} <= set(names)
    assert {"walker-walk", "cup-catch", "pointmass-easy", "humanoid-run", "cup-spin"} <= set(names)


def test_headless_and_without_warnings():
    """A machine with no display and no rendering settings: nothing may be printed to stderr."""
    bare = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM")}
    code = "from lib.environments import make_env; env = make_env('walker-walk', 0); env.reset();"
    code += "print(env.step(env.action_space.sample())[0].shape)"
    command = [sys.executable, "-W", "always", "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == "(24,)", run.stderr
    assert not [line for line in run.stderr.splitlines() if "lib/" in line and "site-packages" not in line], run.stderr
    assert "GLFWError" not in run.stderr and "DISPLAY" not in run.stderr


def test_what_nobody_can_mend_reaches_neither_terminal_nor_folder(tmp_path, caplog):
    code = "from lib.environments import make_env; print(make_env('gym:HalfCheetah-v5').reset(seed=0)[0].shape)"
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=told, capture_output=True, text=True, timeout=120
    )
    assert (run.stdout.strip(), run.stderr, list(tmp_path.iterdir())) == ("(17,)", "", []), run.stderr
    for warning in ("compiler attribute 'settotalmass' is deprecated", "Nan, Inf or huge value in QACC at DOF 0.\n"):
        environments._heard(warning)
    assert caplog.messages == ["Nan, Inf or huge value in QACC at DOF 0."]


BLIND = """
import os
from lib.config import ConfigError
from lib.environments import make_env
asked, env = os.environ["MUJOCO_GL"], make_env("pendulum-swingup", 0)
env.reset(seed=0)
print(env.step(env.action_space.sample())[0].shape, os.environ["MUJOCO_GL"] == asked)
env.unwrapped.render_mode = "rgb_array"
try:
    env.render()
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(("backend", "platform"), [("osmesa", "egl"), ("egl", "osmesa"), ("nothing", "")])
def test_a_rendering_library_that_is_lacking_matters_where_something_is_drawn(backend, platform):
    told = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": platform}
    run = subprocess.run([sys.executable, "-c", BLIND], cwd=ROOT, env=told, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    stepped, sentence = run.stdout.splitlines()
    assert stepped == "(3,) True"
    assert sentence.startswith(f"nothing can be drawn here with MUJOCO_GL='{backend}': ")
    assert sentence.endswith("unset MUJOCO_GL and PYOPENGL_PLATFORM or let them name it.")


def test_gymnasium_accepts_the_environment():
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it dislikes unbounded observations, which are what the tasks have
        check_env(make_env("pendulum-swingup", seed=0), skip_render_check=True)


# ------------------------------------------------------------------------------------------- environments of others


def test_a_gymnasium_environment_is_its_own_one_scaled_and_flat():
    import gymnasium

    env, native = make_env("gym:Pendulum-v1"), gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=5)
    assert obs.dtype == np.float32 and np.array_equal(obs, native.reset(seed=5)[0])
    for decision in range(1, 201):
        action = np.array([np.sin(decision)])
        obs, reward, terminated, truncated, _ = env.step(action)
        theirs, expected, *_ = native.step(2 * action.astype(np.float32))  # its torques go to 2
        assert np.allclose(obs, theirs) and reward == pytest.approx(float(expected), rel=1e-5)
        assert not terminated and truncated == (decision == 200)
    assert env.decisions == 200 == episode_decisions("gym:Pendulum-v1")
    assert episode_decisions("gym:Pendulum-v1", 20) == 20 and episode_decisions("walker-walk") == 500


def test_terminations_are_kept_apart_from_time_limits():
    env = make_env("gym:Hopper-v5")
    env.reset(seed=0)
    ends = [env.step(np.zeros(3))[2:4] for _ in range(200)]
    assert (True, False) in ends and ends.index((True, False)) == next(i for i, end in enumerate(ends) if any(end))


def test_nested_observations_keep_their_order_and_the_action_repeat_sums_rewards():
    env = make_env("tests.own_envs:Nested", repeat=3)
    obs, _ = env.reset(seed=1)
    assert obs.tolist() == [7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 1.0]  # zebra before apple, as the environment gives them
    assert env.observation_space.shape == (7,) and env.action_space.shape == (2,)
    assert env.decisions == 4  # of ten frames
    obs, reward, *ended = env.step(np.array([1.0, -1.0]))
    assert reward == 3 * (30.0 - 5.0) and ended[:2] == [False, False]  # bounds −10 … 30 and −5 … 5
    for _ in range(2):
        assert env.step(np.zeros(2))[2:4] == (False, False)
    assert env.step(np.zeros(2))[2:4] == (False, True)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("gym:HalfCheeta-v5", "'HalfCheeta-v5' is not registered; .* Did you mean gym:HalfCheetah-v5"),
        ("gym:HalfCheetah-v99", "is not registered"),
        ("gym:CartPole-v1", "actions of Discrete; only continuous"),
        ("gym:phys2d/Pendulum-v0", "cannot be made: .*install what it needs"),
        ("nowhere_at_all:make", "No module named 'nowhere_at_all'; run where"),
        ("tests.own_envs:Nestd", "the factory in tests.own_envs='Nestd' is not known; .*Did you mean Nested"),
        ("tests.own_envs:a_number", "returned a int; it must return a gymnasium.Env"),
        ("tests.own_envs:broken", r"broken\(\) raised KeyError: 'x'"),
        ("tests.own_envs:Pixels", "seen through pixels"),
        ("tests.own_envs:Unbounded", "actions without bounds"),
        ("tests.own_envs:Endless", "no time limit"),
        ("mw-reach", "Meta-World"),
    ],
)
def test_what_cannot_be_controlled_is_refused_in_a_sentence(task, sentence):
    with pytest.raises(ConfigError, match=sentence) as refused:
        make_env(task)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_an_observation_of_another_size_than_declared_is_refused_with_both():
    with pytest.raises(ConfigError, match="gave an observation of 3 numbers, but its observation_space declares 4"):
        make_env("tests.own_envs:Short").reset()


@pytest.mark.parametrize(("how", "why"), [("failed", "RuntimeError: a cable broke"), ("unsound", "is not finite")])
def test_an_environment_that_fails_says_so_and_can_begin_again(how, why):
    env = make_env("tests.own_envs:Failing")
    obs, _ = env.reset(seed={"failed": 1, "unsound": 2}[how])
    env.step(np.zeros(1))
    seen, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert np.isnan(reward) and (terminated, truncated) == (True, False) and list(info) == [TOLD]
    assert info[TOLD].startswith(f"{how}: tests.own_envs:Failing, decision 1: ") and failure(info).endswith(why)
    env.reset(seed=0)
    assert env.step(np.zeros(1))[1] == 1.0
    obs, info = env.reset(seed={"failed": 3, "unsound": 4}[how])
    assert not obs.any() and "decision 0: its reset with seed" in failure(info) and why in failure(info)


def test_parts_of_observations_stay_where_the_first_reset_had_them():
    env = make_env("tests.own_envs:Shuffled")
    assert env.reset(seed=0)[0].tolist() == [1.0, 2.0] == env.step(np.zeros(1))[0].tolist()


def test_the_shortest_time_limit_counts_and_seeds_are_used_once():
    assert make_env("tests.own_envs:twice_limited").decisions == 10
    assert (episode_decisions("tests.own_envs:Failing", 50), episode_decisions("tests.own_envs:Failing", 4)) == (10, 4)
    env = make_env("gym:Pendulum-v1", seed=5)
    first = env.reset()[0]
    assert np.array_equal(make_env("gym:Pendulum-v1", seed=5).reset()[0], first)
    env = make_env("gym:Pendulum-v1", seed=5)
    env.reset(seed=7)
    assert not np.array_equal(env.reset()[0], first)  # episodes follow on
    for wrong in (dict(repeat=-1), dict(decisions=0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            make_env("tests.own_envs:Failing", **wrong)


def test_what_stands_for_an_environment_changes_with_its_code(tmp_path, monkeypatch):
    assert identity("walker-walk") == "walker-walk"
    assert identity("gym:Pendulum-v1") != identity("gym:Hopper-v5")
    monkeypatch.syspath_prepend(tmp_path)
    told = set()
    for number in range(2):
        (tmp_path / "mine.py").write_text(f"from tests.own_envs import Limited  # {number}\n")
        identity.cache_clear()
        told.add(identity("mine:Limited"))
    assert len(told) == 2
