"""Whether anything has changed since everything was found fresh: the states of all files that freshness depends on.

    now = state("quick")
    known("quick", "cells all, stages all") == now      # nothing has changed: nothing has to be read, or imported
    remember("quick", "cells all, stages all", now)

A state is of names, sizes, numbers and the times of the last change of any kind (ctime, which nobody can set), as git's
index has them. A clone, a copy or a touched file is looked at in full, once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.files import files, held
from lib.records import ledger, paths, store

SOURCES = ("lib", "notebooks", "paper", "figures")
PACKAGES = {"__pycache__"}


def place(profile: str) -> Path:
    return paths.CACHE / "settled" / f"{paths.named('profile', profile)}.json"


def known(profile: str, what: str) -> str:
    """The state in which all of `what` was last found fresh; "" if it never was."""
    return str(_kept(profile).get(what, ""))


def _kept(profile: str) -> dict:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(place(profile).read_text(encoding="utf-8")))
    return {}


def remember(profile: str, what: str, now: str) -> None:
    """Keep that all of `what` is fresh in this state, where that can be written, and what else was found in it."""
    if os.access(next(p for p in place(profile).parents if p.is_dir()), os.W_OK):
        others = {other: state for other, state in _kept(profile).items() if state == now}
        store.write_json(place(profile), others | {what: now})


def state(profile: str) -> str:
    """One checksum of the states of code, results, figures, teachers and ledger."""
    results = (paths.results(profile), paths.figures(profile), paths.TEACHERS, paths.CACHE / "teachers")
    single = (ledger.file(), *files(paths.DATA, "*.csv"))
    about = [code(), *(line for folder in results for line in states(folder))]
    about += [line_of(path, path.stat()) for path in single if path.is_file()]
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("SPECULATIVE_TDMPC2_"))
    return hashlib.sha256("\n".join([*about, *settings]).encode()).hexdigest()


def code() -> str:
    """The same of code alone."""
    lines = [sys.version]
    for folder in SOURCES:
        lines += states(paths.ROOT / folder, folders=folder != "figures")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def states(folder: Path, folders: bool = True) -> Iterator[str]:
    """A line for each file below a folder, or in it alone, in a fixed order; what is being written is left out."""
    try:
        names = held(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith(".") or name in PACKAGES:
            continue
        path = folder / name
        about = path.stat() if path.exists() else path.lstat()  # of a link to nothing
        if stat.S_ISDIR(about.st_mode):
            yield from states(path) if folders else ()
        else:
            yield line_of(path, about)


def line_of(path: Path, about: os.stat_result) -> str:
    """The state of one file."""
    return f"{path} {about.st_size} {about.st_ino} {about.st_mtime_ns} {about.st_ctime_ns}"
