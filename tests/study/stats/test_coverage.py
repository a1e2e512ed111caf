"""Power against scipy and published tables; coverage of the intervals that results bear."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.study.stats import coverage as coverages
from lib.study.stats.aggregates import aggregate
from lib.study.stats.coverage import METHODS, POPULATIONS, coverage, episodes_needed, power, power_table, true_iqm
from lib.study.stats.intervals import StatisticsError, bootstrap_ci
from tests.tiny_results import episodes


def test_power_equals_scipy_and_a_simulation():
    for effect, n in ((0.5, 34), (1.2, 4), (0.05, 3000)):
        critical, t = stats.t.ppf(0.975, n - 1), stats.nct(n - 1, effect * math.sqrt(n))
        assert power(effect, n) == pytest.approx(t.sf(critical) + t.cdf(-critical))
    x = np.random.default_rng(0).normal(0.8, 1, size=(4000, 10))
    assert power(0.8, 10) == pytest.approx(np.mean(stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05), abs=0.025)


def test_episodes_needed():
    # Cohen's small, medium and large effects in tables for a paired t test, two-sided 5 %, power 80 %
    assert [episodes_needed(effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    for effect in (0.13, 0.7, 2.5):
        n = episodes_needed(effect, target=0.9)
        assert power(effect, n) >= 0.9 and (n == 2 or power(effect, n - 1) < 0.9)
    with pytest.raises(StatisticsError, match="must be above 0"):
        episodes_needed(0.0)


def test_power_table():
    noise = np.random.default_rng(1).normal(0, 40, size=30)
    arms = {"teacher": lambda s: 900.0 + s, "policy": lambda s: 800 + s + noise[s], "open-loop-3": lambda s: 880.0 + s}
    table = power_table(episodes(arms, seeds=range(30)).sample(frac=1, random_state=0)).set_index(["arm", "effect"])
    assert len(table) == 6
    row = table.loc[("policy", 0.02)]
    assert row["difference_std"] == pytest.approx(np.std(noise, ddof=1)) and row["episodes"] == 30
    assert row["episodes_needed"] == episodes_needed(0.02 * 914.5 / np.std(noise, ddof=1))
    assert table.loc[("open-loop-3", 0.01), "episodes_needed"] == 2  # the difference never varies
    assert power_table(episodes(arms, seeds=[4]))["episodes_needed"].isna().all()
    assert power_table(episodes(arms | {"teacher": lambda s: 0.0}))["episodes_needed"].isna().all()


def test_means_of_the_populations():
    rng = np.random.default_rng(2)
    for name, population in POPULATIONS.items():
        x = population.draw(rng, (200_000,))
        assert x.mean() == pytest.approx(population.mean, abs=5 * x.std() / math.sqrt(x.size)), name
        assert x.min() >= 0 and x.max() <= 1000


@pytest.mark.parametrize("population, n", [(p, n) for p in ("normal", "lognormal", "20 % fall") for n in (20, 50)])
@pytest.mark.parametrize("method", ["studentised", "expanded"])
def test_intervals_of_means_cover_what_they_promise(population, n, method):
    assert coverage(population, n, method)["coverage"] >= 0.93


@pytest.mark.parametrize("population, n", [(p, n) for p in ("normal", "lognormal") for n in (20, 50)])
@pytest.mark.parametrize(
    "statistic, method, least",
    # Differences of two that are alike are symmetric with heavy tails: there bootstrap-t is a little short.
    [("kept", "studentised", 0.93), ("kept of alike", "studentised", 0.915), ("iqm", "expanded", 0.93)],
)
def test_intervals_of_parts_of_the_teachers_return_cover_them(statistic, method, least, population, n):
    repeats = 400 if statistic == "iqm" else 2_000
    assert coverage(population, n, method, statistic, repeats=repeats, resamples=1_000)["coverage"] >= least


def test_interval_of_the_iqm_is_that_of_the_aggregate():
    """Their draws differ: with many of them, the ends are nearly the same."""
    rng = np.random.default_rng(3)
    x, teacher = 900 + 30 * rng.standard_normal((2, 3, 25))
    low, high = coverages.expanded_iqm(x, teacher, 0.95, 4_000)
    for i in range(3):
        arms = {"teacher": lambda s, i=i: teacher[i, s], "policy": lambda s, i=i: x[i, s]}
        table = aggregate({"walker-walk-1m-1": episodes(arms, seeds=range(25))}, resamples=4_000)
        row = table[(table["scope"] == "all") & (table["arm"] == "policy") & (table["statistic"] == "iqm")].iloc[0]
        assert (low[i], high[i]) == pytest.approx((row["low"], row["high"]), abs=0.1 * (row["high"] - row["low"]))


def test_true_iqm():
    assert true_iqm(POPULATIONS["normal"]) == pytest.approx(900, abs=0.1)
    ends = stats.lognorm(0.5).ppf([0.25, 0.75])  # the mean of a lognormal between two of its quantiles, in closed form
    middle = math.exp(0.125) * np.diff(stats.norm.cdf(np.log(ends) / 0.5 - 0.5))[0] / 0.5
    assert true_iqm(POPULATIONS["lognormal"]) == pytest.approx(1000 - 60 * middle, abs=0.1)


def test_what_other_methods_cover():
    """Why means have studentised intervals, and what no resampling can do."""
    assert coverage("lognormal", 20, "percentile")["coverage"] < 0.92
    assert coverage("lognormal", 20, "t")["too_high"] > 0.05  # 2.5 % would be right
    assert coverage("lognormal", 20, "studentised")["too_high"] < 0.05
    for method in ("studentised", "percentile", "expanded", "t"):
        assert coverage("5 % fall", 20, method)["coverage"] < 0.7  # 36 % of the samples have no fall
    for n in (10, 20, 50):
        assert coverage("5 % fall", n, "bounded")["coverage"] >= 0.95


@pytest.mark.parametrize("method", ["studentised", "percentile"])
def test_coverage_equals_intervals_one_by_one(method):
    """Also a twin of the vectorised arithmetic: one sample and one resample at a time."""
    row = coverage("20 % fall", 10, method, repeats=40, resamples=300, seed=5)
    x = POPULATIONS["20 % fall"].draw(np.random.default_rng(5), (40, 10))
    if method == "studentised":
        ends = np.array([bootstrap_ci(sample, resamples=300) for sample in x])
    else:
        rng = np.random.default_rng(0)
        counts = [rng.multinomial(10, [0.1] * 10) for _ in range(300)]
        means = [[np.repeat(sample, count).mean() for count in counts] for sample in x]
        ends = np.array([np.quantile(m, [0.025, 0.975]) for m in means])
    np.testing.assert_allclose(np.transpose(METHODS[method](x, 0.95, 300)), ends)
    truth = POPULATIONS["20 % fall"].mean
    assert row["coverage"] == np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    assert row["too_high"] == np.mean(ends[:, 0] > truth) and row["width"] == pytest.approx(np.median(np.ptp(ends, 1)))


def test_bounded_interval_of_zeros_and_ones_is_clopper_and_pearsons():
    for wins in (0, 3, 10):
        theirs = stats.binomtest(wins, 10).proportion_ci(0.95, method="exact")
        ours = coverages.bounded_ends(np.arange(10) < wins, least=0, most=1, resamples=100_000)
        np.testing.assert_allclose(ours, (theirs.low, theirs.high), atol=0.01)


def test_coverage_table_has_a_row_for_every_case():
    table = coverages.coverage_table(sizes=(3, 4), repeats=20, resamples=50)
    assert len(table) == len(POPULATIONS) * 2 * len(coverages.INTERVALS)
    np.testing.assert_allclose(table["coverage"] + table["too_high"] + table["too_low"], 1)
