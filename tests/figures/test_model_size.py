"""The figure of return and step time against the model's size: which rows are drawn, and that they are."""

import pytest

from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import write_table
from tests.figures.test_charts import load_figure, pdf_text

model_size = load_figure("model_size")
ARMS = ("teacher", "policy", "64×2+two-tower-6")


def rows(cell: str, arms=ARMS, timed=True) -> list[dict]:
    task, size, seed = cell.rsplit("-", 2)
    return [
        {"cell": cell, "task": task, "size": size, "teacher_seed": int(seed), "arm": arm, "return_mean": 900.0 + i}
        | {"return_low": 890.0, "return_high": 930.0, "step_ms": 0.5 * 10**i if timed else None}
        for i, arm in enumerate(arms)
    ]


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return lambda *cells: write_table(paths.results("smoke") / "horizon" / "summary.csv", sum(cells, []))


def test_tasks_with_several_sizes_and_the_arms_that_all_of_them_have(home):
    home(
        rows("walker-walk-1m-1"), rows("walker-walk-5m-1", ARMS[:2]), rows("walker-walk-1m-2"), rows("cup-catch-1m-1"),
        [row | {"cell": "official-walker-walk-3", "teacher_seed": 0} for row in rows("walker-walk-5m-3")],
    )  # fmt: skip
    table = model_size.read("smoke")
    assert set(table["cell"]) == {"walker-walk-1m-1", "walker-walk-5m-1"} and set(table["arm"]) == {"teacher", "policy"}
    moves = table.groupby("size")["move"].unique()
    assert moves["1m"] == -moves["5m"] == pytest.approx(-0.15)  # the smaller one above, within its own half of the row


def test_with_one_size_of_each_task_all_are_drawn(home):
    home(rows("walker-walk-1m-1"), rows("cup-catch-1m-1"))
    table = model_size.read("smoke")
    assert table["task"].nunique() == 2 and table["move"].eq(0).all()


@pytest.mark.parametrize("timed", [True, False])
def test_it_is_drawn_with_a_panel_of_times_where_they_were_measured(home, timed):
    home(*(rows(f"walker-walk-{size}-1", timed=timed) for size in ("1m", "5m", "317m")))
    model_size.main(["--profile", "smoke"])
    text = pdf_text(paths.figures("smoke") / "model_size.pdf")
    assert all(f"{size} model" in text for size in ("1m", "5m", "317m")) and "19m" not in text
    assert all(arm in text for arm in ARMS) and "Return per episode" in text
    assert ("Control step (ms, log)" in text) == timed


def test_teachers_from_elsewhere_alone_are_a_sentence(home):
    home([row | {"cell": "official-walker-walk-3"} for row in rows("walker-walk-5m-3")])
    with pytest.raises(ResultError, match="has no arm of a teacher named <task>-<size>-<seed>"):
        model_size.read("smoke")
