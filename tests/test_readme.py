"""The README's numbers are those of the committed results, and whatever it names is there."""

import importlib.util
import re

import pytest

from lib.records import paths
from lib.study.stats.checked import check, read_claims

PAGES = [paths.ROOT / "README.md", *sorted((paths.PAPER / "docs").glob("*.md"))]


def load_readme():
    spec = importlib.util.spec_from_file_location("paper_readme", paths.PAPER / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme = load_readme()


def test_the_table_is_that_of_the_results_and_no_other_number_is_measured():
    text = PAGES[0].read_text(encoding="utf-8")
    assert readme.updated(text) == text, "run python paper/readme.py"
    prose = re.sub(r"(?s)```.*?```", "", text.split(readme.BEGIN)[0] + text.split(readme.END)[1])
    assert not re.search(r"\d[\d.,]* ?(%|ms\b|times|milliseconds)", prose.replace("keeps 98 %", ""))


def test_every_finding_is_a_claim_that_holds():
    text = PAGES[0].read_text(encoding="utf-8")
    findings = re.findall(r"(?sm)^\d\. .*?(?=^\d\. |^$)", text.split("## What came out")[1].split("<!-- numbers")[0])
    claims = read_claims(paths.PAPER / "claims.toml")
    assert len(findings) == 3
    for finding in findings:
        names = re.search(r"<!-- claims: (.*?) -->", finding)[1].split(", ")
        for name in names:
            assert (found := check(name, claims[name], paths.results("paper")))["holds"], found


def test_a_changed_result_changes_the_table(monkeypatch):
    read = readme.read_table
    monkeypatch.setattr(readme, "read_table", lambda path: read(path).assign(kept=0.5, p_holm=1.0))
    assert "50 % (lowest 50 %) | 0 of 7 teachers" in readme.updated(PAGES[0].read_text(encoding="utf-8"))


def test_the_speed_table_is_that_of_the_results(monkeypatch):
    page = paths.PAPER / "docs" / "speed.md"
    text = page.read_text(encoding="utf-8")
    assert readme.updated(text, readme.PAGES[page]) == text, "run python paper/readme.py"
    read = readme.read_table
    monkeypatch.setattr(
        readme, "read_table", lambda path: read(path).assign(twin_ms_p50=200.0) if path.stem == "cpu" else read(path)
    )
    solve = readme.updated(text, readme.speed).split("| solve 512 × 6, 1m | ")[1].split("\n")[0]
    assert solve == "200 | 75 | 50 | 2.65 × | 4.00 × |"  # 200 / 75.4965, 200 / 50.0126


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120
