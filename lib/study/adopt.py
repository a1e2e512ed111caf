"""The results of the first edition enter the ledger, once: `python -m lib.study.adopt`.

Their sidecars name the text of files as code. For each result the ledger is told the commit that is in git history for
it, the fingerprint of that commit's code, and the parameters, settings and inputs that its sidecar has; and for the
keys in sidecars and tables what they are in today's form. A result is not adopted when its file is not what its sidecar
describes, or when the weights that it was made with are not those of its commit. Nothing is said about today's code:
that is for audits to show.
"""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

from lib.config import PlannerConfig
from lib.correctors import CORRECTORS
from lib.records import ledger, paths, store
from lib.records.audit import AUDITED, git
from lib.records.fingerprint import Code
from lib.records.jobs import Job, Scope
from lib.records.keys import content_hash, key_of, rest_of, shown
from lib.records.pipeline import jobs
from lib.records.run import key_of_parts
from lib.records.syntax import FingerprintError
from lib.study import action_error, calibrate, distillation, evaluate, steps
from lib.study.arms import arm_name, make_arm, recorded
from lib.study.cells import Cell, Settings
from lib.study.model_quality.bench import Bench, row_key
from lib.study.profiles import PROFILES
from lib.study.stats.coverage import coverage_table

PROFILE = PROFILES["paper"]
NEUTRAL = ("lib.paths", "lib.keys", "lib.results", "lib.charts", "lib.registry")
MODULES = {"measure": "lib.action_error"}  # of names that several modules have


class Trees:
    """The code of commits, without their data."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    @functools.cache  # noqa: B019
    def code(self, commit: str) -> Code:
        tree = self.folder / commit
        command = ["git", "-C", str(paths.ROOT), "archive", commit, "lib", "notebooks", "paper", "figures"]
        packed = subprocess.run(command, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tree, filter="data")
        return Code(tree, NEUTRAL)

    def fingerprint(self, commit: str, *roots) -> str:
        """That of these sources, and of objects of today's by their names, in the tree of the commit."""
        code = self.code(commit)
        return code.fingerprint(*(root if isinstance(root, str) else self._there(code, root) for root in roots))

    def _there(self, code: Code, root) -> str:
        name = root.__name__
        if name in MODULES:
            return f"{MODULES[name]}:{name}"
        files = sorted((code.root / "lib").glob("*.py"))
        found = [f"lib.{file.stem}" for file in files if name in code.module(f"lib.{file.stem}").bound]
        if len(found) != 1:
            raise FingerprintError(f"{name} is defined in {len(found)} modules of {code.root.name[:8]}")
        return f"{found[0]}:{name}"


def last_commit(path: Path) -> str:
    return git("log", "-1", "--format=%H", "--", str(path))


def unchanged_since(commit: str, *files: Path) -> bool:
    return all(git("rev-parse", f"{commit}:{shown(f)}") == git("hash-object", str(f)) for f in files)


def main() -> int:
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        trees = Trees(folder)
        for job in jobs(Scope.of(PROFILE), AUDITED):
            for out in [*job.outs, *job.keeps]:
                try:
                    entry = adopted(job, out, trees)
                except (FingerprintError, subprocess.CalledProcessError, store.ResultError, KeyError) as error:
                    entry = f"{type(error).__name__}: {error}"
                if isinstance(entry, str):
                    refused += 1
                    print(f"not adopted: {shown(out)}: {entry}")
                else:
                    ledger.append(entry)
                    print(f"adopted {shown(out)} of {entry['commit'][:8]}, {len(entry['keys'])} keys")
        coverage = paths.results("paper") / "statistics" / "coverage.csv"
        commit = last_commit(coverage)
        key = f"{trees.fingerprint(commit, coverage_table)}-{rest_of(key_of([coverage_table]))}"
        keys = {store.read_sidecar(coverage)["key"]: key}
        ledger.append(entry_of("summary", coverage, commit, key.split("-")[0], {}, keys))
    print(f"{refused} results were not adopted")
    return 0


def entry_of(stage: str, out: Path, commit: str, code: str, run: dict, keys: dict) -> dict:
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {"kind": "adopted", "stage": stage, "result": shown(out), "content": content_hash(out), "commit": commit}
    return about | {"code": code, "run": run, "keys": keys, "written": written}


def adopted(job: Job, out: Path, trees: Trees) -> dict | str:
    """The ledger's entry for a result, or why there is none."""
    if not store.intact(out):
        return "the file is not what its sidecar describes"
    about, commit = store.read_sidecar(out), last_commit(out)
    if "stage" in about.get("run", {}) or ledger.adopted(out):
        return "it has a record"
    code = trees.fingerprint(commit, shown(job.source), *(resolved(root) for root in job.roots))
    run = {}
    if out in job.outs:
        then = about["run"]["components"]
        parts = {"code": code, "parameters": then["parameters"], "inputs": then["needs"]}
        parts["settings"] = {name: then["profile"][name] for name in job.settings}
        run = {"stage": job.stage, "source": shown(job.source), "key": key_of_parts(parts), "components": parts}
    return entry_of(job.stage, out, commit, code, run, keys_of(job, out, about, commit, trees))


def resolved(root: str):
    import pkgutil

    return pkgutil.resolve_name(root)


# ------------------------------------------------------------------------------------------- keys beside and in results


def keys_of(job: Job, out: Path, about: dict, commit: str, trees: Trees) -> dict[str, str]:
    """Old keys of a result → new ones: code of the commit, identity by today's functions from what the result says."""
    if not job.cell:
        return offline_keys(out, commit, trees) if out.name == "cells.csv" else {}
    cell = Cell.parse(job.cell)
    settings = Settings(PROFILE, (cell,), "", "cpu")
    weights = paths.TEACHERS / f"{cell}.safetensors"
    if not unchanged_since(commit, weights):
        raise KeyError("its teacher is not the one of its commit")
    keys = {}
    if "distillation_key" in about:
        now = distillation.distillation_key(settings, cell)
        roots = (*distillation.COLLECTED_BY, distillation.train_corrector, CORRECTORS[distillation.ACTING])
        keys[about["distillation_key"]] = f"{trees.fingerprint(commit, *roots)}-{rest_of(now)}"
    files = {arch: distillation.corrector_path(settings, cell, arch) for arch in CORRECTORS}
    files = {arch: file for arch, file in files.items() if file.is_file()}
    stage = evaluate.Stage.of(cell, "paper", corrector_files=files, decisions=PROFILE.decisions)

    def key(arm, decisions: int, *more) -> str:
        if arm.corrector and not unchanged_since(commit, files[arm.corrector]):
            raise KeyError(f"the corrector of {arm.name} is not the one of its commit")
        now = evaluate.arm_key(arm, cell, str(cell), files.get(arm.corrector), decisions)
        return f"{trees.fingerprint(commit, *evaluate.arm_roots(arm), *more)}-{rest_of(now)}"

    for arm in about.get("arms", {}).values():
        keys[arm["key"]] = key(recorded(arm), arm["decisions"])
    if out.name.endswith("-calibration.json"):
        import json

        learnt = distillation.distillation_key(settings, cell)
        for name, numbers in json.loads(out.read_text(encoding="utf-8")).items():
            arm = make_arm(name, PlannerConfig.standard(stage.wm.action_dim), calibrate.UNCALIBRATED)
            now = calibrate.calibration_key(stage, arm, learnt, PROFILE.calibrate_episodes)
            more = (*distillation.COLLECTED_BY, calibrate.calibrate_ladder, calibrate.calibrate)
            there = trees.fingerprint(commit, *evaluate.arm_roots(arm), *more)
            keys[numbers["key"]] = f"{there}-{rest_of(now)}"
    if out.name.endswith("-action-error.csv"):
        import dataclasses

        standard = PlannerConfig.standard(stage.wm.action_dim)
        for name, old in about["keys"].items():
            arm = make_arm(name, standard)
            now = action_error.error_key(stage, arm, standard, PROFILE.error_states)
            there = trees.fingerprint(commit, *evaluate.arm_roots(arm), action_error.measure)
            keys[old] = f"{there}-{rest_of(now)}"
        del dataclasses
    if "latency" in out.parts:
        keys[about["key"]] = latency_key(stage, cell, out)
    return keys


def latency_key(stage, cell: Cell, out: Path) -> str:
    """Today's key of the step times of all arms that the table has, which must be those that the profile times."""
    standard = PlannerConfig.standard(stage.wm.action_dim)
    counts = next(counts for cells, counts in PROFILE.episodes if fnmatchcase(str(cell), cells))
    names = list(map(arm_name, counts))
    parallel = [name for name in names if name in map(arm_name, PROFILE.batch_arms)]
    work = {1: (names, PROFILE.latency_decisions), evaluate.BLOCK: (parallel, PROFILE.batch_decisions)}
    table = store.read_table(out)
    for batch, (wanted, _) in work.items():
        if set(table.loc[table["batch"] == batch, "arm"]) != set(wanted):
            raise KeyError(f"batch {batch} has other arms than the profile times")
    import json

    numbers = paths.results("paper") / "corrector" / f"{cell}-calibration.json"
    calibrated = json.loads(numbers.read_text(encoding="utf-8"))
    return steps.steps_key(stage, standard, calibrated, work, PROFILE.compile_all)[1]


def offline_keys(out: Path, commit: str, trees: Trees) -> dict[str, str]:
    import torch

    del torch
    from lib.planner import MPPI
    from lib.world_model import WorldModel

    there = trees.fingerprint(commit, Bench, WorldModel, MPPI)
    rows = store.read_table(out)
    return {
        row["key"]: f"{there}-{rest_of(row_key(row['weights'], row['task'], PROFILE.offline))}"
        for row in rows.to_dict("records")
    }


if __name__ == "__main__":
    sys.exit(main())
