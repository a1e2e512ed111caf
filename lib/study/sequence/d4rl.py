"""Trajectories in the files of others: D4RL's HDF5, and the pickled lists that older code made of it.

    trajectories = read_hdf5("hopper_medium-v2.hdf5")
    trajectories = read_pickle("hopper-medium-v2.pkl")       # runs no code of the file, whatever it holds

Both have the columns observations, actions and rewards. D4RL's lie end to end, with `terminals` and `timeouts` that say
where episodes end (Fu et al. 2020); a last part without an end is left out, as its return is not known, and a line on
stderr says how much that is.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib.study.sequence.windows import OfflineDataError, Trajectory

COLUMNS = ("observations", "actions", "rewards")
LONGEST = 1000  # decisions: where an episode ends in files without `timeouts`, as older code assumed
NUMBERS = "fiub"  # kinds of numpy dtypes that can be read


def read_hdf5(path: str | Path) -> list[Trajectory]:
    """The whole episodes of a D4RL file. `OfflineDataError` when it is damaged, or lacks a column."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = [n for n in (*COLUMNS, "terminals", "timeouts") if n in file]
            if missing := [n for n in (*COLUMNS, "terminals") if n not in names]:
                raise OfflineDataError(
                    f"{path} has no array {missing[0]!r}, so it is no D4RL file; of a Minari dataset, give the folder."
                )
            for name in names:
                if not isinstance(file[name], h5py.Dataset) or file[name].dtype.kind not in NUMBERS:
                    raise OfflineDataError(f"{path}: {name!r} is no array of numbers.")
            arrays = {name: file[name][()] for name in names}
    except (OSError, KeyError) as error:  # the latter: a link that leads nowhere
        raise OfflineDataError(f"{path} is not a whole HDF5 file: {str(error).rstrip('.')}.") from None
    return _cut(arrays, path)


def _cut(arrays: dict[str, np.ndarray], path: str | Path) -> list[Trajectory]:
    """Flat columns as trajectories, cut where they end."""
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise OfflineDataError(f"{path} is cut short: its arrays have {lengths} rows; they must have as many.")
    ends, start, trajectories = arrays["terminals"].astype(bool).reshape(-1), 0, []
    if "timeouts" in arrays:
        ends = ends | arrays["timeouts"].astype(bool).reshape(-1)
    for row in range(len(ends)):
        if ends[row] or ("timeouts" not in arrays and row + 1 - start == LONGEST):
            trajectories.append(_trajectory(*(arrays[name][start : row + 1] for name in COLUMNS)))
            start = row + 1
    if not trajectories:
        raise OfflineDataError(f"{path}: none of its {len(ends)} decisions ends an episode; give data with whole ones.")
    if left := len(ends) - start:
        print(
            f"{path}: the last {left} of {len(ends)} decisions are left out, as their episode has no end; "
            f"{len(trajectories)} whole episodes remain",
            file=sys.stderr,
        )
    return trajectories


def _trajectory(obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> Trajectory:
    rewards = rewards.reshape(-1) if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    return Trajectory(*(np.asarray(x, dtype=np.float32) for x in (obs, actions, rewards)))


# ---------------------------------------------------------------------------------------------------------- pickles


def read_pickle(path: str | Path) -> list[Trajectory]:
    """A pickled list of dicts of numpy arrays. `OfflineDataError` when it holds anything else; nothing of it is run."""
    try:
        with open(path, "rb") as file:
            episodes = _plain(_ArraysOnly(file, encoding="latin1").load())
    except OfflineDataError:
        raise
    except Exception as error:  # a damaged pickle can make its reader raise nearly anything
        raise OfflineDataError(f"{path} is not a whole pickle of numpy arrays: {str(error).rstrip('.')}.") from None
    if not isinstance(episodes, list) or not all(isinstance(e, dict) for e in episodes):
        raise OfflineDataError(f"{path} holds no list of episodes; each must be a dict of {', '.join(COLUMNS)}.")
    for number, episode in enumerate(episodes):
        wrong = [n for n in COLUMNS if not isinstance(episode.get(n), np.ndarray) or not episode[n].ndim]
        if wrong:
            raise OfflineDataError(f"{path}: episode {number} has no array {wrong[0]!r}.")
    return [_trajectory(*(episode[name] for name in COLUMNS)) for episode in episodes]


# A pickle names the functions that rebuild its objects. Those of numpy arrays are replaced by the ones below, which
# read numbers and nothing else; every other name is refused before it is looked up.


class _Dtype:
    """In place of numpy.dtype: a number's type, and its byte order."""

    def __init__(self, code, align=False, copy=False):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in NUMBERS:
            raise pickle.UnpicklingError(f"an array of type {code!r} is not one of numbers")

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of numpy.ndarray: its numbers, which come as bytes."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.array = _from_bytes(data, dtype, shape, "F" if fortran else "C").array


def _reconstruct(kind, shape, code) -> _Array:
    return _Array()


def _from_bytes(data, dtype: _Dtype, shape, order: str) -> _Array:
    made = _Array()
    made.array = np.frombuffer(_bytes(data), dtype.dtype).reshape(shape, order=order)
    return made


def _scalar(dtype: _Dtype, data) -> float:
    return np.frombuffer(_bytes(data), dtype.dtype).item()


def _bytes(data) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)  # str: from Python 2


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how protocols before 3 write bytes


ALLOWED: dict[str, Callable] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_bytes for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return ALLOWED[f"{module}.{name}"]


def _plain(value):
    """Lists and dicts with the arrays that stand for numpy's."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
