"""A process in which nothing but torch, numpy and safetensors is installed, with what these need themselves."""

import subprocess
import sys
import textwrap

from lib.records.paths import ROOT

ONLY_TORCH = """
import sys
from importlib.machinery import PathFinder

INSTALLED = {"torch", "torchgen", "functorch", "numpy", "safetensors", "packaging", "setuptools", "pkg_resources"}
INSTALLED |= {"sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "typing_extensions"}
find = PathFinder.find_spec

def only_installed(cls, name, path=None, target=None):
    spec = find(name, path, target)
    place = spec and (spec.origin or str(list(spec.submodule_search_locations or [])))
    return None if spec and "site-packages" in place and name.partition(".")[0] not in INSTALLED else spec

PathFinder.find_spec = classmethod(only_installed)
for name in ("pandas", "gymnasium", "tqdm", "dm_control", "altair"):
    try:
        __import__(name)
        sys.exit(name + " can be imported all the same")
    except ModuleNotFoundError:
        pass
"""


def run_bare(code: str) -> str:
    """Run `code` in such a process, from the root; what it printed."""
    code = ONLY_TORCH + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
