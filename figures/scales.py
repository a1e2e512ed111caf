"""Axes of the figures of return against cost: logarithmic costs with a place for 0, and return kept, stretched.

x, y = cost_scale(arms["planner_calls"], width=140), kept_scale(arms, height=165)
x.place(84), y.place(98)  # units from the beginning of each axis
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import altair as alt
import pandas as pd

from figures import charts

EDGE = 5  # units that are free above and below all intervals
STRETCH = 3  # the y axis shows kept to this power: most arms lie near 100 %, and few far below
ZERO_SLOT = 0.13  # of the width: logarithmic axes have no zero, so arms that cost nothing stand apart on the left


@dataclass(frozen=True)
class Scale:
    """An axis of `length` units from `low` to `high`; logarithmic, or proportional to a power where one is given.

    `zero` is where a logarithmic axis shows 0, if it has to.
    """

    low: float
    high: float
    length: float
    power: float = 0
    zero: float | None = None

    def bend(self, value: float) -> float:
        return math.copysign(abs(value) ** self.power, value) if self.power else math.log(value)

    def place(self, value: float) -> float:
        """Units from the axis' beginning."""
        low, high = self.bend(self.low), self.bend(self.high)
        shown = self.zero if value == 0 and self.zero is not None else value
        return (self.bend(shown) - low) / (high - low) * self.length

    def value(self, place: float) -> float:
        """What a logarithmic axis shows at a place."""
        low, high = self.bend(self.low), self.bend(self.high)
        return math.exp(low + (high - low) * place / self.length)

    @property
    def altair(self) -> alt.Scale:
        kind = dict(type="pow", exponent=self.power) if self.power else dict(type="log")
        return alt.Scale(**kind, domain=[self.low, self.high], nice=False)


def cost_scale(costs: pd.Series, width: float) -> Scale:
    """A logarithmic axis for costs, with a place apart for 0 if one of them is."""
    most, least = costs.max() * 1.2, costs[costs > 0].min() / 1.2
    if (costs > 0).all():
        return Scale(least, most, width)
    slot = (most / least) ** (ZERO_SLOT / (1 - ZERO_SLOT))
    return Scale(least / slot, most, width, zero=least / slot**0.55)


def kept_scale(arms: pd.DataFrame, height: float) -> Scale:
    """An axis for return kept in percent that holds every interval, stretched towards its upper end."""
    ends = 100 * arms[["kept", "kept_low", "kept_high"]].stack()
    low, high = (end**STRETCH for end in (min(90.0, ends.min()), max(100.0, ends.max())))
    room = EDGE / height * (high - low)  # for half a mark
    return Scale(math.cbrt(low - room), math.cbrt(high + room), height, power=STRETCH)


def cost_ticks(scale: Scale) -> list[float]:
    """0 if the axis has a place for it, and round numbers: 1, 2 and 5 times powers of ten, or the powers alone."""
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    steps = (1, 2, 5) if scale.high / cost_floor(scale) < 100 else (1,)
    ticks = [s * 10.0**d for d in decades for s in steps if s * 10.0**d <= scale.high]
    return ([] if scale.zero is None else [scale.zero]) + [t for t in ticks if t >= cost_floor(scale)]


def cost_floor(scale: Scale) -> float:
    """Where the place of 0 ends: the axis' beginning if it has none."""
    return scale.low if scale.zero is None else scale.value(ZERO_SLOT * scale.length)


def kept_ticks(scale: Scale) -> list[int]:
    """100, 0 where the axis reaches it, and multiples of 5 or 10 as far apart as their labels need."""
    apart = 1.25 * charts.FONT_SIZE
    step = 5 if scale.place(100) - scale.place(95) >= apart else 10
    ticks = [100]
    for candidates in (range(100 - step, -1, -step), range(100 + step, int(scale.high) + 1, step)):
        last = 100
        for value in candidates:
            if (value >= 80 or value % 10 == 0) and value >= scale.low:
                if abs(scale.place(value) - scale.place(last)) >= apart:
                    ticks.append(last := value)
    if scale.low <= 0:  # it tells how far down the axis is stretched
        ticks = [0] + [tick for tick in ticks if scale.place(tick) - scale.place(0) >= apart]
    return sorted(ticks)
