"""Changed worlds: shares and differences by hand, the gravest world of a kind, and what cannot be compared."""

import numpy as np
import pandas as pd
import pytest

from lib.study.stats.changed import counted, summarise
from lib.study.stats.intervals import StatisticsError, kept_return, paired_difference

# (arm, perturbation, severity) → returns of three episodes
RETURNS = {
    ("planner", "none", None): [100, 110, 90],
    ("clone", "none", None): [98, 112, 90],
    ("planner", "gain", 0.8): [90, 95, 85],
    ("clone", "gain", 0.8): [80, 70, 75],
    ("planner", "gain", 0.6): [70, 60, 65],
    ("clone", "gain", 0.6): [30, 20, 40],
    ("planner", "push", 0.1): [95, 96, 97],
    ("clone", "push", 0.1): [95, 97, 99],
    ("planner", "push", 0.05): [99, 96, 97],
    ("clone", "push", 0.05): [95, 97, 93],
    ("planner", "mass", 2.0): [50, 55, 60],
    ("clone", "mass", 2.0): [60, 66, 72],
}


def episodes(returns=RETURNS):
    rows = [
        {"arm": arm, "perturbation": kind, "severity": severity, "episode_seed": seed, "return": float(value)}
        | {"planner_calls": 5 * (arm == "planner"), "length": 5}
        for (arm, kind, severity), values in returns.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)  # tables are in no order that counts


def test_every_row_against_what_it_is_of():
    table = summarise("a-1m-1", episodes(), "planner")
    assert len(table) == len(RETURNS) and set(table["cell"]) == {"a-1m-1"} and set(table["episodes"]) == {3}
    assert set(table["reference"]) == {"planner"}
    assert table["perturbation"].drop_duplicates().tolist() == ["none", "mass", "gain", "push"]
    for (arm, kind, severity), returns in RETURNS.items():
        same = table["severity"].isna() if severity is None else table["severity"] == severity
        (row,) = table[(table["arm"] == arm) & (table["perturbation"] == kind) & same].to_dict("records")
        own, there = RETURNS[arm, "none", None], RETURNS["planner", kind, severity]
        assert row["return"] == pytest.approx(np.mean(returns))
        for name, wanted in {
            "kept": kept_return(returns, own),
            "of_planner": kept_return(returns, there),
            "difference": paired_difference(returns, there),
        }.items():
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(wanted)), (arm, name)
        assert row["calls"] == (arm == "planner") and row["gravest"] == (severity in (2.0, 0.6, 0.1))


def test_worlds_are_counted_by_their_intervals():
    table = pd.concat([summarise(f"{cell}-1m-1", episodes(), "planner") for cell in "ab"])
    planner, clone = (
        counted(table).set_index(["cell", "arm"]).loc["b-1m-1"].loc[["planner", "clone"]].to_dict("records")
    )
    assert planner == {"worlds": 5, "below": 0, "above": 0, "of_planner": 1.0, "least": 1.0, "calls": 1.0}
    # Every episode is worse with weaker actuators, and better with the heavier body; pushes have both.
    assert (clone["worlds"], clone["below"], clone["above"]) == (5, 2, 1)
    shares = [225 / 270, 90 / 195, 291 / 288, 285 / 292, 198 / 165]
    assert clone["of_planner"] == pytest.approx(np.mean(shares)) and clone["least"] == pytest.approx(90 / 195)
    assert clone["calls"] == 0
    asked = table.assign(calls=np.where(table["perturbation"] == "push", 0.5, 0.25))  # two worlds of five are pushes
    assert counted(asked)["calls"].tolist() == pytest.approx([0.35] * 4)


@pytest.mark.parametrize("lacking", [("planner", "push", 0.1), ("clone", "none", None)])
def test_what_cannot_be_compared_is_refused(lacking):
    some = {key: values for key, values in RETURNS.items() if key != lacking}
    where = "of planner, beside which it stands" if lacking[0] == "planner" else "in the teacher's world"
    with pytest.raises(StatisticsError, match=f"a-1m-1: .* of clone in the world .*, but the table has none {where}"):
        summarise("a-1m-1", episodes(some), "planner")
    fewer = RETURNS | {lacking: RETURNS[lacking][:2]}
    with pytest.raises(StatisticsError, match="but the table has other ones .*; play the cell again"):
        summarise("a-1m-1", episodes(fewer), "planner")
