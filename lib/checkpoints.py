"""World-model weights: our safetensors files, and where shipped teachers live.

    wm = load_world_model("walker-walk-1m-1")                  # a shipped teacher
    wm = load_world_model("path/to/weights.safetensors")
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib import paths
from lib.config import WorldModelConfig
from lib.results import file_hash
from lib.world_model import WorldModel

FORMAT = "speculative-tdmpc2/1"


class CheckpointError(RuntimeError):
    """Weights cannot be used; the message names the file, the key where there is one, and what to do."""


def save_world_model(wm: WorldModel, path: Path, half: bool = False, targets: bool = True) -> None:
    """Write weights and configuration to a safetensors file; `half` stores float16, `targets=False` leaves out target Q."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in wm.state_dict().items() if targets or "target_q" not in k}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    about = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(wm.config), sort_keys=True),
        "tasks": json.dumps(wm.tasks),
        "action_dims": json.dumps(wm.action_dims),
    }
    save_file(tensors, path, metadata=about)


def shipped_teachers() -> list[str]:
    """Names of the teachers in `data/teachers/`."""
    return sorted(p.stem for p in paths.TEACHERS.glob("*.safetensors"))


def teacher_path(name: str) -> Path:
    """The weights file of a teacher given by shipped name or by path; `CheckpointError` when there is none."""
    shipped = paths.TEACHERS / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    have = ", ".join(shipped_teachers()) or "none yet"
    raise CheckpointError(
        f"there is no teacher {name!r}: no file of that name, and the shipped teachers are {have}. "
        f"Train it with `python -m lib.teacher`, or pass one of these with -p teacher."
    )


def teacher_key(name: str) -> str:
    """sha256 of a teacher's weights file: the part of every later key that stands for the teacher."""
    return file_hash(teacher_path(name))


def load_world_model(path_or_name: str | Path, task: str | None = None, device: str = "cpu") -> WorldModel:
    """A world model in eval mode, float32, from a shipped name or a file.

    Raises `CheckpointError` when there is no such teacher, or a tensor is missing, extra, ill-shaped or not finite.
    """
    path = teacher_path(str(path_or_name))
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from None
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a world model of this project (format {about.get('format')!r}, not {FORMAT!r}).")
    config = WorldModelConfig(**json.loads(about["config"]))
    wm = WorldModel(config, json.loads(about["tasks"]), json.loads(about["action_dims"]))
    fill(wm, tensors, path)
    return wm.eval().requires_grad_(False).to(resolve_device(device))


def fill(wm: WorldModel, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors into a model, naming the first key that is missing, extra, ill-shaped or not finite."""
    expected = wm.state_dict()
    if not any(k.startswith("target_q_heads.") for k in tensors):  # left out of small files: planning never reads them
        copies = {k.replace("q_heads.", "target_q_heads.", 1): v for k, v in tensors.items() if k.startswith("q_heads.")}
        tensors = tensors | copies
    for key in sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"{path} has no tensor {key!r}.")
    for key in sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{path} has a tensor {key!r} that this model does not know.")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(f"{path}: {key!r} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}.")
        if not value.is_floating_point():
            raise CheckpointError(f"{path}: {key!r} is {value.dtype}; quantised weights are not supported.")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key!r} holds values that are not finite.")
    wm.load_state_dict({k: v.float() for k, v in tensors.items()})


def resolve_device(device: str) -> str:
    """"auto" is the first GPU where there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
