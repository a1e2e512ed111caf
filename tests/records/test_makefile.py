"""The Makefile: what each verb calls, that it sets itself up, and that `clean` spares what is committed.

`PYTHON=` names a stand-in that writes down how it was called, so nothing is trained and nothing is installed.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lib.records.paths import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")

STAND_IN = """#!/bin/sh
echo "${{0##*/}} $*" >> "{log}"
case "$*" in *{fail}*) exit 3 ;; esac
"""


def stand_in(path: Path, log: Path, fail: str = "nothing-fails") -> Path:
    """An executable that logs its arguments, and fails when they contain `fail`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(log=log, fail=fail))
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments, path: str = "/usr/bin:/bin", code: int = 0) -> str:
    """Output of make in `folder`, which must end with `code`; the outer make's variables do not reach it."""
    environment = {"PATH": path, "HOME": str(folder)}
    command = [shutil.which("make"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repo(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_help_lists_the_targets():
    text = make(ROOT, "help")
    for (
        target
    ) in "all results paper status audit planner demo test test-slow lint html site verify teachers clean help".split():
        assert f"make {target} " in text


RUN, BUILD = "-m lib.records.run", "paper/build.py --profile"


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ("", [f"{RUN} run --profile quick --pdf"]),
        ("all PROFILE=smoke", [f"{RUN} run --profile smoke --pdf"]),
        ("results ONLY=horizon+pareto-figure CELLS=a-1m-1+b-1m-1",
         [f"{RUN} run --profile quick --cells a-1m-1 b-1m-1 --only horizon pareto-figure"]),
        ("results EXECUTOR=slurm PARTITION=cpu",
         [f"{RUN} run --profile quick --executor slurm --partition cpu"]),
        ("results JOBS=4 AGAIN=1", [f"{RUN} run --profile quick --again --jobs 4"]),
        ("paper", [f"{RUN} warn --profile paper", f"{BUILD} paper"]),
        ("paper PROFILE=quick", [f"{RUN} warn --profile quick", f"{BUILD} quick"]),
        ("status PROFILE=paper", [f"{RUN} status --profile paper"]),
        ("audit", ["-m lib.records.audit --profile paper --rows 1"]),
        ("audit PROFILE=smoke ROWS=3 STAGE=offline",
         ["-m lib.records.audit --profile smoke --rows 3 --stages offline"]),
        ("planner PROFILE=paper", [f"{RUN} run --profile paper --only planner"]),
        ("test", ["-m pytest"]),
        ("test-slow", ["-m pytest -m slow"]),
        ("demo", ["-m figures.demo"]),
        ("site", [f"{RUN} warn --profile paper", "-m paper.web"]),
        ("film", ["-m figures.film --cell walker-run-1m-1 --profile paper"]),
        ("verify PROFILE=paper", ["-m lib.study.verify --profile paper"]),
        ("teachers", ["-m lib.teachers.cli zoo"]),
    ],
)  # fmt: skip
def test_each_verb_calls_its_module(repo, words, called):
    python = stand_in(repo / "bin/python", repo / "log")
    make(repo, f"PYTHON={python}", *(word.replace("+", " ") for word in words.split()))
    called = ["-m lib.records.environment", *called]
    assert [" ".join(line.split()) for line in calls(repo / "log")] == [f"python {words}" for words in called]
    assert not (repo / ".venv").exists()


def test_every_module_that_is_called_exists():
    modules = re.findall(r"-m ((?:lib|figures|paper)\.[\w.]+)", (ROOT / "Makefile").read_text())
    assert len(modules) >= 5 and all((ROOT / f"{m.replace('.', '/')}.py").is_file() for m in modules)


def test_a_failing_step_stops_everything(repo):
    python = stand_in(repo / "bin/python", repo / "log", fail="lib.records.run")
    make(repo, f"PYTHON={python}", code=2)
    assert len(calls(repo / "log")) == 2  # and no PDF


def test_an_environment_that_lacks_something_stops_everything(repo):
    python = stand_in(repo / "bin/python", repo / "log", fail="lib.records.environment")
    make(repo, f"PYTHON={python}", code=2)
    assert calls(repo / "log") == ["python -m lib.records.environment"]


def test_recipes_are_children_of_make_itself():
    """So that they hear what make is told, and see when it is gone: a shell between them would do neither."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    ours = [line for line in lines if "$(PY)" in line or "$(RUN)" in line or "$(STRIP)" in line]
    assert len(ours) >= 15 and not [line for line in ours if "$(PY) " in line and ("||" in line or "&&" in line)]
    said = make(ROOT, "--dry-run", "PYTHON=/some/python", "status", "verify", "lint")
    assert said.count("/some/python") == said.count('exec "/some/python" -') >= 7


@pytest.mark.parametrize("profile", ["qick", "", "%", "quick paper", "quick ../x", "../quick"])
def test_an_unknown_profile_is_named(repo, profile):
    assert f"PROFILE={profile} is not known; use smoke, quick or paper" in make(repo, f"PROFILE={profile}", code=2)


def test_a_folder_with_a_space_in_its_name(tmp_path):
    folder = tmp_path / "my work"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    python = stand_in(folder / "bin/python", tmp_path / "log")
    make(folder, f"PYTHON={python}", "PROFILE=smoke")
    assert len(calls(tmp_path / "log")) == 2


def test_the_environment_is_installed_again_only_when_the_lock_changes(repo):
    for name in ("python", "pip"):
        stand_in(repo / ".venv/bin" / name, repo / "log")
    make(repo, "setup")
    assert len(calls(repo / "log")) == 2 and "-m pip install" in calls(repo / "log")[0]
    make(repo, "setup")
    assert len(calls(repo / "log")) == 2
    with (repo / "requirements.lock").open("a") as file:
        file.write("another==1.0\n")
    make(repo, "setup")
    assert len(calls(repo / "log")) == 4


def test_an_interrupted_installation_is_finished_the_next_time(repo):
    stand_in(repo / ".venv/bin/pip", repo / "log")
    stand_in(repo / ".venv/bin/python", repo / "log", fail="no-deps")
    make(repo, "setup", code=2)
    stand_in(repo / ".venv/bin/python", repo / "log")
    make(repo, "setup")
    assert len(calls(repo / "log")) == 4


def test_no_python_is_one_clear_sentence(repo):
    for name in ("python3.11", "python3.12", "python3", "python"):
        stand_in(repo / "old" / name, repo / "log", fail="ensurepip")
    text = make(repo, "test", path=f"{repo}/old:/usr/bin:/bin", code=2)
    assert "error: no Python 3.11 or 3.12" in text and "PYTHON=/path/to/python" in text
    assert not (repo / ".venv").exists()


@pytest.mark.parametrize("with_git", [True, False])
def test_clean_removes_what_can_be_made_again_and_nothing_committed(repo, with_git):
    kept = ["data/results/paper/a.csv", "data/teachers/t.safetensors", "figures/paper/a.svg", "figures/plot.py"]
    made = ["build/quick/a.ipynb", "data/cache/x/state.pt", "data/results/quick/a.csv", "figures/quick/a.svg"]
    committed = ["data/cache/small.csv"] if with_git else []  # even where nothing should be committed
    for name in [*kept, *made, *committed]:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("content")
    if with_git:
        for command in (["init", "-q"], ["add", "."], ["add", "-f", *committed]):
            subprocess.run(["git", *command], cwd=repo, check=True)
        tracked = subprocess.run(["git", "ls-files"], cwd=repo, capture_output=True, text=True).stdout.split()
        assert set(kept) <= set(tracked) and not set(made) & set(tracked)
    (repo / "data/results/paper/new.csv").write_text("not committed yet, hours of work")
    make(repo, "clean")
    assert not any((repo / name).exists() for name in made)
    assert all((repo / name).exists() for name in [*kept, *committed, "data/results/paper/new.csv"])


def test_the_lock_is_exact_and_nothing_in_it_is_local():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and "+" not in line and "@" not in line and "-e" != line[:2] for line in lines)
