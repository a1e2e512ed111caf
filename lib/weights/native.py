"""World-model weights: our safetensors files, official TD-MPC2 files, and teachers by name, fetched where needed.

wm = load_world_model("walker-walk-1m-1")                          # a shipped teacher
wm = load_world_model("official/dog-run-1")                        # listed in `lib.weights.names`
wm = load_world_model("path/to/mt30-1M.pt", task="reacher-easy")   # a file, bound to one of its tasks
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.config import MODEL_SIZES, ConfigError, WorldModelConfig, data_folder, discount_for, quoted
from lib.files import files
from lib.weights import names, official
from lib.weights.formats import CheckpointError, unwrapped, what_it_is
from lib.weights.names import file_hash
from lib.weights.official import check_tensors
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
    """Names of the teachers in the teachers' folder."""
    return sorted(path.stem for path in files(data_folder("teachers"), "*.safetensors"))


def teacher_path(name: str, manifest: str | None = None, verify: bool = False) -> Path:
    """The weights file of a teacher by listed or shipped name, or by path; what is only listed is fetched first.

    `verify` reads a file that is listed again to compare its checksum. Raises `CheckpointError` when there is no such
    teacher, it cannot be fetched, or it is shipped and not what is listed.
    """
    listed = names.entries(manifest)
    if name in listed and listed[name].url:
        return names.fetch(listed[name], _check_file, verify)
    shipped = data_folder("teachers") / f"{name}.safetensors"
    if os.path.isfile(shipped):  # also False, and no `OSError`, for what no file can be called
        wanted = listed[name].sha256 if verify and name in listed else None
        if wanted and file_hash(shipped) != wanted:
            raise CheckpointError(
                f"{shipped} is not the file whose sha256 is listed, {wanted}; restore it, or list a teacher of "
                f"your own with `python -m lib.weights.cli register {name}`."
            )
        return shipped
    if name in listed:
        raise CheckpointError(f"{shipped} is listed as shipped but is missing; restore it from the repository.")
    if os.path.isfile(name):
        return Path(name)
    have = ", ".join(shipped_teachers()) or "none yet"
    near = difflib.get_close_matches(name, listed, n=2)
    raise CheckpointError(
        f"there is no teacher {quoted(name)}: no file of that name, and the shipped teachers are {have}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "Train it with `python -m lib.teachers.cli`, or pass one of these, or of `python -m lib.weights.cli list`, "
        "with -p teacher."
    )


def teacher_key(name: str) -> str:
    """What stands for the teacher in later keys: sha256 of its file, for official files with how they are read."""
    path = teacher_path(name)
    checksum = file_hash(path)
    if path.suffix == ".safetensors":
        return checksum
    return hashlib.sha256(f"{checksum} {official.CONVERSION}".encode()).hexdigest()


def load_world_model(path_or_name: str | Path, task: str | None = None, device: str = "cpu") -> WorldModel:
    """A world model in eval mode, float32, from a listed or shipped name, a file of ours, or an official `.pt` file.

    Weights that know many tasks are bound to `task`; weights of one task may be given its name.
    Raises `CheckpointError` when there is no such teacher, it cannot be fetched, the task is missing, unknown or
    another one or of other widths, or a tensor is missing, extra, ill-shaped, of a wrong type or not finite.
    """
    name = str(path_or_name)
    path, listed = teacher_path(name), names.find(name)
    bound = listed.task if listed else ""
    if path.suffix == ".safetensors":
        config, tensors, recorded = read_ours(path)
        bound = recorded or bound
    if task and bound and task != bound:
        raise CheckpointError(f"{path} holds weights for {bound}, not for {task}.")
    if path.suffix != ".safetensors":
        config, tensors = official.convert(official.read(path), path, task or bound or None)
    if task and ":" in task:
        config = _fitted(config, task, path)
    wm = WorldModel(config, bound or task)
    check_tensors(tensors, {k: v.shape for k, v in wm.state_dict().items()}, path)
    wm.load_state_dict({k: v.float() for k, v in tensors.items()})
    return wm.eval().requires_grad_(False).to(resolve_device(device))


def _fitted(config: WorldModelConfig, task: str, path: Path) -> WorldModelConfig:
    """The configuration for an environment outside the suite, with the discount of its episodes; `CheckpointError`
    where it is seen or acted on in other widths."""
    from lib.environments import make_env

    env = make_env(task)
    env.close()
    theirs, ours = (*env.observation_space.shape, *env.action_space.shape), (config.obs_dim, config.action_dim)
    if theirs != ours:
        numbers = "{} observations and {} actions, but {} has {} and {}".format(*ours, task, *theirs)
        raise CheckpointError(f"{path} takes {numbers}; give the environment that it was trained on.")
    return (
        config if path.suffix == ".safetensors" else dataclasses.replace(config, discount=discount_for(env.decisions))
    )


def _check_file(path: Path) -> None:
    """`CheckpointError` unless the file is a world model, of one task or many."""
    read_ours(path) if path.suffix == ".safetensors" else official.infer(official.read(path), path)


def read_ours(path: Path) -> tuple[WorldModelConfig, dict[str, torch.Tensor], str]:
    """Configuration, tensors and task ("" when not recorded) of a file that `save_world_model` wrote, all checked."""
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("world_model")
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # the last two: types torch does not have
        what = what_it_is(path) or f"is not a whole safetensors file of torch tensors: {error}"
        raise CheckpointError(f"{path} {what}.") from None
    if about is None:
        raise CheckpointError(f"{path} is no world model of this project: it says nothing of its shapes.")
    tensors = unwrapped(tensors, path)
    try:
        about = json.loads(about)
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path} is of format {about['format']!r}, not {FORMAT!r}.")
        config, task = WorldModelConfig(**about["config"]), str(about["task"])
        check_config(config, len(tensors))
        with torch.device("meta"):  # shapes without memory: the file may declare any
            shapes = {k: v.shape for k, v in WorldModel(config).state_dict().items()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its 'config' cannot be used: {error}.") from None
    if not any(k.startswith("target_q_heads.") for k in tensors):  # left out of small files: planning never reads them
        tensors |= {f"target_{k}": v for k, v in tensors.items() if k.startswith("q_heads.")}
    check_tensors(tensors, shapes, path)
    return config, tensors, task


def check_config(config: WorldModelConfig, num_tensors: int) -> None:
    """`ValueError` for a recorded value that is no width, count or number of a world model."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name.endswith("padding") else 1
        if field.type == "int" and (type(value) is not int or not least <= value < 2**20):
            raise ValueError(f"{field.name}={value!r}")
        if field.type == "bool" and type(value) is not bool:
            raise ValueError(f"{field.name}={value!r}")
        if field.type == "float" and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{field.name}={value!r}")
    if config.latent_dim % config.simnorm_dim or config.num_enc_layers > num_tensors or config.num_q < 2:
        raise ValueError("latent_dim, simnorm_dim, num_enc_layers and num_q do not fit together")


def resolve_device(device: str) -> str:
    """ "auto" is the first GPU where there is one, else the CPU. `ConfigError` for a GPU that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    wanted, count = torch.device(device), torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise ConfigError(f"device={str(device)!r} is not here: torch finds {count or 'no'} GPUs; use auto or cpu.")
    return device


def size_of(config: WorldModelConfig) -> str:
    """The named size of these widths. The latent does not count: official mt30 19m weights have 512 in place of 768."""
    for size, widths in MODEL_SIZES.items():
        if all(getattr(config, k) == v for k, v in widths.items() if k != "latent_dim"):
            return size
    return "of its own"
