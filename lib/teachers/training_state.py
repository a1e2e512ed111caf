"""What a training run keeps: networks, replay, counters and random streams, and how they are saved and resumed.

A run lives in `data/cache/training/<task>-<size>-<seed>/`: `state.pt` (weights, optimisers, RNG, counters),
`replay/<first episode>.safetensors` (the episodes of all ranks in order of collection, each save's new ones in a file
of their own), `snapshots/<decisions>.safetensors`, `curve.csv`, and, once it has ended or was shipped, the whole replay
in one file: `train_buffer.safetensors`, for other runs and for studies. Only the main rank reads and writes these
files, so other machines need not see them. Resumed on the same number of ranks, each has its own episodes and random
streams back; on another number, the episodes are dealt out anew.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import numpy as np
import torch

from lib.config import ConfigError, PlannerConfig, as_dict, discount_for
from lib.environments import identity
from lib.planner import MPPI
from lib.records import paths
from lib.records.store import atomic_path, write_table
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import Ranks
from lib.teachers.learner import Learner
from lib.teachers.replay import Episode, ReplayBuffer, join_episodes, load_episodes, save_episodes
from lib.weights.native import save_world_model
from lib.world_model import WorldModel

CURVE_COLUMNS = ("decision", "frames", "return", "episodes", "minutes")
COUNTERS = ("decisions", "episodes", "updates", "owed", "diverged", "minutes", "fills_until", "continued")
CHUNK = 100  # episodes in one file at most, of those that are saved together
# Settings that may differ when a run is resumed: what is learned does not depend on them, or the number of ranks, which
# may differ too, has the same effect.
FREE = ("decisions", "compile", "save_every", "card_episodes", "snapshots", "stop_return", "stop_from")
FREE += ("envs", "env_processes", "sync_freq")


def run_folder(config: TeacherConfig) -> Path:
    """Folder of a training run."""
    return paths.CACHE / "training" / config.name


def changed_settings(config: TeacherConfig, saved: dict) -> str:
    """Names of the settings that a run may not change and that are not as saved; newer ones had their default."""
    saved = as_dict(TeacherConfig()) | saved
    return ", ".join(k for k, v in as_dict(config).items() if saved.get(k) != v and k not in FREE)


def task_beside(replay: Path) -> str:
    """The task of the run that a replay lies in the folder of; "" where no readable state says it."""
    try:
        state = torch.load(Path(replay).parent / "state.pt", weights_only=True, map_location="cpu", mmap=True)
        return str(json.loads(state["config"])["task"])
    except Exception:  # torch raises many types for one meaning: there is no such state
        return ""


def in_its_folder(method):
    """A method of `RunState` that no other process may run in the same folder at the same time; `ConfigError` else."""

    @functools.wraps(method)
    def locked(self, *arguments):
        if not self.ranks.main or fcntl is None:
            return method(self, *arguments)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is training in {self.folder}; let it finish, or end it.") from None
            return method(self, *arguments)  # the lock ends with the file, or with the process however that dies

    return locked


class RunState:
    """A run's networks, replay and counters. With several ranks every method is called by all of them.

    `updates` counts optimiser steps, `owed` the decisions of all ranks since the last one, `episodes` those begun, and
    `diverged` those of them that the simulator ended. `offline` describes the replay that the run began with, if it
    did, `continued` the weights that it went on from when its folder was lost, each time; `fills_until` is the decision
    until which it then only plays. Widths are those of the task's observations and actions, `whole` the decisions of
    its episodes.
    """

    def __init__(
        self, config: TeacherConfig, folder: Path | None, ranks: Ranks, obs_dim: int, action_dim: int, whole: int
    ):
        self.config, self.folder, self.ranks = config, folder or run_folder(config), ranks
        torch.manual_seed(config.seed)
        self.longest = min(config.episode_decisions or whole, whole)
        about = {"discount": discount_for(whole), "episodic": config.episodic}
        wm = WorldModel.from_size(config.size, obs_dim, action_dim, **about)
        wm.task = config.task
        self.learner = Learner(wm.to(ranks.device), config, ranks)
        budget = PlannerConfig.budget(config.collect_samples, config.collect_iterations, action_selection="sample")
        self.planner = MPPI(wm, budget)
        self.decisions = self.episodes = self.updates = self.owed = self.diverged = self.fills_until = 0
        self.minutes, self.curve, self.offline, self.continued = 0.0, [], None, []
        self.owners: list[int] = []  # rank that has each episode in its replay, in order of collection
        self.chunks: list[int] = []  # the first episode of each file of them
        self._unsaved: list[Episode] = []  # on the main rank: the last of all ranks' episodes, which no file has yet
        self._fill([], [])
        if ranks.rank:
            self._reseed()
        if state := ranks.from_main(self._read_state):
            self._resume(torch.load(io.BytesIO(state), weights_only=True, map_location="cpu"))

    def _reseed(self) -> None:
        """Streams of a rank's own. The main one's are those of a single process, which began the run or may end it."""
        seeds = np.random.SeedSequence([self.config.seed, self.ranks.rank, self.decisions]).generate_state(3)
        torch.manual_seed(int(seeds[0]))
        self.planner.reset_streams(int(seeds[1]))
        self.buffer.rng = np.random.default_rng(seeds[2])

    def _streams(self) -> dict:
        """The state of every random stream of this rank."""
        streams = {
            "rng": torch.get_rng_state(),
            "head_stream": self.planner.head_stream.get_state(),
            "replay_rng": json.dumps(self.buffer.rng.bit_generator.state),
        }
        on_gpu = self.ranks.device.type == "cuda"
        return streams | ({"cuda_rng": torch.cuda.get_rng_state(self.ranks.device)} if on_gpu else {})

    def _restore_streams(self, streams: dict) -> None:
        self.buffer.rng.bit_generator.state = json.loads(streams["replay_rng"])
        self.planner.head_stream.set_state(streams["head_stream"])
        torch.set_rng_state(streams["rng"])
        if "cuda_rng" in streams and self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(streams["cuda_rng"], self.ranks.device)

    def save(self) -> None:
        """New episodes first, then the state that says how many count: a kill between the two loses nothing."""
        streams = self.ranks.gathered(self._streams())
        if not self.ranks.main:
            return
        while self._unsaved:
            self.chunks.append(len(self.owners) - len(self._unsaved))
            with atomic_path(self._files()[-1]) as path:
                save_episodes(path, self._unsaved[:CHUNK])
            del self._unsaved[:CHUNK]
        state = {
            "config": json.dumps(as_dict(self.config)),
            "environment": identity(self.config.task),
            "wm": self.learner.wm.state_dict(),
            "learner": self.learner.state_dict(),
            "counters": {k: getattr(self, k) for k in COUNTERS},
            "curve": self.curve,
            "offline": self.offline,
            "owners": self.owners,
            "chunks": self.chunks,
            "ranks": streams[1:],
            **streams[0],
        }
        with atomic_path(self.folder / "state.pt") as path:
            torch.save(state, path)
        write_table(self.folder / "curve.csv", self.curve or [dict.fromkeys(CURVE_COLUMNS)])

    def _read_state(self) -> bytes:
        """The main rank's state.pt as bytes, empty if there is none."""
        path = self.folder / "state.pt"
        return path.read_bytes() if path.is_file() else b""

    def _resume(self, state: dict) -> None:
        if "environment" not in state:
            raise ConfigError(f"{self.folder} is of an earlier version of this code; remove that folder to start anew.")
        if state["environment"] != identity(self.config.task):
            raise ConfigError(
                f"{self.folder} was trained on another {self.config.task}; remove that folder to start anew."
            )
        if changed := changed_settings(self.config, json.loads(state["config"])):
            raise ConfigError(f"{self.folder} was trained with another {changed}; remove that folder to start anew.")
        self.learner.wm.load_state_dict(state["wm"])
        self.learner.load_state_dict(state["learner"])
        for name, value in state["counters"].items():
            setattr(self, name, value)
        self.curve, self.offline, owners, self.chunks = (state[k] for k in ("curve", "offline", "owners", "chunks"))
        streams = [state, *state["ranks"]]
        if len(streams) != self.ranks.world:  # another number of ranks: the episodes are dealt out anew
            owners = [i % self.ranks.world for i in range(len(owners))]
        if owners:
            self._fill(self.ranks.from_main(self._read_replay), owners)
        if self.ranks.rank < len(streams):
            self._restore_streams(streams[self.ranks.rank])
        else:
            self._reseed()

    def begin_from(self, card: dict, weights: dict, curve: list[dict], sha256: str, first: int) -> None:
        """Go on from shipped weights, with a replay that is empty, optimisers that begin anew and streams of their own.

        As a run begins with decisions of a random policy, this one goes on with `first` decisions of its planner, and
        then makes as many updates.
        """
        self.learner.wm.load_state_dict(weights)
        self.learner.scale.value = torch.tensor(card["scale"])
        for name in ("decisions", "episodes", "updates", "diverged", "minutes", "offline"):
            setattr(self, name, card[name])
        self.curve, self.fills_until = curve, self.decisions + first
        self.continued = [*card["continued"], {"decisions": self.decisions, "sha256": sha256, "played": first}]
        self._reseed()

    def _read_replay(self) -> list[Episode]:
        """The main rank's episodes, those that the state counts."""
        return [episode for file in self._files() for episode in load_episodes(file)]

    def _files(self) -> list[Path]:
        """The files of the episodes that the state counts; a killed run may have written one more."""
        return [self.folder / "replay" / f"{first:08}.safetensors" for first in self.chunks]

    def _fill(self, episodes: list[Episode], owners: list[int]) -> None:
        """Begin this rank's replay with its part of all ranks' episodes. Memory that is not used is not taken."""
        config, wm = self.config, self.learner.wm
        room = max(config.decisions, sum(map(len, episodes))) + (config.envs + 1) * self.longest
        self.buffer = ReplayBuffer(room, wm.config.obs_dim, wm.action_dim, config.seed, config.episodic)
        self.owners = []
        self._store(episodes, owners)
        self._unsaved = []

    def _store(self, episodes: list[Episode], owners: list[int]) -> None:
        """Take note of all ranks' new episodes, in their order, and keep this rank's."""
        for episode, owner in zip(episodes, owners, strict=True):
            if owner == self.ranks.rank:
                self.buffer.add(episode)
        self.owners += owners
        if self.ranks.main:
            self._unsaved += episodes

    def snapshot(self) -> None:
        """Keep the weights as they are now, in float16 and without target heads."""
        if self.ranks.main:
            with atomic_path(self.folder / "snapshots" / f"{self.decisions}.safetensors") as path:
                save_world_model(self.learner.wm, path, half=True, targets=False)

    def join(self) -> None:
        """Keep the episodes that are saved in one file as well."""
        if self.ranks.main and self.chunks:
            with atomic_path(self.folder / "train_buffer.safetensors") as path:
                join_episodes(path, self._files())
