"""The whole road at smoke size: `make all` in a copy of the repository, from the shipped teacher to the PDF."""

import json
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from pypdf import PdfReader

from lib.records.paths import ROOT
from lib.study.profiles import PROFILES

CELL = "walker-walk-1m-1"
RESULTS = "data/results/smoke"
PARTS = ("lib", "notebooks", "figures", "paper", "data/teachers", "Makefile")
PARTS += ("data/official_returns.csv", "data/expert_returns.csv", "pyproject.toml", "requirements.lock")

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(folder, *arguments):
    command = ["make", f"PYTHON={sys.executable}", "PROFILE=smoke", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy in which everything was made once, and what make said."""
    folder = tmp_path_factory.mktemp("whole road")
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return folder, make(folder)


def test_every_result_is_there(made):
    folder, said = made
    results = [
        f"teacher/{CELL}.csv",
        f"teacher/{CELL}-card.csv",
        f"distillation/{CELL}.csv",
        f"corrector/{CELL}-two_tower.csv",
        f"corrector/{CELL}-two_tower-depth.csv",
        f"corrector/{CELL}-temporal.csv",
        f"horizon/{CELL}.csv",
        f"horizon/{CELL}-depth.csv",
        "horizon/summary.csv",
        "planner/cpu.csv",
        "planner/cpu-step.csv",
        "planner/cpu-updates.csv",
        "planner/bfloat16.csv",
        "statistics/headline.csv",
        f"horizon/{CELL}-action-error.csv",
        f"distilled/{CELL}.csv",
        f"perturbed/{CELL}.csv",
        "certified/summary.csv",
        f"deadlines/{CELL}.csv",
        f"deadlines/perturbed/{CELL}.csv",
        "deadlines/summary.csv",
        "deadlines/steps.csv",
        f"model_error/{CELL}.csv",
        "offline/cells.csv",
        f"decision_transformer/{CELL}-expert-summary.csv",
    ]
    for name in results:
        assert len(pd.read_csv(folder / RESULTS / name)) > 0, name
        assert json.loads((folder / RESULTS / f"{name}.meta.json").read_text())["run"]["key"], name
    assert (folder / RESULTS / f"corrector/{CELL}-two_tower.safetensors").is_file()
    arms = json.loads((folder / RESULTS / "horizon/arms.json").read_text())[CELL]
    assert list(arms) == [name.replace("x", "×") for name in PROFILES["smoke"].arms]
    assert said.count("running notebooks/") == 11


def test_the_pdf_shows_the_numbers_of_this_run(made):
    folder, _ = made
    summary = pd.read_csv(folder / RESULTS / "horizon/summary.csv").set_index("arm")
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(folder / "build/smoke/paper.pdf").pages).split())
    assert "Planner calls per episode" in text and "This is the smoke profile" in text
    assert f" {100 * summary.loc['two-tower-3', 'kept']:.0f}% " in text
    assert "Milliseconds per solve" in text


def test_a_second_make_runs_nothing(made):
    folder, _ = made
    start = time.monotonic()
    said = make(folder)
    assert "running" not in said and said.count("unchanged") >= 30
    assert time.monotonic() - start < 60  # seconds: about eight on an idle machine, for papermill, torch and Typst


def test_a_lost_summary_is_made_again_from_the_cells(made):
    folder, _ = made
    before = (folder / RESULTS / "horizon/summary.csv").read_text()
    (folder / RESULTS / "horizon/summary.csv").unlink()
    said = make(folder)
    assert "running paper/summary.py" in said and "running notebooks/" not in said
    assert (folder / RESULTS / "horizon/summary.csv").read_text() == before
