"""The demonstration: what it says is what was played, and it is over in a minute."""

import json
import os
import subprocess
import sys
import time

import pytest

from figures import demo
from lib.records import paths
from lib.records.store import read_sidecar, write_table
from lib.study.arms import make_arm
from tests.figures.test_film import drawn, uncompiled  # noqa: F401 - fixtures
from tests.study.test_evaluate import CELL, FIRST, commit, env, home  # noqa: F401 - fixtures
from tests.tiny import BUDGET, fresh_env


@pytest.fixture
def shipped(home, drawn, monkeypatch):  # noqa: F811
    """A corrected arm of a tiny teacher, certified in the paper profile, with a card."""
    commit(["teacher", "two-tower-3"], 1)
    arms = read_sidecar(paths.results("smoke") / "horizon" / f"{CELL}.csv", "arms")["arms"]
    about = {"picks": {"all": "two-tower-3"}, "arms": arms}
    write_table(paths.results("smoke") / "certified" / f"{CELL}.csv", [{"chain": "reuse"}], **about)
    (paths.DATA / "results/paper").symlink_to(paths.results("smoke"))
    (paths.TEACHERS / f"{CELL}.json").write_text(json.dumps({"return_mean": 12.0, "returns": [11.0, 13.0]}))
    monkeypatch.setattr(demo, "CERTIFIED", ("cup-catch-1m-1", str(CELL)))  # the first is not
    monkeypatch.setattr(demo, "make_env", drawn)
    monkeypatch.setattr(demo, "gl_backend", lambda: None)
    monkeypatch.setenv("MUJOCO_GL", "disable")  # main sets it
    return drawn


def test_it_says_what_was_played(shipped, capsys):
    assert demo.main(["--decisions", "7"]) == 0
    said = capsys.readouterr()
    first, _, mine, teachers, ratio = said.out.splitlines()
    assert first.startswith(f"{CELL}: two-tower-3 acts, which a test admitted; the teacher plans with 512 × 6")
    actions = [action for _, _, action in shipped.steps[:7]]
    world = fresh_env()("tiny")
    world.reset(seed=FIRST)  # the first trial seed: not a reported one
    total = sum(world.step(action)[1] for action in actions)
    assert mine.split()[:5] == ["two-tower-3", f"{total:.0f}", "3", "of", "7"]
    assert teachers.split()[:7] == ["teacher", "12", "(its", "card)", "7", "of", "7"]
    times = [float(row.split()[-1]) for row in (mine, teachers)]
    assert times[1] > times[0] > 0 and "of 7 that were timed; its return is the mean of 2 whole episodes." in ratio
    assert "film: left out" in said.err


def test_the_teacher_is_timed_for_no_longer_than_there_is_time(shipped):
    teacher = demo.make_controller(make_arm("teacher", BUDGET), demo.load_world_model(str(CELL)), {})
    assert demo.played(teacher, str(CELL), FIRST, 9, "teacher", seconds=0.0)["length"] == 1
    assert demo.played(teacher, str(CELL), FIRST, 9, "teacher")["planner_calls"] == 9


def test_the_film_is_written_where_something_draws(shipped, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "gl_backend", lambda: "egl")
    assert demo.main(["--decisions", "5", "--out", str(tmp_path / "demo.gif")]) == 0
    assert (tmp_path / "demo.gif").is_file() and "demo.gif" in capsys.readouterr().out.splitlines()[-1]


def test_what_is_missing_or_wrong_is_one_sentence(shipped, monkeypatch, capsys):
    assert demo.main(["--decisions", "1"]) == 2
    assert capsys.readouterr().err == "demo: decisions=1 must be between 2 and 500, a whole episode.\n"
    monkeypatch.setattr(demo, "CERTIFIED", ("cup-catch-1m-1",))
    assert demo.main([]) == 2
    assert "demo: no certified controller of cup-catch-1m-1 is here; restore data/ from git." in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_demonstration_takes_less_than_a_minute():
    if not (paths.results("paper") / "certified" / f"{demo.CERTIFIED[0]}.csv").is_file():
        pytest.skip("no certificate is committed")
    environment = os.environ | {"MUJOCO_GL": "disable"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "figures.demo"], cwd=paths.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[2].split()
    assert words[0] == "cloned" and float(words[1]) > 400 and words[2:5] == ["0", "of", "500"]
    assert time.monotonic() - started < 60
