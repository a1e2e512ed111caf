"""The pick of one configuration: by hand on small tables, and played on the calibration's start states."""

import numpy as np
import pandas as pd
import pytest

from lib.config import ConfigError, PlannerConfig
from lib.profiles import episode_seeds
from lib.selection import COLUMNS, pick, try_out


def cell(**arms):
    """Two episodes of each arm; arms: name → (return, evaluations) as parts of the teacher's 900 and 1000."""
    rows = []
    for name, (kept, spent) in ({"teacher": (1, 1)} | arms).items():
        for seed, offset in enumerate((-10, 10)):
            rows.append([name, seed, 900 * kept + offset, 500 * spent, 1000 * spent])
    return pd.DataFrame(rows, columns=COLUMNS)


def chosen(*cells):
    table = pick({f"cell-{i}": rows for i, rows in enumerate(cells)})
    (name,) = table.loc[table["chosen"], "arm"].unique()
    return name


def test_the_cheapest_that_keeps_enough_everywhere():
    one = cell(a=(0.99, 0.3), b=(0.985, 0.1), c=(0.97, 0.01))
    assert chosen(one) == "b"
    assert chosen(one, cell(a=(0.99, 0.3), b=(0.9, 0.1), c=(1.0, 0.01))) == "a"
    # Cheapest on average: b costs less on one cell and far more on the other.
    assert chosen(one, cell(a=(0.99, 0.3), b=(0.99, 0.9), c=(1.0, 0.01))) == "a"


def test_without_one_that_keeps_enough_the_best_on_its_worst_cell():
    assert chosen(cell(a=(0.9, 0.1), b=(0.95, 0.5)), cell(a=(1.0, 0.1), b=(0.93, 0.5))) == "b"


def test_numbers_are_parts_of_the_teachers_and_only_shared_arms_count():
    table = pick({"x": cell(a=(0.99, 0.25), b=(1.0, 0.01)), "y": cell(a=(0.98, 0.5))})
    assert table["arm"].tolist() == ["a", "a"] and table["cell"].tolist() == ["x", "y"]
    assert table[["kept", "calls_kept", "evaluations_kept"]].to_numpy() == pytest.approx(
        np.array([[0.99, 0.25, 0.25], [0.98, 0.5, 0.5]])
    )
    assert table["chosen"].all() and table["episodes"].eq(2).all()


def test_a_fixed_one_stays_whatever_the_rule_would_pick():
    cells = {"x": cell(**{"64×2+a-6": (0.99, 0.3), "b": (0.985, 0.1)})}
    table = pick(cells, fixed="64x2+a-6").set_index("arm")
    assert table["chosen"].to_dict() == {"64×2+a-6": True, "b": False}
    assert table["picked"].to_dict() == {"64×2+a-6": False, "b": True}
    assert (free := pick(cells))["picked"].equals(free["chosen"])
    with pytest.raises(ConfigError, match="c, the one configuration, was not tried out on every cell"):
        pick(cells, fixed="c")


def test_no_candidate_is_an_error():
    for cells in ({}, {"x": cell()}, {"x": cell(a=(1, 1)), "y": cell(b=(1, 1))}):
        with pytest.raises(ConfigError, match="no arm was tried out"):
            pick(cells)


class Recorder:
    """A stage that only notes what it is asked to play."""

    def __init__(self):
        self.cell = type("Cell", (), {"seed": 3})
        self.asked = []

    def play(self, arm, seeds):
        self.asked.append((arm.name, seeds))
        rows = [dict(zip(COLUMNS[1:], (seed, 1.0, 2, 3), strict=True)) for seed in seeds]
        return type("Tables", (), {"episodes": rows}), "key"


def test_all_play_the_calibrations_start_states():
    stage = Recorder()
    table = try_out(stage, ["64x2+two-tower-3", "policy"], PlannerConfig.budget(16, 1), {}, episodes=2)
    seeds = episode_seeds("calibrate", 2, seed=3)
    assert stage.asked == [(name, seeds) for name in ("teacher", "64×2+two-tower-3", "policy")]
    assert table.columns.tolist() == COLUMNS and len(table) == 6
    assert try_out(stage, [], PlannerConfig.budget(16, 1), {}, 2).empty and len(stage.asked) == 3
