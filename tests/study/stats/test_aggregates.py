"""The bootstrap over tasks, seeds and episodes against closed forms and the enumeration of every resample."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.study.stats import aggregates
from lib.study.stats.aggregates import STATISTICS, Stratum, aggregate, percentiles, performance_profiles, scores
from lib.study.stats.intervals import StatisticsError, iqm, slice_mean, worst
from tests.tiny_results import episodes

TWO_SEEDS = Stratum("a", (([3.0, 8.0], [9.0, 7.0]), ([5.0, 2.0], [4.0, 6.0])))
UNEQUAL = Stratum("b", (([1.0, 4.0], [5.0, 5.0]), ([6.0], [8.0])))
ONE_SEED = Stratum("c", (([2.0, 9.0, 4.0], [7.0, 8.0, 8.0]),))


def resamples_of(stratum):
    """Every resample of a stratum as (probability, normalised returns, weights, better), drawn as one would by hand."""
    seeds = stratum.seeds
    for drawn in itertools.product(seeds, repeat=len(seeds)):
        sizes = [len(arm) for arm, _ in drawn]
        for choice in itertools.product(*(itertools.product(range(n), repeat=n) for n in sizes)):
            values, weights, better = [], [], []
            for (arm, teacher), chosen, n in zip(drawn, choice, sizes, strict=True):
                mean = sum(teacher[i] for i in chosen) / n
                values += [arm[i] / mean for i in chosen]
                weights += [1 / n / len(seeds)] * n
                better += [(arm[i] > teacher[i]) + 0.5 * (arm[i] == teacher[i]) for i in chosen]
            yield len(seeds) ** -len(seeds) * np.prod([n**-n for n in map(float, sizes)]), values, weights, better


def by_hand(name, parts):
    """A statistic of one resample: `parts` has (values, weights, better) for each task."""
    means = [np.dot(v, w) for v, w, _ in parts]
    pooled = np.concatenate([v for v, _, _ in parts]), np.concatenate([w for _, w, _ in parts]) / len(parts)
    return {
        "mean": lambda: np.mean(means),
        "median": lambda: np.median(means),
        "iqm": lambda: slice_mean(pooled[0], 0.25, 0.75, pooled[1]),
        "worst5": lambda: min(pooled[0]),  # every episode here stands for more than 5 %
        "improvement": lambda: np.mean([np.dot(b, w) for _, w, b in parts]),
    }[name]()


@pytest.mark.parametrize("strata", [[TWO_SEEDS], [ONE_SEED], [UNEQUAL, ONE_SEED]], ids=["seeds", "episodes", "mixed"])
def test_resamples_have_the_distribution_of_all_of_them(strata):
    drawn = scores(strata, 20_000, seed=3)
    all_of_them = list(itertools.product(*(list(resamples_of(s)) for s in strata)))
    chances = np.array([np.prod([part[0] for part in draw]) for draw in all_of_them])
    assert chances.sum() == pytest.approx(1)
    for name, statistic in STATISTICS.items():
        exact, ours = np.array([by_hand(name, [p[1:] for p in draw]) for draw in all_of_them]), statistic(drawn)
        for cut in np.quantile(exact, [0.1, 0.3, 0.5, 0.7, 0.9]) + 1e-9:
            assert np.mean(ours <= cut) == pytest.approx(chances[exact <= cut].sum(), abs=0.015), name
        assert set(np.round(ours, 9)) <= set(np.round(exact, 9))


def test_aggregate_of_one_cell_closed_forms():
    arm = np.random.default_rng(0).uniform(500, 950, size=25)
    rows = episodes({"teacher": lambda s: 900.0 + s, "policy": lambda s: arm[s]}, seeds=range(25))
    table = aggregate({"cell": rows}).set_index(["scope", "arm", "statistic"])
    assert set(table.index.get_level_values("scope")) == {"walker-walk 1m", "all"}
    for scope in ("walker-walk 1m", "all"):
        expected = {"mean": arm.mean(), "median": arm.mean(), "iqm": iqm(arm), "worst5": worst(arm)}
        for name, value in expected.items():
            row = table.loc[(scope, "policy", name)]
            assert row["estimate"] == pytest.approx(value / 912)
            assert row["low"] < row["estimate"] < row["high"]
        assert table.loc[(scope, "policy", "improvement"), "estimate"] == np.mean(arm > 900 + np.arange(25))
        assert tuple(table.loc[(scope, "teacher", "mean"), ["estimate", "low", "high"]]) == pytest.approx((1, 1, 1))
    row = table.loc[("all", "policy", "mean")]
    assert (row["tasks"], row["seeds"], row["episodes"], row["resampled"]) == (1, 1, 25, "episodes")


def test_tasks_count_the_same_and_seeds_within_them():
    flat = {"teacher": lambda s: 1000.0}
    cells = {
        "one": episodes(flat | {"policy": lambda s: 200.0}, seeds=range(40)),
        "two": episodes(flat | {"policy": lambda s: 600.0}, seeds=range(5), task="cup-catch", teacher_seed=1),
        "three": episodes(flat | {"policy": lambda s: 900.0}, seeds=range(8), task="cup-catch", teacher_seed=2),
        "four": episodes(flat, task="acrobot"),  # a task without the arm does not count for it
    }
    table = aggregate(cells, resamples=300).set_index(["scope", "arm", "statistic"])
    assert table.loc[("cup-catch 1m", "policy", "mean"), "estimate"] == pytest.approx(0.75)
    assert table.loc[("all", "policy", "mean"), "estimate"] == pytest.approx((0.2 + 0.75) / 2)
    assert table.loc[("all", "policy", "iqm"), "estimate"] == pytest.approx(0.4)  # a quarter 0.2, a quarter 0.6
    assert table.loc[("all", "policy", "worst5"), "estimate"] == pytest.approx(0.2)
    assert table.loc[("cup-catch 1m", "policy", "mean"), "resampled"] == "seeds and episodes"
    # Both seeds can be drawn twice: the interval spans them though no seed has any spread of its own.
    ends = table.loc[("cup-catch 1m", "policy", "mean"), ["low", "high"]]
    assert tuple(ends) == pytest.approx((0.6, 0.9))
    row = table.loc[("all", "policy", "mean")]
    assert (row["tasks"], row["seeds"], row["episodes"]) == (2, 3, 53)
    assert row["resampled"] == "episodes, and seeds in 1 of 2 tasks"
    assert table.loc[("all", "teacher", "mean"), "tasks"] == 3


def test_resampled():
    assert aggregates.resampled([ONE_SEED]) == aggregates.resampled([ONE_SEED, ONE_SEED]) == "episodes"
    assert aggregates.resampled([TWO_SEEDS, UNEQUAL]) == "seeds and episodes"


def test_intervals_are_seeded_and_missing_where_there_is_none():
    rows = episodes({"teacher": lambda s: 900.0 + s, "policy": lambda s: 700.0 + s * s % 13})
    pd.testing.assert_frame_equal(aggregate({"c": rows}, resamples=50), aggregate({"c": rows}, resamples=50))
    assert not aggregate({"c": rows}, resamples=50).equals(aggregate({"c": rows}, resamples=50, seed=1))
    alone = aggregate({"c": rows[rows["episode_seed"] == 3]}, resamples=50)
    assert alone["estimate"].notna().all() and alone[["low", "high"]].isna().all(axis=None)
    nothing = aggregate({"c": episodes({"teacher": lambda s: 0.0})}, resamples=50).set_index("statistic")
    assert nothing.loc[["mean", "median", "iqm", "worst5"], ["estimate", "low"]].isna().all(axis=None)


def test_percentiles_and_their_coverage_at_ten_episodes():
    assert percentiles(100_000, 0.9) == pytest.approx((0.05, 0.95), abs=1e-4)
    half = stats.norm.ppf(percentiles(10, 0.95)[1]) * np.sqrt(9 / 10)  # in standard errors
    assert half == pytest.approx(stats.t.ppf(0.975, 9))
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        drawn = scores([Stratum("a", ((rng.normal(1, 0.1, size=10), np.ones(10)),))], 500)
        low, high = np.quantile(STATISTICS["mean"](drawn), percentiles(10, 0.95))
        hits += low <= 1 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_performance_profiles_closed_form():
    cells = {
        "one": episodes({"teacher": lambda s: 1000.0, "policy": lambda s: 100.0 * s}),  # 0, 0.1, … 0.9
        "two": episodes({"teacher": lambda s: 1000.0, "policy": lambda s: 700.0}, task="cup-catch"),
    }
    table = performance_profiles(cells, taus=(0.0, 0.45, 0.7, 0.95), resamples=400).set_index(["arm", "tau"])
    np.testing.assert_allclose(table.loc["policy", "estimate"], [(0.9 + 1) / 2, (0.5 + 1) / 2, 0.2 / 2, 0])
    np.testing.assert_allclose(table.loc["teacher", "estimate"], [1, 1, 1, 1])
    np.testing.assert_allclose(table.loc["teacher", "low"], [1, 1, 1, 1])
    middle = table.loc[("policy", 0.45)]
    tail = percentiles(10, 0.95)[0]
    assert middle["low"] == pytest.approx((stats.binom.ppf(tail, 10, 0.5) / 10 + 1) / 2, abs=0.051)
    assert middle["high"] == pytest.approx((stats.binom.ppf(1 - tail, 10, 0.5) / 10 + 1) / 2, abs=0.051)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({}, "no cells"),
        ({"both": pd.concat([episodes({"teacher": lambda s: 1.0}, teacher_seed=seed) for seed in (1, 2)])},
         "Cell both must have the episodes of one task"),
        ({"c": episodes({"policy": lambda s: 1.0})}, "Cell c has no arm 'teacher'"),
    ],
)  # fmt: skip
def test_what_cannot_be_aggregated_is_refused(cells, message):
    with pytest.raises(StatisticsError, match=message):
        aggregate(cells)
