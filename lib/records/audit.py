"""Proof that code which reads otherwise does the same: `make audit`.

    python -m lib.records.audit --profile paper                    # one row of each kind of stage whose code differs
    python -m lib.records.audit --stages horizon --rows 3          # more cells of one stage

A result whose parameters and inputs are today's, and whose code is not, is either stale or made by code that does the
same. Its source is run at audit size (`SIZE`) in a temporary worktree of the commit that its sidecar names and in one
of today's, on this machine in one run: the same planners, correctors and gates, fewer episodes and decisions, and the
first updates of what is trained. All actions, rewards and results are compared bit for
bit. One line for each pair of fingerprints goes to the ledger: equal, or unequal with the first difference, which then
stays stale. Timings are not audited: they are measured again when somebody asks. An audit can be interrupted: what is
in the ledger stays.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import pkgutil
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from lib.config import ConfigError, compiled_folder, one_of
from lib.files import alive, files
from lib.records import ledger, paths, store
from lib.records.ending import child
from lib.records.freshness import components, kept_run, key_of_parts
from lib.records.jobs import Job, Scope, profile
from lib.records.keys import TIMING, ResultError, shown
from lib.records.pipeline import jobs
from lib.records.run import guarded

AUDITED = ("distillation", "corrector", "drafts", "horizon", "certified", "sequence", "action_error", "perturbed")
AUDITED += ("model_error", "offline", "many_tasks", "deadlines")
# Fields of the audit's profile that are not those of smoke: all budgets as in the paper, and an arm of every kind.
SIZE = {
    "planner": None,
    "decisions": 18,  # three whole plans: a gate can be calibrated on them
    "collect_episodes": 4,
    "rounds": 2,
    "collect_horizon": 6,
    "epochs": 3,
    "calibrate_episodes": 1,
    "eval_episodes": 2,
    "arms": [
        "teacher", "teacher-sample", "budget-64x2", "policy", "best-of-64", "64x2+open-loop-6", "hold-last-6",
        "plan-ahead-6", "64x2+two-tower-3", "64x2+temporal-6", "64x2+gated-6", "64x2+sensitive-6",
        "value-only-6", "64x2+value-checked-6", "64x2+ladder-6", "no-plan-3",
    ],
    "candidates": ["64x2+two-tower-3"],
    "trials": [["*", 1]],
    "error_arms": ["teacher", "policy", "64x2+open-loop-6", "64x2+two-tower-6", "64x2+temporal-6"],
    "error_states": 10,
    "perturb_arms": [
        "budget-128x2", "64x2+gated-6", "128x2+draft+gated-3-r30", "128x2+clone+gated-3-r30", "distilled", "cloned",
        "policy", "128x2+draft+doubt-3-r30", "128x2+draft+value-3-r30", "128x2+draft+mismatch-3-r30",
    ],
    "perturb_episodes": 2,
    "perturbations": ["mass-1.5", "gain-0.7", "push-0.1", "noise-0.1"],
    "draft_cells": ["walker-run-1m-1", "cheetah-run-1m-1", "cup-catch-1m-1"],  # where arms with a draft are played
    "delays": {
        "delays": [0, 2], "planners": ["128x2"], "standard_delays": [], "episodes": 2, "study_episodes": 2,
        "perturbations": ["mass-1.5"], "perturbed_delays": [0, 2],
    },
    "many_tasks": {"tasks": ["walker-walk", "reacher-three-easy"], "episodes": 1},  # else as in the paper
}  # fmt: skip
MINUTES = {
    "horizon": 4.0,
    "deadlines": 4.0,
}  # about how long a stage takes at audit size in both trees; 1 where nothing else is said
REPLAY = Path(__file__).with_name("replay.py")


@dataclass
class Doubt:
    """Results of one stage that were made at one commit, by other code than today's: jobs that show the difference, and
    the pairs of fingerprints, old and new, that would have to be equal, with the rows that have them."""

    stage: str
    commit: str
    jobs: list[Job] = field(default_factory=list)
    pairs: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def doubts(scope: Scope, stages: tuple[str, ...] = AUDITED) -> list[Doubt]:
    """What there is to audit: parameters, settings and inputs agree, code does not, and no audit has looked at it."""
    found: dict[tuple[str, str], Doubt] = {}
    shown_by: dict[tuple[str, str, str], Doubt] = {}  # the doubt that shows a stage's pair: one commit is enough
    looked = {(e["old"], e["new"]) for e in ledger.entries() if e["kind"] == "audit"}
    for job in jobs(scope, tuple(one_of("stage", stage, AUDITED) for stage in stages)):
        for name, commit, kept, now in [*of_outs(job), *of_rows(job)]:
            old, commit = nearest(kept.split("-")[0], commit)
            pair = old, now.split("-")[0]
            if kept.split("-")[1] != now.split("-")[1] or pair[1] in ledger.equals(pair[0]) or pair in looked:
                continue
            if (doubt := shown_by.get((job.stage, *pair))) is None:
                doubt = found.setdefault((job.stage, commit), Doubt(job.stage, commit))
                shown_by[job.stage, *pair] = doubt
            doubt.pairs.setdefault(pair, []).append(f"{job.cell} {name}".strip())
            if doubt.commit == commit and job not in doubt.jobs:
                doubt.jobs.append(job)
    return list(found.values())


def nearest(code: str, commit: str) -> tuple[str, str]:
    """The code that a chain of audits has last shown to be equal to this, and its commit: one replay for all chains."""
    equal = ledger.equals(code)
    audits = [entry for entry in ledger.entries() if entry["kind"] == "audit" and entry["equal"]]
    last = next((entry for entry in reversed(audits) if entry["new"] in equal), None)
    return (last["new"], last["head"]) if last else (code, commit)


def of_outs(job: Job) -> Iterator[tuple[str, str, str, str]]:
    """(name, commit, kept key, today's key) of a job's results."""
    now = key_of_parts(components(job))
    for out in job.outs:
        if out.is_file() and (run := kept_run(out)):
            yield out.name, store.commit_of(out), run["key"], now


def of_rows(job: Job) -> Iterator[tuple[str, str, str, str]]:
    """The same of rows that have keys of their own."""
    if job.rows and job.outs[0].is_file():
        for row in pkgutil.resolve_name(job.rows)(job.profile, job.cell):
            if row.kept:
                yield row.name, store.commit_of(row.file), ledger.renamed(row.kept), row.now


def audit(doubt: Doubt, rows: int, trees: Trees) -> str:
    """Replay `rows` of the doubt's jobs, drawn with a fixed seed, there and here; add what came of it to the ledger.

    Returns that in words. Raises `ResultError` when a tree cannot be replayed: that shows nothing.
    """
    if not doubt.commit or doubt.commit.endswith("+"):
        raise ResultError(f"{doubt.jobs[0].name} was made by code that was not committed; run it again.")
    order = random.Random(doubt.stage).sample(doubt.jobs, len(doubt.jobs))
    started, head = time.monotonic(), store.commit()
    while True:
        drawn = order[:rows]
        sources = [[shown(job.source), job.parameters | {"profile": "audit"}] for job in drawn]
        try:
            there, here = (replayed(trees.of(commit), sources) for commit in (doubt.commit, head))
            break
        except ResultError:  # a task may earn nothing in so few decisions, and a ladder cannot be calibrated on that
            order = order[1:]
            if not order:
                raise
    about = {"commit": doubt.commit, "head": head, "machine": store.machine(), "rows": [job.name for job in drawn]}
    about |= {"episodes": len(there[0]), "minutes": round((time.monotonic() - started) / 60, 2)}
    about |= {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    differ, played, equal = differences(there, here), arms(there[1]), 0
    for (old, new), names in doubt.pairs.items():
        mine = {name.split(" ")[-1] for name in names if " arm " in name or " gate of " in name}
        if mine and not mine & played:
            continue  # no arm of this kind is among those of `SIZE`: nothing was shown
        found = next((text for name, text in differ.items() if name in ("", *mine) or not mine), "")
        equal += not found
        some = sorted(names)[:3] + ([f"and {len(names) - 3} more"] if len(names) > 3 else [])
        pair = {"kind": "audit", "stage": doubt.stage, "old": old, "new": new, "equal": not found}
        ledger.append(pair | {"difference": found, "stands_for": some} | about)
    first = next(iter(differ.values()), "")
    return f"{equal} of {len(doubt.pairs)} kinds of rows equal{f'; first difference: {first}' if first else ''}"


class Trees(contextlib.ExitStack):
    """Worktrees of commits, made when they are first asked for and gone at the end; those of killed audits go first."""

    def __init__(self):
        super().__init__()
        for old in Path(tempfile.gettempdir()).glob("audit-of-*-*"):
            if not alive(int(old.name.split("-")[2])):
                shutil.rmtree(old, ignore_errors=True)
        git("worktree", "prune")
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix=f"audit-of-{os.getpid()}-")))

    def of(self, commit: str) -> Path:
        tree = self.folder / commit[:12]
        if not tree.exists():
            git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            self.callback(git, "worktree", "remove", "--force", str(tree))
        return tree


def git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise ResultError(f"git {' '.join(words)} failed: {done.stderr.strip()}; an audit needs the history of git.")
    return done.stdout.strip()


def replayed(tree: Path, sources: list) -> tuple[list, dict[str, list]]:
    """What simulators were told in a tree, and what its results are: file → rows, timings left out."""
    for made in ("results/audit", "cache"):  # by an earlier replay in this tree: nothing may be taken from there
        shutil.rmtree(tree / "data" / made, ignore_errors=True)
    (tree / "data" / "cache").mkdir(parents=True)
    (tree / "data" / "cache" / "teachers").symlink_to(paths.CACHE / "teachers")  # downloads are nobody's result
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        store.write_json(request, {"profile": SIZE, "sources": sources})
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled_folder()))  # for the recorded code, too
        command = child(str(REPLAY), str(tree), str(request), str(answer))
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no error was printed"])[-1]
            raise ResultError(f"{sources[0][0]} of {tree.name} could not be replayed: {last}")
        results = tree / "data" / "results" / "audit"
        return json.loads(answer.read_text(encoding="utf-8")), {
            str(file.relative_to(results)): contents(file)
            for file in files(results, "**/*")
            if not file.name.endswith(".meta.json") and "latency" not in file.parts
        }


def contents(file: Path) -> list:
    """The rows of a table without its timings, a dict each; other files as one row."""
    if file.suffix == ".json":
        found = without_keys(json.loads(file.read_text(encoding="utf-8")))
        return [{"arm": name, "value": json.dumps(value, sort_keys=True)} for name, value in found.items()]
    if file.suffix != ".csv":
        return [{"content": hashlib.sha256(file.read_bytes()).hexdigest()}]
    with file.open(newline="", encoding="utf-8") as opened:
        return [
            {k: v for k, v in row.items() if not TIMING.fullmatch(k) and k != "key"} for row in csv.DictReader(opened)
        ]


def without_keys(value):
    """JSON without its keys, which name code."""
    if isinstance(value, dict):
        return {k: without_keys(v) for k, v in value.items() if k != "key"}
    return value


def arms(files: dict[str, list[dict]]) -> set[str]:
    """The arms that rows of tables are of."""
    return {row["arm"] for rows in files.values() for row in rows if "arm" in row}


def differences(there: tuple[list, dict], here: tuple[list, dict]) -> dict[str, str]:
    """Arm → the first difference of its rows, and "" → the first that is of no arm. New columns of a table are none."""
    found: dict[str, str] = {}
    for name, rows in there[1].items():
        others = here[1].get(name)
        if others is None or len(others) != len(rows):
            found.setdefault("", f"{name}: {'missing' if others is None else f'{len(rows)} and {len(others)} rows'}")
            continue
        for number, (row, other) in enumerate(zip(rows, others, strict=True), start=1):
            if differ := [k for k in row if row[k] != other.get(k)]:
                text = f"{name}, row {number}, {differ[0]}: {row[differ[0]]} and {other.get(differ[0])}"
                found.setdefault(row.get("arm", ""), text)
    # What older code did not know, a calibration episode more, say, may be played here beside what it played.
    lost = Counter(map(tuple, there[0])) - Counter(map(tuple, here[0]))
    if lost and not found:  # else that explains it
        found[""] = f"actions or rewards: {lost.total()} episodes, the first begins in {min(lost)[0][:8]}"
    return found


@dataclass(frozen=True)
class Command:
    """Show by replay which results today's code would make again, bit for bit."""

    profile: str = "paper"
    stages: str = ""  # by name; empty: all that play or train
    rows: int = 1  # jobs replayed of each kind

    def __post_init__(self):
        if self.rows < 1:
            raise ConfigError(f"rows={self.rows} must be at least 1: what is not replayed is not shown.")


def carry_out(command: Command) -> None:
    if store.commit().endswith("+"):
        raise ResultError("lib, notebooks or paper differ from the last commit; commit first: an audit is of commits.")
    found = doubts(Scope.of(profile(command.profile)), tuple(command.stages.split()) or AUDITED)
    about = sum(MINUTES.get(doubt.stage, 1.0) * command.rows for doubt in found)
    print(f"{len(found)} kinds of results to replay, about {about:.0f} minutes" if found else "nothing to audit")
    with Trees() as trees, tqdm(total=len(found), desc="audit", unit="kind") as bar:
        for doubt in found:
            bar.set_postfix_str(f"{doubt.stage} of {doubt.commit[:8]}")
            try:
                said = audit(doubt, command.rows, trees)
            except ResultError as error:
                said = f"nothing shown: {error}"
            bar.update(1)
            tqdm.write(f"{doubt.stage} of {doubt.commit[:8]}: {said}")


def main(arguments: list[str] | None = None) -> int:
    command = tyro.cli(Command, prog="python -m lib.records.audit", args=arguments)
    return guarded(lambda: carry_out(command))


if __name__ == "__main__":
    sys.exit(main())
