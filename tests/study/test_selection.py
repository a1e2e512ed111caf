"""The pick of one configuration: by hand on small tables, and played on the calibration's start states."""

import numpy as np
import pandas as pd
import pytest

from lib.config import ConfigError, PlannerConfig
from lib.records.seeds import episode_seeds
from lib.study.selection import pick
from lib.study.stats.comparisons import non_inferiority
from lib.study.trials import COLUMNS, try_out


def cell(episodes=8, **arms):
    """Episodes of each arm; arms: name → (return, evaluations) as parts of the teacher's 900 and 1000, and, where the
    arm's return is not the teacher's times a number, by how much it goes up and down beside that."""
    rows = []
    for name, (kept, spent, *swing) in ({"teacher": (1, 1)} | arms).items():
        for seed in range(episodes):
            offset = (-1) ** seed * (10 + sum(swing))
            rows.append([name, seed, 900 * kept + offset, 500 * spent, 1000 * spent])
    return pd.DataFrame(rows, columns=COLUMNS)


def chosen(*cells):
    table = pick({f"cell-{i}": rows for i, rows in enumerate(cells)}, resamples=2000)
    (name,) = table.loc[table["chosen"], "arm"].unique()
    return name


def test_the_cheapest_that_is_non_inferior_everywhere():
    one = cell(a=(0.99, 0.3), b=(0.985, 0.1), c=(0.97, 0.01))
    assert chosen(one) == "b"
    assert chosen(one, cell(a=(0.99, 0.3), b=(0.9, 0.1), c=(1.0, 0.01))) == "a"
    # Cheapest on average: b costs less on one cell and far more on the other.
    assert chosen(one, cell(a=(0.99, 0.3), b=(0.99, 0.9), c=(1.0, 0.01))) == "a"


def test_a_mean_that_may_be_luck_does_not_do():
    rows = cell(a=(0.985, 0.3), b=(0.985, 0.1, 200))
    assert chosen(rows) == "a"
    table = pick({"x": rows}, resamples=2000).set_index("arm")
    assert table["kept"].to_dict() == pytest.approx({"a": 0.985, "b": 0.985})
    returns = rows.pivot(index="episode_seed", columns="arm", values="return")
    for arm, p in table["p_non_inferior"].items():
        assert p == non_inferiority(returns[arm], returns["teacher"], 0.02, resamples=2000)
    assert table["p_non_inferior"]["a"] < 0.05 < table["p_non_inferior"]["b"]


def test_without_one_that_keeps_enough_the_best_on_its_worst_cell():
    assert chosen(cell(a=(0.9, 0.1), b=(0.95, 0.5)), cell(a=(1.0, 0.1), b=(0.93, 0.5))) == "b"
    assert chosen(cell(1, a=(1.0, 0.1), b=(1.01, 0.5))) == "b"  # one episode shows nothing


def test_numbers_are_parts_of_the_teachers_and_only_shared_arms_count():
    table = pick({"x": cell(a=(0.99, 0.25), b=(1.0, 0.01)), "y": cell(a=(0.98, 0.5))})
    assert table["arm"].tolist() == ["a", "a"] and table["cell"].tolist() == ["x", "y"]
    parts = table[["kept", "calls_kept", "evaluations_kept"]].to_numpy()
    assert parts == pytest.approx(np.array([[0.99, 0.25, 0.25], [0.98, 0.5, 0.5]]))
    assert table["chosen"].all() and table["episodes"].eq(8).all()


def test_a_fixed_one_stays_whatever_the_rule_would_pick():
    cells = {"x": cell(**{"64×2+a-6": (0.99, 0.3), "b": (0.985, 0.1), "64×2+c-6": (0.99, 0.2)})}
    table = pick(cells, fixed="64x2+a-6", earlier="64x2+c-6").set_index("arm")
    for column, arm in (("chosen", "64×2+a-6"), ("picked", "b"), ("earlier", "64×2+c-6")):
        assert table.index[table[column]].tolist() == [arm]
    assert (free := pick(cells))["picked"].equals(free["chosen"]) and not free["earlier"].any()
    with pytest.raises(ConfigError, match="c, the one configuration, was not tried out on every cell"):
        pick(cells, fixed="c")


@pytest.mark.parametrize("cells", [{}, {"x": cell()}, {"x": cell(a=(1, 1)), "y": cell(b=(1, 1))}])
def test_no_candidate_is_an_error(cells):
    with pytest.raises(ConfigError, match="no arm was tried out"):
        pick(cells)


class Recorder:
    """A stage that only notes what it is asked to play."""

    def __init__(self):
        self.cell, self.profile = type("Cell", (), {"seed": 3}), "nowhere"
        self.asked = []

    def play(self, arm, seeds):
        self.asked.append((arm.name, seeds))
        rows = [dict(zip(COLUMNS[1:], (seed, 1.0, 2, 3), strict=True)) for seed in seeds]
        return type("Tables", (), {"episodes": rows}), "key"


def test_all_play_the_calibrations_start_states():
    stage, planner = Recorder(), PlannerConfig.budget(16, 1)
    table = try_out(stage, ["64x2+two-tower-3", "policy"], planner, {}, episodes=2)
    seeds = episode_seeds("calibrate", 2, seed=3)
    assert stage.asked == [(name, seeds) for name in ("teacher", "64×2+two-tower-3", "policy")]
    assert table.columns.tolist() == COLUMNS and len(table) == 6
    for arms, count in (([], 2), (["policy"], 0)):
        assert try_out(stage, arms, planner, {}, count).empty and len(stage.asked) == 3
