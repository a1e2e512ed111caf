"""The report of an accelerated controller: one page that opens without a network.

    python -m figures.report build/my-controller

reads the folder that `python -m lib.study.accelerate` has written, and writes its report.html: what was chosen and why,
what each candidate returns, how long steps take, and a short clip of the controller where MuJoCo can draw one.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import altair as alt
import pandas as pd
import vl_convert

from figures import charts, film
from lib.bundle import load_controller, read_about
from lib.realtime import BackgroundController, RealTimeController
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import write_text
from lib.study.arms import Arm

DECISIONS, CLIP_BYTES, CLIP_SECONDS = 150, 400_000, 10  # of the clip, at most; the last is for playing it
DRAWING = 0.02  # seconds of a decision
WIDTH = 560
FORMS = {"return": ".1f", "kept": ".1%", "evaluations": ",.0f", "median_ms": ".3g", "p99_ms": ".3g"}
ADMITTED, REFUSED, CHOSEN = "#009E73", "#D55E00", "#000000"
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:14px}td,th{padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:top}
th{border-bottom:1px solid #999}h2{margin-top:2rem;font-size:1.15rem}.vega-embed{margin:1rem 0}img{max-width:100%}"""


def write(folder: Path, clipped: bool = True) -> Path:
    """Draw the report of a folder, without a clip unless `clipped`.

    `BundleError` or `ResultError` where it holds no accelerated controller.
    """
    about = read_about(folder)["about"]
    if "accelerated" not in about:
        raise ResultError(f"{folder} says nothing of how its controller was found; make it with lib.study.accelerate.")
    found = about["accelerated"]
    write_text(folder / "report.html", page(found, clip(folder, found) if clipped else None))
    return folder / "report.html"


def page(found: dict, clip: bytes | None) -> str:
    """The whole page, with Vega and the clip inside."""
    drawn = {"kept": kept(found), "times": times(found)}
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    with alt.theme.enable("paper"):
        specs = {name: chart.to_dict() for name, chart in drawn.items() if chart is not None}
    script = vl_convert.javascript_bundle(vl_version=version) if specs else ""
    options = json.dumps({"mode": "vega-lite", "actions": False, "renderer": "svg"})
    calls = "".join(f"vegaEmbed('#{name}',{_inside(spec)},{options});" for name, spec in specs.items())
    deadline = f"{found['rate']:g} decisions per second, {1e3 / found['rate']:.3g} ms each" if found["rate"] else "none"
    planned = "on {written}, for {minutes:g} minutes".format(**found["planned"])
    facts = {
        "teacher": found["teacher"], "environment": found["task"], "share to keep": f"{100 * found['keep']:g} %",
        "deadline": deadline, "right-sized planner": found["right_sized"].removeprefix("budget-"),
        "minutes": f"{found['spent_minutes']:g} of {found['minutes']:g}", "planned": planned,
        "machine": found["machine"], "digest of the teacher's weights": found["teacher_key"],
    }  # fmt: skip
    film = f'<img alt="the controller" src="data:image/gif;base64,{base64.b64encode(clip).decode()}">' if clip else ""
    missing = "".join(f"<li>{html.escape(what)}</li>" for what in found["left_out"])
    parts = [
        f"<h1>{html.escape(found['pick'])}</h1><p>{html.escape(found['why'])}</p>", film, "<h2>Candidates</h2>",
        '<div id="kept"></div>' if "kept" in specs else "", table(found),
        f"<p>{html.escape(rule(found))}</p>" if "kept" in specs else "",
        f'<h2>Steps</h2><div id="times"></div><p>{html.escape(timed(found))}</p>' if "times" in specs else "",
        f"<h2>Left out</h2><ul>{missing}</ul>" if missing else "", "<h2>Facts</h2>",
        _table([["", ""], *([name, value] for name, value in facts.items())]),
    ]  # fmt: skip
    title = html.escape(f"{found['pick']} for {found['task']}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join(filter(None, parts))
    scripts = f"<script>{script}</script><script>{calls}</script>" if specs else ""
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}{scripts}</body></html>\n'


def _inside(spec: dict) -> str:
    """JSON that may stand in a script, whatever names it holds."""
    return json.dumps(spec).replace("<", "\\u003c")


def rule(found: dict) -> str:
    """What the test promises."""
    again = ""
    if found["tests"]["others"]:
        again = " Tests were made before, on other start states: of several one errs more often than each."
    level, keep = found["level"], 100 * found["keep"]
    return (
        f"Candidates of a chain are tested from the safest to the cheapest until one fails, each at {level:g} / "
        f"{found['chains']}: the chance that anything is admitted that keeps less than {keep:g} % is at most "
        f"{100 * level:g} %, as far as falls were seen: of what falls rarely few episodes tell nothing. The table has "
        "the share that may fall all the same. Brackets and bars are 95 % intervals, the dashed line is the share to "
        "keep." + again
    )


def timed(found: dict) -> str:
    """What the times are of, and the deadline."""
    said = "From the observation to the action, without the environment, on the machine named below."
    if found["rate"]:
        said += f" The dashed line is the deadline, {1e3 / found['rate']:.3g} ms: a candidate has to meet it in 99 % "
        said += "of its steps. Who plans in the background (async) was timed while a thread planned."
    return said


def kept(found: dict) -> alt.TopLevelMixin | None:
    """What each tested candidate keeps of the teacher's return, with its interval; None where none was tested."""
    rows = pd.DataFrame([row for row in found["candidates"] if row.get("kept") is not None])
    if not len(rows):
        return None
    rows["look"] = ["chosen" if a == found["pick"] else "admitted" if ok else "not shown to keep it"
                    for a, ok in zip(rows["arm"], rows["admitted"], strict=True)]  # fmt: skip
    for column in ("kept", "kept_low", "kept_high"):
        rows[column] = 100 * rows[column].astype(float)
    looks = alt.Scale(domain=["chosen", "admitted", "not shown to keep it"], range=[CHOSEN, ADMITTED, REFUSED])
    base = alt.Chart(rows).encode(
        y=alt.Y("arm:N", sort=None, title=None, axis=alt.Axis(labelFontSize=12)),
        color=alt.Color("look:N", scale=looks, title=None, legend=alt.Legend(orient="bottom", labelFontSize=12)),
        tooltip=["arm", "episodes", _told("return", ".1f"), _told("kept", ".1f"), _told("kept_low", ".1f"),
                 _told("kept_high", ".1f"), _told("p", ".3g"), _told("evaluations", ",.0f"), "falls"],
    )  # fmt: skip
    x = alt.X("kept:Q", title="Return kept (%)", scale=alt.Scale(zero=False), axis=_axis())
    promise = alt.Chart(pd.DataFrame({"at": [100 * found["keep"]]})).mark_rule(strokeDash=[4, 3], color=charts.MUTED)
    return alt.layer(
        promise.encode(x=alt.X("at:Q", title="Return kept (%)")),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("kept_low:Q", title="Return kept (%)"), x2="kept_high"),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=x),
    ).properties(width=WIDTH - 160, height=alt.Step(26))


def times(found: dict) -> alt.TopLevelMixin | None:
    """How long steps of each candidate take, as distributions, beside the deadline; None where none was timed."""
    rows = pd.DataFrame([
        {"arm": arm, "share": share, "ms": max(ms, 1e-3)}
        for arm, quantiles in found["times"].items()
        for share, ms in enumerate(quantiles)
    ])  # fmt: skip
    if not len(rows):
        return None
    chart = alt.Chart(rows).mark_line(strokeWidth=2).encode(
        x=alt.X("ms:Q", title="Time of a step (ms), one episode at a time", scale=alt.Scale(type="log"), axis=_axis()),
        y=alt.Y("share:Q", title="Steps that are done (%)", axis=_axis()),
        color=alt.Color("arm:N", sort=None, title=None, legend=alt.Legend(labelFontSize=12, symbolSize=60)),
        order="share",
        tooltip=["arm", alt.Tooltip("share", title="% of steps"), _told("ms", ".3g")],
    )  # fmt: skip
    if found["rate"]:
        period = pd.DataFrame({"at": [1e3 / found["rate"]]})
        chart += alt.Chart(period).mark_rule(strokeDash=[4, 3]).encode(x="at:Q", tooltip=[_told("at", ".3g")])
    return chart.properties(width=WIDTH - 160, height=220)


def _told(column: str, form: str) -> alt.Tooltip:
    return alt.Tooltip(column, type="quantitative", format=form)


def _axis() -> alt.Axis:
    return alt.Axis(labelFontSize=12, titleFontSize=13)


def table(found: dict) -> str:
    """The candidates as a table: what was measured, and whether a deadline is met."""
    rows = [["", "return", "kept", "falls", "evaluations of the model", "step (ms), 50 % and 99 %"]]
    rows[0] += ["steps in time"] if found["rate"] else []
    for row in found["candidates"]:
        of = [f"{row[name]:{form}}" if row.get(name) is not None else "" for name, form in FORMS.items()]
        if row.get("return_low") is not None:
            of[0] += f" [{row['return_low']:.1f}, {row['return_high']:.1f}]"
        fallen = f"{row['falls']:g} of {row['episodes']}" if row.get("falls_high") is not None else ""
        fallen += f" (at most {row['falls_high']:.0%})" if fallen else ""
        steps = f" of {row['steps']}" if "steps" in row else ""
        rows.append([row["arm"], *of[:2], fallen, of[2], ", ".join(filter(None, of[3:])) + steps])
        rows[-1] += [f"{row['in_time']:.1%}" if "in_time" in row else ""] if found["rate"] else []
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    head, *body = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                   for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False))  # fmt: skip
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def clip(folder: Path, found: dict) -> bytes | None:
    """A GIF of the controller's first decisions, of a task of DMControl: as many as a few seconds are enough for; None
    where that is not many, or nothing draws."""
    steps = found["times"].get(found["pick"], [math.inf])
    waits = 1 / found["rate"] if found["delay"] else 0.0  # of each decision, for what robots do not wait for
    decisions = min(int(CLIP_SECONDS / (sum(steps) / len(steps) / 1e3 + waits + DRAWING)), DECISIONS)
    if ":" in found["task"] or decisions < DECISIONS / 5 or not (backend := film.gl_backend()):
        return None
    os.environ["MUJOCO_GL"] = backend
    arm, seed = Arm(found["pick"], None), episode_seeds("trial", 1)[0]
    controller = load_controller(folder, mode="eager")
    if isinstance(c := controller, BackgroundController):  # films are not made in real time
        controller = RealTimeController(c.planner, c.corrector, c.gate, c.expected, c.fallback)
    with TemporaryDirectory() as place:
        try:
            frames, seconds, _ = film.panel_of(arm, controller, found["task"], seed, decisions)
            film.save_gif(frames, Path(place) / "clip.gif", seconds, CLIP_BYTES)
        except Exception as error:  # whatever a GL library raises, or no palette that is small enough: a page without
            print(f"the report has no clip: {error}", file=sys.stderr)
            return None
        return (Path(place) / "clip.gif").read_bytes()


def main(arguments: list[str] | None = None) -> None:
    folder, *options = arguments or sys.argv[1:]
    print(write(Path(folder), clipped="--no-clip" not in options))


if __name__ == "__main__":
    main()
