"""The figure of drafts: what is drawn is what the tables say, other trainings apart from the lines."""

import numpy as np
import pandas as pd
import pytest

from lib.records import paths
from lib.records.store import write_table
from lib.study.drafting import CURVE
from lib.study.stats.drafts import LINE, OTHER_SEED, SEVERAL_MODES, learnt
from lib.study.stats.intervals import bootstrap_ci
from tests.figures.test_charts import load_figure, pdf_text

drafts = load_figure("drafts")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """cell(name) makes a table of a cell as notebook 11 does, and the summary of all so far."""
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    tables = {}

    def cell(name="walker-walk-1m-1", episodes=5):
        random, rows = np.random.default_rng(len(name)), []

        def add(draft, mean, labels=None, modes=None, seed=None, number=None):
            own = {"draft": draft, "labels": labels, "modes": modes, "seed": seed, "round": number}
            own = dict.fromkeys(CURVE) | own
            rows.extend(own | {"episode_seed": i, "return": mean + random.normal(0, 9)} for i in range(episodes))

        add("labeller", 950), add("policy", 500)
        for number, labels in enumerate((1_000, 3_000, 10_000), 1):
            add("distilled", 600 + labels / 40, labels, 1, 0, number), add("prior+", 520, labels, None, 0, number)
            if labels < 10_000:
                add("cloned", 550 + labels / 50, labels, 1, 0, number)
        add("distilled", 830, 10_000, 1, 1, 3), add("distilled", 400, 10_000, 4, 0, 3)
        tables[name] = pd.DataFrame(rows)
        write_table(paths.results("smoke") / "statistics" / "drafts.csv", learnt(tables))
        return tables[name]

    return cell


def test_means_and_intervals_are_those_of_the_episodes(home):
    table = home()
    marks = drafts.read("smoke")
    assert len(marks) == 2 + 8 + 2 and marks["episodes"].eq(5).all()
    assert marks["training"].value_counts().to_dict() == {LINE: 10, OTHER_SEED: 1, SEVERAL_MODES: 1}
    listed = marks[marks["listed"]]
    assert listed["draft"].tolist() == ["labeller", "policy", "distilled", "prior+", "cloned"]
    assert listed["labels"].dropna().eq(3_000).all()
    (mark,) = marks[(marks["draft"] == "cloned") & (marks["labels"] == 3_000)].to_dict("records")
    mine = table[(table["draft"] == "cloned") & (table["labels"] == 3_000)]["return"]
    assert mark["return"] == mine.mean() and (mark["return_low"], mark["return_high"]) == bootstrap_ci(mine)


def layer(spec, kind):
    return [
        row for one in spec["layer"] if one["mark"]["type"] == kind for row in spec["datasets"][one["data"]["name"]]
    ]


def test_lines_are_of_the_usual_training_and_rules_of_those_without_labels(home):
    home()
    whole = drafts.draw(drafts.read("smoke")).to_dict()
    spec = whole["concat"][0] | {"datasets": whole["datasets"]}
    assert {row["draft"] for row in layer(spec, "line")} == {"distilled", "cloned", "prior+"}
    assert all(row["training"] == LINE and row["labels"] > 0 for row in layer(spec, "line"))
    dashed = [one for one in spec["layer"] if one["mark"].get("strokeDash")]
    assert {row["draft"] for row in spec["datasets"][dashed[0]["data"]["name"]]} == {"labeller", "policy"}
    low, high = next(one["encoding"]["y"]["scale"]["domain"] for one in spec["layer"] if one["mark"]["type"] == "line")
    assert low == 0 and high > 950


def test_the_page_shows_cells_beside_each_other(home):
    for name in ("walker-walk-1m-1", "cup-catch-1m-1", "reacher-easy-1m-1", "cheetah-run-1m-1"):
        home(name)
    drafts.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == ["drafts.pdf", "drafts.png", "drafts.svg"]
    text = pdf_text(folder / "drafts.pdf")
    for words in (
        "walker-walk (1m)",
        "cup-catch (1m)",
        "Labels (thousands)",
        "Return",
        "draft of DAgger",
        "clone",
        "more prior updates",
        "planner that labels",
        "policy prior",
    ):
        assert words in text
