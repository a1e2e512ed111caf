"""The certified choice's statistics: closed forms, refusals, and error rates of the whole procedure by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, ttest_1samp

from lib.config import ConfigError
from lib.study.stats import certification
from lib.study.stats.certification import (
    ALPHA,
    bootstrap_p,
    falls,
    fixed_sequence,
    keeps_less,
    kept_above,
    student_p,
    validity,
    validity_table,
    verdict,
)
from lib.study.stats.comparisons import one_sided_p
from lib.study.stats.intervals import Estimate, StatisticsError, kept_return, share_limit

RNG = np.random.default_rng(0)
TEACHER = RNG.normal(900, 20, 40)
STEADY = TEACHER + RNG.normal(-10, 15, 40)  # keeps 98.9 %
FALLING = np.where(np.arange(40) % 20 == 0, 600.0, TEACHER + 5)  # two of forty fall
FALLEN = np.where(np.arange(40) == 7, 300.0, TEACHER)  # a teacher that falls once


# ------------------------------------------------------------------------------------------------------- the test


def test_the_t_test_is_scipys():
    x = RNG.normal(0.2, 1, (3, 4, 25))
    assert student_p(x) == pytest.approx(ttest_1samp(x, 0, axis=-1, alternative="greater").pvalue, rel=1e-12)


@pytest.mark.parametrize(("arm", "teacher", "larger"), [(STEADY - 20, FALLEN, "t"), (FALLING, TEACHER, "bootstrap")])
def test_the_larger_of_two_p_values_counts(arm, teacher, larger):
    x = arm - 0.98 * teacher
    t, bootstrap = ttest_1samp(x, 0, alternative="greater").pvalue, one_sided_p(x, 2000)
    assert keeps_less(arm, teacher, resamples=2000) == pytest.approx(max(t, bootstrap), rel=1e-9)
    assert (t > bootstrap) == (larger == "t")


def test_a_share_is_one_of_what_is_above_the_floor():
    lost, kept = TEACHER - 30, keeps_less(TEACHER - 30, TEACHER, resamples=500)  # keeps 96.7 % of 900, 98.5 % of 2000
    assert keeps_less(lost - 1000, TEACHER - 1000, floor=-1000.0, resamples=500) == pytest.approx(kept, rel=1e-9)
    assert kept > 0.95 and keeps_less(lost, TEACHER, floor=-1100.0, resamples=500) < 0.01
    assert kept_above(lost, TEACHER, -1100.0).value == pytest.approx(1 - 30 / (TEACHER.mean() + 1100))
    assert kept_above(STEADY, TEACHER) == kept_return(STEADY, TEACHER)


@pytest.mark.parametrize(("level", "p"), [(990.0, 0.0), (980.0, 1.0), (970.0, 1.0)])
def test_without_spread_the_mean_is_what_it_is(level, p):
    assert keeps_less(np.full(5, level), np.full(5, 1000.0)) == p
    # With rounding in every digit, too: all episodes keep the same share.
    thirds = np.full(7, level / 3)
    assert student_p(thirds - 0.98 * 1000 / 3 + 1e-3 * (p - 0.5) * -2) == bootstrap_p(thirds - thirds.mean() - p + 0.5)


def test_what_cannot_be_tested():
    with pytest.raises(ConfigError, match="the teacher returns 900 on average, and the floor is 900: there is nothing"):
        keeps_less([1000.0, 1000.0], [800.0, 1000.0], floor=900.0)
    with pytest.raises(StatisticsError, match="arm holds 1 missing"):
        keeps_less([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(StatisticsError, match="pairs need the same episodes"):
        keeps_less([1.0], [1.0, 1.0])
    with pytest.raises(StatisticsError, match="keep=98"):
        keeps_less([1.0, 1.0], [1.0, 1.0], keep=98)
    assert math.isnan(keeps_less([1.0], [1.0]))


# ---------------------------------------------------------------------------------------------------- the sequence


def test_candidates_are_admitted_until_the_first_that_fails():
    assert fixed_sequence([0.001, 0.0167, 0.03, 0.0001], 0.0167) == [True, True, False, False]
    assert fixed_sequence([0.5, 0.0], 0.05) == [False, False] and fixed_sequence([], 0.05) == []
    assert fixed_sequence([0.0, math.nan, 0.0], 0.05) == [True, False, False]  # a single episode admits nobody


def test_a_sequence_errs_as_seldom_as_a_single_test():
    """Two good candidates that always pass, then four bad ones: some bad one is admitted as often as the first is."""
    p = np.random.default_rng(1).random((20_000, 6)) * [0.001, 0.001, 1, 1, 1, 1]
    wrong = np.mean([any(fixed_sequence(row, 0.05)[2:]) for row in p])
    assert wrong == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 20_000))


# ---------------------------------------------------------------------------------------- the promise, and falls


def test_verdicts():
    kept = {"shown": (0.98, 1.1), "inconclusive": (0.979, 0.98), "broken": (0.9, 0.9799)}
    for words, (low, high) in kept.items():
        assert verdict(Estimate((low + high) / 2, low, high)) == words
    assert verdict(Estimate(1.0, math.nan, math.nan)) == "inconclusive"  # a single episode
    assert verdict(kept_above(TEACHER, TEACHER)) == "shown"  # the teacher itself


def test_a_fall_ends_early_or_stays_under_half_of_the_way_from_the_floor():
    teacher = pd.DataFrame({"return": [-100.0, -100.0], "length": 500})
    arm = pd.DataFrame({"return": [-90.0, -299.0, -301.0, -80.0], "length": [500, 500, 500, 499]})
    assert falls(arm, teacher, floor=-500.0) == 2 and falls(teacher, teacher, floor=-500.0) == 0
    assert falls(arm.assign(length=[400] * 4), teacher, floor=-500.0) == 4


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_bound_on_the_share_of_falls_is_clopper_and_pearsons(count):
    assert share_limit(count, 100) == pytest.approx(beta.ppf(0.975, count + 1, 100 - count), rel=1e-9)


# -------------------------------------------------------------------------------------------------------- validity


def simulated(falls, episodes, test="both", kept=0.98, cells=250):
    return validity(kept, falls, episodes, test, cells=cells, resamples=300)


def within(cells=250):
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / cells)


@pytest.mark.parametrize(("falls", "episodes"), [((0.0, 0.0), 30), ((0.1, 0.1), 30), ((0.0, 0.04), 100)])
def test_where_falls_are_seen_a_pick_is_seldom_wrong(falls, episodes):
    assert simulated(falls, episodes)["wrong"] <= within()


def test_each_test_alone_is_wrong_where_the_other_is_not():
    assert simulated((0.0, 0.04), 100, "t")["wrong"] > within()
    assert simulated((0.1, 0.1), 30, "bootstrap-t")["wrong"] > within()


def test_falls_that_are_rarer_than_the_episodes_can_see_pass_and_cost_no_more_than_they_are():
    row = simulated((0.0, 0.02), 100, kept=0.97, cells=100)  # all is well but for 2 % of the episodes
    assert row["no_fall"] == pytest.approx(0.98**100) and row["wrong"] > 0.2
    assert 0.96 <= row["wrong_kept"] <= 0.97
    assert row["fallback"] == pytest.approx(1 - row["no_fall"], abs=0.1)


def test_a_candidate_like_the_teacher_is_admitted_and_never_wrong():
    row = simulated((0.0, 0.0), 100, kept=1.0, cells=50)
    assert row["wrong"] == 0 and math.isnan(row["wrong_kept"]) and row["fallback"] == 0


def test_the_table_leaves_out_what_would_have_to_be_better_than_the_teacher(monkeypatch):
    monkeypatch.setattr(certification, "FALLS", ((0.0, 0.0), (0.0, 0.04)))
    table = validity_table((5,), kept=(1.0, 0.98), cells=4, resamples=20)
    assert table[["falls", "kept", "test"]].drop_duplicates().shape == (9, 3) and len(table) == 9
    assert not ((table["falls"] == 0.04) & (table["kept"] == 1.0)).any()
    assert validity(1.0, (0.0, 0.04), 5) is None
