"""Comparisons against closed forms, enumeration, and their error rates in simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.study.stats import comparisons
from lib.study.stats.comparisons import compare, holm, non_inferiority, one_sided_p, references, rivals
from lib.study.stats.coverage import POPULATIONS
from lib.study.stats.intervals import StatisticsError, bootstrap_ci, paired_difference
from tests.tiny_results import about, episodes

improvement = comparisons.probability_of_improvement


def test_probability_of_improvement_counts_ties_by_half():
    assert improvement([1, 2, 3, 4], [0, 2, 3, 9]).value == 0.5
    a, b = np.random.default_rng(0).integers(5, size=(2, 30))
    one, other = improvement(a, b), improvement(b, a)
    np.testing.assert_allclose(one, (1 - other.value, 1 - other.high, 1 - other.low))


@pytest.mark.parametrize("wins, n", [(0, 10), (7, 10), (50, 50)])
def test_its_interval_is_wilsons(wins, n):
    a = np.where(np.arange(n) < wins, 1, -1)
    theirs = stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(improvement(a, np.zeros(n))[1:], (theirs.low, theirs.high), atol=1e-12)


def test_non_inferiority_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    reference = rng.normal(900, 30, size=12)
    arm = reference - 15 + rng.normal(0, 12, size=12)
    x = arm - 0.98 * reference
    observed, t = x.mean() / (x.std(ddof=1) / 12**0.5), []
    for _ in range(4000):
        drawn = x[rng.integers(12, size=12)]
        t.append((drawn.mean() - x.mean()) / (drawn.std(ddof=1) / 12**0.5))
    p = np.mean(np.array(t) >= observed)
    assert 0.02 < p < 0.5
    assert non_inferiority(arm, reference) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4000))


def test_non_inferiority_and_the_interval_say_the_same():
    rng = np.random.default_rng(2)
    for x in rng.normal(0.5, 1, size=(20, 15)):
        p, (low, high) = one_sided_p(x), bootstrap_ci(x)
        if abs(p - 0.025) > 0.001:
            assert (p < 0.025) == (low > 0)
        if abs(p - 0.975) > 0.001:
            assert (p > 0.975) == (high < 0)


def test_non_inferiority_at_the_edges():
    reference = np.random.default_rng(3).uniform(800, 1000, size=20)
    assert non_inferiority(reference, reference) == pytest.approx(1 / 10_001)
    assert non_inferiority(0.9 * reference, reference) == 1
    assert non_inferiority(0.9 * reference, reference, margin=0.2) < 0.001
    assert non_inferiority([9.0] * 4, [10.0] * 4) == 1  # no spread, and worse
    assert non_inferiority([9.9] * 4, [10.0] * 4) < 0.001
    assert one_sided_p(np.zeros(4)) == 1
    assert np.isnan(non_inferiority([9.0], [10.0]))


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (lambda: non_inferiority([1.0, 2.0], [1.0, 2.0], margin=2), "margin=2 must lie between 0 and 1"),
        (lambda: non_inferiority([1.0], np.ones(20)), "arm has 1 episodes and reference has 20"),
        (lambda: compare(episodes({"teacher": lambda s: 1.0})), "No arm has another one"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparison, message):
    with pytest.raises(StatisticsError, match=message):
        comparison()


@pytest.mark.parametrize("population", ["normal", "lognormal", "20 % fall"])
def test_error_rate_of_non_inferiority_where_a_t_test_errs(population):
    """At the margin itself, at 2.5 %: ours keeps near it where returns are skewed, and a t test does not."""
    simulated = POPULATIONS[population]
    x = simulated.draw(np.random.default_rng(4), (2000, 20)) - simulated.mean
    ours = np.mean(one_sided_p(x, resamples=2000) < 0.025)
    theirs = np.mean(stats.ttest_1samp(x, 0, axis=1, alternative="greater").pvalue < 0.025)
    assert ours < 0.05
    if population != "normal":
        assert theirs > 0.05


def closed_testing(p):
    """Holm's adjusted p-values as what they are: the largest Bonferroni p-value of a subset that holds the test."""
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]


def test_holm_equals_closed_testing():
    for p in np.random.default_rng(5).random((20, 5)) ** 3:
        np.testing.assert_allclose(holm(p), closed_testing(p))
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01, 0.03]), [0.06, np.nan, 0.03, 0.06])
    np.testing.assert_allclose(holm([0.02, 0.02]), [0.04, 0.04])
    assert np.isnan(holm([np.nan])).all()


ARMS = {
    "teacher": lambda s: 900.0 + s,
    "64×2+two-tower-3": lambda s: 890.0 + 3 * s % 11,
    "budget-64×2": lambda s: 600.0 + s * s % 7,
    "64×2+open-loop-3": lambda s: 700.0 + s,
}


def test_references():
    names = ["teacher", "policy", "open-loop-3", "two-tower-3", "64×2+two-tower-3", "64×2+open-loop-3", "budget-64×2"]
    arms = {name: pd.DataFrame([about(name)]) for name in names}
    wanted = {name: {"teacher": "teacher"} for name in names} | {"teacher": {}}
    wanted["two-tower-3"] |= {"open loop": "open-loop-3"}
    wanted["64×2+open-loop-3"] |= {"every step": "budget-64×2"}
    wanted["64×2+two-tower-3"] |= {"open loop": "64×2+open-loop-3", "every step": "budget-64×2"}
    assert {name: references(name, arms) for name in names} == wanted
    del arms["64×2+open-loop-3"], arms["budget-64×2"]  # what was not evaluated is left out
    assert references("64×2+two-tower-3", arms) == {"teacher": "teacher"}


def test_compare():
    rows = episodes(ARMS)
    table = compare(rows).set_index(["arm", "role"])
    assert len(table) == 8 and "teacher" not in table.index.get_level_values("arm")
    returns = {name: np.array([value(s) for s in range(10)]) for name, value in ARMS.items()}
    for role, reference in (("teacher", "teacher"), ("open loop", "64×2+open-loop-3"), ("every step", "budget-64×2")):
        row, pair = table.loc[("64×2+two-tower-3", role)], (returns["64×2+two-tower-3"], returns[reference])
        assert row["reference"] == reference and row["episodes"] == 10
        assert tuple(row[["improvement", "improvement_low", "improvement_high"]]) == improvement(*pair)
        assert tuple(row[["difference", "difference_low", "difference_high"]]) == paired_difference(*pair)
        assert row["p_non_inferior"] == non_inferiority(*pair)
    to_teacher = table.xs("teacher", level="role")
    np.testing.assert_allclose(to_teacher["p_holm"], holm(to_teacher["p_non_inferior"]))  # three arms
    assert to_teacher.loc["64×2+two-tower-3", "p_holm"] == 3 * to_teacher.loc["64×2+two-tower-3", "p_non_inferior"]


def test_rivals_of_equal_compute_of_equal_time_and_the_prior():
    spent = {"teacher": 90, "policy": 0, "budget-64×1": 30, "budget-64×2": 50, "two-tower-3": 31, "64×2+two-tower-3": 4}
    returns = {"policy": 6, "budget-64×1": 7, "budget-64×2": 8}
    rows = {name: {"model_evaluations": value, "return": returns.get(name, 9)} for name, value in spent.items()}
    arms = {name: pd.DataFrame(2 * [about(name) | row]) for name, row in rows.items()}
    assert rivals("two-tower-3", arms) == {"equal compute": "budget-64×2", "policy": "policy"}
    assert rivals("64×2+two-tower-3", arms) == {"equal compute": "budget-64×1", "policy": "policy"}
    assert rivals("budget-64×2", arms) == rivals("teacher", arms) == {}
    times = {"best-of-64": 2.0, "budget-64×1": 7.0, "budget-64×2": 9.0, "two-tower-3": 8.0, "64×2+two-tower-3": 1.9}
    assert rivals("two-tower-3", arms, times)["equal time"] == "budget-64×2"
    assert rivals("64×2+two-tower-3", arms, times)["equal time"] == "budget-64×1"  # best-of-64 was not evaluated
    arms["best-of-64"] = arms["policy"].assign(**about("best-of-64"))
    assert rivals("64×2+two-tower-3", arms, times)["equal time"] == "best-of-64"
    wasted = times | {"policy": 0.5}  # as good in less time, so that nobody would spend it on the best of 64
    assert rivals("64×2+two-tower-3", arms, wasted)["equal time"] == "budget-64×1"
    arms["budget-64×1"] = arms["budget-64×1"].assign(**{"return": 6})
    assert rivals("64×2+two-tower-3", arms, wasted)["equal time"] == "budget-64×2"
    fast = wasted | {"64×2+two-tower-3": 0.4}
    assert rivals("64×2+two-tower-3", arms, fast)["equal time"] == "policy"
    for unknown in ({}, times | {"two-tower-3": float("nan")}, times | {"two-tower-3": 10.0}):
        assert "equal time" not in rivals("two-tower-3", arms, unknown)
    del arms["policy"], arms["budget-64×2"]
    assert rivals("two-tower-3", arms) == {}


@pytest.mark.parametrize(
    "ablation, twin, role",
    [
        ("no-plan-3", "two-tower-3", "with the plan"),
        ("sensitive-6", "gate-only-sensitivity-6", "no corrector"),
        ("gated-6", "gate-only-mismatch-6", "no corrector"),
        ("plan-ahead+two-tower-6", "plan-ahead-6", "no corrector"),
        ("trusted-6", "two-tower-6", "at every depth"),
        ("trusted-gated-6", "gated-6", "at every depth"),
        ("64×2+sensitive-6", "64×2+gate-only-sensitivity-6", "no corrector"),
        ("cloned", "distilled", "draft alone"),
        ("prior+", "distilled", "draft alone"),
        ("128×2+draft+gated-3-r30", "distilled", "draft alone"),
        ("draft+doubt-1", "distilled", "draft alone"),
        ("128×2+clone+gated-3-r30", "cloned", "draft alone"),
    ],
)
def test_an_ablation_is_compared_with_what_differs_in_nothing_else(ablation, twin, role):
    arms = {"teacher": lambda s: 9.0 + s, twin: lambda s: 8.0 + s, ablation: lambda s: 6.5 + s % 2 + s}
    table = compare(episodes(arms)).set_index(["arm", "role"])
    row = table.loc[ablation, role]
    assert row["reference"] == twin and row["difference_high"] < 0
    assert role not in table.loc[twin].index
    del arms[twin]
    assert role not in set(compare(episodes(arms))["role"])


def test_a_draft_has_the_rivals_of_what_is_cheap():
    arms = {"teacher": 9, "budget-16×1": 7, "policy": 3, "distilled": 8, "128×2+draft+doubt-1": 8}
    table = compare(episodes({name: lambda s, mean=mean: mean + s for name, mean in arms.items()}))
    for draft in ("distilled", "128×2+draft+doubt-1"):
        rivals = table[table["arm"] == draft].set_index("role")["reference"].to_dict()
        assert rivals["policy"] == "policy" and rivals["equal compute"] in ("budget-16×1", "teacher")
    assert "policy" not in table[table["arm"] == "budget-16×1"]["role"].tolist()


def test_only_arms_with_all_episodes_are_counted_by_holm():
    rows = episodes(ARMS)
    fewer = rows[(rows["arm"] != "64×2+open-loop-3") | (rows["episode_seed"] < rows["episode_seed"].max())]
    table = compare(fewer).query("role == 'teacher'").set_index("arm")
    two = ["64×2+two-tower-3", "budget-64×2"]
    np.testing.assert_allclose(table.loc[two, "p_holm"], holm(table.loc[two, "p_non_inferior"]))
    short = table.loc["64×2+open-loop-3"]
    assert short["episodes"] == 9 and short["p_non_inferior"] > 0 and np.isnan(short["p_holm"])


def test_compare_corrects_within_a_cell():
    two = compare(pd.concat([episodes(ARMS), episodes(ARMS, task="cup-catch")]))
    np.testing.assert_array_equal(two["p_holm"], 2 * compare(episodes(ARMS))["p_holm"].tolist())


def test_costs_have_intervals_over_episodes_of_each_arm():
    rows = episodes({"teacher": lambda seed: 900, "gated-6": lambda seed: 890}, range(8))
    gated = rows["arm"] == "gated-6"
    calls = np.array([90, 100, 110, 95, 105, 120, 80, 101])
    rows.loc[gated, "planner_calls"], rows.loc[~gated, "planner_calls"] = calls, 500
    other = rows.assign(task="cup-catch", planner_calls=7)
    table = comparisons.cost_ends(pd.concat([rows, other])).set_index(["task", "arm"])
    mine = table.loc[(rows["task"].iloc[0], "gated-6")]
    assert (mine["planner_calls_low"], mine["planner_calls_high"]) == bootstrap_ci(calls)
    assert mine["planner_calls_low"] < calls.mean() < mine["planner_calls_high"]
    ends = ["planner_calls_low", "planner_calls_high"]
    assert table.loc[(rows["task"].iloc[0], "teacher"), ends].eq(500).all()
    assert table.loc["cup-catch", ends].eq(7).all(axis=None)
    one = comparisons.cost_ends(rows[rows["episode_seed"] == rows["episode_seed"].iloc[0]])
    assert one[ends].isna().all(axis=None)
