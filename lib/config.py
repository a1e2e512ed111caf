"""Typed settings: model sizes, planner budgets, training, profiles, cells, and the seeds each purpose may use."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from lib.keys import file_hash


class ConfigError(ValueError):
    """A setting is wrong; the message says which, where, and what is allowed."""


def one_of(name: str, value: str, allowed) -> str:
    """Return `value` if it is allowed, else raise a `ConfigError` that suggests the nearest allowed names."""
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{name}={value!r} is not known; use one of: {', '.join(str(a) for a in allowed)}.{hint}")


# --------------------------------------------------------------------------------------------------- world model

# Widths of the official agent (TD-MPC2, Hansen et al. 2024, appendix "model sizes").
MODEL_SIZES = {
    "1m": dict(enc_dim=256, mlp_dim=384, latent_dim=128, num_enc_layers=2, num_q=2),
    "5m": dict(enc_dim=256, mlp_dim=512, latent_dim=512, num_enc_layers=2, num_q=5),
    "19m": dict(enc_dim=1024, mlp_dim=1024, latent_dim=768, num_enc_layers=3, num_q=5),
    "48m": dict(enc_dim=1792, mlp_dim=1792, latent_dim=768, num_enc_layers=4, num_q=5),
    "317m": dict(enc_dim=4096, mlp_dim=4096, latent_dim=1376, num_enc_layers=5, num_q=8),
}


@dataclass(frozen=True)
class WorldModelConfig:
    """Shapes of a TD-MPC2 world model.

    `obs_dim` and `action_dim` are the task's own. Weights trained on many tasks take wider, zero-padded inputs:
    their first layers have `obs_padding` and `action_padding` inputs more.
    """

    obs_dim: int
    action_dim: int
    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    num_bins: int = 101
    bin_limit: float = 10.0  # bins span [-bin_limit, bin_limit] in symlog space
    simnorm_dim: int = 8
    obs_padding: int = 0
    action_padding: int = 0
    q_dropout: float = 0.01
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    discount: float = 0.99

    @classmethod
    def from_size(cls, size: str, obs_dim: int, action_dim: int, **changes) -> WorldModelConfig:
        return cls(obs_dim=obs_dim, action_dim=action_dim, **MODEL_SIZES[one_of("size", size, MODEL_SIZES)], **changes)


def discount_for(episode_length: int) -> float:
    """Discount from the episode length in decisions (official heuristic: 0.99 for 500)."""
    fraction = episode_length / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)


# ------------------------------------------------------------------------------------------------------- planner


@dataclass(frozen=True)
class PlannerConfig:
    """Budget and constants of MPPI (TD-MPC2 paper, section 3 and table of hyper-parameters).

    `action_selection`: "mean" executes the weighted mean of the elites (labels, evaluation); "sample" executes one
    elite drawn by its weight, as the official code does. `mode` and `dtype` are how the same algorithm is executed:
    "eager", "compiled", "cudagraph", or "auto" (CUDA graphs on a GPU, compiled on a CPU where a C++ compiler is found);
    matrix products in "float32" or "bfloat16", sums and norms always in float32.
    """

    horizon: int = 3
    samples: int = 512
    iterations: int = 6
    elites: int = 64
    policy_samples: int = 24
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0
    action_selection: str = "mean"
    mode: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("action_selection", self.action_selection, ("mean", "sample"))
        one_of("mode", self.mode, ("auto", "eager", "compiled", "cudagraph"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("horizon", "samples", "iterations", "elites"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PlannerConfig.{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.policy_samples <= self.samples:
            raise ConfigError(
                f"PlannerConfig.policy_samples={self.policy_samples} must lie in 0…samples={self.samples}."
            )
        if self.elites > self.samples:
            raise ConfigError(f"PlannerConfig.elites={self.elites} exceeds samples={self.samples}.")
        if not 0 < self.min_std <= self.max_std:
            raise ConfigError(f"PlannerConfig needs 0 < min_std ≤ max_std, not {self.min_std} and {self.max_std}.")

    @classmethod
    def standard(cls, action_dim: int, **changes) -> PlannerConfig:
        """The official budget: 512 × 6, and 8 iterations from 20 action dimensions up."""
        return cls(**{"iterations": 8 if action_dim >= 20 else 6, **changes})

    @classmethod
    def budget(cls, samples: int, iterations: int, **changes) -> PlannerConfig:
        """A smaller planner in the official proportions: elites N/8, policy samples N/4 up to 24."""
        return cls(
            **{
                "samples": samples,
                "iterations": iterations,
                "elites": max(samples // 8, 1),
                "policy_samples": min(samples // 4, 24),
                **changes,
            }
        )

    @property
    def model_evaluations(self) -> int:
        """Latent steps of one solve: samples × iterations × horizon."""
        return self.samples * self.iterations * self.horizon


# ------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class TeacherConfig:
    """Training a teacher; constants are the official ones unless a comment says otherwise. Counts are decisions."""

    task: str = "walker-walk"
    size: str = "1m"
    seed: int = 1
    decisions: int = 50_000
    episode_decisions: int = 500
    seed_decisions: int = 2_500  # random actions first, then as many updates as decisions
    batch_size: int = 256
    horizon: int = 3
    rho: float = 0.5
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    entropy_coef: float = 1e-4
    lr: float = 3e-4
    encoder_lr_scale: float = 0.3
    grad_clip: float = 20.0
    tau: float = 0.01
    # Data is collected with a right-sized planner; the official code uses 512 × 6 here; the card says so.
    collect_samples: int = 128
    collect_iterations: int = 2
    eval_every: int = 2_500
    eval_episodes: int = 3
    eval_samples: int = 128
    eval_iterations: int = 2
    card_episodes: int = 10  # at the standard budget, on fresh seeds
    save_every: int = 500
    snapshots: tuple[int, ...] = (2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 35_000, 50_000)
    compile: bool = True
    stop_return: float | None = None  # stop once this return is met at two evaluations in a row
    stop_from: int = 0  # but not before this decision
    envs: int = 1  # of each process, stepped together with one batched plan
    env_processes: bool = False  # a process for each environment: for physics that takes as long as an update
    sync_freq: int = 1  # micro-batches of each process in one optimiser step

    def __post_init__(self):
        for name in ("envs", "sync_freq", "batch_size", "decisions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"TeacherConfig.{name}={getattr(self, name)} must be at least 1.")

    @property
    def name(self) -> str:
        return f"{self.task}-{self.size}-{self.seed}"


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

# --------------------------------------------------------------------------------------------- cells and profiles


CELL = re.compile(r"([A-Za-z0-9-]+)-(\d+m)-(\d+)")


@dataclass(frozen=True)
class Cell:
    """One (task, model size, teacher seed), written `<task>-<size>-<seed>`; its results are files of that name.

    `name` is set for a teacher from elsewhere, whose results must not pass for those of the cell's own teacher. Its
    `size` is "?" unless its name tells it, and `seed` only picks the episodes.
    """

    task: str
    size: str
    seed: int
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.task}-{self.size}-{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        match = CELL.fullmatch(text)
        if not match:
            raise ConfigError(f"{text!r} is not a cell; write <task>-<size>-<seed>, as in walker-walk-1m-1.")
        return cls(match[1], match[2], int(match[3]))

    @classmethod
    def of_teacher(cls, teacher: str, task: str, seed: int) -> Cell:
        """The cell of a teacher that is asked for by name or by file.

        `<task>-<size>-<seed>` is the teacher of that cell. Any other name becomes the cell's, with the task where it is
        not in the name already, as in official-walker-walk-1 and official-mt30-5m-reacher-easy. A file has its stem and
        the first eight digits of its sha256, as in weights-1a2b3c4d-reacher-easy: many files have the same stem.
        """
        match = CELL.fullmatch(teacher)
        if match and match[1] == task:
            return cls.parse(teacher)
        path = Path(teacher)
        words = [path.stem, file_hash(path)[:8]] if path.is_file() else [teacher]
        # Letters, digits and dashes alone: no folder, no "..", and no dot that could be taken for a suffix.
        name = "-".join(re.sub("[^A-Za-z0-9_]+", "-", word).strip("-") for word in words)
        if f"-{task}-" not in f"-{name}-":
            name = f"{name}-{task}".strip("-")
        if CELL.fullmatch(name):
            name += "-elsewhere"  # a/walker-walk-1m-1, say, which must not be read as a cell
        sizes = [word for word in name.split("-") if word in MODEL_SIZES]
        return cls(task, sizes[0] if len(sizes) == 1 else "?", seed, name)


@dataclass(frozen=True)
class Profile:
    """How much work each notebook does. Zero-valued notebook parameters mean "as the profile says"."""

    name: str
    collect_episodes: int  # of each round of the distillation set
    rounds: int  # the first visits states with the bare plan, later ones with the corrector of the rounds before
    collect_horizon: int  # steps executed of each plan meanwhile: states of depths 1 to one less are collected
    epochs: int  # of corrector training
    eval_episodes: int  # per arm
    arms: tuple[str, ...]  # beside the teacher
    latency_decisions: int  # timed of each arm
    decisions: int  # per episode; 500 is a whole one
    planner: PlannerConfig | None  # None: the standard budget for the task


SMOKE_ARMS = ("policy", "open-loop-3", "two-tower-3", "temporal-3", "gated-3", "16x1+ladder-3")
QUICK_ARMS = ("policy", "budget-64x2", "open-loop-3", "two-tower-3")
QUICK_ARMS += tuple(f"64x2+{scheme}" for scheme in ("open-loop-3", "two-tower-3", "value-checked-6"))
_SCHEMES = ("open-loop-3", "open-loop-6", "two-tower-3", "two-tower-6", "temporal-3", "temporal-6")
_SCHEMES += ("gate-only-6", "gated-6", "sensitive-6", "value-checked-6", "ladder-6")
PAPER_ARMS = ("policy", "budget-64x2", *_SCHEMES, *(f"64x2+{scheme}" for scheme in _SCHEMES))

PROFILES = {
    "smoke": Profile("smoke", 2, 1, 3, 2, 2, SMOKE_ARMS, 6, 12, PlannerConfig.budget(32, 1)),
    "quick": Profile("quick", 4, 1, 6, 60, 3, QUICK_ARMS, 60, 500, None),
    "paper": Profile("paper", 12, 2, 6, 100, 10, PAPER_ARMS, 200, 500, None),
}

# Disjoint blocks of episode seeds: what was used to tune is never used to report.
SEED_BLOCKS = {
    "train": 0,  # + 1,000,000 × teacher seed: every training run has a block of its own
    "train-eval": 100_000_000,
    "card": 200_000_000,
    "collect": 300_000_000,
    "calibrate": 400_000_000,
    "report": 500_000_000,  # the paper profile's evaluation, and nothing else
    "trial": 700_000_000,  # the quick and smoke profiles' evaluation
    "buffer": 600_000_000,
    "latency": 800_000_000,
}
SEED_BLOCK_SIZE = 1_000_000


def episode_seeds(purpose: str, count: int, seed: int = 0, first: int = 0) -> list[int]:
    """The first `count` environment seeds for a purpose; `seed` picks an independent block (a teacher's seed, say).

    Raises `ConfigError` for seeds that would reach into the block of another purpose or teacher.
    """
    if not 0 <= seed < 100 or first < 0 or first + count > SEED_BLOCK_SIZE:
        raise ConfigError(
            f"seed={seed} with {first} + {count} episodes leaves its block of seeds; use a seed of 0…99 and "
            f"at most {SEED_BLOCK_SIZE} episodes."
        )
    start = SEED_BLOCKS[one_of("purpose", purpose, SEED_BLOCKS)] + SEED_BLOCK_SIZE * seed + first
    return list(range(start, start + count))


@dataclass(frozen=True)
class Settings:
    """The parameters that all notebooks share, checked and resolved."""

    profile: Profile
    cells: tuple[Cell, ...]
    teacher: str  # "" = the shipped teacher of each cell
    device: str

    @property
    def cell(self) -> Cell:
        """The one cell of a notebook that works on one; `ConfigError` when several were asked for."""
        if len(self.cells) > 1:
            raise ConfigError(f"model_size=all is one size too many here; use one of: {', '.join(MODEL_SIZES)}.")
        return self.cells[0]

    def teacher_name(self, cell: Cell) -> str:
        """What `load_world_model` is asked for: the `teacher` parameter, else the shipped teacher of the cell."""
        return self.teacher or str(cell)

    def planner(self, action_dim: int, **changes) -> PlannerConfig:
        """The teacher's planner under this profile: the standard budget, except at smoke size."""
        if self.profile.planner is None:
            return PlannerConfig.standard(action_dim, **changes)
        return dataclasses.replace(self.profile.planner, **changes)


def resolve(profile: str, task: str, model_size: str, seed: int, teacher: str, device: str) -> Settings:
    """Check the notebook parameters that all notebooks share.

    `model_size="all"` gives a cell for every size. With a `teacher` there is one cell, whose results bear its name.
    Raises `ConfigError` with one sentence for a value that is not allowed.
    """
    one_of("profile", profile, PROFILES)
    one_of("model_size", model_size, [*MODEL_SIZES, "all"])
    if seed < 0:
        raise ConfigError(f"seed={seed} must not be negative.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device={device!r} is not known; use auto, cpu or cuda[:N].")
    if teacher and model_size == "all":
        raise ConfigError(f"teacher={teacher!r} has one size, so it does not go with model_size=all; leave one out.")
    sizes = list(MODEL_SIZES) if model_size == "all" else [model_size]
    own = tuple(Cell(task, size, seed) for size in sizes)
    cells = (Cell.of_teacher(teacher, task, seed),) if teacher else own
    return Settings(PROFILES[profile], cells, teacher, device)


def as_dict(config) -> dict:
    """A dataclass as plain values for JSON (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
