"""Figures of depth, replans and returns: what is drawn is what the tables say, and it can be read."""

import struct

import numpy as np
import pandas as pd
import pytest

from figures import charts
from figures.pages import fitting
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import write_table
from lib.study.stats.aggregates import performance_profiles
from lib.study.stats.intervals import bootstrap_ci
from tests.figures.test_charts import load_figure, pdf_text
from tests.tiny_results import about

depth, replans, returns, profiles = map(load_figure, ("depth", "replans", "returns", "profiles"))
GATED = {
    "gated-6": 0.22,
    "64×2+gated-6": 0.25,
    "64×2+ladder-6": 0.2,
    "64×2+gate-only-sensitivity-6": 0.3,
}  # arm → calls a decision
ARMS = ["teacher", "policy", "budget-64×2", "open-loop-3", "open-loop-6", "two-tower-6", "64×2+open-loop-6"]
ARMS += ["64×2+two-tower-6", *GATED]
SEEDS = range(8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """cell(name) writes the tables of a cell as an evaluation does."""
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())

    def cell(name="walker-walk-1m-1", arms=ARMS, seeds=SEEDS, errors=True, phases=True):
        folder, rng = paths.results("smoke") / "horizon", np.random.default_rng(len(name))
        horizons = {a: about(a)["execution_horizon"] for a in arms}
        episodes = [
            about(a) | {"episode_seed": s, "return": 950 - 10 * e + 9 * rng.standard_normal()}
            for a, e in horizons.items() for s in seeds
        ]  # fmt: skip
        rows = [{"arm": a, "episode_seed": s, "depth": d} for a, e in horizons.items() for s in seeds for d in range(e)]
        depths = [row | measured(row, rng) for row in rows]
        drawn = [row | {"decision": 7 + d, "action_mse": 0.05 * (1 + row["depth"]) * rng.uniform(0.8, 1.2),
                        "delta_abs": 9.0, "teacher_floor_mse": 0.03 if d == 0 else None}
                 for row in rows for d in range(2)]  # fmt: skip
        at = [{"arm": a, "episode_seed": s, "decision": t, "count": 25,
               "planner_calls": round(25 * rate + t / 100 + s % 2)}
              for a, rate in GATED.items() if a in arms for s in seeds for t in range(0, 500, 25)]  # fmt: skip
        write_table(folder / f"{name}.csv", episodes)
        write_table(folder / f"{name}-depth.csv", depths)
        if errors:
            write_table(folder / f"{name}-action-error.csv", drawn)
        if phases:
            write_table(folder / f"{name}-phase.csv", at or pd.DataFrame(columns=["arm", "episode_seed"]))
        return pd.DataFrame(episodes), pd.DataFrame(depths), pd.DataFrame(drawn), pd.DataFrame(at)

    return cell


def measured(row: dict, rng) -> dict:
    deep = row["depth"] > 0
    corrected = deep and "open-loop" not in row["arm"] and "gate-only" not in row["arm"]
    return {
        "mismatch": (0.03 + 0.01 * row["depth"]) * rng.uniform(0.8, 1.2) if deep else None,
        "delta_abs": 0.1 * row["depth"] * rng.uniform(0.8, 1.2) if corrected else 0.0,
    }


def rendered(name: str, inches: float = 6.8) -> str:
    """The words of a figure that its script has drawn into three files of the right size."""
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.{end}" for end in ("pdf", "png", "svg")]
    width, height = struct.unpack(">II", (folder / f"{name}.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(inches, abs=0.14) and height / charts.PNG_PPI < 8.9
    return pdf_text(folder / f"{name}.pdf")


# ---------------------------------------------------------------------------------------------------------- depth


def test_depth_draws_three_quantities_for_each_planner(home):
    home()
    depth.main(["--profile", "smoke"])
    text = rendered("depth")
    for words in (*depth.QUANTITIES.values(), depth.X_TITLE, "Plans of the standard planner", "Plans of 64×2"):
        assert words in text, words
    assert 'stroke-dasharray="3,2"' in (paths.figures("smoke") / "depth.svg").read_text()  # the floor
    for name in (
        "open loop",
        "two-tower corrector",
        "sensitivity, no corrector",
        "planner at every step",
        "policy prior",
    ):
        assert name in text, name
    assert "temporal" not in text and "walker-walk" not in text and text.count(depth.X_TITLE) == 3


def test_depth_marks_are_means_over_episodes_with_their_intervals(home):
    _, depths, drawn, _ = home()
    marks = depth.read("smoke").set_index(["arm", "quantity", "depth"])
    mine = depths[(depths["arm"] == "two-tower-6") & (depths["depth"] == 4)]
    for quantity in ("mismatch", "delta_abs"):
        mark = marks.loc["two-tower-6", quantity, 4]
        assert mark["mean"] == pytest.approx(mine[quantity].mean())
        assert (mark["low"], mark["high"]) == pytest.approx(bootstrap_ci(mine[quantity]))
    errors = (
        drawn[(drawn["arm"] == "64×2+gated-6") & (drawn["depth"] == 2)].groupby("episode_seed")["action_mse"].mean()
    )
    mark = marks.loc["64×2+gated-6", "action_mse", 2]
    assert mark["mean"] == pytest.approx(errors.mean()) and mark["low"] == pytest.approx(bootstrap_ci(errors)[0])
    assert mark["planner"] == "64×2" and mark["family"] == "gated by mismatch"
    assert marks.loc["two-tower-6", depth.FLOOR, 0]["mean"] == pytest.approx(0.03)


def test_depth_leaves_out_what_says_nothing(home):
    home()
    marks = depth.read("smoke")
    assert "open-loop-3" not in set(marks["arm"]) and "open-loop-6" in set(marks["arm"])
    shown = marks.groupby("quantity")["arm"].agg(set)
    assert shown["delta_abs"] == {"two-tower-6", "64×2+two-tower-6", "gated-6", "64×2+gated-6", "64×2+ladder-6"}
    # a gate lets small mismatches pass: what is left of them says nothing of the plan
    assert shown["mismatch"] and not any(about(arm)["gate"] for arm in shown["mismatch"])
    assert not shown["mismatch"] & {"teacher", "policy", "budget-64×2"} and shown["action_mse"] >= {"teacher", "policy"}
    depths = marks.groupby("quantity")["depth"].min().to_dict()
    assert depths == {"mismatch": 1, "delta_abs": 1, "action_mse": 0, depth.FLOOR: 0}
    assert marks.loc[marks["quantity"] == "delta_abs", "mean"].max() < 1  # of whole episodes, not of the drawn states


@pytest.mark.parametrize(
    ("arms", "kept"),
    [
        (["open-loop-3", "open-loop-6", "open-loop-12"], ["open-loop-12"]),
        (["64×2+open-loop-6", "open-loop-2"], ["64×2+open-loop-6", "open-loop-2"]),
        (["teacher", "policy", "budget-64×2", "budget-32×2"], ["teacher", "policy", "budget-64×2", "budget-32×2"]),
        (["two-tower-6", "two-tower-3", "temporal-3"], ["two-tower-6", "temporal-3"]),
    ],
)
def test_of_arms_that_differ_in_the_horizon_alone_the_longest_is_drawn(arms, kept):
    table = pd.DataFrame([about(arm) for arm in arms for _ in range(2)])
    assert depth.deepest(table)["arm"].unique().tolist() == kept


def test_depth_without_action_errors_has_two_panels_and_cells_have_names(home):
    home(errors=False)
    home("cup-catch-1m-1", errors=False)
    chart = depth.draw(depth.read("smoke")).to_dict()
    rows = chart["vconcat"]
    assert [len(row["hconcat"]) for row in rows] == [2, 2, 2, 2]
    assert [row["title"] for row in rows][::2] == [
        f"{cell} (1m), plans of the standard planner" for cell in ("cup-catch", "walker-walk")
    ]
    domains = {str(panel["layer"][0]["encoding"]["y"]["scale"]["domain"]) for row in rows for panel in row["hconcat"]}
    assert len(domains) == 2  # the same axis for a quantity everywhere


def test_a_single_episode_has_marks_without_intervals(home, tmp_path):
    home(seeds=[3])
    for script in (depth, replans):
        marks = script.read("smoke")
        assert marks["mean"].notna().all() and marks[["low", "high"]].isna().all(axis=None)
        charts.save(script.draw(marks), tmp_path / "one")
        assert "NaN" not in (tmp_path / "one.svg").read_text()
    assert returns.medians(returns.read("smoke"))[["low", "high"]].isna().all(axis=None)


# -------------------------------------------------------------------------------------------------------- replans


def test_replans_draw_a_panel_for_each_planner(home):
    home()
    replans.main(["--profile", "smoke"])
    text = rendered("replans")
    for words in (replans.X_TITLE, replans.Y_TITLE, "Plans of 64×2", "no gate: 1 in 6", "gated by mismatch", "ladder"):
        assert words in text, words
    assert "open loop" not in text and text.count(replans.Y_TITLE) == 1


def test_replans_are_calls_per_decision_of_each_phase(home):
    *_, phases = home()
    marks = replans.read("smoke")
    assert len(marks) == 20 * len(GATED) and set(marks["execution_horizon"]) == {6}
    mine = phases[(phases["arm"] == "64×2+ladder-6") & (phases["decision"] == 75)]
    rates = mine["planner_calls"] / 25
    (mark,) = marks[(marks["arm"] == "64×2+ladder-6") & (marks["decision"] == 87.5)].to_dict("records")
    assert mark["mean"] == pytest.approx(rates.mean()) and mark["planner"] == "64×2"
    assert (mark["low"], mark["high"]) == pytest.approx(bootstrap_ci(rates))
    spec = replans.draw(marks).to_dict()
    rule = spec["concat"][0]["layer"][0]
    assert [row["y"] for row in spec["datasets"][rule["data"]["name"]]] == [pytest.approx(1 / 6)]


def test_the_last_phase_of_an_episode_that_ended_counts_by_its_own_decisions():
    rows = [{"arm": "gated-6", "episode_seed": s, "decision": 50, "count": n, "planner_calls": c}
            for s, n, c in ((0, 25, 5), (1, 10, 5))]  # fmt: skip
    (mark,) = replans.means(pd.DataFrame([row | about("gated-6") for row in rows]))
    assert mark["mean"] == pytest.approx((0.2 + 0.5) / 2) and mark["decision"] == 62.5


def test_cells_without_a_gate_have_no_panel(home):
    home("cup-catch-1m-1", arms=["teacher", "open-loop-3"])
    with pytest.raises(ResultError, match="no cell of smoke has phases of a gated arm"):
        replans.read("smoke")
    home()
    assert set(replans.read("smoke")["cell"]) == {"walker-walk-1m-1"}


# -------------------------------------------------------------------------------------------------------- returns


def test_returns_draw_every_episode_of_every_arm(home):
    episodes, *_ = home()
    returns.main(["--profile", "smoke"])
    text = rendered("returns")
    assert returns.X_TITLE in text and all(arm in text for arm in ARMS)
    chart = returns.draw(returns.read("smoke")).to_dict()
    dots = next(layer for layer in chart["layer"] if layer["mark"]["type"] == "circle")
    rows = pd.DataFrame(chart["datasets"][dots["data"]["name"]])
    assert sorted(rows["return"]) == sorted(episodes["return"]) and rows["offset"].abs().max() <= returns.JITTER
    low, high = dots["encoding"]["x"]["scale"]["domain"]
    assert low < episodes["return"].min() and high > episodes["return"].max()


def test_returns_have_medians_with_intervals(home):
    episodes, *_ = home()
    marks = returns.medians(returns.read("smoke")).set_index("arm")
    for arm, mine in episodes.groupby("arm")["return"]:
        assert marks.loc[arm, "median"] == pytest.approx(np.median(mine))
        assert (marks.loc[arm, "low"], marks.loc[arm, "high"]) == pytest.approx(bootstrap_ci(mine, np.median))


def test_many_cells_show_the_arms_that_all_have_played(home):
    names = [f"{task}-1m-1" for task in ("walker-walk", "cup-catch", "cheetah-run", "finger-spin")]
    for name in names:
        home(name, arms=ARMS if name == names[0] else ["teacher", "policy", "two-tower-6"], seeds=range(3))
    chart = returns.draw(returns.read("smoke")).to_dict()
    assert chart["columns"] == 4 and [panel["title"]["text"] for panel in chart["concat"]] == [
        name.replace("-1m-1", " (1m)") for name in sorted(names)
    ]
    arms = {row["arm"] for rows in chart["datasets"].values() for row in rows}
    assert arms == {"teacher", "policy", "two-tower-6"}
    home("reacher-easy-1m-1", arms=["teacher"])
    home("walker-run-1m-1", arms=["teacher"])
    assert returns.draw(returns.read("smoke")).to_dict()["columns"] == 3  # six cells in two rows


# ------------------------------------------------------------------------------------------------------- profiles


def test_profiles_are_drawn_where_the_arms_differ(home):
    arms = ["teacher", "policy", "budget-64×2", "two-tower-6", "64×2+two-tower-3", "64×2+open-loop-3"]
    arms += ["64×2+open-loop-6", "64×2+gated-6"]
    episodes, *_ = home(arms=arms)
    write_table(paths.results("smoke") / "horizon" / "summary.csv", [about(arm) for arm in arms])
    rows = {"walker-walk-1m-1": episodes.assign(task="walker-walk", size="1m", teacher_seed=1)}
    folder = paths.results("smoke") / "statistics"
    with pytest.raises(ResultError):
        profiles.read("smoke")
    write_table(folder / "profiles.csv", performance_profiles(rows, resamples=200))
    marks = profiles.read("smoke")
    drawn = ["teacher", "budget-64×2", "policy", "64×2+open-loop-3", "64×2+two-tower-3"]
    assert marks["arm"].drop_duplicates().tolist() == drawn
    assert 0.8 <= marks["tau"].min() <= 0.95 and 1 <= marks["tau"].max() <= 1.1
    teacher = episodes.loc[episodes["arm"] == "teacher", "return"].mean()
    for arm, mine in marks.groupby("arm"):
        returns_of = episodes.loc[episodes["arm"] == arm, "return"].to_numpy()
        assert mine["estimate"].to_numpy() == pytest.approx([(returns_of > t * teacher).mean() for t in mine["tau"]])
    picked = [{"arm": arm, "chosen": arm == "64×2+gated-6"} for arm in ("64×2+two-tower-3", "64×2+gated-6")]
    write_table(folder / "headline.csv", picked)
    assert profiles.read("smoke")["arm"].drop_duplicates().tolist() == [*drawn[:3], "64×2+open-loop-6", "64×2+gated-6"]
    profiles.main(["--profile", "smoke"])
    text = rendered("profiles", 3.4)
    for words in (profiles.X_TITLE, profiles.Y_TITLE, "budget-64×2", "64×2+gated-6"):
        assert words in text


def test_of_more_cells_than_a_page_holds_those_with_the_most_episodes_are_drawn(home, monkeypatch, capsys):
    for name, seeds in (("a-1m-1", range(3)), ("b-1m-1", range(2)), ("c-1m-1", range(4))):
        home(name, seeds=seeds, errors=False)
    for script, most in ((depth, "MOST_ROWS"), (replans, "MOST")):
        marks = script.read("smoke")
        assert fitting(marks, 4, "name", "planner")["cell"].drop_duplicates().tolist() == ["a-1m-1", "c-1m-1"]
        assert capsys.readouterr().err == "name: a page does not hold all cells; left out: b-1m-1\n"
        assert fitting(marks, 1, "name", "planner")["cell"].unique().tolist() == ["c-1m-1"]  # one in any case
        assert fitting(marks, 2, "name")["cell"].drop_duplicates().tolist() == ["a-1m-1", "c-1m-1"]
        capsys.readouterr()
        two = marks[marks["cell"] != "b-1m-1"]
        assert fitting(two, 4, "name", "planner").equals(two) and not capsys.readouterr().err
        monkeypatch.setattr(script, most, 4)
        script.draw(marks)
        assert "left out: b-1m-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words"),
    [(depth, "has an arm that executes more"), (replans, "has phases"), (returns, None)],
)
def test_nothing_to_draw_is_a_sentence(home, script, words):
    with pytest.raises(ResultError, match="holds no evaluated cell; run `make all`"):
        script.read("smoke")
    home(arms=["teacher"])
    if words:
        with pytest.raises(ResultError, match=f"no cell of smoke {words}.*; evaluate one"):
            script.read("smoke")


@pytest.mark.parametrize("figure", [depth, load_figure("decision_transformer")])
@pytest.mark.parametrize("profile", ["../quick", "", "qick"])
def test_an_unknown_profile_is_refused(home, figure, profile, capsys):
    with pytest.raises(SystemExit, match="2"):
        figure.main(["--profile", profile])
    assert "invalid choice" in capsys.readouterr().err and not list(paths.DATA.parent.rglob("*.svg"))
