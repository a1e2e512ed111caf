"""The figure of certified choices: what is written beside a mark, how it looks, and that it can be read."""

import math

import pytest

from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import write_table
from tests.figures.test_charts import load_figure, pdf_text

certified = load_figure("certified")
PICKS = {"planners": "budget-64×2", "reuse": "64×2+gated-6", "drafts": "teacher", "clone": "cloned", "all": "cloned"}


def rows(cell, ratio=12.0, kept=0.99, verdict="shown"):
    return [
        {"cell": cell, "chain": chain, "pick": pick, "episodes": 100, "kept": 1.0 if pick == "teacher" else kept,
         "kept_low": 1.0 if pick == "teacher" else kept - 0.008, "kept_high": 1.0 if pick == "teacher" else kept + 0.02,
         "verdict": "shown" if pick == "teacher" else verdict, "fallback": pick == "teacher",
         "evaluations_ratio": 1.0 if pick == "teacher" else ratio}
        for chain, pick in PICKS.items()
    ]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("DATA", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return lambda *cells: write_table(paths.results("smoke") / "certified" / "summary.csv", sum(cells, []))


def test_labels_and_looks(home):
    home(rows("walker-walk-1m-1"), rows("cup-catch-1m-1", math.inf, 0.93, "broken"), rows("a-1m-1", 6.25))
    table = certified.read("smoke").set_index(["cell", "chain"])
    assert table.loc[("walker-walk-1m-1", "planners"), "label"] == "budget-64×2, 12×"
    assert table.loc[("a-1m-1", "reuse"), "label"] == "64×2+gated-6, 6.2×"
    assert table.loc[("cup-catch-1m-1", "all"), "label"] == "cloned, ∞×"
    assert table.loc[("a-1m-1", "drafts"), ["label", "look"]].tolist() == ["teacher", "only the teacher passed"]
    assert table.loc[("cup-catch-1m-1", "all"), ["y", "look"]].tolist() == [93, "promise broken"]
    looks = list(certified.VERDICTS.values())
    assert all(len({look[i] for look in looks}) == len(looks) for i in range(3))  # told apart without colour, too


def test_it_is_drawn_with_every_cell_and_chain(home):
    home(rows("walker-walk-1m-1"), rows("cup-catch-1m-1", math.inf, 0.8, "broken"))
    certified.main(["--profile", "smoke"])
    text = pdf_text(paths.figures("smoke") / "certified.pdf")
    for words in (
        "walker-walk (1m)",
        "cup-catch (1m)",
        *certified.CHAINS.values(),
        "budget-64×2, 12×",
        "promise broken",
    ):
        assert words in text
    assert " 80 " in text  # the axis reaches what lies far below


def test_without_results_it_says_how_to_make_them(home):
    with pytest.raises(ResultError, match="summary.csv does not exist; run `make all"):
        certified.main(["--profile", "smoke"])
