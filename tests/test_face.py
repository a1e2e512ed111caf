"""The names of the package: each is what it says, and none costs anything before it is used."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import lib
from lib.records.paths import ROOT
from tests.bare import run_bare

EAGER = ', mode="eager"'
CONTROL = f"""
import sys
import tempfile
import torch
import lib

wm = lib.load_world_model({str(ROOT / "data" / "teachers" / "walker-walk-1m-1.safetensors")!r})
planner, obs = lib.MPPI(wm, lib.PlannerConfig.budget(64, 2{EAGER})), torch.zeros(2, 24)
assert planner(wm.encode(obs)).actions.shape == (2, 3, 6)
controller = lib.SpeculativeController(planner, lib.TwoTowerCorrector(wm.latent_dim, 6).eval(), execution_horizon=3)
controller.reset(batch_size=2)
for decision in range(4):
    actions, info = controller.act(obs + 0.1 * decision)
    assert actions.shape == (2, 6) and actions.abs().max() <= 1
from lib.bundle import save_controller
with tempfile.TemporaryDirectory() as folder:
    save_controller(controller, folder)
    loaded = lib.load_controller(folder)
loaded.reset(batch_size=1)
assert loaded.act(obs[0])[0].shape == (6,)
import lib.distil.thresholds, lib.distil.train
assert not [name for name in sys.modules if name.startswith(("lib.records", "lib.teachers", "lib.study"))]
print(lib.__file__)
"""


def test_every_name_is_there_and_no_other():
    from lib.rollout import rollout

    assert set(lib.__all__) <= set(dir(lib)) and len(set(lib.__all__)) == len(lib.__all__)
    for name in lib.__all__:
        assert getattr(lib, name).__name__ == name
    assert lib.rollout is rollout  # and not the module
    with pytest.raises(AttributeError, match="module 'lib' has no attribute 'teacher'"):
        lib.teacher  # noqa: B018


def test_nothing_heavy_is_loaded_before_it_is_used():
    code = (
        "import sys, lib; assert not {'numpy', 'torch', 'gymnasium', 'tqdm'} & {*sys.modules};"
        "from lib import MPPI; assert 'torch' in sys.modules and 'gymnasium' not in sys.modules;"
        "import lib.protocols, lib.speculation, lib.environments; assert 'gymnasium' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_method_acts_where_only_torch_numpy_and_safetensors_are_installed():
    assert run_bare(CONTROL).strip() == str(ROOT / "lib" / "__init__.py")


@pytest.mark.slow
def test_the_method_acts_from_an_environment_of_its_own(tmp_path):
    """Made as a user makes it, by pip; `lib` lies among its packages, and the repository is not found. Plans are
    compiled there, as by default."""
    wanted = re.findall(r"^(?:torch|numpy|safetensors)==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    python = str(tmp_path / "venv" / "bin" / "python")
    for command in ([sys.executable, "-m", "venv", str(tmp_path / "venv")], [python, "-m", "pip", "install", *wanted]):
        subprocess.run(command, check=True, capture_output=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    shutil.copytree(ROOT / "lib", packages / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPECULATIVE", "TORCHINDUCTOR"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = CONTROL.replace(EAGER, "")
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and str(packages) in done.stdout, done.stderr
    assert not (packages / "data").exists()  # what is compiled is kept in the user's cache
