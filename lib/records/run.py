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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lib.config import ConfigError, one_of
from lib.records import attempts, paths, settled, store
from lib.records.ending import child, endable
from lib.records.executors import RUNNER, Here, SideBySide, carry_through, cores, sentence
from lib.records.fingerprint import FingerprintError
from lib.records.freshness import age, components, key_of_parts, reasons, stale
from lib.records.graph import Node, plan
from lib.records.jobs import Job, Scope, profile
from lib.records.keys import ResultError, shown
from lib.records.notebook import RunError, at_home, execute, python_path, read_parameters
from lib.records.pipeline import jobs

# -------------------------------------------------------------------------------------------------------- running


def attempt(profile: str, name: str, job: Callable[[], Job], again: bool = False) -> None:
    """Make the results of a job, unless they are fresh by then, while nobody else does; a record says what came of it.

    `job` gives the job as the files that are there when its turn comes have it.
    """
    possible(job())
    with attempts.held(profile, name):
        found, started = job(), time.time()
        if not again and not stale(found):
            return unchanged(found)
        try:
            run(found, components(found))
        except (RunError, ResultError) as error:
            attempts.note(profile, name, found.stage, started, str(error))
            raise
        attempts.note(profile, name, found.stage, started)


def unchanged(job: Job) -> None:
    print("\n".join(f"unchanged {shown(out)}" for out in job.outs), flush=True)


def possible(job: Job) -> None:
    """Raise `RunError` where an input is missing or a result cannot be written."""
    for need in job.needs:
        if not need.is_file():
            raise RunError(f"{shown(need)}, which {shown(job.source)} needs, is missing; {store.how_to_make(need)}.")
    for out in (*job.outs, *([job.evidence] if job.evidence != job.source else [])):
        folder = next(parent for parent in out.parents if parent.is_dir())
        if not os.access(folder, os.W_OK):
            raise RunError(f"{shown(out)} cannot be written: {shown(folder)} is read-only; work in a copy elsewhere.")


def run(job: Job, parts: dict) -> None:
    """Run the source; every result must be written anew, with the key in its sidecar."""
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


def report(job: Job, parts: dict, fresh_too: bool, lines: dict[str, str]) -> None:
    """Print "stale" and why, or "fresh", for each result; of stale ones that is added to `lines`."""
    waiting = [f"input {name} is stale" for name in parts["inputs"] if name in lines]
    for out, (why, minutes) in reasons(job, parts).items():
        if why := why or (", ".join(waiting) if out in job.outs else ""):
            about = "" if minutes is None else "; under 1 min" if minutes < 1 else f"; about {minutes:.0f} min"
            lines[shown(out)] = f"{shown(out)} ({why}{about})"
            print(f"stale: {lines[shown(out)]}", flush=True)
        elif fresh_too:
            print(f"fresh: {shown(out)}{age(job, out)}", flush=True)


def tell_attempt(job: Job, stale: bool) -> None:
    """Print who is making a job's results now, or why the last attempt did not."""
    place = attempts.log(job.profile, job.name)
    words = f"; its words are in {shown(place)}" if place.is_file() else ""
    if who := attempts.holder(job.profile, job.name):
        since = (time.time() - who.get("since", time.time())) / 60
        print(f"running: {job.name} ({attempts.in_words(who)} for {since:.0f} min{words})", flush=True)
    elif stale and (why := attempts.last(job.profile, job.name).get("failed")):
        print(f"failed: {job.name} ({why.rstrip('.')}{words})", flush=True)


# --------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Command:
    """Run what is stale in a profile, or say what is."""

    # warn: as status, but make summaries, claims and figures anew, and keep what is stale for the paper
    verb: tyro.conf.Positional[Literal["run", "status", "warn"]]
    profile: str = "quick"  # smoke, quick or paper
    cells: str = ""  # <task>-<size>-<seed> and more of them; empty: the profile's
    only: str = ""  # some stages by name; empty: all
    again: bool = False  # run: also what is fresh; what has a key of its own (episodes, weights) is not made again
    jobs: int = 0  # run: how many side by side, with the cores shared out; 0: two in quick where there are two cores
    # run: local, or jobs of a cluster by submitit: slurm, or submitit, which is processes of this machine again
    executor: Literal["local", "slurm", "submitit"] = "local"
    partition: str = ""  # of the cluster
    pdf: bool = False  # run: then build the paper, build/<profile>/paper.pdf
    job: str = ""  # run: one job by its name, in this process, as another runner asks for it

    def __post_init__(self):
        if self.jobs < 0:
            raise ConfigError(f"jobs={self.jobs} must be at least 1; leave it out, or 0, for the profile's own.")

    @property
    def asked(self) -> str:
        """What is looked at, in words."""
        return f"cells {self.cells or 'all'}, stages {self.only or 'all'}"

    @property
    def side_by_side(self) -> int:
        """Where no job is long, as in quick, two of one thread each end sooner than one after another of two."""
        return self.jobs or (2 if self.profile == "quick" and cores() > 1 else 1)


def carry_out(command: Command) -> None:
    """Go through the jobs, each when those before it are done."""
    scope = Scope.of(profile(command.profile), tuple(command.cells.split()))
    if command.verb == "run":
        run_all(command, scope)
        return build(command) if command.pdf else None
    listed = paths.executed(command.profile) / ("status.txt" if command.verb == "status" else "stale.txt")
    lines: dict[str, str] = {}
    for job in jobs(scope, tuple(command.only.split())):
        parts = components(job)
        if not (command.verb == "warn" and of_tables(job.stage) and all(need.is_file() for need in job.needs)):
            before = len(lines)
            report(job, parts, command.verb == "status", lines)
            if command.verb == "status":
                tell_attempt(job, len(lines) > before)
        elif stale(job):
            attempt(command.profile, job.name, lambda job=job: job)
        else:
            unchanged(job)
    with contextlib.suppress(*[ResultError] if command.verb == "status" else []):  # it was said, and can be no more
        store.write_text(listed, "".join(f"{line}\n" for line in lines.values()))


def of_tables(stage: str) -> bool:
    """Whether a stage makes something of tables alone, in a minute at most: a summary, what is concluded, a figure."""
    return stage in ("summary", "claims") or stage.endswith(("-summary", "-figure"))


def run_all(command: Command, scope: Scope) -> None:
    """Run what is stale; `RunError` that names what failed, when all that does not wait for it is done."""
    (paths.executed(command.profile) / "stale.txt").unlink(missing_ok=True)
    only = tuple(command.only.split())
    started, asked, nodes = time.time(), [], plan(scope, only)
    code, now = settled.code(), settled.state(command.profile)
    own = any("--" in cell for cell in scope.cells)  # their environments may be in files that nobody looks at here
    if not (command.again or command.job or own) and settled.known(command.profile, command.asked) == now:
        for node in nodes:
            unchanged(node.job(scope))
        return

    def wanted(node: Node) -> bool:
        """Whether it is not fresh, or may yet be changed or put back by another runner that is at it."""
        if found := command.again or attempts.holder(command.profile, node.name) or stale(node.job(scope)):
            asked.append(node)
        else:
            unchanged(node.job(scope))
        return bool(found)

    def alone(node: Node) -> None:
        attempt(command.profile, node.name, lambda: node.job(scope), command.again)

    if command.job:
        return alone(next(node for node in nodes if node.name == one_of("job", command.job, [n.name for n in nodes])))
    count = command.side_by_side
    executor = Here(scope, alone)
    if command.executor != "local":
        from lib.records.cluster import Cluster

        kind = {"slurm": "slurm", "submitit": "local"}[command.executor]
        executor = Cluster(scope, lambda node: worker(command, node), kind, command.partition)
    elif count > 1:
        executor = SideBySide(scope, count, lambda node: worker(command, node))
    failed, left = carry_through(nodes, wanted, executor)
    taken: dict[str, list[float]] = {}
    for node in asked:
        if (last := attempts.last(command.profile, node.name)).get("ended", 0) >= started:
            taken.setdefault(node.stage.name, []).append(last["minutes"])
    if taken:
        print(attempts.table(taken, (time.time() - started) / 60), file=sys.stderr, flush=True)
    if failed:
        raise RunError(sentence(failed, left))
    if asked:  # what was run is looked at once more, so that nothing is remembered that was changed meanwhile
        now = settled.state(command.profile)
        if any(stale(node.job(scope)) for node in plan(scope, only)):
            return
    if settled.code() == code and settled.state(command.profile) == now:
        settled.remember(command.profile, command.asked, now)


def build(command: Command) -> None:
    """The PDF, of what is there, unless nothing has changed since it was built."""
    path = paths.executed(command.profile) / "paper.pdf"

    def what() -> str:
        return settled.line_of(path, path.stat()) if path.is_file() else ""

    now = settled.state(command.profile)
    if what() and settled.known(command.profile, what()) == now:
        return print(f"unchanged {shown(path)}", flush=True)
    words = child(str(paths.PAPER / "build.py"), "--profile", command.profile)
    if subprocess.run(words, cwd=paths.ROOT, env={**os.environ, "PYTHONPATH": python_path()}).returncode:
        raise RunError("the paper was not built; its error is above.")
    if settled.state(command.profile) == now:
        settled.remember(command.profile, what(), now)


def worker(command: Command, node: Node) -> list[str]:
    """The command that carries out one job."""
    words = ["--profile", command.profile, "--cells", command.cells, "--only", node.stage.name, "--job", node.name]
    return [sys.executable, "-m", "lib.records.run", "run", *words, *["--again"] * command.again]


def guarded(work: Callable[[], None], parent: int | None = None) -> int:
    """Do what a command line says; one sentence and an exit status for what goes wrong. parent: as for `following`."""
    try:
        with endable(parent), at_home():
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
    # Nobody means a job to go on alone: it ends with its runner, also where nohup has started that.
    return guarded(lambda: carry_out(command), int(os.environ.get(RUNNER, 0)) if command.job else None)


if __name__ == "__main__":
    sys.exit(main())
