"""The look of every chart: theme, one colour and shape per family of arms, marks that keep clear, and saving.

One chart unit is one point (1/72 inch), so a font size here is the size in print.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from lib.records.store import write_bytes

COLUMN_WIDTH = 3.3 * 72  # one column of the paper
FULL_WIDTH = 6.8 * 72
PNG_PPI = 288
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e6e6e6"
FONT_SIZE = 8


@dataclass(frozen=True)
class Family:
    """How one kind of arm is drawn; `shape` is a Vega point shape: a name, or an SVG path in [-1, 1] × [-1, 1]."""

    name: str
    colour: str
    shape: str


NOSED = "M-1,-.7H.2L1,0L.2,.7H-1L-.5,0Z"
STAR = "M0,-1L.29,-.35L1,-.28L.47,.19L.62,.89L0,.53L-.62,.89L-.47,.19L-1,-.28L-.29,-.35Z"
PENTAGON = "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z"
HEXAGON = "M-.9,-.5L0,-1L.9,-.5L.9,.5L0,1L-.9,.5Z"
HOURGLASS, BOW_TIE, BAR = "M-.9,-1H.9L-.9,1H.9Z", "M-1,-.9V.9L1,-.9V.9Z", "M-1,-.4H1V.4H-1Z"
SALTIRE = "M-.9,-.5L-.5,-.9L0,-.4L.5,-.9L.9,-.5L.4,0L.9,.5L.5,.9L0,.4L-.5,.9L-.9,.5L-.4,0Z"

CHEVRON, HOUSE = "M-1,-.8L0,0L1,-.8V.1L0,.9L-1,.1Z", "M0,-1L1,-.1V1H-1V-.1Z"
TRAPEZE, LEANING = "M-.5,-.8H.5L1,.8H-1Z", "M-.3,-.8H1L.3,.8H-1Z"
NOTCHED, TEE = "M-1,-1H-.35V-.1H.35V-1H1V1H-1Z", "M-1,-1H1V-.3H.4V1H-.4V-.3H-1Z"

FOUR_POINTED, OCTAGON = "M0,-1L.3,-.3L1,0L.3,.3L0,1L-.3,.3L-1,0L-.3,-.3Z", "M-.4,-1H.4L1,-.4V.4L.4,1H-.4L-1,.4V-.4Z"
ARROW_UP, ARROW_DOWN = "M0,-1L1,.1H.4V1H-.4V.1H-1Z", "M0,1L1,-.1H.4V-1H-.4V-.1H-1Z"
KITE, BOWL, ELL = "M0,-1L.7,-.3L0,1L-.7,-.3Z", "M-1,-.5H1A1,1,0,0,1,-1,-.5Z", "M-1,-1H-.2V.2H1V1H-1Z"
ZIGZAG, DROP = "M-1,-1H.4L0,-.2H1L-.4,1L0,.1H-1Z", "M0,-1L.8,.3A.85,.85,0,1,1,-.8,.3Z"
DOUBLE, STAIRS = "M-1,-1L0,0V-1L1,0L0,1V0L-1,1Z", "M-1,1V.3H-.3V-.35H.35V-1H1V1Z"
EYE, PLUG, DIABOLO, WAVE = (
    "M-1,0Q0,-1.1,1,0Q0,1.1,-1,0Z",
    "M-1,-.4H0V-1H1V1H0V.4H-1Z",
    "M-1,-1H1V-.5L.3,0L1,.5V1H-1V.5L-.3,0L-1,-.5Z",
    "M-1,-.9L0,-.3L1,-.9V.3L0,.9L-1,.3Z",
)
CUT = "M-.18,-1V.2H-.7L0,1L.7,.2H.18V-1Z"  # no family's: an arrow at the end of an axis that something lies beyond
CLIPPED = "M-1,-1H.2L1,-.2V1H-1Z"

# Okabe–Ito colours (Okabe & Ito 2008), a dark wine, and two olives, a light one of drafts that learnt by DAgger and a
# dark one of clones, told apart with every common colour blindness; shapes carry the same in black and white. All
# shapes are closed: they are filled or hollow by the planner underneath. Keys are the schemes of arms.
EVERY_STEP, DRAFT, CLONE = Family("planner at every step", "#000000", "diamond"), "#999933", "#4A4A00"
ADAREP, PUBLISHED = Family("AdaReP", "#882255", NOTCHED), Family("published corrector", "#882255", TEE)
FAMILIES = {
    "teacher": EVERY_STEP,
    "teacher-sample": EVERY_STEP,
    "budget": EVERY_STEP,
    "swept": EVERY_STEP,
    "policy": Family("policy prior", "#CC79A7", "triangle-up"),
    "best-of": Family("best of prior samples", "#CC79A7", "triangle-left"),
    "open-loop": Family("open loop", "#0072B2", "square"),
    "hold-last": Family("hold last action", "#0072B2", BAR),
    "plan-ahead": Family("plan ahead", "#0072B2", HEXAGON),
    "plan-ahead+two-tower": Family("plan ahead, corrected", "#D55E00", HOUSE),
    "two-tower": Family("two-tower corrector", "#D55E00", "circle"),
    "temporal": Family("temporal corrector", "#E69F00", "triangle-right"),
    "no-plan": Family("corrector without plan", "#D55E00", SALTIRE),
    "gated": Family("gated by mismatch", "#009E73", "triangle-down"),
    "sensitive": Family("gated by sensitivity", "#009E73", HOURGLASS),
    "gate-only-mismatch": Family("mismatch, no corrector", "#009E73", CHEVRON),
    "gate-only-sensitivity": Family("sensitivity, no corrector", "#009E73", BOW_TIE),
    "trusted": Family("corrector, trusted by depth", "#D55E00", TRAPEZE),
    "trusted-gated": Family("gated, trusted by depth", "#009E73", LEANING),
    "value-checked": Family("value-checked", "#56B4E9", STAR),
    "value-only": Family("value check alone", "#56B4E9", PENTAGON),
    "ladder": Family("ladder", "#882255", "cross"),
    "distilled": Family("draft of DAgger", DRAFT, FOUR_POINTED),
    "cloned": Family("clone", CLONE, ARROW_DOWN),
    "prior+": Family("more prior updates", "#CC79A7", ARROW_UP),
    "draft+gated": Family("checked draft", DRAFT, OCTAGON),
    "draft+doubt": Family("draft, doubt check", DRAFT, KITE),
    "draft+value": Family("draft, value check", DRAFT, BOWL),
    "draft+mismatch": Family("draft, mismatch check", DRAFT, ELL),
    "clone+gated": Family("checked clone", CLONE, NOSED),
    "late": Family("late plan", "#000000", ZIGZAG),
    "late-hold": Family("late plan held", "#000000", PLUG),
    "async": Family("in the background", "#0072B2", DOUBLE),
    "async+two-tower": Family("in the background, two-tower", "#D55E00", DROP),
    "async+temporal": Family("in the background, temporal", "#E69F00", EYE),
    "async+delay-aware": Family("background, corrected", "#56B4E9", WAVE),
    "async+delay-aware+clone": Family("corrected, then clone", "#56B4E9", CLIPPED),
    "async+gated": Family("in the background, gated", "#009E73", DIABOLO),
    "async+draft": Family("in the background, draft", DRAFT, STAIRS),
    "adarep": ADAREP,
    "adarep-local": ADAREP,
    "published": PUBLISHED,
    "published-tuned": PUBLISHED,
}
OTHER = Family("other", "#7A7A7A", "wedge")
# What the text of the paper calls schemes whose families have shorter names.
WORDS = {"open-loop": "plans executed blindly", "gated": "plans reused with correction and gate"}
KEY_LINE, KEY_LETTERS = 10, 24  # units from line to line of a key, and letters in a line


def family(scheme: str) -> Family:
    """The family of the arms of a scheme, whatever their planner."""
    return FAMILIES.get(scheme, OTHER)


def words(scheme: str) -> str:
    """What the text of the paper calls the arms of a scheme."""
    return WORDS.get(scheme, family(scheme).name)


def key(looks: dict[str, Family], width: float, dashed: Collection[str] = ()) -> alt.LayerChart:
    """A legend as a panel, for where a row of panels has room: names and their looks below each other; those that are
    `dashed` are lines without a mark."""
    rows, line = [], 0.5
    for name, look in looks.items():
        text = textwrap.wrap(name, KEY_LETTERS)
        rows.append({"name": "\n".join(text), "y": KEY_LINE * line, "colour": look.colour, "shape": look.shape})
        rows[-1]["dashed"] = name in dashed
        line += len(text)
    height = KEY_LINE * (line - 0.5)
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, 0], nice=False, zero=False))
    base = alt.Chart(pd.DataFrame(rows)).encode(y=y)
    colour = alt.Color("colour:N", scale=None)
    layers = [
        base.transform_filter("!datum.dashed")
        .mark_point(filled=True, size=34, opacity=1)
        .encode(x=alt.value(9), color=colour, shape=alt.Shape("shape:N", scale=None)),
        base.transform_filter("datum.dashed")
        .mark_rule(strokeDash=[4, 2], strokeWidth=1.1)
        .encode(x=alt.value(2), x2=alt.value(16), color=colour),
        base.mark_text(align="left", baseline="line-top", dy=-FONT_SIZE / 2, lineBreak="\n", lineHeight=KEY_LINE)
        .encode(x=alt.value(20), text="name:N"),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=width, height=height)


def small_planner(arm: pd.Series | dict) -> str:
    """What plans where it is not the teacher's planner, as 64×2; else empty. arm: a row with the columns of an arm."""
    if arm["standard_planner"] or pd.isna(arm["planner_samples"]):  # missing where nothing plans
        return ""
    return f"{arm['planner_samples']:.0f}×{arm['planner_iterations']:.0f}"


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
    spec["config"]["aria"] = False  # a description of every mark would be half of a file that is shown as one image
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


# ------------------------------------------------------------------------------------------- marks that keep clear


def spread(marks: list[tuple[float, float, float]], left: float, right: float, reach: float = 18) -> list[float]:
    """Where marks (x, y, radius), in chart units, are drawn from left to right: beside their x, as near as leaves
    every earlier mark uncovered, but never farther than `reach`. Where that is too near, the least is covered."""
    drawn: list[tuple[float, float, float]] = []

    def room(x: float, y: float, radius: float) -> float:
        """Space to the nearest mark, negative if it is covered; no more than none, as all free places are alike."""
        return min([0.0, *(math.hypot(x - other, y - level) - radius - size for other, level, size in drawn)])

    for x, y, radius in marks:
        offsets = [sign * step for step in range(math.floor(reach) + 1) for sign in (1, -1)]
        places = [x + offset for offset in offsets if left + radius <= x + offset <= right - radius] or [x]
        drawn.append((max(places, key=lambda place: room(place, y, radius)), y, radius))  # the first of the best
    return [place for place, _, _ in drawn]
