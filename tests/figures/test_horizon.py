"""The figure of return kept against the execution horizon: what is drawn is what the table says."""

import struct

import pytest

from figures import charts
from lib.records import paths
from lib.records.store import write_table
from tests.figures.test_charts import load_figure, pdf_text
from tests.tiny_results import about

horizon = load_figure("horizon")
ARMS = ["teacher", "policy", "budget-64×2", "budget-128×2", "open-loop-2", "open-loop-6", "two-tower-6"]
ARMS += ["64×2+open-loop-3", "64×2+two-tower-3"]
STEPS = [1, 2, 3, 6]


def table(cell="walker-walk-1m-1", arms=ARMS) -> list[dict]:
    rows = []
    for i, arm in enumerate(map(about, arms)):
        kept, calls = 1 - 0.01 * i, 0 if arm["arm"] == "policy" else 500 / arm["execution_horizon"]
        gain = (
            {"gain": 10.0 + i, "gain_low": 9.0, "gain_high": 30.0} if arm["scheme"] == "two-tower" else {"gain": None}
        )
        ends = {"kept": kept, "kept_low": kept - 0.02, "kept_high": kept + 0.02}
        rows.append({"cell": cell, "planner_calls": calls, "episodes": 10} | arm | ends | gain)
    return rows


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return lambda rows: write_table(paths.results("smoke") / "horizon" / "summary.csv", rows)


def test_lines_start_at_the_planner_that_is_asked_at_every_step(home):
    home(table())
    arms = horizon.read("smoke")
    assert "policy" not in set(arms["arm"])  # which has no plan to execute
    standard, small = horizon.along(arms, False, STEPS), horizon.along(arms, True, STEPS)
    assert set(standard["arm"]) == {"teacher", "open-loop-2", "open-loop-6", "two-tower-6"}
    assert set(small["arm"]) == {"budget-64×2", "64×2+open-loop-3", "64×2+two-tower-3"}  # not the other budget
    lines = standard.groupby("line")["arm"].apply(list).to_dict()
    assert lines == {" open loop": ["teacher", "open-loop-2", "open-loop-6"]}  # of a single horizon there is no line
    assert small["line"].isna().all()
    two = table(arms=[*ARMS, "64×2+open-loop-6", "128×2+open-loop-3", "128×2+open-loop-6"])
    home(two)
    lines = horizon.along(horizon.read("smoke"), True, STEPS).groupby("line")["arm"].first().to_dict()
    assert lines == {"64×2 open loop": "budget-64×2", "128×2 open loop": "budget-128×2"}


def test_marks_stand_beside_each_other_near_their_horizon(home):
    home(table())
    rows = horizon.along(horizon.read("smoke"), False, STEPS).drop_duplicates("arm").set_index("arm")
    assert all(abs(row["at"] - STEPS.index(row["execution_horizon"])) < 0.5 for _, row in rows.iterrows())
    assert rows["at"]["teacher"] == 0 and rows["at"]["open-loop-6"] != rows["at"]["two-tower-6"]
    assert rows.loc["open-loop-6", "kept"] == pytest.approx(95)


def test_it_is_drawn_with_axes_that_hold_every_interval(home):
    home(table() + table("cartpole-swingup-1m-1"))
    horizon.main(["--profile", "smoke"])
    text = pdf_text(paths.figures("smoke") / "horizon.pdf")
    words = (horizon.X_TITLE, horizon.Y_TITLE, horizon.GAIN_TITLE, *horizon.PLANNERS.values())
    for word in (*words, "cartpole-swingup (1m)", "two-tower-3", "two-tower-6"):
        assert word in text, word
    chart = horizon.draw(horizon.read("smoke")).to_dict()
    domains = {
        tuple(layer["encoding"]["y"]["scale"]["domain"])
        for row in chart["vconcat"] for panel in row["hconcat"][:2] for layer in panel["layer"]
        if "y" in layer["encoding"]
    }  # fmt: skip
    kept = [100 * r[end] for r in table() for end in ("kept_low", "kept_high") if r["arm"] != "policy"]
    ((low, high),) = domains
    assert low < min(kept[:4] + kept[-10:]) and high > max(kept)


def drawn(chart, small: bool) -> dict[str, list[dict]]:
    """What the layers of the panel of one planner draw of a single cell, by shape or kind of mark."""
    panel = chart["vconcat"][0]["hconcat"][small]
    rows = {}
    for layer in panel["layer"]:
        mark = layer["mark"]
        name = "arrow" if mark.get("shape") == charts.CUT else mark["type"]
        rows[name] = chart["datasets"][layer["data"]["name"]]
    return rows


def test_what_lies_below_the_axis_stands_at_its_end_over_an_arrow(home):
    rows = table()
    low = next(row for row in rows if row["arm"] == "open-loop-6")
    low |= {"kept": 0.3, "kept_low": 0.2, "kept_high": 0.4}
    cut = next(row for row in rows if row["arm"] == "two-tower-6")
    cut["kept_low"] = 0.1
    home(rows)
    chart = horizon.draw(horizon.read("smoke")).to_dict()
    marks = {row["arm"]: row for row in drawn(chart, False)["arrow"]}
    assert {arm for arm, row in marks.items() if row["below"]} == {"open-loop-6", "two-tower-6"}
    assert marks["open-loop-6"]["kept"] == marks["two-tower-6"]["kept_low"] == horizon.LEAST
    assert marks["two-tower-6"]["kept"] == pytest.approx(94)
    scale = chart["vconcat"][0]["hconcat"][0]["layer"][0]["encoding"]["y"]["scale"]
    assert scale["type"] == "linear" and horizon.LEAST - 10 < scale["domain"][0] < horizon.LEAST


def test_names_of_schemes_keep_apart(home):
    many = [f"{scheme}-{steps}" for scheme in ("two-tower", "temporal", "gated", "ladder") for steps in range(2, 9)]
    home([row | {"gain": 1.0} for row in table(arms=["teacher", *many])])
    (row,) = horizon.draw(horizon.read("smoke")).to_dict()["vconcat"]
    assert row["hconcat"][-1]["height"] >= horizon.NAME_LINE * len(many) > horizon.HEIGHT


def test_many_cells_have_two_figures_that_each_fit_a_page(home, capsys):
    names = [f"cell-{letter}-1m-1" for letter in "abcdefg"]
    home(sum((table(name) for name in names), []))
    found = horizon.drawings(horizon.read("smoke"))
    for (stem, chart), shown, highest in zip(found.items(), (names[:3], names[3:]), (7.2, 8.8), strict=True):
        charts.save(chart, paths.FIGURES / stem)
        text = pdf_text(paths.FIGURES / f"{stem}.pdf")
        assert [name for name in names if name.replace("-1m-1", " (1m)") in text] == shown
        _, height = struct.unpack(">II", (paths.FIGURES / f"{stem}.png").read_bytes()[16:24])
        assert height / charts.PNG_PPI < highest
    assert list(found) == ["horizon", "horizon-cells"] and not capsys.readouterr().err
    home(sum((table(name) for name in [*names, "cell-h-1m-1"]), []))
    horizon.drawings(horizon.read("smoke"))
    assert "horizon-cells: a page does not hold all cells; left out: cell-h-1m-1" in capsys.readouterr().err
    home(sum((table(name) for name in names[:3]), []))
    assert list(horizon.drawings(horizon.read("smoke"))) == ["horizon"]


def test_a_cell_has_rows_for_the_arms_that_it_played_alone(home):
    home(table() + table("cup-catch-1m-1", arms=["teacher", "open-loop-3", "two-tower-3"]))
    rows = horizon.draw(horizon.read("smoke")).to_dict()["vconcat"]
    found = [row["hconcat"][-1]["layer"][1]["encoding"]["y"]["scale"]["domain"] for row in rows]
    assert set(found[0]) == {"two-tower-3", "two-tower-6"} and found[1] == ["two-tower-3"]


def test_without_a_smaller_planner_or_a_gain_there_are_fewer_panels(home):
    for arms in (["teacher", "open-loop-3", "hold-last-3"], ["teacher", "budget-64×2", "policy"]):
        home(table(arms=arms))
        (row,) = horizon.draw(horizon.read("smoke")).to_dict()["vconcat"]
        assert len(row["hconcat"]) == 1 and row["hconcat"][0]["width"] > 300
