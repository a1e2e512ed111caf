"""Fingerprints change with what code does, and with nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib.records.fingerprint import Code, fingerprint
from lib.records.paths import ROOT
from lib.records.syntax import FingerprintError

TREE = {
    "lib/__init__.py": "",
    "lib/planner.py": '''
        """Plans."""
        from __future__ import annotations

        import functools

        from lib import config as settings
        from lib.math.mean import DROPOUT, Base
        from lib.math.mean import weigh

        TEMPERATURE = settings.TEMPERATURE
        UNUSED = 7


        def logged(function):
            return functools.wraps(function)(lambda *a: function(*a))


        class Planner(Base):
            """Makes plans."""

            def __init__(self, budget: settings.Budget, samples=settings.SAMPLES):
                self.samples = samples  # of each iteration

            @logged
            def solve(self, scores):
                from lib.math.mean import spread

                weights = [weigh(s, TEMPERATURE) for s in scores]
                if not weights:
                    raise ValueError(f"no scores for {self.samples} samples")
                return sum(weights) * spread(weights) * DROPOUT


        def unreached():
            raise RuntimeError("nobody calls this")
    ''',
    "lib/config.py": '''
        TEMPERATURE = 0.5
        SAMPLES = 512


        class Budget:
            samples: int = 512

            @property
            def evaluations(self):
                return self.samples * 3
    ''',
    "lib/math/__init__.py": "",
    "lib/math/mean.py": '''
        import math as m

        import numpy as np

        DROPOUT = 0.3


        class Base:
            horizon = 3


        def weigh(score, temperature):
            return m.exp(score / temperature)


        def spread(values):
            return np.std(values) if len(values) > 1 else even(len(values))


        def even(n):
            return n == 0 or odd(n - 1)


        def odd(n):
            return n != 0 and even(n - 1)
    ''',
    "lib/gates.py": '''
        class Drift:
            kind = "drift"


        class Value:
            kind = "value"


        SCHEMES = {"drift": Drift, "value": Value}


        def made(kind):
            return SCHEMES[kind]()
    ''',
    "lib/study.py": '''
        from lib.gates import Drift, made
        from lib.planner import Planner
        from lib.records.store import write
        from lib.config import Budget


        def cost(n):
            return n * Budget().evaluations


        def play(scores):
            return write(made("drift"), Planner(None).solve(scores))
    ''',
    "lib/records/__init__.py": "",
    "lib/records/store.py": "def write(*values):\n    return values\n",
}  # fmt: skip
ROOTS = {"play": ("lib.study:play", "lib.gates:Drift"), "cost": ("lib.study:cost",)}


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
        (root / name).write_text("\n".join(x[indent:] for x in lines))
    return root


def prints(root: Path, roots=ROOTS) -> dict[str, str]:
    return {name: Code(root).fingerprint(*which) for name, which in roots.items()}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return prints(put(tmp_path_factory.mktemp("tree"), TREE))


def edit(*changes: str) -> dict[str, str]:
    """The tree with text exchanged: file, old, new, and again as often as wanted."""
    files = dict(TREE)
    for name, old, new in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
        assert old in files[name], old
        files[name] = files[name].replace(old, new)
    return files


def moved() -> dict[str, str]:
    """`planner` in a folder of its own, `mean` with another name, imported in other ways."""
    files = {name: text for name, text in TREE.items() if name not in ("lib/planner.py", "lib/math/mean.py")}
    files |= {
        "lib/plan/__init__.py": "from lib.plan.mppi import Planner\n",
        "lib/math/sums.py": TREE["lib/math/mean.py"],
    }
    planner = TREE["lib/planner.py"].replace("lib.math.mean", "lib.math.sums")
    files["lib/plan/mppi.py"] = planner.replace("from lib import config as settings", "import lib.config as settings")
    files["lib/study.py"] = TREE["lib/study.py"].replace(
        "from lib.planner import Planner", "from lib.plan import Planner"
    )
    return files


SAME = {
    "a file moves and a module is renamed": moved(),
    "an unused gate": edit(
        "lib/gates.py",
        'SCHEMES = {"drift": Drift, ',
        'class New:\n            kind = "new"\n\n\n        SCHEMES = {"new": New, "drift": Drift, ',
    ),
    "a comment": edit("lib/planner.py", "# of each iteration", "# drawn each time"),
    "a docstring": edit("lib/planner.py", '"""Makes plans."""', '"""Plans are made here."""'),
    "prose of the module": edit("lib/planner.py", '"""Plans."""', '"""All about plans."""'),
    "the layout": edit(
        "lib/math/mean.py", "m.exp(score / temperature)", "m.exp(\n                (score / temperature)\n            )"
    ),
    "a message of a function that is not reached": edit("lib/planner.py", "nobody calls this", "never called"),
    "a constant that is not reached": edit("lib/planner.py", "UNUSED = 7", "UNUSED = 8"),
    "an unused import": edit("lib/math/mean.py", "import math as m", "import json\n        import math as m"),
    "an import by another name": edit("lib/math/mean.py", "numpy as np", "numpy", "lib/math/mean.py", "np.", "numpy."),
    "the order of definitions": edit(
        *("lib/math/mean.py", "DROPOUT = 0.3\n", ""),
        *("lib/math/mean.py", "def odd(n):", "DROPOUT = 0.3\n\n\n        def odd(n):"),
    ),
    "an annotation of a function": edit("lib/planner.py", "budget: settings.Budget", "budget: object"),
    "a function's name": edit(
        "lib/planner.py", "weigh\n", "rate\n", "lib/planner.py", "weigh(", "rate(", "lib/math/mean.py", "weigh", "rate"
    ),
    "how files are written": edit("lib/records/store.py", "return values", "return list(values)"),
}  # fmt: skip
OTHER = {  # what changes → the stages that reach it
    "the temperature doubled": (edit("lib/config.py", "TEMPERATURE = 0.5", "TEMPERATURE = 1.0"), {"play"}),
    "another formula for model evaluations": (edit("lib/config.py", "self.samples * 3", "self.samples * 4"), {"cost"}),
    "a changed dropout": (edit("lib/math/mean.py", "DROPOUT = 0.3", "DROPOUT = 0.1"), {"play"}),
    "a changed default argument": (edit("lib/config.py", "SAMPLES = 512", "SAMPLES = 256"), {"play"}),
    "a changed base class": (edit("lib/math/mean.py", "horizon = 3", "horizon = 5"), {"play"}),
    "a changed decorator": (edit("lib/planner.py", "function(*a))", "function(*a) + 1)"), {"play"}),
    "a changed field": (edit("lib/config.py", "samples: int = 512", "samples: int = 256"), {"cost"}),
    "the type of a field": (edit("lib/config.py", "samples: int", "samples: float"), {"cost"}),
    "what a recursion does": (edit("lib/math/mean.py", "return n != 0", "return n > 0"), {"play"}),
    "a message of a function that is reached": (edit("lib/planner.py", "no scores for", "nothing for"), {"play"}),
    "the gate that is used": (edit("lib/gates.py", 'kind = "drift"', 'kind = "other"'), {"play"}),
    "another function of a package": (edit("lib/math/mean.py", "np.std", "np.var"), {"play"}),
    "an import from elsewhere": (edit("lib/math/mean.py", "import math as m", "import cmath as m"), {"play"}),
    "what the module does when it is imported": (
        edit("lib/math/mean.py", "DROPOUT = 0.3", "DROPOUT = 0.3\n        np.seterr(all='raise')"),
        {"play"},
    ),
    "a constant that is changed later": (
        edit("lib/config.py", "SAMPLES = 512", "SAMPLES = 512\n        SAMPLES += 1"),
        {"play"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_count(before, tmp_path, what):
    assert prints(put(tmp_path, SAME[what])) == before


@pytest.mark.parametrize("what", OTHER)
def test_what_counts_and_for_which_stages(before, tmp_path, what):
    files, stale = OTHER[what]
    after = prints(put(tmp_path, files))
    assert {name for name in ROOTS if after[name] != before[name]} == stale


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from lib.math.mean import *", r"planner\.py:\d+: a star import"),
        ("import lib.nothing", r"planner\.py:\d+: lib\.nothing is imported, but"),
        ("from lib.nothing import x", r"planner\.py:\d+: lib\.nothing is imported, but"),
        ("import importlib as i\n        TEMPERATURE = i.import_module('lib.config').SAMPLES", r"\.py:\d+: importlib"),
        ("TEMPERATURE = settings.NOTHING", r"planner\.py:\d+: settings\.NOTHING: lib\.config has no NOTHING"),
        ("from lib.config import GONE as TEMPERATURE", r"\.py:\d+: TEMPERATURE is imported from lib\.config, which"),
        ("TEMPERATURE = str(settings)", r"planner\.py:\d+: the module lib\.config is used as an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_names_file_and_line(tmp_path, line, message):
    tree = put(tmp_path, edit("lib/planner.py", "TEMPERATURE = settings.TEMPERATURE", line))
    with pytest.raises(FingerprintError, match=message):
        prints(tree)


def test_an_unknown_root_is_named(tmp_path):
    with pytest.raises(FingerprintError, match="lib.planner:Nothing is not defined"):
        Code(put(tmp_path, TREE)).fingerprint("lib.planner:Nothing")


def test_a_notebook_counts_by_its_code_and_not_by_its_parameters_or_prose(tmp_path):
    def notebook(code, parameters="episodes: int = 3", prose="# A question"):
        cells = [
            {"cell_type": "markdown", "source": prose},
            {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}},
            {"cell_type": "code", "source": code, "metadata": {}},
        ]
        (put(tmp_path, TREE) / "one.ipynb").write_text(json.dumps({"cells": cells}))
        return Code(tmp_path).fingerprint("one.ipynb")

    code = "%matplotlib inline\nfrom lib.study import play\nrows = play(range(episodes))"
    first = notebook(code)
    assert notebook(code, "episodes: int = 5", "# Another") == first
    assert (
        notebook(code.replace("lib.study import play", "lib.study import play as played").replace("= play", "= played"))
        == first
    )
    assert notebook(code + " * 2") != first and notebook(code.replace("play", "cost")) != first


def test_the_hash_is_the_same_on_every_python_version(before):
    # If this fails on a new Python while the other tests pass, every committed result would look stale there.
    assert before == {
        "play": "eaf68e2253ed955e7cc0576ac0bb0e92c32ac41daa01aabbe680337c08ddd9e9",
        "cost": "bc631fc7a56c0ea6180e88fd58531bf14fe63f55a470aed28551d2296af50aed",
    }


def test_every_source_of_the_project_can_be_followed():
    from lib.records.pipeline import STAGES

    for stage in STAGES:
        assert len(fingerprint(stage.source)) == 64


def test_it_needs_nothing_but_the_standard_library():
    heavy = "{'numpy', 'torch', 'pandas', 'papermill'} & set(sys.modules)"
    code = f"import sys, lib.records.fingerprint, lib.records.pipeline; sys.exit(bool({heavy}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_function_of_the_module_that_runs_is_one_of_its_module(monkeypatch):
    """`python -m lib.teachers.cli` ships with a fingerprint of its own `ship`, which is then one of `__main__`."""
    from lib.records import run

    known = fingerprint(run.main)
    monkeypatch.setitem(sys.modules, "__main__", run)
    monkeypatch.setattr(run.main, "__module__", "__main__")
    assert fingerprint(run.main) == known
