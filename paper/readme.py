"""The table of README.md, from the committed results: whoever changes a number here changes it in a result first.

python paper/readme.py      # writes what stands between the markers anew; the tests compare
"""

from __future__ import annotations

import pandas as pd

from lib.records import paths
from lib.records.store import read_table, write_text
from lib.study.stats.claims import LEVEL

BEGIN, END = "<!-- numbers: python paper/readme.py -->", "<!-- end of numbers -->"
ARMS = {
    "teacher": "the full planner at every step, 512 × 6",
    "budget-256×2": "a smaller planner at every step",
    "budget-128×2": "a smaller one",
    "64×2+gated-6": "plans of 64 × 2 over six steps, corrected, replanned early",
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
    lines += ["", f"Medians over {len(own)} teachers on {own['task'].nunique()} DeepMind Control tasks, on "
              f"{own['episodes'].min()} to {own['episodes'].max()} paired episodes each; steps are means on one "
              "thread, of the teachers of one million parameters."]  # fmt: skip
    return "\n".join(lines)


def evaluations(rows: pd.DataFrame) -> str:
    """Of the world model, as the median cell has it."""
    return f"{rows['model_evaluations'].median() / 500:,.0f}"


def milliseconds(rows: pd.DataFrame) -> str:
    """The mean step, in the median of the cells of one million parameters."""
    value = rows.loc[rows["size"] == "1m", "step_ms"].median()
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def updated(text: str) -> str:
    """The README with today's numbers between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    readme = paths.ROOT / "README.md"
    write_text(readme, updated(readme.read_text(encoding="utf-8")))
    print(readme)


if __name__ == "__main__":
    main()
