"""What is in time on which computer, by hand; summaries against closed forms."""

import math

import numpy as np
import pandas as pd
import pytest

from lib.study.stats.deadlines import computers, delay_on, slowest_keeping, slowest_with, summarise, worlds
from lib.study.stats.intervals import StatisticsError, kept_return, paired_difference

PERIOD = 50.0
SOLVE = {"64×2": 10.0, "128×2": 20.0}
FOREGROUND = {"policy": 0.4, "distilled": 0.5, "late-hold": 0.1, "async": 0.8, "async+two-tower": 1.0}
# The slowest computers of "async" on 64×2 with delays of 2 and 4, and of "async+two-tower" on 128×2: a decision of 50
# ms each, a solve, and a step in the foreground for each decision until the plan arrives.
TWO, FOUR, OTHER_TWO, OTHER_FOUR = 100 / (10 + 2 * 0.8), 200 / (10 + 4 * 0.8), 100 / (20 + 2), 200 / (20 + 4)
# arm, planner, delay → returns of two episodes; without delay 128×2 returns 100 on average, 64×2 96
RETURNS = {
    ("policy", None, None): (40, 60),
    ("distilled", None, None): (97, 99),
    ("every-step", "64×2", 0): (90, 102),
    ("every-step", "128×2", 0): (95, 105),
    ("late", "64×2", 2): (20, 30),
    ("async", "64×2", 1): (10, 10),  # which no computer has
    ("async", "64×2", 2): (94, 98),
    ("async", "64×2", 4): (50, 60),
    ("async+two-tower", "128×2", 2): (99, 99),
    ("async+two-tower", "128×2", 4): (96, 96),
}  # fmt: skip


def tables(returns=RETURNS):
    rows = [
        {"arm": arm, "planner": planner, "delay": delay, "episode_seed": seed, "return": float(value)}
        | {"plan_age": delay, "action_change": 0.1 * (seed + 1), "planner_calls": 10 * seed}
        for (arm, planner, delay), values in returns.items()
        for seed, value in enumerate(values)
    ]
    steps = [
        {"arm": arm, "planner": None, "part": "foreground", "p95_ms": FOREGROUND[arm]}
        for arm in ("policy", "distilled")
    ]
    for planner, solve in SOLVE.items():
        for arm in ("late-hold", "async", "async+two-tower"):
            about = {"arm": arm, "planner": planner}
            steps += [
                about | {"part": "foreground", "p95_ms": FOREGROUND[arm]},
                about | {"part": "solve", "p95_ms": solve},
            ]
    return pd.DataFrame(rows), pd.DataFrame(steps)


def row(table, arm, planner=None, delay=None):
    mine = table[table["arm"] == arm]
    mine = mine[mine["planner"].eq(planner) & mine["delay"].eq(delay)] if planner else mine
    (found,) = mine.to_dict("records")
    return found


def test_a_solve_of_x_periods_is_used_after_as_many_decisions_rounded_up():
    for slower, decisions in {0.1: 0, 1: 0, 5: 0, 5.001: 2, 10: 2, 10.001: 3, 40: 8, 41: 9}.items():
        assert delay_on(slower, 10.0, PERIOD) == decisions  # of 10 ms, where a decision has 50
    for delay in (2, 3, 8):
        end = slowest_with(delay, 10.0, PERIOD)
        assert end == 5 * delay and delay_on(end, 10.0, PERIOD) == delay < delay_on(1.001 * end, 10.0, PERIOD)
    assert (
        slowest_with(0, 10.0, PERIOD) == slowest_with(1, 10.0, PERIOD) == 5
    )  # it is waited for: there is no delay of 1


@pytest.mark.parametrize(
    ("ends", "kept", "last", "found"),
    [
        ([5, 10, 20], [1.0, 0.96, 0.9], 60.0, (10, False)),
        ([5, 10, 20], [1.0, 0.96, 0.95], 60.0, (20, True)),  # longer delays were not played
        ([5, 10, 20], [1.0, 0.96, 0.95], 12.0, (12, False)),  # there the foreground is late
        ([5, 10, 20], [0.9, 1.0, 1.0], 60.0, (0, False)),
        ([5, 10, 20], [1.0, 0.9, 1.0], 60.0, (5, False)),  # what a slower computer keeps is no help to this one
        ([5, 5, 10], [1.0, 0.1, 0.97], 60.0, (10, True)),  # a delay that no computer has
        ([125], [0.99], 125.0, (125, False)),
        ([5], [math.nan], 60.0, (0, False)),
    ],
)
def test_the_slowest_computer_that_keeps_it(ends, kept, last, found):
    assert slowest_keeping(ends, kept, last) == found


def test_without_times_nothing_is_said_of_computers():
    assert math.isnan(slowest_keeping([math.nan], [1.0], 60.0)[0]) and math.isnan(
        slowest_keeping([5.0], [1.0], math.nan)[0]
    )
    episodes, steps = tables()
    for times, period in ((steps.iloc[:0], PERIOD), (steps, math.nan)):
        table = summarise("a-1m-1", episodes, times, period)
        assert table[["slower", "slower_95"]].isna().all(axis=None) and not table["open"].any()
        assert table["kept"].notna().all() and computers(table).empty


def test_every_row_against_what_it_is_of():
    table = summarise("a-1m-1", *tables(), PERIOD)
    assert len(table) == len(RETURNS) and set(table["reference"]) == {"128×2"} and set(table["episodes"]) == {2}
    for (arm, planner, delay), returns in RETURNS.items():
        mine, value = row(table, arm, planner, delay), np.mean(returns)
        assert (mine["return"], mine["kept"]) == pytest.approx((value, value / 100))
        assert (mine["kept_low"], mine["kept_high"]) == kept_return(returns, (95, 105))[1:]
        own = {"64×2": 96, "128×2": 100}.get(planner, math.nan)
        assert mine["kept_own"] == pytest.approx(value / own, nan_ok=True)
        assert (mine["action_change"], mine["planner_calls"]) == pytest.approx((0.15, 5))
        assert mine["plan_age"] == delay or delay is None and math.isnan(mine["plan_age"])


def test_the_slowest_computers_by_hand():
    table = summarise("a-1m-1", *tables(), PERIOD)
    assert row(table, "distilled")["slower_95"] == 100  # 50 ms / 0.5 ms
    assert row(table, "policy")["slower_95"] == 0 and row(table, "policy")["slower"] == 125
    assert row(table, "every-step", "128×2", 0)["slower_95"] == row(table, "every-step", "128×2", 0)["slower"] == 2.5
    assert row(table, "every-step", "64×2", 0)["slower_95"] == 5  # 96 of 100
    assert row(table, "late", "64×2", 2)["slower_95"] == 5 and row(table, "late", "64×2", 2)["slower"] == 10
    assert row(table, "late", "64×2", 2)["foreground_ms"] == 0.1  # as late-hold's
    two = row(table, "async", "64×2", 2)
    assert (two["slower"], two["slower_95"], two["open"]) == (TWO, TWO, False)
    four = row(table, "async+two-tower", "128×2", 4)
    assert (four["slower"], four["slower_95"], four["open"]) == (OTHER_FOUR, OTHER_FOUR, True)
    assert not table.loc[table["arm"] != "async+two-tower", "open"].any()


def test_the_lower_ends_keep_it_on_no_slower_computer():
    table = summarise("cell", *tables(), PERIOD)
    assert (table["slower_95_low"] <= table["slower_95"]).all()
    assert row(table, "async", "64×2", 2)["slower_95_low"] == 0  # with two episodes, which scatter
    steady, steps = tables(
        RETURNS | {("every-step", "128×2", 0): (100, 100), ("async+two-tower", "128×2", 4): (96, 97)}
    )
    found = row(summarise("cell", steady, steps, PERIOD), "async+two-tower", "128×2", 4)
    assert found["slower_95_low"] == found["slower_95"] == OTHER_FOUR


def test_changed_worlds_stand_beside_the_planner_and_the_clone_of_the_same_world():
    returns = {
        ("cloned", None, None): (10, 30),
        ("every-step", "64×2", 0): (100, 200),
        ("async", "64×2", 2): (60, 70),
    }
    heavy, light = tables(returns)[0], tables({key: np.divide(v, 2) for key, v in returns.items()})[0]
    own, rest = heavy.assign(perturbation="none", severity=np.nan), light.assign(perturbation="mass", severity=1.5)
    mixed = [heavy.assign(perturbation="mass", severity=2.0), rest]
    assert worlds("cell", own)["difference"].tolist() == worlds("cell", mixed[0])["difference"].tolist()
    found = worlds("cell", pd.concat(mixed))
    late = found[found["arm"] == "async"].set_index("severity")
    for severity, part in ((2.0, 1), (1.5, 0.5)):
        mine, every, clone = (part * np.array(v, float) for v in ((60, 70), (100, 200), (10, 30)))
        one = late.loc[severity]
        assert one["return"] == mine.mean() and one["delay"] == 2 and one["episodes"] == 2
        assert one[["of_planner", "of_planner_low", "of_planner_high"]].tolist() == list(kept_return(mine, every))
        ends = one[["difference", "difference_low", "difference_high"]].tolist()
        assert ends == list(paired_difference(mine, clone)) and one["above_rival"] == (ends[1] > 0)
    of_clone = found[(found["arm"] == "cloned") & (found["severity"] == 2.0)]
    assert of_clone["of_planner"].tolist() == [20 / 150] and of_clone["difference"].tolist() == [0]
    alone = worlds("cell", heavy[heavy["arm"] != "cloned"].assign(perturbation="push", severity=0.1))
    assert alone["difference"].isna().all() and alone["of_planner"].notna().all()
    with pytest.raises(StatisticsError, match="has episodes twice, or others than what it stands beside"):
        worlds("cell", mixed[0].drop(index=mixed[0].index[(mixed[0]["arm"] == "cloned")][:1]))


def test_each_computer_has_one_delay():
    found = computers(summarise("a-1m-1", *tables(), PERIOD))
    of = {arm: mine[["from", "to", "kept"]].to_numpy().tolist() for (arm, planner), mine in found.groupby(
        ["arm", "planner"], dropna=False) if planner != "128×2" or arm != "every-step"}  # fmt: skip
    assert of["async"] == [[0, 5, 0.96], [5, TWO, 0.96], [TWO, FOUR, 0.55]]
    assert of["late"] == [[0, 5, 0.96], [5, 10, 0.25]] and of["every-step"] == [[0, 5, 0.96]]
    assert of["async+two-tower"] == [[0, 2.5, 1], [2.5, OTHER_TWO, 0.99], [OTHER_TWO, OTHER_FOUR, 0.96]]
    assert of["policy"] == [[0, 125, 0.5]] and of["distilled"] == [[0, 100, 0.98]]
    episodes, steps = tables()
    mine = steps["arm"].eq("async") & steps["part"].eq("foreground")
    for foreground, wanted in {4.0: [5, 100 / 18, 200 / 26], 12.0: [5]}.items():  # at last the step itself is late
        late = computers(
            summarise("a-1m-1", episodes, steps.assign(p95_ms=steps["p95_ms"].mask(mine, foreground)), PERIOD)
        )
        assert late.loc[late["arm"] == "async", "to"].tolist() == wanted


def test_what_cannot_be_compared_is_refused():
    episodes, steps = tables()
    with pytest.raises(StatisticsError, match="Cell a-1m-1 has no planner without delay"):
        summarise("a-1m-1", episodes[episodes["arm"] != "every-step"], steps, PERIOD)
    for wrong in (episodes[:2], episodes[:2].assign(episode_seed=7)):
        with pytest.raises(StatisticsError, match="policy has episodes twice, or others than what it stands beside"):
            summarise("a-1m-1", pd.concat([episodes, wrong]), steps, PERIOD)
