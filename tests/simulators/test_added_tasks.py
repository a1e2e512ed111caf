"""The tasks that the TD-MPC2 authors added: sizes, lengths, and rewards at states where they are known."""

import numpy as np
import pytest

from lib.simulators.suite import dm_suite
from lib.weights.official import MT30, task_dimensions

dm_suite()  # chooses the rendering backend before dm_control is imported
from lib.simulators.added_tasks import ADDED_TASKS  # noqa: E402


def placed(name, **qpos_or_qvel):
    """An environment whose named positions (`joint=`) and velocities (`v_joint=`) are as given."""
    env = ADDED_TASKS[name](0)
    env.reset()
    with env.physics.reset_context():
        for joint, value in qpos_or_qvel.items():
            part = env.physics.named.data.qvel if joint.startswith("v_") else env.physics.named.data.qpos
            part[joint.removeprefix("v_")] = value
    return env.physics, env.task


def reward(name, **state):
    physics, task = placed(name, **state)
    return task.get_reward(physics)


def test_they_are_the_last_eleven_of_the_thirty():
    assert set(ADDED_TASKS) == set(MT30[19:])


@pytest.mark.parametrize("name", ADDED_TASKS)
def test_sizes_and_lengths(name):
    env = ADDED_TASKS[name](3)
    observed = np.concatenate([np.ravel(part) for part in env.reset().observation.values()])
    action = env.action_spec()
    assert (observed.size, *action.shape) == task_dimensions(name)
    rewards = [env.step(np.random.default_rng(i).uniform(-1, 1, action.shape)).reward for i in range(20)]
    assert 0 <= min(rewards) and max(rewards) <= 1
    assert env._step_limit == 1000
    again = ADDED_TASKS[name](3)
    assert np.array_equal(observed, np.concatenate([np.ravel(part) for part in again.reset().observation.values()]))


def test_backwards_is_paid_as_forwards_is_in_the_suite():
    # Upright at rest: standing pays 1 of 6, and half of the speed's 5 of 6 is gone at half the speed.
    upright = dict(rootz=0.1, rooty=0.0)
    still = reward("walker-walk-backwards", v_rootx=-0.5, **upright)
    assert reward("walker-walk-backwards", v_rootx=-1.0, **upright) == pytest.approx(1.0, abs=1e-6)
    assert still == pytest.approx((5 * 0.5 + 1) / 6, abs=1e-6)
    assert reward("walker-walk-backwards", v_rootx=1.0, **upright) == pytest.approx(1 / 6, abs=1e-6)
    assert reward("walker-run-backwards", v_rootx=-6.0, **upright) == pytest.approx((5 * 0.75 + 1) / 6, abs=1e-6)
    assert [reward("cheetah-run-backwards", v_rootx=v) for v in (-9.0, -4.0, 0.0, 5.0)] == pytest.approx([1, 0.5, 0, 0])


def test_a_cheetah_on_one_foot_and_one_that_jumps():
    high = dict(rootz=3.0, rooty=0.0)
    for foot in ("front", "back"):
        assert reward(f"cheetah-run-{foot}", v_rootx=6.0, **high) == pytest.approx(1.0)
        assert reward(f"cheetah-run-{foot}", v_rootx=3.0, **high) == pytest.approx((5 * 0.5 + 1) / 6)
        assert reward(f"cheetah-run-{foot}", v_rootx=-3.0, **high) == pytest.approx(1 / 6)
    assert reward("cheetah-jump", v_rootx=0.4, **high) == pytest.approx(1.0)
    assert reward("cheetah-jump", v_rootx=-0.75, **high) == pytest.approx((5 + 0.5) / 6)
    assert reward("cheetah-jump", v_rootx=-2.0, **high) == pytest.approx(5 / 6)
    # Nose up about the torso: the front foot is off the ground, and only "front" keeps the back one down.
    tilted = dict(rootz=0.4, rooty=-0.9, v_rootx=6.0)
    assert reward("cheetah-run-back", **tilted) > reward("cheetah-run-front", **tilted)


def test_a_hopper_that_hops_backwards():
    physics, task = placed("hopper-hop-backwards", rootz=0.2, rooty=0.0)
    assert 0.6 < physics.height() < 2
    speeds = {-1.0: 1.0, -0.75: 0.75, -0.5: 0.5, 0.5: 0.0}
    for speed, paid in speeds.items():
        assert reward("hopper-hop-backwards", rootz=0.2, rooty=0.0, v_rootx=speed) == pytest.approx(paid, abs=1e-6)


def test_a_pendulum_that_spins_and_a_ball_that_is_swung():
    assert [reward("pendulum-spin", v_hinge=v) for v in (9.5, -9.0, 6.75, 4.5)] == pytest.approx([1, 1, 0.75, 0.5])
    physics, task = placed("cup-spin", ball_x=0.0, ball_z=-0.3, v_ball_x=4.8, v_ball_z=3.6)
    far = np.linalg.norm(physics.ball_to_target())
    assert task.get_reward(physics) == pytest.approx((min(max(far / 0.5, 0), 1) + 2) / 3) and not physics.in_target()
    starts = []
    env = ADDED_TASKS["cup-spin"](0)
    for _ in range(60):
        env.reset()
        starts.append(env.physics.in_target())
    assert 0.8 <= np.mean(starts) < 1


def test_the_reacher_has_three_links():
    physics, _ = placed("reacher-three-easy", shoulder=0.0, elbow=0.0, wrist=0.0)
    assert physics.named.data.geom_xpos["finger", "x"] == pytest.approx(0.27)
    bent, _ = placed("reacher-three-hard", shoulder=0.0, elbow=np.pi / 3, wrist=np.pi / 3)
    assert bent.named.data.geom_xpos["finger", :2] == pytest.approx([0.09, 0.09 * np.sqrt(3)])
    assert [bent.named.model.geom_size["target", 0], physics.named.model.geom_size["target", 0]] == [0.015, 0.05]
    assert np.rad2deg(physics.named.model.jnt_range["elbow"]) == pytest.approx([-80, 80])
