"""Keys: what a result was made of, so that nothing runs again unless something that it depends on has changed.

    key = key_of(["lib.distil.collect:collect"], settings, content_hash(teacher))     # "<code>-<the rest>"

The first half is a fingerprint of code (`lib.records.fingerprint`), the second a sha256 of settings and of contents of
files. Two keys are the same when the second halves are equal and the first ones are, or are shown to be by an audit
(`lib.records.ledger.same`). Times of files never count, as git does not keep them, nor do columns of timings.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path

from lib.records.paths import ROOT

TIMING = re.compile(r"minutes|seconds|.*(_ms|_minutes|_seconds|_per_s)")  # columns that differ between equal runs


class ResultError(RuntimeError):
    """A result file is missing, damaged or cannot be written; the message says which and what to do."""


def shown(path: str | Path) -> str:
    """A path as it is printed and keyed: relative to the repository, with forward slashes, wherever possible."""
    path = Path(path)
    path = _resolved(path) if path.is_absolute() else path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


@functools.lru_cache(maxsize=100_000)  # each result is shown many times, and a look at every folder above it takes long
def _resolved(path: Path) -> Path:
    return path.resolve()


def file_hash(path: str | Path) -> str:
    """sha256 of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | Path) -> str:
    """sha256 of what a file says: its bytes, except that a CSV's timing columns are left out (see `TIMING`)."""
    if Path(path).suffix != ".csv":
        return file_hash(path)
    digest = hashlib.sha256()
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        timed = {index for index, name in enumerate(header) if TIMING.fullmatch(name)}
        for row in [header, *rows]:
            kept = [cell for index, cell in enumerate(row) if index not in timed]
            digest.update(json.dumps(kept).encode() + b"\n")
    return digest.hexdigest()


def combine(*parts) -> str:
    """One sha256 for JSON-like parts (dataclasses, paths, numpy scalars too); the order of dict keys is immaterial."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(roots, *identity) -> str:
    """The key of what these roots (see `fingerprint`) make of settings, seeds and contents of files."""
    from lib.records.fingerprint import fingerprint

    return f"{fingerprint(*roots)}-{combine(*identity)}"


def keyed(planner) -> dict:
    """A planner's settings as keys have them: how its algorithm is executed does not matter."""
    return {name: value for name, value in plain(planner).items() if name != "mode"}


def rest_of(key: str) -> str:
    """The half of a key that is not code: for keys of what is made of something that has a key."""
    return key.partition("-")[2]


def plain(value):
    """What `json` cannot write by itself, as something it can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return shown(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return value.tolist()
    raise ResultError(f"A {type(value).__name__} cannot be written as JSON; give numbers, strings, lists and dicts.")
