"""The tables of README.md and docs/speed.md, from the committed results: who changes a number changes a result first.

python paper/readme.py      # writes what stands between the markers anew; the tests compare
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from lib.files import files
from lib.records import paths
from lib.records.store import read_table, write_text
from lib.study.stats.claims import LEVEL

BEGIN, END = "<!-- numbers: python paper/readme.py -->", "<!-- end of numbers -->"
ARMS = {
    "teacher": "the full planner at every step, 512 × 6",
    "budget-256×2": "a smaller planner at every step",
    "budget-128×2": "one of half that size",
    "64×2+gated-6": "plans of 64 × 2 over six steps, corrected, replanned early",
    "128×2+draft+gated-3-r30": "a draft that never plans, and a planner where a check doubts it",
    "cloned": "a network that imitates the planner, and never plans",
    "policy": "the policy prior, which never plans",
}


def table() -> str:
    """A row for each arm: what it needs, what it keeps in the median and the worst cell, and where that is shown."""
    folder = paths.results("paper")
    summary = read_table(folder / "horizon" / "summary.csv")
    tests = read_table(folder / "statistics" / "comparisons.csv").query("role == 'teacher'").set_index("arm")["p_holm"]
    lines = ["| arm | evaluations per decision | control step (ms) | return kept | shown to keep 98 % |"]
    lines.append("|---|---|---|---|---|")
    for arm, words in ARMS.items():
        rows = summary[summary["arm"] == arm]
        kept = 100 * rows["kept"]
        shown = f"{(tests[arm] < LEVEL).sum()} of {len(rows)} teachers" if arm != "teacher" else ""
        share = f"{kept.median():.0f} % (lowest {kept.min():.0f} %)" if arm != "teacher" else "100 %"
        lines.append(f"| `{arm}`, {words} | {evaluations(rows)} | {milliseconds(rows)} | {share} | {shown} |")
    own = summary[summary["arm"] == "teacher"]
    timed = [read_table(file) for file in files(folder / "certified", "*-steps.csv")]
    quiet = pd.concat(timed).query("arm == 'teacher' and part == 'step'")["mean_ms"].median()
    lines += ["", f"Medians over the teachers that have the arm, of {len(own)} on {own['task'].nunique()} DeepMind "
              f"Control tasks, on {own['episodes'].min()} to {own['episodes'].max()} paired episodes each; steps are "
              "means on one thread, of the teachers of one million parameters, beside a busy core. On a quiet machine "
              f"the teacher's step takes {quiet:.0f} ms: ratios are smaller there."]  # fmt: skip
    return "\n".join(lines)


def evaluations(rows: pd.DataFrame) -> str:
    """Of the world model, as the median cell has it."""
    return f"{rows['model_evaluations'].median() / 500:,.0f}"


def milliseconds(rows: pd.DataFrame) -> str:
    """The mean step, in the median of the cells of one million parameters."""
    value = rows.loc[rows["size"] == "1m", "step_ms"].median()
    return short(value)


# ----------------------------------------------------------------------------------------------- docs/speed.md


def speed() -> str:
    """A row for each thing that takes time at batch 1: in the manner of the official code, and ours."""
    folder = paths.results("paper") / "planner"
    solves, steps = read_table(folder / "cpu.csv").query("batch == 1"), read_table(folder / "cpu-step.csv")
    updates = read_table(folder / "cpu-updates.csv").pivot(index=["part", "size"], columns="learner", values="p50_ms")
    rows = []
    for (size, samples, iterations), ours in solves.groupby(["size", "samples", "iterations"], sort=False):
        mine = ours.set_index(["mode", "dtype"])["solve_ms_p50"]
        official, what = ours["twin_ms_p50"].iloc[0], f"solve {samples} × {iterations}, {size}"
        rows.append((what, official, mine["eager", "float32"], mine["compiled", "float32"]))
        rows.append((f"{what}, ours in bfloat16", official, mine["eager", "bfloat16"], mine["compiled", "bfloat16"]))
    for size, ours in steps.groupby("size", sort=False):
        mine = ours.set_index("part")["p50_ms"]
        official = mine["official step 512 × 6"]
        for plan in ("512 × 6", "64 × 2"):
            rows.append((f"step that plans, {plan}, {size}", official, None, mine[f"step {plan}, planning"]))
        rows.append((f"corrected step without a plan, {size}", None, None, mine["step 64 × 2, not planning"]))
    words = {"update": "update, batch 256", "decision": "decision of training"}
    rows += [(f"{words[part]}, {size}", *updates.loc[(part, size), ["official", "eager", "compiled"]])
             for part in words for size in ("1m", "5m")]  # fmt: skip
    lines = ["| median, ms | official manner | ours, eager | ours, compiled | eager, faster | compiled, faster |"]
    lines.append("|---|---|---|---|---|---|")
    for what, official, *ours in rows:
        cells = [what, *map(short, (official, *ours)), *(times(official, mine) for mine in ours)]
        lines.append(f"| {' | '.join(cells)} |")
    best = solves.query("mode == 'compiled' and dtype == 'float32'").set_index(["size", "samples"])
    share, floor = 100 * best["share_of_ceiling"], best["ratio_to_floor"]
    memory = read_table(folder / "cpu-memory.csv").iloc[0]
    lines += [
        "",
        f"Compiled solves of 512 × 6 reach {share['1m', 512]:.0f} % of the ceiling at 1m and {share['5m', 512]:.0f} % "
        f"at 5m (the aim was 70 %); those of 64 × 2 take {floor['1m', 64]:.1f} and {floor['5m', 64]:.1f} times as long "
        f"as their matrix products alone (at most 2.5). A model of {memory['size']} in {memory['dtype']} plans within "
        f"{memory['peak_gib']:.2f} GiB (at most 6).",
    ]
    return "\n".join(lines)


def short(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def times(official: float | None, ours: float | None) -> str:
    if None in (official, ours):
        return ""
    return f"{official / ours:.2f} ×" if official < 10 * ours else f"{official / ours:.0f} ×"


def updated(text: str, table: Callable[[], str] = table) -> str:
    """A page with today's numbers between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


PAGES = {paths.ROOT / "README.md": table, paths.PAPER / "docs" / "speed.md": speed}


def main() -> None:
    for page, made in PAGES.items():
        write_text(page, updated(page.read_text(encoding="utf-8"), made))
        print(page)


if __name__ == "__main__":
    main()
