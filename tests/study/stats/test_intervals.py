"""Statistics against closed forms, full enumeration, and simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import betaincinv

from lib.study.stats import intervals
from lib.study.stats.intervals import StatisticsError, bootstrap_ci, iqm, kept_return, paired_difference, worst
from tests.tiny_results import episodes


def test_iqm_closed_forms():
    assert iqm([7.0]) == 7
    assert iqm([0.0, 10.0]) == 5
    assert iqm([0.0, 3.0, 100.0]) == pytest.approx((0.25 * 0 + 1 * 3 + 0.25 * 100) / 1.5)  # quarter slices at the edges
    assert iqm([100.0, 1.0, 2.0, -50.0]) == pytest.approx(1.5)
    assert iqm(np.arange(101)) == pytest.approx(50)


def test_iqm_is_scipys_trimmed_mean_along_any_axis_and_repetition_changes_nothing():
    x = np.random.default_rng(0).normal(size=(5, 24)) ** 3  # a multiple of four
    np.testing.assert_allclose(iqm(x), stats.trim_mean(x, 0.25, axis=1))
    odd = x[:, :7]
    np.testing.assert_allclose(iqm(odd.T, axis=0), [iqm(row) for row in odd])
    np.testing.assert_allclose(iqm(odd), iqm(np.repeat(odd, 4, axis=1)))  # a distribution has one IQM


def test_worst_closed_forms():
    assert worst(np.arange(60)) == pytest.approx(1)  # exactly 3 episodes: 0, 1, 2
    assert worst(np.arange(50)) == pytest.approx((0 + 1 + 0.5 * 2) / 2.5)  # two episodes and a half
    assert worst(np.arange(20)) == 0
    assert worst([5.0, 9.0]) == 5  # never less than the smallest


def test_slice_mean_with_weights_equals_repetition():
    x, times = np.array([[3.0, -1.0, 8.0, 2.0]] * 2), np.array([[1, 4, 2, 3], [5, 0, 5, 0]])
    for low, high in ((0, 0.05), (0.25, 0.75), (0.1, 0.35)):
        repeated = [intervals.slice_mean(np.repeat(row, t), low, high) for row, t in zip(x, times, strict=True)]
        np.testing.assert_allclose(intervals.slice_mean(x, low, high, times / 10), repeated)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_percentile_interval_equals_full_enumeration(level):
    x = np.array([0.0, 1.0, 3.7])
    means = np.sort([np.mean(draw) for draw in itertools.product(x, repeat=3)])
    # The enumerated distribution is discrete; these levels lie inside its steps, where sampling error moves nothing.
    expected = [means[int(np.floor(q * 27))] for q in ((1 - level) / 2, (1 + level) / 2)]
    ends = bootstrap_ci(x, lambda draws, axis: draws.mean(axis), level=level, resamples=20_000)
    np.testing.assert_allclose(ends, expected)


def enumerated_ends(arm, teacher, level):
    """The bootstrap-t interval of mean(arm) / mean(teacher) from all n^n resamples, one by one, as it is defined."""

    def value_and_error(a, b):
        ratio = a.mean() / b.mean()
        return ratio, np.sqrt(np.var(a - ratio * b, ddof=1) / len(a)) / b.mean()

    (value, error), t = value_and_error(arm, teacher), []
    for draw in itertools.product(range(len(arm)), repeat=len(arm)):
        ratio, its_error = value_and_error(arm[list(draw)], teacher[list(draw)])
        same = len(set(draw)) == 1
        t.append(np.sign(ratio - value) * 1e12 if same else (ratio - value) / its_error)
    low_t, high_t = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    ratios = arm / teacher
    return max(value - high_t * error, ratios.min()), min(value - low_t * error, ratios.max())


@pytest.mark.parametrize("level", [0.4, 0.6])
def test_studentised_intervals_equal_full_enumeration(level):
    arm, teacher = np.array([1.0, 5.0, 4.0, 6.5, 3.0]), np.array([2.0, 5.0, 9.0, 7.0, 4.0])
    estimate, expected = kept_return(arm, teacher, level=level, resamples=100_000), enumerated_ends(arm, teacher, level)
    assert estimate.value == pytest.approx(19.5 / 27)
    assert 4 / 9 < expected[0] < expected[1] < 1  # inside the range of arm / teacher, so that t decides
    np.testing.assert_allclose(estimate[1:], expected, atol=0.003)
    x = np.array([0.0, 1.0, 3.7, 9.1, 2.2])
    expected = enumerated_ends(x, np.ones(5), level)
    assert 0 < expected[0] < expected[1] < 9.1
    np.testing.assert_allclose(bootstrap_ci(x, level=level, resamples=100_000), expected, atol=0.03)


def test_studentised_intervals_stay_within_the_range_of_the_episodes():
    assert bootstrap_ci([1.0, 2.0, 5.0]) == (1, 5)
    fall = bootstrap_ci([940.0] * 9 + [20.0])
    assert fall[0] == 20 and 848 < fall[1] <= 940  # most resamples without the fall have no spread at all


def test_studentised_intervals_of_several_samples_at_once():
    x, y = np.random.default_rng(6).lognormal(size=(2, 3, 12))
    ends = np.transpose(intervals.studentised_ends(x, y, resamples=500))
    np.testing.assert_allclose(ends, [kept_return(a, b, resamples=500)[1:] for a, b in zip(x, y, strict=True)])


def test_studentised_intervals_forget_shift_and_scale():
    x = np.random.default_rng(7).normal(size=15)
    low, high = bootstrap_ci(x)
    np.testing.assert_allclose(bootstrap_ci(1e6 + 1e-3 * x), (1e6 + 1e-3 * low, 1e6 + 1e-3 * high), rtol=1e-13)
    np.testing.assert_allclose(bootstrap_ci(-x), (-high, -low))


def test_bootstrap_is_seeded_and_agrees_with_scipy():
    x = np.random.default_rng(2).exponential(size=40)
    assert bootstrap_ci(x) == bootstrap_ci(x)
    assert bootstrap_ci(x) != bootstrap_ci(x, seed=1)
    theirs = stats.bootstrap((x,), iqm, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5))
    np.testing.assert_allclose(bootstrap_ci(x, iqm), theirs.confidence_interval, atol=0.03)


def test_bootstrap_at_the_edges():
    assert np.isnan(bootstrap_ci([3.0])).all()
    assert bootstrap_ci([4.0] * 6) == (4, 4)
    assert bootstrap_ci([4.0] * 6, statistic=iqm) == pytest.approx((4, 4))


@pytest.mark.parametrize("statistic", [iqm, np.median])
def test_coverage_of_percentile_intervals(statistic):  # those of means are in test_study_design.py
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_ci(rng.normal(size=50), statistic, resamples=400)
        hits += low <= 0 <= high
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


def test_kept_return():
    teacher = np.random.default_rng(5).uniform(800, 1000, size=30)
    np.testing.assert_allclose(kept_return(0.9 * teacher, teacher), 0.9)  # a ratio that never varies has no width
    assert kept_return([450.0], [900.0]).value == 0.5
    assert np.isnan(kept_return([450.0], [900.0]).low)
    assert np.isnan(kept_return([1.0, 2.0], [0.0, 0.0])).all()
    rare = kept_return([1.0, 2.0], [0.0, 4.0])  # resamples without any teacher return
    assert rare.value == 0.75 and np.isnan(rare.low)


@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_share_limit_is_the_quantile_of_a_beta_distribution(n):
    for count in range(n + 1):
        exact = betaincinv(count + 1, n - count, 0.975) if count < n else 1.0
        assert intervals.share_limit(count, n) == pytest.approx(exact, rel=0, abs=1e-12)


ARMS = {"teacher": lambda s: 900.0 + s, "policy": lambda s: 100.0}
ARMS |= {"open-loop-3": lambda s: 700.0 + s, "two-tower-3": lambda s: 800.0 + s}
ROWS = episodes(ARMS)


def by_arm(rows):
    return intervals.summarise(rows).set_index("arm")


def test_summarise():
    rows = ROWS.copy()
    rows.loc[(rows["arm"] == "open-loop-3") & (rows["episode_seed"] == 4), "length"] = 120  # it ended early
    table = by_arm(rows)
    assert list(table.index) == list(ARMS)
    arm = table.loc["two-tower-3"]
    assert arm["episodes"] == 10 and arm["execution_horizon"] == 3
    assert arm["return_mean"] == pytest.approx(804.5) and arm["return_worst5"] == 800
    assert arm["kept"] == pytest.approx(804.5 / 904.5) and arm["kept_low"] < arm["kept"] < arm["kept_high"]
    assert tuple(arm[["difference", "difference_low", "difference_high"]]) == (-100, -100, -100)
    assert tuple(arm[["gain", "gain_low", "gain_high"]]) == (100, 100, 100)
    assert arm["calls_kept"] == pytest.approx(0.334) and arm["evaluations_kept"] == pytest.approx(0.334)
    assert arm["delta_abs"] == pytest.approx(0.1)
    assert table["failures"].tolist() == [0, 10, 1, 0] and table.loc["policy", "failures_share_high"] == 1
    assert arm["failures_share_high"] == pytest.approx(1 - 0.025 ** (1 / 10))  # none in ten
    assert table.loc[["teacher", "policy", "open-loop-3"], ["gain", "delta_abs"]].isna().all(axis=None)
    assert tuple(table.loc["teacher", ["kept", "kept_low", "kept_high", "difference_low"]]) == (1, 1, 1, 0)


def test_summarise_pairs_by_seed_whatever_the_order_of_rows():
    one, two = by_arm(ROWS), by_arm(ROWS.sample(frac=1, random_state=0))
    two = two.loc[one.index]
    # Drawing depends on the teacher's order of rows, so the ends of intervals may move a little; paired values may not.
    exact = ["kept", "difference", "gain", "return_worst5"]
    pd.testing.assert_frame_equal(one[exact], two[exact])
    np.testing.assert_allclose(one["kept_low"], two["kept_low"], atol=1e-3)
    np.testing.assert_allclose(one["difference_low"], two["difference_low"], atol=0.2)


def test_summarise_several_cells_and_one_episode():
    table = intervals.summarise(pd.concat([ROWS, episodes(ARMS, task="cup-catch"), episodes(ARMS, teacher_seed=2)]))
    assert len(table) == 12 and list(table["task"].unique()) == ["walker-walk", "cup-catch"]
    alone = by_arm(episodes(ARMS, seeds=[3]))
    assert alone.loc["two-tower-3", "kept"] == pytest.approx(803 / 903)
    assert alone[["return_low", "kept_low", "difference_high", "gain_low"]].isna().all(axis=None)


def test_an_arm_with_fewer_episodes_is_compared_over_those_that_both_have():
    others = ROWS["episode_seed"] != 3
    mixed, expected = by_arm(ROWS[(ROWS["arm"] != "two-tower-3") | others]), by_arm(ROWS[others])
    pd.testing.assert_series_equal(mixed.loc["two-tower-3"], expected.loc["two-tower-3"])
    pd.testing.assert_series_equal(mixed.loc["policy"], by_arm(ROWS).loc["policy"])


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        (lambda: iqm([]), "no values"),
        (lambda: bootstrap_ci([]), "at least one value"),
        (lambda: bootstrap_ci([1.0, np.nan]), "1 missing values among 2"),
        (lambda: bootstrap_ci([1.0, 2.0], level=95), "level"),
        (lambda: paired_difference([1, 2, 3], [1, 2]), "a has 3 episodes and b has 2"),
        (lambda: kept_return([1], [1, 2]), "arm has 1 episodes and teacher has 2"),
        (lambda: intervals.summarise(ROWS[ROWS["arm"] != "teacher"]), "no arm 'teacher'"),
        (lambda: intervals.summarise(ROWS[(ROWS["arm"] != "teacher") | (ROWS["episode_seed"] != 3)]),
         "'policy' was evaluated on 1 episode seeds that the teacher was not, 3"),
        (lambda: intervals.summarise(pd.concat([ROWS, ROWS[ROWS["arm"] == "policy"].head(1)])),
         "'policy' has episode_seed 0 more than once"),
        (lambda: intervals.summarise(ROWS.head(0)), "no episodes"),
    ],
)  # fmt: skip
def test_what_has_no_statistic_is_refused(statistic, message):
    with pytest.raises(StatisticsError, match=message):
        statistic()
