"""How much work each profile does: `profiles.toml`, read into dataclasses.

    PROFILES["paper"].arms, PROFILES["paper"].offline.states

What a stage depends on is the values that it reads of its profile, not this file: an arm more must not train a
corrector again.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from lib.config import PlannerConfig
from lib.teachers.config import SNAPSHOTS

BUDGETS = ((512, 6), (64, 2))  # samples, iterations: the standard planner and the right-sized one


@dataclass(frozen=True)
class OfflineStudy:
    """How much work notebook 06 does on each snapshot of a training run."""

    tasks: dict[str, tuple[int, ...]] = field(default_factory=lambda: SNAPSHOTS)  # and decisions of their snapshots
    seeds: tuple[int, ...] = (1, 2, 3)  # runs of each task
    snapshots: int = 0  # of each run, spread over its training; 0: all
    states: int = 150  # of each bank
    candidates: int = 75  # of these, how many M4 and M5 look at
    actions_per_state: int = 0  # of the action set; 0: all
    k: int = 10  # decisions ahead of M2
    bank_episodes: int = 3  # of random and of planned actions each, and as many again for the decoder
    bank_decisions: int = 500
    decoder_steps: int = 4_000  # with fewer, M3 ranks the noise of the decoder
    samples: int = 50  # sequences of random shooting
    cem_samples: int = 24  # in each iteration
    cem_iterations: int = 3
    cem_elites: int = 6
    horizon: int = 15  # of both searches
    mppi: PlannerConfig = PlannerConfig.budget(64, 2)
    decisions: int = 500  # of each episode of the planning gap
    shooting_episodes: int = 8
    cem_episodes: int = 4
    latent_episodes: int = 2  # shooting by value, where the simulator is cheap; 0 leaves it out
    mppi_episodes: int = 10  # the same
    planner: PlannerConfig = PlannerConfig.budget(64, 2)  # the teacher's, for on-policy states and the arms
    arm_episodes: int = 8  # of the teacher's planner and of its plans executed open loop
    arm_decisions: int = 500


@dataclass(frozen=True)
class SequenceStudy:
    """How much work notebook 07 does: data, training, evaluation.

    `asked` are the returns that the Decision Transformer is asked for, as shares of the way from a random policy's to
    the best of the data; the share of 1 is the arm that is compared. `curve_episodes` are played at every evaluation.
    """

    dataset_episodes: int = 100  # of a dataset that is made here
    seeds: int = 3  # of training
    updates: int = 10_000
    warm_up: int = 500
    lr: float = 1e-4
    batch_size: int = 64
    evaluate_every: int = 1_000
    asked: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    curve_episodes: int = 5
    latency_decisions: int = 300
    references: tuple[str, ...] = ("teacher", "budget-64x2", "policy")  # arms; the second one played the data


@dataclass(frozen=True)
class ErrorStudy:
    """How much work notebook 05 does: the buffers that a world model is tested on, and episodes of each played here."""

    buffers: tuple[str, ...] = ("teacher", "noisy", "random", "test", "train")
    episodes: int = 10


@dataclass(frozen=True)
class SpeedStudy:
    """How much notebook 08 measures; None takes the device's own list (see `lib.study.speed.benchmark`).

    Budgets are samples × iterations: `budgets` of the solves, `small` and `standard` of the control step and of the
    episodes that compare dtypes, `collect` of a training decision, `memory` of the 317m model. `mode` is the planner's
    beside the solves; `seconds` and `rounds` are for each group of functions, see `lib.study.speed.timing.timed`.
    """

    sizes: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    budgets: tuple[tuple[int, int], ...] = BUDGETS
    modes: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    step_sizes: tuple[str, ...] = ("1m", "5m")
    update_sizes: tuple[str, ...] = ("1m", "5m")
    update_batch: int = 256
    small: tuple[int, int] = (64, 2)
    standard: tuple[int, int] = (512, 6)
    collect: tuple[int, int] = (128, 2)
    memory: tuple[tuple[int, int], ...] = ()
    mode: str = "auto"
    episodes: int = 0
    seconds: float = 10.0
    rounds: int = 5

    def narrowed(self, size: str, seconds: float = 0.0) -> SpeedStudy:
        """This study for one model size ("all" leaves it as it is), with other seconds where they are not 0."""
        sizes = {} if size == "all" else dict.fromkeys(("sizes", "step_sizes", "update_sizes"), (size,))
        return dataclasses.replace(self, seconds=seconds or self.seconds, **sizes)


@dataclass(frozen=True)
class DraftStudy:
    """How drafts are distilled: labels of each round, of whole episodes, and `more_labels` of the longer curve;
    `betas`, the shares of labels that the first rounds execute; samples and iterations of the `labeller`. On study
    cells there are drafts of so many `seeds`, the longer curve, and on all cells drafts of `tried_modes`."""

    labels: tuple[int, ...] = (1_000, 2_000, 3_000, 4_000)
    more_labels: tuple[int, ...] = (10_000, 10_000)
    betas: tuple[float, ...] = (1.0, 0.5, 0.2)
    labeller: tuple[int, int] = (128, 2)
    epochs: int = 100
    members: int = 3
    modes: int = 1
    tried_modes: tuple[int, ...] = (4,)
    seeds: int = 3
    episodes: int = 20  # of calibration, that each draft plays


@dataclass(frozen=True)
class DelayStudy:
    """How much work notebook 09 does: `delays` of plans, in decisions, kinds of `arms` as `lib.study.arms` has them,
    each on all of the `planners`, and what acts `unplanned`. The corrector of `async+delay-aware` learns from as many
    labels as drafts, of plans that take `trained_delays`. On study cells the teacher's planner has `standard_delays`
    and more episodes. Worlds with `perturbations` are played with `perturbed_arms` at `perturbed_delays`."""

    delays: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8)
    arms: tuple[str, ...] = (
        "late", "late-hold", "async", "async+two-tower", "async+temporal", "async+gated", "async+draft",
        "async+delay-aware",
    )  # fmt: skip
    trained_delays: tuple[int, ...] = (1, 2, 3, 4)
    unplanned: tuple[str, ...] = ("policy", "distilled")
    planners: tuple[str, ...] = ("64x2", "128x2")
    standard_delays: tuple[int, ...] = ()  # none: it is not played
    episodes: int = 20
    study_episodes: int = 50
    decisions: int = 500  # of an episode at most
    perturbations: tuple[str, ...] = ()
    perturbed_arms: tuple[str, ...] = ("async", "async+draft")
    perturbed_delays: tuple[int, ...] = (0, 2, 4)
    steps: int = 1_200  # timed of each arm: of more than a thousand in the foreground there is a 99.9th percentile


@dataclass(frozen=True)
class ManyTasks:
    """Weights that know many tasks, from elsewhere, and how much is played of each task."""

    teacher: str
    sha256: str
    count: int  # of the tasks that they know: 30 or 80
    planner: PlannerConfig
    tasks: tuple[str, ...] = ()  # of these; empty: all
    episodes: int = 3


@dataclass(frozen=True)
class Certification:
    """What `lib.study.certify` may pick in every cell: chains of arms, each from the safest to the cheapest.

    The teacher is the first of each, whether or not it is named. `episodes` are (pattern of cells, how many are played
    of each arm, on start states of their own and again to check the picks); the first pattern that matches counts.
    """

    episodes: tuple[tuple[str, int], ...]
    planners: tuple[str, ...] = ()  # at every step
    reuse: tuple[str, ...] = ()  # plans that are executed over several steps
    drafts: tuple[str, ...] = ()  # a draft acts, and a planner where it is in doubt
    clone: tuple[str, ...] = ()  # a network acts, and nothing ever plans

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        return {"planners": self.planners, "reuse": self.reuse, "drafts": self.drafts, "clone": self.clone}


@dataclass(frozen=True)
class WorkedExample:
    """How long notebook 10 searches, in minutes, with the teacher's planner and the decisions of an episode cut down to
    what fits into them."""

    minutes: float
    decisions: int
    planner: PlannerConfig


class RealTimeRun(NamedTuple):
    """A run against the clock, as `lib.study.realtime_demo` has its parts."""

    cell: str
    planner: str
    rate: float
    seconds: float
    slower: float = 1.0


class CellEpisodes(NamedTuple):
    """Numbers of episodes in cells whose names match the pattern `cells`."""

    cells: str
    each_arm: int
    each_side_arm: int


@dataclass(frozen=True)
class Profile:
    """How much work each notebook does. Zero-valued notebook parameters mean "as the profile says"."""

    name: str
    cells: tuple[str, ...]  # <task>-<size>-<seed>
    study_cells: tuple[str, ...]  # of these, where arms are told apart: errors of actions and sequence models too
    offline_weights: tuple[str, ...]  # patterns of files in data/teachers that notebook 06 needs, as far as shipped
    planner_tables: tuple[str, ...]  # that notebook 08 writes
    statistics_tables: tuple[str, ...]  # that compare the arms
    correctors: tuple[str, ...]  # architectures that the arms need
    collect_episodes: int  # of each round of the distillation set
    rounds: int  # the first visits states with the bare plan, later ones with the corrector of the rounds before
    collect_horizon: int  # steps executed of each plan meanwhile: states of depths 1 to one less are collected
    epochs: int  # of corrector training
    calibrate_episodes: int  # played for each entry of the ladder's grid
    arms: tuple[str, ...]
    eval_episodes: int  # of each of them, in cells without other numbers, and of notebook 07's policies
    latency_decisions: int  # timed of each arm at batch 1
    side_arms: tuple[str, ...] = ()  # ablations and straw men
    side_episodes: int = 0  # of each of those; 0: they are not played
    planner_options: dict[str, str | float] = field(default_factory=dict)  # parameters of notebook 08
    every_teacher: bool = False  # cards and model errors of all shipped teachers, not of the cells' alone
    candidates: tuple[str, ...] = ()  # to be the one configuration for all cells, which calibration episodes pick
    trials: tuple[tuple[str, int], ...] = ()  # (pattern of cells, episodes that each candidate is tried out on there)
    headline: str = ""  # the one that was picked and stays, whatever cells are added; empty: as picked over all cells
    earlier: str = ""  # the one that was picked before that
    compile_all: bool = False  # where steps are timed, also planners that the evaluation does not wait for
    batch_arms: tuple[str, ...] = ()  # of these, arms timed with the evaluation's blocks of episodes in parallel too
    batch_decisions: int = 0  # of each of them
    error_arms: tuple[str, ...] = ()  # whose actions are compared with the teacher's; none with a gate
    error_states: int = 0  # of each of them
    perturb_cells: tuple[str, ...] = ()  # of the cells, where arms are played in perturbed worlds too
    perturb_arms: tuple[str, ...] = ()  # these; others stand beside the first of them
    perturb_more_cells: tuple[str, ...] = ()  # of these cells, those that have more arms there
    perturb_more: tuple[str, ...] = ()  # the arms
    perturb_episodes: int = 0  # of each of them in each world
    perturbations: tuple[str, ...] = ()  # the worlds, as `lib.simulators.perturbations` writes them
    decisions: int = 500  # per episode; 500 is a whole one
    planner: PlannerConfig | None = None  # None: the standard budget for the task
    offline: OfflineStudy = OfflineStudy()
    sequence: SequenceStudy = SequenceStudy()
    errors: ErrorStudy = ErrorStudy()
    speed: SpeedStudy = SpeedStudy()
    draft_cells: tuple[str, ...] = ()  # of the cells, those with drafts
    draft_arms: tuple[str, ...] = ()  # what the evaluation plays there beside the other arms
    drafts: DraftStudy = DraftStudy()
    deadlines_cells: tuple[str, ...] = ()  # of the cells, those that are played with plans that take time
    delays: DelayStudy = DelayStudy()
    realtime: tuple[RealTimeRun, ...] = ()  # against the clock
    many_tasks: ManyTasks | None = None  # None: none are played
    accelerate: WorkedExample | None = None  # None: the whole of it, which no stage asks for
    certified_cells: tuple[str, ...] = ()  # where the cheapest way to control is certified; not of `cells` alone
    certified_steps: int = 1_200  # that are timed of each pick there: enough for a 99.9th percentile
    certification: Certification | None = None  # None: there is nothing to pick from
    cell_episodes: tuple[CellEpisodes, ...] = ()  # other numbers of episodes; the first that matches counts

    def counts(self, cell: str) -> dict[str, int]:
        """How many episodes each arm plays on a cell; the first of `cell_episodes` that matches its name counts."""
        numbers = (*self.cell_episodes, CellEpisodes("*", self.eval_episodes, self.side_episodes))
        own = next(one for one in numbers if fnmatchcase(cell, one.cells))
        main = (*self.arms, *self.draft_arms) if cell in self.draft_cells else self.arms
        counts = dict.fromkeys(main, own.each_arm) | dict.fromkeys(self.side_arms, own.each_side_arm)
        return {arm: count for arm, count in counts.items() if count}

    def perturbing(self, cell: str) -> tuple[str, ...]:
        """The arms that are played in perturbed worlds of a cell."""
        return self.perturb_arms + (self.perturb_more if cell in self.perturb_more_cells else ())


def _offline(**fields) -> OfflineStudy:
    tasks = {task: SNAPSHOTS[task] for task in fields.pop("tasks", SNAPSHOTS)}
    planners = {name: PlannerConfig.budget(**fields.pop(name)) for name in ("mppi", "planner") if name in fields}
    return OfflineStudy(tasks, **fields, **planners)


# How a field is made of its table, or of each table of a list, where that is not the plain value.
_MAKERS = {
    "planner": PlannerConfig.budget,
    "offline": _offline,
    "sequence": SequenceStudy,
    "errors": ErrorStudy,
    "speed": SpeedStudy,
    "drafts": DraftStudy,
    "delays": DelayStudy,
    "many_tasks": lambda planner, **fields: ManyTasks(planner=PlannerConfig.budget(**planner), **fields),
    "accelerate": lambda planner, **fields: WorkedExample(planner=PlannerConfig.budget(**planner), **fields),
    "cell_episodes": CellEpisodes,
    "realtime": lambda **fields: RealTimeRun(**fields),
    "certification": lambda episodes, **fields: Certification(tuple(episodes.items()), **fields),
}


def _profile(name: str, table: dict) -> Profile:
    table = {key: _frozen(value) for key, value in table.items()}
    for key, make in _MAKERS.items():
        if key in table:
            given = table[key]
            table[key] = tuple(make(**one) for one in given) if isinstance(given, tuple) else make(**given)
    return Profile(name, **table | {"trials": tuple(table.get("trials", {}).items())})


def _frozen(value):
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PROFILES = {name: _profile(name, table) for name, table in TABLES.items()}
