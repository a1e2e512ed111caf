"""The distillation set: states where plans have gone stale, what the teacher would do there, and how they are kept.

    data = DistillationSet.load(*files)          # the files of several collections become one set
    data = data.filtered(min_mismatch=0.1)
    history = data.history_index(4)              # (n, 4) rows: each state and the three of its plan before it

A file says what it holds: the schema of its columns and where they come from stand in its metadata. Both are checked
when it is read. Files are read one after the other into columns of their final length, so the set is in memory once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "distillation/2"
SOURCES = ("standard", "right-sized")  # which planner made the plan that went stale; the column holds the position

# Column -> dtype, shape, meaning. Letters: n states, m states solved twice, L latent, H plan horizon, A actions.
# Latents are in half precision: they lie in [0, 1], and they are nearly all of the memory.
COLUMNS = {
    "z_real": ("float16", "nL", "latent of the observation, entries in [0, 1]"),
    "z_pred": ("float16", "nL", "latent that the world model predicted from the actions executed, entries in [0, 1]"),
    "a_plan": ("float32", "nA", "action of the stale plan, in [-1, 1]"),
    "a_policy": ("float32", "nA", "mean of the policy prior at z_real, in [-1, 1]"),
    "a_teacher": ("float32", "nA", "the label: first action of a full solve from z_real, in [-1, 1]"),
    "plan": ("float32", "nHA", "the whole stale plan from its depth 0 on, in [-1, 1]"),
    "teacher_plan": ("float32", "nHA", "the whole plan of the label, from this decision on, in [-1, 1]"),
    "depth": ("int64", "n", "decisions since the plan was made, 1 and up"),
    "mismatch": ("float32", "n", "total variation between z_real and z_pred, in [0, 1]"),
    "episode": ("int64", "n", "seed of the episode"),
    "decision": ("int64", "n", "decisions since the start of the episode"),
    "source": ("int64", "n", "planner of the stale plan: " + ", ".join(f"{i} {s}" for i, s in enumerate(SOURCES))),
    "again_index": ("int64", "m", "rows that were solved a second time, independently"),
    "a_again": ("float32", "mA", "first action of that second solve, in [-1, 1]"),
}
LAYOUT = {name: [dtype, shape] for name, (dtype, shape, _) in COLUMNS.items()}
ROWS = tuple(name for name, (_, shape, _) in COLUMNS.items() if shape[0] == "n")
AGREE = ("task", "teacher_key", "labeller", "execution_horizon")  # facts that all files of one set share
CHECKED_AT_ONCE = 8192  # rows; a mask of all of them would need half the memory of the set again


class DistillationError(ValueError):
    """A distillation set cannot be used; the message says which and why."""


@dataclass
class DistillationSet:
    """Labelled states, n rows: z_real, z_pred (n, L) float16; a_plan, a_policy, a_teacher (n, A); plan, teacher_plan
    (n, H, A); depth, episode, decision, source (n,) int64; mismatch (n,). `again_index` (m,) are the rows solved a
    second time, `a_again` (m, A) what that gave. `COLUMNS` says what each means.

    `about`: task, teacher, teacher_key, labeller, planner, execution_horizon and more, as far as they are known and the
    same for all rows.
    """

    z_real: Tensor
    z_pred: Tensor
    a_plan: Tensor
    a_policy: Tensor
    a_teacher: Tensor
    plan: Tensor
    teacher_plan: Tensor
    depth: Tensor
    mismatch: Tensor
    episode: Tensor
    decision: Tensor
    source: Tensor
    again_index: Tensor
    a_again: Tensor
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.depth)

    def columns(self) -> dict[str, Tensor]:
        """All columns by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    # ---------------------------------------------------------------------------------------------- choosing rows

    def rows(self, keep: Tensor) -> DistillationSet:
        """The rows where `keep` (n,) is true."""
        new_place = keep.cumsum(0) - 1
        again = keep[self.again_index]
        chosen = {name: getattr(self, name)[keep] for name in ROWS}
        chosen |= {"again_index": new_place[self.again_index[again]], "a_again": self.a_again[again]}
        return DistillationSet(**chosen, about=self.about)

    def filtered(self, min_mismatch: float = 0.0, max_samples: int = 0) -> DistillationSet:
        """The rows that drifted at least `min_mismatch`; of these at most `max_samples` (0 = all), evenly spaced."""
        if max_samples < 0:
            raise DistillationError(f"max_samples={max_samples} must not be negative; 0 keeps all.")
        keep = self.mismatch >= min_mismatch
        if max_samples and keep.sum() > max_samples:
            spaced = torch.linspace(0, keep.sum().item() - 1, max_samples).long()
            keep = torch.zeros_like(keep).index_fill(0, keep.nonzero().flatten()[spaced], True)
        if not keep.any():
            raise DistillationError(
                f"no state has a mismatch of {min_mismatch}; the largest is {self.mismatch.max():.3f}."
            )
        return self.rows(keep)

    def history_index(self, length: int) -> Tensor:
        """Row numbers (n, `length`) of the last states of the same plan, the current one last; −1 where there is none.

        The states of a plan are those of consecutive decisions at depths 1, 2, … of one episode; where one was filtered
        out, it and all before it are −1. Raises `DistillationError` for a length below 1.
        """
        if length < 1:
            raise DistillationError(f"a history of {length} states was asked for; it needs at least 1.")
        source, episode, decision, depth = (
            getattr(self, k).numpy() for k in ("source", "episode", "decision", "depth")
        )
        order = np.lexsort((decision, episode, source))
        first, then = order[:-1], order[1:]
        follows = (source[first] == source[then]) & (episode[first] == episode[then])
        follows &= (decision[first] + 1 == decision[then]) & (depth[first] + 1 == depth[then])
        before = np.full(len(self) + 1, -1)  # the row at the end stands for "none": none is before none
        before[then[follows]] = first[follows]
        index = np.empty((len(self), length), dtype=np.int64)
        index[:, -1] = np.arange(len(self))
        for k in range(length - 1, 0, -1):
            index[:, k - 1] = before[index[:, k]]
        return torch.from_numpy(index)

    def floor_mse(self) -> float:
        """Half the mean squared difference of two independent teacher solves; NaN when nothing was solved twice."""
        if not len(self.again_index):
            return float("nan")
        return 0.5 * (self.a_teacher[self.again_index] - self.a_again).square().mean().item()

    # -------------------------------------------------------------------------------------------------- on disk

    def save(self, path: Path) -> None:
        """Write the columns, their schema and `about`. Raises `DistillationError` when a column does not fit it."""
        columns = self.columns()
        _sizes({k: (str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in columns.items()}, path)
        # One entry: safetensors writes several in random order, and equal sets must be equal files (keys hash them).
        said = {"format": FORMAT, "columns": LAYOUT, "about": self.about}
        said["meanings"] = {name: meaning for name, (_, _, meaning) in COLUMNS.items()}
        metadata = {"distillation_set": json.dumps(said, sort_keys=True)}
        save_file({k: v.contiguous() for k, v in columns.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, *files: Path) -> DistillationSet:
        """The rows of all files, in order. `DistillationError` when one is damaged, empty, not finite, or of another
        teacher, task, latent width or schema than the first, or when two files hold the same episode."""
        found = [_read_header(file) for file in files]
        for file, (sizes, about) in zip(files, found, strict=True):
            _same(file, sizes, about, files[0], *found[0])
        total = found[0][0] | {k: sum(sizes[k] for sizes, _ in found) for k in "nm"}
        columns = {
            name: torch.empty([total[letter] for letter in shape], dtype=getattr(torch, dtype))
            for name, (dtype, shape, _) in COLUMNS.items()
        }
        start, seen = {"n": 0, "m": 0}, set()
        for file, (sizes, _) in zip(files, found, strict=True):
            part = {name: column.narrow(0, start[COLUMNS[name][1][0]], sizes[COLUMNS[name][1][0]])
                    for name, column in columns.items()}  # fmt: skip
            _read_columns(file, part)
            episodes = set(zip(part["source"].tolist(), part["episode"].tolist(), strict=True))
            if seen & episodes:
                raise DistillationError(f"{file} holds an episode that the files before it hold too; leave it out.")
            seen |= episodes
            part["again_index"] += start["n"]
            start = {k: start[k] + sizes[k] for k in start}
        common = found[0][1].items()
        return cls(**columns, about={k: v for k, v in common if all(about.get(k) == v for _, about in found)})


def _sizes(columns: dict[str, tuple[str, tuple[int, ...]]], where: Path) -> dict[str, int]:
    """What the letters n, m, L, H and A stand for, from (dtype, shape) by column; `DistillationError` if none fits."""
    if columns.keys() != COLUMNS.keys():
        wrong = ", ".join(sorted(columns.keys() ^ COLUMNS.keys()))
        raise DistillationError(f"{where} has other columns than a distillation set ({wrong}); collect it again.")
    sizes: dict[str, int] = {}
    for name, (dtype, shape, _) in COLUMNS.items():
        have_dtype, have = columns[name]
        fits = have_dtype == dtype and len(have) == len(shape)
        if not fits or any(sizes.setdefault(letter, size) != size for letter, size in zip(shape, have, strict=True)):
            raise DistillationError(
                f"{where}: column {name} is {have_dtype} {list(have)}, which does not fit {dtype} [{', '.join(shape)}] "
                f"with {', '.join(f'{k} = {v}' for k, v in sizes.items())}; collect the set again."
            )
    return sizes


def _read_header(file: Path) -> tuple[dict[str, int], dict]:
    """Sizes and `about` of a file, of which only the header is read."""
    dtypes = {"F16": "float16", "F32": "float32", "I64": "int64"}
    try:
        with safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {}).get("distillation_set", "null"))
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            have = {k: (dtypes.get(s.get_dtype(), s.get_dtype()), tuple(s.get_shape())) for k, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DistillationError(f"{file} is not a distillation set: {str(error).rstrip('.')}.") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT or not isinstance(said.get("about"), dict):
        raise DistillationError(f"{file} is not a distillation set of format {FORMAT}; collect it again.")
    if said.get("columns") != LAYOUT:
        raise DistillationError(f"{file} was written with another schema of columns than today's; collect it again.")
    sizes = _sizes(have, file)
    if not sizes["n"]:
        raise DistillationError(f"{file} is empty; collect it again.")
    return sizes, said["about"]


def _same(file: Path, sizes: dict, about: dict, first: Path, first_sizes: dict, first_about: dict) -> None:
    """`DistillationError` unless both files can be parts of one set."""
    names = {"L": "a latent width of", "H": "a plan horizon of", "A": "a number of actions of"}
    differ = [f"{names[k]} {sizes[k]} and not {first_sizes[k]}" for k in names if sizes[k] != first_sizes[k]]
    differ += [f"another {k.replace('_', ' ')}" for k in AGREE if about.get(k) != first_about.get(k)]
    if differ:
        raise DistillationError(f"{file} has {' and '.join(differ)}, unlike {first}; they are not of one set.")


def _read_columns(file: Path, into: dict[str, Tensor]) -> None:
    """Copy the columns of a file to where they belong, and check their values."""
    with safe_open(file, framework="pt") as opened:
        for name, place in into.items():
            place.copy_(opened.get_tensor(name))
    if not all(_finite(column.split(CHECKED_AT_ONCE)) for column in into.values()):
        raise DistillationError(f"{file} holds values that are not finite; collect it again.")
    again, rows = into["again_index"], len(into["depth"])
    if len(again) and not (0 <= again.min() and again.max() < rows):
        raise DistillationError(f"{file}: again_index names rows that it does not have; collect it again.")
    if not (0 <= into["source"].min() and into["source"].max() < len(SOURCES)):
        raise DistillationError(f"{file}: column source must hold 0…{len(SOURCES) - 1}; collect it again.")


def _finite(parts: Iterable[Tensor]) -> bool:
    return all(torch.isfinite(part).all() for part in parts)
