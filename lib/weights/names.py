"""Teachers by name: those shipped, the official ones and a user's manifest; and verified downloads of them.

    entry = find("official/dog-run-1")         # None for a name that nobody lists
    path = fetch(entry, check=can_be_loaded)   # from the cache's teachers/, downloaded unless it is there

What is shipped is listed in registry.json of the teachers' folder, which is JSON, name -> facts: `file`, `sha256`,
`licence`, `task`, `size`, `note`; a string is a remark. A user's manifest, named by `--manifest` or the variable below,
is such a file with `url` instead of `file`, where `sha256` may be null (not known) and `tasks` names a task set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lib.config import MODEL_SIZES, data_folder, quoted
from lib.files import temporary
from lib.weights.formats import CheckpointError
from lib.weights.official import MT30, SINGLE

MANIFEST_VARIABLE = "SPECULATIVE_TDMPC2_MANIFEST"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)  # no part starts with a dot: none is ".."
LONGEST = 100  # characters of a name, which becomes that of a file
SUFFIXES = (".pt", ".safetensors")
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of a transfer
HUB = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")  # repository, revision, file
# The addresses come from public sources and were not tried from the machine that wrote them down. Others report that
# official/cartpole-swingup-1 and official/humanoid-run-3 have a layout from before the release, which is refused.
OFFICIAL = "https://huggingface.co/nicklashansen/tdmpc2/resolve/main"
OFFICIAL_NOTE = "official TD-MPC2 weights (github.com/nicklashansen/tdmpc2); the address was not verified"
# Thirty tasks in a million parameters, distilled from the official 317M model; the address was not tried either.
DISTILLED = "https://github.com/OleksandrSeverhin/td-mpc-opt/raw/fcb760ccb1c1962bca4343bfd3686ce50a5bde5a/tdmpc2/models"


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
        """Where its weights are, or will be; another address is another file. `CheckpointError` outside the cache."""
        if self.file:
            return data_folder("teachers") / self.file
        cache = data_folder("cache") / "teachers"
        address = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        path = cache / f"{self.name}.{address}{Path(urlsplit(self.url).path).suffix}"
        if not path.resolve().is_relative_to(cache.resolve()):
            raise CheckpointError(f"{self.name!r} would be written outside {cache}; give it another name.")
        return path


def file_hash(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- what is listed


def entries(manifest: str | None = None) -> dict[str, Entry]:
    """Every listed teacher by name; those of the user's manifest come in place of others of their name."""
    own, manifest = data_folder("teachers") / "registry.json", manifest or os.environ.get(MANIFEST_VARIABLE)
    listed = _official() | (_read(own) if own.is_file() else {})
    return listed | _read(Path(manifest), theirs=True) if manifest else listed


def find(name: str, manifest: str | None = None) -> Entry | None:
    """The entry of a name, or None."""
    return entries(manifest).get(name)


def _official() -> dict[str, Entry]:
    """The weights that the TD-MPC2 authors published, and what others made of them."""
    about = dict(licence="MIT", note=OFFICIAL_NOTE)
    found = [
        Entry(f"official/{task}-{seed}", f"{OFFICIAL}/dmcontrol/{task}-{seed}.pt", task=task, size="5m", **about)
        for task in (*MT30, *SINGLE)
        for seed in (1, 2, 3)
    ] + [
        Entry(
            f"official/{many}-{size}", f"{OFFICIAL}/multitask/{many}-{size.upper()}.pt", tasks=many, size=size, **about
        )
        for many in ("mt30", "mt80")
        for size in MODEL_SIZES
    ]
    found += [
        Entry(
            "td-mpc-opt/mt30-1m",
            f"{DISTILLED}/mt30_1M_steps_045dist_fp16.pt",
            sha256="3e35489756abf6e0e244371698d063487f70ffb5d109e3d8c84ae7dda5955bfb",
            licence="MIT",
            tasks="mt30",
            size="1m",
            note="distilled by github.com/OleksandrSeverhin/td-mpc-opt; the address was not verified",
        )
    ]
    return {entry.name: entry for entry in found}


def _read(path: Path, theirs: bool = False) -> dict[str, Entry]:
    content = _json(path)
    return {name: _entry(name, facts, path, theirs) for name, facts in content.items() if not isinstance(facts, str)}


def _json(path: Path) -> dict:
    """The names and facts of a registry or manifest."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"the manifest {path} does not exist; see --manifest and {MANIFEST_VARIABLE}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} must hold {{"name": {{"url": "https://…", "sha256": "…"}}}}.')
    return content


def _entry(name: str, facts: dict, where: Path, theirs: bool) -> Entry:
    """The entry of one item of a registry, if its name, facts, address and checksum are of allowed kinds."""
    if not isinstance(facts, dict):
        raise CheckpointError(f"{where}: {name!r} is not an object of facts such as 'url' and 'sha256'.")
    known = [f.name for f in fields(Entry) if f.name != "name" and not (theirs and f.name == "file")]
    for fact, value in facts.items():
        if fact not in known:
            raise CheckpointError(f"{where}: {name!r} has {fact!r}; known facts are {', '.join(known)}.")
        if not isinstance(value, str) and not (fact == "sha256" and value is None):
            raise CheckpointError(f"{where}: {fact!r} of {name!r} must be text, not {value!r}.")
    entry = Entry(name, **facts)
    if not _is_name(name):
        raise CheckpointError(
            f"{where}: {quoted(name)} cannot name a teacher; use letters, digits, '.', '-' and '_', and '/' between "
            f"parts that start with a letter or digit, {LONGEST} at most."
        )
    if entry.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        raise CheckpointError(f"{where}: the sha256 of {name!r} must be 64 hexadecimal digits, in small letters.")
    try:
        url = urlsplit(entry.url)
        usable = url.scheme in ("http", "https") and url.hostname and Path(url.path).suffix in SUFFIXES
    except ValueError:
        usable = False
    if not entry.file and not usable:
        raise CheckpointError(
            f"{where}: the url of {name!r} is {entry.url!r}; it must be http or https and its path must end in "
            f"{' or '.join(SUFFIXES)}."
        )
    return entry


def _is_name(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and len(name) <= LONGEST


CARD = {"task": str, "size": str, "decisions": int, "returns": list, "return_mean": (int, float)}
# And what a run needs of one to go on from it: what was shipped before that was possible lacks some.
GOES_ON = {"decisions": int, "episodes": int, "updates": int, "diverged": int, "minutes": (int, float)}
GOES_ON |= {"continued": list, "scale": (int, float), "config": dict}


def card_of(weights: Path, *needed: str) -> dict | None:
    """The card beside the weights of a shipped teacher, None where there is none.

    Raises `CheckpointError` if it is not JSON, lacks something that is `needed`, or has it of another kind than `CARD`
    and `GOES_ON` say.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        card = None
    kinds = CARD | GOES_ON
    wrong = [name for name in needed if not isinstance(card, dict) or not isinstance(card.get(name), kinds[name])]
    if wrong or not isinstance(card, dict):
        lacking = ", ".join(wrong) or "any fact"
        mend = "restore it from git, or ship the teacher anew"
        raise CheckpointError(f"{path} is no card of a teacher, it lacks {lacking}; {mend}.")
    return card


def register(name: str) -> str:
    """List a shipped teacher, or a snapshot `<teacher>/<decisions>` of one, and return its checksum."""
    folder = data_folder("teachers")
    own, weights, card = (
        folder / file for file in ("registry.json", f"{name}.safetensors", f"{name.split('/')[0]}.json")
    )
    if not (_is_name(name) and weights.is_file() and card.is_file()):
        raise CheckpointError(f"{weights} and its card {card.name} are not both there; ship the teacher first.")
    content = _json(own) if own.is_file() else {}
    about = card_of(card, "task", "size")
    file = weights.relative_to(folder).as_posix()
    content[name] = {"file": file, "sha256": file_hash(weights), "task": about["task"], "size": about["size"]}
    content[name] |= {"licence": "MIT"}
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in content.items()]
    with temporary(own) as place:
        _write(place, "{\n" + ",\n".join(lines) + "\n}\n").replace(own)
    return content[name]["sha256"]


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


# ------------------------------------------------------------------------------------------------------- downloads


def is_fetched(entry: Entry, verify: bool = False) -> bool:
    """Whether the entry's file is in the cache, whole, with its listed checksum, as recorded; `verify` reads it."""
    record, path = _record(entry.path), entry.path
    return (
        path.is_file()
        and record.get("bytes") == path.stat().st_size
        and record.get("sha256") == (entry.sha256 or record.get("sha256"))
        and not (verify and file_hash(path) != record.get("sha256"))
    )


def fetch(entry: Entry, check: Callable[[Path], None], verify: bool = False) -> Path:
    """The entry's weights, downloaded into the cache unless they are there; `verify` reads them again to be sure.

    A download is kept only when it is whole, its sha256 is the listed one (or, when none is listed, that of the first
    download from this address, which is recorded beside the file) and `check(path)` does not refuse it.
    Raises `CheckpointError` in one sentence.
    """
    path = entry.path
    if entry.file or is_fetched(entry, verify):
        return path
    known = entry.sha256 or _record(path).get("sha256")
    print(f"fetching {entry.name} (licence: {entry.licence}) from {entry.url}", file=sys.stderr, flush=True)
    try:
        with temporary(path) as folder:
            folder.mkdir()
            file = _from_hub(entry.url, folder) or _from_server(entry.url, folder / path.name)
            record = {"name": entry.name, "url": entry.url, "sha256": file_hash(file), "bytes": file.stat().st_size}
            record |= {"licence": entry.licence, "origin": "listed" if entry.sha256 else "first download"}
            _verify(entry, file, record["sha256"], known, check)
            record_file = _write(folder / "record.json", json.dumps(record, indent=1))
            file.replace(path)
            record_file.replace(_record_path(path))
    except (OSError, ValueError) as error:  # what requests and huggingface_hub raise; ValueError: a header that is none
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".:")
        raise CheckpointError(
            f"{entry.name} could not be fetched from {entry.url} ({reason}); nothing was kept; a file fetched "
            "elsewhere can be used by its path, as in `-p teacher path/to/file.pt`."
        ) from None
    if known is None:
        print(
            f"{entry.name}: no checksum was known; {_record_path(path)} records sha256 {record['sha256']}, which later "
            "downloads must have",
            file=sys.stderr,
        )
    return path


def _record_path(path: Path) -> Path:
    return Path(f"{path}.meta.json")


def _record(path: Path) -> dict:
    """What is recorded of a fetched file; {} when nothing usable is."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _from_hub(url: str, folder: Path) -> Path | None:
    """A file of the Hugging Face hub through its own client, which tries again; None for any other address."""
    parts = urlsplit(url)
    match = HUB.fullmatch(f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}")
    if not match:
        return None
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(match[1], match[3], revision=match[2], local_dir=folder))


def _from_server(url: str, target: Path) -> Path:
    """Any other file, with a progress bar; `OSError` or `ValueError` unless all that the server declares arrives."""
    import requests
    from tqdm import tqdm

    # Uncompressed, so that the length that the server declares is the length of the file.
    with requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0)) or None
        with open(target, "wb") as file, tqdm(desc=target.name, total=total, unit="B", unit_scale=True) as bar:
            for piece in response.iter_content(2**17):
                bar.update(file.write(piece))
    return target


def _verify(entry: Entry, file: Path, got: str, known: str | None, check: Callable[[Path], None]) -> None:
    """`CheckpointError` unless the downloaded file is the one that is wanted."""
    if known and got != known:
        source = "listed" if entry.sha256 else f"recorded in {_record_path(entry.path)} from the first download"
        raise CheckpointError(
            f"{entry.url} sent a file of sha256 {got}, but {known} is {source} for {entry.name}; nothing was kept."
        )
    try:
        check(file)
    except CheckpointError as error:
        reason = str(error).replace(str(file), "the file")
        raise CheckpointError(f"{entry.url} sent no weights of {entry.name}, nothing was kept: {reason}") from None
