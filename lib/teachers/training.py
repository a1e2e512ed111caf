"""The training loop of a TD-MPC2 teacher, in one process or in several that torchrun starts.

Training goes in rounds: every environment of every rank plays one episode, in lockstep. Whatever the number of ranks
and environments, as many batches are drawn, in all, as decisions are made (for the seed phase, which is whole rounds
of random actions, when it is over); ranks and `sync_freq` only decide how many of them go into one optimiser step.
With one rank and one environment that is one step per decision.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from tqdm import tqdm

from lib.config import ConfigError, PlannerConfig
from lib.environments import TOLD, EnvironmentFailed, action_repeat, episode_decisions, failure, make_env
from lib.planner import MPPI
from lib.records.keys import file_hash
from lib.records.seeds import episode_seeds
from lib.teachers.config import TeacherConfig
from lib.teachers.controllers import ReplanningController
from lib.teachers.distributed import ALONE, Ranks
from lib.teachers.replay import Batch, Episode, EpisodeFileError, load_episodes, record
from lib.teachers.training_state import CURVE_COLUMNS, RunState, in_its_folder, task_beside
from lib.world_model import WorldModel


def met(curve: list[dict], stop_return: float | None) -> bool:
    """Whether the last two evaluations of a learning curve met a return."""
    last = curve[-2:]
    return stop_return is not None and len(last) == 2 and all(row["return"] >= stop_return for row in last)


class TrainingRun(RunState):
    """A resumable training run. State is saved between rounds only, so that no simulator state has to be."""

    def __init__(self, config: TeacherConfig, folder: Path | None = None, ranks: Ranks = ALONE):
        kind = partial(AsyncVectorEnv, context="spawn") if config.env_processes else SyncVectorEnv
        self.envs = kind([partial(make_env, config.task, config.seed)] * config.envs)
        widths = (space.shape[0] for space in (self.envs.single_observation_space, self.envs.single_action_space))
        super().__init__(config, folder, ranks, *widths, episode_decisions(config.task))

    @in_its_folder
    def train(self) -> WorldModel:
        """Train until `config.decisions`, or until `stop_return` is met, saving on the way; returns the world model."""
        config, started, saved = self.config, time.monotonic() - 60 * self.minutes, self.decisions
        bar = self._bar(config.decisions, self.decisions, config.name, "decision")
        while self.decisions < config.decisions and not self.stopped_early:
            before = self.decisions
            mine, diverged = self._round(bar)
            collected = [(e, rank) for rank, episodes in enumerate(self.ranks.exchanged(mine)) for e in episodes]
            self._store([e for e, _ in collected], [rank for _, rank in collected])
            self.episodes += config.envs * self.ranks.world
            self._take_note(diverged)
            bar.set_postfix(({"return": f"{mine[-1].rewards.sum():.0f}"} if mine else {}) | self._last_evaluation())
            if self.decisions >= max(config.seed_decisions, self.fills_until):
                self._catch_up()
            self.minutes = (time.monotonic() - started) / 60
            self.ranks.check_equal(self.learner.wm.state_dict() | {"the running scale": self.learner.scale.value})
            if before // config.eval_every < self.decisions // config.eval_every and self.updates:
                self._evaluate()
            if any(before < s <= self.decisions for s in config.snapshots):
                self.snapshot()
            if self.decisions - saved >= config.save_every:
                self.save()
                saved = self.decisions
        return self._end(bar)

    @in_its_folder
    def train_offline(self, files: list[Path], updates: int) -> WorldModel:
        """Make `updates` steps on saved episodes, collecting nothing; saves and resumes as `train` does.

        The run's decisions are then those of the replay, and `train` would go on from there. Raises `ConfigError` for a
        run that began otherwise, `EpisodeFileError` for a file that cannot be used.
        """
        config, started, saved = self.config, time.monotonic() - 60 * self.minutes, self.updates
        self._begin_offline(files)
        if not self._drawable():
            raise ConfigError(
                f"{self.episodes} episodes are too few, or too short, for {self.ranks.world} processes that each draw "
                f"{config.horizon} decisions in a row from their own; start fewer processes."
            )
        bar = self._bar(updates, self.updates, f"{config.name} offline", "update")
        while self.updates < updates and not self.stopped_early:
            self._update()
            bar.update(1)
            self.offline["updates"] = self.updates  # made so far: a killed run may be shipped as it is
            self.minutes = (time.monotonic() - started) / 60
            if self.updates % config.eval_every == 0 or self.updates == updates:
                self._evaluate(updates=self.updates)
                bar.set_postfix(self._last_evaluation())
            if self.updates - saved >= config.save_every:
                self.ranks.check_equal(self.learner.wm.state_dict())
                self.save()
                saved = self.updates
        self.offline["updates"] = self.updates
        return self._end(bar)

    def _end(self, bar: tqdm) -> WorldModel:
        self.snapshot()
        self.save()
        self.join()
        bar.close()
        return self.learner.wm

    def _begin_offline(self, files: list[Path]) -> None:
        sums = self.ranks.from_main(lambda: [file_hash(f) if Path(f).is_file() else "" for f in files])
        if "" in sums:
            raise EpisodeFileError(
                f"{files[sums.index('')]} is not a file; give the train_buffer.safetensors of a run, "
                "which is there once the run has ended or was shipped."
            )
        if self.offline is None and not self.decisions:
            episodes = self.ranks.from_main(lambda: [e for f in files for e in load_episodes(f)])
            widths = {(e.obs.shape[1], e.actions.shape[1]) for e in episodes}
            own = (self.learner.wm.config.obs_dim, self.learner.wm.action_dim)
            if widths != {own}:
                raise ConfigError(
                    f"{', '.join(map(str, files))} holds observations and actions {sorted(widths)} wide, but "
                    f"{self.config.task} has {own}; take the replay of a run of the same task."
                )
            tasks = self.ranks.from_main(lambda: [task_beside(f) for f in files])
            if others := sorted({*tasks} - {self.config.task, ""}):
                raise ConfigError(
                    f"{', '.join(map(str, files))} holds rewards of {' and '.join(others)}, not of "
                    f"{self.config.task}; take the replay of a run of the same task."
                )
            streams = self._streams()
            self._fill(episodes, [i % self.ranks.world for i in range(len(episodes))])
            self._unsaved = list(episodes) if self.ranks.main else []
            self._restore_streams(streams)
            self.episodes, self.decisions = len(episodes), sum(map(len, episodes))
            self.offline = {"files": [str(f) for f in files], "sha256": sums, "decisions": self.decisions}
        elif self.offline is None or self.offline["sha256"] != sums:
            began = f"the replay {', '.join(self.offline['files'])}" if self.offline else "its own episodes"
            raise ConfigError(f"{self.folder} began with {began}; remove that folder to start anew.")

    @property
    def stopped_early(self) -> bool:
        """Whether the last two evaluations met `stop_return`, and `stop_from` is reached."""
        return self.decisions >= self.config.stop_from and met(self.curve, self.config.stop_return)

    def _bar(self, total: int, done: int, what: str, unit: str, items=None) -> tqdm:
        return tqdm(items, total=total, initial=done, desc=what, unit=unit, mininterval=2, disable=not self.ranks.main)

    def _last_evaluation(self) -> dict:
        return {"eval": f"{self.curve[-1]['return']:.0f}"} if self.curve else {}

    def _update(self) -> None:
        """One optimiser step, on `sync_freq` batches of this rank's replay."""
        config, device = self.config, self.ranks.device
        batches = [self.buffer.sample(config.batch_size, config.horizon) for _ in range(config.sync_freq)]
        self.learner.update(*(Batch(*(x if x is None else x.to(device) for x in vars(b).values())) for b in batches))
        self.updates += 1

    def _drawable(self) -> bool:
        """Whether every rank has an episode to draw from: a replay may be dealt to more ranks than it has episodes."""
        return self.ranks.total(int(self.buffer.longest() >= self.config.horizon)) == self.ranks.world

    def _catch_up(self) -> None:
        """The steps that are owed when a round is over: those of the seed phase, or of a round that could not draw."""
        of_a_step = self.ranks.world * self.config.sync_freq
        if self.owed >= of_a_step and self._drawable():
            steps, self.owed = divmod(self.owed, of_a_step)
            for _ in self._bar(steps, 0, "updates owed", "update", range(steps)):
                self._update()

    def _take_note(self, diverged: int) -> None:
        """Count, and tell of, the episodes of a round in which the simulator diverged; `diverged` are this rank's."""
        if diverged := self.ranks.total(diverged):
            self.diverged += diverged
            said = f"{self.config.name}: the simulator diverged in {self.diverged} of {self.episodes} episodes so far"
            if self.ranks.main:
                print(f"{said}; what came before it is learnt from", file=sys.stderr, flush=True)

    def _round(self, bar: tqdm) -> tuple[list[Episode], int]:
        """One episode of each of this rank's environments, with updates once the seed phase is over; and in how many of
        them the simulator diverged.

        An environment whose episode ends early waits for the others, and so does a rank: all ranks make the same number
        of updates, which follows from the decisions of all of them. An episode ends where a reward or observation is
        not finite; that step is left out, though its decision counts, and an episode that has no other is not kept.
        """
        config, ranks = self.config, self.ranks
        learns = self.updates > 0 and self.decisions >= self.fills_until and self._drawable()
        seeds = episode_seeds("train", config.envs, config.seed, first=self.episodes + ranks.rank * config.envs)
        obs, info = self.envs.reset(seed=seeds)  # (envs, obs_dim)
        played, over = [([o], [], []) for o in obs], np.zeros(config.envs, bool)
        live, warm = [i for i in range(config.envs) if not self._failed(info, [i])], None
        diverged = config.envs - len(live)  # a start that fails counts as a decision, so that a run always ends
        self.decisions += ranks.total(diverged)
        actions = np.zeros((config.envs, self.learner.wm.action_dim), np.float32)
        while total := ranks.total(len(live)):
            if live:
                actions[live], warm = self._act(obs[live], warm)
                obs, rewards, terminated, truncated, info = self.envs.step(actions)
                sound = np.isfinite(rewards) & np.isfinite(obs).all(1)
                finished = np.isin(np.arange(config.envs), live) & terminated & sound
                self._failed(info, live)
                if finished.any() and not config.episodic:
                    raise ConfigError(f"{config.task} ends episodes before their time limit; train it with --episodic.")
                diverged += int((~sound[live]).sum())
                for i in (i for i in live if sound[i]):
                    for part, value in zip(played[i], (obs[i], actions[i].copy(), float(rewards[i])), strict=True):
                        part.append(value)
                over |= finished
                ended = ~sound | terminated | truncated
                ended |= [len(rewards) >= self.longest for _, _, rewards in played]
                still = [row for row, i in enumerate(live) if not ended[i]]
                live, warm = [live[row] for row in still], None if warm is None else warm[still]
            self.decisions += total
            bar.update(total)
            self.owed += total
            while learns and self.owed >= ranks.world * config.sync_freq:
                self._update()
                self.owed -= ranks.world * config.sync_freq
        return [Episode.of(*parts, bool(end)) for parts, end in zip(played, over, strict=True) if parts[2]], diverged

    def _failed(self, info: dict, live: list[int]) -> bool:
        """Whether one of the environments that play failed; says so, as only its episode is lost.

        Raises `EnvironmentFailed` for what no training can mend: a reward or an observation that is not finite.
        """
        told = [info[TOLD][i] for i in live if TOLD in info and info[TOLD][i]]
        for why in filter(None, (failure({TOLD: each}) for each in told)):
            if any(each.startswith("unsound") for each in told):
                raise EnvironmentFailed(f"{why}; correct it. What was saved stays, and the same command goes on.")
            print(f"{why}; its episode ends there", file=sys.stderr, flush=True)
        return bool(told)

    def _act(self, obs: np.ndarray, warm: torch.Tensor | None) -> tuple[np.ndarray, torch.Tensor | None]:
        """Actions (n, A) at observations (n, obs_dim), random before the first update, and the next warm start."""
        wm = self.learner.wm
        if not self.updates:
            return (2 * torch.rand(len(obs), wm.action_dim) - 1).numpy(), None
        wm.eval()
        with torch.no_grad():
            plan = self.planner(wm.encode(torch.from_numpy(obs).to(wm.device)), warm)
            noise = torch.randn(len(obs), wm.action_dim)
            noisy = plan.actions[:, 0].cpu() + plan.std[:, 0].cpu() * noise
        wm.train()
        return noisy.clamp(-1, 1).numpy(), plan.shifted(1)

    def _evaluate(self, **about) -> None:
        """A cheap evaluation on seeds of its own, a row of the learning curve; the training stream is left alone.

        The episodes are shared out over the ranks, which meet again when all have played theirs.
        """
        config, wm = self.config, self.learner.wm
        planner = MPPI(wm.eval(), PlannerConfig.budget(config.eval_samples, config.eval_iterations))
        controller, envs = ReplanningController(planner), partial(make_env, config.task)
        seeds = episode_seeds("train-eval", config.eval_episodes, config.seed)
        mine = self.ranks.share(seeds)
        try:
            played = record(controller, envs, mine, self.longest)
        except EnvironmentFailed as error:  # what training lives with, evaluation does
            print(f"{error} This evaluation is left out.", file=sys.stderr, flush=True)
            mine, played = [], []
        wm.train()
        found: dict[int, float] = {}
        for part in self.ranks.exchanged({s: float(e.rewards.sum()) for s, e in zip(mine, played, strict=True)}):
            found |= part
        if not (returns := [found[seed] for seed in seeds if seed in found]):
            return
        row = (
            self.decisions,
            self.decisions * action_repeat(config.task),
            float(np.mean(returns)),
            len(returns),
            self.minutes,
        )
        self.curve.append(dict(zip(CURVE_COLUMNS, row, strict=True)) | about)
