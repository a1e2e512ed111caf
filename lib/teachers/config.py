"""The settings of a teacher's training run."""

from __future__ import annotations

from dataclasses import dataclass

from lib.config import ConfigError
from lib.records.paths import file_name

# Decisions of training at which a run's snapshots are studied, and those of the runs with seed 1 shipped, beside its
# teacher. All shipped weights together stay under 80 MB.
SNAPSHOTS = {
    "cartpole-swingup": (2_500, 5_000, 10_000, 15_000, 20_000),
    "reacher-easy": (2_500, 5_000, 10_000, 15_000, 20_000),
    "walker-walk": (2_500, 5_000, 10_000, 20_000, 35_000, 50_000),
}


@dataclass(frozen=True)
class TeacherConfig:
    """Training a teacher; constants are the official ones unless a comment says otherwise. Counts are decisions."""

    task: str = "walker-walk"  # of DMControl, gym:<id>, or module:factory
    size: str = "1m"  # 1m, 5m, 19m, 48m or 317m
    seed: int = 1  # of training, 0 to 99
    decisions: int = 50_000  # of all processes and environments, inherited ones of an offline start included
    episode_decisions: int = 0  # at most; 0: as the environment says
    seed_decisions: int = 2_500  # random actions first, then as many updates as decisions
    batch_size: int = 256  # sequences in a batch of each process
    horizon: int = 3
    rho: float = 0.5
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    episodic: bool = False  # for tasks whose episodes can end early: a termination head, and targets that stop there
    termination_coef: float = 1.0
    entropy_coef: float = 1e-4
    lr: float = 3e-4
    encoder_lr_scale: float = 0.3
    grad_clip: float = 20.0
    tau: float = 0.01
    collect_samples: int = 128  # of a right-sized planner, as the card says; the official code collects with 512 × 6
    collect_iterations: int = 2
    eval_every: int = 2_500
    eval_episodes: int = 3
    eval_samples: int = 128
    eval_iterations: int = 2
    card_episodes: int = 10  # at the standard budget, on fresh seeds
    save_every: int = 500  # what is new, so that saving takes as long at the end as at the start
    snapshots: tuple[int, ...] = (2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 35_000, 50_000)
    compile: bool = True
    stop_return: float | None = None  # stop once this return is met at two evaluations in a row
    stop_from: int = 0  # but not before this decision
    envs: int = 1  # of each process, stepped together with one batched plan
    env_processes: bool = False  # a process for each environment: for physics that takes as long as an update
    sync_freq: int = 1  # micro-batches of each process in one optimiser step

    def __post_init__(self):
        for name in ("envs", "sync_freq", "batch_size", "decisions", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"TeacherConfig.{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.seed <= 99:
            raise ConfigError(f"TeacherConfig.seed={self.seed} must lie between 0 and 99.")

    @property
    def name(self) -> str:
        return f"{file_name(self.task)}-{self.size}-{self.seed}"


# A training run of seconds that exercises every step; for tests.
SMOKE_TRAINING = dict(
    episode_decisions=12,
    seed_decisions=24,
    batch_size=16,
    collect_samples=16,
    eval_every=24,
    eval_episodes=2,
    eval_samples=16,
    save_every=12,
    snapshots=(24,),
    card_episodes=2,
    compile=False,
)
