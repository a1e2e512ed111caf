"""From a checkpoint to the cheapest controller that a test admits, within minutes.

    found = accelerate("walker-walk-1m-1", "walker-walk", minutes=30, out="build/my-controller")

Every piece of work is kept by what it depends on, and so is the plan: who is killed repeats the command and goes on.
What is tuned is tuned on calibration start states, the test has its own, and the pick is checked on fresh ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lib.config import ConfigError, PlannerConfig
from lib.environments import episode_decisions, identity, make_env
from lib.records import paths
from lib.records.keys import key_of
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import write_json
from lib.study.accelerate import learning
from lib.study.accelerate.deadline import in_background, within
from lib.study.accelerate.plan import LEAST, MOST, REPORT, Clock, Costs, OutOfTime, Plan, ladder, measured
from lib.study.accelerate.playing import Playing, Still, again, in_mode, in_time, plain
from lib.study.arms import Arm, DelayArm, make_arm, make_controller, numbers_of
from lib.study.cells import Cell
from lib.study.certify import FRESH, RANDOM, TEACHER, certify, floor_of, random_episodes, random_returns
from lib.study.evaluate import Stage
from lib.study.stats.certification import NothingToKeep, above, kept_above, student_p, verdict
from lib.weights.native import CheckpointError, load_world_model, teacher_key
from lib.world_model import WorldModel

SLACK = 0.02  # of a share over few episodes: who labels is not who is promised
ENOUGH = 64  # samples in all iterations, of a planner whose plans are learnt from
PATIENT = 10  # minutes from which on compiling planners pays
STILL = "still"
TRIVIAL = {RANDOM: "a random policy", STILL: "doing nothing"}
SURE = 0.05  # the chance that a teacher that has learnt nothing passes for one that has


@dataclass
class Search:
    """What is asked for, and what has been found so far."""

    teacher: str
    task: str
    rate: float  # decisions per second; 0: as many as there are
    keep: float
    minutes: float
    decisions: int = 0  # of an episode; 0: whole ones
    planner: PlannerConfig | None = None  # the teacher's; None: the standard one
    right_sized: str = TEACHER  # name of an arm that plans at every step
    left_out: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    calibration: dict[str, dict] = field(default_factory=dict)
    delays: dict[str, int] = field(default_factory=dict)  # of planners that do not fit into a period, in decisions
    before: int = 0  # start states that other tests and their checks may have had

    def __post_init__(self):
        check(self.rate, self.keep, self.minutes)
        make_env(self.task).close()
        self.clock, self.cell = Clock(self.minutes), Cell.of_teacher(self.teacher, self.task, 1)
        self.length = episode_decisions(self.task, self.decisions or 500)
        self.mode = "auto" if self.minutes >= PATIENT else "eager"
        stage = Stage(self.cell, learning.NAME, self.teacher, fitting(self.teacher, self.task), {}, self.length)
        self.standard = in_mode(self.planner or PlannerConfig.standard(stage.wm.action_dim), self.mode)
        self.key = teacher_key(self.teacher)
        self.stage = Playing.on(stage, self.clock, None, self.mode)

    @property
    def period(self) -> float:
        """Milliseconds that a decision has."""
        return 1e3 / self.rate if self.rate else math.inf

    def arm(self, name: str) -> Arm:
        return make_arm(name, self.standard, self.calibration.get(name))

    def controller(self, name: str):
        """The controller of an arm, as it is saved: compiled where it is loaded, and one that plans in the background
        does so in time."""
        arm = self.arm(name)
        made = make_controller(
            dataclasses.replace(arm, planner=in_mode(arm.planner, "auto")), self.stage.wm, self.stage.correctors
        )
        return in_time(made, arm.delay, self.period / 1e3) if isinstance(arm, DelayArm) else made

    # ----------------------------------------------------------------------------------------------------- the plan

    @staticmethod
    def on(planner: str) -> str:
        """What stands before the name of an arm on this planner."""
        return planner.removeprefix("budget-") + "+" if planner != TEACHER else ""

    @property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Chain → candidates, safest first, for the right-sized planner that has been found."""
        smaller, on = [arm.name for arm in ladder(self.standard)], self.on(self.right_sized)
        reuse = tuple(f"{on}{scheme}-6" for scheme in ("gated", "two-tower"))
        if self.right_sized in self.delays:  # then no plan is made within a period
            reuse = in_background(self)
        drafts = (f"{on}draft+gated-3-r30", f"{on}draft+gated-3-r10", "distilled", "policy")
        return {"planners": tuple(smaller), "reuse": reuse, "drafts": drafts}

    def prepare(self) -> None:
        """Costs and the plan: as they were kept, or measured now and said. What other minutes plan after a test was
        begun is tested on start states that no test has seen: on more of the same ones it would be no test."""
        standard = in_mode(self.standard, "auto")
        about = (self.key, identity(self.task), self.rate, self.keep, self.length, standard)
        key = key_of((measured, Plan), *about)
        self.file = paths.CACHE / learning.NAME / f"{self.cell}-plan-{name_of(key)}.json"
        self.kept = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        kept = self.kept
        if kept and kept["minutes"] == self.minutes:
            self.before = kept["before"]
            self.stage.costs, self.plan = Costs(**kept["costs"]), Plan(**kept["plan"])
            self.mode = self.stage.mode = kept["mode"]
            self.standard = in_mode(standard, self.mode)
            self.times, self.stage.late = kept["times"], kept["late"]
            self.clock.say(f"going on with the plan of {kept['written']}, {self.file} (remove it to measure anew)")
        else:
            if before := kept["tested"] if kept else 0:
                said = f"a test of {kept['minutes']:g} minutes was begun on {before} start states; this one has others"
                self.clock.say(f"{said}, and of several tests one errs more often than each")
            self.before = (kept["before"] if kept else 0) + MOST * bool(before)  # its check had as many at most
            self.clock.say("what a decision costs here")
            costs = measured(self.stage.wm, self.task, self.standard, self.length)
            sizes = [TEACHER, *self.sizes()]
            self.right_sized = sizes[len(sizes) // 2]  # a guess: nothing is known of it yet
            arms = [self.arm(name) for chain in self.candidates.values() for name in chain]
            left = self.clock.left
            self.plan = Plan.of(costs, self.standard, arms, left, 60 * self.minutes - left)
            self.stage.costs, self.kept = costs, {}
            self.note(costs=vars(costs), plan=self.plan.settings, minutes=self.minutes, mode=self.mode, tested=0,
                      before=self.before, written=time.strftime("%Y-%m-%d %H:%M"), times={}, late={})  # fmt: skip
        self.right_sized = TEACHER
        costs, plan = self.stage.costs, self.plan
        check = f"a check of the pick on {plan.check} fresh ones" if plan.check else "no check of the pick"
        self.clock.say(
            f"a decision of the teacher takes {1e3 * costs.solve(self.standard):.0f} ms, an update "
            f"{1e3 * costs.update:.0f} ms; the plan: {plan.calibration} episodes of calibration, {plan.certification} "
            f"of each candidate for the test, {check}"
        )

    def note(self, **what) -> None:
        """Keep with the plan."""
        self.kept |= what
        write_json(self.file, self.kept)

    # ------------------------------------------------------------------------------------------------- calibration

    def right_size(self) -> None:
        """Find the smallest planner that keeps the share on calibration episodes, and refuse a teacher that has learnt
        nothing."""
        seeds = episode_seeds("calibrate", self.plan.calibration, self.cell.seed)
        trivial = self.trivial(seeds)
        teacher = self.stage.returns(self.arm(TEACHER), seeds)
        self.something(teacher, trivial, 0.5)
        floor = floor_of(self.task, pd.DataFrame({"return": trivial[RANDOM]}))
        for name in self.sizes() if self.plan.certification else ():
            if not kept_above(self.stage.returns(self.arm(name), seeds), teacher, floor).value >= self.keep - SLACK:
                break
            self.right_sized = name
        if self.plan.certification:
            self.clock.say(f"the right-sized planner is {self.right_sized.removeprefix('budget-')}")

    def sizes(self) -> list[str]:
        """The planners that may label, the largest first."""
        enough = [arm for arm in ladder(self.standard) if arm.planner.samples * arm.planner.iterations >= ENOUGH]
        return [arm.name for arm in enough]

    def trivial(self, seeds: list[int]) -> dict[str, np.ndarray]:
        """What needs no teacher returns on these start states: random actions, and none."""
        still = again(lambda: random_returns(Still(self.stage.wm.action_dim), self.task, seeds, self.length))
        random = again(lambda: random_episodes(self.stage, seeds))
        return {RANDOM: random["return"].to_numpy(), STILL: np.array([row["return"] for row in still])}

    def something(self, teacher, trivial: dict[str, np.ndarray], sure: float) -> None:
        """Raises `NothingToKeep` unless the teacher returns more than both trivial policies, where a test of paired
        episodes may err with the chance `sure`."""
        for name, returns in trivial.items():
            above(teacher, returns.mean(), f"the return of {TRIVIAL[name]} on the same start states")
            difference = np.asarray(teacher) - returns
            if len(difference) > 1 and student_p(difference) > sure:
                raise NothingToKeep(
                    f"the teacher returns {np.mean(teacher):.4g} on average, and {TRIVIAL[name]} "
                    f"{returns.mean():.4g}, which a test does not tell apart: there is nothing to keep a share "
                    "of; train it longer."
                )

    # ---------------------------------------------------------------------------------------------------- learning

    def learn(self) -> None:
        """A draft and a corrector of the right-sized planner, thresholds; what does not fit is named."""
        planner = self.arm(self.right_sized).planner
        settings = learning.settings_for(self.cell, self.teacher, planner, self.mode, self.decisions or 500)
        given = self.plan, self.stage.costs, self.clock
        held_out, key, files = None, "-none", {}
        with self.or_left_out("the draft, and what acts with it"):
            files["distilled"] = learning.draft(settings, *given)
        with self.or_left_out("the corrector, and what acts with it"):
            files[learning.ARCH], held_out, key = learning.corrector(settings, *given)
        self.stage = dataclasses.replace(self.stage, corrector_files=files)
        gated = [name for name in self.able() if numbers_of(self.arm(name))]
        if gated and self.right_sized not in self.delays:  # else no gate may ask for a plan
            stage = self.stage
            self.calibration = learning.thresholds(stage, gated, held_out, key, self.standard, self.clock)

    def able(self) -> list[str]:
        """Candidates whose networks there are."""
        names = [name for chain in self.candidates.values() for name in chain]
        return [name for name in names if self.arm(name).corrector in ("", *self.stage.corrector_files)]

    @contextlib.contextmanager
    def or_left_out(self, what: str) -> Iterator[None]:
        """Make of `OutOfTime` a line of what was left out."""
        try:
            yield
        except OutOfTime as error:
            self.left_out.append(f"{what}: {error}")
            self.clock.say(f"left out: {what}")

    # -------------------------------------------------------------------------------------------------- certification

    def choose(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What was tried and which episodes came of it, as `lib.study.certify.certify` tells them; empty tables where
        there was no time for the test."""
        able = self.able()
        chains = {chain: tuple(n for n in names if n in able) for chain, names in self.candidates.items()}
        if self.rate:
            chains = within(self, chains)
        begun = self.kept["tested"]  # by an earlier run: it is not repeated on fewer or more
        count = begun or min(self.plan.certification, self.affordable())
        while count >= LEAST:
            self.tested = count
            self.note(tested=count)  # before any of it is known
            try:
                table, episodes, _ = certify(
                    self.stage, chains, self.standard, self.calibration, count, self.keep, self.fits, self.before
                )
                break
            except OutOfTime as error:  # of the teacher's own episodes
                self.left_out.append(f"{count} episodes of each candidate: {error}")
                count = 0 if begun else count // 2
        else:
            self.note(tested=begun)
            minutes, why = math.ceil(self.plan.needed), f"an earlier run has begun it with {begun} episodes of each"
            if not begun:
                why = f"it needs at least {LEAST} episodes of the teacher and of each candidate, and on this machine "
                why += f"all in all about {minutes} minute{'s' * (minutes > 1)}"
            self.left_out.append(f"the test: {why}")
            return pd.DataFrame(columns=["chain", "candidate", "admitted"]), pd.DataFrame()
        teacher = episodes[episodes["arm"] == TEACHER]
        self.something(teacher["return"].to_numpy(), self.trivial(teacher["episode_seed"].tolist()), SURE)
        return table, episodes

    def affordable(self) -> int:
        """Episodes of the teacher that fit into what is left, with as much again for all else."""
        return int(self.clock.left / (2 * self.clock.pace * self.stage.costs.episode(self.arm(TEACHER))))

    def fits(self, name: str, block: str) -> bool:
        """Whether there is time to play an arm for the test. (Picks are checked by `checked`.)"""
        if block != "certify" or name == TEACHER:
            return name == TEACHER and block == "certify"
        arm, wanted = self.arm(name), {*episode_seeds("certify", self.tested, first=self.before)}
        recorded = self.stage._recorded(arm, self.stage.key(arm)).episodes
        lacking = len(wanted - {row["episode_seed"] for row in recorded})
        if not lacking or self.clock.fits(lacking * self.stage.costs.episode(arm), 0.05 * 60 * self.minutes):
            return True
        self.left_out.append(f"{name}, and what is cheaper in its chain: its episodes do not fit into the minutes")
        return False

    def checked(self, pick: str, floor: float) -> tuple[dict, pd.DataFrame]:
        """What fresh episodes say of the pick, and these; {} where there is no time for them."""
        if pick == TEACHER:
            return {}, pd.DataFrame()
        each, tables = sum(self.stage.costs.episode(self.arm(name)) for name in (TEACHER, pick)), []
        count = max(
            self.plan.check, min(int((self.clock.left - REPORT) / (self.clock.pace * each)), self.plan.certification)
        )
        with self.or_left_out("the check of the pick on fresh episodes"):
            if count < LEAST:
                raise OutOfTime(f"it needs at least {LEAST} episodes more of the teacher and of the pick")
            for name in (TEACHER, pick):
                seeds = episode_seeds("trial", count, first=FRESH + self.before)
                rows = pd.DataFrame(self.stage.play(self.arm(name), seeds)[0].episodes)
                tables.append(rows.assign(block="check", arm=name))
        if len(tables) < 2:
            return {}, pd.DataFrame()
        kept = kept_above(tables[1]["return"], tables[0]["return"], floor)
        found = dict(zip(("kept", "low", "high"), map(plain, kept), strict=True))
        return found | {"episodes": count, "verdict": verdict(kept, self.keep)}, pd.concat(tables)


def check(rate: float, keep: float, minutes: float) -> None:
    """`ConfigError` for numbers that are none of a run."""
    if not 0 < keep < 1:
        raise ConfigError(f"keep={keep} must lie between 0 and 1, as 0.98 for 98 %.")
    if not 0 <= rate < 1e6:
        raise ConfigError(f"rate={rate} must be a number of decisions per second, or 0 for no deadline.")
    if not 0 < minutes <= 10_000:
        raise ConfigError(f"minutes={minutes} must be above 0, and at most 10,000.")


def fitting(teacher: str, task: str) -> WorldModel:
    """The teacher's world model. Raises `CheckpointError` for one that has other widths than the environment."""
    wm, env = load_world_model(teacher, task=task), make_env(task)
    env.close()
    theirs, ours = (*env.observation_space.shape, *env.action_space.shape), (wm.native_obs_dim, wm.action_dim)
    if theirs != ours:
        numbers = "{} observations and {} actions, but {} has {} and {}".format(*ours, task, *theirs)
        raise CheckpointError(f"{teacher} takes {numbers}; give the environment that it was trained on.")
    return wm
