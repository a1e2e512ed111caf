"""Axes of the figures of return against cost: logarithmic costs with a place for 0, and return kept, with an end below.

x, y = cost_scale(arms["planner_calls"], width=140), kept_scale(arms, height=165)
x.place(84), y.place(98)  # units from the beginning of each axis
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import altair as alt
import pandas as pd

from figures import charts

APART = 1.7 * charts.FONT_SIZE  # units between labels of ticks, at least
EDGE = 5  # units that are free above and below all intervals
LEAST = 50.0  # percent kept: no axis goes further down, as most arms lie near 100 %
ZERO_SLOT = 0.13  # of the width: logarithmic axes have no zero, so arms that cost nothing stand apart on the left


@dataclass(frozen=True)
class Scale:
    """An axis of `length` units from `low` to `high`, logarithmic or `linear`.

    `zero` is where a logarithmic axis shows 0, if it has to. What lies outside a linear one stands at its end.
    """

    low: float
    high: float
    length: float
    linear: bool = False
    zero: float | None = None

    def bend(self, value: float) -> float:
        return value if self.linear else math.log(value)

    def place(self, value: float) -> float:
        """Units from the axis' beginning."""
        low, high = self.bend(self.low), self.bend(self.high)
        shown = self.zero if value == 0 and self.zero is not None else value
        if self.linear:
            shown = min(max(shown, self.low), self.high)
        return (self.bend(shown) - low) / (high - low) * self.length

    def value(self, place: float) -> float:
        """What a logarithmic axis shows at a place."""
        low, high = self.bend(self.low), self.bend(self.high)
        return math.exp(low + (high - low) * place / self.length)

    @property
    def altair(self) -> alt.Scale:
        kind = dict(type="linear", zero=False, clamp=True) if self.linear else dict(type="log")
        return alt.Scale(**kind, domain=[self.low, self.high], nice=False)


def cost_scale(costs: pd.Series, width: float) -> Scale:
    """A logarithmic axis for costs, with a place apart for 0 if one of them is."""
    most, least = costs.max() * 1.2, costs[costs > 0].min() / 1.2
    if (costs > 0).all():
        return Scale(least, most, width)
    slot = (most / least) ** (ZERO_SLOT / (1 - ZERO_SLOT))
    return Scale(least / slot, most, width, zero=least / slot**0.55)


def kept_scale(arms: pd.DataFrame, height: float) -> Scale:
    """A linear axis for return kept in percent that holds every interval, as far as it is above `LEAST`."""
    ends = 100 * arms[["kept", "kept_low", "kept_high"]].stack()
    low, high = max(LEAST, min(90.0, ends.min())), max(100.0, ends.max())
    room = EDGE / height * (high - low)  # for half a mark
    return Scale(low - room, high + room, height, linear=True)


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
    """The multiples of the first round number that leaves their labels apart."""
    apart = APART * (scale.high - scale.low) / scale.length
    step = next((step for step in (2, 5, 10, 20, 50) if step >= apart), 100)
    return [tick for tick in range(0, int(scale.high) + 1, step) if tick >= scale.low]
