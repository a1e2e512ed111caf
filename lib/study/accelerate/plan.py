"""Minutes that are planned for, said and kept: what a decision costs on this machine, and how much fits.

    costs = measured(wm, "walker-walk", standard, decisions=500)
    plan = Plan.of(costs, standard, seconds=1_500)        # episodes, labels and how long each part may take
    clock = Clock(30)                                     # looked at between pieces of work

All costs are of one episode's decision while several are played as a batch, as all is but the timing of steps.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass

import torch

from lib.config import PlannerConfig
from lib.distil.draft_training import DraftTraining, draft_loss
from lib.drafts import Draft
from lib.environments import make_env
from lib.planner import MPPI
from lib.study.arms import Arm, DraftArm, make_arm
from lib.world_model import WorldModel

BATCH = 4  # rows of the solves that are measured
LEAST = 10  # episodes: with fewer the test knows next to nothing of an arm that falls now and then
MOST = 50
# More of it is not learnt from: labels of the draft, episodes of the corrector, epochs of each training.
MOST_LABELS, MOST_EPISODES, EPOCHS = 10_000, 12, 100
TRAININGS = 1.5  # of the draft, and of the corrector, which has fewer states
REPORT = 30.0  # seconds for drawing the report
INERTIA = 60.0  # seconds of work after which the pace is half that of this work
# Shares of the time that is left once costs are known. What remains is for the report, and for what was underestimated;
# what learning does not need is for the test and the check.
SHARES = {
    "calibrate": 0.1,
    "label": 0.14,
    "collect": 0.08,
    "train": 0.1,
    "certify": 0.35,
    "check": 0.13,
    "time": 0.05,
}
LADDER = ((256, 2), (128, 2), (64, 2), (16, 1))  # planners that may do, the safest first
CALLS = {"gated": 0.35, "two-tower": 1 / 6}  # planner calls per decision, of arms that reuse plans over six steps


class OutOfTime(RuntimeError):
    """A piece of work does not fit into what is left of the minutes."""


class Clock:
    """The minutes of a run. `pace` is how many times longer pieces take than they were estimated to."""

    def __init__(self, minutes: float):
        self.pace, self._end = 1.0, time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def say(self, what: str) -> None:
        minutes, seconds = divmod(max(round(self.left), 0), 60)
        print(f"[{minutes}:{seconds:02d} left] {what}", file=sys.stderr, flush=True)

    def fits(self, seconds: float, spare: float = 0.0) -> bool:
        """Whether a piece that was estimated to take so long ends in time, with as many seconds to spare."""
        return seconds * self.pace + spare <= self.left

    def took(self, seconds: float, estimated: float) -> None:
        """Learn from a piece how far estimates are off: the more, the longer it is, as a second of compiling in a short
        one says nothing of the others."""
        self.pace = (INERTIA * self.pace + seconds) / (INERTIA + estimated)


@dataclass(frozen=True)
class Costs:
    """Seconds: of a solve, `fixed` and for every evaluation of the model; of the environment's step and all that is not
    planning, `step`; of an update of a draft, `update`; of compiling one planner, `compile`. And decisions of an
    episode."""

    fixed: float
    evaluation: float
    step: float
    update: float
    compile: float
    decisions: int

    def solve(self, planner: PlannerConfig | None) -> float:
        return self.fixed + self.evaluation * planner.model_evaluations if planner else 0.0

    def learning(self, planner: PlannerConfig) -> dict[str, float]:
        """Part of `SHARES` → what it takes at most, where this planner labels."""
        solve, updates = self.solve(planner), 0.8 * MOST_LABELS / DraftTraining.batch_size
        return {
            "label": MOST_LABELS * (self.step + 1.1 * solve),
            "collect": MOST_EPISODES * self.decisions * (self.step + 1.25 * solve),
            "train": TRAININGS * EPOCHS * updates * self.update,
        }

    @property
    def trivial(self) -> float:
        """Of an episode of random actions, and one of none."""
        return 2 * self.decisions * self.step

    def episode(self, arm: Arm) -> float:
        """Of an episode of an arm."""
        calls = 1.0 if arm.execution_horizon == 1 else CALLS.get(arm.scheme, 1 / arm.execution_horizon)
        if isinstance(arm, DraftArm):
            calls = arm.rate
        return self.decisions * (self.step + calls * self.solve(arm.planner))


@torch.enable_grad()
def measured(wm: WorldModel, task: str, standard: PlannerConfig, decisions: int) -> Costs:
    """Costs on this machine; the teacher's planner is compiled where it is going to be."""
    seconds, z = [], torch.full((BATCH, wm.latent_dim), 1 / wm.config.simnorm_dim, device=wm.device)
    for config in (PlannerConfig.budget(*LADDER[-1], mode="eager"), standard):
        planner = MPPI(wm, config)
        planner(z)
        seconds.append(_best(lambda planner=planner: planner(z), 2) / BATCH)
    few, many = LADDER[-1][0] * LADDER[-1][1] * 3, standard.model_evaluations
    evaluation = max(seconds[1] - seconds[0], 0.05 * seconds[1]) / max(many - few, few)
    env = make_env(task, 0)
    env.reset(seed=0)
    stepped = _best(lambda: env.step(env.action_space.sample() * 0), 10)
    env.close()
    acting = _best(lambda: wm.policy(wm.encode(torch.zeros(BATCH, wm.native_obs_dim, device=wm.device))), 5) / BATCH
    draft = Draft(wm.latent_dim, wm.action_dim)
    given = [torch.zeros(3, DraftTraining.batch_size, n) for n in (wm.latent_dim, wm.action_dim, wm.action_dim)]
    update = _best(lambda: draft_loss(draft, *given, 0.3).mean().backward(), 3)
    fixed = max(seconds[1] - evaluation * many, 0.0)
    return Costs(fixed, evaluation, stepped + 2 * acting, 1.3 * update, planner.compile_seconds, decisions)


def _best(function, times: int) -> float:
    """Seconds of a call, the median of a few."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return sorted(found)[len(found) // 2]


@dataclass(frozen=True)
class Plan:
    """How much fits. Episodes: of `calibration`, of each arm of the certification, of the check of its pick (0: left
    out). `seconds` of each part of `SHARES`; `needed`, the minutes without which nothing can be certified."""

    calibration: int
    certification: int
    check: int
    seconds: dict[str, float]
    needed: float

    @classmethod
    def of(cls, costs: Costs, standard: PlannerConfig, arms: list[Arm], seconds: float, spent: float) -> Plan:
        """For so many seconds that are left, after some that were spent; `arms` are the candidates of all chains."""
        parts = {name: share * seconds for name, share in SHARES.items()}
        both = parts["certify"] + parts["check"]
        smaller, candidates = ladder(standard), [costs.episode(arm) for arm in arms]
        for name, enough in costs.learning(smaller[0].planner if smaller else standard).items():
            both += max(parts[name] - enough, 0.0)
            parts[name] = min(parts[name], enough)
        teacher, small = costs.episode(Arm("teacher", standard)), [costs.episode(arm) for arm in smaller]
        each, checked = costs.trivial + teacher + sum(candidates), teacher + max(candidates)
        tested = SHARES["certify"] + SHARES["check"]
        check = max(int(both * SHARES["check"] / tested / checked), LEAST)
        if (certification := int((both - check * checked) / each)) < LEAST:
            certification, check = int(both / each), 0
        parts |= {"certify": both - check * checked, "check": check * checked}
        needed = (LEAST * each / tested + spent) / 60
        return cls(
            min(max(int(parts["calibrate"] / (costs.trivial + teacher + sum(small))), 1), 5),
            min(certification, MOST) if certification >= LEAST else 0,
            min(check, certification, MOST),
            parts,
            needed,
        )

    @property
    def settings(self) -> dict:
        return dataclasses.asdict(self)


def ladder(standard: PlannerConfig) -> list[Arm]:
    """The smaller planners at every step, the largest first."""
    arms = [make_arm(f"budget-{n}x{i}", standard) for n, i in LADDER]
    return [arm for arm in arms if arm.planner.model_evaluations < standard.model_evaluations]
