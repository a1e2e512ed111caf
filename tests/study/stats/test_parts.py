"""What each part adds: pairs of arms that differ in nothing else."""

import pytest

from lib.config import PlannerConfig
from lib.study.arms import make_arm
from lib.study.stats.intervals import paired_difference
from lib.study.stats.parts import PARTS, parts
from tests.study.stats.test_comparisons import episodes

ARMS = {"teacher": 20.0, "budget-64×2": 21.0, "64×2+open-loop-6": 15.0, "64×2+two-tower-6": 18.0}


def table(arms=ARMS, seeds=range(10)):
    return episodes(
        {name: lambda s, mean=mean, name=name: mean + (s * len(name)) % 3 for name, mean in arms.items()}, seeds
    )


def test_each_part_is_the_difference_of_two_arms_on_the_same_episodes():
    rows = table()
    found = parts(rows).set_index("part")
    assert list(found.index) == ["right-sizing", "plan reuse", "corrector"]
    of = {name: arm.set_index("episode_seed")["return"] for name, arm in rows.groupby("arm")}
    mine = paired_difference(of["64×2+two-tower-6"], of["64×2+open-loop-6"])
    row = found.loc["corrector"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == mine and row["episodes"] == 10
    assert row["share"] == pytest.approx(mine.value / of["teacher"].mean())


def test_only_shared_episodes_count():
    rows = table()
    fewer = rows[(rows["arm"] != "64×2+two-tower-6") | (rows["episode_seed"] < rows["episode_seed"].max())]
    assert parts(fewer).set_index("part").loc["corrector", "episodes"] == 9


def test_evaluations_are_the_arms_per_one_of_what_lacks_the_part():
    rows = table()
    for name, spent in {"teacher": 900, "budget-64×2": 90, "64×2+open-loop-6": 15}.items():
        rows.loc[rows["arm"] == name, "model_evaluations"] = spent
    found = parts(rows).set_index("part")["evaluations"]
    assert found["right-sizing"] == pytest.approx(0.1) and found["plan reuse"] == pytest.approx(1 / 6)


def test_every_name_is_that_of_an_arm():
    for names in PARTS.values():
        assert [make_arm(name, PlannerConfig()).name for name in names] == list(names)
    assert parts(table({"teacher": 3.0})).empty
