"""The figures of deadlines: lines are of the computers and the delays of the table, names keep apart, all is drawn."""

import numpy as np
import pandas as pd
import pytest

from figures import charts
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import write_table
from lib.study.stats.deadlines import summarise
from tests.figures.test_charts import load_figure, pdf_text
from tests.study.stats.test_deadlines import FOUR, PERIOD, RETURNS, TWO, tables

deadlines = load_figure("deadlines")
ARMS = sorted({arm for arm, *_ in RETURNS})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """write(*cells) writes the summary of these cells."""
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())

    def write(*cells, returns=RETURNS):
        found = [summarise(cell, *tables(returns), PERIOD) for cell in cells]
        write_table(paths.results("smoke") / "deadlines" / "summary.csv", pd.concat(found))
        return deadlines.read("smoke")

    return write


def test_each_arm_stands_at_the_computers_that_have_its_delays(home):
    marks = deadlines.slower(home("walker-run-1m-1"))
    of = {key: mine[["begin", "x", "kept"]].to_numpy().tolist() for key, mine in marks.groupby(["arm", "planner"])}
    assert of["async", "64×2"] == [[1, 5, 0.96], [5, TWO, 0.96], [TWO, FOUR, 0.55]]
    assert of["late", "64×2"] == [[1, 5, 0.96], [5, 10, 0.25]]
    assert of["policy", "64×2"] == of["policy", "128×2"] == [[1, 100, 0.5]]  # beside every planner, to the axis' end
    fast = {"128×2": 0.5}  # a planner too slow for this core: it begins late
    episodes, steps = tables()
    steps["p95_ms"] = steps["p95_ms"].where(
        ~steps["part"].eq("solve") | steps["planner"].ne("128×2"), PERIOD / fast["128×2"]
    )
    table = summarise("a-1m-1", episodes, steps, PERIOD)
    marks = deadlines.slower(table)
    assert marks.loc[marks["planner"].eq("128×2") & marks["planned"], ["arm", "begin", "x"]].to_numpy().tolist() == [
        ["async+two-tower", 1, 200 / 104]
    ]


def test_every_line_begins_without_delay(home):
    marks = deadlines.delayed(home("walker-run-1m-1"))
    for (arm, planner), mine in marks.groupby(["arm", "planner"]):
        mine = mine.sort_values("delay")
        if arm in ("policy", "distilled"):
            assert mine["kept"].nunique() == 1 and mine["x"].tolist() == [0, 4] and not mine["planned"].any()
        else:
            assert mine["kept"].iloc[0] == {"64×2": 0.96, "128×2": 1.0}[planner] and mine["x"].iloc[0] == 0
            np.testing.assert_allclose(mine["x"], mine["delay"].astype(float), atol=0.4)
    at = marks[marks["delay"].eq(2) & marks["planned"]]
    assert at["x"].nunique() == len(at[["arm"]].drop_duplicates())  # marks of different arms are beside each other


def test_names_are_a_line_apart_and_on_the_panel():
    line, height = deadlines.LINE, deadlines.HEIGHT
    for given in ([0, 0, 0, 50], [height] * 9, [3, 5, height - 1, height], [10.0]):
        placed = deadlines.apart(given)
        assert (np.diff(placed) >= line - 1e-9).all() and placed[-1] <= height + 1e-9
    assert deadlines.apart([10, 40, 90]) == [10, 40, 90]


def test_an_arm_has_one_look_though_a_cell_lacks_another(home):
    """Scales are shared between panels: a cell that lacks arms would else hand its looks on to others."""
    few = {key: value for key, value in RETURNS.items() if key[0] not in ("policy", "late")}
    tables_of = [summarise(cell, *tables(returns), PERIOD) for cell, returns in (("a-1m-1", few), ("b-1m-1", RETURNS))]
    looks = set()

    def gathered(spec):
        if isinstance(spec, dict):
            for name in ("color", "shape"):
                if isinstance(scale := spec.get(name, {}), dict) and "range" in scale.get("scale", {}):
                    looks.add((name, *scale["scale"]["domain"], *scale["scale"]["range"]))
        for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
            gathered(part)

    gathered(deadlines.drawings(pd.concat(tables_of))["deadlines-delay"].to_dict())
    assert len(looks) == 2


def test_all_that_is_drawn_can_be_read(home, capsys):
    home("walker-run-1m-1", "cheetah-run-1m-1")
    deadlines.main(["--profile", "smoke"])
    for name, title in (("deadlines", deadlines.SLOWER), ("deadlines-delay", deadlines.DELAY)):
        words = pdf_text(paths.figures("smoke") / f"{name}.pdf")
        arms = ARMS if name == "deadlines-delay" else {*ARMS} & {deadlines.EVERY_STEP, *deadlines.MAIN}
        assert len(arms) > 2
        if name == "deadlines":  # in the words of the text; the other figure has the names of its tables
            arms = [charts.words("teacher" if arm == deadlines.EVERY_STEP else arm) for arm in arms]
        for text in (*arms, "64×2", "128×2", title, deadlines.KEPT, "cheetah-run (1m)"):
            assert text in words, (name, text)
    home(*(f"walker-run-1m-{seed}" for seed in range(1, 7)))
    deadlines.main(["--profile", "smoke"])
    assert "deadlines: a page does not hold all cells; left out: walker-run-1m-5, wa" in capsys.readouterr().err


def test_a_cell_whose_steps_were_not_timed_has_no_line_over_computers(home):
    episodes, steps = tables()
    table = summarise("a-1m-1", episodes, steps.iloc[:0], PERIOD)
    assert deadlines.slower(table).empty
    write_table(paths.results("smoke") / "deadlines" / "summary.csv", table)
    deadlines.main(["--profile", "smoke"])
    assert "async+two-tower" in pdf_text(paths.figures("smoke") / "deadlines-delay.pdf")


def test_without_results_it_says_how_to_make_them(home):
    with pytest.raises(ResultError, match="summary.csv does not exist; run `make all"):
        deadlines.main(["--profile", "smoke"])


def test_cells_with_one_planner_stand_two_beside_each_other(home, capsys):
    returns = {key: value for key, value in RETURNS.items() if key[1] in ("64×2", None)}
    assert deadlines.side_by_side(home("walker-run-1m-1", returns=returns)) == 1
    table = home(*(f"walker-run-1m-{seed}" for seed in range(1, 7)), returns=returns)
    assert deadlines.side_by_side(table) == 2
    for chart in deadlines.drawings(table).values():
        assert chart.columns == 2 and len(chart.concat) == 6
        assert all(one.title.text.endswith(", 64×2") for one in chart.concat)
    assert not capsys.readouterr().err  # none is left out
