"""Locks of jobs: two processes exclude each other, however the first one ends; and records of what came of them."""

import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from lib.records import attempts, paths
from lib.records.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from lib.records import attempts, paths
paths.CACHE = Path(sys.argv[1])
with attempts.held("smoke", "a"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(attempts, "LOOK", 0.01)
    return tmp_path / "cache"


def holding(cache) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_lock_of_a_process_that_is_killed_is_free_at_once(cache, capsys):
    assert attempts.holder("smoke", "a") is None
    with holding(cache) as other:
        assert other.stdout.readline() == "held\n"
        who = attempts.holder("smoke", "a")
        assert who["pid"] == other.pid and abs(who["since"] - time.time()) < 30
        assert attempts.holder("smoke", "b") is None
        os.kill(other.pid, signal.SIGKILL)
    assert attempts.holder("smoke", "a") is None
    with attempts.held("smoke", "a"):
        assert attempts.holder("smoke", "a")["pid"] == os.getpid()
    assert attempts.holder("smoke", "a") is None and capsys.readouterr().err == ""


def test_who_comes_second_waits_says_for_whom_and_goes_on_when_the_lock_is_free(cache):
    with attempts.held("smoke", "a"):
        other = holding(cache)
        said = f"waiting for a, which process {os.getpid()} of {platform.node()} is making\n"
        assert other.stderr.readline() == said
        assert attempts.holder("smoke", "a")["pid"] == os.getpid()
    with other:
        assert other.stdout.readline() == "held\n" and attempts.holder("smoke", "a")["pid"] == other.pid
        other.kill()


def test_the_record_of_an_attempt(cache):
    assert attempts.last("smoke", "a") == {}
    attempts.note("smoke", "a", "horizon", time.time() - 90, "it was too long.")
    last = attempts.last("smoke", "a")
    assert last["minutes"] == pytest.approx(1.5, abs=0.1) and last["failed"] == "it was too long."
    (cache / "jobs/smoke/a.json").write_text("half a wo")
    assert attempts.last("smoke", "a") == {}


def test_the_table_of_minutes():
    lines = attempts.table({"teacher": [1.0], "horizon": [2.0, 5.0]}, 4.25).splitlines()
    assert [line.split() for line in lines] == [
        ["stage", "jobs", "minutes", "share"],
        ["horizon", "2", "7.0", "88%"],
        ["teacher", "1", "1.0", "12%"],
        ["all", "3", "8.0", "in", "4.2", "minutes"],
    ]
