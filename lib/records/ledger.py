"""The ledger: which code was shown to do the same as which, and how the first results entered.

    same(kept_key, todays_key)        # equal, or equal but for code that audits have shown to be equal
    append({"kind": "audit", "stage": "corrector", "old": …, "new": …, "equal": True, …})

`data/results/ledger.jsonl` is committed and only ever grows, a line of JSON at a time. An "audit" entry compares two
fingerprints of code by what they did; only `equal: true` makes anything fresh, and a pair that was once found unequal
is never taken for equal. An "adopted" entry says which code, parameters and inputs a result of the first edition was
made of, which its own sidecar, being never edited, does not.
"""

from __future__ import annotations

import errno
import functools
import json
import os
from pathlib import Path

from lib.records import paths
from lib.records.keys import ResultError, combine, content_hash, plain, shown

NEEDED = {"audit": {"old", "new", "equal"}, "adopted": {"result", "keys"}}  # kind → what is read


def file() -> Path:
    """Where the ledger is."""
    return paths.DATA / "results" / "ledger.jsonl"


def entries() -> tuple[dict, ...]:
    """All entries, oldest first; a line cut short at the end is none. `ResultError` for another that is no JSON."""
    return _read(*_state())[0]


def _state() -> tuple[Path, int, int]:
    path = file()
    return (path, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else (path, 0, 0)


@functools.lru_cache(maxsize=2)
def _read(path: Path, _changed: int, size: int) -> tuple[tuple[dict, ...], dict[str, str]]:
    """The entries, and the names that adopted keys have now."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n") if size else [""]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            raise ResultError(f"{shown(path)}:{number} is not JSON; restore the ledger from git.") from None
        if not isinstance(found[-1], dict) or not NEEDED.get(found[-1].get("kind"), {"?"}) <= found[-1].keys():
            raise ResultError(f"{shown(path)}:{number} is no entry of the ledger; restore the ledger from git.")
    return tuple(found), {old: new for e in found if e["kind"] == "adopted" for old, new in e["keys"].items()}


def append(entry: dict) -> None:
    """Add an entry, in one write that is on the disk before this returns."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry, default=plain, ensure_ascii=False) + "\n"
    if path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)  # what a killed writer left of a line
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(handle, line.encode()) < len(line.encode()):  # the rest is cut off by who writes next
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(handle)
    finally:
        os.close(handle)


def equals(code: str) -> set[str]:
    """The fingerprints that chains of equal entries lead to from this one, itself included."""
    audits = [entry for entry in entries() if entry["kind"] == "audit"]
    unequal = {frozenset((e["old"], e["new"])) for e in audits if not e["equal"]}
    found, grown = {code}, True
    while grown:
        pairs = ({e["old"], e["new"]} for e in audits if e["equal"] and frozenset((e["old"], e["new"])) not in unequal)
        before = len(found)
        for pair in pairs:
            if pair & found:
                found |= pair
        grown = len(found) > before
    return {other for other in found if frozenset((code, other)) not in unequal}


def representative(code: str) -> str:
    """One fingerprint for all that are shown to be equal: that of them which the ledger names first."""
    mine = equals(code)
    named = (entry[side] for entry in entries() if entry["kind"] == "audit" for side in ("old", "new"))
    return next((other for other in named if other in mine), code) if len(mine) > 1 else code


def same(kept: str | None, now: str) -> bool:
    """Whether two keys (`key_of`) are of one content and of code that is equal, or shown to be."""
    if (kept := renamed(kept or "")).count("-") != 1:
        return False
    (old, old_rest), (new, new_rest) = kept.split("-"), now.split("-")
    return old_rest == new_rest and new in equals(old)


def renamed(key: str) -> str:
    """A key of the first edition, as sidecars and tables have it, as what it is now; any other as it is."""
    return _read(*_state())[1].get(key, key)


def name_of(key: str) -> str:
    """A short name for files that are kept under a key, the same for keys that are the same."""
    code, rest = key.split("-")
    return combine(representative(code), rest)[:24]


def adopted(path: Path) -> dict | None:
    """The "adopted" entry of a result, if its content is still what was adopted."""
    name = shown(path)
    found = [entry for entry in entries() if entry["kind"] == "adopted" and entry["result"] == name]
    return found[-1] if found and found[-1]["content"] == content_hash(path) else None
