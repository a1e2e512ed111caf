"""Jobs side by side, failures that stop only what waits for them, and two runners on one checkout."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lib.records import executors
from lib.records.executors import RUNNER, carry_through, sentence, threads
from lib.records.keys import ResultError
from tests.records.test_run import CELL, built, in_the_middle, repo  # noqa: F401 - fixtures
from tests.records.tiny import alive, wait_for


@dataclass(frozen=True)
class Step:
    name: str
    after: frozenset = frozenset()


class Pretended:
    """Runs what it is given, `count` at once, each until the next wait; `fails` are names that then fail."""

    def __init__(self, count=1, fails=(), others=()):
        self.count, self.fails, self.others, self.running, self.log = count, fails, set(others), {}, []

    def begin(self, node, force=False):
        if len(self.running) >= self.count or (node.name in self.others and not force):
            return False
        self.running[node.name] = node
        self.log.append(node.name)
        return True

    def ended(self, wait):
        over = list(self.running) if wait else []
        self.running.clear() if wait else None
        return [(name, "it broke." if name in self.fails else "") for name in over]

    def cancel(self):
        self.log.append(f"took back {' '.join(self.running)}")


def steps(**after):
    return [Step(name, frozenset(names.split())) for name, names in after.items()]


GRAPH = steps(a="", b="a", c="", d="b c", e="c")


def test_each_runs_once_after_those_that_it_waits_for():
    pretended = Pretended()
    assert carry_through(GRAPH, lambda node: True, pretended) == ({}, [])
    assert pretended.log == list("abcde")
    assert carry_through(GRAPH, lambda node: True, pretended := Pretended(count=2)) == ({}, [])
    assert pretended.log == list("acbed")


def test_what_is_fresh_does_not_run():
    assert carry_through(GRAPH, lambda node: node.name in "be", pretended := Pretended()) == ({}, [])
    assert pretended.log == ["b", "e"]


def test_a_failure_stops_only_what_waits_for_it(capsys):
    failed, left = carry_through(GRAPH, lambda node: True, pretended := Pretended(fails="a"))
    assert (failed, left, pretended.log) == ({"a": "it broke."}, ["b", "d"], ["a", "c", "e"])
    assert capsys.readouterr().err == "failed: a: it broke.; what does not wait for it goes on\n"


def test_what_cannot_be_told_stale_or_fresh_fails_by_itself():
    def stale(node):
        if node.name == "a":
            raise ResultError("a.csv is damaged.")
        return True

    failed, left = carry_through(GRAPH, stale, pretended := Pretended())
    assert (failed, left, pretended.log) == ({"a": "a.csv is damaged."}, ["b", "d"], ["c", "e"])


def test_what_is_running_is_taken_back_when_the_runner_ends():
    def stale(node):
        if node.name == "c":
            raise KeyboardInterrupt
        return True

    pretended = Pretended(count=2)
    with pytest.raises(KeyboardInterrupt):
        carry_through(GRAPH, stale, pretended)
    assert pretended.log == ["a", "took back a"]


def test_what_another_runner_makes_is_left_for_last():
    pretended = Pretended(others="a")
    carry_through(GRAPH, lambda node: True, pretended)
    assert pretended.log == ["c", "e", "a", "b", "d"]


def test_the_sentence_names_what_failed_and_what_was_not_begun():
    assert sentence({"a": "it broke."}, []) == "it broke."
    assert sentence({"a": "it broke."}, ["b"]) == "a failed (it broke), so b was not begun."
    assert (
        sentence({"a": "x", "b": "y"}, ["c", "d", "e"]) == "a failed (x), b failed (y), so c, d and e were not begun."
    )
    assert sentence({"a": "x"}, list("bcdefgh")).endswith("so b, c, d, e, f and 2 more were not begun.")
    assert sentence({"a": "x", "b": "y"}, []) == "a failed (x), b failed (y)."


def test_threads_are_shared_out_unless_somebody_said(monkeypatch):
    for name in executors.THREADS:
        monkeypatch.delenv(name, raising=False)
    assert threads(3) == dict.fromkeys(executors.THREADS, "3") and threads(0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in threads(3)


# ------------------------------------------------------------------------------------------- in the small repository

OTHER = "reacher-easy-1m-1"
BOTH = ("--cells", f"{CELL} {OTHER}")
NOTE = """
import os
with open(ROOT / "said", "a") as file:
    file.write(f"{task} {os.environ.get('OMP_NUM_THREADS')} begins\\n")
time.sleep(0.5)
with open(ROOT / "said", "a") as file:
    file.write(f"{task} ends\\n")
"""


def of(cell):
    return f"data/results/smoke/one/{cell}.csv"


def run(repo, *options):  # noqa: F811
    """A run of two jobs at once that nobody has told how many threads to use."""
    environment = {k: v for k, v in os.environ.items() if k not in executors.THREADS}
    command = [*repo.command("run"), "--jobs", "2", *BOTH, *options]
    return subprocess.run(command, cwd=repo.root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("alone", [False, True])
def test_cells_run_side_by_side_unless_they_measure_time(repo, alone):  # noqa: F811
    edited = json.dumps("for i in range(episodes)]" + NOTE)[1:-1]
    repo.edit("notebooks/one.ipynb", "for i in range(episodes)]", edited)
    if alone:
        repo.edit("lib/records/pipeline.py", "ONE = dict(", "ONE = dict(alone=True, ")
    done = run(repo, "--only", "one")
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in (repo.root / "said").read_text().splitlines()]
    share = executors.cores() if alone else max(1, executors.cores() // 2)
    assert [words[-1] for words in said] == (["begins", "ends"] * 2 if alone else ["begins"] * 2 + ["ends"] * 2)
    assert {words[1] for words in said if words[-1] == "begins"} == {str(share)}
    assert sorted(done.stdout.splitlines()) == sorted(f"wrote {of(cell)}" for cell in (CELL, OTHER))
    (row,) = (line.split() for line in done.stderr.splitlines() if line.startswith("one "))
    assert row[1] == "2" and row[3] == "100%"
    assert "running notebooks/one.ipynb" in (repo.root / f"build/smoke/logs/one-{OTHER}.txt").read_text()


def test_one_failed_cell_does_not_stop_the_others(repo):  # noqa: F811
    repo.edit("notebooks/one.ipynb", "episodes < 10", "task != 'reacher-easy'")
    done = run(repo)
    assert done.returncode == 1 and f"wrote {of(CELL)}" in done.stdout and f"unchanged {repo.timed}" in done.stdout
    evidence = f"build/smoke/one-{OTHER}.ipynb"
    why = f"notebook failed: AssertionError: too many episodes; the traceback is in {evidence}"
    assert done.stderr.splitlines()[-1] == (
        f"error: one-{OTHER} failed ({why}), so two and plot-figure were not begun."
    )
    log = f"its words are in build/smoke/logs/one-{OTHER}.txt"
    assert f"failed: one-{OTHER} ({why}; {log})\n" in repo("status", *BOTH).stdout
    repo.edit("notebooks/one.ipynb", "task != 'reacher-easy'", "episodes < 10")
    again = run(repo)
    assert again.returncode == 0 and f"wrote {of(OTHER)}" in again.stdout, again.stderr
    assert set(repo.status(*BOTH).values()) == {"fresh"}


def test_a_second_runner_leaves_a_stage_to_the_first(repo):  # noqa: F811
    with in_the_middle(repo) as first:
        assert f"running: one-{CELL} (process {first.pid} of " in repo("status").stdout
        command = [*repo.command("run"), "--only", "one timed"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=repo.root, **pipes) as second:
            assert second.stdout.readline() == f"unchanged {repo.timed}\n"
            assert f"waiting for one-{CELL}, which process {first.pid} of" in second.stderr.readline()
            (repo.root / "slow").unlink()
            os.kill(first.pid, 9)
            assert second.communicate(timeout=60)[0] == f"unchanged {repo.one}\n"  # it was whole
    assert set(repo.status("--only", "one timed").values()) == {"fresh"}


@pytest.mark.parametrize("number, how", [(signal.SIGTERM, []), (signal.SIGKILL, []), (signal.SIGKILL, ["nohup"])])
def test_jobs_side_by_side_end_with_their_runner_and_put_results_back(repo, number, how):  # noqa: F811
    before = repo.results()
    with in_the_middle(repo, [*how, *repo.command("run"), "--jobs", "2"]) as process:
        process.send_signal(number)
        said = process.communicate(timeout=10)[1]
    wait_for(lambda: not alive(int((repo.root / "pid").read_text())), seconds=20)
    wait_for(lambda: repo.results() == before, seconds=20)
    assert "Traceback" not in said and attempted(repo) == {}


def attempted(repo):  # noqa: F811
    """The records of failed attempts: none of a run that was told to end."""
    return {file.name: file.read_text() for file in (repo.root / "data/cache/jobs/smoke").glob("*.json")
            if json.loads(file.read_text())["failed"]}  # fmt: skip


def test_a_job_whose_runner_is_gone_before_it_hears_of_it_ends_at_once(repo):  # noqa: F811
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    (repo.root / "slow").touch()
    repo.edit("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 4")
    words = [*repo.command("run"), "--only", "one", "--job", f"one-{CELL}"]
    environment = os.environ | {RUNNER: str(gone.pid)}
    done = subprocess.run(["nohup", *words], cwd=repo.root, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "what started this has gone" in done.stderr
