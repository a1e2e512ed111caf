"""Run a notebook or a figure script if, and only if, its results are not up to date.

    python -m lib.records.run notebooks/01_teacher.ipynb --cell walker-walk-1m-1 -p profile quick \
        --out data/results/quick/teacher/walker-walk-1m-1.csv --needs data/teachers/walker-walk-1m-1.safetensors
    python -m lib.records.run … --mode status     # say "fresh" or "stale" and why; run nothing

A result is up to date when its key is: the sha256 over the code cells, the parameters, the content of the needed files,
the `lib` files that the code imports (without `APART`), and what these read of the profile. The key and its components
are kept in the result's sidecar, so results that come with a clone are not made again. A failed or interrupted run
leaves the earlier results as they were; the executed notebook, traceback included, is kept in `build/<profile>/`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lib.config import ConfigError
from lib.records import keys
from lib.records import store as results
from lib.records.keys import ResultError, shown
from lib.records.notebook import RunError, execute, python_path, read_notebook
from lib.records.paths import ROOT, executed
from lib.study.cells import Cell
from lib.study.profiles import PROFILES


@dataclass
class Job:
    """One source, its parameters, and the files it makes and needs."""

    source: Path
    outs: list[Path]
    needs: list[Path]
    parameters: dict  # all of them for a notebook (defaults included), the given ones for a script
    given: dict  # those that were set on the command line
    code: dict[str, str]  # part of the source -> its text

    @property
    def name(self) -> str:
        return shown(self.source)

    @property
    def evidence(self) -> Path:
        """Where what was run can be read: the executed notebook, or the script itself."""
        if self.source.suffix == ".py":
            return self.source
        return executed(self.parameters.get("profile", "quick")) / f"{self.source.stem}-{self.outs[0].stem}.ipynb"


# ------------------------------------------------------------------------------------------------ keys and reasons

# Modules that count otherwise: of the profiles the values that are read; of weights their files, which are needed ones,
# and not how they are found, read and checked.
APART = ("study/profiles", "weights/native", "weights/names", "weights/official")

LABELS = {"code": "", "parameters": "parameter ", "profile": "the profile's ", "needs": "input ", "lib": ""}


def components(job: Job) -> dict[str, dict]:
    """What the key is made of; kept beside each result so that a later change can be named. A missing need is None."""
    files = {file for text in job.code.values() for file in keys.import_closure(text)}
    files -= {ROOT / "lib" / f"{name}.py" for name in APART}
    texts = [*job.code.values(), *(file.read_text(encoding="utf-8") for file in files)]
    return {
        "code": {part: keys.code_hash(text) for part, text in job.code.items()},
        "parameters": job.parameters,
        "profile": profile_values(texts, job.parameters.get("profile")),
        "needs": {shown(need): keys.content_hash(need) if need.is_file() else None for need in job.needs},
        "lib": keys.code_hashes(sorted(files)),
    }


def profile_values(texts: list[str], profile: str | None) -> dict[str, str]:
    """Hash of each value of the profile that the code reads, which is always written `profile.<name>`."""
    read = {name for text in texts for name in re.findall(r"\bprofile\.([a-z_]+)", text)}
    values = PROFILES.get(profile)
    return {name: keys.combine(getattr(values, name)) for name in sorted(read) if hasattr(values, name)}


def stale_reason(out: Path, parts: dict) -> tuple[str, float | None]:
    """Why `out` is not up to date ("" if it is), and the minutes its last run took, if known."""
    if not out.is_file():
        return "never built", None
    try:
        run = results.read_sidecar(out).get("run")
    except ResultError:
        run = None
    if not run:
        return "made by hand or by a run that did not finish", None
    minutes = run.get("minutes")
    if run.get("key") != keys.combine(parts):
        return ", ".join(changes(run.get("components", {}), parts)) or "the record beside it is damaged", minutes
    return ("" if results.intact(out) else "file changed by hand or half-written"), minutes


def changes(old: dict, new: dict) -> list[str]:
    """The differences between two sets of components, in words."""
    words = []
    for group, label in LABELS.items():
        before, after = old.get(group, {}), new[group]
        for name in {**before, **after}:
            if name not in before:
                words.append(f"{label}{name} is new")
            elif name not in after:
                words.append(f"{label}{name} is gone")
            elif before[name] != after[name]:
                words.append(f"{label}{name} {before[name]} → {after[name]}" if group == "parameters" else
                             f"{label}{name} {'is missing' if after[name] is None else 'changed'}")  # fmt: skip
    return words if len(words) <= 4 else [*words[:3], f"{len(words) - 3} more changes"]


def report(job: Job, parts: dict, mode: str, stale_list: Path | None) -> None:
    """Print "fresh" (mode "status" only) or "stale" and why for each result; stale ones also go to `stale_list`."""
    known = stale_list.read_text(encoding="utf-8").splitlines() if stale_list and stale_list.is_file() else []
    names = [line.split(" (")[0] for line in known]
    waiting = [f"input {name} is stale" for name in parts["needs"] if name in names]
    lines = []
    for out in job.outs:
        reason, minutes = stale_reason(out, parts)
        reason = reason or ", ".join(waiting)
        if reason:
            about = "" if minutes is None else "; under 1 min" if minutes < 1 else f"; about {minutes:.0f} min"
            lines.append(f"{shown(out)} ({reason}{about})")
            print(f"stale: {lines[-1]}")
        elif mode == "status":
            print(f"fresh: {shown(out)}")
    if stale_list and lines:
        results.write_text(stale_list, "\n".join([*known, *lines]) + "\n")


# -------------------------------------------------------------------------------------------------------- running


def run(job: Job, parts: dict) -> None:
    """Run the source, check that it wrote every result, and record the key beside each, last."""
    for need in job.needs:
        if not need.is_file():
            raise RunError(f"{shown(need)}, which {job.name} needs, is missing; {results.how_to_make(need)}.")
    before = {out: stamp(out) for out in job.outs}
    kept = {file: file.read_bytes() if file.is_file() else None
            for out in job.outs for file in (out, results.sidecar(out))}  # fmt: skip
    print(f"running {job.name} for {', '.join(shown(out) for out in job.outs)}", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        if job.source.suffix == ".ipynb":
            execute(job.source, job.evidence, job.given)
        else:
            run_script(job)
        for out in job.outs:
            if stamp(out) == before[out]:
                raise RunError(
                    f"{job.name} ran but did not write {shown(out)}; {shown(job.evidence)} shows what it did."
                )
    except BaseException:
        restore(kept)
        raise
    minutes = round((time.monotonic() - start) / 60, 3)
    record = {"key": keys.combine(parts), "components": parts, "minutes": minutes, "source": job.name}
    for out in job.outs:
        if not results.intact(out):  # the source wrote no sidecar of its own, as figure scripts may
            results.describe(out)
        results.write_json(results.sidecar(out), {**results.read_sidecar(out), "run": record})
        print(f"wrote {shown(out)}")


def stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is written, replaced or touched."""
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None


def restore(kept: dict[Path, bytes | None]) -> None:
    """Put results back as they were before a failed run, except artefacts with a finished key of their own."""
    for file, content in kept.items():
        out = Path(str(file).removesuffix(".meta.json"))
        if results.intact(out) and "key" in results.read_sidecar(out):
            continue
        if content is None:
            file.unlink(missing_ok=True)
        elif not file.is_file() or file.read_bytes() != content:
            results.write_bytes(file, content)


def run_script(job: Job) -> None:
    """Run a script from the repository root with its parameters as `--name value`."""
    options = [text for name, value in job.given.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    status = subprocess.run([sys.executable, str(job.source), *options], cwd=ROOT, env=environment).returncode
    if status:
        raise RunError(f"script failed: {job.name} ended with exit status {status}; its error is above.")


# --------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str] | None) -> tuple[Job, argparse.Namespace]:
    """The command line as a `Job`. Raises `RunError` with exit status 2 for what is not allowed."""
    parser = argparse.ArgumentParser(prog="python -m lib.records.run", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a notebook, or a script that takes its parameters as --name value")
    parser.add_argument("--out", type=Path, action="append", required=True, help="a result file it writes; repeatable")
    parser.add_argument("--needs", type=Path, nargs="*", default=[], help="result and data files it reads")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--cell", help="<task>-<size>-<seed>: sets the parameters task, model_size and seed")
    parser.add_argument("--mode", choices=("run", "status", "warn"), default="run", help="warn: only say what is stale")
    parser.add_argument("--stale-list", type=Path, help="with status or warn: also append stale lines to this file")
    options = parser.parse_args(argv)
    given = dict(options.p)
    if options.cell:
        cell = Cell.parse(options.cell)
        given = {"task": cell.task, "model_size": cell.size, "seed": str(cell.seed), **given}
    source = options.source.resolve()
    if not source.is_file() or source.suffix not in (".ipynb", ".py"):
        raise RunError(f"{options.source} is not a notebook or a script; give one that exists.", 2)
    if source.suffix == ".ipynb":
        parameters, given, code = read_notebook(source, given)
    else:
        parameters, code = given, {"the script": source.read_text(encoding="utf-8")}
    outs, needs = ([path.resolve() for path in paths] for paths in (options.out, options.needs))
    return Job(source, outs, needs, parameters, given, code), options


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    try:
        job, options = parse(argv)
        parts = components(job)
        if options.mode != "run":
            report(job, parts, options.mode, options.stale_list)
        elif any(stale_reason(out, parts)[0] for out in job.outs):
            run(job, parts)
        else:
            print("\n".join(f"unchanged {shown(out)}" for out in job.outs))
    except (RunError, ResultError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunError) else 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("\nstopped; the earlier results are as they were.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
