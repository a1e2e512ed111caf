"""Charts: text that survives into the PDF, marks that do not cover each other, files that are the same twice."""

import importlib.util
import itertools
import math
import re
import struct
import sys
from collections import Counter

import altair as alt
import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader

from figures import charts
from figures.charts import EVERY_STEP, FAMILIES, family, small_planner, spread
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import write_table
from lib.study.arms import DELAYED
from lib.study.profiles import PROFILES
from tests.tiny_results import about


def load_figure(name: str):
    """A script of figures/ as a module."""
    spec = importlib.util.spec_from_file_location(f"figures_{name}", paths.FIGURES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


choices, deadlines, drafts, pareto = map(load_figure, ("choices", "deadlines", "drafts", "pareto"))
planner = load_figure("planner")
scales = load_figure("scales")
teachers = load_figure("teachers")

# name: (planner calls, kept)
ARMS = {
    "teacher": (500, 1.0),
    "policy": (0, 0.42),
    "budget-64×2": (500, 0.99),
    "open-loop-3": (167, 0.82),
    "two-tower-3": (167, 0.92),
    "temporal-3": (167, 0.93),
    "two-tower-6": (84, 0.62),
    "64×2+two-tower-6": (84, 0.6),
    "64×2+ladder-6": (210, 0.96),
}


def summary(arms=ARMS, task="walker-walk", teacher_seed=1, half=0.02, timed=True) -> pd.DataFrame:
    rows = [
        about(arm)
        | dict(cell=f"{task}-1m-{teacher_seed}", task=task, size="1m", teacher_seed=teacher_seed, kept=kept,
             planner_calls=calls, model_evaluations=calls * (384 if "64" in arm else 9216),
             kept_low=kept - half * (arm != "teacher"), kept_high=kept + half * (arm != "teacher"),
             step_ms=0.9 + calls / 20 if timed else np.nan, episodes=10)
        for arm, (calls, kept) in arms.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def rules_of(svg):
    """How many rules are drawn as marks."""
    groups = re.findall(r'<g class="mark-rule role-mark.*?</g>', svg.read_text(encoding="utf-8"))
    return sum(group.count("<line") for group in groups)


def pdf_text(path) -> str:
    return " ".join("\n".join(page.extract_text() for page in PdfReader(path).pages).split())


def test_families_are_told_apart_by_colour_and_by_shape_alone():
    families = list(dict.fromkeys([*FAMILIES.values(), charts.OTHER]))
    assert len({f.shape for f in families}) == len({f.name for f in families}) == len(families)
    assert family("budget") is family("teacher") is family("teacher-sample") is EVERY_STEP
    assert len({family(scheme) for scheme in (*DELAYED, "something-new")}) == len(DELAYED) + 1
    assert family("something-new") is charts.OTHER


def test_every_arm_of_every_profile_has_a_look_of_its_own():
    for profile in PROFILES.values():
        arms = [about(arm) for arm in (*profile.arms, *profile.side_arms, *profile.draft_arms)]
        assert charts.OTHER not in [family(arm["scheme"]) for arm in arms]
        marks = [(*list(pareto.look(arm).values())[1:], arm["execution_horizon"]) for arm in arms]  # E is the size
        by_costs = ("budget", "swept", "draft+gated")  # which stand by these
        apart = [arm for arm in arms if arm["scheme"] not in ("teacher-sample", *by_costs)]
        assert len(set(marks)) == len(apart) + len({family(a["scheme"]) for a in arms if a["scheme"] in by_costs})
    paper = [about(arm) for arm in (*PROFILES["paper"].arms, *PROFILES["paper"].side_arms)]
    hollow = {arm["arm"]: small_planner(arm) for arm in paper if pareto.look(arm)["fill"] == "white"}
    assert hollow == {arm["arm"]: match[0] for arm in paper if (match := re.search(r"\d+×\d", arm["arm"]))}


def test_figure_writes_three_files_with_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    write_table(paths.results("smoke") / "horizon" / "summary.csv", summary())
    pareto.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == ["pareto.pdf", "pareto.png", "pareto.svg"]
    text = pdf_text(folder / "pareto.pdf")
    titles = [title for title, _ in pareto.COSTS.values()]
    for words in ("Return kept (% of teacher)", *titles, "two-tower corrector", "ladder", "smaller planner", "6 steps"):
        assert words in text
    assert "gated" not in text and "walker-walk" not in text
    width, height = struct.unpack(">II", (folder / "pareto.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(6.8, abs=0.12) and charts.PNG_PPI >= 200


def solves(modes=("eager", "compiled"), sizes=("5m", "1m")) -> pd.DataFrame:
    rows = [
        dict(size=size, batch=batch, samples=samples, iterations=iterations, mode=mode, dtype=dtype)
        | dict(solve_ms_p50=k * work, solve_ms_p95=1.3 * k * work, floor_ms=work, twin_ms_p50=4 * work)
        | dict(twin_ms_p95=5 * work)
        for size, scale in zip(sizes, (2.5, 1.0), strict=True)
        for batch in (1, 8)
        for dtype in ("float32", "bfloat16")
        for samples, iterations, work in ((512, 6, 60 * scale * batch), (64, 2, 3.2 * scale * batch))
        for k, mode in zip((2.5, 1.5), modes, strict=False)
    ]
    return pd.DataFrame(rows)


def test_the_planner_is_drawn_from_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    write_table(paths.results("smoke") / "planner" / "cpu.csv", solves())
    planner.main(["--profile", "smoke"])
    folder = tmp_path / "figures" / "smoke"
    assert sorted(p.name for p in folder.iterdir()) == ["planner.pdf", "planner.png", "planner.svg"]
    text = pdf_text(folder / "planner.pdf")
    words = ("Milliseconds per solve", "official manner", "ours, compiled", "matrix products alone", "1m, 64 × 2")
    assert all(word in text for word in words), text
    width, _ = struct.unpack(">II", (folder / "planner.png").read_bytes()[16:24])
    assert abs(width / charts.PNG_PPI * 72 - charts.COLUMN_WIDTH) < 12


def test_the_planner_has_a_row_for_each_solve_and_a_lane_for_each_way(tmp_path):
    points = planner.tidy(solves())
    assert points["solve"].drop_duplicates().tolist() == ["1m, 64 × 2", "1m, 512 × 6", "5m, 64 × 2", "5m, 512 × 6"]
    first = points.set_index("way").iloc[:4]
    assert first["label"].to_dict() == {
        "official manner": "13", "ours, eager": "8.0", "ours, compiled": "4.8", planner.FLOOR: "3.2",
    }  # fmt: skip
    assert (first["p95"] >= first["p50"]).all() and len({colour for colour, _ in planner.WAYS.values()}) == 4
    charts.save(planner.draw(solves(modes=["eager"])), tmp_path / "eager")  # where there is no compiler
    assert "compiled" not in pdf_text(tmp_path / "eager.pdf")


OFFICIAL = pd.DataFrame(
    [("walker-walk", 100_000, 962.0), ("walker-walk", 200_000, 973.0), ("walker-walk", 1_000_000, 980.0),
     ("cup-catch", 100_000, 981.0)], columns=["task", "frames", "return"],
)  # fmt: skip


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """ship(task, size, seed, frames) writes a teacher's curve and card where notebook 01 does."""
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    write_table(paths.DATA / "official_returns.csv", OFFICIAL)

    def ship(task, size="1m", seed=1, frames=40_000, name=None, half=15.0):
        stem = paths.results("smoke") / "teacher" / (name or f"{task}-{size}-{seed}")
        card = dict(task=task, size=size, seed=seed, frames=frames, return_mean=950.0)
        card |= dict(return_low=950.0 - half, return_high=950.0 + half)
        write_table(stem.with_name(f"{stem.name}-card.csv"), [card])
        if frames:
            at = range(5_000, frames + 1, 5_000)
            write_table(stem.with_name(f"{stem.name}.csv"), [{"frames": f, "return": 900.0 * f / frames} for f in at])

    return ship


def drawn(chart, kind: str) -> list[dict]:
    """Rows behind the layers of one kind of mark, over all panels."""
    spec = chart.to_dict()
    layers = [layer for p in spec.get("concat", [spec]) for layer in p["layer"] if layer["mark"]["type"] == kind]
    return [row for layer in layers for row in spec["datasets"][layer["data"]["name"]]]


def test_the_teachers_are_drawn_from_their_results(zoo):
    zoo("walker-walk")
    teachers.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == ["teachers.pdf", "teachers.png", "teachers.svg"]
    text = pdf_text(folder / "teachers.pdf")
    for words in ("walker-walk", "Simulator frames (thousands)", "Return per episode", "1m", teachers.OFFICIAL):
        assert words in text
    assert "seed" not in text and "5m" not in text.replace(teachers.OFFICIAL, "")
    width, _ = struct.unpack(">II", (folder / "teachers.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(3.3, abs=0.12)


def test_a_panel_for_each_task_and_a_line_for_each_teacher(zoo, tmp_path):
    for task, size, seed in (("walker-walk", "1m", 1), ("walker-walk", "1m", 2), ("walker-walk", "5m", 1)):
        zoo(task, size, seed)
    for task in ("cup-catch", "walker-run", "cheetah-run"):
        zoo(task)
    chart = teachers.draw(*teachers.read("smoke"), OFFICIAL)
    panels = chart.to_dict()["concat"]
    assert [p["title"]["text"] for p in panels] == ["cheetah-run", "cup-catch", "walker-run", "walker-walk"]
    lines = Counter((r["task"], r["size"], r["seed"]) for r in drawn(chart, "line"))
    assert len(lines) == 6 and set(lines.values()) == {8}
    marks = [(r["task"], r["size"], r["seed"]) for r in drawn(chart, "point")]
    assert sorted(marks) == sorted(lines) and {r["return_mean"] for r in drawn(chart, "point")} == {950.0}
    bars = [(r["task"], r["frames"]) for r in drawn(chart, "tick") if "return" in r]
    assert sorted(bars) == [("cup-catch", 100_000), ("walker-walk", 100_000), ("walker-walk", 200_000)]
    charts.save(chart, tmp_path / "zoo")
    text = pdf_text(tmp_path / "zoo.pdf")
    assert all(words in text for words in ("seed 1", "seed 2", "5m", "cheetah-run")) and "seed 3" not in text
    width, _ = struct.unpack(">II", (tmp_path / "zoo.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(6.8, abs=0.12)


def test_axes_of_the_teachers_are_the_same_honest_ones_in_all_panels(zoo):
    zoo("walker-walk", frames=500_000), zoo("cup-catch", frames=20_000)
    chart = teachers.draw(*teachers.read("smoke"), OFFICIAL)
    domains = {
        (axis, *layer["encoding"][axis]["scale"]["domain"])
        for p in chart.to_dict()["concat"] for layer in p["layer"] for axis in "xy"
    }  # fmt: skip
    assert {d[:2] for d in domains} == {("x", 0), ("y", 0)} and len(domains) == 2
    assert all(top > {"x": 500, "y": 1000}[axis] for axis, _, top in domains)


def test_marks_of_teachers_move_apart_only_to_the_right_and_only_where_they_cover_each_other(zoo):
    for seed, frames in ((1, 100_000), (2, 100_000), (3, 101_000), (4, 40_000)):
        zoo("walker-walk", seed=seed, frames=frames)
    zoo("cup-catch", frames=100_000)
    _, cards = teachers.read("smoke")
    placed = teachers.apart(cards, per_x=0.7).set_index(["task", "seed"])["x"]
    assert placed["walker-walk", 4] == 40 and placed["walker-walk", 1] == 100 and placed["cup-catch", 1] == 100
    apart = 2 * teachers.MARK / 0.7
    assert placed["walker-walk", 2] >= 100 + apart and placed["walker-walk", 3] >= placed["walker-walk", 2] + apart


def test_a_teacher_of_unknown_training_has_no_place_on_the_axis(zoo):
    zoo("walker-walk", name="official-walker-walk-1", frames=None)
    with pytest.raises(ResultError, match="holds no card of a teacher; run `make all"):
        teachers.read("smoke")
    zoo("walker-walk")
    curves, cards = teachers.read("smoke")
    assert len(cards) == 1 and curves["frames"].max() == 40_000


def test_a_card_of_one_episode_has_a_mark_and_no_interval(zoo, tmp_path):
    zoo("walker-walk", half=np.nan)
    charts.save(teachers.draw(*teachers.read("smoke"), OFFICIAL), tmp_path / "one")
    zoo("walker-walk")
    charts.save(teachers.draw(*teachers.read("smoke"), OFFICIAL), tmp_path / "ten")
    rules = [rules_of(tmp_path / f"{name}.svg") for name in ("one", "ten")]
    assert rules == [0, 1]


def test_svg_is_the_same_twice(tmp_path):
    for stem in ("a", "b"):
        charts.save(pareto.draw(summary()), tmp_path / stem)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_several_cells_become_rows_named_by_what_differs(tmp_path):
    tables = pd.concat([summary(), summary(task="cup-catch")])
    charts.save(pareto.draw(tables), tmp_path / "two")
    text = pdf_text(tmp_path / "two.pdf")
    assert "walker-walk (1m)" in text and "cup-catch (1m)" in text and "seed" not in text
    assert text.count("Planner calls per episode") == 1 and text.count("Return kept (% of teacher)") == 2
    elsewhere = summary().assign(cell="mine-1a2b3c4d-walker-walk")
    charts.save(pareto.draw(pd.concat([summary(), summary(teacher_seed=2), elsewhere])), tmp_path / "three")
    text = pdf_text(tmp_path / "three.pdf")
    assert "walker-walk (1m, seed 2)" in text and "mine-1a2b3c4d-walker-walk" in text


def test_many_cells_have_two_figures_that_each_fit_a_page(tmp_path, capsys):
    fewer = ["walker-walk", "cup-catch", "walker-run", "cheetah-run", "reacher-easy", "hopper-hop"]
    most = ["finger-spin", "pendulum"]
    tasks = fewer + most
    overall = summary().assign(cell=pareto.ALL, task=None, size=None, teacher_seed=None)
    tables = [overall, *(summary(task=task) for task in fewer), *(summary(task=t).assign(episodes=50) for t in most)]
    found = pareto.drawings(pd.concat(tables))
    for name, shown, highest in (("pareto", most, 7), ("pareto-cells", fewer, 8.75)):
        charts.save(found[name], tmp_path / name)
        width, height = struct.unpack(">II", (tmp_path / f"{name}.png").read_bytes()[16:24])
        assert width / charts.PNG_PPI == pytest.approx(6.8, abs=0.12) and height / charts.PNG_PPI < highest
        text = pdf_text(tmp_path / f"{name}.pdf")
        assert [task for task in tasks if f"{task} (1m)" in text] == [task for task in tasks if task in shown]
        assert ("mean over all cells" in text) == (name == "pareto")
    assert not capsys.readouterr().err
    assert list(pareto.drawings(pd.concat(tables[:1] + tables[-2:]))) == ["pareto"]
    pareto.drawings(pd.concat([*tables, summary(task="acrobot")]))
    assert "pareto-cells: a page does not hold all cells; left out: acrobot-1m-1" in capsys.readouterr().err


def test_the_row_over_all_cells_has_the_arms_that_all_have_and_mean_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    folder = paths.results("smoke")
    one = summary()
    write_table(folder / "horizon" / "summary.csv", one)
    assert pareto.ALL not in set(pareto.read("smoke")["cell"])
    other = summary(task="cup-catch").query("arm != 'policy'").assign(planner_calls=300)
    elsewhere = summary().query("arm == 'teacher'").assign(cell="official-x")
    write_table(folder / "horizon" / "summary.csv", pd.concat([one, other, elsewhere]))
    scores = [dict(scope=scope, arm=arm, statistic=statistic, estimate=0.9, low=0.8, high=0.96 if scope == "all" else 1)
              for scope in ("cup-catch 1m", "all") for arm in ARMS for statistic in ("mean", "iqm")]  # fmt: skip
    write_table(folder / "statistics" / "aggregate.csv", scores)
    rows = pareto.read("smoke").query("cell == @pareto.ALL").set_index("arm")
    assert list(rows.index) == [arm for arm in ARMS if arm != "policy"]
    assert rows.loc["teacher", "planner_calls"] == 400 and rows.loc["two-tower-6", "planner_calls"] == 192
    assert rows.loc["two-tower-6", ["kept", "kept_low", "kept_high"]].tolist() == [0.9, 0.8, 0.96]
    assert rows["execution_horizon"].tolist() == [about(arm)["execution_horizon"] for arm in rows.index]
    charts.save(pareto.draw(pareto.read("smoke")), tmp_path / "three")
    text = pdf_text(tmp_path / "three.pdf")
    assert all(title in text for title in (pareto.ALL, "walker-walk (1m)", "cup-catch (1m)", "official-x"))
    assert "1m-1" not in text


def panels(chart) -> list[list[dict]]:
    """The panels of each row."""
    return [row["hconcat"] for row in chart.to_dict()["vconcat"] if "hconcat" in row]


def test_step_time_has_a_panel_only_where_it_was_measured():
    def titles(chart):
        return [[p["layer"][0]["encoding"].get("x", {}).get("title") or p["layer"][-1]["encoding"]["x"]["title"]
                 for p in row] for row in panels(chart)]  # fmt: skip

    all_titles = [title for title, _ in pareto.COSTS.values()]
    assert titles(pareto.draw(summary())) == [all_titles]
    assert titles(pareto.draw(summary(timed=False))) == [all_titles[:2]]
    some = summary().assign(step_ms=lambda t: t["step_ms"].where(t["arm"] != "policy"))
    x, y = scales.cost_scale(some["step_ms"].dropna(), 140), scales.kept_scale(some, 165)
    assert set(pareto.place(some, "step_ms", x, y)["arm"]) == set(ARMS) - {"policy"}
    both = pareto.draw(pd.concat([summary(timed=False), summary(task="cup-catch")]))
    assert [len(row) for row in panels(both)] == [2, 3]


def test_marks_stand_at_the_numbers_of_the_table():
    apart = {k: v for k, v in ARMS.items() if k not in ("temporal-3", "64×2+two-tower-6", "budget-64×2")}
    table = summary(apart)
    for cost in pareto.COSTS:
        x, y = scales.cost_scale(table[cost], 140), scales.kept_scale(table, 165)
        points = pareto.place(table, cost, x, y).set_index("arm")
        assert points["y"].to_dict() == pytest.approx({arm: 100 * kept for arm, (_, kept) in apart.items()})
        true = table.set_index("arm")[cost]
        assert points.loc[true > 0, "x"].to_dict() == pytest.approx(true[true > 0].to_dict())
    assert points.loc["two-tower-6", "size"] > points.loc["two-tower-3", "size"]


def test_a_mark_covers_the_place_of_its_number():
    """Marks that meet are drawn apart, but never by more than a radius: on a logarithmic axis that is little."""
    table = pd.concat([summary(), *(summary().assign(arm=lambda t, i=i: t["arm"] + f"-{i}") for i in range(4))])
    for cost in pareto.COSTS:
        x, y = scales.cost_scale(table[cost], 140), scales.kept_scale(table, 165)
        points, true = pareto.place(table, cost, x, y), table.dropna(subset=[cost])[cost]
        moved = [abs(x.place(a) - x.place(b)) for a, b in zip(points["x"], true, strict=True) if b > 0]
        assert 0 < max(moved) <= pareto.REACH + 1e-9 < 0.45 * min(points["size"]) ** 0.5


def test_missing_intervals_leave_the_mark(tmp_path):
    table = summary().assign(kept_low=np.nan, kept_high=np.nan)
    charts.save(pareto.draw(table), tmp_path / "none")
    charts.save(pareto.draw(summary()), tmp_path / "all")
    counts = [rules_of(tmp_path / f"{name}.svg") for name in ("none", "all")]
    assert counts[1] - counts[0] == 3 * (len(ARMS) - 1)  # in three panels, all but the teacher


@pytest.mark.parametrize(("kept", "half"), [(0.62, 0.02), (1.3, 0.1), (0.97, 0.0), (0.53, 0.1), (-0.05, 0.1)])
def test_the_axis_of_kept_is_linear_and_holds_every_interval_as_far_as_its_end(kept, half):
    table = summary({**ARMS, "policy": (0, 0.7), "best-of-8": (100, kept)}, half=half)
    scale = scales.kept_scale(table, 165)
    ends = 100 * table[["kept_low", "kept_high"]].to_numpy()
    assert scale.low < max(ends.min(), scales.LEAST) and scale.high > max(ends.max(), 100)
    assert scale.place(scale.low) == pytest.approx(0) and scale.place(scale.high) == pytest.approx(165)
    assert np.diff([scale.place(v) for v in (60, 70, 80, 90, 100)], 2) == pytest.approx([0, 0, 0])
    if ends.min() < scales.LEAST:
        assert scale.place(-20) == 0 < scale.place(scales.LEAST) < 10 and scale.altair.clamp
    ticks = [scale.place(t) for t in scales.kept_ticks(scale)]
    assert 100 in scales.kept_ticks(scale) and min(np.diff(ticks)) >= charts.FONT_SIZE
    assert f"go down to {scales.LEAST:.0f}% at most" in (paths.ROOT / "paper" / "evaluation.typ").read_text()


def test_clones_and_drafts_of_dagger_have_one_look_each_everywhere(tmp_path):
    clone, draft = family("cloned"), family("distilled")
    dark, light = (sum(int(look.colour[i : i + 2], 16) for i in (1, 3, 5)) for look in (clone, draft))
    assert clone.shape != draft.shape and light > 2 * dark  # told apart in grey, too
    assert family("clone+gated").colour == clone.colour and family("draft+gated").colour == draft.colour
    assert family("prior+").colour == family("policy").colour
    assert choices.draw(summary({**ARMS, "distilled": (0, 0.9), "cloned": (0, 0.98)})).to_dict()  # is drawn of one cell
    for looks in (drafts.LOOKS, {arm: deadlines.look(arm) for arm in ("cloned", "distilled")}):
        assert (looks["cloned"], looks["distilled"]) == (clone, draft)
    charts.save(charts.key({"plans reused with correction and gate": clone, "planner": draft}, 90), tmp_path / "key")
    assert all(words in pdf_text(tmp_path / "key.pdf") for words in ("plans reused with", "correction and gate"))


def test_arms_that_cost_nothing_stand_apart_at_the_left():
    table = summary()
    scale = scales.cost_scale(table["planner_calls"], 140)
    edge = scale.place(scales.cost_floor(scale))
    assert 0 < scale.place(0) < edge < scale.place(84) < scale.place(500) < 140
    assert scale.value(scale.place(84)) == pytest.approx(84)
    assert scale.place(168) - scale.place(84) == pytest.approx(scale.place(336) - scale.place(168))
    assert scales.cost_ticks(scale) == [scale.zero, 100, 200, 500]
    none = scales.cost_scale(table["planner_calls"].replace(0, 20), 140)
    assert none.zero is None and scales.cost_floor(none) == none.low < 20 and 0 not in scales.cost_ticks(none)
    points = pareto.place(table, "planner_calls", scale, scales.kept_scale(table, 165)).set_index("arm")
    assert points.loc["policy", "x"] == pytest.approx(scale.zero)


@pytest.mark.parametrize("seed", range(6))
def test_marks_do_not_cover_each_other_where_there_is_room(seed):
    rng = np.random.default_rng(seed)
    marks = [(x, y, 3.0) for x, y in zip(rng.choice([40, 70, 100], 14), rng.uniform(0, 90, 14), strict=True)]
    drawn = spread(marks, 0, 140)
    for (a, (_, u, r)), (b, (_, v, s)) in itertools.combinations(zip(drawn, marks, strict=True), 2):
        assert math.hypot(a - b, u - v) >= r + s
    assert max(abs(a - x) for a, (x, _, _) in zip(drawn, marks, strict=True)) <= 18


def test_a_mark_moves_no_farther_than_it_must_and_never_out_of_its_strip():
    assert spread([(10, 0, 3), (60, 0, 3)], 0, 100) == [10, 60]
    assert spread([(10, 0, 3), (10, 0, 3), (10, 0, 3)], 0, 100) == [10, 16, 4]
    assert spread([(10, 0, 3), (10, 0, 3), (10, 0, 3)], 5, 100) == [10, 16, 22]
    assert spread([(10, 0, 3), (10, 8, 3)], 0, 100) == [10, 10]
    crowded = spread([(50, 0, 3)] * 30, 0, 100, reach=9)
    assert len(crowded) == 30 and all(41 <= x <= 59 for x in crowded)


def test_enable_is_for_notebooks_and_offline():
    before = alt.theme.active, alt.renderers.active
    try:
        charts.enable()
        assert alt.theme.active == "paper" and alt.renderers.active == "svg"
        assert "font" not in alt.theme.get()()["config"]
    finally:
        alt.theme.enable(before[0])
        alt.renderers.enable(before[1])
