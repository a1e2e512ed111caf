"""A small copy of the repository: the wing of records with four stages of its own, run as a user runs it."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.records.paths import ROOT

CELL = "walker-walk-1m-1"
COPIED = ("lib/config.py", "lib/files.py", "lib/records", "lib/study/__init__.py", "lib/study/profiles.py")
COPIED += ("lib/study/profiles.toml", "lib/teachers/__init__.py", "lib/teachers/config.py")
STAGES = """

ONE = dict(settings=("epochs",), roots=lambda scope: ("lib.gates:Drift",), rows="lib.rows:rows")
MORE, PARAMETERS = "", {}
STAGES = (
    Stage(
        "one",
        "notebooks/one.ipynb",
        ("one",),
        lambda scope, cell: scope.result(*(f"one/{name}.csv" for name in (cell, MORE) if name)),
        each=lambda scope: scope.cells,
        parameters=lambda scope, cell: PARAMETERS,
        **ONE,
    ),
    Stage(
        "two",
        "notebooks/two.ipynb",
        ("two",),
        lambda scope, _: scope.result("two/y.csv"),
        lambda scope, _: scope.result(*tables(scope, "one")),
        keeps=lambda scope, _: scope.result("two/kept.csv"),
    ),
    drawn("plot", lambda scope: scope.result("two/y.csv")),
    Stage("timed", "paper/timed.py", ("planner",), lambda scope, _: scope.result("planner/t.csv"), timing=True),
)
"""
PARAMETERS = """profile: str = "smoke"
task: str = ""
model_size: str = ""
seed: int = 0
episodes: int = 3  # how many
lr: float = 1
flag = False
"""
USE = """
import time
import lib.needed
from lib.records.paths import ROOT
from lib.records.store import write_table
from lib.study.profiles import PROFILES
epochs = PROFILES[profile].epochs
"""
WRITE = """
rows = [{"episode": i, "return": lib.needed.value(i), "minutes": time.time()} for i in range(episodes)]
write_table(ROOT / "data/results" / profile / "one" / f"{task}-{model_size}-{seed}.csv", rows)
"""
CHECK = 'assert episodes < 10, "too many episodes"'
SLOW = """
import os
if (ROOT / "slow").exists():
    (ROOT / "pid").write_text(str(os.getpid()))
    time.sleep(60)
"""
READ = f"""
from lib.records.paths import ROOT
from lib.records.store import intact, read_table, write_artefact
folder = ROOT / "data/results" / profile
x = read_table(folder / "one/{CELL}.csv")
write_artefact(folder / "two/y.csv", lambda path: path.write_text(f"n\\n{{len(x)}}\\n"))
if not intact(folder / "two/kept.csv"):
    write_artefact(folder / "two/kept.csv", lambda path: path.write_text("kept"), key="its own")
"""
FILES = {
    "lib/__init__.py": "",
    "lib/needed.py": '''
"""Old words."""
import lib.config

VALUE = 900.5  # a comment


def value(number, offset=0):
    """The return of an episode."""
    found = VALUE + offset
    return found


def unreached():
    return 1
''',
    "lib/gates.py": 'class Drift:\n    kind = "drift"\n\n\nclass Other:\n    kind = "other"\n',
    "lib/study/steps.py": "step_times = None\n",
    "lib/rows.py": """
import json
from types import SimpleNamespace
from lib.records.paths import ROOT


def rows(profile, cell):
    file = ROOT / "rows.json"
    return [SimpleNamespace(why=why) for why in (json.loads(file.read_text()) if file.is_file() else [])]
""",
    "figures/charts.py": "LOOKS = 1\n",
    "figures/plot.py": """
import sys
from pathlib import Path
import lib.needed
assert sys.argv[1:] == ["--profile", "smoke"] or sys.exit("wrong arguments")
assert lib.needed.value(0) > 0 or sys.exit("a negative return")
out = Path("figures/smoke/plot.svg")
out.parent.mkdir(exist_ok=True)
out.write_text("<svg/>")
""",
    "paper/timed.py": """
from lib.records.paths import ROOT
from lib.records.store import write_table
write_table(ROOT / "data/results/smoke/planner/t.csv", [{"solve_ms": 1.5}])
""",
}


def write_notebook(path, *cells):
    """A notebook of a title, a parameters cell and code cells."""
    code = [{"cell_type": "code", "source": text, "outputs": [], "execution_count": None} for text in cells]
    code[0]["metadata"] = {"tags": ["parameters"]}
    cells = [{"cell_type": "markdown", "source": "# A question"}, *code]
    cells = [{"metadata": {}, "id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


SERVER = """
import json, os, runpy, sys
import papermill, tyro
for line in sys.stdin:
    folder, module, sys.argv, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.update(environment)
        for stream, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def server() -> subprocess.Popen:
    """A Python that has imported papermill, which takes seconds, and then runs modules in forks."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen([sys.executable, "-c", SERVER], env=os.environ | {"PYTHONPATH": ""}, **pipes)


class Repo:
    """A copy with two notebooks, `one` making a table and `two` reading it, a figure and a timing."""

    one = f"data/results/smoke/one/{CELL}.csv"
    two = "data/results/smoke/two/y.csv"
    kept = "data/results/smoke/two/kept.csv"
    plot = "figures/smoke/plot.svg"
    timed = "data/results/smoke/planner/t.csv"
    outs = (one, two, plot, timed)

    def __init__(self, root: Path):
        self.root = root

    @classmethod
    def write(cls, root: Path) -> "Repo":
        for name in COPIED:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        with (root / "lib/records/pipeline.py").open("a") as file:
            file.write(STAGES)
        write_notebook(root / "notebooks/one.ipynb", PARAMETERS, USE, WRITE, CHECK, SLOW)
        write_notebook(root / "notebooks/two.ipynb", 'profile: str = "smoke"', READ)
        return cls(root)

    def clone(self, root: Path) -> "Repo":
        """The same content under another path, the results with other file times."""
        shutil.copytree(self.root, root)
        for file in (root / "data").rglob("*"):
            os.utime(file)
        return Repo(root)

    def __call__(self, *words, module="run", **environment) -> subprocess.CompletedProcess:
        """What `command` does, but quicker to start."""
        _, _, module, *words = self.command(*words, module=module)
        server().stdin.write(json.dumps([str(self.root), module, [module, *words], environment]) + "\n")
        code = int(server().stdout.readline())
        said = ((self.root / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, code, *said)

    def command(self, *words, module="run") -> list[str]:
        profile = () if "--profile" in words else ("--profile", "smoke")
        return [sys.executable, "-m", f"lib.records.{module}", *words, *profile]

    def status(self, *options) -> dict[str, str]:
        """Result → "fresh", or why it is stale."""
        done = self("status", *options)
        assert done.returncode == 0, done.stderr
        lines = [re.fullmatch(r"(\w+): (\S+)(?: \((.*)\))?", line).groups() for line in done.stdout.splitlines()]
        return {result: word if word == "fresh" else why for word, result, why in lines}

    def edit(self, name, old, new):
        path = self.root / name
        text = path.read_text()
        assert text.count(old) == 1, (old, text.count(old))
        path.write_text(text.replace(old, new))

    def record(self, name) -> dict:
        return json.loads((self.root / f"{name}.meta.json").read_text())

    def append(self, entry: dict) -> None:
        """A line to the ledger."""
        with (self.root / "data/results/ledger.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def results(self):
        files = sorted(path for path in (self.root / "data").rglob("*") if path.is_file() and "cache" not in path.parts)
        return {path: path.read_bytes() for path in files}


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def mounted(*mount: str) -> list[str]:
    """The start of a command that runs with a mount of its own."""
    return ["unshare", "-m", "sh", "-c", f'{shlex.join(["mount", *mount])} && exec "$@"', "sh"]


MAY_MOUNT = sys.platform == "linux" and not subprocess.call(["unshare", "-m", "true"], stderr=subprocess.DEVNULL)
needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs to be allowed to mount")
