"""The look of every chart: theme, one colour and shape per family of arms, label placement, and saving.

One chart unit is one point (1/72 inch), so a font size here is the size in print.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import vl_convert

from lib.results import write_bytes

COLUMN_WIDTH = 3.3 * 72  # one column of the paper
FULL_WIDTH = 6.8 * 72
PNG_PPI = 288
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e6e6e6"
FONT_SIZE = 8


@dataclass(frozen=True)
class Family:
    """How one kind of arm is drawn; `shape` is a Vega point shape."""

    name: str
    colour: str
    shape: str


# Okabe–Ito colours (Okabe & Ito 2008), told apart with every common colour blindness; shapes carry the same
# information in black and white. Keys are prefixes of arm names, the longest match counts.
FAMILIES = {
    "teacher": Family("teacher", "#000000", "diamond"),
    "policy": Family("policy prior", "#CC79A7", "triangle-up"),
    "open-loop": Family("open loop", "#0072B2", "square"),
    "hold-last": Family("hold last action", "#0072B2", "stroke"),
    "two-tower": Family("two-tower corrector", "#D55E00", "circle"),
    "temporal": Family("temporal corrector", "#E69F00", "triangle-right"),
    "gate": Family("gated", "#009E73", "triangle-down"),
    "value-checked": Family("value-checked", "#56B4E9", "triangle-left"),
    "budget": Family("smaller planner", "#7A7A7A", "square"),
    "right-sized": Family("right-sized planner", "#7A7A7A", "diamond"),
}
OTHER = Family("other", "#7A7A7A", "cross")


def family(arm: str) -> Family:
    """The family of an arm, by the longest prefix in `FAMILIES`; `OTHER` (grey crosses) for any further arm."""
    matches = [prefix for prefix in FAMILIES if arm.startswith(prefix)]
    return FAMILIES[max(matches, key=len)] if matches else OTHER


@alt.theme.register("paper", enable=False)
def _theme() -> alt.theme.ThemeConfig:
    # No font name, on purpose: one that is not installed gives a PDF without text, and no warning (altair #3617).
    axis = dict(
        labelFontSize=FONT_SIZE,
        titleFontSize=FONT_SIZE + 1,
        titleFontWeight="normal",
        labelColor=INK,
        titleColor=INK,
        domainColor=INK,
        tickColor=INK,
        domainWidth=0.6,
        tickWidth=0.6,
        tickSize=3,
        gridColor=GRID,
        gridWidth=0.5,
        titlePadding=5,
    )
    legend = dict(labelFontSize=FONT_SIZE, titleFontSize=FONT_SIZE, titleFontWeight="normal", symbolSize=40)
    return {
        "config": {
            "background": "white",
            "padding": 2,
            "view": {"stroke": None},
            "axis": axis,
            "axisX": {"labelAngle": 0},
            "legend": legend,
            "title": dict(fontSize=FONT_SIZE + 1, fontWeight="normal", color=INK, anchor="start", offset=6),
            "header": dict(labelFontSize=FONT_SIZE, titleFontSize=FONT_SIZE),
            "text": dict(fontSize=FONT_SIZE, color=INK),
            "line": dict(strokeWidth=1.4),
            "range": {"category": list(dict.fromkeys(f.colour for f in FAMILIES.values()))},
        }
    }


def enable() -> None:
    """For notebooks: this theme, and charts as SVG inside the notebook (the default renderer needs a network)."""
    alt.theme.enable("paper")
    alt.renderers.enable("svg")


def save(chart: alt.TopLevelMixin, stem: Path) -> list[Path]:
    """Write `<stem>.svg`, `.pdf` and `.png` (288 pixels per inch), each whole or not at all, without a network.

    The SVG is the same bytes for the same chart and is what the paper embeds; the PDF is not, so don't compare it.
    """
    with alt.theme.enable("paper"):
        spec = chart.to_dict()
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])  # "v6.4.1" → "6.4", as vl-convert names it
    outputs = {
        ".svg": vl_convert.vegalite_to_svg(spec, vl_version=version).encode(),
        ".pdf": vl_convert.vegalite_to_pdf(spec, vl_version=version),
        ".png": vl_convert.vegalite_to_png(spec, vl_version=version, ppi=PNG_PPI),
    }
    stem = Path(stem)
    paths = [stem.parent / (stem.name + suffix) for suffix in outputs]
    for path, data in zip(paths, outputs.values(), strict=True):
        write_bytes(path, data)
    return paths


# ---------------------------------------------------------------------------------------------- labels in the chart


@dataclass(frozen=True)
class Box:
    """A rectangle in chart units, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)

    def outside(self, frame: Box) -> float:
        """Area that sticks out of `frame`."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


@dataclass(frozen=True)
class Label:
    """A placed label: text starts at (x, y) when `align` is "left" and ends there when "right"; `y` is its middle.

    `point` is what it names; a label that is `far` from it wants a leader line.
    """

    text: str
    x: float
    y: float
    align: str
    point: tuple[float, float]

    @property
    def far(self) -> bool:
        return abs(self.y - self.point[1]) > 1.2 * FONT_SIZE

    @property
    def box(self) -> Box:
        width = 0.55 * FONT_SIZE * len(self.text)  # a little more than the average letter of a sans-serif font
        left = self.x if self.align == "left" else self.x - width
        return Box(left, self.y - 0.55 * FONT_SIZE, left + width, self.y + 0.55 * FONT_SIZE)

    def leader_area(self, box: Box) -> float:
        """How much of `box` the leader line runs through (tiny squares along the line, its ends left out)."""
        if not self.far:
            return 0.0
        (x, y), n = self.point, 16
        steps = ((x + (self.x - x) * i / n, y + (self.y - y) * i / n) for i in range(3, n))
        return sum(Box(a - 0.5, b - 0.5, a + 0.5, b + 0.5).overlap(box) for a, b in steps)


def place_labels(
    points: list[tuple[str, float, float, str]], frame: Box, taken: list[Box], gap: float = 6
) -> list[Label]:
    """Put a label beside each point (text, x, y, side), clear of other labels, of `taken`, and of the frame's edge.

    Tries both sides of the point (`side`, "left" or "right", first), level with it and shifted up or down by half
    lines, nearest first; takes the
    first clean place for each point in turn, and goes back a point when there is none. Where no clean arrangement is
    found within a bounded search, the least overlap is taken.
    """
    shifts = [0, *itertools.chain.from_iterable((-s, s) for s in range(1, 10))]
    candidates = [
        [
            Label(text, x + gap if align == "left" else x - gap, y + 0.55 * FONT_SIZE * shift, align, (x, y))
            for shift in shifts
            for align in (
                ("left", "right") if side == "right" else ("right", "left")
            )  # text right of a point starts there
        ]
        for text, x, y, side in points
    ]

    def cost(label: Label, placed: list[Label]) -> float:
        clutter = label.box.outside(frame) + sum(label.box.overlap(t) for t in taken)
        for other in placed:
            clutter += label.box.overlap(other.box) + label.leader_area(other.box) + other.leader_area(label.box)
        return clutter

    steps = itertools.count()

    def search(placed: list[Label]) -> list[Label] | None:
        if len(placed) == len(points):
            return placed
        for label in candidates[len(placed)]:
            if next(steps) > 5_000:
                return None
            if cost(label, placed) == 0 and (found := search([*placed, label])) is not None:
                return found
        return None

    found = search([])
    if found is None:
        found = []
        for options in candidates:
            found.append(min(options, key=lambda label: cost(label, found)))
    return found
