"""Which files there are, and how a new one comes: what begins with a dot is being written, and nobody's to read.

    for path in files(folder, "*.csv"): ...
    with temporary(folder / "a.csv") as place: ...       # beside it, where no reader looks

A writer that was killed leaves its temporary file; the next one that writes into that folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = 2**16  # bytes left on a disk that is as good as full
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def files(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` that match a pattern of `Path.glob`, sorted. What begins with a dot, or lies in a folder
    that does, is half-written and no file of ours."""
    found = (path for path in Path(folder).glob(pattern) if path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def held(folder: Path) -> list[str]:
    """Sorted names of all that a folder holds, hidden and half-written things too."""
    return sorted(entry.name for entry in os.scandir(folder))


def numbered(folder: Path, suffix: str = ".safetensors") -> dict[int, Path]:
    """The files of `folder` that are named by a number, as snapshots of a training are by their decisions; by it."""
    return dict(sorted((int(p.stem), p) for p in files(folder, f"*{suffix}") if re.fullmatch(r"\d+", p.stem, re.ASCII)))


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file or a folder that is gone at the end, unless it was moved away.

    Missing folders are made. The name says who writes, so that what killed writers left in the folder can go first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    # The suffix stays last: numpy, Altair and others choose the format by it.
    name = f".{path.stem}.{_here()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}"
    try:
        yield path.with_name(name)
    finally:
        remove(path.with_name(name))


def sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` whose writers, processes of this machine, are dead."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".")]
    for name in names:
        match = re.fullmatch(rf"\..*\.{_here()}-(\d{{1,9}})-[0-9a-f]{{8}}\.tmp(\..*)?", name, re.DOTALL)
        if match and not alive(int(match[1])):
            remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and that is possible: what stopped its writer is to be told."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine; of Windows it is not known how to ask."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)  # asks, and does nothing to it
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True


@functools.cache
def _here() -> str:
    """Six digits for this machine, and on Linux for this container: where the number of a process says which it is."""
    where = platform.node()
    with contextlib.suppress(OSError):
        where += os.readlink("/proc/self/ns/pid")  # the same on all machines outside containers
        where += Path("/etc/machine-id").read_text()
    return hashlib.sha256(where.encode()).hexdigest()[:6]


def unwritable(error: Exception, path: Path) -> str:
    """Why `path` cannot be written, and what to do, if that is what `error` says; else ""."""
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    number, names = getattr(error, "errno", None), (getattr(error, "filename", None), getattr(error, "filename2", None))
    named = [Path(name).absolute() for name in names if isinstance(name, (str, os.PathLike))]
    ours = any(name in (path, *path.parents) or name.parent == path.parent for name in named)
    # Not every library hands on what the system said: a disk that is full is enough.
    told = number in NO_SPACE or (number is None and "No space left" in str(error))
    if (told and (ours or not named)) or _is_full(folder):
        return "there is no space left on the disk; make room, then run this again"
    if not ours or not isinstance(error, OSError):
        return ""
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{folder} is read-only, or not this user's to write to; work in a copy elsewhere"
    return f"{error.strerror}: {named[0]}"


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < FULL
    return False
