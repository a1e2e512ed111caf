"""Runs end with the process that started them, and at once when they are told to; nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.records import ending
from lib.records.paths import ROOT
from tests.records.test_run import built, in_the_middle, repo  # noqa: F401 - fixtures
from tests.records.tiny import Repo, alive, wait_for

SECONDS = 5  # in which everything has to be over

RUNNER = """
import subprocess, sys, time
from pathlib import Path
from lib.records import ending
ending.LOOK, ending.GRACE = 0.05, float(sys.argv[2])
with ending.endable():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    Path(sys.argv[1]).write_text(f"{child.pid}\\n")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        with Path(sys.argv[1]).open("a") as file:
            file.write("told\\n")
        time.sleep(float(sys.argv[3]))
        sys.exit(7)
"""


def started(note: Path, *before: str, grace=5.0, after=0.0) -> subprocess.Popen:
    """The runner above, below the command `before`; when it has started something."""
    command = [*before, sys.executable, "-c", RUNNER, str(note), str(grace), str(after)]
    heard = lambda: [signal.signal(n, signal.SIG_DFL) for n in ending.SIGNALS]  # noqa: E731 - a job may ignore them
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=heard, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: note.is_file() and "\n" in note.read_text())
    return process


def told(note: Path) -> bool:
    """Whether the block has ended, and what it had started is gone."""
    words = note.read_text().split()
    return words[1:] == ["told"] and not alive(int(words[0]))


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_ends_what_was_started_and_then_the_block(tmp_path, number):
    with started(tmp_path / "note") as process:
        process.send_signal(number)
        assert process.wait(timeout=SECONDS) == 7 and told(tmp_path / "note")


def test_a_second_ctrl_c_does_not_cut_short_what_puts_results_back(tmp_path):
    with started(tmp_path / "note", after=0.5) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "told" in (tmp_path / "note").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS) == 7


def test_who_takes_too_long_is_ended(tmp_path):
    with started(tmp_path / "note", grace=0.2, after=60) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS) == 1 and told(tmp_path / "note")


BELOW = ("sh", "-c", '"$@" & echo $! > "$0"; wait')  # a parent that dies without a word to its child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_death_of_the_parent_is_heard(tmp_path, number):
    with started(tmp_path / "note", *BELOW, str(tmp_path / "pid")) as parent:
        parent.send_signal(number)
        parent.wait(timeout=SECONDS)
        wait_for(lambda: told(tmp_path / "note"), seconds=SECONDS)
        wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), seconds=SECONDS)


@pytest.mark.skipif(not (shutil.which("nohup") and shutil.which("setsid")), reason="needs nohup and setsid")
@pytest.mark.parametrize("command", ["nohup", "setsid"])
def test_who_is_started_to_go_on_alone_does(tmp_path, command):
    with started(tmp_path / "note", *BELOW, str(tmp_path / "pid"), command) as parent:
        parent.kill()
        parent.wait(timeout=SECONDS)
        time.sleep(0.5)  # ten looks at the parent
        assert alive(runner := int((tmp_path / "pid").read_text()))
        os.kill(runner, signal.SIGTERM)
        wait_for(lambda: told(tmp_path / "note"), seconds=SECONDS)


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in ending.SIGNALS]
    with ending.endable():
        assert all(
            signal.getsignal(n) != was for n, was in zip(ending.SIGNALS, before, strict=True) if was != signal.SIG_IGN
        )
    assert [signal.getsignal(number) for number in ending.SIGNALS] == before


SCRIPT = """
import pathlib, sys
print(sys.argv, sys.path[0], __name__, __file__, sys.modules["__main__"].__dict__ is globals())
sys.exit(4)
"""


def test_a_script_does_not_see_that_it_is_watched(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [str(tmp_path / "script.py"), "--profile", "smoke"]
    plain, watched = (
        subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        for command in ([sys.executable, *words], ending.child(*words))
    )
    assert plain.stdout == watched.stdout and "True" in plain.stdout and watched.stderr == ""
    assert plain.returncode == watched.returncode == 4


def test_no_run_waits_for_a_grammar_that_it_does_not_need(tmp_path):
    """A chart imports jsonschema, which imports the grammar where it can."""
    (tmp_path / "script.py").write_text("import altair, sys\nprint('lark' in sys.modules)")
    plain, run = (
        subprocess.run(command, capture_output=True, text=True)
        for command in ([sys.executable, tmp_path / "script.py"], ending.child(str(tmp_path / "script.py")))
    )
    assert (plain.stdout, run.stdout) == ("True\n", "False\n"), plain.stderr + run.stderr


PARENT = """
import subprocess, sys
from lib.records import ending
subprocess.run(ending.child(*sys.argv[1:]))
"""
SLEEPS = """
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen(["sleep", "60"])
Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}\\n")
time.sleep(60)
"""


def test_a_script_and_what_it_started_end_with_the_runner(tmp_path):
    note = tmp_path / "note"
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "sleeps.py"), str(note)]
    with subprocess.Popen(command, cwd=ROOT) as parent:
        wait_for(lambda: note.is_file() and note.read_text().endswith("\n"))
        parent.kill()
    wait_for(lambda: not any(map(alive, map(int, note.read_text().split()))), seconds=SECONDS)


# ----------------------------------------------------------------------------------------- of make, runner and notebook


@pytest.mark.skipif(not (shutil.which("make") and Path("/proc").is_dir()), reason="needs make, and Linux's list")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_make(repo: Repo, number):  # noqa: F811
    before = repo.results()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, repo.root)
    make = ["make", f"PYTHON={sys.executable}", "PROFILE=smoke", "results"]
    heard = lambda: [signal.signal(n, signal.SIG_DFL) for n in ending.SIGNALS]  # noqa: E731
    with in_the_middle(repo, command=make, preexec_fn=heard, start_new_session=True) as process:
        family = [p for p in map(int, filter(str.isdecimal, os.listdir("/proc"))) if belongs(p, repo.root)]
        assert len(family) == 3  # make, runner, kernel
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
        said = process.communicate(timeout=SECONDS)[1]  # also waits for all that could write there
    wait_for(lambda: not any(map(alive, family)), seconds=SECONDS)
    assert repo.results() == before and "Traceback" not in said
    assert "stopped; the earlier results are as they were.\n" in said


def belongs(pid: int, folder: Path) -> bool:
    """Whether a process works in a folder."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve())
    except OSError:
        return False


def test_sigterm_to_the_runner_ends_the_notebook_and_puts_the_results_back(repo: Repo):  # noqa: F811
    before = repo.results()
    with in_the_middle(repo) as process:
        process.terminate()
        said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "stopped; the earlier results are as they were."
    assert repo.results() == before and not alive(int((repo.root / "pid").read_text()))


SPARED = """
import os, signal, subprocess
from lib.records import ending
mine = subprocess.Popen(["sleep", "60"])
try:
    with ending.endable():
        theirs = subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print(theirs.wait(5), mine.poll())
mine.kill()
"""


def test_what_was_started_before_is_spared():
    done = subprocess.run([sys.executable, "-c", SPARED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(-signal.SIGKILL.value), "None"], done.stderr
