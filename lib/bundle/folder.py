"""A controller's folder on the disk: written whole or not at all, and read as if it came from anybody.

save_controller(controller, "build/my-controller", {"task": "walker-walk", "kept": 0.99})
controller = load_controller("build/my-controller", device="cuda")
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.bundle.parts import BundleError, put_together, taken_apart
from lib.config import ConfigError
from lib.files import held, sweep, temporary, unwritable
from lib.weights.formats import CheckpointError
from lib.weights.names import file_hash

FORMAT = "speculative-tdmpc2/controller/1"
SETTINGS, WEIGHTS = "controller.json", "weights.safetensors"
LARGEST_TEXT = 2**20  # bytes; what describes a controller takes a few thousand


def save_controller(controller, folder: str | Path, about: dict | None = None) -> None:
    """Write a controller of one of the kinds in `lib.bundle.parts.CONTROLLERS` to a folder of its own.

    `about` are values of the caller's for JSON, which come back from `read_about`. A folder that holds an earlier
    controller gets this one in its place, and what else is in it stays; equal controllers are equal files. Whoever
    reads the folder finds the old controller or the new one, and where this is killed between its two files, one that
    `load_controller` refuses. Raises `BundleError` for a controller that a folder cannot hold (see
    `lib.bundle.parts`), a folder that holds anything else, and one that cannot be written.
    """
    told, tensors = taken_apart(controller)
    folder = Path(folder).resolve()
    _check_place(folder)
    try:
        told |= {"format": FORMAT, "about": json.loads(json.dumps(about or {}, allow_nan=False))}
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"about cannot be written as JSON: {error}; give numbers, texts, lists and objects."
        ) from None
    if not isinstance(told["about"], dict) or len(json.dumps(told["about"])) > LARGEST_TEXT // 2:
        raise BundleError(f"about must be an object of at most {LARGEST_TEXT // 2:,} bytes of JSON.")
    try:
        if (folder / SETTINGS).exists():
            with temporary(folder / WEIGHTS) as weights, temporary(folder / SETTINGS) as settings:
                _write(told, tensors, settings, weights)
                os.replace(weights, folder / WEIGHTS)
                os.replace(settings, folder / SETTINGS)
        else:
            with temporary(folder) as place:
                place.mkdir()
                _write(told, tensors, place / SETTINGS, place / WEIGHTS)
                os.replace(place, folder)
    except (OSError, SafetensorError) as error:
        why = unwritable(error, folder / SETTINGS) or str(error)
        raise BundleError(f"{folder} cannot be written: {why}.") from error


def _check_place(folder: Path) -> None:
    """`BundleError` unless the folder is missing, empty, or an earlier controller's."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise BundleError(f"{folder} is a file; give a folder that is new or empty.")
        sweep(folder)  # what killed writers left
        holds = held(folder)
        if holds and not _is_ours(folder):
            raise BundleError(
                f"{folder} holds {holds[0]!r} and no controller of this project, so nothing is written there; "
                "give a folder that is new or empty."
            )
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}.") from None


def _is_ours(folder: Path) -> bool:
    try:
        return str(_read_settings(folder)["format"]).startswith(FORMAT.rpartition("/")[0])
    except BundleError:
        return False


def _write(told: dict, tensors: dict[str, Tensor], settings: Path, weights: Path) -> None:
    save_file(tensors, weights)
    # Weights that do not belong to these settings, as a save that was killed between the two leaves them, are refused.
    text = json.dumps(told | {"weights": file_hash(weights)}, indent=1, sort_keys=True, allow_nan=False)
    settings.write_text(text + "\n", encoding="utf-8")
    for path in (weights, settings):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


# --------------------------------------------------------------------------------------------------------- reading


def load_controller(folder: str | Path, device: str = "cpu", mode: str | None = None):
    """The controller that `save_controller` wrote: on the same kind of machine it acts as that one did, bit for bit.

    `mode` is how it is run in place of what was saved: "eager", "compiled", "cudagraph", or "auto" (see
    `PlannerConfig`). Needs torch, numpy and safetensors alone. Raises `BundleError` when the folder is missing or holds
    something else, a file is missing, cut short or not the one that was saved, a kind or a value is unknown, or weights
    do not fit or are not finite.
    """
    folder = Path(folder)
    told = _read_settings(folder)
    try:
        if told["format"] != FORMAT:
            raise BundleError(f"it is of format {str(told['format'])[:100]!r}, not {FORMAT!r}")
        if not isinstance(told.pop("about", None), dict):
            raise BundleError("'about' must be an object")
        tensors = _read_tensors(folder, told.pop("weights", None))
        return put_together({k: v for k, v in told.items() if k != "format"}, tensors, str(device), mode)
    except (BundleError, ConfigError, CheckpointError) as error:
        raise BundleError(f"{folder} holds no controller that can be loaded: {str(error).rstrip('.')}.") from None


def read_about(folder: str | Path) -> dict:
    """All that `controller.json` of a folder says, unchecked but for its format; `BundleError` if it is none."""
    return _read_settings(Path(folder))


def _read_settings(folder: Path) -> dict:
    path = folder / SETTINGS
    if not path.is_file():  # also a missing folder
        raise BundleError(f"{folder} is no controller's folder: there is no file {SETTINGS} in it.")
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError("it is too large")
        told = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(told, dict) or not isinstance(told.get("format"), str):
        raise BundleError(f"{path} does not describe a controller: it says no format.")
    return told


def _no_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def _read_tensors(folder: Path, checksum) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise BundleError(f"there is no file {WEIGHTS} in it")
    try:
        if file_hash(path) != checksum:
            raise BundleError(f"{WEIGHTS} is not the file that {SETTINGS} was saved with; save the controller again")
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # the last two: types torch does not have
        raise BundleError(f"{WEIGHTS} cannot be read: {' '.join(str(error).split())}") from None
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise BundleError(f"its tensor {name[:100]!r} is {value.dtype}, not torch.float32")
    return tensors
