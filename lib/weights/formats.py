"""Files of weights as they come: what a file is that holds none, and what other libraries put before tensors' names.

check_archive(path)                        # a torch file, or a sentence that says what it is instead
tensors = unwrapped(tensors, path)         # "module._orig_mod.pi.0.bias" -> "pi.0.bias"
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from lib.compilation import say_once


class CheckpointError(RuntimeError):
    """Weights cannot be used; the message names the file, the key where there is one, and what to do."""


WRAPPERS = re.compile(r"((_orig_mod|module|model)\.)+")  # torch.compile, DistributedDataParallel, Lightning
AGAIN = "download the file itself, as from an address with /resolve/ or /raw/ in place of /blob/"
SIGNS = {  # what a file begins with
    rb"version https://git-lfs": "is a git-lfs pointer, not the file it stands for; get that with `git lfs pull`",
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)": f"is a saved web page; {AGAIN}",
    rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9": "is a torch file from before version 1.6; load it and torch.save it again",
    rb"\x80[\x02-\x05]": "is a pickle that torch did not write; refused, as it could run code",
    rb"\x1f\x8b": "is packed with gzip; unpack it first",
    rb"\x89HDF": "is an HDF5 file, and no weights of TD-MPC2 come in one",
    rb"\s*\Z": "is empty",
}
OURS = {rb"PK\x03\x04": "is a zip archive, as torch writes them; give its name the ending .pt"}
TORCHS = {
    rb"PK\x03\x04": "is a zip archive that is cut short or damaged",
    rb".{7}\x00\{": "is a safetensors file; give its name that ending",
}


def what_it_is(path: Path) -> str:
    """What is wrong with a file that is not of the kind that its name says, "" where that is not known."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    for sign, what in (SIGNS | (OURS if path.suffix == ".safetensors" else TORCHS)).items():
        if re.match(sign, start, re.DOTALL | re.IGNORECASE):
            return what
    if start.isascii() and "".join((text := start.decode()).split()).isprintable():
        return f"is a text that begins with {text.strip()[:40]!r}; {AGAIN}"
    return ""


def check_archive(path: Path) -> None:
    """`CheckpointError` unless a file is what torch saves: whole, uncompressed zip archives with a data.pkl.

    A compressed one could hide any number of bytes in a few.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        what = what_it_is(path) or "cannot be read as a torch file: it is no zip archive, or cut short"
        raise CheckpointError(f"{path} {what}.") from None
    names = {e.filename.split("/", 1)[-1] for e in entries}
    if "data.pkl" not in names:
        some = f"{entries[0].filename!r}" if entries else "nothing"
        raise CheckpointError(f"{path} is a zip archive that torch did not write: it holds {some} and no data.pkl.")
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program; refused, as it could run: save the state dict.")
    size = sum(e.file_size for e in entries)
    if size > path.stat().st_size or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise CheckpointError(f"{path} is a compressed or overlapping archive, which torch never writes; refused.")


def unwrapped(state: Mapping, path: Path) -> dict:
    """The same values by their names without what wrappers of modules put before them, which is said once.

    Raises `CheckpointError` for two values of one name.
    """
    bare, wrappers = {}, set()
    for key, value in state.items():
        wrapper = WRAPPERS.match(key)
        name = key[wrapper.end() :] if wrapper else key
        if name in bare:
            raise CheckpointError(f"{path} has {name!r} twice, once as {key!r}; save the weights of one model.")
        bare[name] = value
        wrappers |= {wrapper[0]} if wrapper else set()
    if wrappers:
        said = " and ".join(repr(wrapper) for wrapper in sorted(wrappers))
        say_once(f"{path}: {said} before the names of its tensors is a wrapper's and left out")
    return bare
