"""Where candidates are played and timed: with an eye on the clock, and again where an environment failed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from lib.config import PlannerConfig
from lib.environments import EnvironmentFailed, make_env
from lib.realtime import BackgroundController, RealTimeController
from lib.records.seeds import episode_seeds
from lib.rollout import rollout
from lib.study.accelerate.plan import Clock, Costs, OutOfTime
from lib.study.arms import Arm, DelayArm, make_controller
from lib.study.evaluate import Stage, Tables

TRIES = 3  # of a piece of work in which an environment fails
WARM_UP, LEAST_STEPS, MOST_STEPS = 12, 30, 500  # steps that are not timed, and that are


def again(piece: Callable, tries: int = TRIES):
    """What `piece()` gives, begun anew where an environment failed; after so many tries its `EnvironmentFailed`."""
    for number in range(1, tries + 1):
        try:
            return piece()
        except EnvironmentFailed as error:
            if number == tries:
                raise
            print(f"{error} It is tried again ({number} of {tries - 1}).", file=sys.stderr, flush=True)


def in_mode(config: PlannerConfig | None, mode: str) -> PlannerConfig | None:
    """The same planner, run in this way."""
    return config and dataclasses.replace(config, mode=mode)


@dataclass
class Playing(Stage):
    """A stage that begins no block of episodes that would not end in time (`OutOfTime`); networks run in `mode`."""

    clock: Clock | None = None
    costs: Costs | None = None
    mode: str = "auto"
    begun: set[str] = field(default_factory=set)  # arms whose planners have been compiled
    spare: float = 0.0  # seconds
    late: dict[str, float] = field(default_factory=dict)  # arm → share of its plans that came later than expected

    @classmethod
    def on(cls, stage: Stage, clock: Clock, costs: Costs, mode: str) -> Playing:
        fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(Stage)}
        return cls(**fields, clock=clock, costs=costs, mode=mode)

    def play(self, arm: Arm, seeds: list[int], spare: float = 0.0) -> tuple[Tables, str]:
        """With so many seconds to spare behind each block."""
        self.spare = spare
        return super().play(arm, seeds)

    def controller(self, arm: Arm):
        return make_controller(arm, self.wm, self.correctors, self.mode)

    def run(self, arm: Arm, controller, seeds: list[int], what: str) -> Tables:
        estimated = len(seeds) * self.costs.episode(arm) + (0 if arm.name in self.begun else self.costs.compile)
        if not self.clock.fits(estimated, self.spare):
            raise OutOfTime(f"{what} would take {estimated * self.clock.pace / 60:.1f} minutes")
        self.clock.say(what)
        self.begun.add(arm.name)
        begin = time.monotonic()
        try:
            tables = super().run(arm, self.controller(arm), seeds, what)
        except EnvironmentFailed as error:  # so many episodes at once may hardly ever pass: one by one they do
            print(f"{error} These episodes are played one by one.", file=sys.stderr, flush=True)
            one = partial(super().run, arm, self.controller(arm))
            parts = [again(partial(one, [seed], f"{what}, by itself")) for seed in seeds]
            return functools.reduce(operator.add, parts)
        self.clock.took(time.monotonic() - begin, estimated)
        return tables

    def returns(self, arm: Arm, seeds: list[int]) -> pd.Series:
        """By seed."""
        rows = pd.DataFrame(self.play(arm, seeds)[0].episodes)
        return rows.set_index("episode_seed")["return"]

    def times(self, arm: Arm, seconds: float, period: float = math.inf) -> list[float]:
        """Milliseconds of steps at batch 1, as many as fit into the seconds but at least a few: from the observation in
        host memory to the action in host memory. Who plans in the background does so meanwhile, with a decision at
        each `period` of seconds."""
        made = self.controller(arm)
        background = isinstance(arm, DelayArm)
        if background:
            made = in_time(made, arm.delay, period)
        controller, end = Timed(made), math.inf

        def enough() -> bool:
            nonlocal end
            count = len(controller.times) - WARM_UP
            if count <= 0:  # what is compiled meanwhile is not of these seconds
                end = time.monotonic() + seconds
            return count >= MOST_STEPS or (count >= LEAST_STEPS and time.monotonic() > end)

        def steps() -> Iterator:
            for seed in episode_seeds("latency", MOST_STEPS + WARM_UP):
                yield from rollout(controller, partial(make_env, self.cell.task), [seed], self.decisions)

        with made if background else contextlib.nullcontext():
            for _ in steps():
                if enough():
                    break
                if background:
                    time.sleep(max(controller.began + period - time.perf_counter(), 0.0))
        if background:
            self.late[arm.name] = float(np.mean([late > 0 for late in controller.arrivals] or [True]))
        return controller.times[WARM_UP:]


def in_time(controller: RealTimeController, delay: int, period: float) -> BackgroundController:
    """What was played with a simulated delay, for a robot: a decision in each `period` of seconds, and no waiting."""
    c = controller
    return BackgroundController(c.planner, c.corrector, c.gate, period, c.fallback, delay)


class Timed:
    """A controller whose decisions are timed; `arrivals`: how many decisions late each plan of the background came."""

    def __init__(self, controller):
        self.controller, self.times, self.arrivals = controller, [], []
        self.reset, self.keep = controller.reset, controller.keep

    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        self.began = time.perf_counter()
        actions, info = self.controller.act(obs)
        actions = actions.cpu()
        self.times.append(1e3 * (time.perf_counter() - self.began))
        self.arrivals += [late for late in info["late"].tolist() if late >= 0] if "late" in info else []
        return actions, info


def plain(value) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if value is not None and pd.notna(value) and math.isfinite(value) else None
