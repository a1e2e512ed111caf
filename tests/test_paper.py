"""The PDF follows the result files: same files, same bytes; a changed number shows; a missing one is named."""

import importlib.util
import json
import re
import shutil

import pandas as pd
import pytest
from pypdf import PdfReader

from lib.records import paths
from lib.records.store import read_table, write_table
from lib.study.cards import card_row
from lib.study.claims import write_claims
from lib.study.stats.aggregates import aggregate
from lib.study.stats.comparisons import compare, cost_ends
from lib.study.stats.coverage import power_table
from lib.study.stats.intervals import summarise
from tests.tiny_results import about, episodes

SOURCE = paths.PAPER  # the repository's own, before any monkeypatching
RETURNS = {"teacher": 900, "policy": 380, "budget-64×2": 890, "open-loop-3": 745, "two-tower-3": 835}
RETURNS |= {"64×2+open-loop-3": 700, "64×2+two-tower-3": 820}
CELL = "walker-walk-1m-1"


def load_build():
    spec = importlib.util.spec_from_file_location("paper_build", SOURCE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load_build()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An empty repository with the paper's sources; results(profile) fills it."""
    shutil.copytree(SOURCE, tmp_path / "paper", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("PAPER", "DATA", "BUILD", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "TEACHERS", tmp_path / "data" / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    return tmp_path


def results(profile: str, episodes: int = 6, returns=RETURNS) -> None:
    """Small synthetic result files of one cell, whose numbers are easy to find in the text."""
    calls = {"teacher": 500, "budget-64×2": 500, "policy": 0}
    rows = [
        about(arm)
        | dict(task="walker-walk", size="1m", teacher_seed=1, corrector_seed=0, episode_seed=seed, length=500,
             planner_calls=calls.get(arm, 167), fallbacks=0,
             corrector_calls=333, delta_abs=0.1, model_evaluations=calls.get(arm, 167) * (384 if "64" in arm else 9216))
        | {"return": value + 3.0 * (seed % 4)}
        for arm, value in returns.items()
        for seed in range(episodes)
    ]  # fmt: skip
    folder = paths.results(profile)
    table = summarise(pd.DataFrame(rows)).merge(cost_ends(pd.DataFrame(rows)))
    table = table.assign(cell=CELL, step_ms=None, steps_per_s=None)
    write_table(folder / "horizon" / "summary.csv", table)
    depth = dict(plan_mse=0.0612, corrector_mse=0.0321, policy_mse=0.2012, teacher_floor_mse=0.0091, samples=512)
    depths = [{"depth": 1, **depth}, {"depth": 2, **depth, "corrector_mse": 0.0472}]
    write_table(folder / "corrector" / f"{CELL}-two_tower-depth.csv", depths)
    mismatch = [{"depth": d, "samples": 512, "mismatch": 0.0413 * d} for d in (0, 1, 2)]
    write_table(folder / "distillation" / f"{CELL}.csv", mismatch)
    teacher(profile)
    figure = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><text x="9" y="50">figure</text></svg>'
    paths.figures(profile).mkdir(parents=True, exist_ok=True)
    for name in ("pareto", "horizon", "planner", "teachers", "depth", "replans", "returns", "profiles"):
        (paths.figures(profile) / f"{name}.svg").write_text(figure)
    timings(folder / "planner")
    methods = {
        ("mean", "studentised"): 0.9,
        ("mean", "percentile"): 0.85,
        ("mean", "t"): 0.88,
        ("mean", "bounded"): 0.99,
    }
    methods |= {("kept", "studentised"): 0.89, ("kept of alike", "studentised"): 0.87, ("iqm", "expanded"): 0.92}
    populations = {"normal": 0.04, "lognormal": 0.03, "20 % fall": 0.01, "5 % fall": -0.5}
    coverage = [
        dict(population=p, episodes=n, statistic=s, method=m, coverage=0.01 * (n == 20) + level + plus)
        | dict(too_high=0.36, repeats=2_000)
        for p, plus in populations.items()
        for n in (10, 20)
        for (s, m), level in methods.items()
    ]
    write_table(folder / "statistics" / "coverage.csv", coverage)
    write_table(folder / "statistics" / "power.csv", power_table(pd.DataFrame(rows)).assign(cell=CELL))
    write_table(folder / "statistics" / "comparisons.csv", compare(pd.DataFrame(rows)).assign(cell=CELL))
    write_claims(profile)


def teacher(profile: str, name=CELL, task="walker-walk", size="1m", seed=1, mean=900.0, **facts) -> None:
    """A teacher's card as notebook 01 writes it; the official agent returns 1000 at 100,000 frames."""
    official = [{"task": t, "frames": 100_000, "return": 1000.0} for t in ("walker-walk", "cup-catch", "walker-run")]
    write_table(paths.DATA / "official_returns.csv", official)
    about = dict(decisions=15_000, frames=30_000, collect_samples=128, collect_iterations=2)
    config = {"eval_episodes": 3, "eval_samples": 96, "eval_iterations": 4}
    card = dict(task=task, size=size, seed=seed, return_mean=mean, returns=[mean - 20, mean + 20])
    card |= {"planner": {"samples": 512, "iterations": 6}, **about, "config": config, **facts}
    write_table(paths.results(profile) / "teacher" / f"{name}-card.csv", [card_row(card)])


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
    write_table(
        folder / f"{device}-step.csv", [{"size": "1m", "part": k, "p50_ms": v} | about for k, v in parts.items()]
    )
    learners = {"eager": 150.0, "compiled": 80.0, "official": 200.0}
    updates = [
        dict(size="1m", batch=256, part=part, learner=learner, p50_ms=ms, per_s=1000 / ms) | about
        for part in ("update", "decision")
        for learner, ms in learners.items()
    ]
    write_table(folder / f"{device}-updates.csv", updates)
    if device == "cpu":
        memory = [dict(size="317m", samples=n, iterations=6, peak_gib=gib) for n, gib in ((64, 2.13), (512, 2.47))]
        write_table(folder / "cpu-memory.csv", memory)


def change(profile: str, arm: str, column: str, value) -> None:
    path = paths.results(profile) / "horizon" / "summary.csv"
    table = read_table(path)
    table.loc[table["arm"] == arm, column] = value
    write_table(path, table)


def shown(profile: str, **p_values: float) -> None:
    """Sets the corrected p-values that arms are non-inferior to the teacher; arms are named with _ for what is not a
    letter or a digit."""
    path = paths.results(profile) / "statistics" / "comparisons.csv"
    table = read_table(path)
    for arm, p in p_values.items():
        mine = table["arm"].str.replace(r"\W", "_", regex=True) == arm
        assert mine.any(), arm
        table.loc[mine & (table["role"] == "teacher"), "p_holm"] = p
    write_table(path, table)


def text_of(profile: str) -> str:
    """The PDF's text on one line, with hyphenated words joined, but for names that have a hyphen. What the tables show
    is found anew before, where there are any."""
    if (paths.results(profile) / "horizon" / "summary.csv").is_file():
        write_claims(profile)
    pages = PdfReader(paper.build(profile)).pages
    joined = re.sub(r"-\n", "", "\n".join(page.extract_text() for page in pages))
    for name in ("walker-walk", "cup-catch", "open-loop", "two-tower"):
        joined = joined.replace(name.replace("-", ""), name)
    return " ".join(joined.split())


def bold(tree) -> set[str]:
    """What is bold in the table of arms of the last PDF, by the font of each piece of text."""
    found = set()

    def visit(text, matrix, transform, font, size):
        if text.strip() and font and "Bold" in font["/BaseFont"] and size == 8:
            found.add(text.strip())

    for page in PdfReader(paths.executed("paper") / "paper.pdf").pages:
        page.extract_text(visitor_text=visit)
    return found


def test_two_builds_are_byte_identical(tree):
    results("paper")
    first = paper.build("paper").read_bytes()
    assert first == paper.build("paper").read_bytes()
    assert b"CreationDate" not in first and not list(paths.executed("paper").glob(".*"))


def test_numbers_come_from_the_result_files(tree):
    results("paper")
    text = text_of("paper")
    assert "asked at every step, keeps 98.9% [98.9%, 98.9%] of the return" in text  # (890 + 4) / (900 + 4), rounded
    account = r"The rival budget-64×2 .*keeps 98\.9% \[98\.9%, 98\.9%\] with .*planner calls and 4\.2% of"
    assert re.search(account, text)  # a float may stand in between
    assert re.search(r"𝐸 by .*\+90 \[\+90, \+90\] \(two", text)  # a float may stand in between
    assert "+120 [+120, +120] (64×2+" in text
    assert "15,000 decisions" in text and "0.0612" in text and "0.041" in text
    change("paper", "budget-64×2", "kept", 0.8774)
    text = text_of("paper")
    assert "at every step, keeps 87.7% [" in text and "keeps 98.9%" not in text


def test_the_table_lists_every_arm_and_marks_what_intervals_show(tree):
    results("paper")
    text = text_of("paper")
    assert "budget-64×2 894 [890, 899] 893 890 0 98.9 [98.9, 98.9] 500 192 (4.2%)" in text
    assert "64×2+two-tower-3 824 [820, 829] 823 820 0 91.1 [91.1, 91.2] +120 [+120, +120] 167 64.1 (1.4%)" in text
    assert "policy 384 [380, 389] 383 380 6 42.4 [42.2, 42.8] 0 0 (0.0%)" in text
    assert "Bold, of the others: what arms keep that are shown to keep 98%" in text
    assert bold(tree) == {"98.9 [98.9, 98.9]", "500", "192"}  # the one good arm
    shown("paper", two_tower_3=0.049)
    text_of("paper")
    kept = "92.8 [92.8, 92.8]"
    assert bold(tree) == {"98.9 [98.9, 98.9]", "192", kept, "167"}  # the least of each cost
    change("paper", "two-tower-3", "planner_calls_high", 501)
    change("paper", "budget-64×2", "planner_calls_low", 168)
    text_of("paper")
    assert bold(tree) == {"98.9 [98.9, 98.9]", "192", kept, "167", "500"}  # not told from the least
    results("quick")
    assert "Bold" not in text_of("quick")


def test_step_times_are_shown_where_they_were_measured(tree):
    results("paper")
    text = text_of("paper")
    assert "Step (ms)" not in text and "A control step takes" not in text
    assert "it does not evaluate a gate that replans early" in text and "or the measured time of an arm" in text
    change("paper", "teacher", "step_ms", 31.44), change("paper", "budget-64×2", "step_ms", 7.9)
    for end, ms in (("low", 7.8), ("high", 8.0)):
        change("paper", "budget-64×2", f"step_ms_{end}", ms)
    measured = [{"arm": "teacher", "part": "step", "batch": 1, "mean_ms": 31.44, "threads": 7}]
    write_table(paths.results("paper") / "latency" / f"{CELL}.csv", measured)
    text = text_of("paper")
    assert bold(tree) == {"98.9 [98.9, 98.9]", "192", "500", "7.9"}  # of the one good arm
    assert "Step (ms)" in text and "500 4608 (100.0%) 31.4" in text and "167 64.1 (1.4%) –" in text
    assert "A control step takes 31.4 ms (teacher) and 7.9 ms (" in text and "measured time of an arm" not in text
    assert "those in Table 1 are of 7 of its CPU threads, those in Table 3 of 2" in text
    assert "All planners are compiled for it." in text


def test_steps_are_taken_apart_where_they_were_measured(tree):
    results("paper", returns=RETURNS | {"64×2+gated-3": 800})
    assert "The time of a step is not in this profile" in text_of("paper")
    rows = [
        {"arm": arm, "part": part, "batch": batch, "mean_ms": ms, "calls_per_decision": calls, "threads": 1}
        for arm, calls, batch, parts in (
            ("teacher", 1.0, 1, {"step": 60.0, "plan": 60.0, "env": 0.25}),
            ("two-tower-3", 1 / 3, 1, {"step": 22.0, "plan": 60.0, "between": 3.0, "correct": 1.5}),
            ("budget-64×2", 1.0, 1, {"step": 8.0}),
            ("64×2+two-tower-3", 1 / 3, 1, {"step": 4.0, "between": 2.0}),
            ("64×2+gated-3", 0.4, 1, {"step": 5.6}),
            ("budget-64×2", 1.0, 10, {"step": 40.0}),
            ("64×2+two-tower-3", 1 / 3, 10, {"step": 16.0}),
        )
        for part, ms in parts.items()
    ]
    write_table(paths.results("paper") / "latency" / f"{CELL}.csv", rows)
    text = text_of("paper")
    assert "arms on the standard planner save 0.95 times as much of the time at batch 1" in text  # 38 / 60 of 2 / 3
    assert "those on 64 × 2 0.75 times without a gate and 0.50 times with one" in text
    assert "with 10 episodes in parallel these are 0.90 and not in this profile times" in text
    assert "own steps are not counted (0.25 ms)" in text


def test_both_correctors_are_in_the_table_of_errors(tree):
    results("paper")
    text = text_of("paper")
    assert "1 512 0.041 0.0612 0.0321 0.2012 0.0091" in text and "Temporal Policy" not in text
    assert "the two-tower corrector removes 27% to 56%." in text
    results("paper", returns=RETURNS | {"temporal-3": 840})
    with pytest.raises(paper.PaperError, match=f"corrector/{CELL}-temporal-depth.csv"):
        paper.build("paper")
    folder = paths.results("paper") / "corrector"
    table = read_table(folder / f"{CELL}-two_tower-depth.csv")
    write_table(folder / f"{CELL}-temporal-depth.csv", table.assign(corrector_mse=[0.0123, 0.0712]))
    text = text_of("paper")
    assert "1 512 0.041 0.0612 0.0321 0.0123 0.2012 0.0091" in text
    assert "removes −19% to 94% (negative: it is worse than the plan)" in text


def test_ablations_are_told_beside_what_differs_in_nothing_else(tree):
    results("paper")
    assert "What the plan and the corrector add" not in text_of("paper")
    results("paper", returns=RETURNS | {"no-plan-3": 830, "gate-only-3": 800, "sensitive-3": 812})
    text = text_of("paper")
    assert re.search(r"over the 6 .*episodes of these arms", text)  # a float may stand in between
    assert re.search(r"differs from .*by −5\.0 \[−5\.0, −5\.0\] against two-tower-3", text)
    assert re.search(r"a corrector .*changes the return by \+12\.0 \[\+12\.0, \+12\.0\] against gate-only-3", text)


def test_the_method_names_the_constants_of_the_code(tree, monkeypatch):
    results("paper")
    text = text_of("paper")
    assert "at most 1.5 planner calls for every 𝐸 decisions" in text and "at least 98% of the teacher" in text
    assert "32 samples × 1 iteration" in text and "last 𝐾 = 4 mismatch tokens" in text
    assert "collected with 𝐸 = 6, so that depths up to 5 are there" in text and "two-tower corrector trained on" in text
    monkeypatch.setattr(paper, "CALLS_PER_PLAN", 1.7)
    assert "at most 1.7 planner calls" in text_of("paper")


def test_the_teachers_are_listed_beside_the_official_agent(tree):
    results("paper")
    text = text_of("paper")
    assert "trained for 15,000 decisions, that is 30,000 frames, on data collected with a planner of 128 × 2" in text
    assert "walker-walk 1m 1 15,000 30,000 900 [880, 920] 1000 100,000 90%" in text
    assert "in the end: 90% of what" in text and "3 episodes with a planner of 96 × 4" in text
    teacher("paper", "cup-catch-5m-2", "cup-catch", "5m", 2, 970.0, decisions=50_000, frames=100_000)
    text = text_of("paper")
    assert "trained for 15,000 to 50,000 decisions, that is 30,000 to 100,000 frames" in text
    assert "cup-catch 5m 2 50,000 100,000 970 [950, 990] 1000 100,000 97%" in text and "in the end: 90% to 97%" in text


def test_of_a_teacher_from_elsewhere_only_the_return_is_known(tree):
    unknown = dict.fromkeys(("decisions", "frames", "collect_samples", "collect_iterations"))
    for profile in ("quick", "paper"):
        results(profile)
        teacher(profile, "official-walker-walk-1", seed=4, size="5m", mean=970.0, config={}, **unknown)
        text = text_of(profile)
        assert "walker-walk 5m official-walker-walk-1 – – 970 [950, 990] – – –" in text
        assert "trained for 15,000 decisions" in text and "in the end: 90% of what" in text
        assert "– stands for what is not known" in text


def test_a_teacher_from_elsewhere_is_a_cell_of_its_own(tree):
    results("quick")
    path = paths.results("quick") / "horizon" / "summary.csv"
    table = read_table(path)  # the same task, size and seed as the shipped teacher
    write_table(path, pd.concat([table, table.assign(cell="mine-1a2b3c4d-walker-walk", return_mean=321.0)]))
    text = text_of("quick")
    assert "mine-1a2b3c4d-walker-walk: 6 paired episodes per arm; all else as in Table 1" in text
    assert "teacher 321" in text and "teacher 904" in text


def test_ablations_may_play_fewer_episodes(tree):
    results("quick")
    path = paths.results("quick") / "horizon" / "summary.csv"
    table = read_table(path)
    write_table(path, table.assign(episodes=table["arm"].map(lambda arm: 20 if arm == "policy" else 50)))
    text = text_of("quick")
    assert text.count("50, some arms 20") == 2  # in the protocol and in the table's caption
    assert "policy20" in text and "teacher50" not in text


def test_a_missing_number_of_a_shipped_teacher_is_an_error_in_the_paper_profile(tree):
    results("paper")
    teacher("paper", collect_samples=None)
    with pytest.raises(paper.PaperError, match=f"column collect_samples in data/results/paper/teacher/{CELL}-card.csv"):
        paper.build("paper")


def test_the_planner_table_comes_from_its_files(tree):
    results("paper")
    text = text_of("paper")
    assert "2 × Some Processor, 2 threads, float32" in text
    for row in ("1m 512 × 6 252 100 2.5 72% 1.2", "1m 64 × 2 20.1 6.0 3.3 42% 1.2", "5m 512 × 6 653 201 3.3 79% 1.2",
                "1m step, 64 × 2 253 6.9 36.8", "1m step, no plan 253 0.93 273", "1m update 200 80.0 2.5"):  # fmt: skip
        assert row in text, row
    assert (
        "2.5 times (1m) and 3.3 times (5m) as fast" in text and "takes 6.9 ms, of which encoding takes 0.31 ms" in text
    )
    assert "12.5 updates per second (5.0 in" in text and "to plan is 2.5 GiB" in text and "256 sequences" in text
    path = paths.results("paper") / "planner" / "cpu.csv"
    table = read_table(path)
    write_table(path, table.assign(solve_ms_p50=table["solve_ms_p50"] / 2, ratio_to_twin=table["ratio_to_twin"] / 2))
    text = text_of("paper")
    assert "1m 512 × 6 252 50.2 5.0 72%" in text and "5.0 times (1m) and 6.5 times (5m) as fast" in text


def test_gpus_are_in_the_planner_table_when_they_were_measured(tree):
    results("paper")
    assert "H200" not in text_of("paper")
    folder = paths.results("paper") / "planner"
    timings(folder, "nvidia-h200", "NVIDIA H200", ("float32", "bfloat16"))
    write_table(folder / "bfloat16.csv", [{"arm": "float32", "episode_seed": 1, "return": 900.0}])
    text = text_of("paper")
    assert "NVIDIA H200, float32" in text and "NVIDIA H200, bfloat16" in text
    assert text.count("1m 512 × 6 252 100 2.5") == 3 and text.count("1m update") == 2


def test_a_missing_timing_is_an_error_in_the_paper_profile_and_said_in_others(tree):
    for profile in ("paper", "quick"):
        results(profile)
        path = paths.results(profile) / "planner" / "cpu.csv"
        table = read_table(path)
        write_table(path, table[table["size"] != "5m"])
    with pytest.raises(
        paper.PaperError, match="ratio_to_twin for 5m, 512 × 6, float32, batch 1 in data/results/paper/"
    ):
        paper.build("paper")
    assert "2.5 times (1m) and not in this profile (5m)" in text_of("quick")


def test_words_follow_the_intervals(tree):
    results("paper")
    text = text_of("paper")
    assert "By these intervals it helps in all 2 of them." in text
    assert re.search(r"correction helps in 2 of 2 on walker-walk \(1m\), and hurts in 0 of 2", text)
    assert "No arm with several steps per plan of the standard planner is shown to keep 98%." in text
    assert "keep 98%, and no arm that is cheaper in evaluations is" in text
    assert "A cheaper arm is shown to do so on no cell." in text
    for low, high, words in ((-9.0, 5.0, "do not tell the sign in two"), (-9.0, -5.0, "hurts in two")):
        change("paper", "two-tower-3", "gain_low", low), change("paper", "two-tower-3", "gain_high", high)
        assert words in text_of("paper")
    shown("paper", two_tower_3=0.01, budget_64_2=0.051)
    text = text_of("paper")
    assert "the cheapest shown to keep 98% is two" in text and "rival itself is not shown" in text
    assert "A cheaper arm is shown to do so on no cell." in text  # two-tower-3 is good, but no cheaper than the rival
    shown("paper", **{"64_2_two_tower_3": 0.01}, budget_64_2=0.01)
    text = text_of("paper")
    assert "does so with 3.0 times fewer evaluations" in text and "A cheaper arm is shown to do so on the one" in text
    shown("paper", policy=0.01)
    assert re.search("policy does so .*with no evaluations", text_of("paper"))  # a float may stand in between


def test_paper_profile_has_conclusions_and_no_banner(tree):
    results("paper")
    text = text_of("paper")
    assert "Conclusion" in text
    assert "This is the" not in text
    assert text.count("not in this profile") == 4  # notebooks 05 to 07 and step times, which this tree lacks


def test_quick_profile_has_a_banner_and_no_conclusion(tree):
    results("quick")
    text = text_of("quick")
    assert "This is the quick profile." in text
    assert "Conclusion" not in text and "is shown to keep" not in text and "98.9%" in text


def test_a_missing_number_is_an_error_in_the_paper_profile(tree):
    results("paper")
    change("paper", "two-tower-3", "kept_low", None)
    with pytest.raises(paper.PaperError, match=r"kept_low .*two-tower-3 in data/results/paper/horizon/summary\.csv"):
        paper.build("paper")


def test_a_missing_arm_is_an_error_in_the_paper_profile(tree):
    results("paper", returns={k: v for k, v in RETURNS.items() if k != "budget-64×2"})
    with pytest.raises(paper.PaperError, match="arm budget-64×2"):
        paper.build("paper")


def test_an_arm_that_a_profile_leaves_out_is_said_elsewhere(tree):
    results("smoke", returns={k: v for k, v in RETURNS.items() if "64" not in k})
    text = text_of("smoke")
    assert "budget-64×2 keeps not in this profile" in text
    assert "does not evaluate a smaller planner that replans at every step" in text


@pytest.mark.parametrize(
    "missing",
    ["data/results/paper/horizon/summary.csv", f"data/results/paper/teacher/{CELL}-card.csv",
     "figures/paper/teachers.svg", "figures/paper/pareto.svg", "figures/paper/depth.svg",
     f"data/results/paper/corrector/{CELL}-two_tower-depth.csv", "figures/paper/planner.svg",
     "data/results/paper/statistics/coverage.csv",
     *(f"data/results/paper/planner/cpu{part}.csv" for part in ("", "-step", "-updates", "-memory"))],
)  # fmt: skip
def test_a_missing_file_is_an_error_in_the_paper_profile(tree, missing, capsys):
    results("paper")
    (tree / missing).unlink()
    assert paper.main(["--profile", "paper"]) == 1
    message = capsys.readouterr().err
    assert missing in message and message.count("\n") == 1  # one sentence, no trace
    assert not (paths.executed("paper") / "paper.pdf").exists()


def test_a_missing_number_is_said_in_the_quick_profile(tree):
    results("quick", episodes=1)  # one episode has no interval
    assert "[not in this profile]" in text_of("quick")


def test_nothing_at_all_still_builds_in_the_quick_profile(tree):
    assert "The evaluation is not in this profile." in text_of("quick")


def test_tables_iterate_over_the_cells_that_exist(tree):
    results("quick")
    path = paths.results("quick") / "horizon" / "summary.csv"
    table = read_table(path)
    others = (
        table.assign(task="cup-catch", cell="cup-catch-1m-1"),
        table.assign(teacher_seed=2, cell="walker-walk-1m-2"),
    )
    write_table(path, pd.concat([table, *others]))
    text = text_of("quick")
    assert "cup-catch (1m)" in text and "walker-walk (1m, seed 2)" in text
    assert "Table 1, Table 2 and Table 3 list them" in text and text.count("budget-64×2 894") == 3


def test_a_page_is_made_shorter_where_typst_fails_by_itself(tree, monkeypatch):
    results("quick")
    real, asked = paper.typst.compile, []

    class Failure(paper.typst.TypstError):
        message = "internal error: parent group"
        diagnostic = "error: internal error: parent group"

    def compile(*args, sys_inputs, **options):
        asked.append(sys_inputs["shorter"])
        if len(asked) < 3:
            raise Failure
        return real(*args, sys_inputs=sys_inputs, **options)

    monkeypatch.setattr(paper.typst, "compile", compile)
    assert "every arm that was evaluated" in text_of("quick") and asked == ["0", "1", "2"]

    def never(*args, **options):
        raise Failure

    monkeypatch.setattr(paper.typst, "compile", never)
    with pytest.raises(paper.PaperError, match="^error: internal error: parent group$"):
        paper.build("quick")


def two_cells(cell: str, task="walker-walk", size="1m", more=()) -> dict[str, pd.DataFrame]:
    """Results of `CELL` and another cell under the paper profile, and of `more`: (cell, task, size); their episodes."""
    results("paper")
    folder = paths.results("paper")
    values = {arm: lambda seed, v=value: v + seed for arm, value in RETURNS.items()}
    others = ((cell, task, size), *more)
    rows = {CELL: episodes(values)} | {c: episodes(values, task=t).assign(size=s) for c, t, s in others}
    tables = [summarise(r).merge(cost_ends(r)) for r in rows.values()]
    tables = [t.assign(cell=name, step_ms=None, steps_per_s=None) for name, t in zip(rows, tables, strict=True)]
    write_table(folder / "horizon" / "summary.csv", pd.concat(tables))
    write_table(folder / "statistics" / "aggregate.csv", aggregate(rows))
    compared = [compare(r).assign(cell=name) for name, r in rows.items()]
    write_table(folder / "statistics" / "comparisons.csv", pd.concat(compared))
    for cell, task, size in others:
        teacher("paper", name=cell, task=task, size=size)
        for part in ("corrector", "distillation"):
            for file in (folder / part).glob(f"{CELL}*.csv"):
                shutil.copy(file, str(file).replace(CELL, cell))
    write_claims("paper")
    return rows


def test_a_task_with_several_sizes_is_compared_over_them(tree):
    two_cells("walker-walk-5m-1", size="5m")
    figures = paths.figures("paper")
    (figures / "model_size.svg").write_bytes((figures / "returns.svg").read_bytes())
    text = text_of("paper")
    assert "against the size of the model: walker-walk (1m) and walker-walk (5m), for the arms" in text


def test_several_cells_have_a_table_of_all_of_them(tree):
    rows, folder = two_cells("cup-catch-1m-1", task="cup-catch"), paths.results("paper")
    text = text_of("paper")
    assert "against the size" not in text
    assert "Over 2 cells, each with the same weight" in text and "95% intervals resample episodes" in text
    found = {a.arm: a for a in aggregate(rows).itertuples() if a.scope == "all" and a.statistic == "iqm"}
    for arm, count in (("budget-64×2", 2), ("open-loop-3", 0)):
        iqm = found[arm]
        shown = f"{arm} {100 * iqm.estimate:.1f} [{100 * iqm.low:.1f}, {100 * iqm.high:.1f}]"
        # five numbers without a bracket and the mean's interval stand between, and no other arm
        assert re.search(rf"{re.escape(shown)}[^a-z]* {count} of 2", text), arm
    (folder / "statistics" / "aggregate.csv").unlink()
    with pytest.raises(paper.PaperError, match=r"statistics/aggregate\.csv"):
        paper.build("paper")


def test_a_third_cell_is_in_a_second_map(tree):
    two_cells("cup-catch-1m-1", "cup-catch", more=[("walker-run-1m-1", "walker-run", "1m")])
    with pytest.raises(paper.PaperError, match=r"figures/paper/pareto-cells\.svg"):
        paper.build("paper")
    shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / "pareto-cells.svg")
    text = text_of("paper")
    number = re.search(r"and cell by cell. Figure (\d+) has the other cells", text)[1]
    assert f"Figure {number}. Return kept against what it costs, as in Figure" in text
    more = [("walker-run-1m-1", "walker-run", "1m"), ("cup-catch-1m-2", "cup-catch", "1m")]
    two_cells("cup-catch-1m-1", "cup-catch", more=more)
    with pytest.raises(paper.PaperError, match=r"figures/paper/horizon-cells\.svg"):
        paper.build("paper")
    shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / "horizon-cells.svg")
    assert "as in Figure 2: the other cells" in text_of("paper")
    two_cells("cup-catch-1m-1", "cup-catch")
    assert "the other cells" not in text_of("paper")  # whatever is left in the folder


def test_the_one_configuration_is_told_by_what_was_picked_before(tree):
    two_cells("cup-catch-1m-1", task="cup-catch")
    folder, cells = paths.results("paper"), (CELL, "cup-catch-1m-1")
    assert "One configuration for all cells" not in text_of("paper")
    headline, other = "64×2+two-tower-3", "64×2+open-loop-3"
    picked = [
        dict(cell=cell, arm=arm, episodes=5, kept=0.97, calls_kept=0.33, evaluations_kept=0.01, p_non_inferior=0.3,
             margin=0.02, level=0.05, picked=arm == headline, chosen=arm == headline, earlier=False)
        for cell in cells for arm in (headline, other)
    ]  # fmt: skip
    write_table(folder / "statistics" / "headline.csv", picked)
    table = read_table(folder / "horizon" / "summary.csv")
    columns = {"step_ms": (60.0, 8.0, 4.0), "step_p95_ms": (70.0, 10.0, 14.0), "speedup": (None, 7.5, 15.0)}
    columns |= {"speedup_low": (None, 7.0, 13.5), "speedup_high": (None, 8.0, 16.75)}
    for column, (whole, small, mine) in columns.items():
        table.loc[table["arm"] == "teacher", column] = whole
        table.loc[table["arm"] == "budget-64×2", column] = small
        table.loc[table["arm"] == headline, column] = mine
    write_table(folder / "horizon" / "summary.csv", table)
    for cell in cells:
        times = [{"arm": "teacher", "part": "step", "batch": 1, "mean_ms": 60.0, "threads": 1}]
        write_table(folder / "latency" / f"{cell}.csv", times)
    text = text_of("paper")
    mine = table[table["arm"] == headline].set_index("cell")
    assert f"(there is none; the one that keeps most on its worst cell is taken) is {headline}. It has not" in text
    assert "On 5 calibration episodes of each of walker-walk (1m) and cup-catch (1m) (the" in text
    assert "teacher’s return on both (one-sided, at 5% for each candidate; falls" in text
    kept = f"{100 * mine['kept'].min():.1f}%"  # of both
    assert f"On the 2 cells that it was picked on it keeps {kept}, and is shown to keep 98% on 0. It makes" in text
    shorter = r"steps are 15\.0 .*times shorter on average \(95% intervals between 13\.5 and .*16\.8\), those"
    assert re.search(shorter, text)  # a float may stand in between
    assert re.search(r"that plan, are 5\.0 times .*percentile, those of budget-64×2 7\.0 times\.", text)
    assert re.search("is budget-64×2, with 1.0 .*times as many model evaluations", text)
    assert f"Our one configuration for all cells is {headline}. On the 2" in text  # in the conclusion
    assert "Our one configuration for all cells, picked on calibration episodes, keeps" in text  # in the abstract
    difference = read_table(folder / "statistics" / "comparisons.csv").set_index(["cell", "arm", "role"])["difference"]
    gain = difference[CELL, headline, "open loop"]
    assert f"walker-walk (1m) +{gain:.1f} [" in text and "] against 64×2+open-loop-3" in text
    write_table(folder / "statistics" / "headline.csv", [row | {"chosen": row["arm"] == other} for row in picked])
    text = text_of("paper")
    assert f"Our one configuration for all cells is {other}. On" in text
    assert f"{headline}; ours was picked before and stays: {other}. It has not" in text
    assert "earlier pick" not in text and "picked before, as" not in text and "second attempt" not in text
    shown("paper", budget_64_2=0.2)
    assert "No smaller planner that is asked" in text_of("paper")
    # Picked anew on one cell alone, and put to the test on the other one.
    picked = [row | {"p_non_inferior": 0.01, "earlier": row["arm"] == other} for row in picked if row["cell"] == CELL]
    write_table(folder / "statistics" / "headline.csv", picked)
    text, theirs = text_of("paper"), table[table["arm"] == other].set_index("cell")
    assert "episodes of walker-walk (1m) (the" in text  # and a float may stand in the sentence
    assert re.search(rf"did not show are not ruled out\) .*is {re.escape(headline)}\.", text)
    assert f"An earlier pick, {other}, was the cheapest candidate with a mean above 98%" in text
    assert f"On the reported ones that keeps {100 * theirs['kept'][CELL]:.1f}%" in text
    assert "0 of these 1, whereupon" in text and "picked on calibration episodes at the second attempt" in text
    assert re.search(
        r"On the cell that it was picked on it keeps .*, and is not shown to keep 98%; on another task it keeps", text
    )
    kept = f"{100 * mine['kept']['cup-catch-1m-1']:.1f}%"
    assert re.search(rf"it keeps {kept} .* on cup-?catch \(1m\), and is non-inferior on 0 of these 1", text)
    assert "the rule was tightened when a first pick had been evaluated on them" in text
    assert "by a rule that was tightened when a first pick had been evaluated on walker-walk (1m)." in text
    write_table(folder / "statistics" / "headline.csv", [row | {"earlier": row["arm"] == headline} for row in picked])
    text = text_of("paper")
    assert "It had been picked before, as the cheapest" in text and "second attempt" not in text


def test_another_teacher_of_a_known_task_is_told_apart_from_another_task(tree):
    more = [("walker-walk-5m-1", "walker-walk", "5m")]
    two_cells("cup-catch-1m-1", task="cup-catch", more=more)
    shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / "pareto-cells.svg")
    shutil.copy(paths.figures("paper") / "pareto.svg", paths.figures("paper") / "model_size.svg")
    headline = "64×2+two-tower-3"
    picked = dict(cell=CELL, arm=headline, episodes=5, kept=0.97, calls_kept=0.33, evaluations_kept=0.01, margin=0.02,
                  level=0.05, p_non_inferior=0.01, picked=True, chosen=True, earlier=False)  # fmt: skip
    write_table(paths.results("paper") / "statistics" / "headline.csv", [picked])
    text = text_of("paper")
    assert "Over 3 cells, each with a teacher of its own and of 2 tasks, a planner" in text
    assert re.search(r"; on another task it keeps .*; on walker-walk \(5m\), another teacher of a task that it", text)
    assert "walker-walk (5m) shares its task and start states with a cell that it was picked on." in text
    assert "Cells of the same task each count" in text


def test_a_teacher_that_learned_from_a_replay_is_told(tree):
    results("paper")
    assert "of its own: it made" not in text_of("paper")
    teacher("paper", "walker-walk-5m-1", size="5m", offline={"updates": 12_000})
    text = text_of("paper")
    assert text.count("walker-walk 5m collected no decisions of its own: it made 12,000 updates on the replay") == 2


def test_conclusions_leave_out_arms_that_played_fewer_episodes(tree):
    results("paper")
    text = text_of("paper")
    assert "A planner of 64 × 2 at every step is shown to keep 98% of the full planner’s return on the one cell" in text
    change("paper", "teacher", "episodes", 50)
    text = text_of("paper")
    assert "A planner of 64 × 2 at every step is shown to keep 98% of the full planner’s return on no cell" in text
    assert bold(tree) == set()


def test_coverage_of_the_intervals_comes_from_its_simulation(tree):
    results("paper")
    text = text_of("paper")
    assert "hold the true one in 91.0% to 95.0% of samples of 10 to 20 episodes" in text
    assert "those of a kept return in 90.0% to 94.0%, and in 88.0% to 92.0% where the teacher varies" in text
    assert "Where 5% of the episodes fall they do so in only 39.0% to 41.0%" in text
    assert "lie above the truth" not in text  # nothing was simulated of six episodes
    change("paper", "teacher", "episodes", 20)
    assert "36% of intervals over 20 of them lie above the truth" in text_of("paper")
    assert "5 % fall 40% 41% 49% 50% 39% 40% 37% 38% 42% 43%" in text


def test_how_many_episodes_it_takes_comes_from_the_table(tree):
    results("paper")
    needed = read_table(paths.results("paper") / "statistics" / "power.csv").set_index(["arm", "effect"])
    text = text_of("paper")
    for arm in ("budget-64×2", "policy"):
        numbers = [f"{needed['episodes_needed'][arm, effect]:.0f}" for effect in (0.01, 0.02, 0.05)]
        assert f"{arm} 6 {needed['difference_std'][arm, 0.01]:.1f} {' '.join(numbers)}" in text
    write_table(
        paths.results("paper") / "statistics" / "headline.csv",
        [dict(cell=CELL, arm="64×2+two-tower-3", episodes=5, p_non_inferior=0.01, margin=0.02, level=0.05, chosen=True)
         | dict(picked=True, earlier=False)],
    )  # fmt: skip
    text = text_of("paper")
    assert re.search(r"64×2\+open-loop-3 6 [\d. ]+ walker-walk \(1m\) 64×2\+two-tower-3 6 ", text)


def test_stale_results_are_listed(tree, capsys):
    results("quick")
    stale = paths.executed("quick") / "stale.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("data/results/quick/horizon/walker-walk-1m-1.csv (lib/planner.py changed)\n\n")
    assert paper.main(["--profile", "quick"]) == 0
    assert "stale: data/results/quick/horizon/walker-walk-1m-1.csv (lib/planner.py changed)" in capsys.readouterr().err
    text = text_of("quick")
    assert "Stale results in this document" in text and "lib/planner.py changed" in text
    stale.unlink()
    assert "Stale results" not in text_of("quick")


def test_unknown_profile(tree):
    with pytest.raises(ValueError, match="quick"):
        paper.build("quik")


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


def test_a_fact_that_nobody_wrote_is_an_error_in_the_paper_profile(tree):
    results("paper")
    path = paths.results("paper") / "statistics" / "claims.json"
    facts = json.loads(path.read_text())
    del facts["cells"][CELL]["good"]
    path.write_text(json.dumps(facts))
    with pytest.raises(paper.PaperError, match=rf"fact cells → {CELL} → good in data/.*/claims\.json"):
        paper.build("paper")
    path.unlink()
    with pytest.raises(paper.PaperError, match=r"statistics/claims\.json"):
        paper.build("paper")


def test_numbers_are_formatted_with_fixed_digits(tree):
    (tree / "paper" / "numbers.typ").write_text(
        '#import "style.typ": fixed\n'
        "#metadata((fixed(455.0, digits: 1), fixed(-0.04, digits: 1), fixed(-2.5, digits: 2), fixed(1539072),"
        " fixed(9216), fixed(0.0005, digits: 4), fixed(0.996, digits: 2), fixed(0))) <x>"
    )
    found = json.loads(paper.typst.query(tree / "paper" / "numbers.typ", "<x>", field="value", one=True, root=tree))
    assert found == ["455.0", "0.0", "−2.50", "1,539,072", "9216", "0.0005", "1.00", "0"]


def offline_tables(sides: dict[str, tuple[float, float]], exchanged: bool, starts: int = 8, p=0.01) -> None:
    """The offline study of one task: M1 tells the gap, and differences to M5 and its latent variant have these ends."""
    folder = paths.results("paper") / "offline"
    cell = {"cell": CELL, "task": "walker-walk", "size": "1m", "seed": 1, "decisions": 500}
    write_table(folder / "cells.csv", [cell | {"decoder_error": 0.1, "m3": 0.2, "m3_latent": 0.3, "m4": 0.4}])
    gap = {"planner": "shooting", "episodes": starts, "oracle_success": 1, "learned_success": 0}
    write_table(folder / "gaps.csv", [cell | gap | {"verdict": "MODEL BOTTLENECK"}])
    write_table(folder / "skipped.csv", [{"file": "a.safetensors"}])
    rows = [
        {"task": "walker-walk", "metric": metric, "bank": "mixed", "target": target, "n": 7, "expected": -1}
        | {"spearman": -rho, "low": -0.9, "high": -0.2, "low_naive": -0.9, "high_naive": -0.2, "partial": None}
        | {"p_permutation": p if exchanged else None}
        for metric, rho in {"m1": 0.8, "m5": 0.4, "decisions": 0.95}.items()
        for target in ("cpg", "kept_e3")
    ]
    write_table(folder / "correlations.csv", rows)
    ends = [{"low": low, "high": high, "low_naive": low, "high_naive": high} for low, high in sides.values()]
    about = {"task": "walker-walk", "target": "cpg", "difference": -0.4}
    names = [{"metric": metric, "baseline": metric.replace("m5", "m1")} for metric in sides]
    write_table(folder / "differences.csv", [about | name | end for name, end in zip(names, ends, strict=True)])


def test_a_metric_is_called_the_better_guide_only_where_runs_can_be_exchanged_and_decoders_agree(tree):
    results("paper")
    below, unclear = (-0.9, -0.1), (-0.9, 0.3)
    guide = "plain prediction error is the better guide"
    offline_tables({"m5": below, "m5_latent": below}, exchanged=True)
    text = text_of("paper")
    assert guide in text and "told by M1 and M5 (the return kept at" in text
    assert "gives 𝑝 < 0.05 and the expected sign for 4 of 4 pairs of a metric and a target: M1 and the" in text
    assert "M1 and the planning gap (𝑝 = 0.010)" in text
    assert "corrected for their number the least is 0.04" in text
    offline_tables({"m5": below, "m5_latent": below}, exchanged=True, p=0.2)  # whatever the intervals say
    text = text_of("paper")
    assert "for none of 4 pairs of a metric and a target; corrected for their number the least is 0.80" in text
    assert "No metric is shown to tell how much return open-loop execution keeps" in text
    assert "it is M1 (𝜌 +0.80 [+0.20, +0.90]; decisions of training +0.95)" in text
    offline_tables({"m5": below, "m5_latent": unclear}, exchanged=True)
    assert "may depend on the decoder; these cells do not tell" in text_of("paper")
    offline_tables({"m5": below, "m5_latent": below}, exchanged=False)
    text = text_of("paper")
    assert "no evidence for either kind of metric" in text and guide not in text and "is told by" not in text
    assert "Nor is any of them shown to tell how much return open-loop execution keeps" in text


def test_few_starts_give_no_verdict(tree):
    results("paper")
    offline_tables({"m5": (-1, 1)}, exchanged=False)
    assert "Random shooting 1 8 100% 0% 1 M" in text_of("paper")
    offline_tables({"m5": (-1, 1)}, exchanged=False, starts=5)
    assert "Random shooting 1 5 100% 0% –" in text_of("paper")
