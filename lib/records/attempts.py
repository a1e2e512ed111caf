"""Who is making what: each job has a lock, and a record of its last attempt, in `data/cache/jobs/<profile>/`.

    with held("quick", "horizon-walker-walk-1m-1"):      # waits for whoever holds it, saying so once
        ...
    holder("quick", "horizon-walker-walk-1m-1")          # {"host": …, "pid": …, "since": …}, or None

The lock is the operating system's (`flock`): it ends with the process that holds it, however that dies, and holds among
machines that share a file system which knows such locks. Results are named by no such file: whoever removes the folder
loses nothing but minutes and reasons.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two runners on one checkout do not see each other
    fcntl = None

from lib.records import paths, store

LOOK = 0.2  # seconds from one look at a lock to the next


def folder(profile: str) -> Path:
    return paths.CACHE / "jobs" / paths.named("profile", profile)


def log(profile: str, name: str) -> Path:
    """What a job that has no terminal of its own prints."""
    return paths.executed(profile) / "logs" / f"{name}.txt"


# ---------------------------------------------------------------------------------------------------------- the lock


@contextlib.contextmanager
def held(profile: str, name: str) -> Iterator[None]:
    """Hold a job's lock in the block, first waiting for whoever has it."""
    with store.explained(place := folder(profile) / f"{name}.lock"):
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("a+")  # the file stays: who removed it would take the lock from who waits for it
    with file:
        looks = 0
        while not _taken(file):
            if looks == 1:  # at the first, somebody may only have asked who holds it
                print(f"waiting for {name}, which {in_words(_said(place))} is making", file=sys.stderr, flush=True)
            looks += 1
            time.sleep(LOOK)
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "since": time.time()}))
        file.flush()
        yield


def holder(profile: str, name: str) -> dict | None:
    """Who holds a job's lock, as it said of itself; None if nobody does."""
    place = folder(profile) / f"{name}.lock"
    if not place.is_file():
        return None
    try:
        with place.open("r") as file:
            return None if _taken(file, shared=True) else _said(place)
    except OSError:
        return None


def in_words(who: dict) -> str:
    return f"process {who.get('pid', '?')} of {who.get('host', '?')}"


def _taken(file, shared: bool = False) -> bool:
    """Whether the lock is now ours; also where the file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"warning: no locks on this file system ({error.strerror}); start one `make` at a time", file=sys.stderr)
    return True


def _said(place: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(place.read_text(encoding="utf-8")))
    return {}


# ----------------------------------------------------------------------------------------------------- the last attempt


def note(profile: str, name: str, stage: str, started: float, failed: str = "") -> None:
    """Keep what came of a job that began at `started`, in seconds of the clock; `failed` says why it did, if so."""
    about = {"stage": stage, "minutes": round((time.time() - started) / 60, 3), "failed": failed, "ended": time.time()}
    store.write_json(folder(profile) / f"{name}.json", about | {"host": platform.node()})


def last(profile: str, name: str) -> dict:
    """What came of a job's last attempt: stage, minutes, failed, ended, host; {} if nobody knows."""
    return _said(folder(profile) / f"{name}.json")


def table(taken: dict[str, list[float]], wall: float) -> str:
    """Stage → minutes of its jobs, as lines of a table, longest first; `wall` are the minutes of the clock."""
    whole = sum(map(sum, taken.values()))
    lines = [f"{'stage':24} {'jobs':>5} {'minutes':>8} {'share':>6}"]
    for stage, minutes in sorted(taken.items(), key=lambda item: -sum(item[1])):
        share = sum(minutes) / whole if whole else 0
        lines.append(f"{stage:24} {len(minutes):5} {sum(minutes):8.1f} {share:6.0%}")
    lines.append(f"{'all':24} {sum(map(len, taken.values())):5} {whole:8.1f} in {wall:.1f} minutes")
    return "\n".join(lines)
