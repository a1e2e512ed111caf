"""What an audit hears of episodes, on a machine that cannot draw."""

import os
import subprocess
import sys

from lib.records.paths import ROOT

HEARD = """
from lib.records.replay import listen
episodes = listen()
from lib.environments import make_env
env = make_env("pendulum-swingup", 0)
env.reset(seed=0)
env.step(env.action_space.sample())
print([steps for *_, steps in episodes])
"""


def test_a_rendering_library_that_is_lacking_does_not_matter():
    told = os.environ | {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"}  # which no machine can have together
    run = subprocess.run([sys.executable, "-c", HEARD], cwd=ROOT, env=told, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "[2]"), run.stderr
