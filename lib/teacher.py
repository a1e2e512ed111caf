"""Training a TD-MPC2 teacher from scratch: collect, update, evaluate, save, resume, ship.

    python -m lib.teacher --task walker-walk --size 1m --seed 1        # trains, or resumes where a killed run stopped
    python -m lib.teacher ship --task walker-walk --size 1m --seed 1   # ships the run as far as it has got
    python -m lib.teacher zoo                                          # trains and ships what `ZOO` lacks

A run lives in `data/cache/training/<task>-<size>-<seed>/`: `state.pt` (weights, optimisers, RNG, counters),
`train_buffer.safetensors`, `snapshots/<decisions>.safetensors`, `curve.csv`. Shipping writes `data/teachers/`: float16
weights, the learning curve, and a card whose returns were measured with exactly those weights; the card's episodes are
kept in the run's folder as `test_buffer.safetensors`, held-out data for the study of model error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import paths
from lib.checkpoints import CheckpointError, load_world_model, save_world_model
from lib.config import Cell, ConfigError, PlannerConfig, TeacherConfig, as_dict, discount_for, episode_seeds
from lib.learner import Learner
from lib.planner import MPPI
from lib.replay import Episode, EpisodeFileError, ReplayBuffer, load_episodes, save_episodes
from lib.results import atomic_path, machine, module_key, versions, write_json, write_table
from lib.tasks import ACTION_REPEAT, EPISODE_DECISIONS, make_env
from lib.world_model import WorldModel

CURVE_COLUMNS = ("decision", "frames", "return", "episodes", "minutes")
ZOO = (("walker-walk", "1m", 1),)  # the teachers that `make teachers` sees to, as (task, size, seed)


def run_folder(config: TeacherConfig) -> Path:
    """Folder of a training run."""
    return paths.CACHE / "training" / config.name


@torch.no_grad()
def play(planner: MPPI, task: str, seeds: list[int], decisions: int = EPISODE_DECISIONS, what="") -> list[Episode]:
    """Whole episodes of a teacher that replans at every decision, one per seed, planned as one batch."""
    envs = [make_env(task, seed) for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    obs = [[env.reset(seed=seed)[0]] for env, seed in zip(envs, seeds, strict=True)]
    actions, rewards = [[] for _ in envs], [[] for _ in envs]
    alive, warm = list(range(len(envs))), None
    for _ in tqdm(range(decisions), desc=what, unit="decision", disable=not what, mininterval=2):
        z = planner.wm.encode(torch.from_numpy(np.stack([obs[i][-1] for i in alive])).to(planner.wm.device))
        plan = planner(z, warm, [generators[i] for i in alive])
        first, warm, still = plan.actions[:, 0].cpu().numpy(), plan.shifted(1), []
        for row, i in enumerate(alive):
            o, r, terminated, truncated, _ = envs[i].step(first[row])
            obs[i].append(o), actions[i].append(first[row]), rewards[i].append(r)
            if not (terminated or truncated):
                still.append(row)
        alive, warm = [alive[row] for row in still], warm[still]
        if not alive:
            break
    episodes = zip(obs, actions, rewards, strict=True)
    return [Episode(np.array(o), np.array(a), np.array(r, np.float32)) for o, a, r in episodes]


class TrainingRun:
    """A resumable training run. State is saved between episodes only, so that no simulator state has to be."""

    def __init__(self, config: TeacherConfig, folder: Path | None = None):
        self.config, self.folder = config, folder or run_folder(config)
        self.env = make_env(config.task, config.seed)
        torch.manual_seed(config.seed)
        wm = WorldModel.from_size(
            config.size,
            self.env.observation_space.shape[0],
            self.env.action_space.shape[0],
            discount=discount_for(EPISODE_DECISIONS),
        )
        wm.task = config.task
        self.learner = Learner(wm, config)
        budget = PlannerConfig.budget(config.collect_samples, config.collect_iterations, action_selection="sample")
        self.planner = MPPI(wm, budget)
        capacity = config.decisions + config.episode_decisions
        self.buffer = ReplayBuffer(capacity, wm.config.obs_dim, wm.action_dim, config.seed)
        self.decisions = self.episodes = self.updates = 0
        self.minutes, self.curve = 0.0, []
        if (self.folder / "state.pt").is_file():
            self._resume()

    # ------------------------------------------------------------------------------------------- saving

    def save(self) -> None:
        """Replay first, then the state that says how much of it counts: a kill between the two loses nothing."""
        if self.buffer.episodes():
            with atomic_path(self.folder / "train_buffer.safetensors") as path:
                save_episodes(path, self.buffer.episodes())
        state = {
            "config": json.dumps(as_dict(self.config)),
            "wm": self.learner.wm.state_dict(),
            "learner": self.learner.state_dict(),
            "counters": {k: getattr(self, k) for k in ("decisions", "episodes", "updates", "minutes")},
            "curve": self.curve,
            "rng": torch.get_rng_state(),
            "head_stream": self.planner.head_stream.get_state(),
            "replay_rng": json.dumps(self.buffer.rng.bit_generator.state),
        }
        with atomic_path(self.folder / "state.pt") as path:
            torch.save(state, path)
        write_table(self.folder / "curve.csv", self.curve or [dict.fromkeys(CURVE_COLUMNS)])

    def _resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        saved = json.loads(state["config"])
        free = ("decisions", "compile", "save_every", "card_episodes")  # may differ without changing what is learned
        changed = [k for k, v in as_dict(self.config).items() if saved.get(k) != v and k not in free]
        if changed:
            names = ", ".join(changed)
            raise ConfigError(f"{self.folder} was trained with another {names}; remove that folder to start anew.")
        self.learner.wm.load_state_dict(state["wm"])
        self.learner.load_state_dict(state["learner"])
        for name, value in state["counters"].items():
            setattr(self, name, value)
        self.curve = state["curve"]
        if self.episodes:
            for episode in load_episodes(self.folder / "train_buffer.safetensors")[: self.episodes]:
                self.buffer.add(episode)
        self.buffer.rng.bit_generator.state = json.loads(state["replay_rng"])
        self.planner.head_stream.set_state(state["head_stream"])
        torch.set_rng_state(state["rng"])

    # ----------------------------------------------------------------------------------------- training

    def train(self) -> WorldModel:
        """Train until `config.decisions`, saving on the way; returns the world model."""
        config, started = self.config, time.monotonic() - 60 * self.minutes
        saved = self.decisions
        bar = tqdm(total=config.decisions, initial=self.decisions, desc=config.name, unit="decision", mininterval=2)
        while self.decisions < config.decisions:
            episode = self._episode(bar)
            self.buffer.add(episode)
            self.episodes += 1
            bar.set_postfix({"return": f"{episode.rewards.sum():.0f}"} | self._last_evaluation())
            if self.updates == 0 and self.decisions >= config.seed_decisions:
                for _ in tqdm(range(config.seed_decisions), desc="seed phase", unit="update", mininterval=2):
                    self._update()
            self.minutes = (time.monotonic() - started) / 60
            before = self.decisions - len(episode)
            if self._crossed(before, config.eval_every) and self.updates:
                self._evaluate()
            if any(before < s <= self.decisions for s in config.snapshots):
                self.snapshot()
            if self.decisions - saved >= config.save_every:
                self.save()
                saved = self.decisions
        self.snapshot()
        self.save()
        bar.close()
        return self.learner.wm

    def _crossed(self, before: int, every: int) -> bool:
        return before // every < self.decisions // every

    def _last_evaluation(self) -> dict:
        return {"eval": f"{self.curve[-1]['return']:.0f}"} if self.curve else {}

    def _update(self) -> None:
        self.learner.update(self.buffer.sample(self.config.batch_size, self.config.horizon))
        self.updates += 1

    def _episode(self, bar: tqdm) -> Episode:
        """One episode of collection, with one update per decision once the seed phase is over."""
        config, wm = self.config, self.learner.wm
        (seed,) = episode_seeds("train", 1, config.seed, first=self.episodes)
        obs, actions, rewards = [self.env.reset(seed=seed)[0]], [], []
        warm, done = None, False
        while not done and len(rewards) < config.episode_decisions:
            if self.decisions < config.seed_decisions:
                action = (2 * torch.rand(wm.action_dim) - 1).numpy()
            else:
                wm.eval()
                with torch.no_grad():
                    plan = self.planner(wm.encode(torch.from_numpy(obs[-1]).unsqueeze(0)), warm)
                    noisy = plan.actions[0, 0] + plan.std[0, 0] * torch.randn(wm.action_dim)
                wm.train()
                action, warm = noisy.clamp(-1, 1).numpy(), plan.shifted(1)
            o, r, terminated, truncated, _ = self.env.step(action)
            obs.append(o), actions.append(action), rewards.append(r)
            done = terminated or truncated
            self.decisions += 1
            bar.update(1)
            if self.updates:
                self._update()
        return Episode(np.array(obs), np.array(actions), np.array(rewards, np.float32))

    def _evaluate(self) -> None:
        """A cheap evaluation on seeds of its own, a row of the learning curve; the training stream is left alone."""
        config, wm = self.config, self.learner.wm
        planner = MPPI(wm.eval(), PlannerConfig.budget(config.eval_samples, config.eval_iterations))
        seeds = episode_seeds("train-eval", config.eval_episodes, config.seed)
        returns = [float(e.rewards.sum()) for e in play(planner, config.task, seeds, config.episode_decisions)]
        wm.train()
        self.curve.append(
            {
                "decision": self.decisions,
                "frames": self.decisions * ACTION_REPEAT,
                "return": float(np.mean(returns)),
                "episodes": len(returns),
                "minutes": self.minutes,
            }
        )

    def snapshot(self) -> None:
        """Keep the weights as they are now, in float16 and without target heads."""
        with atomic_path(self.folder / "snapshots" / f"{self.decisions}.safetensors") as path:
            save_world_model(self.learner.wm, path, half=True, targets=False)


def ship(config: TeacherConfig, folder: Path | None = None) -> dict:
    """Ship a run's newest snapshot to `data/teachers/` and return its card.

    The card's returns are those of the float16 file itself, at the standard planner budget, on seeds of their own.
    """
    folder = folder or run_folder(config)
    snapshots = sorted((int(p.stem), p) for p in (folder / "snapshots").glob("*.safetensors"))
    if not snapshots:
        raise ConfigError(f"{folder} has no snapshot to ship; train first.")
    decisions, newest = snapshots[-1]
    wm = load_world_model(newest)
    planner = MPPI(wm, PlannerConfig.standard(wm.action_dim))
    seeds = episode_seeds("card", config.card_episodes, config.seed)
    episodes = play(planner, config.task, seeds, config.episode_decisions, what=f"{config.name} card")
    returns = [float(e.rewards.sum()) for e in episodes]
    state = torch.load(folder / "state.pt", weights_only=True)
    curve = [row for row in state["curve"] if row["decision"] <= decisions]
    card = {
        "task": config.task,
        "size": config.size,
        "seed": config.seed,
        "decisions": decisions,
        "frames": decisions * ACTION_REPEAT,
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if len(returns) > 1 else None,
        "returns": returns,
        "episode_seeds": seeds,
        "planner": as_dict(planner.config),
        "collect_samples": config.collect_samples,
        "collect_iterations": config.collect_iterations,
        "weights": "float16; the returns above were measured with these very weights cast to float32",
        "minutes": state["counters"]["minutes"],
        "machine": machine(),
        "versions": versions(),
        "code": module_key("lib.teacher"),
        "config": as_dict(config),
    }
    target = paths.TEACHERS / f"{config.name}.safetensors"
    with atomic_path(folder / "test_buffer.safetensors") as path:
        save_episodes(path, episodes)
    with atomic_path(target) as path:
        path.write_bytes(newest.read_bytes())
    write_table(target.with_suffix(".csv"), curve)
    write_json(target.with_suffix(".json"), card)
    return card


def main(arguments: list[str] | None = None) -> int:
    defaults = TeacherConfig()
    parser = argparse.ArgumentParser(prog="python -m lib.teacher", description="Train a TD-MPC2 teacher.")
    parser.add_argument("action", nargs="?", default="train", choices=("train", "ship", "zoo"))
    parser.add_argument("--task", default=defaults.task)
    parser.add_argument("--size", default=defaults.size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--decisions", type=int, default=defaults.decisions)
    given = parser.parse_args(arguments)
    try:
        configs = [TeacherConfig(task=given.task, size=given.size, seed=given.seed, decisions=given.decisions)]
        if given.action == "zoo":
            configs = [
                TeacherConfig(*cell) for cell in ZOO if not (paths.TEACHERS / f"{Cell(*cell)}.safetensors").is_file()
            ]
            print(f"the zoo lacks: {', '.join(c.name for c in configs) or 'nothing'}")
        for config in configs:
            run = TrainingRun(config)
            if given.action == "ship" and not run.updates:
                raise ConfigError(f"{run.folder} holds no trained state to ship; train first.")
            run.snapshot() if given.action == "ship" else run.train()
            card = ship(config)
            print(f"{config.name}: {card['return_mean']:.1f} over {len(card['returns'])} episodes")
    except (ConfigError, CheckpointError, EpisodeFileError) as error:
        print(f"teacher: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("teacher: interrupted; the same command goes on from the last saved episode.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
