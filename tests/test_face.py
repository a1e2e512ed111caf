"""The names of the package: each is what it says, and none costs anything before it is used."""

import subprocess
import sys

import pytest

import lib
from lib.records.paths import ROOT


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
