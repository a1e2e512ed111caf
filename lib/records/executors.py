"""Carry out the jobs of a pipeline, each when those that it waits for are done, by one of several executors.

    failed, left = carry_through(plan(scope), stale, Here(attempt))

An executor has `begin(node, force)`, which starts a node or says that it cannot now, `ended(wait)`, names with what
went wrong ("" for nothing) of those that are over, and `cancel()`, which takes back what is running when the runner
itself ends. A node that fails, or of which it cannot be told whether it is stale, stops only what waits for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

from lib.config import ConfigError
from lib.records import attempts, ending, paths
from lib.records.graph import Node
from lib.records.jobs import Scope
from lib.records.keys import ResultError, shown
from lib.records.notebook import RunError, python_path

LOOK = 0.1  # seconds from one look at what is running to the next
TELL = 60.0  # seconds from one line about it to the next
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
RUNNER = "SPECULATIVE_TDMPC2_RUNNER"  # in the environment of a job: the process with which it ends, however early


class Executor(Protocol):
    running: dict

    def begin(self, node: Node, force: bool = False) -> bool: ...

    def ended(self, wait: bool) -> list[tuple[str, str]]: ...

    def cancel(self) -> None: ...


def carry_through(
    nodes: list[Node], stale: Callable[[Node], bool], executor: Executor
) -> tuple[dict[str, str], list[str]]:
    """Carry out what is stale. What failed, and why, and the names of what was not begun because of it."""
    try:
        return _carry_through(nodes, stale, executor)
    except BaseException:  # whatever ends the runner: nothing may go on without it
        executor.cancel()
        raise


def _carry_through(nodes: list[Node], stale: Callable[[Node], bool], executor: Executor) -> tuple[dict, list]:
    done, ready, failed, left, told = set(), set(), {}, {}, set()
    while nodes:
        for name in failed.keys() - told:
            print(f"failed: {name}: {failed[name]}; what does not wait for it goes on", file=sys.stderr, flush=True)
        told |= failed.keys()
        moved = False
        for node in nodes:
            if node.name in done or node.name in failed or node.name in executor.running:
                continue
            if any(name in failed or name in left for name in node.after):
                left[node.name] = True
            elif node.after <= done:
                try:
                    wanted = node.name in ready or stale(node)
                except (ResultError, ConfigError) as error:
                    failed[node.name] = str(error)
                    continue
                if not wanted:
                    done.add(node.name)
                    continue
                ready.add(node.name)
                moved |= executor.begin(node)
            moved |= settle(executor.ended(wait=False), done, failed)
        nodes = [node for node in nodes if node.name not in done and node.name not in failed and node.name not in left]
        if nodes and not moved:
            if not executor.running:  # all that is ready is another runner's: wait for it
                executor.begin(next(node for node in nodes if node.name in ready), force=True)
            settle(executor.ended(wait=True), done, failed)
    return failed, list(left)


def settle(ended: list[tuple[str, str]], done: set[str], failed: dict[str, str]) -> bool:
    """Note what is over; whether there was anything."""
    for name, why in ended:
        if why:
            failed[name] = why
        else:
            done.add(name)
    return bool(ended)


def sentence(failed: dict[str, str], left: list[str]) -> str:
    """What failed and why, and what was not begun because of it."""
    if len(failed) == 1 and not left:
        return next(iter(failed.values()))
    text = ", ".join(f"{name} failed ({why.rstrip('.')})" for name, why in failed.items())
    some = left if len(left) <= 6 else [*left[:5], f"{len(left) - 5} more"]
    return (
        text
        + (f", so {' and '.join(filter(None, [', '.join(some[:-1]), some[-1]]))} " if left else "")
        + (f"{'was' if len(left) == 1 else 'were'} not begun." if left else ".")
    )


# ---------------------------------------------------------------------------------------------------- one by one


class Here:
    """One after another, in this process; progress bars reach the terminal."""

    def __init__(self, scope: Scope, attempt: Callable[[Node], object]):
        self.scope, self.attempt, self.running, self.over = scope, attempt, {}, []

    def begin(self, node: Node, force: bool = False) -> bool:
        """Carry it out, unless another runner does and nobody said to wait for that."""
        if not force and attempts.holder(self.scope.profile.name, node.name):
            return False
        why = ""
        try:
            self.attempt(node)
        except (RunError, ResultError) as error:
            why = str(error)
        self.over.append((node.name, why))
        return True

    def ended(self, wait: bool) -> list[tuple[str, str]]:
        over, self.over = self.over, []
        return over

    def cancel(self) -> None:
        """What is one after another ends with this process."""


# ------------------------------------------------------------------------------------------------------ side by side


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(count: int) -> dict[str, str]:
    """The environment of a process that is to use so many threads, where the user has not said."""
    return {name: str(max(1, count)) for name in THREADS if name not in os.environ}


class SideBySide:
    """So many jobs at once, each a process that shares out the cores; what they print goes to files."""

    def __init__(self, scope: Scope, count: int, command: Callable[[Node], list[str]]):
        self.scope, self.count, self.command = scope, count, command
        self.running: dict[str, tuple[Node, subprocess.Popen, float]] = {}
        self.told = time.monotonic()

    def begin(self, node: Node, force: bool = False) -> bool:
        alone = node.stage.alone or any(other.stage.alone for other, _, _ in self.running.values())
        if len(self.running) >= (1 if alone else self.count):
            return False
        if not force and attempts.holder(self.scope.profile.name, node.name):
            return False
        place = attempts.log(self.scope.profile.name, node.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        share = threads(cores() if node.stage.alone else cores() // self.count)
        environment = os.environ | share | {"PYTHONPATH": python_path(), "TQDM_MININTERVAL": "10"}
        environment[RUNNER] = str(os.getpid())
        with place.open("a" if force else "w") as log:  # by force while another runner's job may be writing
            process = subprocess.Popen(
                self.command(node), cwd=paths.ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        ending.TOLD.add(process.pid)
        self.running[node.name] = node, process, time.monotonic()
        print(f"begun: {node.name} (its words: {shown(place)})", file=sys.stderr, flush=True)
        return True

    def ended(self, wait: bool) -> list[tuple[str, str]]:
        while True:
            over = [name for name, (_, process, _) in self.running.items() if process.poll() is not None]
            if over or not wait or not self.running:
                return [(name, self._end(name)) for name in over]
            if time.monotonic() - self.told > TELL:
                self.told = time.monotonic()
                about = (f"{name} {(self.told - since) / 60:.0f} min" for name, (_, _, since) in self.running.items())
                print("running: " + ", ".join(about), file=sys.stderr, flush=True)
            time.sleep(LOOK)

    def cancel(self) -> None:
        for _, process, _ in self.running.values():
            process.terminate()

    def _end(self, name: str) -> str:
        """Print what came of a job; why it failed, if it did."""
        _, process, _ = self.running.pop(name)
        ending.TOLD.discard(process.pid)
        return came_of(self.scope.profile.name, name, process.returncode)


def came_of(profile: str, name: str, status: int) -> str:
    """Print the results that a job's log says it wrote; why it failed, if it did, from there."""
    place = attempts.log(profile, name)
    lines = place.read_text(encoding="utf-8", errors="replace").splitlines() if place.is_file() else []
    if status == 0:
        print("\n".join(line for line in lines if line.startswith(("wrote ", "unchanged "))), flush=True)
        return ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    how = f"it was ended by signal {-status}" if status < 0 else f"it ended with exit status {status}"
    return errors[-1] if errors else f"{how}; what it said is in {shown(place)}"
