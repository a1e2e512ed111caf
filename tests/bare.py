"""Code run elsewhere: where nothing but torch, numpy and safetensors is installed; and notebooks, without a kernel."""

import json
import subprocess
import sys
import textwrap

from lib.records.paths import NOTEBOOKS, ROOT

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


def notebook_code(name: str, **given) -> str:
    """The code of a notebook, its parameters as given."""
    code = []
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        code += ["".join(cell["source"])] if cell["cell_type"] == "code" else []
        if "parameters" in cell["metadata"].get("tags", []):
            code += [f"{parameter} = {value!r}" for parameter, value in given.items()]
    return "\n".join(code)


def run_notebook(name: str, **given) -> None:
    """Run a notebook in this process, which a kernel would take ten seconds for."""
    exec(notebook_code(name, **given), {"display": lambda shown: None})
