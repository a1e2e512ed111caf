"""Several processes that train one model, as torchrun starts them: who am I, and what the ranks tell each other.

    torchrun --nproc-per-node 8 -m lib.teachers.cli train --task walker-walk --size 5m --seed 2  # on each GPU

    with started("auto") as ranks:               # one process: `ALONE`, and every call below does nothing
        module = ranks.averaged(loss, wm, parameters)
        decisions = ranks.total(decisions)

Tensors on a GPU travel by NCCL, everything else by gloo.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib.config import ConfigError

TIMEOUT = 30.0  # minutes that a rank waits for another: compiling and measuring a card are the longest waits


class DistributedError(RuntimeError):
    """The ranks no longer agree; the message says in what and what to do."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them, and the device it works on. Methods that talk are called by all ranks."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this rank logs and saves."""
        return self.rank == 0

    def share(self, items: Sequence) -> list:
        """This rank's part of a list; the parts of all ranks are disjoint and make up the list."""
        return list(items[self.rank :: self.world])

    def total(self, number: int) -> int:
        """The sum of a number over the ranks."""
        if self.world == 1:
            return number
        sum_ = torch.tensor(number)
        dist.all_reduce(sum_)
        return int(sum_)

    def concatenated(self, x: Tensor) -> Tensor:
        """x (B, …) of every rank, in order of rank -> (world B, …), the same bits everywhere."""
        if self.world == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def gathered(self, value) -> list:
        """A Python value of every rank, in order of rank, on the main one; elsewhere an empty list."""
        if self.world == 1:
            return [value]
        values = [None] * self.world if self.main else None
        dist.gather_object(value, values)
        return values or []

    def exchanged(self, value) -> list:
        """A Python value of every rank, in order of rank, everywhere."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable):
        """What `make()` returns on the main rank, everywhere. Other ranks need not see the main one's files."""
        if self.world == 1:
            return make()
        box = [make() if self.main else None]
        dist.broadcast_object_list(box)
        return box[0]

    def averaged(self, function: Callable, model: nn.Module, trained: Sequence[nn.Parameter]) -> nn.Module | Callable:
        """`function` as the forward of a DDP module whose backward averages the gradients of `trained` over the ranks.

        Only `trained` may receive gradients from it, and every one of them must: DDP waits for each. Parameters that
        are frozen when DDP is made are none of its business, and so each loss has a module with its own parameters.
        """
        if self.world == 1:
            return function
        # One graph per loss, as in a single process: split at DDP's buckets, the compiler's options would not fit.
        torch._dynamo.config.optimize_ddp = False
        wanted, flags = {id(p) for p in trained}, [(p, p.requires_grad) for p in model.parameters()]
        try:
            for p, _ in flags:
                p.requires_grad_(id(p) in wanted)
            return DistributedDataParallel(_Forward(function, model))
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)

    def check_equal(self, tensors: dict[str, Tensor]) -> None:
        """Compare a checksum of each tensor's bits over the ranks; `DistributedError` names what differs."""
        if self.world == 1:
            return
        sums = self.exchanged({name: _checksum(x) for name, x in tensors.items()})
        for name in tensors:
            if others := [r for r, found in enumerate(sums) if found.get(name) != sums[0][name]]:
                raise DistributedError(
                    f"{name} differs between rank 0 and rank {', '.join(map(str, others))}: gradients were not "
                    "averaged over the same steps. Start again from the last saved state; if that recurs, a forward of "
                    "the update does not go through the DDP module."
                )


ALONE = Ranks()


class _Forward(nn.Module):
    """A function that reads a model's parameters, as DDP wants it: as the forward of a module that has them."""

    def __init__(self, function: Callable, model: nn.Module):
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *inputs):
        return self.function(*inputs)


def accumulating(module, last: bool):
    """Context of one micro-batch: gradients are added up, and averaged over the ranks with the last one only."""
    alone = last or not isinstance(module, DistributedDataParallel)
    return contextlib.nullcontext() if alone else module.no_sync()


def _checksum(x: Tensor) -> int:
    """A number that differs when a bit of x (float32) does, or when two elements change places."""
    bits = x.detach().float().contiguous().view(torch.int32).flatten().long()
    return int((bits * (2 * torch.arange(len(bits), device=x.device) + 1)).sum())


def torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def resolve_device(device: str) -> torch.device:
    """cpu, cuda[:N] or auto: this process's GPU, always with its number, if there is one.

    Raises `ConfigError` for another device, and when there are too few GPUs.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not match:
        raise ConfigError(f"device={device!r} is not known; use auto, cpu or cuda[:N].")
    if device == "cpu":
        return torch.device(device)
    there, number = torch.cuda.device_count(), int(match[1] or 0)
    if not there:
        raise ConfigError(f"device={device!r} needs a GPU, and torch sees none on this machine; use cpu or auto.")
    if torchrun():
        if match[1]:
            raise ConfigError(f"device={device!r} would be every process's under torchrun; cuda gives each its own.")
        number = int(os.environ["LOCAL_RANK"])
        if number >= there:
            raise ConfigError(
                f"this machine has {there} GPUs, and torchrun started {number + 1} or more processes on it; "
                f"give --nproc-per-node {there}, or --device cpu."
            )
    if number >= there:
        raise ConfigError(f"device={device!r} is not there: this machine has {there} GPUs, counted from 0.")
    return torch.device("cuda", number)


@contextlib.contextmanager
def started(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """The ranks of this job: those that torchrun started, else this process alone. `timeout` in minutes."""
    where = resolve_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if not torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Ranks(device=where)
        return
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout))
    yield Ranks(dist.get_rank(), dist.get_world_size(), where)
    # Not after an error: the others may be gone, and closing would wait for them. The process ends anyway.
    dist.destroy_process_group()
