"""How long steps take here, and who keeps to a deadline: a planner that does not fit into a period is a background one.

Where the solves of a planner take longer than a decision has, it is late by as many decisions as its slowest solves
need. As a candidate it plans in the background: it is played with that delay (`lib.realtime.RealTimeController`), its
steps are timed against the clock, and what is saved never waits for a plan (`lib.realtime.BackgroundController`).
"""

from __future__ import annotations

import math

import numpy as np

from lib.config import ConfigError
from lib.study.accelerate.learning import ARCH
from lib.study.accelerate.plan import REPORT, ladder
from lib.study.accelerate.playing import LEAST_STEPS, WARM_UP, again
from lib.study.arms import LONGEST_DELAY, DelayArm, DraftArm
from lib.study.certify import TEACHER

QUANTILE = 0.99  # of the steps, that has to be within the period
UNTIMED = "its steps cannot be timed within the minutes"
LATE = 0.05  # of the plans in the background, that may come later than they were expected


def timed(search, name: str) -> float:
    """Milliseconds within which 99 % of an arm's steps are done, one episode at a time; measured once, and kept."""
    if name not in search.times:
        search.clock.say(f"steps of {name}")
        seconds = min(max(search.plan.seconds["time"] / 8, 0.5), 10.0)
        search.times[name] = again(lambda: search.stage.times(search.arm(name), seconds, search.period / 1e3))
        search.note(times=search.times, late=search.stage.late)
    return float(np.quantile(search.times[name], QUANTILE))


def may_time(search, name: str) -> bool:
    """Whether there is time to time an arm: some seconds, or what the fewest of its slowest steps take."""
    arm, costs = search.arm(name), search.stage.costs
    step = search.period / 1e3 if isinstance(arm, DelayArm) else costs.step + costs.solve(arm.planner)
    seconds = max((WARM_UP + LEAST_STEPS) * step, min(search.plan.seconds["time"] / 8, 10.0))
    compiling = costs.compile * (2 if isinstance(arm, DelayArm) else bool(arm.planner))
    return name in search.times or search.clock.fits(seconds + compiling, REPORT)


def check_rate(search) -> None:
    """Raises `ConfigError` for a rate that even the policy prior cannot meet."""
    if search.rate and (needed := timed(search, "policy")) > search.period:
        search.note(times={})  # perhaps something else took the time, and is done by the next run
        most = math.floor(1e3 / needed) or math.floor(1e5 / needed) / 100
        raise ConfigError(
            f"rate={search.rate:g} leaves {search.period:.3g} ms for a decision, and even the policy prior, without "
            f"a plan, needs {needed:.3g} ms here; ask for at most {most:g} decisions per second."
        )


def find_delays(search) -> None:
    """Find how many decisions late each planner is whose solves do not fit into a period."""
    for name in (TEACHER, *(arm.name for arm in ladder(search.standard))) if search.rate else ():
        needed = timed(search, name) if may_time(search, name) else math.inf
        if needed > search.period:
            search.delays[name] = delay = math.ceil(min(needed / search.period, 1e9))
            if delay > LONGEST_DELAY:
                why = f"its plans take {needed:.3g} ms, which is {delay} decisions, and {LONGEST_DELAY} are the most"
                why = why if name in search.times else UNTIMED
                search.left_out.append(f"{name} in the background: {why}")


def in_background(search) -> tuple[str, ...]:
    """Arms that plan in the background, safest first: the right-sized planner and smaller ones, as far as they are
    late, but by no more than arms may be."""
    sizes = [TEACHER, *(arm.name for arm in ladder(search.standard))]
    scheme = "async+two-tower" if ARCH in search.stage.corrector_files else "async"
    late = {name: search.delays.get(name, 0) for name in sizes[sizes.index(search.right_sized) :]}
    return tuple(f"{search.on(n)}{scheme}-d{delay}" for n, delay in late.items() if 0 < delay <= LONGEST_DELAY)


def within(search, chains: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The candidates of all chains that keep to the period; says of the others that they were left out."""
    if search.right_sized in search.delays:
        on = search.on(search.right_sized)
        why = f"their plans take longer than the {search.period:.3g} ms of a decision"
        search.left_out.append(f"{on}gated-6 and {on}two-tower-6: {why}")
    return {chain: tuple(name for name in names if admissible(search, name)) for chain, names in chains.items()}


def admissible(search, name: str) -> bool:
    """Whether an arm keeps to the period; says of one that does not that it was left out."""
    arm, why = search.arm(name), ""
    if isinstance(arm, DraftArm) and arm.planner and search.right_sized in search.delays:
        why = f"its plans take longer than the {search.period:.3g} ms of a decision"
    elif not may_time(search, name):
        why = UNTIMED
    elif (needed := timed(search, name)) > search.period:
        why = f"1 % of its steps take longer than {needed:.3g} ms, and a decision has {search.period:.3g}"
    elif (late := search.stage.late.get(name, 0.0)) > LATE:
        why = f"{100 * late:.0f} % of its plans came later than was measured before"
    if why:
        search.left_out.append(f"{name}: {why}")
    return not why
