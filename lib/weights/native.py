"""World-model weights: our safetensors files, official TD-MPC2 files, and teachers by name, fetched where needed.

wm = load_world_model("walker-walk-1m-1")                          # a shipped teacher
wm = load_world_model("official/dog-run-1")                        # listed in data/teachers/registry.json
wm = load_world_model("path/to/mt30-1M.pt", task="reacher-easy")   # a file, bound to one of its tasks

python -m lib.weights.native list            # every name, and whether it is shipped, fetched or still to be fetched
python -m lib.weights.native info walker-walk-1m-1
python -m lib.weights.native fetch official/dog-run-1 official/mt80-5m
python -m lib.weights.native register walker-run-5m-1   # lists a teacher of data/teachers/ with its checksum
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.config import MODEL_SIZES, WorldModelConfig
from lib.records import paths
from lib.records.keys import combine, file_hash, module_key, shown
from lib.records.store import intact
from lib.weights import names as registry
from lib.weights import official as official_weights
from lib.weights.official import TASK_SETS, CheckpointError, check_tensors
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


def teacher_path(name: str, manifest: str | None = None, verify: bool = False) -> Path:
    """The weights file of a teacher by listed or shipped name, or by path; what is only listed is fetched first.

    `verify` reads a file that is listed again to compare its checksum. Raises `CheckpointError` when there is no such
    teacher, it cannot be fetched, or it is shipped and not what is listed.
    """
    listed = registry.entries(manifest)
    if name in listed and listed[name].url:
        return registry.fetch(listed[name], _check_file, verify)
    shipped = paths.TEACHERS / f"{name}.safetensors"
    if shipped.is_file():
        wanted = listed[name].sha256 if verify and name in listed else None
        if wanted and file_hash(shipped) != wanted:
            raise CheckpointError(
                f"{shown(shipped)} is not the file whose sha256 is listed, {wanted}; restore it, or list a teacher of "
                f"your own with `python -m lib.weights.native register {name}`."
            )
        return shipped
    if name in listed:
        raise CheckpointError(f"{shown(shipped)} is listed as shipped but is missing; restore it from the repository.")
    path = Path(name)
    if path.is_file():
        return path
    have = ", ".join(shipped_teachers()) or "none yet"
    near = difflib.get_close_matches(name, listed, n=2)
    raise CheckpointError(
        f"there is no teacher {name!r}: no file of that name, and the shipped teachers are {have}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "Train it with `python -m lib.teachers.cli`, or pass one of these, or of `python -m lib.weights.native "
        "list`, with -p teacher."
    )


def teacher_key(name: str) -> str:
    """What stands for the teacher in every later key: sha256 of its file, and for official files how they are read."""
    path = teacher_path(name)
    if path.suffix == ".safetensors":
        return file_hash(path)
    return combine(file_hash(path), module_key("lib.weights.official", without=("lib.__init__", "lib.config")))


def load_world_model(path_or_name: str | Path, task: str | None = None, device: str = "cpu") -> WorldModel:
    """A world model in eval mode, float32, from a listed or shipped name, a file of ours, or an official `.pt` file.

    Weights that know many tasks are bound to `task`; weights of one task may be given its name.
    Raises `CheckpointError` when there is no such teacher, it cannot be fetched, the task is missing, unknown or
    another one, or a tensor is missing, extra, ill-shaped, of a wrong type or not finite.
    """
    name = str(path_or_name)
    path, listed = teacher_path(name), registry.find(name)
    bound = listed.task if listed else ""
    if path.suffix == ".safetensors":
        config, tensors, recorded = _read_ours(path)
        bound = recorded or bound
    if task and bound and task != bound:
        raise CheckpointError(f"{path} holds weights for {bound}, not for {task}.")
    if path.suffix != ".safetensors":
        config, tensors = official_weights.convert(official_weights.read(path), path, task or bound or None)
    wm = WorldModel(config, bound or task)
    check_tensors(tensors, {k: v.shape for k, v in wm.state_dict().items()}, path)
    wm.load_state_dict({k: v.float() for k, v in tensors.items()})
    return wm.eval().requires_grad_(False).to(resolve_device(device))


def _check_file(path: Path, suffix: str) -> None:
    """`CheckpointError` unless the file is a world model, of one task or many; it is told from its suffix."""
    _read_ours(path) if suffix == ".safetensors" else official_weights.infer(official_weights.read(path), path)


def _read_ours(path: Path) -> tuple[WorldModelConfig, dict[str, torch.Tensor], str]:
    """Configuration, tensors and task ("" when not recorded) of a file that `save_world_model` wrote, all checked."""
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("world_model")
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # the last two: types torch does not have
        raise CheckpointError(f"{path} is not a whole safetensors file of torch tensors: {error}.") from None
    if about is None:
        raise CheckpointError(f"{path} is no world model of this project: it says nothing of its shapes.")
    try:
        about = json.loads(about)
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path} is of format {about['format']!r}, not {FORMAT!r}.")
        config, task = WorldModelConfig(**about["config"]), str(about["task"])
        _check_config(config, len(tensors))
        with torch.device("meta"):  # shapes without memory: the file may declare any
            shapes = {k: v.shape for k, v in WorldModel(config).state_dict().items()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its 'config' cannot be used: {error}.") from None
    if not any(k.startswith("target_q_heads.") for k in tensors):  # left out of small files: planning never reads them
        tensors |= {f"target_{k}": v for k, v in tensors.items() if k.startswith("q_heads.")}
    check_tensors(tensors, shapes, path)
    return config, tensors, task


def _check_config(config: WorldModelConfig, num_tensors: int) -> None:
    """`ValueError` for a recorded value that is no width, count or number of a world model."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name.endswith("padding") else 1
        if field.type == "int" and (type(value) is not int or not least <= value < 2**20):
            raise ValueError(f"{field.name}={value!r}")
        if field.type == "float" and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{field.name}={value!r}")
    if config.latent_dim % config.simnorm_dim or config.num_enc_layers > num_tensors or config.num_q < 2:
        raise ValueError("latent_dim, simnorm_dim, num_enc_layers and num_q do not fit together")


def resolve_device(device: str) -> str:
    """ "auto" is the first GPU where there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


# ----------------------------------------------------------------------------------------------------- command line


def size_of(config: WorldModelConfig) -> str:
    """The named size of these widths. The latent does not count: official mt30 19m weights have 512 in place of 768."""
    for size, widths in MODEL_SIZES.items():
        if all(getattr(config, k) == v for k, v in widths.items() if k != "latent_dim"):
            return size
    return "of its own"


def info(name: str, manifest: str | None = None) -> dict[str, str]:
    """What is known of a teacher, as text by heading; nothing is fetched for it."""
    listed, facts = registry.find(name, manifest), {"name": name}
    if listed and listed.url and not registry.is_fetched(listed):
        facts |= {"task": listed.task or listed.tasks, "size": listed.size, "url": listed.url}
        facts["file"] = f"not fetched; `python -m lib.weights.native fetch {name}` fetches it"
        return facts | {"sha256": listed.sha256 or "unknown", "licence": listed.licence, "note": listed.note}
    path, tasks = teacher_path(name, manifest), [listed.task if listed else ""]
    if path.suffix == ".safetensors":
        c, _, task = _read_ours(path)
        tasks, embedding = [task or tasks[0]], ""
    else:
        c, count, width = official_weights.infer(official_weights.read(path), path)
        tasks, embedding = TASK_SETS.get(count, tasks), f", task embedding {width}" if count else ""
    checksum, told = file_hash(path), "not listed"
    if listed and listed.sha256:
        told = "as listed" if checksum == listed.sha256 else f"the listed one is {listed.sha256}"
    elif listed and listed.url:
        told = "as first downloaded" if intact(path) else f"changed since; `fetch {name}` mends it"
    facts |= {
        "task": f"{len(tasks)} tasks: {', '.join(tasks)}" if len(tasks) > 1 else tasks[0] or "not recorded",
        "size": size_of(c),
        "dimensions": f"{c.obs_dim} observations, {c.action_dim} actions, latent {c.latent_dim}, encoder of "
        f"{c.num_enc_layers} layers, {c.enc_dim} wide, others {c.mlp_dim} wide, {c.num_q} Q heads, {c.num_bins} bins"
        + embedding,
        "url": listed.url if listed else "",
        "file": f"{shown(path)}, {path.stat().st_size:,} bytes",
        "sha256": f"{checksum} ({told})",
        "licence": listed.licence if listed else "unknown",
    }
    if path.parent == paths.TEACHERS and path.with_suffix(".json").is_file():
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        spread = f" ± {card['return_std']:.1f}" if card["return_std"] is not None else ""
        facts["return"] = f"{card['return_mean']:.1f}{spread} over {len(card['returns'])} episodes (its card)"
    return facts


def _listing(manifest: str | None) -> list[str]:
    """A line for each teacher: name, size, whether it is here, what is known of its checksum, licence."""
    listed = registry.entries(manifest)
    listed = {name: registry.Entry(name, file=f"{name}.safetensors") for name in shipped_teachers()} | listed
    lines = []
    for name, entry in sorted(listed.items(), key=lambda item: (not item[1].file, item[0])):
        where = "shipped" if entry.file else "fetched" if registry.is_fetched(entry) else "not fetched"
        lines.append(f"{name:<36} {entry.size:<5} {where:<12} {(entry.sha256 or 'unknown')[:12]:<13} {entry.licence}")
    return [f"{'name':<36} {'size':<5} {'where':<12} {'sha256':<13} licence", *lines]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.weights.native", description="Teachers by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (
        ("list", "every teacher that has a name"),
        ("info", "tasks, dimensions, checksum and licence of teachers"),
        ("fetch", "download teachers, or verify those that are here; prints their paths"),
        ("register", "list teachers of data/teachers/ with their checksums"),
    ):
        sub = commands.add_parser(command, help=what)
        sub.add_argument("--manifest", help=f"a registry of your own; else the one {registry.MANIFEST_VARIABLE} names")
        if command != "list":
            sub.add_argument("names", nargs="+", metavar="NAME")
    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            print("\n".join(_listing(given.manifest)))
            return 0
        for name in given.names:
            if given.command == "fetch":
                print(shown(teacher_path(name, given.manifest, verify=True)))
            elif given.command == "register":
                print(f"{name}: {registry.register(name)}")
            else:
                print("\n".join(f"{key:<11} {value}" for key, value in info(name, given.manifest).items() if value))
    except CheckpointError as error:
        print(f"checkpoints: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("checkpoints: interrupted; what was not whole was not kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
