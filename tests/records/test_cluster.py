"""Jobs of a cluster: by submitit on this machine, and on a SLURM of one node where there is one (slurm.sh)."""

import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from lib.records import attempts, cluster, paths
from lib.records.jobs import Scope, profile
from lib.records.paths import ROOT
from tests.records.test_executors import BOTH, CELL, OTHER, of
from tests.records.test_run import built, repo  # noqa: F401 - fixtures
from tests.records.tiny import alive, wait_for


def run(repo, *options, kind="submitit"):  # noqa: F811
    command = [*repo.command("run"), "--executor", kind, *BOTH, *options]
    return subprocess.run(command, cwd=repo.root, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_cell_that_fails_on_the_cluster_does_not_stop_the_others(repo):  # noqa: F811
    repo.edit("notebooks/one.ipynb", "episodes < 10", "task != 'reacher-easy'")
    done = run(repo, "--only", "one timed", "--again")
    assert done.returncode == 1
    assert {f"wrote {of(CELL)}", f"wrote {repo.timed}"} <= set(done.stdout.splitlines())
    assert "error: notebook failed: AssertionError: too many episodes; the traceback" in done.stderr.splitlines()[-1]
    submitted = [line.split() for line in done.stderr.splitlines() if line.startswith("submitted: one-")]
    assert [words[1] for words in submitted] == [f"one-{CELL}", f"one-{OTHER}"]
    assert f"its words are in build/smoke/logs/one-{OTHER}.txt" in repo("status", *BOTH).stdout


def test_a_task_told_to_end_ends_its_command_and_is_queued_again(tmp_path):
    log, note = tmp_path / "log", tmp_path / "note"
    command = ["sh", "-c", f"echo begun > {note}; trap 'echo put back; exit 3' TERM; sleep 30 & wait"]
    task = cluster.Task(command, str(tmp_path), str(log), str(tmp_path / "cancelled"))
    task.process = subprocess.Popen(command, stdout=log.open("w"))
    wait_for(lambda: note.exists())
    again = task.checkpoint()
    assert again.function.command == command and log.read_text() == "put back\n" and task.process.returncode == 3
    (tmp_path / "cancelled").touch()
    task.process = subprocess.Popen(["sleep", "30"])
    with pytest.raises(SystemExit):
        task.checkpoint()
    assert task.process.returncode == -signal.SIGTERM


def test_the_time_that_is_asked_for_is_the_longest_that_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(paths, "results", lambda name: tmp_path / name)
    scope = Scope.of(profile("smoke"), ("a-1m-1", "b-1m-1"))
    from lib.records.pipeline import STAGES

    (stage,) = [stage for stage in STAGES if stage.name == "distillation"]
    assert cluster.known_minutes(stage, scope) == 0
    attempts.note("smoke", "distillation-b-1m-1", "distillation", time.time() - 120)
    assert cluster.known_minutes(stage, scope) == pytest.approx(2, abs=0.1)


# ------------------------------------------------------------------------------------------------- a SLURM of one node


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A controller and a node on the loopback, with the partitions low and high, which preempts low."""
    if os.getuid() or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        pytest.skip("needs root, and slurmctld, slurmd, slurm-client and munge")
    folder, script = tmp_path_factory.mktemp("slurm"), ROOT / "tests/records/slurm.sh"
    subprocess.run([script, folder, "start"], check=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run(["scancel", "--me"])
        subprocess.run([script, folder, "stop"], check=True)


def on_slurm(repo, *options) -> subprocess.Popen:  # noqa: F811
    """A run on the cluster whose first notebook is at work, and waits."""
    (repo.root / "slow").touch()
    repo.edit("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 4")
    command = [*repo.command("run"), "--executor", "slurm", "--partition", "low", "--only", "one two", *options]
    process = subprocess.Popen(command, cwd=repo.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (repo.root / "pid").exists() and (repo.root / "pid").read_text(), seconds=90)
    return process


@pytest.mark.slow
def test_slurm_makes_what_is_made_here(repo, slurm):  # noqa: F811
    done = run(repo, "--partition", "low", "--again", kind="slurm")
    assert done.returncode == 0, done.stderr
    assert {f"wrote {of(CELL)}", f"wrote {of(OTHER)}", f"wrote {repo.two}"} <= set(done.stdout.splitlines())
    assert set(repo.status(*BOTH).values()) == {"fresh"}


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_finishes(repo, slurm):  # noqa: F811
    with on_slurm(repo) as process:
        first = int((repo.root / "pid").read_text())
        (repo.root / "slow").unlink()
        cores = str(os.cpu_count())
        subprocess.run(["sbatch", "-p", "high", "-n", cores, "-o", "/dev/null", "--wrap", "sleep 1"], check=True)
        wait_for(lambda: not alive(first), seconds=60)
        said = process.communicate(timeout=400)  # SLURM lets a job that was queued again wait for two minutes
    assert process.returncode == 0, said
    assert f"wrote {repo.one}" in said[0] and repo.status("--only", "one two") == {
        repo.one: "fresh", repo.two: "fresh", repo.kept: "fresh"
    }  # fmt: skip
    logs = "".join(file.read_text() for file in (repo.root / "data/cache/cluster/smoke").rglob("*.err"))
    assert "Caught signal SIGUSR2" in logs and "DUE TO JOB REQUEUE" in logs


@pytest.mark.slow
def test_a_job_that_is_killed_on_its_node_is_named_and_can_be_made_again(repo, slurm):  # noqa: F811
    before = repo.results()
    with on_slurm(repo) as process:
        family = psutil.Process(int((repo.root / "pid").read_text())).parents()
        for member in family:
            if "submitit.core._submit" in " ".join(member.cmdline()):
                member.kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert f"error: one-{CELL} failed (job " in said and "of the cluster was killed, or its node was lost" in said
    assert said.endswith("so two was not begun.\n")
    wait_for(lambda: repo.results() == before)
    (repo.root / "slow").unlink()
    assert repo("run").returncode == 0 and set(repo.status().values()) == {"fresh"}


@pytest.mark.slow
def test_a_runner_that_is_told_to_end_takes_its_jobs_back(repo, slurm):  # noqa: F811
    before = repo.results()
    with on_slurm(repo) as process:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 130
    asked = ["squeue", "--noheader", "--me"]
    wait_for(lambda: not subprocess.run(asked, capture_output=True).stdout.strip(), seconds=60)
    wait_for(lambda: repo.results() == before)
