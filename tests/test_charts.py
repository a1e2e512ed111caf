"""Charts: text that survives into the PDF, labels that do not collide, files that are the same twice."""

import importlib.util
import itertools
import struct

import altair as alt
import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader

from lib import charts, paths
from lib.charts import FAMILIES, Box, family, place_labels
from lib.results import write_table


def load_figure(name: str):
    """A script of figures/ as a module."""
    spec = importlib.util.spec_from_file_location(name, paths.FIGURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pareto = load_figure("pareto")
planner = load_figure("planner")

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
