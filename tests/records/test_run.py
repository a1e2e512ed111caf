"""The runner, on a small copy of the repository: what reruns, what does not, and what a failure leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.records.paths import ROOT

FIRST = """
import time
import lib.needed
from lib.records.paths import ROOT
from lib.study.cells import resolve
from lib.records.store import write_table
epochs = resolve(profile, "walker-walk", "1m", 1, "", "cpu").profile.epochs
"""
SECOND = """
rows = [{"episode": i, "return": lib.needed.VALUE, "minutes": time.time()} for i in range(episodes)]
write_table(ROOT / "data/results" / profile / "one" / "x.csv", rows)
"""
CHECK = 'assert episodes < 10, "too many episodes"'
SLOW = """
import os
if (ROOT / "slow").exists():
    (ROOT / "pid").write_text(str(os.getpid()))
    time.sleep(60)
"""
PARAMETERS = 'profile: str = "smoke"\nepisodes: int = 3  # how many\nlr: float = 1\nflag = False\n'


def write_notebook(path, *cells):
    """A notebook of a title, a parameters cell and code cells."""
    code = [{"cell_type": "code", "source": text, "outputs": [], "execution_count": None} for text in cells]
    code[0]["metadata"] = {"tags": ["parameters"]}
    cells = [{"cell_type": "markdown", "source": "# A question"}, *code]
    cells = [{"metadata": {}, "id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


class Repo:
    """A copy of the runner with two notebooks: `one` makes x.csv, `two` reads it and makes y.csv."""

    one = "data/results/smoke/one/x.csv"
    two = "data/results/smoke/two/y.csv"

    def __init__(self, root: Path):
        self.root = root

    def run(self, *arguments, **environment):
        """`python -m lib.records.run` with these arguments; PYTHONPATH is what a user without an installed lib has."""
        environment = {**os.environ, "PYTHONPATH": "", **environment}
        command = [sys.executable, "-m", "lib.records.run", *map(str, arguments)]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)

    def first(self, *more, **environment):
        return self.run("notebooks/one.ipynb", "--out", self.one, *more, **environment)

    def second(self, *more):
        return self.run("notebooks/two.ipynb", "--out", self.two, "--needs", self.one, *more)

    def edit(self, name, old, new):
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def results(self):
        return {path: path.read_bytes() for path in sorted((self.root / "data").rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    (root / "lib").mkdir()
    for name in ("__init__", "paths", "config", "keys", "results", "notebook", "profiles", "workload", "run"):
        shutil.copy(ROOT / "lib" / f"{name}.py", root / "lib")
    (root / "lib" / "needed.py").write_text('"""Old words."""\nimport lib.weights.native\nVALUE = 900.5  # a comment\n')
    (root / "lib" / "checkpoints.py").write_text("VALUE = 1\n")
    (root / "lib" / "unneeded.py").write_text("VALUE = 1\n")
    write_notebook(root / "notebooks/one.ipynb", PARAMETERS, FIRST, SECOND, CHECK, SLOW)
    read = f'from lib.records.store import read_table, write_artefact\nx = read_table("../{Repo.one}")'
    write = f'write_artefact("../{Repo.two}", lambda path: path.write_text(str(len(x))))'
    write_notebook(root / "notebooks/two.ipynb", PARAMETERS, read, write)
    repo = Repo(root)
    # An unwritable HOME and a "python3" kernel that belongs to someone else must not matter.
    kernel = root / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/nowhere/python"], "display_name": "other", "language": "python"}))
    first = repo.first(HOME="/nonexistent", JUPYTER_PATH=str(root / "jupyter"))
    assert first.returncode == 0, first.stderr
    second = repo.second()
    assert second.returncode == 0, second.stderr
    return root


@pytest.fixture
def repo(built, tmp_path):
    """A clone: the same content under another path with other file times."""
    shutil.copytree(built, tmp_path / "clone", copy_function=shutil.copyfile)
    return Repo(tmp_path / "clone")


def test_a_clone_reruns_nothing(repo):
    before = repo.results()
    assert repo.first().stdout == f"unchanged {repo.one}\n"
    assert repo.second().stdout == f"unchanged {repo.two}\n"
    assert repo.second("--mode", "status").stdout == f"fresh: {repo.two}\n"
    assert repo.second("--mode", "warn").stdout == ""
    assert repo.results() == before


def test_the_record_beside_a_result_says_how_it_was_made(repo):
    record = json.loads((repo.root / f"{repo.one}.meta.json").read_text())
    assert record["run"]["components"]["parameters"] == {"profile": "smoke", "episodes": 3, "lr": 1.0, "flag": False}
    assert "lib/needed.py" in record["run"]["components"]["lib"] and record["run"]["minutes"] < 1
    assert (repo.root / "build/smoke/one-x.ipynb").is_file()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("notebooks/one.ipynb", "# A question", "# Another question"),
        ("notebooks/one.ipynb", "# how many", "# number of episodes"),
        ("notebooks/one.ipynb", '"execution_count": null', '"execution_count": 7'),
        ("lib/needed.py", "Old words", "New words"),
        ("lib/needed.py", "# a comment", "# another"),
        ("lib/unneeded.py", "1", "2"),
        ("lib/study/profiles.py", '"teacher", "policy", ', '"policy", "teacher", '),  # it reads no arms
        ("lib/study/profiles.py", "return ", "pass; return "),
        ("lib/weights/native.py", "1", "2"),
    ],
)
def test_edits_that_rerun_nothing(repo, file, old, new):
    repo.edit(file, old, new)
    assert repo.first().stdout == f"unchanged {repo.one}\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("notebooks/one.ipynb", "range(episodes)", "range(episodes + 1)", "code cell 3 changed"),
        ("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 5", "parameter episodes 3 → 5"),
        ("lib/needed.py", "900.5", "900.6", "lib/needed.py changed"),
        ("lib/study/profiles.py", '"smoke", 2, 1, 3, 2,', '"smoke", 2, 1, 3, 4,', "the profile's epochs changed"),
        ("lib/needed.py", "VALUE", "import lib.unneeded\nVALUE", "lib/unneeded.py is new"),
        (Repo.one, "900.5", "900.7", "file changed by hand or half-written"),
    ],
)
def test_edits_that_make_a_result_stale_and_why(repo, file, old, new, reason):
    repo.edit(file, old, new)
    before = repo.results()
    status = repo.first("--mode", "status", "--stale-list", "stale.txt")
    assert status.returncode == 0
    assert status.stdout.startswith(f"stale: {repo.one} (") and reason in status.stdout
    assert "under 1 min" in status.stdout
    assert f"stale: {(repo.root / 'stale.txt').read_text()}" == status.stdout
    downstream = repo.second("--mode", "warn", "--stale-list", "stale.txt").stdout
    assert f"input {repo.one}" in downstream
    assert repo.results() == before


def test_a_parameter_counts_and_its_way_of_writing_does_not(repo):
    assert "parameter episodes 3 → 4" in repo.first("-p", "episodes", 4, "--mode", "status").stdout
    assert repo.first("-p", "episodes", 3, "-p", "lr", "1.0").stdout == f"unchanged {repo.one}\n"


def test_never_built_and_made_by_hand(repo):
    (repo.root / f"{repo.one}.meta.json").unlink()
    assert "made by hand" in repo.first("--mode", "status").stdout
    (repo.root / repo.one).unlink()
    assert repo.first("--mode", "status").stdout == f"stale: {repo.one} (never built)\n"
    assert f"input {repo.one} is missing" in repo.second("--mode", "status").stdout


def test_the_cascade_stops_where_the_content_is_the_same(repo):
    repo.edit("notebooks/one.ipynb", "range(episodes)", "range(episodes + 0)")
    old = (repo.root / repo.one).read_bytes()
    assert repo.first().stdout == f"wrote {repo.one}\n"
    assert (repo.root / repo.one).read_bytes() != old  # its minutes column
    assert repo.second().stdout == f"unchanged {repo.two}\n"


def test_a_failing_cell_leaves_the_earlier_result_and_names_the_traceback(repo):
    before = repo.results()
    failed = repo.first("-p", "episodes", 12)
    assert failed.returncode == 1
    message = "error: notebook failed: AssertionError: too many episodes; the traceback is in build/smoke/one-x.ipynb"
    assert failed.stderr.splitlines()[-1] == message
    assert repo.results() == before
    assert "too many episodes" in (repo.root / "build/smoke/one-x.ipynb").read_text().split('"traceback"')[1]
    assert repo.first().stdout == f"unchanged {repo.one}\n"


def test_a_result_that_is_not_written_is_an_error(repo):
    before = repo.results()
    absent = repo.first("--out", "data/results/smoke/one/other.csv")
    assert absent.returncode == 1 and "did not write data/results/smoke/one/other.csv" in absent.stderr
    assert repo.results() == before


def test_kill_9_in_the_middle_leaves_the_earlier_result_and_the_next_run_succeeds(repo):
    (repo.root / "slow").touch()
    before = repo.results()
    command = [sys.executable, "-m", "lib.records.run", "notebooks/one.ipynb", "--out", repo.one, "-p", "episodes", "4"]
    with subprocess.Popen(command, cwd=repo.root, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (repo.root / "pid").exists() and (repo.root / "pid").read_text())
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(int((repo.root / "pid").read_text())))  # no kernel is left behind
    # The whole new table or the whole old one, and never a record that calls it finished.
    assert (repo.root / repo.one).read_text().count("900.5") in (3, 4)
    assert "made by hand or by a run that did not finish" in repo.first("--mode", "status").stdout
    (repo.root / "slow").unlink()
    assert repo.first().stdout == f"wrote {repo.one}\n"
    assert repo.results().keys() == before.keys()
    assert repo.second().stdout == f"unchanged {repo.two}\n"


def test_ctrl_c_restores_the_earlier_result(repo):
    (repo.root / "slow").touch()
    before = repo.results()
    command = [sys.executable, "-m", "lib.records.run", "notebooks/one.ipynb", "--out", repo.one, "-p", "episodes", "4"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a job in the background ignores it
    with subprocess.Popen(command, cwd=repo.root, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        wait_for(lambda: (repo.root / "pid").exists() and (repo.root / "pid").read_text())
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; the earlier results are as they were." and "Traceback" not in said
    assert repo.results() == before


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-p", "model_szie", "5m"), "no parameter 'model_szie'; its parameters are: profile (str), episodes (int)"),
        (("-p", "episodes", "1e6"), "Parameter episodes of notebooks/one.ipynb must be int, not '1e6'"),
        (("-p", "flag", "maybe"), "must be bool, not 'maybe'"),
        (("--cell", "walker"), "is not a cell"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(repo, arguments, sentence):
    refused = repo.first(*arguments)
    assert refused.returncode == 2 and sentence in refused.stderr and refused.stderr.count("\n") == 1


def test_a_missing_need_and_a_missing_notebook_are_one_sentence(repo):
    missing = repo.first("--needs", "data/results/smoke/horizon/x.csv")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert "data/results/smoke/horizon/x.csv, which notebooks/one.ipynb needs, is missing; run" in missing.stderr
    assert repo.run("notebooks/none.ipynb", "--out", "x").returncode == 2


def test_a_script_runs_like_a_notebook(repo):
    script = repo.root / "figures/plot.py"
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport lib.needed\n"
        "assert sys.argv[1:] == ['--profile', 'smoke'] or sys.exit('wrong arguments')\n"
        "out = Path('figures/smoke/plot.svg')\nout.parent.mkdir(exist_ok=True)\nout.write_text('<svg/>')\n"
    )
    command = ("figures/plot.py", "--out", "figures/smoke/plot.svg", "--needs", repo.one, "-p", "profile")
    assert repo.run(*command, "smoke").stdout == "wrote figures/smoke/plot.svg\n"
    assert repo.run(*command, "smoke").stdout == "unchanged figures/smoke/plot.svg\n"
    failed = repo.run(*command, "other")
    assert failed.returncode == 1 and "wrong arguments" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: script failed: figures/plot.py ended with exit status 1")
    repo.edit("lib/needed.py", "900.5", "1")
    assert "lib/needed.py changed" in repo.run(*command, "smoke", "--mode", "status").stdout
