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

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.distil.states import DistillationError
from lib.environments import episode_decisions, identity, make_env
from lib.policy import PolicyController
from lib.records import paths
from lib.records.keys import key_of
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import machine, write_json
from lib.study.accelerate import learning
from lib.study.accelerate.asked import check, fitting
from lib.study.accelerate.deadline import in_background, within
from lib.study.accelerate.plan import LEAST, MOST, REPORT, Clock, Costs, OutOfTime, Plan, ladder, measured
from lib.study.accelerate.playing import Playing, again, in_mode, in_time, plain
from lib.study.accelerate.tested import Tests
from lib.study.accelerate.trivial import nothing_learnt, trivial_returns
from lib.study.arms import Arm, DelayArm, make_arm, make_controller, networks_of, numbers_of
from lib.study.cells import Cell
from lib.study.certify import FRESH, RANDOM, TEACHER, certify, floor_of, random_returns
from lib.study.evaluate import Stage
from lib.study.stats.certification import kept_above, verdict
from lib.weights.native import teacher_key

SLACK = 0.02  # of a share over few episodes: who labels is not who is promised
ENOUGH = 64  # samples in all iterations, of a planner whose plans are learnt from
PATIENT = 10  # minutes from which on compiling planners pays


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
    doubt: str = ""  # why there may be nothing to keep
    times: dict[str, list[float]] = field(default_factory=dict)
    calibration: dict[str, dict] = field(default_factory=dict)
    delays: dict[str, int] = field(default_factory=dict)  # of planners that do not fit into a period, in decisions

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
        arm = make_arm(name, in_mode(self.standard, "auto"), self.calibration.get(name))
        made = make_controller(arm, self.stage.wm, self.stage.correctors)
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
        drafts, clone = (f"{on}clone+gated-3-r30",), (learning.DRAFT, "policy")
        return {"planners": tuple(smaller), "reuse": reuse, "drafts": drafts, "clone": clone}

    def prepare(self) -> None:
        """Costs and the plan: as they were kept, or measured now and said."""
        standard = in_mode(self.standard, "auto")
        about = (self.key, identity(self.task), self.rate, self.keep, self.length, standard, machine())
        key = key_of((measured, Plan), *about)
        self.file = paths.CACHE / learning.NAME / f"{self.cell}-plan-{name_of(key)}.json"
        self.kept = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        kept = self.kept
        if kept and kept["minutes"] == self.minutes:
            self.stage.costs, self.plan = Costs(**kept["costs"]), Plan(**kept["plan"])
            self.mode = self.stage.mode = kept["mode"]
            self.standard = in_mode(standard, self.mode)
            self.times, self.stage.late = kept["times"], kept["late"]
            self.clock.say(f"going on with the plan of {kept['written']}, {self.file} (remove it to measure anew)")
        else:
            self.clock.say("what a decision costs here")
            costs = measured(self.stage.wm, self.task, self.standard, self.usual_length())
            sizes = [TEACHER, *self.sizes()]
            self.right_sized = sizes[len(sizes) // 2]  # a guess: nothing is known of it yet
            arms = [self.arm(name) for chain in self.candidates.values() for name in chain]
            left = self.clock.left
            self.plan = Plan.of(costs, self.standard, arms, left, 60 * self.minutes - left)
            self.stage.costs, self.kept = costs, {}
            self.note(costs=vars(costs), plan=self.plan.settings, minutes=self.minutes, mode=self.mode,
                      written=time.strftime("%Y-%m-%d %H:%M"), times={}, late={})  # fmt: skip
        self.right_sized = TEACHER
        costs, plan = self.stage.costs, self.plan
        asked = {"rate": self.rate, "keep": self.keep, "length": self.length, "standard": as_dict(self.standard)}
        asked |= {"minutes": self.minutes, "plan": plan.settings}
        self.tests = Tests.of(self.cell, {"teacher": self.key, "task": identity(self.task)}, asked)
        if others := self.tests.others:
            said = f"{others} other test{'s were' if others > 1 else ' was'} begun of this teacher; this one has other"
            self.clock.say(f"{said} start states, and of several tests one errs more often than each")
        check = f"a check of the pick on {plan.check} fresh ones" if plan.check else "no check of the pick"
        self.clock.say(
            f"a decision of the teacher takes {1e3 * costs.solve(self.standard):.0f} ms, an update "
            f"{1e3 * costs.update:.0f} ms; the plan: {plan.calibration} episodes of calibration, {plan.certification} "
            f"of each candidate for the test, {check}"
        )

    def usual_length(self) -> int:
        """Decisions of an episode: as many as there may be, or where it can end before, as the policy prior plays."""
        if not self.stage.wm.config.episodic:
            return self.length
        prior, seeds = PolicyController(self.stage.wm, mode="eager"), episode_seeds("calibrate", 3, self.cell.seed)
        rows = again(lambda: random_returns(prior, self.task, seeds, self.length))
        return math.ceil(np.mean([row["length"] for row in rows]))

    def note(self, **what) -> None:
        """Keep with the plan."""
        self.kept |= what
        write_json(self.file, self.kept)

    # ------------------------------------------------------------------------------------------------- calibration

    def right_size(self) -> None:
        """Find the smallest planner that keeps the share on calibration episodes, and refuse a teacher that has learnt
        nothing."""
        seeds = episode_seeds("calibrate", self.plan.calibration, self.cell.seed)
        trivial = trivial_returns(self.stage, seeds)
        teacher = self.stage.returns(self.arm(TEACHER), seeds)
        self.doubt = nothing_learnt(teacher, trivial)
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

    # ---------------------------------------------------------------------------------------------------- learning

    def learn(self) -> None:
        """A draft and a corrector of the right-sized planner, thresholds; what does not fit is named."""
        planner = self.arm(self.right_sized).planner
        settings = learning.settings_for(self.cell, self.teacher, planner, self.mode, self.decisions or 500)
        given = self.plan, self.stage.costs, self.clock
        held_out, key, files = None, "-none", {}
        with self.or_left_out("the draft, and what acts with it"):
            files[learning.DRAFT] = learning.draft(settings, *given)
        with self.or_left_out("the corrector, and what acts with it"):
            files[learning.ARCH], held_out, key = learning.corrector(settings, *given)
        self.stage = dataclasses.replace(self.stage, corrector_files=files)
        gated = [name for name in self.able() if numbers_of(self.arm(name))]
        if gated and self.right_sized not in self.delays:  # else no gate may ask for a plan
            stage = self.stage
            with self.or_left_out("what has a gate", ConfigError):  # of a rate that no threshold has
                self.calibration = learning.thresholds(stage, gated, held_out, key, self.standard, self.clock)

    def able(self) -> list[str]:
        """Candidates whose networks there are."""
        names = [name for chain in self.candidates.values() for name in chain]
        return [name for name in names if {*networks_of(self.arm(name))} <= {*self.stage.corrector_files}]

    def ready(self, name: str) -> bool:
        """Whether an arm has the numbers of its gate."""
        return all(self.calibration.get(name, {}).get(number) is not None for number in numbers_of(self.arm(name)))

    @contextlib.contextmanager
    def or_left_out(self, what: str, *others: type[Exception]) -> Iterator[None]:
        """Make of what cannot be had, for want of time or by what it is, a line of what was left out."""
        try:
            yield
        except (OutOfTime, DistillationError, *others) as error:
            self.left_out.append(f"{what}: {str(error).rstrip('.')}")
            self.clock.say(f"left out: {what}")

    # -------------------------------------------------------------------------------------------------- certification

    def choose(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What was tried and which episodes came of it, as `lib.study.certify.certify` tells them; empty tables where
        there was no time for the test."""
        able = self.able()
        ready = able if self.right_sized in self.delays else [n for n in able if self.ready(n)]
        chains = {chain: tuple(n for n in names if n in ready) for chain, names in self.candidates.items()}
        if self.rate:
            chains = within(self, chains)
        begun = self.tests.mine["count"]  # by an earlier run: it is not repeated on fewer or more
        planned = self.plan.certification
        count = begun or min(max(LEAST, self.room(chains)) if planned else 0, self.affordable(), MOST)
        while count >= LEAST:
            self.tested = count
            self.tests.note(count=count)  # before any of it is known
            try:
                table, episodes, _ = certify(
                    self.stage, chains, self.standard, self.calibration, count, self.keep, self.fits, self.tests.first
                )
                break
            except OutOfTime as error:  # of the teacher's own episodes
                self.left_out.append(f"{count} episodes of each candidate: {error}")
                count = 0 if begun else count // 2
        else:
            self.tests.note(count=begun)
            minutes = math.ceil(max(self.plan.needed, self.needed(chains)))
            why = f"an earlier run has begun it with {begun} episodes of each"
            if not begun:
                why = f"it needs at least {LEAST} episodes of the teacher and of each candidate, and on this machine "
                why += f"all in all about {minutes} minute{'s' * (minutes > 1)}"
            self.left_out.append(f"the test: {why}")
            return pd.DataFrame(columns=["chain", "candidate", "admitted"]), pd.DataFrame()
        teacher = episodes[episodes["arm"] == TEACHER]
        self.doubt = nothing_learnt(teacher["return"], trivial_returns(self.stage, teacher["episode_seed"].tolist()))
        return table, episodes

    def room(self, chains: dict[str, tuple[str, ...]]) -> int:
        """Episodes of each candidate that fit by now, with the check behind: what came before may have taken less than
        was planned, or more."""
        left = self.clock.left - REPORT - self.plan.seconds["time"] - self.clock.pace * self.plan.seconds["check"]
        return int(left / self.each(chains))

    def each(self, chains: dict[str, tuple[str, ...]]) -> float:
        """Seconds of an episode of each candidate, of the teacher and of what is trivial, as they go by now."""
        names = dict.fromkeys([TEACHER, *(name for chain in chains.values() for name in chain)])
        costs = self.stage.costs
        return self.clock.pace * (costs.trivial + sum(costs.episode(self.arm(name)) for name in names))

    def needed(self, chains: dict[str, tuple[str, ...]]) -> float:
        """Minutes with which there would have been a test, after all that has been done by now."""
        return self.minutes + (LEAST * self.each(chains) + REPORT + self.plan.seconds["time"] - self.clock.left) / 60

    def affordable(self) -> int:
        """Episodes of the teacher that fit into what is left, with as much again for all else."""
        return int(self.clock.left / (2 * self.clock.pace * self.stage.costs.episode(self.arm(TEACHER))))

    def fits(self, name: str, block: str) -> bool:
        """Whether there was time to play an arm for the test, which is done here. (Picks are checked by `checked`.)"""
        if block != "certify" or name == TEACHER:
            return name == TEACHER and block == "certify"
        arm, seeds = self.arm(name), episode_seeds("certify", self.tested, first=self.tests.first)
        with self.or_left_out(f"{name}, and what is cheaper in its chain"):
            self.stage.play(arm, seeds, spare=REPORT + self.plan.seconds["time"])
            return True
        return False

    def checked(self, pick: str, floor: float) -> tuple[dict, pd.DataFrame]:
        """What fresh episodes say of the pick, and these; {} where there is no time for them."""
        if pick == TEACHER:
            return {}, pd.DataFrame()
        each, tables = sum(self.stage.costs.episode(self.arm(name)) for name in (TEACHER, pick)), []
        left = self.clock.left - REPORT - self.plan.seconds["time"]
        most = max(self.plan.check, min(int(left / (self.clock.pace * each)), self.tested))
        count = self.tests.mine["check"] or most  # by an earlier run: a verdict is not asked for until it is another
        with self.or_left_out("the check of the pick on fresh episodes"):
            if count < LEAST:
                raise OutOfTime(f"it needs at least {LEAST} episodes more of the teacher and of the pick")
            self.tests.note(check=count)
            for name in (TEACHER, pick):
                seeds = episode_seeds("trial", count, first=FRESH + self.tests.first)
                rows = pd.DataFrame(self.stage.play(self.arm(name), seeds)[0].episodes)
                tables.append(rows.assign(block="check", arm=name))
        if len(tables) < 2:
            return {}, pd.DataFrame()
        kept = kept_above(tables[1]["return"], tables[0]["return"], floor)
        found = dict(zip(("kept", "low", "high"), map(plain, kept), strict=True))
        return found | {"arm": pick, "episodes": count, "verdict": verdict(kept, self.keep)}, pd.concat(tables)
