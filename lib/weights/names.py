"""Teachers by name: what `data/teachers/registry.json` and a user's manifest list, and verified downloads of it.

    entry = find("official/dog-run-1")         # None for a name that nobody lists
    path = fetch(entry, check=can_be_loaded)   # from data/cache/teachers/, downloaded unless it is there

A registry is JSON, name -> facts: `url` (or `file`, shipped in data/teachers/), `sha256` (null: not known), `licence`,
`task` or `tasks`, `size`, `note`; a string instead of facts is a remark. `each` repeats an entry: {"task": "a b"} makes
two, with a and b in place of {task} and A and B in place of {TASK}. A user's manifest is such a file, named by
`--manifest` or the environment variable below; its entries replace others of their name.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from lib.records import paths
from lib.records.keys import ResultError, file_hash, shown
from lib.records.store import describe, intact, read_sidecar, sidecar, write_text
from lib.weights.official import CheckpointError

MANIFEST_VARIABLE = "SPECULATIVE_TDMPC2_MANIFEST"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)  # no part starts with a dot: none is ".."
SUFFIXES = (".pt", ".safetensors")
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of a transfer
ATTEMPTS, PAUSE = 3, 2  # of a transfer that breaks off or stalls; seconds between them


@dataclass(frozen=True)
class Entry:
    """What is known of a teacher by its name; a `url` or a shipped `file`."""

    name: str
    url: str = ""
    file: str = ""
    sha256: str | None = None
    licence: str = "unknown"
    task: str = ""  # of single-task weights
    tasks: str = ""  # task set of multi-task weights
    size: str = ""
    note: str = ""

    @property
    def path(self) -> Path:
        """Where its weights are, or will be once fetched; another address is another file.

        Raises `CheckpointError` if that would be outside the cache.
        """
        if self.file:
            return paths.TEACHERS / self.file
        cache = paths.CACHE / "teachers"
        address = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        path = cache / f"{self.name}.{address}{Path(urlsplit(self.url).path).suffix}"
        if not path.resolve().is_relative_to(cache.resolve()):
            raise CheckpointError(f"{self.name!r} would be written outside {shown(cache)}; give it another name.")
        return path


# ----------------------------------------------------------------------------------------------- what is listed


def entries(manifest: str | None = None) -> dict[str, Entry]:
    """Every listed teacher by name; those of the user's manifest come in place of others of their name."""
    own, manifest = paths.TEACHERS / "registry.json", manifest or os.environ.get(MANIFEST_VARIABLE)
    listed = _read(own) if own.is_file() else {}
    return listed | _read(Path(manifest), theirs=True) if manifest else listed


def find(name: str, manifest: str | None = None) -> Entry | None:
    """The entry of a name, or None."""
    return entries(manifest).get(name)


def _read(path: Path, theirs: bool = False) -> dict[str, Entry]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"the manifest {path} does not exist; see --manifest and {MANIFEST_VARIABLE}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} must hold {{"name": {{"url": "https://…", "sha256": "…"}}}}.')
    found = {}
    for name, facts in content.items():
        if not isinstance(facts, str):
            found |= {entry.name: entry for entry in _expand(name, facts, path, theirs)}
    return found


def _expand(template: str, facts: dict, where: Path, theirs: bool) -> Iterator[Entry]:
    """The entries that one item of a registry stands for, checked."""
    known = [f.name for f in fields(Entry) if f.name != "name" and not (theirs and f.name == "file")] + ["each"]
    each = facts.get("each", {}) if isinstance(facts, dict) else None
    if not isinstance(each, dict) or not all(isinstance(words, str) for words in each.values()):
        raise CheckpointError(f"{where}: {template!r} is not an object of facts such as 'url' and 'sha256'.")
    for fact, value in facts.items():
        if fact not in known:
            raise CheckpointError(f"{where}: {template!r} has {fact!r}; known facts are {', '.join(known)}.")
        if fact != "each" and not isinstance(value, str) and not (fact == "sha256" and value is None):
            raise CheckpointError(f"{where}: {fact!r} of {template!r} must be text, not {value!r}.")
    for words in itertools.product(*(words.split() for words in each.values())):
        chosen = dict(zip(each, words, strict=True))
        filled = {fact: _fill(text, chosen) for fact, text in facts.items() if fact != "each" and text is not None}
        yield _checked(Entry(_fill(template, chosen), **filled), where)


def _fill(text: str, chosen: dict[str, str]) -> str:
    """`text` with the chosen word in place of each {key}, and in capitals in place of each {KEY}."""
    for key, word in chosen.items():
        text = text.replace(f"{{{key}}}", word).replace(f"{{{key.upper()}}}", word.upper())
    return text


def _checked(entry: Entry, where: Path) -> Entry:
    """The entry, if its name, address and checksum are of the kinds that are allowed."""
    if not NAME.fullmatch(entry.name):
        raise CheckpointError(
            f"{where}: {entry.name!r} cannot name a teacher; use letters, digits, '.', '-' and '_', and '/' between "
            "parts that start with a letter or digit."
        )
    if entry.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        raise CheckpointError(f"{where}: the sha256 of {entry.name!r} must be 64 hexadecimal digits, in small letters.")
    if entry.file:
        return entry
    try:
        url = urlsplit(entry.url)
        usable = url.scheme in ("http", "https") and url.hostname and Path(url.path).suffix in SUFFIXES
    except ValueError:
        usable = False
    if not usable:
        raise CheckpointError(
            f"{where}: the url of {entry.name!r} is {entry.url!r}; it must be http or https and its path must end in "
            f"{' or '.join(SUFFIXES)}."
        )
    return entry


def register(name: str) -> str:
    """List a teacher of data/teachers/, or a snapshot `<teacher>/<decisions>` of one, and return its checksum."""
    own, weights = paths.TEACHERS / "registry.json", paths.TEACHERS / f"{name}.safetensors"
    card = paths.TEACHERS / f"{name.split('/')[0]}.json"
    if not (weights.is_file() and card.is_file()):
        raise CheckpointError(f"{shown(weights)} and its card {card.name} are not both there; ship the teacher first.")
    content = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    about = json.loads(card.read_text(encoding="utf-8"))
    file = weights.relative_to(paths.TEACHERS).as_posix()
    content[name] = {"file": file, "sha256": file_hash(weights), "task": about["task"], "size": about["size"]}
    content[name] |= {"licence": "MIT"}
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in content.items()]
    write_text(own, "{\n" + ",\n".join(lines) + "\n}\n")
    return content[name]["sha256"]


# ------------------------------------------------------------------------------------------------------- downloads


def is_fetched(entry: Entry) -> bool:
    """Whether the entry's file is in the cache, whole, with its listed checksum; from its record, not read again."""
    record, path = _record(entry.path), entry.path
    return (
        path.is_file()
        and record.get("bytes") == path.stat().st_size
        and record.get("sha256") == (entry.sha256 or record.get("sha256"))
    )


def fetch(entry: Entry, check: Callable[[Path, str], None], verify: bool = False) -> Path:
    """The entry's weights, downloaded into the cache unless they are there; `verify` reads them again to be sure.

    A download is kept only when it is whole, its sha256 is the listed one (or, when none is listed, that of the first
    download from this address, which is recorded beside the file) and `check(path, suffix)` does not refuse it.
    Raises `CheckpointError` in one sentence.
    """
    path = entry.path
    if entry.file or (is_fetched(entry) and (not verify or intact(path))):
        return path
    known = entry.sha256 or _record(path).get("sha256")
    try:
        if known is None:
            path.unlink(missing_ok=True)  # nothing vouches for it, as a fetch was killed: pooch would take it as it is
        _download(entry, known, check)
        origin = "listed" if entry.sha256 else "first download"
        describe(path, name=entry.name, url=entry.url, bytes=path.stat().st_size, licence=entry.licence, origin=origin)
    except OSError as error:
        raise CheckpointError(f"{entry.name} cannot be kept as {shown(path)}: {error.strerror or error}.") from None
    if known is None:
        _say(
            f"{entry.name}: no checksum was known; {shown(sidecar(path))} records sha256 {_record(path)['sha256']}, "
            "which later downloads must have"
        )
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _record(path: Path) -> dict:
    """What is recorded of a fetched file; {} when nothing usable is."""
    try:
        record = read_sidecar(path)
    except (ResultError, OSError):
        return {}
    return record if isinstance(record, dict) else {}


class _Bar(tqdm):
    """A bar that is not shown before the server has answered and set its total; pooch asks for its truth."""

    def __bool__(self) -> bool:
        return True

    def display(self, *args, **kwargs):
        return self.total is not None and super().display(*args, **kwargs)


def _download(entry: Entry, known: str | None, check: Callable[[Path, str], None]) -> None:
    """Transfer to a temporary file, verify, and move into place; tried again where that can help."""
    import pooch  # here and not above: planning never downloads
    import requests

    pooch.get_logger().setLevel("WARNING")  # what it would say is said above

    def transfer(url: str, output_file: str, _) -> None:
        if attempt == 1:
            _say(f"fetching {entry.name} (licence: {entry.licence}) from {url}")
        # Uncompressed, so that the length that the server declares is the length of the file.
        headers = {"Accept-Encoding": "identity"}
        http = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**17, timeout=TIMEOUT, headers=headers)
        http(url, output_file, None)
        _verify(entry, Path(output_file), known, check)

    for attempt in range(1, ATTEMPTS + 1):
        bar = _Bar(desc=entry.name, unit="B", unit_scale=True, mininterval=1)
        try:
            checksum = known and f"sha256:{known}"
            pooch.retrieve(entry.url, checksum, entry.path.name, entry.path.parent, downloader=transfer)
            return
        except (requests.RequestException, ValueError) as error:  # ValueError: a header that is none
            reason, status = _reason(error), getattr(getattr(error, "response", None), "status_code", 0)
            again = bar.total is not None or status >= 500 or isinstance(error, requests.ReadTimeout)
            if attempt == ATTEMPTS or not again:
                tries = f" after {attempt} attempts" if attempt > 1 else ""
                raise CheckpointError(
                    f"{entry.name} could not be fetched from {entry.url}{tries}: {reason}; nothing was kept; a file "
                    "fetched elsewhere can be used by its path, as in `-p teacher path/to/file.pt`."
                ) from None
        finally:
            bar.leave = bar.total is not None
            bar.close()
        _say(f"{entry.name}: {reason}; trying again")
        time.sleep(PAUSE)


def _verify(entry: Entry, file: Path, known: str | None, check: Callable[[Path, str], None]) -> None:
    """`CheckpointError` unless the downloaded file is the one that is wanted; pooch then removes it."""
    got = file_hash(file)
    if known and got != known:
        source = "listed" if entry.sha256 else f"recorded in {shown(sidecar(entry.path))} from the first download"
        raise CheckpointError(
            f"{entry.url} sent a file of sha256 {got}, but {known} is {source} for {entry.name}; nothing was kept."
        )
    try:
        check(file, entry.path.suffix)
    except CheckpointError as error:
        reason = str(error).replace(str(file), "the file")
        raise CheckpointError(f"{entry.url} sent no weights of {entry.name}, nothing was kept: {reason}") from None


def _reason(error) -> str:
    """Why a transfer failed, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ReadTimeout) or "Read timed out" in str(error):
        return "the server stopped sending"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "it leads to an address that is neither http nor https"
    if isinstance(error, requests.ConnectionError):
        return f"there is no connection to that server ({type(error).__name__})"
    return str(error) or type(error).__name__
