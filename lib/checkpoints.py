"""World-model weights: our safetensors files, official TD-MPC2 files, and where shipped teachers live.

wm = load_world_model("walker-walk-1m-1")                  # a shipped teacher
wm = load_world_model("path/to/weights.safetensors")
wm = load_world_model("mt30-1M.pt", task="reacher-easy")   # official weights, bound to one of their tasks
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib import official_weights, paths
from lib.config import WorldModelConfig
from lib.official_weights import CheckpointError, check_tensors
from lib.results import combine, file_hash, module_key
from lib.world_model import WorldModel

FORMAT = "speculative-tdmpc2/1"


def save_world_model(wm: WorldModel, path: Path, half: bool = False, targets: bool = True) -> None:
    """Write weights and configuration as safetensors; `half` stores float16, `targets=False` leaves out target Q."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in wm.state_dict().items() if targets or "target_q" not in k}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    about = {"format": FORMAT, "config": dataclasses.asdict(wm.config), "task": wm.task or ""}
    # One entry: safetensors writes several in random order, and equal weights must be equal files (keys hash them).
    save_file(tensors, path, metadata={"world_model": json.dumps(about, sort_keys=True)})


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
    """What stands for the teacher in every later key: sha256 of its file, and for official files how they are read."""
    path = teacher_path(name)
    if path.suffix == ".safetensors":
        return file_hash(path)
    return combine(file_hash(path), module_key("lib.official_weights", without=("lib.__init__", "lib.config")))


def load_world_model(path_or_name: str | Path, task: str | None = None, device: str = "cpu") -> WorldModel:
    """A world model in eval mode, float32, from a shipped name, a file of ours, or an official `.pt` file.

    Weights that know many tasks are bound to `task`; weights of one task may be given its name.
    Raises `CheckpointError` when there is no such teacher, the task is missing, unknown or another one, or a tensor is
    missing, extra, ill-shaped or not finite.
    """
    path = teacher_path(str(path_or_name))
    if path.suffix == ".safetensors":
        config, tensors, bound = _read_ours(path)
    else:
        (config, tensors), bound = official_weights.convert(official_weights.read(path), path, task), task
    if task and bound and task != bound:
        raise CheckpointError(f"{path} holds weights for {bound}, not for {task}.")
    wm = WorldModel(config, bound or task)
    check_tensors(tensors, {k: v.shape for k, v in wm.state_dict().items()}, path)
    wm.load_state_dict({k: v.float() for k, v in tensors.items()})
    return wm.eval().requires_grad_(False).to(resolve_device(device))


def _read_ours(path: Path) -> tuple[WorldModelConfig, dict[str, torch.Tensor], str]:
    """Configuration, tensors and task ("" when not recorded) of a file that `save_world_model` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("world_model")
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from None
    if about is None:
        raise CheckpointError(f"{path} is no world model of this project: it says nothing of its shapes.")
    try:
        about = json.loads(about)
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path} is of format {about['format']!r}, not {FORMAT!r}.")
        config = WorldModelConfig(**about["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its 'config' cannot be used: {error}.") from None
    if not any(k.startswith("target_q_heads.") for k in tensors):  # left out of small files: planning never reads them
        tensors |= {f"target_{k}": v for k, v in tensors.items() if k.startswith("q_heads.")}
    return config, tensors, about["task"]


def resolve_device(device: str) -> str:
    """ "auto" is the first GPU where there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
