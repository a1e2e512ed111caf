"""Rank correlations against scipy and against cases that can be counted by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lib.study.stats import ranks
from lib.study.stats.intervals import StatisticsError
from lib.study.stats.ranks import association, attenuation, kendall, pearson, permutation_p, spearman


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("levels", [None, 3])  # without and with ties
def test_correlations_are_those_of_scipy_for_whole_batches(levels):
    a, b = random(20, 9), random(20, 9, seed=1)
    if levels:
        a, b = np.round(levels * a), np.round(levels * b / 2)
    np.testing.assert_allclose(spearman(a, b), [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(kendall(a, b), [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(pearson(a, b), [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


def test_correlations_in_closed_form():
    up = np.arange(5.0)
    assert spearman(up, up**3) == kendall(up, np.exp(up)) == 1 and spearman(up, -up) == kendall(up, -up) == -1
    swapped = up[[0, 1, 2, 4, 3]]  # one of ten pairs is discordant; ρ = 1 − 6 · 2 / (5 · 24)
    assert kendall(up, swapped) == pytest.approx(0.8) and spearman(up, swapped) == pytest.approx(0.9)
    assert np.isnan(spearman(up, np.ones(5))) and np.isnan(kendall(np.ones(5), up))


def test_partial_correlation_is_that_of_the_residuals():
    a, b, given = random(3, 12)

    def residual(x):
        x, g = stats.rankdata(x), stats.rankdata(given)
        return x - np.polyval(np.polyfit(g, x, 1), g)

    assert ranks.partial_spearman(a, b, given) == pytest.approx(np.corrcoef(residual(a), residual(b))[0, 1])
    trend = np.arange(12.0)
    assert np.isnan(ranks.partial_spearman(trend, b, trend))  # the trend tells all there is
    assert ranks.partial_spearman(a, b, np.ones(12)) == pytest.approx(float(spearman(a, b)))


def test_a_shared_trend_alone_correlates_but_not_within_steps():
    """Two noises on one trend: taken for independent they are significant, with runs exchanged within steps not."""
    steps = np.repeat(np.arange(6), 3)
    a, b = 5 * steps + random(18), 5 * steps + random(18, seed=7)
    row = association(a, b, steps)
    assert row["spearman"] > 0.8 and row["p_naive"] < 0.001 and row["p_permutation"] > 0.05
    assert abs(row["partial"]) < 0.5


@pytest.mark.parametrize(("statistic", "twin"), [(spearman, stats.spearmanr), (kendall, stats.kendalltau)])
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_permutation_p_is_the_share_of_permutations_at_least_as_extreme(statistic, twin, seed):
    a, b = random(6, seed=seed), np.round(random(6, seed=seed + 10))  # ties make many permutations equally extreme
    strata = [0, 0, 1, 1, 1, 2]
    observed, values = abs(twin(a, b).statistic), []
    for first, second in itertools.product(itertools.permutations([0, 1]), itertools.permutations([2, 3, 4])):
        values.append(abs(twin(a, b[[*first, *second, 5]]).statistic))
    assert len(values) == 12
    expected = np.mean(np.array(values) >= observed - 1e-9)
    assert permutation_p(statistic, a, b, strata) == pytest.approx(expected) and expected < 1
    assert permutation_p(statistic, a, b, ["x", "x", "y", "y", "y", "z"]) == permutation_p(statistic, a, b, strata)
    # Of six cells in one stratum, the perfect order and its reverse are 2 of 720.
    assert permutation_p(statistic, np.arange(6), np.arange(6), np.zeros(6)) == pytest.approx(2 / 720)


@pytest.mark.parametrize("statistic", [spearman, kendall])
def test_permuting_ranks_and_signs_is_ranking_anew(statistic):
    a, b = np.round(2 * random(2, 8))  # with ties
    index = np.random.default_rng(0).permuted(np.tile(np.arange(8), (50, 1)), axis=1)
    np.testing.assert_allclose(ranks._permuted(statistic, a, b, index), statistic(a, b[index]), atol=1e-6)


def test_random_permutations_agree_with_the_exact_test():
    a, b = np.arange(9.0), np.arange(9.0)[[1, 0, 2, 5, 3, 4, 8, 7, 6]] + 0.1 * random(9)
    drawn = permutation_p(spearman, a, b, np.zeros(9))  # 9! are more than are enumerated
    exact = stats.permutation_test(
        (b,), lambda x, axis: spearman(a, x), permutation_type="pairings", n_resamples=5_000, vectorized=True, rng=0
    ).pvalue
    assert drawn == pytest.approx(exact, abs=0.01) and drawn > 0
    assert permutation_p(spearman, a, b, np.zeros(9)) == drawn  # seeded


def test_p_values_are_uniform_without_an_effect():
    strata, values = np.repeat(np.arange(3), 3), []
    for seed in range(150):
        a, b = np.random.default_rng(seed).normal(size=(2, 9)) + 4 * strata
        values.append(permutation_p(spearman, a, b, strata))
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.09 and 0.4 < np.mean(values) < 0.6


def test_what_takes_cells_for_independent_keeps_to_their_groups():
    """Two tasks that differ in both numbers, which have nothing to do with each other within either."""
    tasks = np.repeat(["a", "b"], 6)
    a, b = 10 * (tasks == "b") + random(12), 10 * (tasks == "b") + random(12, seed=2)
    pooled, within = association(a, b, np.arange(12)), association(a, b, np.arange(12), groups=tasks)
    assert pooled["p_naive"] < 0.01 and within["p_naive"] > 0.05 and within["spearman"] == pooled["spearman"]
    assert within["p_naive"] == permutation_p(spearman, a, b, tasks)
    assert (within["low_naive"], within["high_naive"]) == ranks.bootstrap(spearman, (a, b), tasks)


def test_few_cells_and_single_runs_give_no_p_and_no_interval():
    up = np.arange(6.0)
    row = association(up, up, up)  # one run: every step has one cell
    assert row["spearman"] == 1 and math.isnan(row["p_permutation"]) and math.isnan(row["low"])
    assert row["p_naive"] == pytest.approx(2 / 720) and math.isnan(row["partial"])
    five = association(up[:5], up[:5], np.zeros(5))
    assert five["n"] == 5 and five["kendall"] == 1 and math.isnan(five["p_naive"]) and math.isnan(five["low_naive"])
    assert association(up[:2], up[:2], np.zeros(2)) == {k: None for k in five} | {"n": 2}
    with pytest.raises(StatisticsError, match="vectors of one length"):
        association(up, up[:5], up)


def test_leave_one_out_is_the_range_of_what_is_left():
    a, b = random(7), random(7, seed=2)
    left = [stats.spearmanr(np.delete(a, i), np.delete(b, i)).statistic for i in range(7)]
    assert ranks.leave_one_out(spearman, a, b) == pytest.approx((min(left), max(left)))


def test_attenuation_in_closed_form():
    target = np.array([1.0, 2, 3, 4])  # of variance 5/3
    assert attenuation(target, np.zeros(4)) == 1
    assert attenuation(target, np.full(4, math.sqrt(5 / 12))) == pytest.approx(math.sqrt(0.75))
    assert attenuation(target, np.full(4, 9.0)) == 0 and math.isnan(attenuation(target, [0, 0, 0, math.nan]))
    assert math.isnan(attenuation(np.ones(4), np.zeros(4)))


def test_attenuation_is_what_noise_does():
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    noisy = true + rng.normal(scale=0.8, size=4000)
    assert pearson(true, noisy) == pytest.approx(attenuation(noisy, np.full(4000, 0.8)), abs=0.03)


def test_bootstrap_draws_within_strata():
    strata = np.repeat([0, 1], 4)
    seen = []

    def note(a):
        seen.append(a)
        return a.mean(-1)

    low, high = ranks.bootstrap(note, (np.arange(8.0),), strata)
    assert (seen[0][:, :4] < 4).all() and (seen[0][:, 4:] >= 4).all() and 1.5 < low < 3.5 < high < 5.5
    error = math.sqrt(2 * np.var(range(4)) / 4) / 2  # of the mean of two means of four
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_difference_of_two_correlations():
    target = np.arange(12.0)
    worse = target + 6 * random(12)
    strata = np.tile(np.arange(4), 3)
    found = ranks.difference(worse, target, target, strata)
    assert found.value == pytest.approx(1 - float(spearman(worse, target)))
    assert 0 <= found.low <= found.value <= found.high
    assert ranks.difference(target, target, target, strata) == (0, 0, 0)
