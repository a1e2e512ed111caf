"""Statistics against closed forms, full enumeration, and simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.statistics import (
    StatisticsError,
    bootstrap_ci,
    iqm,
    kept_return,
    paired_difference,
    summarise,
    worst,
)


def test_iqm_closed_forms():
    assert iqm([7.0]) == 7
    assert iqm([0.0, 10.0]) == 5
    assert iqm([0.0, 3.0, 100.0]) == pytest.approx((0.25 * 0 + 1 * 3 + 0.25 * 100) / 1.5)  # quarter slices at the edges
    assert iqm([100.0, 1.0, 2.0, -50.0]) == pytest.approx(1.5)
    assert iqm(np.arange(101)) == pytest.approx(50)


def test_iqm_equals_trimmed_mean_for_multiples_of_four_and_repetition_changes_nothing():
    x = np.random.default_rng(0).normal(size=24) ** 3
    assert iqm(x) == pytest.approx(stats.trim_mean(x, 0.25))
    y = x[:7]
    assert iqm(y) == pytest.approx(iqm(np.repeat(y, 4)))  # a distribution has one IQM, however often it is repeated


def test_iqm_along_an_axis():
    x = np.random.default_rng(1).normal(size=(5, 9))
    np.testing.assert_allclose(iqm(x), [iqm(row) for row in x])
    np.testing.assert_allclose(iqm(x.T, axis=0), iqm(x))


def test_iqm_of_nothing():
    with pytest.raises(StatisticsError, match="no values"):
        iqm([])


def test_worst_counts_upwards():
    assert worst(np.arange(50)) == 1  # ⌈2.5⌉ = 3 episodes: 0, 1, 2
    assert worst(np.arange(60)) == 1  # exactly 3
    assert worst(np.arange(20)) == 0
    assert worst([5.0, 9.0]) == 5  # never fewer than one


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_interval_equals_full_enumeration(level):
    x = np.array([0.0, 1.0, 3.7])
    means = np.sort([np.mean(draw) for draw in itertools.product(x, repeat=3)])
    # The enumerated distribution is discrete; these levels lie inside its steps, where sampling error moves nothing.
    expected = [means[int(np.floor(q * 27))] for q in ((1 - level) / 2, (1 + level) / 2)]
    np.testing.assert_allclose(bootstrap_ci(x, level=level, resamples=20_000), expected)


def test_paired_ratio_equals_full_enumeration():
    arm, teacher = np.array([1.0, 5.0, 4.0]), np.array([2.0, 5.0, 9.0])
    draws = np.array(list(itertools.product(range(3), repeat=3)))
    ratios = np.sort(arm[draws].mean(1) / teacher[draws].mean(1))
    estimate = kept_return(arm, teacher, level=0.8, resamples=20_000)
    assert estimate.value == pytest.approx(10 / 16)
    np.testing.assert_allclose(estimate[1:], [ratios[int(0.1 * 27)], ratios[int(0.9 * 27)]])


def test_bootstrap_is_seeded_and_agrees_with_scipy():
    x = np.random.default_rng(2).exponential(size=40)
    assert bootstrap_ci(x) == bootstrap_ci(x)
    assert bootstrap_ci(x) != bootstrap_ci(x, seed=1)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5))
    np.testing.assert_allclose(bootstrap_ci(x), theirs.confidence_interval, atol=0.03)


def test_bootstrap_at_the_edges():
    assert np.isnan(bootstrap_ci([3.0])).all()
    assert bootstrap_ci([4.0] * 6) == (4, 4)
    assert bootstrap_ci([4.0] * 6, statistic=iqm) == (4, 4)
    with pytest.raises(StatisticsError, match="at least one value"):
        bootstrap_ci([])
    with pytest.raises(StatisticsError, match="1 missing values among 2"):
        bootstrap_ci([1.0, np.nan])
    with pytest.raises(StatisticsError, match="level"):
        bootstrap_ci([1.0, 2.0], level=95)


@pytest.mark.parametrize("statistic, truth", [(np.mean, 0.0), (iqm, 0.0), (np.median, 0.0)])
def test_coverage(statistic, truth):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_ci(rng.normal(size=50), statistic, resamples=400)
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(4)
    start = rng.normal(scale=100, size=50)  # the start state drives the return
    a, b = start + 1, start + rng.normal(scale=0.1, size=50)
    paired = paired_difference(a, b)
    assert paired.value == pytest.approx((a - b).mean())
    assert 0.9 < paired.low < paired.high < 1.1
    assert paired_difference(a, rng.permutation(b)).high - paired.low > 10  # wrong order: the start states come back
    assert paired_difference(b, a).low == pytest.approx(-paired.high)


def test_pairs_need_equal_lengths():
    with pytest.raises(StatisticsError, match="a has 3 episodes and b has 2"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="arm has 1 episodes and teacher has 2"):
        kept_return([1], [1, 2])


def test_kept_return():
    teacher = np.random.default_rng(5).uniform(800, 1000, size=30)
    np.testing.assert_allclose(kept_return(0.9 * teacher, teacher), 0.9)  # a ratio that never varies has no width
    assert kept_return([450.0], [900.0]).value == 0.5
    assert np.isnan(kept_return([450.0], [900.0]).low)
    assert np.isnan(kept_return([1.0, 2.0], [0.0, 0.0])).all()
    rare = kept_return([1.0, 2.0], [0.0, 4.0])  # resamples without any teacher return
    assert rare.value == 0.75 and np.isnan(rare.low)


def episodes(arms: dict, seeds=range(10), task="walker-walk", teacher_seed=1) -> pd.DataFrame:
    """Rows with returns `arms[name](seed)`; the teacher calls the planner 500 times, the others 167."""
    rows = []
    for name, value in arms.items():
        horizon = 1 if name in ("teacher", "policy") else 3
        calls = {"teacher": 500, "policy": 0}.get(name, 167)
        for seed in seeds:
            rows.append(
                dict(task=task, size="1m", teacher_seed=teacher_seed, corrector_seed=0, arm=name,
                     execution_horizon=horizon, episode_seed=seed, length=500, planner_calls=calls,
                     model_evaluations=calls * 9216, fallbacks=0, corrector_calls=333 if "tower" in name else None,
                     delta_abs=0.1 if "tower" in name else None) | {"return": value(seed)}
            )  # fmt: skip
    return pd.DataFrame(rows)


ARMS = {
    "teacher": lambda s: 900.0 + s,
    "policy": lambda s: 100.0,
    "open-loop-3": lambda s: 700.0 + s,
    "two-tower-3": lambda s: 800.0 + s,
}


def test_summarise():
    table = summarise(episodes(ARMS)).set_index("arm")
    assert list(table.index) == list(ARMS)
    arm = table.loc["two-tower-3"]
    assert arm["episodes"] == 10 and arm["execution_horizon"] == 3
    assert arm["return_mean"] == pytest.approx(804.5) and arm["return_worst5"] == 800
    assert arm["kept"] == pytest.approx(804.5 / 904.5) and arm["kept_low"] < arm["kept"] < arm["kept_high"]
    assert tuple(arm[["difference", "difference_low", "difference_high"]]) == (-100, -100, -100)
    assert tuple(arm[["gain", "gain_low", "gain_high"]]) == (100, 100, 100)
    assert arm["calls_kept"] == pytest.approx(0.334) and arm["evaluations_kept"] == pytest.approx(0.334)
    assert arm["delta_abs"] == pytest.approx(0.1) and arm["failures"] == 0
    assert table.loc["policy", "failures"] == 10
    assert table.loc[["teacher", "policy", "open-loop-3"], "gain"].isna().all()
    assert table.loc[["teacher", "policy", "open-loop-3"], "delta_abs"].isna().all()
    assert tuple(table.loc["teacher", ["kept", "kept_low", "kept_high", "difference_low"]]) == (1, 1, 1, 0)


def test_summarise_pairs_by_seed_whatever_the_order_of_rows():
    rows = episodes(ARMS)
    shuffled = rows.sample(frac=1, random_state=0)
    columns = ["difference", "difference_low", "kept_low", "gain", "return_worst5"]
    one, two = (summarise(r).set_index("arm")[columns] for r in (rows, shuffled))
    # Drawing depends on the teacher's order of rows, so the ends of intervals may move a little; paired values may not.
    pd.testing.assert_frame_equal(one.drop(columns="kept_low"), two.loc[one.index].drop(columns="kept_low"))
    np.testing.assert_allclose(one["kept_low"], two.loc[one.index, "kept_low"], atol=1e-3)


def test_summarise_counts_early_termination_as_failure():
    rows = episodes(ARMS)
    rows.loc[(rows["arm"] == "two-tower-3") & (rows["episode_seed"] == 4), "length"] = 120
    assert summarise(rows).set_index("arm").loc["two-tower-3", "failures"] == 1


def test_summarise_several_cells_and_one_episode():
    rows = pd.concat([episodes(ARMS), episodes(ARMS, task="cup-catch"), episodes(ARMS, teacher_seed=2)])
    table = summarise(rows)
    assert len(table) == 12 and list(table["task"].unique()) == ["walker-walk", "cup-catch"]
    alone = summarise(episodes(ARMS, seeds=[3])).set_index("arm")
    assert alone.loc["two-tower-3", "kept"] == pytest.approx(803 / 903)
    assert alone[["return_low", "kept_low", "difference_high", "gain_low"]].isna().all(axis=None)


def test_summarise_refuses_what_it_cannot_compare():
    rows = episodes(ARMS)
    with pytest.raises(StatisticsError, match="no arm 'teacher'"):
        summarise(rows[rows["arm"] != "teacher"])
    with pytest.raises(StatisticsError, match="'policy' and the teacher were evaluated on different episode seeds"):
        summarise(rows[(rows["arm"] != "policy") | (rows["episode_seed"] != 3)])
    with pytest.raises(StatisticsError, match="'policy' has episode_seed 0 more than once"):
        summarise(pd.concat([rows, rows[rows["arm"] == "policy"].head(1)]))
    with pytest.raises(StatisticsError, match="no episodes"):
        summarise(rows.head(0))
