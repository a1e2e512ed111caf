"""Teachers from the command line: train, resume, ship with a card, and keep the zoo complete.

    python -m lib.teachers.cli train --task walker-walk --size 1m --seed 2   # or resumes a killed run
    python -m lib.teachers.cli ship --task walker-walk --size 1m --seed 2    # ships the run as far as it has got
    python -m lib.teachers.cli zoo                                           # trains and ships what `ZOO` lacks
    python -m lib.teachers.cli train --size 5m --seed 2 --offline train_buffer.safetensors --updates 10000
    python -m lib.teachers.cli train --task walker-walk --from-shipped 10000   # its folder is lost, its teacher is not
    torchrun --nproc-per-node 8 -m lib.teachers.cli train --task walker-walk --size 5m --seed 2   # on eight GPUs

Every field of `TeacherConfig` is an option. `lib.teachers.training` has the loop, and `lib.teachers.training_state`
says what a run keeps and where. Shipping writes `data/teachers/`: float16 weights, the learning curve, and a card with
the returns of exactly those; its episodes stay in the run's folder, `test_buffer.safetensors`, for the model's error.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes

from lib.config import ConfigError
from lib.environments import EnvironmentFailed
from lib.records import paths
from lib.records.ending import end_all, following
from lib.records.keys import ResultError
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import TIMEOUT, Ranks, started
from lib.teachers.replay import EpisodeFileError
from lib.teachers.shipping import go_on, replaced, ship
from lib.teachers.training import TrainingRun
from lib.weights import names as registry
from lib.weights.native import CheckpointError

# The teachers that `make teachers` sees to, in this order. The bars are 90 % of the official return at 100,000 frames,
# lower where official seeds scatter; without one a run is trained to the very end. No run of the offline study stops
# before the last of its snapshots. Beside them walker-walk-5m-1 is shipped, which no command line alone can train
# again: it began with the replay of walker-walk-1m-1, as its card says.
ZOO = (
    TeacherConfig("walker-walk", seed=1),
    TeacherConfig("cartpole-swingup", seed=1, stop_return=755, stop_from=20_000),
    TeacherConfig("reacher-easy", seed=1, stop_return=843, stop_from=20_000),
    TeacherConfig("cup-catch", seed=1, stop_return=883),
    TeacherConfig("cheetah-run", seed=1, stop_return=430),
    TeacherConfig("walker-run", seed=1, stop_return=600),
    TeacherConfig("walker-stand", seed=1, stop_return=880),
    TeacherConfig("finger-spin", seed=1, stop_return=850),
    TeacherConfig("walker-walk", seed=2, stop_return=866, stop_from=20_000),
    TeacherConfig("cartpole-swingup", seed=2, stop_return=755, stop_from=20_000),
    TeacherConfig("walker-walk", seed=3, stop_return=866, stop_from=20_000),
    TeacherConfig("cartpole-swingup", seed=3, stop_return=755, stop_from=20_000),
    TeacherConfig("gym:HalfCheetah-v5", decisions=40_000),
    TeacherConfig("gym:Hopper-v5", episodic=True, decisions=30_000),
)


def lacking() -> list[TeacherConfig]:
    """The zoo's teachers that are not shipped, or were shipped before their training was over."""
    return [config for config in ZOO if not _finished(config)]


def _finished(config: TeacherConfig) -> bool:
    weights = paths.TEACHERS / f"{config.name}.safetensors"
    card, bar = registry.card_of(weights, "decisions", "return_mean"), config.stop_return
    if not weights.is_file() or card is None:
        return False
    early = bool(card.get("stopped_early")) and bar is not None and card["return_mean"] >= bar
    return early or card["decisions"] >= config.decisions


def zoo(ranks: Ranks) -> None:
    """Train and ship what the zoo lacks, one teacher after the other, saying what is left.

    The few episodes of two evaluations may flatter a teacher. One that stopped early, and whose card is below the bar,
    is trained to its end.
    """
    left = ranks.from_main(lacking)
    while left:
        if ranks.main:
            print(f"the zoo lacks {len(left)} of {len(ZOO)}: {', '.join(c.name for c in left)}", flush=True)
        config, *left = left
        whole = dataclasses.replace(config, stop_return=None)
        for run in (whole,) if ranks.from_main(functools.partial(_below, config)) else (config, whole):
            TrainingRun(run, ranks=ranks).train()
            if ranks.from_main(functools.partial(_shipped, config, run)):
                break
    if ranks.main:
        print("the zoo lacks nothing")


def _below(config: TeacherConfig) -> bool:
    """Whether the teacher that is shipped stopped early and missed the bar: a killed run must not stop there again."""
    weights, bar = paths.TEACHERS / f"{config.name}.safetensors", config.stop_return
    card = registry.card_of(weights, "return_mean") or {}
    return bool(card.get("stopped_early")) and bar is not None and card["return_mean"] < bar


def _shipped(config: TeacherConfig, run: TeacherConfig) -> bool:
    """Ship a run of the zoo's `config`; whether the zoo wants no more of it."""
    _report(config, ship(run))
    return _finished(config)


def _report(config: TeacherConfig, card: dict) -> None:
    mean, bar = card["return_mean"], config.stop_return
    below = f", below its bar of {bar:g}" if bar is not None and mean < bar else ""
    print(f"{config.name}: {mean:.1f} over {len(card['returns'])} episodes{below}", flush=True)


# -------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Zoo:
    """Train and ship what the zoo lacks, one teacher after the other."""

    device: str = "auto"  # cpu, cuda[:N], or auto: a GPU for each process, if there is one
    timeout: float = TIMEOUT  # minutes that a process waits for another

    def run(self, ranks: Ranks) -> None:
        zoo(ranks)


@dataclass(frozen=True)
class Ship(Zoo):
    """Ship a run as far as it has got."""

    config: OmitArgPrefixes[TeacherConfig] = TeacherConfig()
    replace: bool = False  # also where another run's teacher is shipped

    def run(self, ranks: Ranks) -> None:
        run = TrainingRun(self.config, ranks=ranks)
        if not run.updates:
            raise ConfigError(f"{run.folder} holds no trained state to ship; train first.")

        def keep() -> None:
            run.snapshot()
            run.join()

        self._and_ship(keep, ranks)

    def _and_ship(self, work: Callable, ranks: Ranks) -> None:
        may_not = functools.partial(replaced, self.config, self.replace)
        if refusal := ranks.from_main(may_not):
            raise ConfigError(refusal)  # before hours of training, and again after them
        work()
        if ranks.main:
            if refusal := may_not():
                raise ConfigError(refusal)
            _report(self.config, ship(self.config))


@dataclass(frozen=True)
class Train(Ship):
    """Train a teacher, or go on where a killed run stopped, and ship it."""

    offline: tuple[Path, ...] = ()  # train on the episodes of these files, collect none
    updates: int | None = None  # optimiser steps with --offline
    from_shipped: int | None = None  # go on from the shipped teacher, after so many decisions that fill a replay anew

    def run(self, ranks: Ranks) -> None:
        if bool(self.offline) != (self.updates is not None):
            raise ConfigError("--offline and --updates go together.")
        if self.from_shipped is not None and (self.offline or self.from_shipped < 1):
            raise ConfigError("--from-shipped takes a number of decisions, at least 1, and cannot go with --offline.")
        for file in () if ranks.rank else self.offline:  # before there is a folder of the run
            if not file.is_file():
                raise ConfigError(f"{file} is not a file; give the train_buffer.safetensors of a run.")
        run = TrainingRun(self.config, ranks=ranks)
        if self.from_shipped:
            go_on(run, self.from_shipped)
        replay = functools.partial(run.train_offline, list(self.offline), self.updates)
        self._and_ship(replay if self.offline else run.train, ranks)


def main(arguments: list[str] | None = None) -> int:
    job = tyro.cli(Train | Ship | Zoo, prog="python -m lib.teachers.cli", args=arguments)
    ranks = None
    try:
        with following(end_all), started(job.device, job.timeout) as ranks:
            job.run(ranks)
    except (ConfigError, CheckpointError, EnvironmentFailed, EpisodeFileError, ResultError) as error:
        print(f"teacher: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("teacher: interrupted; the same command goes on from the last saved episode.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if ranks is None or ranks.world == 1:
            raise
        traceback.print_exc()
        print(
            f"teacher: rank {ranks.rank} of {ranks.world} stopped: {str(error).strip().splitlines()[0]} If it only "
            "lost another rank, that one's message says why. The same command, with any number of processes, goes on "
            "from the last saved episode.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
