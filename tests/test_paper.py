"""The PDF follows the result files: same files, same bytes; a changed number shows; a missing one is named."""

import importlib.util
import itertools
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader

from lib.records import paths
from lib.records.store import read_table, sidecar, write_table
from lib.study.cards import card_row
from lib.study.claims import write_claims
from lib.study.drafting import CURVE
from lib.study.stats.aggregates import aggregate
from lib.study.stats.comparisons import compare, cost_ends
from lib.study.stats.coverage import power_table
from lib.study.stats.deadlines import summarise as with_delays
from lib.study.stats.drafts import learnt
from lib.study.stats.intervals import summarise
from tests.study.stats.test_deadlines import PERIOD
from tests.study.stats.test_deadlines import tables as delayed
from tests.tiny_results import episodes

SOURCE = paths.PAPER  # the repository's own, before any monkeypatching
RETURNS = {"teacher": 900, "policy": 380, "budget-64×2": 890, "open-loop-3": 745, "two-tower-3": 835}
RETURNS |= {"64×2+open-loop-3": 700, "64×2+two-tower-3": 820}
CELL, OTHER = "walker-walk-1m-1", "cup-catch-1m-1"
SECOND = (OTHER, "cup-catch", "1m")
THIRD, FOURTH = ("walker-run-1m-1", "walker-run", "1m"), ("cup-catch-1m-2", "cup-catch", "1m")
HEADLINE, RUNNER_UP = "64×2+two-tower-3", "64×2+open-loop-3"


def load_build():
    spec = importlib.util.spec_from_file_location("paper_build", SOURCE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load_build()

# -------------------------------------------------------------------------------------------- a repository of results


def empty_repository(root, monkeypatch):
    """A repository with the paper's sources alone; `results` fills it."""
    shutil.copytree(SOURCE, root / "paper", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("PAPER", "DATA", "BUILD", "FIGURES"):
        monkeypatch.setattr(paths, name, root / name.lower())
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "TEACHERS", root / "data" / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    empty_repository(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def published(tree):
    """Results under the paper profile."""
    results()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The text of the paper of results that no test has changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        empty_repository(tmp_path_factory.mktemp("plain"), monkeypatch)
        results()
        return text_of()


def results(profile="paper", count=6, returns=RETURNS) -> None:
    """Small synthetic result files of one cell, whose numbers are easy to find in the text."""
    rows = episodes({arm: lambda seed, value=value: value + 3.0 * (seed % 4) for arm, value in returns.items()},
                    range(count))  # fmt: skip
    calls = rows["planner_calls"].mask(rows["arm"] == "budget-64×2", 500)
    evaluations = calls * np.where(rows["arm"].str.contains("64"), 384, 9216)
    rows = rows.assign(planner_calls=calls, model_evaluations=evaluations, corrector_calls=333, delta_abs=0.1)
    publish({CELL: rows}, profile)


def several_cells(*others: tuple[str, str, str]) -> dict[str, pd.DataFrame]:
    """Results of `CELL` and of other (cell, task, size); their episodes."""
    values = {arm: lambda seed, value=value: value + seed for arm, value in RETURNS.items()}
    rows = {CELL: episodes(values)} | {c: episodes(values, task=task).assign(size=size) for c, task, size in others}
    publish(rows, "paper")
    write_table(paths.results("paper") / "statistics" / "aggregate.csv", aggregate(rows))
    return rows


def publish(rows: dict[str, pd.DataFrame], profile: str) -> None:
    """All tables and figures of the cells with these episodes."""
    folder, figures = paths.results(profile), paths.figures(profile)
    tables = {
        "horizon/summary": lambda r: summarise(r).merge(cost_ends(r)).assign(step_ms=None, steps_per_s=None),
        "statistics/power": power_table,
        "statistics/comparisons": compare,
    }
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", pd.concat([table(r).assign(cell=cell) for cell, r in rows.items()]))
    depth = dict(plan_mse=0.0612, corrector_mse=0.0321, policy_mse=0.2012, teacher_floor_mse=0.0091, samples=512)
    depths = [{"depth": 1, **depth}, {"depth": 2, **depth, "corrector_mse": 0.0472}]
    mismatch = [{"depth": d, "samples": 512, "mismatch": 0.0413 * d} for d in (0, 1, 2)]
    for cell, played in rows.items():
        write_table(folder / "corrector" / f"{cell}-two_tower-depth.csv", depths)
        write_table(folder / "distillation" / f"{cell}.csv", mismatch)
        teacher(cell, *played.loc[0, ["task", "size"]], profile=profile)
    timings(folder / "planner")
    write_table(folder / "statistics" / "coverage.csv", coverage())
    figures.mkdir(parents=True, exist_ok=True)
    figure = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><text x="9" y="50">figure</text></svg>'
    names = "pareto horizon planner teachers depth replans returns profiles".split()
    for name in names + (["pareto-cells", "horizon-cells", "model_size"] if len(rows) > 1 else []):
        (figures / f"{name}.svg").write_text(figure)
    write_claims(profile)


def coverage() -> list[dict]:
    """How often the intervals hold the truth, by the simulation of notebook 04."""
    methods = {("mean", "studentised"): 0.9, ("mean", "percentile"): 0.85, ("mean", "t"): 0.88,
               ("mean", "bounded"): 0.99, ("kept", "studentised"): 0.89, ("kept of alike", "studentised"): 0.87,
               ("iqm", "expanded"): 0.92}  # fmt: skip
    populations = {"normal": 0.04, "lognormal": 0.03, "20 % fall": 0.01, "5 % fall": -0.5}
    return [
        dict(population=population, episodes=count, statistic=statistic, method=method, too_high=0.36, repeats=2_000)
        | {"coverage": 0.01 * (count == 20) + level + more}
        for population, more in populations.items()
        for count in (10, 20)
        for (statistic, method), level in methods.items()
    ]


def teacher(name=CELL, task="walker-walk", size="1m", seed=1, mean=900.0, profile="paper", **facts) -> None:
    """A teacher's card as notebook 01 writes it; the official agent returns 1000 at 100,000 frames."""
    official = [{"task": t, "frames": 100_000, "return": 1000.0} for t in ("walker-walk", "cup-catch", "walker-run")]
    write_table(paths.DATA / "official_returns.csv", official)
    write_table(paths.DATA / "expert_returns.csv", [{"task": "gym:Hop-v5", "return": 4000.0}])
    card = dict(task=task, size=size, seed=seed, return_mean=mean, returns=[mean - 20, mean + 20], decisions=15_000,
                frames=30_000, collect_samples=128, collect_iterations=2, planner={"samples": 512, "iterations": 6},
                config={"eval_episodes": 3, "eval_samples": 96, "eval_iterations": 4})  # fmt: skip
    write_table(paths.results(profile) / "teacher" / f"{name}-card.csv", [card_row(card | facts)])


def timings(folder, device="cpu", name="2 × Some Processor", dtypes=("float32",)) -> None:
    """The planner's tables: compiled, 512 × 6 takes 100.4 ms at 1m and 200.8 at 5m; officially 251.7 and 653.1."""
    about = {"device": name, "threads": 2}
    solves = [
        dict(size=size, batch=batch, samples=samples, iterations=iterations, mode=mode, dtype=dtype) | about
        | dict(solve_ms_p50=k * ms * batch, twin_ms_p50=twin * batch, ratio_to_twin=k * ms / twin)
        | dict(share_of_ceiling=share / k, ratio_to_floor=1.234 * k)
        for size, samples, iterations, ms, twin, share in (
            ("1m", 512, 6, 100.4, 251.7, 0.717), ("1m", 64, 2, 6.04, 20.06, 0.417),
            ("5m", 512, 6, 200.8, 653.1, 0.787), ("5m", 64, 2, 14.04, 50.06, 0.447),
        )
        for dtype in dtypes for batch in (1, 8) for mode, k in (("eager", 1.7), ("compiled", 1))
    ]  # fmt: skip
    write_table(folder / f"{device}.csv", solves)
    parts = {"encode": 0.314, "plan 64 × 2": 6.1, "official step 512 × 6": 253.0}
    parts |= {"step 64 × 2, planning": 6.88, "step 64 × 2, not planning": 0.927}
    steps = [{"size": "1m", "part": part, "p50_ms": ms} | about for part, ms in parts.items()]
    write_table(folder / f"{device}-step.csv", steps)
    updates = [
        dict(size="1m", batch=256, part=part, learner=learner, p50_ms=ms, per_s=1000 / ms) | about
        for part in ("update", "decision")
        for learner, ms in {"eager": 150.0, "compiled": 80.0, "official": 200.0}.items()
    ]
    write_table(folder / f"{device}-updates.csv", updates)
    if device == "cpu":
        memory = [dict(size="317m", samples=n, iterations=6, peak_gib=gib) for n, gib in ((64, 2.13), (512, 2.47))]
        write_table(folder / "cpu-memory.csv", memory)


# ------------------------------------------------------------------------------------------------ changes of results


def edit(file: str, change, profile="paper") -> None:
    """Write what `change` makes of a table of results over it."""
    path = paths.results(profile) / file
    write_table(path, change(read_table(path)))


def change(arm: str, profile="paper", **columns) -> None:
    """Set columns of an arm in the summary."""

    def changed(table):
        for column, value in columns.items():
            table.loc[table["arm"] == arm, column] = value
        return table

    edit("horizon/summary.csv", changed, profile)


def more_cells(profile: str, *changes: dict) -> None:
    """The summary's rows once more for each of these, with other columns."""
    edit("horizon/summary.csv", lambda table: pd.concat([table, *(table.assign(**c) for c in changes)]), profile)


def shown(p_values: dict[str, float]) -> None:
    """Set the corrected p-values that arms are non-inferior to the teacher."""

    def changed(table):
        assert set(p_values) <= set(table["arm"])
        for arm, p in p_values.items():
            table.loc[(table["arm"] == arm) & (table["role"] == "teacher"), "p_holm"] = p
        return table

    edit("statistics/comparisons.csv", changed)


def measured_steps(rows) -> None:
    """The times of the parts of steps; rows: (arm, planner calls a decision, batch, milliseconds by part)."""
    rows = [
        {"arm": arm, "part": part, "batch": batch, "mean_ms": ms, "calls_per_decision": calls, "threads": 7}
        for arm, calls, batch, parts in rows
        for part, ms in parts.items()
    ]
    write_table(paths.results("paper") / "latency" / f"{CELL}.csv", rows)


def timed() -> None:
    """The teacher and the rival have step times."""
    change("teacher", step_ms=31.44)
    change("budget-64×2", step_ms=7.9, step_ms_low=7.8, step_ms_high=8.0)
    measured_steps([("teacher", 1, 1, {"step": 31.44})])


def steps_apart() -> None:
    results(returns=RETURNS | {"64×2+gated-3": 800})
    measured_steps([
        ("teacher", 1.0, 1, {"step": 60.0, "plan": 60.0, "env": 0.25}),
        ("two-tower-3", 1 / 3, 1, {"step": 22.0, "plan": 60.0, "between": 3.0, "correct": 1.5}),
        ("budget-64×2", 1.0, 1, {"step": 8.0}), ("64×2+two-tower-3", 1 / 3, 1, {"step": 4.0, "between": 2.0}),
        ("64×2+gated-3", 0.4, 1, {"step": 5.6}),
        ("budget-64×2", 1.0, 10, {"step": 40.0}), ("64×2+two-tower-3", 1 / 3, 10, {"step": 16.0}),
    ])  # fmt: skip


def temporal() -> None:
    """A temporal corrector beside the other one."""
    results(returns=RETURNS | {"temporal-3": 840})
    folder = paths.results("paper") / "corrector"
    table = read_table(folder / f"{CELL}-two_tower-depth.csv").assign(corrector_mse=[0.0123, 0.0712])
    write_table(folder / f"{CELL}-temporal-depth.csv", table)


def distilled() -> None:
    """A cell's drafts: 600 and 900 labels, the rivals beside the latter; two parts of the method."""
    rows = [dict(draft="labeller", **{"return": 951.0}), dict(draft="policy", **{"return": 502.0})]
    for number, labels in enumerate((600, 900), 1):
        about = {"labels": labels, "round": number, "seed": 0, "label_minutes": labels / 600, "policy_mse": 0.3}
        about |= {"floor": 0.0123, "to_standard": 0.0456, "held_out_mse": 60 / labels}
        returns = {"distilled": (1, labels / 2), "cloned": (1, labels / 3), "prior+": (None, labels / 4)}
        rows += [about | {"draft": name, "modes": m, "return": value} for name, (m, value) in returns.items()]
    table = pd.DataFrame([row | {"episode_seed": i} for row in rows for i in range(2)], columns=CURVE)
    write_table(paths.results("paper") / "statistics" / "drafts.csv", learnt({CELL: table}))
    about = {"cell": CELL, "episodes": 6, "share": 0.1, "evaluations": 0.5}
    mine = about | dict(part="corrector", arm="a", reference="b", difference=12.4, difference_low=-3.0)
    write_table(paths.results("paper") / "statistics" / "parts.csv", [mine | {"difference_high": 20.0}])
    shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / "drafts.svg")


def deadlines() -> None:
    """A cell that was played with delays, and timed: 128×2 is the larger planner."""
    table = with_delays(CELL, *delayed(), PERIOD)
    write_table(paths.results("paper") / "deadlines" / "summary.csv", table)
    for name in ("deadlines", "deadlines-delay"):
        shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / f"{name}.svg")


def gpu() -> None:
    folder = paths.results("paper") / "planner"
    timings(folder, "nvidia-h200", "NVIDIA H200", ("float32", "bfloat16"))
    write_table(folder / "bfloat16.csv", [{"arm": "float32", "episode_seed": 1, "return": 900.0}])


def offline(p=0.01, latent_better=True, starts=8) -> None:
    """The offline study of one task: M1 is the better guide to the gap than M5, and their variants with a decoder of
    their own may agree; p is None where runs cannot be exchanged."""
    folder = paths.results("paper") / "offline"
    cell = {"cell": CELL, "task": "walker-walk", "size": "1m", "seed": 1, "decisions": 500}
    write_table(folder / "cells.csv", [cell | {"decoder_error": 0.1, "m3": 0.2, "m3_latent": 0.3, "m4": 0.4}])
    gap = {"planner": "shooting", "oracle_success": 1, "learned_success": 0, "verdict": "MODEL BOTTLENECK"}
    write_table(folder / "gaps.csv", [cell | gap | {"episodes": starts}])
    write_table(folder / "skipped.csv", [{"file": "a.safetensors"}])
    rows = [
        {"task": "walker-walk", "metric": metric, "bank": "mixed", "target": target, "n": 7, "expected": -1}
        | {"spearman": -rho, "low": -0.9, "high": -0.2, "low_naive": -0.9, "high_naive": -0.2, "partial": None}
        | {"p_permutation": p}
        for metric, rho in {"m1": 0.8, "m5": 0.4, "decisions": 0.95}.items()
        for target in ("cpg", "kept_e3")
    ]
    write_table(folder / "correlations.csv", rows)
    about = {"task": "walker-walk", "target": "cpg", "difference": -0.4, "low": -0.9, "low_naive": -0.9}
    highs = {("m5", "m1"): -0.1, ("m5_latent", "m1_latent"): -0.1 if latent_better else 0.3}
    differences = [about | dict(metric=m, baseline=b, high=h, high_naive=h) for (m, b), h in highs.items()]
    write_table(folder / "differences.csv", differences)


# -------------------------------------------------------------------------------------------------- reading the PDF


def text_of(profile="paper") -> str:
    """The PDF's text on one line, with hyphenated words joined, but for names that have a hyphen. What the tables show
    is found anew before, where there are any."""
    if (paths.results(profile) / "horizon" / "summary.csv").is_file():
        write_claims(profile)
    pages = PdfReader(paper.build(profile)).pages
    joined = re.sub(r"-\n", "", "\n".join(page.extract_text() for page in pages))
    for name in ("walker-walk", "cup-catch", "open-loop", "two-tower"):
        joined = joined.replace(name.replace("-", ""), name)
    return " ".join(joined.split())


def assert_says(text: str, *said) -> None:
    """`said`: words, in which … stands for anything (a float may stand in a sentence); words after ¬, which must not be
    said; or words and how often."""
    for words in said:
        if isinstance(words, tuple):
            assert text.count(words[0]) == words[1], words
        elif words[0] == "¬":
            assert words[1:] not in text, words
        else:
            assert re.search(".*".join(map(re.escape, words.split("…"))), text), words


def bold() -> set[str]:
    """What is bold in the table of arms of the last PDF, by the font of each piece of text."""
    found = set()

    def visit(text, matrix, transform, font, size):
        if text.strip() and font and "Bold" in font["/BaseFont"] and size == 8:
            found.add(text.strip())

    for page in PdfReader(paths.executed("paper") / "paper.pdf").pages:
        page.extract_text(visitor_text=visit)
    return found


# -------------------------------------------------------------------------------------------------------- what it says

PLAIN = {
    "returns kept and their differences": [
        "asked at every step, keeps 98.9% [98.9%, 98.9%] of the return",  # (890 + 4) / (900 + 4), rounded
        "The rival budget-64×2 …keeps 98.9% [98.9%, 98.9%] with …planner calls and 4.2% of", "15,000 decisions",
        "𝐸 by …+90 [+90, +90] (two", "+120 [+120, +120] (64×2+", "0.0612", "0.041"],
    "every arm in a table": [
        "budget-64×2 894 [890, 899] 893 890 0 98.9 [98.9, 98.9] 500 192 (4.2%)",
        "64×2+two-tower-3 824 [820, 829] 823 820 0 91.1 [91.1, 91.2] +120 [+120, +120] 167 64.1 (1.4%)",
        "policy 384 [380, 389] 383 380 6 42.4 [42.2, 42.8] 0 0 (0.0%)",
        "Bold, of the others: what arms keep that are shown to keep 98%"],
    "the corrector's errors": [
        "1 512 0.041 0.0612 0.0321 0.2012 0.0091", "the two-tower corrector removes 27% to 56%.", "¬Temporal Policy"],
    "the constants of the code": [
        "at most 1.5 planner calls for every 𝐸 decisions", "at least 98% of the teacher", "32 samples × 1 iteration",
        "last 𝐾 = 4 mismatch tokens", "collected with 𝐸 = 6, so that depths up to 5 are there",
        "two-tower corrector trained on"],
    "the teacher beside the official agent": [
        "trained for 15,000 decisions, that is 30,000 frames, on data collected with a planner of 128 × 2",
        "walker-walk 1m 1 15,000 30,000 900 [880, 920] 1000 100,000 90%", "in the end: 90% of what",
        "3 episodes with a planner of 96 × 4", "¬of its own: it made"],
    "the planner's times": [
        "2 × Some Processor, 2 threads, float32", "¬H200", "1m update 200 80.0 2.5", "1m 512 × 6 252 100 2.5 72% 1.2",
        "1m 64 × 2 20.1 6.0 3.3 42% 1.2", "5m 512 × 6 653 201 3.3 79% 1.2", "1m step, 64 × 2 253 6.9 36.8",
        "1m step, no plan 253 0.93 273", "2.5 times (1m) and 3.3 times (5m) as fast", "256 sequences",
        "takes 6.9 ms, of which encoding takes 0.31 ms", "12.5 updates per second (5.0 in", "to plan is 2.5 GiB"],
    "what the intervals show": [
        "By these intervals it helps in all 2 of them.", "A cheaper arm is shown to do so on no cell.",
        "correction helps in 2 of 2 on walker-walk (1m), and hurts in 0 of 2",
        "No arm with several steps per plan of the standard planner is shown to keep 98%.",
        "keep 98%, and no arm that is cheaper in evaluations is",
        "A planner of 64 × 2 at every step is shown to keep 98% of the full planner’s return on the one cell"],
    "how sure the intervals are": [
        "hold the true one in 91.0% to 95.0% of samples of 10 to 20 episodes",
        "those of a kept return in 90.0% to 94.0%, and in 88.0% to 92.0% where the teacher varies",
        "Where 5% of the episodes fall they do so in only 39.0% to 41.0%",
        "5 % fall 40% 41% 49% 50% 39% 40% 37% 38% 42% 43%",
        "¬lie above the truth"],  # nothing was simulated of six episodes
    "what was not measured": [
        "it does not evaluate a gate that replans early", "or the measured time of an arm", "¬Step (ms)",
        "The time of a step is not in this profile", "¬What the plan and the corrector add", "¬A control step takes",
        ("not in this profile", 4)],  # notebooks 05 to 07 and step times, which this tree lacks
    "a conclusion and no banner": ["Conclusion", "¬This is the"],
}  # fmt: skip


@pytest.mark.parametrize("said", PLAIN.values(), ids=PLAIN)
def test_the_paper_says(plain, said):
    assert_says(plain, *said)


CHEAPER = {"two-tower-3": 0.01, "64×2+two-tower-3": 0.01, "budget-64×2": 0.01}
CHANGES = {
    "a number": [lambda: change("budget-64×2", kept=0.8774), "at every step, keeps 87.7% [", "¬keeps 98.9%"],
    "step times": [
        timed, "Step (ms)", "500 4608 (100.0%) 31.4", "167 64.1 (1.4%) –", "All planners are compiled for it.",
        "A control step takes 31.4 ms (teacher) and 7.9 ms (", "¬measured time of an arm",
        "those in Table 1 are of 7 of its CPU threads, those in Table 3 of 2"],
    "the parts of a step": [
        steps_apart, "arms on the standard planner save 0.95 times as much of the time at batch 1",  # 38 / 60 of 2 / 3
        "those on 64 × 2 0.75 times without a gate and 0.50 times with one", "own steps are not counted (0.25 ms)",
        "with 10 episodes in parallel these are 0.90 and not in this profile times"],
    "a temporal corrector": [
        temporal, "1 512 0.041 0.0612 0.0321 0.0123 0.2012 0.0091",
        "removes −19% to 94% (negative: it is worse than the plan)"],
    "ablations, beside what differs in nothing else": [
        lambda: results(returns=RETURNS | {"no-plan-3": 830, "gate-only-3": 800, "sensitive-3": 812}),
        "over the 6 …episodes of these arms", "differs from …by −5.0 [−5.0, −5.0] against two-tower-3",
        "a corrector …changes the return by +12.0 [+12.0, +12.0] against gate…only…sensitivity…3"],
    "a teacher of another task": [
        lambda: teacher("cup-catch-5m-2", "cup-catch", "5m", 2, 970.0, decisions=50_000, frames=100_000),
        "trained for 15,000 to 50,000 decisions, that is 30,000 to 100,000 frames", "in the end: 90% to 97%",
        "cup-catch 5m 2 50,000 100,000 970 [950, 990] 1000 100,000 97%"],
    "a teacher of another simulator": [
        lambda: teacher("gym--Hop-v5-1m-1", "gym:Hop-v5", "1m", 1, 3000.0),
        "Public SAC experts", "return more: 4000 on gym:Hop-v5, ours 3000.", "gym:Hop-v5 1m 1 15,000 30,000 3000",
        "in the end: 90% of what"],
    "drafts and parts": [
        distilled, f"{CELL} 900 1.5 951 450 300 225 0.067 0.300 0.012 0.046", "mean return of 2 episodes",
        f"{CELL} +12 [−3, +20]", "Corrector: a less b."],
    "deadlines": [
        deadlines, "Appendix: deadlines", "intervals over 2 episodes", f"{CELL} distilled 100× 100×",
        f"{CELL} policy none none", f"{CELL} every-step 5.0× 2.5×", f"{CELL} late 5.0× –",
        f"{CELL} async 10× –", f"{CELL} async+two-tower – ≥ 10×"],
    "a teacher that learned from a replay": [
        lambda: teacher("walker-walk-5m-1", size="5m", offline={"updates": 12_000}),
        ("walker-walk 5m collected no decisions of its own: it made 12,000 updates on the replay", 2)],
    "the planner's times": [
        lambda: edit("planner/cpu.csv", lambda t: t.assign(**t[["solve_ms_p50", "ratio_to_twin"]] / 2)),
        "1m 512 × 6 252 50.2 5.0 72%", "5.0 times (1m) and 6.5 times (5m) as fast"],
    "a GPU's times": [
        gpu, "NVIDIA H200, float32", "NVIDIA H200, bfloat16", ("1m 512 × 6 252 100 2.5", 3), ("1m update", 2)],
    "a gain without a sign": [
        lambda: change("two-tower-3", gain_low=-9.0, gain_high=5.0), "do not tell the sign in two"],
    "a loss": [lambda: change("two-tower-3", gain_low=-9.0, gain_high=-5.0), "hurts in two"],
    "a good arm that is no cheaper than the rival": [
        lambda: shown({"two-tower-3": 0.01, "budget-64×2": 0.051}), "the cheapest shown to keep 98% is two",
        "rival itself is not shown", "A cheaper arm is shown to do so on no cell."],
    "a good arm that is cheaper than the rival": [
        lambda: shown(CHEAPER), "does so with 3.0 times fewer evaluations",
        "A cheaper arm is shown to do so on the one"],
    "a good policy": [lambda: shown(CHEAPER | {"policy": 0.01}), "policy does so …with no evaluations"],
    "arms that played fewer episodes than the teacher": [
        lambda: change("teacher", episodes=50),
        "A planner of 64 × 2 at every step is shown to keep 98% of the full planner’s return on no cell"],
    "as many episodes as were simulated": [
        lambda: change("teacher", episodes=20), "36% of intervals over 20 of them lie above the truth"],
    "the offline study": [
        offline, "plain prediction error is the better guide", "told by M1 and M5 (the return kept at",
        "gives 𝑝 < 0.05 and the expected sign for 4 of 4 pairs of a metric and a target: M1 and the",
        "M1 and the planning gap (𝑝 = 0.010)", "corrected for their number the least is 0.04",
        "Random shooting 1 8 100% 0% 1 M"],
    "offline metrics that are not significant, whatever the intervals say": [
        lambda: offline(p=0.2), "No metric is shown to tell how much return open-loop execution keeps",
        "for none of 4 pairs of a metric and a target; corrected for their number the least is 0.80",
        "it is M1 (𝜌 +0.80 [+0.20, +0.90]; decisions of training +0.95)"],
    "decoders that do not agree": [
        lambda: offline(latent_better=False), "may depend on the decoder; these cells do not tell"],
    "offline runs that cannot be exchanged": [
        lambda: offline(p=None), "no evidence for either kind of metric", "¬is told by",
        "Nor is any of them shown to tell how much return open-loop execution keeps",
        "¬plain prediction error is the better guide"],
    "too few starts for a verdict": [lambda: offline(starts=5), "Random shooting 1 5 100% 0% –"],
    "another size of the model": [
        lambda: several_cells(("walker-walk-5m-1", "walker-walk", "5m")),
        "against the size of the model: walker-walk (1m) and walker-walk (5m), for the arms"],
}  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_the_paper_follows(published, changed):
    change, *said = CHANGES[changed]
    change()
    assert_says(text_of(), *said)


def test_the_method_follows_the_constants_of_the_code(published, monkeypatch):
    monkeypatch.setattr(paper, "CALLS_PER_PLAN", 1.7)
    assert "at most 1.7 planner calls" in text_of()


UNKNOWN = dict.fromkeys(("decisions", "frames", "collect_samples", "collect_iterations"))
FROM_ELSEWHERE = [
    lambda p: teacher("official-walker-walk-1", seed=4, size="5m", mean=970.0, profile=p, config={}, **UNKNOWN),
    "walker-walk 5m official-walker-walk-1 – – 970 [950, 990] – – –", "trained for 15,000 decisions",
    "in the end: 90% of what", "– stands for what is not known"]  # fmt: skip
OTHERS = {
    "quick: as it is": [
        lambda p: None, "This is the quick profile.", "¬Conclusion", "¬is shown to keep", "98.9%", "¬Bold"],
    "quick: no interval of one episode": [lambda p: results(p, count=1), "[not in this profile]"],
    "quick: a timing that is missing": [
        lambda p: edit("planner/cpu.csv", lambda t: t[t["size"] != "5m"], p),
        "2.5 times (1m) and not in this profile (5m)"],
    "smoke: arms that a profile leaves out": [
        lambda p: results(p, returns={arm: value for arm, value in RETURNS.items() if "64" not in arm}),
        "budget-64×2 keeps not in this profile", "does not evaluate a smaller planner that replans at every step"],
    "quick: only the return of a teacher from elsewhere": FROM_ELSEWHERE,
    "paper: only the return of a teacher from elsewhere": FROM_ELSEWHERE,
    "quick: a teacher from elsewhere of the same task, size and seed": [
        lambda p: more_cells(p, dict(cell="mine-1a2b3c4d-walker-walk", return_mean=321.0)),
        "teacher 321", "teacher 904",
        "mine-1a2b3c4d-walker-walk: 6 paired episodes per arm; all else as in Table 1"],
    "quick: a table of each cell": [
        lambda p: more_cells(p, dict(task="cup-catch", cell=OTHER), dict(teacher_seed=2, cell="walker-walk-1m-2")),
        "cup-catch (1m)", "walker-walk (1m, seed 2)", "Table 1, Table 2 and Table 3 list them",
        ("budget-64×2 894", 3)],
    "quick: ablations of fewer episodes": [
        lambda p: edit("horizon/summary.csv", lambda t: t.assign(episodes=t["arm"].map({"policy": 20}).fillna(50)), p),
        ("50, some arms 20", 2), "policy20", "¬teacher50"],  # in the protocol and in the table's caption
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_profile_says(tree, name):
    profile, (change, *said) = name.partition(":")[0], OTHERS[name]
    results(profile)
    change(profile)
    assert_says(text_of(profile), *said)


def test_nothing_at_all_still_builds_in_the_quick_profile(tree):
    assert "The evaluation is not in this profile." in text_of("quick")


GOOD = {"98.9 [98.9, 98.9]", "500", "192"}  # the one good arm
TWO_GOOD = {"98.9 [98.9, 98.9]", "92.8 [92.8, 92.8]", "192", "167"}  # the least of each cost


@pytest.mark.parametrize(
    "changes, expected",
    [([], GOOD), ([timed], GOOD | {"7.9"}), ([lambda: shown({"two-tower-3": 0.049})], TWO_GOOD),
     ([lambda: shown({"two-tower-3": 0.049}), lambda: change("two-tower-3", planner_calls_high=501),
       lambda: change("budget-64×2", planner_calls_low=168)], TWO_GOOD | {"500"}),  # not told from the least
     ([lambda: change("teacher", episodes=50)], set())],
    ids=["one good arm", "its step time", "two good arms", "costs that intervals do not tell apart", "fewer episodes"],
)  # fmt: skip
def test_what_intervals_show_is_bold(published, changes, expected):
    for change in changes:
        change()
    text_of()
    assert bold() == expected


def test_how_many_episodes_it_takes_comes_from_the_table(published):
    needed = read_table(paths.results("paper") / "statistics" / "power.csv").set_index(["arm", "effect"])
    text = text_of()
    for arm in ("budget-64×2", "policy"):
        numbers = [f"{needed['episodes_needed'][arm, effect]:.0f}" for effect in (0.01, 0.02, 0.05)]
        assert f"{arm} 6 {needed['difference_std'][arm, 0.01]:.1f} {' '.join(numbers)}" in text
    picks([CELL], p_non_inferior=0.01)
    assert re.search(r"64×2\+open-loop-3 6 [\d. ]+ walker-walk \(1m\) 64×2\+two-tower-3 6 ", text_of())


# ------------------------------------------------------------------------------------------------------- several cells


def test_several_cells_have_a_table_of_all_of_them(tree):
    rows = several_cells(SECOND)
    text = text_of()
    assert_says(text, "Over 2 cells, each with the same weight", "95% intervals resample episodes")
    assert_says(text, "¬against the size", "¬One configuration for all cells")
    found = {a.arm: a for a in aggregate(rows).itertuples() if a.scope == "all" and a.statistic == "iqm"}
    for arm, count in (("budget-64×2", 2), ("open-loop-3", 0)):
        iqm = found[arm]
        kept = f"{arm} {100 * iqm.estimate:.1f} [{100 * iqm.low:.1f}, {100 * iqm.high:.1f}]"
        # five numbers without a bracket and the mean's interval stand between, and no other arm
        assert re.search(rf"{re.escape(kept)}[^a-z]* {count} of 2", text), arm


def test_a_third_cell_is_in_a_second_map(tree):
    several_cells(SECOND, THIRD)
    text = text_of()
    number = re.search(r"and cell by cell. Figure (\d+) has the other cells", text)[1]
    assert f"Figure {number}. Return kept against what it costs, as in Figure" in text
    several_cells(SECOND, THIRD, FOURTH)
    assert "as in Figure 2: the other cells" in text_of()
    several_cells(SECOND)
    assert "the other cells" not in text_of()  # whatever is left in the folder


def picks(cells, arms=(HEADLINE,), picked=HEADLINE, chosen=HEADLINE, earlier=None, p_non_inferior=0.3) -> None:
    """The pick of one configuration for all cells, as notebook 04 writes it."""
    about = dict(episodes=5, kept=0.97, calls_kept=0.33, evaluations_kept=0.01, margin=0.02, level=0.05)
    rows = [
        about | dict(cell=cell, arm=arm, picked=arm == picked, chosen=arm == chosen, earlier=arm == earlier)
        for cell in cells
        for arm in arms
    ]
    table = pd.DataFrame(rows).assign(p_non_inferior=p_non_inferior)
    write_table(paths.results("paper") / "statistics" / "headline.csv", table)


def test_the_one_configuration_is_told_by_what_was_picked_before(tree):
    several_cells(SECOND)
    cells, arms = (CELL, OTHER), (HEADLINE, RUNNER_UP)
    change("teacher", step_ms=60.0, step_p95_ms=70.0)
    change("budget-64×2", step_ms=8.0, step_p95_ms=10.0, speedup=7.5, speedup_low=7.0, speedup_high=8.0)
    change(HEADLINE, step_ms=4.0, step_p95_ms=14.0, speedup=15.0, speedup_low=13.5, speedup_high=16.75)
    for cell in cells:
        times = [{"arm": "teacher", "part": "step", "batch": 1, "mean_ms": 60.0, "threads": 1}]
        write_table(paths.results("paper") / "latency" / f"{cell}.csv", times)
    summary = read_table(paths.results("paper") / "horizon" / "summary.csv")
    kept = {arm: 100 * summary[summary["arm"] == arm].set_index("cell")["kept"] for arm in arms}
    differences = read_table(paths.results("paper") / "statistics" / "comparisons.csv")
    gain = differences.set_index(["cell", "arm", "role"])["difference"][CELL, HEADLINE, "open loop"]

    picks(cells, arms)
    assert_says(
        text_of(),
        f"(there is none; the one that keeps most on its worst cell is taken) is {HEADLINE}. It has not",
        "On 5 calibration episodes of each of walker-walk (1m) and cup-catch (1m) (the",
        "teacher’s return on both (one-sided, at 5% for each candidate; falls",
        f"On the 2 cells that it was picked on it keeps {min(kept[HEADLINE]):.1f}%, and is shown to keep 98% on 0. It ",
        "steps are 15.0 …times shorter on average (95% intervals between 13.5 and …16.8), those",
        "that plan, are 5.0 times …percentile, those of budget-64×2 7.0 times.",
        "is budget-64×2, with 1.0 …times as many model evaluations",
        f"Our one configuration for all cells is {HEADLINE}. On the 2",  # in the conclusion
        "Our one configuration for all cells, picked on calibration episodes, keeps",  # in the abstract
        f"walker-walk (1m) +{gain:.1f} […] against 64×2+open-loop-3",
    )
    picks(cells, arms, chosen=RUNNER_UP)
    assert_says(
        text_of(),
        f"Our one configuration for all cells is {RUNNER_UP}. On",
        f"{HEADLINE}; ours was picked before and stays: {RUNNER_UP}. It has not",
        *("¬earlier pick", "¬picked before, as", "¬second attempt"),
    )
    shown({"budget-64×2": 0.2})
    assert "No smaller planner that is asked" in text_of()
    # Picked anew on one cell alone, and put to the test on the other one.
    picks([CELL], arms, earlier=RUNNER_UP, p_non_inferior=0.01)
    assert_says(
        text_of(),
        "episodes of walker-walk (1m) (the",
        f"did not show are not ruled out) …is {HEADLINE}.",
        f"An earlier pick, {RUNNER_UP}, was the cheapest candidate with a mean above 98%",
        f"On the reported ones that keeps {kept[RUNNER_UP][CELL]:.1f}%",
        *("0 of these 1, whereupon", "picked on calibration episodes at the second attempt"),
        "On the cell that it was picked on it keeps …, and is not shown to keep 98%; on another task it keeps",
        f"it keeps {kept[HEADLINE][OTHER]:.1f}% … on cup-catch (1m), and is non-inferior on 0 of these 1",
        "the rule was tightened when a first pick had been evaluated on them",
        "by a rule that was tightened when a first pick had been evaluated on walker-walk (1m).",
    )
    picks([CELL], arms, earlier=HEADLINE, p_non_inferior=0.01)
    assert_says(text_of(), "It had been picked before, as the cheapest", "¬second attempt")


def test_another_teacher_of_a_known_task_is_told_apart_from_another_task(tree):
    several_cells(SECOND, ("walker-walk-5m-1", "walker-walk", "5m"))
    picks([CELL], p_non_inferior=0.01)
    assert_says(
        text_of(),
        "Over 3 cells, each with a teacher of its own and of 2 tasks, a planner",
        "; on another task it keeps …; on walker-walk (5m), another teacher of a task that it",
        "walker-walk (5m) shares its task and start states with a cell that it was picked on.",
        "Cells of the same task each count",
    )


# ------------------------------------------------------------------------------------------------------- what is amiss


def without_fact() -> None:
    path = paths.results("paper") / "statistics" / "claims.json"
    facts = json.loads(path.read_text())
    del facts["cells"][CELL]["good"]
    path.write_text(json.dumps(facts))


def without(file: str, *others):
    """A row of `AMISS`: the file is gone; others: further cells."""

    def gone():
        if others:
            several_cells(*others)
        (paths.ROOT / file).unlink()

    return [gone, re.escape(file)]


RESULTS = "data/results/paper"
AMISS = {
    "a number": [lambda: change("two-tower-3", kept_low=None),
                 rf"kept_low .*two-tower-3 in {RESULTS}/horizon/summary\.csv"],
    "an arm": [lambda: results(returns={k: v for k, v in RETURNS.items() if k != "budget-64×2"}), "arm budget-64×2"],
    "a fact": [without_fact, rf"fact cells → {CELL} → good in data/.*/claims\.json"],
    "a shipped teacher's number": [lambda: teacher(collect_samples=None),
                                   f"column collect_samples in {RESULTS}/teacher/{CELL}-card.csv"],
    "a timing": [lambda: edit("planner/cpu.csv", lambda table: table[table["size"] != "5m"]),
                 f"ratio_to_twin for 5m, 512 × 6, float32, batch 1 in {RESULTS}/"],
    "a corrector": [lambda: results(returns=RETURNS | {"temporal-3": 840}), f"corrector/{CELL}-temporal-depth.csv"],
    "the aggregate of two cells": without(f"{RESULTS}/statistics/aggregate.csv", SECOND),
    "a third cell's map": without("figures/paper/pareto-cells.svg", SECOND, THIRD),
    "a fourth cell's figure": without("figures/paper/horizon-cells.svg", SECOND, THIRD, FOURTH),
    **{name: without(f"{RESULTS}/{name}.csv") for name in (
        "horizon/summary", f"teacher/{CELL}-card", "statistics/coverage", f"corrector/{CELL}-two_tower-depth",
        "planner/cpu", "planner/cpu-step", "planner/cpu-updates", "planner/cpu-memory")},
    **{name: without(f"figures/paper/{name}.svg") for name in ("teachers", "pareto", "depth", "planner")},
    "claims": without(f"{RESULTS}/statistics/claims.json"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", AMISS.values(), ids=AMISS)
def test_what_is_missing_is_an_error_in_the_paper_profile(published, spoil, message):
    spoil()
    with pytest.raises(paper.PaperError, match=message) as error:
        paper.build("paper")
    assert "\n" not in str(error.value)  # one sentence
    assert not (paths.executed("paper") / "paper.pdf").exists()


def test_what_killed_writers_left_is_not_read_and_a_damaged_sidecar_is_none(tree):
    results()
    timed()
    before, text = paper.result_files("paper"), text_of()
    for name in (f"model_error/.{CELL}.deadbeef.tmp.csv", f"teacher/.{CELL}.deadbeef.tmp-card.csv", ".x/a.csv"):
        (paths.results("paper") / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.results("paper") / name).touch()
    (paths.figures("paper") / ".pareto.deadbeef.tmp.svg").touch()
    assert paper.result_files("paper") == before and text_of() == text
    machines = [file for file in before if sidecar(paths.ROOT / file).is_file()]
    assert f"{RESULTS}/planner/cpu.csv" in machines
    for file, damage in zip(machines, itertools.cycle(["[1]", '"x"', "null", '{"machine": 1}']), strict=False):
        sidecar(paths.ROOT / file).write_text(damage)
    assert_says(text, " of one machine (")
    assert_says(text_of(), " of one machine; those in")


def test_a_folder_that_cannot_be_written_to_is_a_line_without_a_trace(published, monkeypatch, capsys):
    def refuse(*about, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paper, "compiled", lambda inputs: b"%PDF")
    monkeypatch.setattr("os.fsync", refuse)
    assert paper.main(["--profile", "paper"]) == 1
    message = capsys.readouterr().err
    assert "build/paper/paper.pdf cannot be written: there is no space left on the disk; make room" in message
    assert message.startswith("paper: ") and message.count("\n") == 1


def test_an_error_is_a_line_without_a_trace(published, capsys):
    (paths.figures("paper") / "pareto.svg").unlink()
    assert paper.main(["--profile", "paper"]) == 1
    message = capsys.readouterr().err
    assert "figures/paper/pareto.svg" in message and message.count("\n") == 1


def test_stale_results_are_listed(tree, capsys):
    results("quick")
    stale, line = paths.executed("quick") / "stale.txt", "data/results/quick/horizon/walker-walk-1m-1.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text(f"{line} (lib/planner.py changed)\n\n")
    assert paper.main(["--profile", "quick"]) == 0
    assert f"stale: {line} (lib/planner.py changed)" in capsys.readouterr().err
    assert_says(text_of("quick"), "Stale results in this document", "lib/planner.py changed")
    stale.unlink()
    assert "Stale results" not in text_of("quick")


def test_unknown_profile(tree, capsys):
    with pytest.raises(ValueError, match="quick"):
        paper.build("quik")
    assert paper.main(["--profile", "../quick"]) == 1
    assert "paper: profile='../quick' cannot be part of a file's name" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- typesetting


def test_two_builds_are_byte_identical(published):
    first = paper.build("paper").read_bytes()
    assert first == paper.build("paper").read_bytes()
    assert b"CreationDate" not in first and not list(paths.executed("paper").glob(".*"))


def test_a_page_is_made_shorter_where_typst_fails_by_itself(tree, monkeypatch):
    results("quick")
    real, asked, failing = paper.typst.compile, [], {"0", "1"}

    class Failure(paper.typst.TypstError):
        message = "internal error: parent group"
        diagnostic = "error: internal error: parent group"

    def compile(*args, sys_inputs, **options):
        asked.append(sys_inputs["shorter"])
        if asked[-1] in failing:
            raise Failure
        return real(*args, sys_inputs=sys_inputs, **options)

    monkeypatch.setattr(paper.typst, "compile", compile)
    assert "every arm that was evaluated" in text_of("quick") and asked == ["0", "1", "2"]
    failing |= set(map(str, paper.SHORTER))
    with pytest.raises(paper.PaperError, match="^error: internal error: parent group$"):
        paper.build("quick")


def test_citations_exist_and_none_is_left_over():
    body = "".join(file.read_text() for file in SOURCE.glob("*.typ"))
    labels = set(re.findall(r"<([\w-]+)>", body))
    cited = set(re.findall(r"(?<![\w/])@([A-Za-z][\w-]*)", body)) - labels
    entries = set(re.findall(r"^@\w+\{([^,]+),", (SOURCE / "refs.bib").read_text(), re.MULTILINE))
    assert cited == entries


READS = r"\b(arm|optional|number|get|float|average|over-all|card|gain-side)\([^()]*\)"


@pytest.mark.parametrize(
    "decision",
    [
        rf"{READS}\s*[<>]=?",  # one result compared with another one or with a number
        rf"(?<!=)[<>]=?\s*{READS}",
        r"sorted\(key:[^)]*=> \(?-?(arm|optional|get|average|shown-on)\(",  # the best of several
        r"p_holm|p_non_inferior|p_permutation\"\) *[<>]",  # tests
        r"(split|contains)\(\"\+\"|starts-with\(\"(budget|gate|64)|two-tower\", \"temporal\"",  # names of arms
    ],
)
def test_no_decision_about_a_result_is_taken_in_typst(decision):
    for file in SOURCE.glob("*.typ"):
        found = re.search(decision, re.sub(r"(?m)//.*$", "", file.read_text()))
        assert not found, f"{file.name} has {found[0]!r}: a decision belongs in lib/study/stats/claims.py"


def test_numbers_are_formatted_with_fixed_digits(tree):
    (tree / "paper" / "numbers.typ").write_text(
        '#import "style.typ": fixed\n'
        "#metadata((fixed(455.0, digits: 1), fixed(-0.04, digits: 1), fixed(-2.5, digits: 2), fixed(1539072),"
        " fixed(9216), fixed(0.0005, digits: 4), fixed(0.996, digits: 2), fixed(0))) <x>"
    )
    found = json.loads(paper.typst.query(tree / "paper" / "numbers.typ", "<x>", field="value", one=True, root=tree))
    assert found == ["455.0", "0.0", "−2.50", "1,539,072", "9216", "0.0005", "1.00", "0"]
