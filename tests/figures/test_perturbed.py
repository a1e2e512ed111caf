"""The figure of perturbed worlds: what is drawn is what the tables say, the teacher's own world in every panel."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.records import paths
from lib.records.jobs import Scope, profile
from lib.records.keys import ResultError
from lib.records.needs import MOST_CELLS
from lib.records.pipeline import jobs
from lib.records.store import read_table, write_table
from lib.study.perturb import ABOUT, PLAYED, perturbed_cells, perturbed_file
from lib.study.stats.changed import summarise
from lib.study.stats.intervals import bootstrap_ci
from tests.figures.test_charts import load_figure, pdf_text
from tests.tiny_results import about

perturbed = load_figure("perturbed")
ARMS = {"teacher": 0.9, "budget-128×2": 0.95, "64×2+gated-6": 0.8, "policy": 0.4}
WORLDS = {"mass": (1.25, 1.5, 2), "gain": (0.9, 0.8, 0.7, 0.6), "friction": (0.7, 0.4, 0.2), "push": (0.02, 0.05, 0.1)}
WORLDS |= {"noise": (0.05, 0.1, 0.2)}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """cell(name) writes the table of a cell as the study does."""
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())

    def cell(name="walker-walk-1m-1", worlds=WORLDS, episodes=6):
        rng, rows = np.random.default_rng(len(name)), []
        for kind, severity in [("none", None)] + [(k, s) for k, levels in worlds.items() for s in levels]:
            for arm, share in ARMS.items():
                off = abs((severity or 1) - perturbed.KINDS.get(kind, 1))
                for seed in range(episodes):
                    calls = {"policy": 0, "64×2+gated-6": 60 + round(90 * off)}.get(arm, 500)
                    mine = {"arm": arm, "perturbation": kind, "severity": severity, "episode_seed": seed}
                    value = 1000 * share * (1 - 0.6 * off * share) + rng.normal(0, 20)
                    rows.append(mine | {"return": value, "planner_calls": calls, "length": 500})
        about = {"task": "walker-walk", "size": "1m", "teacher_seed": 1}
        table = pd.DataFrame([about | row for row in rows])[[*ABOUT, *PLAYED]]
        write_table(perturbed_file("smoke", name), table)
        found = [summarise(c, read_table(perturbed_file("smoke", c)), "teacher") for c in perturbed_cells("smoke")]
        write_table(perturbed_file("smoke", "summary"), pd.concat(found))
        return table

    return cell


def test_means_and_intervals_are_those_of_the_episodes(home):
    write_table(perturbed_file("smoke", "walker-walk-1m-1-std"), [{"number": 0, "std": 1.0}])  # which is no cell
    table = home(worlds={"mass": (1.5,), "push": (0.1,)})
    marks = perturbed.read("smoke")
    assert len(marks) == len(ARMS) * 4 and set(marks["cell"]) == {"walker-walk-1m-1"}
    for (kind, severity), world in {("mass", 1.0): "none", ("mass", 1.5): "mass", ("push", 0.0): "none"}.items():
        mine = table[(table["perturbation"] == world) & (table["arm"] == "64×2+gated-6")]
        (mark,) = marks[
            (marks["kind"] == kind) & (marks["severity"] == severity) & (marks["arm"] == "64×2+gated-6")
        ].to_dict("records")
        assert mark["return"] == mine["return"].mean()
        assert (mark["return_low"], mark["return_high"]) == bootstrap_ci(mine["return"])
        assert mark["calls"] == mine["planner_calls"].iloc[0] / 500 and mark["episodes"] == 6


def test_checks_by_one_score_are_left_to_their_table(home, monkeypatch):
    for arm in ("draft+gated", "draft+value", "clone+gated"):
        monkeypatch.setitem(ARMS, f"128×2+{arm}-3-r30", 0.9)
    home(worlds={"mass": (1.5,)})
    drawn = set(perturbed.read("smoke")["arm"])
    assert drawn == {*ARMS} - {"128×2+draft+value-3-r30"}


def test_all_that_is_drawn_can_be_read(home):
    for name in ("walker-walk-1m-1", "cheetah-run-1m-1"):
        home(name)
    perturbed.main(["--profile", "smoke"])
    assert not (paths.figures("smoke") / "perturbed-cells.pdf").exists()
    words = pdf_text(paths.figures("smoke") / "perturbed.pdf")
    called = perturbed.words({arm: about(arm)["scheme"] for arm in ARMS})
    assert called["budget-128×2"] == "planner at every step (budget-128×2)"  # as the teacher is called the same
    for text in (*called.values(), *perturbed.TITLES.values(), perturbed.RETURN, perturbed.CALLS, "cheetah-run (1m)"):
        assert text in words
    drawn = json.dumps(perturbed.draw(perturbed.read("smoke")).to_dict())
    assert drawn.count('"y2"') == 10  # an interval in each panel of returns


def test_a_cell_without_contacts_has_a_panel_less(home):
    home()
    home("reacher-easy-1m-1", {kind: levels for kind, levels in WORLDS.items() if kind != "friction"})
    rows = perturbed.draw(perturbed.read("smoke")).to_dict()["vconcat"]
    assert sorted((len(row["concat"]), row["columns"]) for row in rows) == [(8, 4), (10, 5)]


def test_many_cells_have_two_figures_the_first_of_those_that_the_profile_names_first(home):
    for name in ("cheetah-run-1m-1", "cup-catch-1m-1", "walker-walk-1m-1"):  # smoke names the last one
        home(name)
    assert perturbed_cells("smoke") == ["walker-walk-1m-1", "cheetah-run-1m-1", "cup-catch-1m-1"]
    perturbed.main(["--profile", "smoke"])
    first, others = (pdf_text(paths.figures("smoke") / f"perturbed{end}.pdf") for end in ("", "-cells"))
    assert "walker-walk (1m)" in first and "cheetah-run (1m)" in first and "cup-catch" not in first
    assert "cup-catch (1m)" in others and "walker-walk" not in others
    assert perturbed.MOST == MOST_CELLS["perturbed-cells"]  # as the stage has it, which says when there are two


def test_the_stage_has_a_second_figure_for_more_cells_than_the_first_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / profile)
    cells, found = ("a-1m-1", "b-1m-1", "c-1m-1"), []
    for cell in cells:
        write_table(perturbed_file("paper", cell), [{"arm": "policy"}])
        (job,) = jobs(Scope.of(profile("paper"), cells), ("perturbed-figure",))
        found.append([out.stem for out in job.outs])
    assert found == [["perturbed"], ["perturbed"], ["perturbed", "perturbed-cells"]]


def test_without_results_the_sentence_says_what_to_do(home):
    with pytest.raises(ResultError, match="perturbed/summary.csv does not exist"):
        perturbed.read("smoke")
    with pytest.raises(ResultError, match="no cell of smoke was played in perturbed worlds; add one to its perturb_c"):
        perturbed_cells("smoke")
