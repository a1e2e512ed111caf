"""Networks that were distilled from a teacher, as files: correctors and drafts.

save_network(corrector, path, teacher_key(teacher))
corrector = load_network(path, teacher_key(teacher))         # whatever of `NETWORKS` the file says that it is
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lib.correctors import CORRECTORS
from lib.drafts import DRAFTS

NETWORKS = {"corrector": CORRECTORS, "draft": DRAFTS}  # role -> classes by `arch`
MADE_IN = {"corrector": "03_train_corrector", "draft": "11_drafts"}


class NetworkError(RuntimeError):
    """A corrector or a draft cannot be used; the message says which and why."""


def save_network(network: nn.Module, path: Path, teacher: str) -> None:
    """Write weights, class, shape, and the sha256 of the teacher it was distilled from to a safetensors file.

    Drafts, which are several networks each, are kept in half precision, as teachers are.
    """
    role = next(role for role, kinds in NETWORKS.items() if type(network) in kinds.values())
    about = {"arch": network.arch, "shape": network.shape, "teacher": teacher}
    # One entry: safetensors writes several in random order, and equal networks must be equal files (keys hash them).
    metadata = {role: json.dumps(about, sort_keys=True)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file({k: v.half() for k, v in tensors.items()} if role == "draft" else tensors, path, metadata=metadata)


def load_network(path: str | Path, teacher: str | None = None) -> nn.Module:
    """A corrector or a draft in eval mode. `NetworkError` when the file is damaged, or was distilled from another
    teacher than the one with this sha256."""
    try:
        with safe_open(path, framework="pt") as file:
            [(role, text)] = file.metadata().items()
            about = json.loads(text)
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}
        with torch.device("meta"):  # shapes without memory: the file may declare any
            network = NETWORKS[role][about["arch"]](**about["shape"])
        network.load_state_dict(tensors, assign=True)
    except (
        SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, ZeroDivisionError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".")  # torch lists what does not fit over several lines
        raise NetworkError(f"{path} is no corrector or draft of this project: {reason}.") from None
    again = f"train it again with {MADE_IN[role]}"
    if not all(torch.isfinite(v).all() for v in tensors.values()):
        raise NetworkError(f"{path} holds weights that are not finite; {again}.")
    if teacher is not None and about.get("teacher") != teacher:
        raise NetworkError(f"{path} was distilled from another teacher; {again}.")
    return network.eval().requires_grad_(False)
