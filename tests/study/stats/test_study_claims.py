"""Facts of the studies beside the evaluation, from small tables of which anybody can tell what they show."""

import math

import pandas as pd
import pytest

from lib.study.stats.study_claims import fastest, model_error, offline, sequence

NAN = math.nan


def policies(asked: dict[float, tuple[float, float]], cloned=(490.0, 510.0), kept=(0.5, 0.6)) -> pd.DataFrame:
    rows = [
        dict(arm="decision-transformer", asked=a, return_low=low, return_high=high) for a, (low, high) in asked.items()
    ]
    rows += [dict(arm="behaviour-cloning", asked=NAN, return_low=cloned[0], return_high=cloned[1])]
    return pd.DataFrame(rows).assign(kept_low=kept[0], kept_high=kept[1])


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (policies({0.5: (100, 200), 1.0: (520, 600)}), ("above", "below", "above")),
        (policies({1.0: (100, 200)}), ("below", "below", None)),  # asked for one return alone
        (policies({1.5: (100, 200), 1.0: (495, 600)}, kept=(0.9, 1.0)), ("unclear", "unclear", "below")),
        (policies({1.0: (NAN, NAN)}, kept=(0.99, 1.0)), (None, "above", None)),
        (policies({})[:0], (None, None, None)),
    ],
)
def test_policies_that_learnt_offline_are_told_apart_by_their_intervals(table, found):
    facts = sequence(table, [])
    assert (facts["cloning"], facts["kept"], facts["asking"]) == found and facts["highest"] is None


def test_the_highest_return_on_the_way_is_a_mean_over_seeds():
    seeds = [pd.DataFrame({"arm": "decision-transformer", "updates": [4, 8, 12], "return_mean": r})
             for r in ([1.0, 5.0, 9.0], [2.0, 7.0, 1.0])]  # fmt: skip
    other = pd.DataFrame({"arm": ["behaviour-cloning"], "updates": [4], "return_mean": [99.0]})
    assert sequence(policies({1.0: (1, 2)}), [*seeds, other])["highest"] == {"updates": 8.0, "mean": 6.0}


def drift(**ends) -> pd.DataFrame:
    """Errors one and two steps ahead on several sources of states; at the second step these are their intervals."""
    rows = [
        dict(model="a", decisions=20, source=source, step=step, share=0.4, mse=0.1, persistence_mse=0.2)
        | dict(mse_low=low if step == 2 else 0.0, mse_high=high if step == 2 else 9.0)
        for source, (low, high) in ({"teacher": (1, 2)} | ends).items()
        for step in (1, 2)
    ]
    return pd.DataFrame(rows)


def test_sources_of_states_are_compared_at_the_last_step():
    facts = model_error(drift(noisy=(2.5, 3), random=(0.1, 0.9), test=(1.5, 4), train=(NAN, NAN)), "a")
    assert facts["drift"] == {"noisy": "above", "random": "below", "test": "unclear", "train": None}
    assert facts["source"] == "teacher" and facts["beats_persistence"] and facts["falls"] is None


@pytest.mark.parametrize(
    ("decisions", "share", "falls"), [(5, 0.5, True), (5, 0.3, False), (NAN, 0.5, None), (5, NAN, None)]
)
def test_snapshots_say_whether_the_error_falls(decisions, share, falls):
    earlier = drift().assign(model="a/5", decisions=decisions, share=share, mse=0.9)
    facts = model_error(pd.concat([drift(), earlier]), "a")
    assert facts["falls"] is falls and facts["beats_persistence"]  # which is asked of the teacher itself


def test_prediction_that_does_not_beat_persistence_at_one_step_is_told():
    assert not model_error(drift().assign(persistence_mse=[0.2, 0.1]), "a")["beats_persistence"]


def study(sides: dict[str, tuple[float, float]], p=0.01, rho=(0.8, 0.4), starts=8):
    """One task: ρ of M1 and M5 with the planning gap, as expected; intervals of the differences to M1 by metric."""
    about = {"task": "walker-walk", "target": "cpg"}
    rows = [about | dict(metric=m, bank="mixed", expected=-1, spearman=-r, p_permutation=p)
            for m, r in zip(("m5", "m1"), rho[::-1], strict=True)]  # fmt: skip
    rows += [rows[0] | {"bank": "random"}, rows[0] | {"metric": "decisions"}]
    ends = [about | dict(metric=m, difference=-0.4, low=low, high=high, low_naive=low, high_naive=high)
            for m, (low, high) in sides.items()]  # fmt: skip
    gaps = [dict(task="walker-walk", planner="shooting", verdict=v, episodes=starts) for v in ("A", "A", "I")]
    return pd.DataFrame(rows), pd.DataFrame(ends), pd.DataFrame(gaps), ["walker-walk"]


def test_metrics_are_ordered_by_how_well_they_go_with_a_target():
    facts = offline(*study({"m5": (-1, 1)}))
    assert facts["scope"] == "walker-walk" and facts["order"]["cpg"] == ["m1", "m5"] and facts["order"]["kept_e3"] == []
    assert facts["tested"] == 2 and facts["telling"]["cpg"] == ["m1", "m5"] and facts["least_p"] == pytest.approx(0.02)
    assert offline(*study({"m5": (-1, 1)}, rho=(-0.8, 0.4)))["telling"]["cpg"] == ["m5"]  # M1 has the wrong sign
    facts = offline(*study({"m5": (-1, 1)}, p=0.6))
    assert facts["telling"]["cpg"] == [] and facts["least_p"] == 1.0
    facts = offline(*study({"m5": (-1, 1)}, p=None))
    assert facts["tested"] == 0 and facts["least_p"] is None


BELOW, ABOVE, UNCLEAR = (-0.9, -0.1), (0.1, 0.9), (-0.9, 0.3)


@pytest.mark.parametrize(
    ("sides", "p", "guide"),
    [
        ({"m5": BELOW, "m5_latent": BELOW}, 0.5, "plain"),
        ({"m5": ABOVE}, 0.5, "aware"),
        ({"m5": UNCLEAR, "m5_latent": UNCLEAR}, 0.5, "neither"),
        ({"m4": ABOVE, "m5": BELOW}, 0.5, "neither"),
        ({"m5": BELOW, "m5_latent": UNCLEAR}, 0.5, "decoder"),
        ({"m5": BELOW, "m5_latent": BELOW}, None, "no evidence"),
        ({"m5_latent": BELOW}, 0.5, None),
    ],
)
def test_which_kind_of_metric_is_the_better_guide(sides, p, guide):
    assert offline(*study(sides, p))["guide"] == guide


def test_comparisons_of_metrics_are_counted_by_their_intervals():
    facts = offline(*study({"m3": ABOVE, "m4": BELOW, "m5": UNCLEAR, "m5_latent": BELOW}))["compared"]
    assert facts["decoder"] == {"all": 3, "more": 0, "above": 1, "below": 1}
    assert facts["latent"] == {"all": 1, "more": 0, "above": 0, "below": 1}


def test_verdicts_of_few_starts_are_not_counted():
    assert offline(*study({"m5": BELOW}))["verdicts"] == {"walker-walk": {"shooting": {"A": 2, "I": 1}}}
    assert offline(*study({"m5": BELOW}, starts=5))["verdicts"] == {"walker-walk": {"shooting": {}}}


def test_a_study_without_cells_says_nothing():
    empty = pd.DataFrame(columns=["task", "metric", "bank", "target", "n"])
    facts = offline(empty, empty, pd.DataFrame(columns=["cell", "task"]), [])
    assert facts["scope"] is facts["guide"] is facts["least_p"] is None and facts["verdicts"] == {}


def test_the_fastest_of_our_ways_counts():
    key, ways = {"size": "1m", "samples": 64, "iterations": 2, "dtype": "float32"}, ("mode", "batch", "solve_ms_p50")
    times = (("eager", 1, 9.0), ("compiled", 1, 5.0), ("eager", 8, 1.0), ("official-compiled", 1, 2.0))
    assert fastest(pd.DataFrame([key | dict(zip(ways, t, strict=True)) for t in times])) == {
        "1m 64 2 float32": "compiled"
    }
    times = (("update", "official", 1.0), ("update", "eager", 4.0), ("decision", "eager", 5.0))
    table = pd.DataFrame(times, columns=["part", "learner", "p50_ms"]).assign(size="1m")
    assert fastest(table) == {"1m update": "eager", "1m decision": "eager"}
