"""Jobs of a pipeline as jobs of a cluster: SLURM, through submitit.

    failed, left = carry_through(plan(scope), stale, Cluster(scope, command, "slurm", partition="cpu"))

What is ready of one stage is submitted as one array. Each job runs the same command as `JOBS=` does on this machine: it
takes the job's lock, writes results atomically on the shared disk, and prints into `build/<profile>/logs/`. Told to end
before it is done, by preemption or by its time limit, it keeps what is finished and asks to be queued again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lib.config import ConfigError
from lib.records import attempts, paths
from lib.records.executors import came_of
from lib.records.freshness import kept_run
from lib.records.graph import Node
from lib.records.jobs import Scope
from lib.records.keys import shown
from lib.records.notebook import python_path

MINUTES, MARGIN = (
    240,
    2.0,
)  # of a stage that never ran; and how many times what it took is asked for, 10 minutes at least
GIB = 8  # memory of a job
LOOK = 1.0  # seconds from one look at what is running to the next
LOOKS = 10  # after which a job that left the queue without an answer is lost: the shared disk may be late
GRACE = 10.0  # seconds for putting results back


class Task:
    """What a job of the cluster does: a command whose words go to a file. Its exit status comes home."""

    def __init__(self, command: list[str], root: str, log: str, cancelled: str):
        self.command, self.root, self.log, self.cancelled, self.process = command, root, log, cancelled, None

    def __call__(self) -> int:
        if "SLURM_JOB_ID" in os.environ:  # preemption says SIGTERM; submitit saves and queues again at SIGUSR2
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, cwd=self.root, stdout=log, stderr=subprocess.STDOUT)
        while self.process.poll() is None:  # `wait` would hold a lock that `checkpoint`, a signal's handler, needs
            time.sleep(0.2)
        return self.process.returncode

    def checkpoint(self):
        """End the command, which puts results back, and be queued again, unless the runner has taken the job back."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if Path(self.cancelled).exists():
            sys.exit(1)
        return DelayedSubmission(Task(self.command, self.root, self.log, self.cancelled))


class Cluster:
    """An executor for `carry_through`. `kind` is "slurm", or "local": processes of this machine, by submitit."""

    def __init__(self, scope: Scope, command: Callable[[Node], list[str]], kind: str, partition: str = ""):
        try:
            import submitit
        except ImportError:
            raise ConfigError("submitit is not installed; install requirements.lock, or use JOBS=.") from None
        self.submitit, self.kind, self.partition = submitit, kind, partition
        self.scope, self.command = scope, command
        self.running: dict[str, tuple[Node, object]] = {}
        self.batch: list[Node] = []
        self.missed: dict[str, int] = {}  # for how many looks in a row a job has not been in the queue
        self.folder = paths.CACHE / "cluster" / scope.profile.name
        self.cancelled = self.folder / f"cancelled-{os.getpid()}-{time.time_ns()}"
        os.environ["PYTHONPATH"] = python_path()

    def begin(self, node: Node, force: bool = False) -> bool:
        self.batch.append(node)
        self.running[node.name] = node, None
        return True

    def ended(self, wait: bool) -> list[tuple[str, str]]:
        while wait:
            self.submit()
            if over := self._over():
                return [(name, self._end(name)) for name in over]
            time.sleep(LOOK)
        return []

    def submit(self) -> None:
        """Submit what is ready, an array for each stage."""
        for stage in {node.stage.name: node.stage for node in self.batch}.values():
            nodes = [node for node in self.batch if node.stage is stage]
            executor = self.submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.kind)
            minutes = max(10, round(MARGIN * (known_minutes(stage, self.scope) or MINUTES / MARGIN)))
            asked = {
                "name": stage.name,
                "timeout_min": minutes,
                "mem_gb": GIB,
                "cpus_per_task": 2 if stage.alone else 1,
            }
            if self.kind == "slurm":
                asked |= {"slurm_array_parallelism": 1000, "slurm_signal_delay_s": 30}
                asked |= {"slurm_partition": self.partition} if self.partition else {}
                asked |= {"slurm_exclusive": True} if stage.alone else {}  # it measures time
            executor.update_parameters(**asked)
            with executor.batch():
                jobs = [executor.submit(self._task(node)) for node in nodes]
            for node, job in zip(nodes, jobs, strict=True):
                self.running[node.name] = node, job
                print(f"submitted: {node.name} as {job.job_id}, for {minutes} minutes", file=sys.stderr, flush=True)
        self.batch = []

    def _task(self, node: Node) -> Task:
        log = attempts.log(self.scope.profile.name, node.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        return Task(self.command(node), str(paths.ROOT), str(log), str(self.cancelled))

    def _over(self) -> list[str]:
        """The jobs that have an answer, or are queued no more: not every cluster keeps accounts that could be asked."""
        if self.kind != "slurm":
            return [name for name, (_, job) in self.running.items() if job.done()]
        asked = ["squeue", "--noheader", "--array", "--me", "--format", "%i"]
        done = subprocess.run(asked, capture_output=True, text=True)
        queued = set(done.stdout.split())
        for name, (_, job) in self.running.items():
            missed = done.returncode == 0 and job.job_id not in queued
            self.missed[name] = self.missed.get(name, 0) + 1 if missed else 0
        return [
            name
            for name, (_, job) in self.running.items()
            if job.paths.result_pickle.exists() or self.missed[name] > LOOKS
        ]

    def _end(self, name: str) -> str:
        _, job = self.running.pop(name)
        said = f"what it said is in {shown(job.paths.stderr)}"
        if not job.paths.result_pickle.exists():
            return f"job {job.job_id} of the cluster was killed, or its node was lost; {said}"
        if job.exception() is not None:
            return f"job {job.job_id} of the cluster broke off; {said}"
        return came_of(self.scope.profile.name, name, job.result())

    def cancel(self) -> None:
        """Take back what was submitted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cancelled.touch()
        for _, job in self.running.values():
            if job is not None:
                job.cancel()


def known_minutes(stage, scope: Scope) -> float:
    """The most minutes that a job of this stage took, as sidecars and records of attempts have it; 0 if none ran."""
    found = [0.0]
    for cell in stage.asked(scope):
        job = stage.job(scope, cell)
        found += [(kept_run(out) or {}).get("minutes") or 0.0 for out in job.outs if out.is_file()]
        found.append(attempts.last(scope.profile.name, job.name).get("minutes", 0.0))
    return max(found)
