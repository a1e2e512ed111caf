"""The Makefile: what it calls in which order, that it sets itself up, and that `clean` spares what is committed.

`PYTHON=` names a stand-in that writes down how it was called, so nothing is trained and nothing is installed.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.records.paths import NOTEBOOKS, ROOT

FIGURES = ("teachers", "pareto", "horizon", "depth", "replans", "returns", "profiles")
FIGURES += ("model_error", "offline", "decision_transformer", "planner")  # in the order of the graph

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
    for target in "all paper status test test-slow lint html verify teachers clean help".split():
        assert f"make {target} " in text


def test_all_runs_the_steps_in_order_and_then_builds_the_paper(repo):
    python = stand_in(repo / "bin/python", repo / "log")
    make(repo, f"PYTHON={python}", "PROFILE=smoke")
    sources = [line.split()[3] for line in calls(repo / "log") if "lib.records.run" in line]
    assert sources == [
        "notebooks/01_teacher.ipynb",
        "notebooks/02_collect_data.ipynb",
        "notebooks/03_train_corrector.ipynb",
        "notebooks/04_horizon_evaluation.ipynb",
        "figures/teachers.py",
        "paper/summary.py",
        "notebooks/07_decision_transformer.ipynb",
        "figures/pareto.py",
        "figures/horizon.py",
        "paper/action_errors.py",
        "figures/depth.py",
        "figures/replans.py",
        "figures/returns.py",
        "figures/profiles.py",
        "notebooks/05_model_error.ipynb",
        "figures/model_error.py",
        "notebooks/06_offline_vs_downstream.ipynb",
        "figures/offline.py",
        "figures/decision_transformer.py",
        "notebooks/08_planner_benchmark.ipynb",
        "figures/planner.py",
    ]
    assert calls(repo / "log")[-1] == "python paper/build.py --profile smoke"
    assert all("-p profile smoke --mode run" in line for line in calls(repo / "log")[:-1])
    assert not (repo / ".venv").exists()


def test_a_failing_step_stops_everything(repo):
    python = stand_in(repo / "bin/python", repo / "log", fail="02_collect_data")
    make(repo, f"PYTHON={python}", "CELLS=a-1m-1 b-1m-1", code=2)
    assert len(calls(repo / "log")) == 3  # two teachers, then the first distillation set


def test_paper_runs_no_notebook_and_draws_a_figure_only_from_what_is_there(repo):
    python = stand_in(repo / "bin/python", repo / "log")
    make(repo, f"PYTHON={python}", "paper")
    *graph, build = calls(repo / "log")
    assert all("-p profile paper --mode warn --stale-list build/paper/stale.txt" in line for line in graph)
    figures = [line for line in graph if "figures/" in line]
    drawn = (*FIGURES, "model_size")  # the paper's cells have several sizes
    assert [line.split()[3] for line in figures] == [f"figures/{name}.py" for name in drawn]
    assert all("--mode warn" in line for line in figures)
    assert build == "python paper/build.py --profile paper"
    assert (repo / "build/paper/stale.txt").read_text() == ""
    (repo / "data").mkdir()
    (repo / "data/official_returns.csv").touch()
    inputs = {"teachers": "teacher/a-1m-1-card.csv", "pareto": "horizon/summary.csv"}
    inputs |= {"returns": "horizon/walker-walk-1m-1.csv", "planner": "planner/cpu.csv"}
    for figure, name in inputs.items():
        result = repo / "data/results/paper" / name
        result.parent.mkdir(parents=True, exist_ok=True)
        result.touch()
        (repo / "log").unlink()
        make(repo, f"PYTHON={python}", "paper")
        drawn = [line for line in calls(repo / "log") if "--mode run" in line]
        assert any(f"figures/{figure}.py" in line and f"data/results/paper/{name}" in line for line in drawn)
        assert all("figures/" in line for line in drawn)


def test_second_figures_are_asked_for_where_many_cells_are_evaluated(repo):
    """Those in the table, whatever cells were asked for: the script draws what is there."""
    python = stand_in(repo / "bin/python", repo / "log")
    summary = repo / "data/results/paper/horizon/summary.csv"
    summary.parent.mkdir(parents=True)
    for cells, second in (("abb", ()), ("abbc", ("pareto",)), ("abbcd", ("pareto", "horizon"))):
        summary.write_text("cell,arm\n" + "".join(f"{cell},teacher\n" for cell in cells))
        (repo / "log").unlink(missing_ok=True)
        make(repo, f"PYTHON={python}", "paper", "CELLS=a-1m-1 b-1m-1 c-1m-1 d-1m-1")
        for name in ("pareto", "horizon"):
            (line,) = [line for line in calls(repo / "log") if f"figures/{name}.py" in line]
            assert (f"--out figures/paper/{name}-cells.svg" in line) == (name in second)


def test_new_timings_are_a_reason_to_summarise_again(repo):
    python = stand_in(repo / "bin/python", repo / "log")
    sidecar = repo / "data/results/paper/latency/a-1m-1.csv.meta.json"
    sidecar.parent.mkdir(parents=True)
    sidecar.write_text("{}")
    make(repo, f"PYTHON={python}", "status", "PROFILE=paper", "CELLS=a-1m-1 b-1m-1")
    (line,) = [line for line in calls(repo / "log") if "paper/summary.py" in line]
    assert line.partition("--needs")[2].split()[-1] == "data/results/paper/latency/a-1m-1.csv.meta.json"


def test_cells_that_only_confirm_have_no_errors_of_actions_and_no_sequence_model(repo):
    python = stand_in(repo / "bin/python", repo / "log")
    study = ["walker-walk-1m-1", "cartpole-swingup-1m-1"]
    for cells, wanted in (("", study), ("a-1m-1 cartpole-swingup-1m-1", study[1:]), ("a-1m-1 b-5m-1", None)):
        (repo / "log").unlink(missing_ok=True)
        make(repo, f"PYTHON={python}", "status", "PROFILE=paper", *([f"CELLS={cells}"] if cells else []))
        lines = calls(repo / "log")
        evaluated = [re.search(r"--cell (\S+)", line)[1] for line in lines if "04_horizon" in line]
        assert evaluated[: len(study)] == study if not cells else evaluated == cells.split()
        for step, option in (("paper/action_errors.py", "-p cell"), ("07_decision_transformer", "--cell")):
            found = [re.search(rf"{option} (\S+)", line)[1] for line in lines if step in line]
            assert found == (wanted or cells.split()), step
    assert len(evaluated) > 1  # or nothing was tested


def test_status_runs_nothing_and_leaves_the_list_of_the_paper_alone(repo):
    python = stand_in(repo / "bin/python", repo / "log")
    make(repo, f"PYTHON={python}", "status", "PROFILE=paper", "CELLS=a-1m-1 a-5m-1")
    assert (
        len(calls(repo / "log")) == 2 * 7 + 15
    )  # six notebooks and the action errors of each cell, and what belongs to none
    assert all("--mode status --stale-list build/paper/status.txt" in line for line in calls(repo / "log"))
    assert "figures/model_size.py" in calls(repo / "log")[-1]


@pytest.mark.parametrize("profile, names", [("quick", 3), ("smoke", 4), ("paper", 5)])
def test_the_planner_is_measured_as_far_as_the_profile_goes(repo, profile, names):
    python = stand_in(repo / "bin/python", repo / "log")
    make(repo, f"PYTHON={python}", "planner", f"PROFILE={profile}")
    (line,) = calls(repo / "log")
    assert line.count("--out") == names and f"--out data/results/{profile}/planner/cpu.csv" in line
    assert ("bfloat16.csv --needs data/teachers/" in line) == (profile != "quick") and "--cell" not in line


@pytest.mark.skipif(not list(NOTEBOOKS.glob("*.ipynb")), reason="no notebooks yet")
@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_the_graph_agrees_with_the_parameters_of_the_notebooks(profile):
    options = ("graph", f"PYTHON={sys.executable}", f"PROFILE={profile}", "RUN_MODE=status", "FIGURE_MODE=status")
    text = make(ROOT, *options)
    assert f"data/results/{profile}/horizon/" in text and "error:" not in text


def test_an_unknown_profile_is_named(repo):
    assert "PROFILE=qick is not known; use smoke, quick or paper" in make(repo, "PROFILE=qick", code=2)


def test_a_folder_with_a_space_in_its_name(tmp_path):
    folder = tmp_path / "my work"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    python = stand_in(folder / "bin/python", tmp_path / "log")
    make(folder, f"PYTHON={python}", "PROFILE=smoke")
    assert len(calls(tmp_path / "log")) == 8 + len(FIGURES) + 3  # notebooks, figures, action errors, summary, PDF


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
