"""Charts: text that survives into the PDF, labels that do not collide, files that are the same twice."""

import importlib.util
import itertools
import struct
from collections import Counter

import altair as alt
import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader

from lib import charts, paths
from lib.charts import FAMILIES, Box, family, place_labels
from lib.results import ResultError, write_table


def load_figure(name: str):
    """A script of figures/ as a module."""
    spec = importlib.util.spec_from_file_location(name, paths.FIGURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pareto = load_figure("pareto")
planner = load_figure("planner")
teachers = load_figure("teachers")

# name: (execution horizon, planner calls, kept)
ARMS = {
    "teacher": (1, 500, 1.0),
    "policy": (1, 0, 0.42),
    "open-loop-3": (3, 167, 0.82),
    "two-tower-3": (3, 167, 0.92),
    "temporal-3": (3, 167, 0.93),
    "open-loop-6": (6, 84, 0.55),
    "two-tower-6": (6, 84, 0.62),
    "gated-two-tower-6": (6, 210, 0.96),
}


def summary(arms=ARMS, task="walker-walk", teacher_seed=1, half=0.02) -> pd.DataFrame:
    rows = [
        dict(task=task, size="1m", teacher_seed=teacher_seed, arm=arm, execution_horizon=e, planner_calls=calls,
             kept=kept, kept_low=kept - half * (arm != "teacher"), kept_high=kept + half * (arm != "teacher"))
        for arm, (e, calls, kept) in arms.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def pdf_text(path) -> str:
    return " ".join("\n".join(page.extract_text() for page in PdfReader(path).pages).split())


def test_families_are_told_apart_by_colour_and_shape():
    looks = [(f.colour, f.shape) for f in FAMILIES.values()]
    assert len(set(looks)) == len(looks)
    assert family("two-tower-3") is FAMILIES["two-tower"]
    assert family("right-sized + two-tower-3") is FAMILIES["right-sized"]
    assert family("something-new") is charts.OTHER


def test_figure_writes_three_files_with_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    write_table(paths.results("smoke") / "horizon" / "summary.csv", summary())
    pareto.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == ["pareto.pdf", "pareto.png", "pareto.svg"]
    text = pdf_text(folder / "pareto.pdf")
    for words in ("Planner calls per episode", "Return kept (% of teacher)", *ARMS):
        assert words in text
    width, height = struct.unpack(">II", (folder / "pareto.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(3.3, abs=0.1) and charts.PNG_PPI >= 200


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
    rules = [(tmp_path / f"{name}.svg").read_text().count('"rule mark"') for name in ("one", "ten")]
    assert rules == [0, 1]


def test_svg_is_the_same_twice(tmp_path):
    for stem in ("a", "b"):
        charts.save(pareto.draw(summary()), tmp_path / stem)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_several_cells_become_panels_named_by_what_differs(tmp_path):
    tables = pd.concat([summary(), summary(task="cup-catch")])
    charts.save(pareto.draw(tables), tmp_path / "two")
    text = pdf_text(tmp_path / "two.pdf")
    assert "walker-walk, 1m" in text and "cup-catch, 1m" in text and "seed" not in text
    charts.save(pareto.draw(pd.concat([tables, summary(teacher_seed=2)])), tmp_path / "three")
    assert "walker-walk, 1m, seed 2" in pdf_text(tmp_path / "three.pdf")


def test_missing_intervals_leave_the_point(tmp_path):
    table = summary({k: ARMS[k] for k in ("teacher", "policy")}).assign(kept_low=np.nan, kept_high=np.nan)
    charts.save(pareto.draw(table), tmp_path / "one")
    assert "policy" in pdf_text(tmp_path / "one.pdf")


def test_axes_start_at_zero_and_hold_everything():
    table = summary({**ARMS, "better": (1, 700, 1.3)})
    (left, right), (bottom, top) = pareto.domains(table)
    assert left < 0 < 700 < right and bottom == 0 and top > 132


@pytest.mark.parametrize("seed", range(8))
def test_labels_do_not_collide(seed):
    rng = np.random.default_rng(seed)
    names = list(ARMS)
    calls = rng.choice([0, 84, 125, 167, 210, 500], size=len(names))
    kept = rng.uniform(0.4, 1.05, size=len(names))
    points = pareto.place(summary({n: (3, int(c), k) for n, c, k in zip(names, calls, kept, strict=True)}, half=0.0))
    x_domain, y_domain = pareto.domains(pd.DataFrame({"planner_calls": calls, "kept": kept, "kept_high": kept}))
    boxes = []
    for p in points.itertuples():
        x = (p.label_x - x_domain[0]) / (x_domain[1] - x_domain[0]) * pareto.WIDTH
        y = pareto.HEIGHT * (1 - p.label_y / y_domain[1])
        boxes.append(charts.Label(p.arm, x, y, p.align, (x, y)).box)
    frame = Box(0, 0, pareto.WIDTH, pareto.HEIGHT)
    assert max(box.outside(frame) for box in boxes) < 1e-6
    assert max(a.overlap(b) for a, b in itertools.combinations(boxes, 2)) < 1e-6


def test_points_move_apart_only_where_they_would_cover_each_other():
    points = pareto.place(summary()).set_index("arm")
    assert points.loc["open-loop-3", "x"] == pytest.approx(167)
    assert points.loc["two-tower-3", "x"] == pytest.approx(167)
    assert 140 < points.loc["temporal-3", "x"] < 160  # one percent above the two-tower arm
    assert points.loc["temporal-3", "align"] == "right" and points.loc["two-tower-3", "align"] == "left"


def test_too_many_labels_are_placed_all_the_same():
    points = [(f"a long label {i}", 50.0, 50.0, "right") for i in range(40)]
    labels = place_labels(points, Box(0, 0, 100, 100), taken=[])
    assert [label.text for label in labels] == [p[0] for p in points]


def test_enable_is_for_notebooks_and_offline():
    before = alt.theme.active, alt.renderers.active
    try:
        charts.enable()
        assert alt.theme.active == "paper" and alt.renderers.active == "svg"
        assert "font" not in alt.theme.get()()["config"]
    finally:
        alt.theme.enable(before[0])
        alt.renderers.enable(before[1])
