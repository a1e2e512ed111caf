"""Offline data by name: made here from the shipped teachers and kept in Minari's format, or from elsewhere.

    data = load_dataset("expert", settings, cell, episodes=50)       # plays what is not recorded yet
    data = load_dataset("mujoco/hopper/medium-v0")                   # a Minari id, fetched where it is not here
    data = load_dataset("path/to/minari/folder")
    data = load_dataset("hopper_medium-v2.hdf5")                     # D4RL; also .pkl, and our own .safetensors

`lib.study.sequence.teacher_episodes` says what expert, medium, medium-replay and mixed are. The teachers plan with a
right-sized planner, as the card in each dataset's metadata says. Everything of Minari's is kept in
`data/cache/minari/`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np

from lib.config import ConfigError, quoted
from lib.environments import make_env
from lib.files import temporary
from lib.records import paths
from lib.records.keys import shown
from lib.records.store import explained
from lib.study.cells import Cell, Settings
from lib.study.sequence.d4rl import read_hdf5, read_pickle
from lib.study.sequence.teacher_episodes import KINDS, recorded, sources
from lib.study.sequence.windows import OfflineDataError, Trajectory, TrajectorySet
from lib.teachers.replay import Episode, EpisodeFileError, load_episodes

MINARI_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
UNREACHED = re.compile("Connect|Timeout|Offline|Network|Proxy|LocalEntryNotFound")  # in names of errors, of any package


def read_episodes(path: Path) -> list[Trajectory]:
    """The trajectories of a file that `lib.teachers.replay.save_episodes` wrote, such as the replay of a run."""
    try:
        return [Trajectory(e.obs[:-1], e.actions, e.rewards) for e in load_episodes(path)]
    except EpisodeFileError as error:
        raise OfflineDataError(str(error)) from None


FORMATS = {
    ".hdf5": read_hdf5,
    ".h5": read_hdf5,
    ".pkl": read_pickle,
    ".pickle": read_pickle,
    ".safetensors": read_episodes,
}


def load_dataset(name: str, settings: Settings | None = None, cell: Cell | None = None, episodes=50) -> TrajectorySet:
    """The trajectories of a dataset (see the module). `settings`, `cell` and `episodes` are for those made here.

    Raises `ConfigError` for a name that is none of the above, `OfflineDataError` for data that cannot be used.
    """
    check_name(name)
    path = Path(name)
    if name in KINDS:
        return read_minari(teacher_dataset(settings, cell, name, episodes))
    if path.is_dir():
        return read_minari(path)
    if path.suffix in FORMATS:
        return TrajectorySet(path.name, FORMATS[path.suffix](path), {"file": shown(path)})
    return read_minari(minari_folder(name))


def check_name(name: str) -> None:
    """`ConfigError` for what names no dataset, `OfflineDataError` for a file that is not there; fetches nothing."""
    if name in KINDS or os.path.isdir(name) or MINARI_ID.fullmatch(name) and len(name) <= paths.LONGEST:
        return
    if Path(name).suffix in FORMATS:
        if os.path.isfile(name):
            return
        raise OfflineDataError(f"there is no file {quoted(name)}; give the path of one that exists.")
    raise ConfigError(
        f"dataset={quoted(name)} is not known; use one of {', '.join(KINDS)}, a Minari id such as "
        f"mujoco/hopper/medium-v0, a Minari folder, or a file that ends in {', '.join(FORMATS)}."
    )


def dataset_label(name: str, cell: Cell) -> str:
    """What stands for a dataset in the names of result files: 1m-1-expert, mujoco-hopper-medium-v0."""
    if name in KINDS:
        return f"{str(cell).removeprefix(f'{paths.file_name(cell.task)}-')}-{name}"
    return paths.part(Path(name).stem if os.path.exists(name) else name)


# ----------------------------------------------------------------------------------------------- of our own teachers


def teacher_dataset(settings: Settings, cell: Cell, kind: str, episodes: int) -> Path:
    """The Minari folder of a kind of dataset, made of `episodes` episodes that its sources share evenly.

    Raises `ConfigError` for fewer episodes than sources, and for a kind that the teacher has no snapshots for.
    """
    who = sources(kind, settings.teacher_name(cell))
    if episodes < len(who):
        raise ConfigError(f"{kind} has {len(who)} sources, but {episodes} episodes were asked for; ask for as many.")
    counts = [episodes // len(who) + (i < episodes % len(who)) for i in range(len(who))]
    parts = [recorded(source, settings, cell, count) for source, count in zip(who, counts, strict=True)]
    played = [episode for part, _ in parts for episode in part]
    returns = [float(e.rewards.sum(dtype=np.float64)) for e in played]
    card = {
        "kind": kind,
        "task": cell.task,
        "teacher": settings.teacher_name(cell),
        "episodes": len(played),
        "decisions": sum(map(len, played)),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if len(returns) > 1 else None,
        "return_min": min(returns),
        "return_max": max(returns),
        "sources": [about for _, about in parts],
        "note": "played by a right-sized planner, not by the standard one of the teacher's own card",
    }
    name = f"tdmpc2/{cell}/{kind}-{settings.profile.name}-{episodes}-v0"
    return write_minari(name, played, cell.task, card)


# ------------------------------------------------------------------------------------------------------------ Minari


def minari_root() -> Path:
    """Where all Minari datasets of this project are."""
    return paths.CACHE / "minari"


def write_minari(name: str, episodes: list[Episode], task: str, card: dict) -> Path:
    """Write episodes of a task as the Minari dataset `name` and return its folder, `minari_root() / name`.

    One that was there goes once the new one is whole.
    """
    import minari
    from gymnasium.envs.registration import EnvSpec
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder, env = minari_root() / name, make_env(task)
    with explained(folder), temporary(folder) as place, explained(folder):
        place.mkdir()
        storage = MinariStorage.new(
            place / "data",
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=EnvSpec(
                f"{paths.file_name(task)}-v0", entry_point="lib.environments:make_env", kwargs={"task": task}
            ),
        )
        facts = {"dataset_id": name, "minari_version": minari.__version__, "algorithm_name": "TD-MPC2"}
        storage.update_metadata(facts | {"description": card["note"], "card": card})
        storage.update_episodes(
            EpisodeBuffer(
                observations=e.obs,
                actions=e.actions,
                rewards=e.rewards,
                terminations=np.arange(1, len(e) + 1) == (len(e) if e.terminated else -1),
                truncations=np.arange(1, len(e) + 1) == (-1 if e.terminated else len(e)),
            )
            for e in episodes
        )
        shutil.rmtree(folder, ignore_errors=True)
        place.rename(folder)
    return folder


def read_minari(folder: Path) -> TrajectorySet:
    """The trajectories of a Minari dataset: the folder that has `data/`, or that one itself.

    Raises `OfflineDataError` when it is damaged, or its observations or actions are not vectors.
    """
    import minari

    data = folder / "data" if (folder / "data").is_dir() else folder
    try:
        dataset = minari.MinariDataset(data)
        about = {"minari": dataset.id, "card": dataset.storage.metadata.get("card")}
        found = [(e.observations, e.actions, e.rewards) for e in dataset.iterate_episodes()]
    except Exception as error:  # whatever the storage's format raises for a file that is cut short
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise OfflineDataError(
            f"{shown(folder)} is no Minari dataset that can be read: {reason[0].rstrip('.')}."
        ) from None
    for number, (obs, actions, rewards) in enumerate(found):
        if not all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in (obs, actions, rewards)):
            raise OfflineDataError(
                f"{dataset.id} has observations {dataset.observation_space} and actions {dataset.action_space}; only "
                "vectors of numbers can be learnt from."
            )
        if len(obs) != len(actions) + 1:
            raise OfflineDataError(
                f"episode {number} of {dataset.id} has {len(obs)} observations and {len(actions)} actions; it needs "
                "one observation more than actions."
            )
    vectors = ((obs[:-1], actions, rewards) for obs, actions, rewards in found)
    trajectories = [Trajectory(*(np.asarray(x, dtype=np.float32) for x in parts)) for parts in vectors]
    return TrajectorySet(dataset.id, trajectories, about)


def minari_folder(name: str) -> Path:
    """The folder of a Minari dataset by its id, downloaded with Minari's progress bars unless it is here.

    A download that breaks off leaves nothing that could be taken for the dataset, and goes on at the next call. Raises
    `OfflineDataError` without a connection, or when Minari knows no such dataset.
    """
    folder, incoming = minari_root() / name, minari_root() / ".incoming"
    if (folder / "data").is_dir():
        return folder
    import minari
    from huggingface_hub import constants

    kept = os.environ.get("MINARI_DATASETS_PATH"), constants.HF_HUB_CACHE  # neither is to be the user's home
    os.environ["MINARI_DATASETS_PATH"], constants.HF_HUB_CACHE = str(incoming), str(incoming / ".hub")
    try:
        minari.download_dataset(name, force_download=True)  # "force": go on where a part of it is there
    except Exception as error:  # of the network, by whichever of three packages met it first; or of Minari
        reason, kind = (str(error).strip().splitlines() or [""])[0].rstrip("."), type(error).__name__
        reason = f"no server can be reached ({kind})" if UNREACHED.search(kind) else reason or kind
        raise OfflineDataError(
            f"the Minari dataset {name} is not in {shown(minari_root())} and cannot be downloaded: {reason}; give a "
            "local folder or file, or a dataset that is made here, such as expert."
        ) from None
    finally:
        if kept[0] is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = kept[0]
        constants.HF_HUB_CACHE = kept[1]
    folder.parent.mkdir(parents=True, exist_ok=True)
    (incoming / name).rename(folder)
    return folder
