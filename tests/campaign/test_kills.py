"""Runs that are killed at their writes, on purpose: nothing half-written is believed, and the next run succeeds.

Each kind of work is run once to count its windows (see `killer/sitecustomize.py`), then killed at several of them, from
the first to the last, and run again. What it makes must be what it makes when nobody kills it.
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib.records.paths import ROOT
from tests.records.tiny import Repo

KILLER = Path(__file__).parent / "killer"
TRAIN = """
from lib.teachers.config import SMOKE_TRAINING, TeacherConfig
from lib.teachers.training import TrainingRun
TrainingRun(TeacherConfig(task="pendulum-swingup", decisions=60, **SMOKE_TRAINING), Path("made")).train()
"""
PLAY = """
from lib.config import PlannerConfig
from lib.records import paths
from lib.study import evaluate
from lib.study.cells import Cell
paths.CACHE, paths.results = Path("made/cache").absolute(), lambda profile: Path("made").absolute() / profile
evaluate.BLOCK = 2
stage = evaluate.Stage.of(Cell.parse("cartpole-swingup-1m-1"), "smoke", decisions=5)
tables, arms = evaluate.evaluate(stage, {"teacher": 4, "policy": 3}, PlannerConfig.budget(16, 1, mode="eager"))
evaluate.write_results(stage, tables, arms)
"""
SET = """
from lib.records import paths
from lib.study.cells import resolve
from lib.study.distillation import distillation_set, ensure_corrector
paths.CACHE, paths.results = Path("made/cache").absolute(), lambda profile: Path("made").absolute() / profile
settings = resolve("smoke", "cartpole-swingup", "1m", 1, "", "cpu")
ensure_corrector(settings, settings.cell, "two_tower")
"""
HEAD = "import torch; from pathlib import Path; torch.set_num_threads(1)\n"
TIMES = {"minutes", "written"}


@dataclass
class Work:
    """A kind of work: the command, in a folder of its own that `prepare` makes, and how many times it is killed."""

    command: list[str]
    kills: int
    repo: bool = False  # the small repository with its own notebooks

    def prepare(self, folder: Path, template: Path | None) -> None:
        if template is None and self.repo:
            Repo.write(folder)
        elif template is None:
            (folder / "made").mkdir(parents=True)
        else:
            shutil.copytree(template, folder)

    def run(self, folder: Path, **environment) -> subprocess.CompletedProcess:
        paths = [KILLER, *([] if self.repo else [ROOT])]
        watched = folder / ("data" if self.repo else "made")
        environment = {"WATCHED": str(watched), "PYTHONPATH": os.pathsep.join(map(str, paths))} | environment
        return subprocess.run(self.command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


WORK = {
    "runner": Work([sys.executable, "-m", "lib.records.run", "run", "--profile", "smoke"], 12, repo=True),
    "training": Work([sys.executable, "-c", HEAD + TRAIN], 10),
    "evaluation": Work([sys.executable, "-c", HEAD + PLAY], 8),
    "distillation": Work([sys.executable, "-c", HEAD + SET], 6),
}


def content(folder: Path) -> dict:
    """What was made: tables, weights and episodes, without what tells the time."""
    import pandas as pd
    from safetensors.numpy import load_file

    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock"):
        name = str(file.relative_to(folder))
        assert not file.name.startswith("."), f"{name} was left behind"
        if file.suffix == ".csv":
            found[name] = pd.read_csv(file).drop(columns=TIMES, errors="ignore").to_csv()
        elif file.suffix == ".safetensors":
            found[name] = {key: value.tobytes() for key, value in load_file(file).items()}
        elif file.suffix == ".json" and not file.name.endswith(".meta.json"):
            found[name] = file.read_text()
        else:
            found[name] = ""
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Kind of work → the folder as it was before, what comes of it, and how many windows it has."""
    known = {}

    def of(kind: str) -> tuple[Path, dict, int]:
        if kind not in known:
            work, before = WORK[kind], tmp_path_factory.mktemp(kind) / "before"
            work.prepare(before, None)
            after, windows = before.with_name("after"), before.with_name("windows")
            work.prepare(after, before)
            done = work.run(after, WINDOWS=str(windows))
            assert done.returncode == 0, done.stderr
            known[kind] = before, content(after / ("data" if work.repo else "made")), windows.stat().st_size
        return known[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), [(kind, i) for kind, work in WORK.items() for i in range(work.kills)])
def test_killed_at_a_write(kind, part, whole, tmp_path):
    work = WORK[kind]
    before, expected, windows = whole(kind)
    assert windows >= work.kills
    at = 1 + round(part * (windows - 1) / (work.kills - 1))
    work.prepare(folder := tmp_path / "folder", before)
    killed = work.run(folder, WINDOWS=str(tmp_path / "windows"), KILL_AT=str(at))
    assert (tmp_path / "windows").stat().st_size >= at and killed.returncode != 0
    assert work.repo or killed.returncode == -signal.SIGKILL
    done = work.run(folder)
    assert done.returncode == 0, done.stderr
    assert content(folder / ("data" if work.repo else "made")) == expected
