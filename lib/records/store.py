"""Result files: written atomically, with a sidecar that says how they came about, and compared by content.

    write_table(results("quick") / "horizon" / "walker-walk-1m-1.csv", rows, seed=1, episodes=50)
    table = read_table(results("quick") / "horizon" / "walker-walk-1m-1.csv")
    key = key_of([collect], settings, content_hash(teacher))
    path = cached(CACHE / "pairs.safetensors", key, lambda path: save_file(collect(), path), "distillation set")

A sidecar is written once, by the process that has just written the result, and never edited.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.files import temporary, unwritable
from lib.records import ledger
from lib.records.keys import ResultError, file_hash, plain, shown
from lib.records.paths import ROOT

RUN = "SPECULATIVE_TDMPC2_RUN"  # environment variable: a JSON file with the record of the run that is going on


def how_to_make(path: str | Path) -> str:
    """The command that makes a missing file, for the end of an error message."""
    parts = Path(shown(path)).parts
    if parts[:2] == ("data", "teachers"):
        return "run `make teachers` to train it"
    if parts[:2] != ("data", "results") or len(parts) < 5:
        return "run `make all`"
    from lib.records.pipeline import made_by

    command = f"run `make all PROFILE={parts[2]}`"
    source = made_by("/".join(parts[3:]))
    if source.endswith(".ipynb"):
        command += f" or `papermill {source} build/out.ipynb -p profile {parts[2]}`"
    return command


# ------------------------------------------------------------------------------------------------ writing, reading


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path` in one step, on failure it is removed.

    Whoever reads `path` sees the old file or the whole new one, also after `kill -9` or a power cut. Missing folders
    are made. Raises `ResultError` if nothing was written to the temporary path, and where nothing can be.
    """
    path = Path(path)
    with explained(path), temporary(path) as place, explained(path):
        yield place
        if not place.exists():
            raise ResultError(f"Nothing was written for {shown(path)}; the writer must fill the path it is given.")
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(place, path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of a disk that is full and of a folder that is read-only into a `ResultError` that names `path`."""
    try:
        yield
    except (ResultError, ValueError):
        raise
    except Exception as error:  # what libraries raise for a full disk is of many kinds
        if why := unwritable(error, path):
            raise ResultError(f"{shown(path)} cannot be written: {why}.") from error
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` with \\n line ends to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value) -> None:
    """Write `value` (dataclasses, paths and numpy scalars too) as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=1, default=plain, ensure_ascii=False) + "\n")


def write_table(path: str | Path, rows, **provenance) -> Path:
    """Write `rows` (a DataFrame, or dicts whose keys may differ) as tidy CSV, and the sidecar with `provenance`.

    Floats keep full precision; None, NaN and absent keys become empty cells. Raises `ResultError` for no columns at all
    and for a cell that is not a plain number, string or boolean.
    """
    if hasattr(rows, "to_dict"):
        columns = [str(name) for name in rows.columns]
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    else:
        rows = list(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise ResultError(f"No rows to write to {shown(path)}; give rows, or an empty DataFrame that has its columns.")
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(path, name, row.get(name)) for name in columns] for row in rows)
    return describe(path, **provenance)


def write_artefact(path: str | Path, writer: Callable[[Path], object], **provenance) -> Path:
    """Let `writer(temporary_path)` write a file of any format, put it at `path` atomically, and add the sidecar."""
    with atomic_path(path) as temporary:
        writer(temporary)
    return describe(path, **provenance)


def read_table(path: str | Path):
    """The CSV at `path` as a pandas DataFrame (floats exactly as written, only empty cells missing).

    Raises `ResultError` that names the file and the command that makes it.
    """
    if not Path(path).is_file():
        raise ResultError(f"{shown(path)} does not exist; {how_to_make(path)}.")
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def sidecar(path: str | Path) -> Path:
    """Where the provenance of `path` is kept: `<path>.meta.json`."""
    return Path(f"{path}.meta.json")


def read_sidecar(path: str | Path, *needed: str) -> dict:
    """The provenance of `path`, which has the `needed` entries.

    Raises `ResultError` if it is missing, or is not what this file writes: not JSON, or JSON of another shape.
    """
    beside = shown(sidecar(path))
    try:
        about = json.loads(sidecar(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{beside} does not exist; {how_to_make(path)}.") from None
    except (OSError, ValueError, RecursionError):
        raise ResultError(f"{beside} is not JSON; delete it, then {how_to_make(path)}.") from None
    if wrong := _misfit(about, SHAPE):
        raise ResultError(f"{beside} is damaged, {wrong}; delete it, then {how_to_make(path)}.")
    if lacking := [name for name in needed if name not in about]:
        raise ResultError(f"{beside} names no {' and no '.join(lacking)}; delete it, then {how_to_make(path)}.")
    return about


def known(path: str | Path) -> dict:
    """The same for who can do without: {} for a sidecar that is missing or damaged."""
    try:
        return read_sidecar(path)
    except ResultError:
        return {}


# The entries of sidecars that are read, where there are any; ... stands for every other name. The first edition kept
# code by its parts.
SHAPE = dict.fromkeys(("sha256", "commit", "written", "machine", "remark", "key", "task", "teacher"), str)
SHAPE |= {"distillation_key": str, "arms": {...: dict}, "keys": dict, "product_gflops": {...: (int, float)}}
SHAPE["run"] = {"stage": str, "source": str, "key": str, "minutes": (int, float)}
SHAPE["run"] |= {"components": {"code": (str, dict), "parameters": dict, "settings": dict, "inputs": dict}}


def _misfit(value, shape, name: str = "the whole") -> str:
    """Where `value` is not of a shape, which is a type, types, or a dict of shapes; "" if it is."""
    kinds = dict if isinstance(shape, dict) else shape
    if not isinstance(value, kinds):
        return f"{name} being {'null' if value is None else f'a {type(value).__name__}'}"
    if kinds is not dict or not isinstance(shape, dict):
        return ""
    wrong = (_misfit(each, shape.get(key, shape.get(..., object)), repr(key)) for key, each in value.items())
    return next(filter(None, wrong), "")


def describe(path: str | Path, **provenance) -> Path:
    """Write the sidecar of the file `path`, which must just have been written: `provenance`, its sha256, git commit,
    versions, machine, UTC time, and, where the runner (`lib.records.run`) asked for the file, the run's own record.

    Raises `ResultError` when the sidecar there is as new as the file: it is of that file, and sidecars are not edited.
    """
    beside = sidecar(path)
    if beside.is_file() and beside.stat().st_mtime_ns >= Path(path).stat().st_mtime_ns:
        raise ResultError(f"{shown(beside)} was written with its result and is not edited; write the result anew.")
    facts = {
        "sha256": file_hash(path),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(beside, {**provenance, **_run_of(path), **facts})
    return Path(path)


def _run_of(path: str | Path) -> dict:
    """The record of the run that is going on, if `path` is one of its results."""
    if not (place := os.environ.get(RUN)) or not Path(place).is_file():
        return {}
    run = json.loads(Path(place).read_text(encoding="utf-8"))
    if shown(path) not in run["outs"]:
        return {}
    return {"run": run["record"] | {"minutes": round((time.time() - run["started"]) / 60, 3)}}


@functools.cache
def commit() -> str:
    """The git commit of the code that runs, with "+" where its files differ from it; "" without git."""
    import subprocess

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--", "lib", "notebooks", "paper") else "")
    except OSError:
        return ""


def commit_of(path: str | Path) -> str:
    """The commit whose code made a result: as its sidecar says, else as the ledger adopted it; "" if neither knows."""
    return known(path).get("commit") or (ledger.adopted(Path(path)) or {}).get("commit", "")


def committed(path: str | Path) -> str:
    """The commit that has a file as it is now: the last one that changed it; "" where git has no such file, or differs.

    A file that git ignores, or that is outside of any repository, is not committed.
    """
    import subprocess

    def git(*words: str) -> str:
        place = ["git", "-C", str(Path(path).resolve().parent), "-c", "core.quotePath=false"]
        return subprocess.run([*place, *words, "--", Path(path).name], capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--ignored", "--untracked-files=all")
        return "" if changed else git("log", "-1", "--format=%H")
    except OSError:  # there is no git, or no such folder
        return ""


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; a package that is not installed is left out."""
    from importlib import metadata

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "numpy", "mujoco", "dm_control", "gymnasium"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> str:
    """Cores, processor and system, and the GPU if torch is loaded and sees one."""
    import platform

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the line above has to do
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = names[0] if names else processor
    text = f"{os.cpu_count()} × {processor}, {platform.system()} {platform.machine()}"
    torch = sys.modules.get("torch")
    return f"{text}, {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else text


def cached(path: str | Path, key: str, make: Callable[[Path], object], what: str, **provenance) -> Path:
    """Return `path` if it is intact and its key is the same; else say so and let `make(temporary_path)` make it."""
    path = Path(path)
    if intact(path) and ledger.same(known(path).get("key"), key):
        return path
    print(f"making {what}: {shown(path)}", file=sys.stderr, flush=True)
    start = time.monotonic()
    with atomic_path(path) as temporary:
        make(temporary)
    return describe(path, **provenance, key=key, minutes=round((time.monotonic() - start) / 60, 3))


def intact(path: str | Path) -> bool:
    """Whether `path` exists and is, byte for byte, what its sidecar describes."""
    return Path(path).is_file() and known(path).get("sha256") == file_hash(path)


def _cell(path: str | Path, column: str, value) -> str:
    """One CSV cell: full precision, and empty when missing."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value != value:
        return ""
    if not isinstance(value, (str, int, float)):
        raise ResultError(
            f"Column {column!r} of {shown(path)} holds a {type(value).__name__}; give one number or string."
        )
    return repr(value) if isinstance(value, float) else str(value)
