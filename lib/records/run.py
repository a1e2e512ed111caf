"""Run what is stale, or say what is: the verbs of the Makefile.

    python -m lib.records.run run --profile quick            # make all, without the PDF
    python -m lib.records.run status --profile paper         # "fresh" or "stale" and why; runs nothing
    python -m lib.records.run run --profile paper --only horizon --cells walker-walk-1m-1

A result is fresh when its key is the one that it would get now, or differs in code alone that an audit has shown to do
the same (`lib.records.ledger`). The key is of the definitions that its stage reaches, the parameters, the fields of the
profile that the stage reads, and the content of its inputs; it stands in the result's sidecar with its components, so
results that come with a clone are not made again. A failed or interrupted run leaves the earlier results as they were;
the executed notebook, traceback included, is kept in `build/<profile>/`.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lib.config import ConfigError
from lib.records import ledger, paths, store
from lib.records.ending import child, endable
from lib.records.fingerprint import FingerprintError, fingerprint
from lib.records.jobs import Job, Scope, profile
from lib.records.keys import ResultError, combine, content_hash, shown
from lib.records.notebook import RunError, at_home, execute, python_path, read_parameters
from lib.records.pipeline import jobs

LABELS = {"parameters": "parameter ", "settings": "the profile's ", "inputs": "input "}


# ------------------------------------------------------------------------------------------------ keys and reasons


def components(job: Job) -> dict:
    """What the key of a job's results is made of; kept beside each, so that a later change can be named."""
    given = dict(job.parameters)
    if job.source.suffix == ".ipynb":
        given = read_parameters(job.source, given)[0]
    values = profile(job.profile)
    return {
        "code": fingerprint(shown(job.source), *job.roots),
        "parameters": given,
        "settings": {name: combine(getattr(values, name)) for name in job.settings},
        "inputs": {shown(need): content_hash(need) if need.is_file() else None for need in job.needs},
    }


def key_of_parts(parts: dict) -> str:
    """The key that these components make."""
    return f"{parts['code']}-{combine([parts[name] for name in LABELS])}"


def kept_run(out: Path) -> dict | None:
    """The record of the run that made a result: its sidecar's, else what the ledger adopted it with."""
    run = store.known(out).get("run", {})
    if {"stage", "key", "components"} <= run.keys() and run["key"].count("-") == 1:
        return run
    entry = ledger.adopted(out)
    return entry["run"] | {"minutes": run.get("minutes")} if entry else None


def stale_reason(out: Path, parts: dict) -> tuple[str, float | None]:
    """Why `out` is not up to date ("" if it is), and the minutes its last run took, if known."""
    if not out.is_file():
        return "never built", None
    if not (run := kept_run(out)):
        return "made by hand or by a run that did not finish", None
    minutes = run.get("minutes")
    if not ledger.same(run["key"], key_of_parts(parts)):
        return changes(run["components"], parts) or "the record beside it is damaged", minutes
    return ("" if store.intact(out) else "file changed by hand or half-written"), minutes


def changes(old: dict, new: dict) -> str:
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
    if new["code"] not in ledger.equals(str(old.get("code"))):
        words.append("code changed")
    return ", ".join(words if len(words) <= 4 else [*words[:3], f"{len(words) - 3} more changes"])


def stale_rows(job: Job) -> list[str]:
    """Why rows of a job's table are not up to date; rows that are asked for no more do not matter."""
    if not job.rows or not job.outs[0].is_file():
        return []
    try:
        return [row.why for row in pkgutil.resolve_name(job.rows)(job.profile, job.cell) if row.why]
    except (ResultError, ConfigError) as error:
        return [str(error)]


def reasons(job: Job, parts: dict) -> dict[Path, tuple[str, float | None]]:
    """Each result of a job → why it is stale ("" if it is fresh) and the minutes that its last run took."""
    found = {out: stale_reason(out, parts) for out in job.outs}
    found |= {out: ("" if out.is_file() else "never built", None) for out in job.keeps}
    if not found[job.outs[0]][0] and (rows := stale_rows(job)):
        more = f", and {len(rows) - 3} more" if len(rows) > 4 else ""
        found[job.outs[0]] = ", ".join(rows[:3] if more else rows) + more, found[job.outs[0]][1]
    if job.timing:  # measured when somebody asks for it: what code would measure today is another question
        found = {out: (why if why in ("", "never built") else "", minutes) for out, (why, minutes) in found.items()}
    return found


def report(job: Job, parts: dict, fresh_too: bool, stale: list[str]) -> None:
    """Print "stale" and why, or "fresh", for each result; lines of stale ones are added to `stale`."""
    names = [line.split(" (")[0] for line in stale]
    waiting = [f"input {name} is stale" for name in parts["inputs"] if name in names]
    for out, (why, minutes) in reasons(job, parts).items():
        if why := why or (", ".join(waiting) if out in job.outs else ""):
            about = "" if minutes is None else "; under 1 min" if minutes < 1 else f"; about {minutes:.0f} min"
            stale.append(f"{shown(out)} ({why}{about})")
            print(f"stale: {stale[-1]}", flush=True)
        elif fresh_too:
            print(f"fresh: {shown(out)}{age(job, out)}", flush=True)


def age(job: Job, out: Path) -> str:
    """How old timings are: they are of the code and the machine of their day, whatever code says now."""
    if not job.timing and "/latency/" not in shown(out):
        return ""
    day, commit = store.known(out).get("written", "some day")[:10], store.commit_of(out)[:8]
    return f" (timed {day}, {commit or 'before commits were kept'})"


# -------------------------------------------------------------------------------------------------------- running


def run(job: Job, parts: dict) -> None:
    """Run the source; every result must be written anew, with the key in its sidecar."""
    for need in job.needs:
        if not need.is_file():
            raise RunError(f"{shown(need)}, which {shown(job.source)} needs, is missing; {store.how_to_make(need)}.")
    for out in (*job.outs, *([job.evidence] if job.evidence != job.source else [])):
        folder = next(parent for parent in out.parents if parent.is_dir())
        if not os.access(folder, os.W_OK):
            raise RunError(f"{shown(out)} cannot be written: {shown(folder)} is read-only; work in a copy elsewhere.")
    before = {out: stamp(out) for out in job.outs}
    kept = {file: file.read_bytes() if file.is_file() else None
            for out in job.outs for file in (out, store.sidecar(out))}  # fmt: skip
    print(f"running {shown(job.source)} for {', '.join(map(shown, job.outs))}", file=sys.stderr, flush=True)
    record = {"stage": job.stage, "source": shown(job.source), "key": key_of_parts(parts), "components": parts}
    with tempfile.TemporaryDirectory(prefix="lib-record-") as folder:
        place = Path(folder) / "run.json"
        text = {"outs": list(map(shown, job.outs)), "record": record, "started": time.time()}
        store.write_json(place, text)
        os.environ[store.RUN] = str(place)
        try:
            if job.source.suffix == ".ipynb":
                execute(job.source, job.evidence, read_parameters(job.source, job.parameters)[1])
            else:
                run_script(job)
            for out in job.outs:
                if stamp(out) == before[out]:
                    raise RunError(
                        f"{shown(job.source)} ran but did not write {shown(out)}; see {shown(job.evidence)}."
                    )
                # The source may have written no sidecar of its own, as figure scripts do.
                if not store.intact(out) or store.known(out).get("run", {}).get("key") != record["key"]:
                    store.describe(out)
        except BaseException:
            restore(kept)
            raise
        finally:
            del os.environ[store.RUN]
    for out in job.outs:
        print(f"wrote {shown(out)}", flush=True)


def stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is written or replaced."""
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None


def restore(kept: dict[Path, bytes | None]) -> None:
    """Put results back as they were before a failed run. Where that fails, that is said, and not raised: what is to be
    told is why the run failed."""
    for file, content in kept.items():
        try:
            if content is None and file.is_file():
                file.unlink()
            elif content is not None and (not file.is_file() or file.read_bytes() != content):
                store.write_bytes(file, content)
        except (OSError, ResultError) as error:
            print(f"{shown(file)} is not as it was before, as it could not be put back: {error}", file=sys.stderr)


def run_script(job: Job) -> None:
    """Run a script from the repository root with its parameters as `--name value`."""
    options = [text for name, value in job.parameters.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    status = subprocess.run(child(str(job.source), *options), cwd=paths.ROOT, env=environment).returncode
    if status:
        raise RunError(f"script failed: {shown(job.source)} ended with exit status {status}; its error is above.")


# --------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Command:
    """Run what is stale in a profile, or say what is."""

    # warn: as status, but draw figures, and keep what is stale for the paper
    verb: tyro.conf.Positional[Literal["run", "status", "warn"]]
    profile: str = "quick"  # smoke, quick or paper
    cells: str = ""  # <task>-<size>-<seed> and more of them; empty: the profile's
    only: str = ""  # some stages by name; empty: all
    again: bool = False  # run: also what is fresh; what has a key of its own (episodes, weights) is not made again


def carry_out(command: Command) -> None:
    """Go through the jobs, each when those before it are done."""
    scope = Scope.of(profile(command.profile), tuple(command.cells.split()))
    listed = paths.executed(command.profile) / ("status.txt" if command.verb == "status" else "stale.txt")
    stale: list[str] = []
    for job in jobs(scope, tuple(command.only.split())):
        parts = components(job)
        draws = job.stage.endswith("-figure") and command.verb == "warn" and all(n.is_file() for n in job.needs)
        if command.verb != "run" and not draws:
            report(job, parts, command.verb == "status", stale)
        elif command.again or any(why for why, _ in reasons(job, parts).values()):
            run(job, parts)
        else:
            print("\n".join(f"unchanged {shown(out)}" for out in job.outs), flush=True)
    if command.verb == "run" and listed.is_file():
        listed.unlink()
    elif command.verb != "run":
        with contextlib.suppress(*[ResultError] if command.verb == "status" else []):  # it was said, and can be no more
            store.write_text(listed, "".join(f"{line}\n" for line in stale))


def guarded(work: Callable[[], None]) -> int:
    """Do what a command line says; one sentence and an exit status for what goes wrong."""
    try:
        with endable(), at_home():
            work()
    except (RunError, ResultError, FingerprintError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunError) else 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # of a disk, and not of what is written through the store
        print("error:", ": ".join(filter(None, (error.filename, error.strerror or str(error)))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the earlier results are as they were.", file=sys.stderr)
        return 130
    return 0


def main(arguments: list[str] | None = None) -> int:
    command = tyro.cli(Command, prog="python -m lib.records.run", args=arguments)
    return guarded(lambda: carry_out(command))


if __name__ == "__main__":
    sys.exit(main())
