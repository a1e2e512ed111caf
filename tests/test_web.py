"""The web edition says what the tables say, loads nothing from elsewhere, and is there whole or not at all; and in a
browser (slow, where there is one) its explorer shows what is chosen."""

import json
import math
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from lib.config import PlannerConfig
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import read_table, sidecar, write_artefact
from lib.study.arms import make_arm
from paper import explorer, readme, web
from tests.study.stats.test_deadlines import PERIOD
from tests.study.stats.test_deadlines import tables as delayed
from tests.tiny_results import episodes

FOLDER = paths.results("paper")
CELL = "reacher-easy-1m-1"
HOSTILE = '</script><img src="x" onerror="alert(1)"> & "quotes"'
RUN = nbformat.v4.new_notebook(
    metadata={"papermill": {"end_time": "2026-11-29T10:00:00"}},
    cells=[
        nbformat.v4.new_markdown_cell("# 1 · The teacher\n\n**Question.** How good is <it>?"),
        nbformat.v4.new_code_cell(
            "1",
            outputs=[
                nbformat.v4.new_output("display_data", {"text/html": "<SCRIPT src='//a.b/c'>", "text/plain": "kept"}),
                nbformat.v4.new_output(
                    "display_data", {"application/javascript": "alert(1)", "text/plain": "as words"}
                ),
            ],
        ),
    ],
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of the committed results, with one notebook that was executed, and one in quick."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(paths, "BUILD", tmp_path_factory.mktemp("build"))
        for name in ("paper/01_teacher-walker-run-1m-1", "quick/01_teacher-x", "quick/11_drafts-x"):
            run = paths.BUILD / f"{name}.ipynb"
            run.parent.mkdir(exist_ok=True)
            nbformat.write(RUN, run)
        yield web.build()


def data_of(site: Path) -> dict:
    page = (site / "explorer.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


# -------------------------------------------------------------------------------------------------------------- data


def test_the_page_has_every_arm_and_every_episode_of_the_tables(site):
    data, summary = data_of(site), read_table(FOLDER / "horizon/summary.csv")
    assert [cell["name"] for cell in data["cells"]] == list(summary["cell"].drop_duplicates())
    for cell in data["cells"]:
        rows = summary[summary["cell"] == cell["name"]].set_index("arm")
        played = read_table(FOLDER / f"horizon/{cell['name']}.csv")
        arms = [arm for arm in cell["arms"] if "delay" not in arm["cost"]]  # others are of another study
        assert [arm["arm"] for arm in arms] == list(rows.index)
        assert len({arm["arm"] for arm in cell["arms"]}) == len(cell["arms"])
        for arm in arms:
            row, mine = rows.loc[arm["arm"]], played[played["arm"] == arm["arm"]]
            assert arm["kept"] == [row["kept"], row["kept_low"], row["kept_high"]]
            assert arm["cost"]["model_evaluations"][0] == pytest.approx(row["model_evaluations"] / 500, rel=1e-12)
            assert arm["cost"]["planner_calls"][0] == pytest.approx(row["planner_calls"] / 500, rel=1e-12)
            assert ("step_ms" in arm["cost"]) == (not math.isnan(row["step_ms"]))
            assert arm["cost"].get("step_ms", [row["step_ms"]])[0] is not None
            assert [one[2] for one in arm["episodes"]] == list(mine["return"])
            teacher = played[played["arm"] == "teacher"].set_index("episode_seed")["return"]
            assert all(beside == teacher[seed] for seed, beside, _, _ in arm["episodes"])
            assert sum(one[3] for one in arm["episodes"]) == row["failures"]


def test_verdicts_are_those_of_the_test_and_of_the_interval(site):
    cell = next(cell for cell in data_of(site)["cells"] if cell["name"] == CELL)
    found = {arm["arm"]: arm["verdict"] for arm in cell["arms"] if "delay" not in arm["cost"]}
    tests = read_table(FOLDER / "statistics/comparisons.csv").query(
        "role == 'teacher' and cell == @CELL and p_holm < 0.05"
    )
    assert {arm for arm, verdict in found.items() if verdict == "shown to keep 98 %"} == set(tests["arm"])
    low = read_table(FOLDER / "horizon/summary.csv").query("cell == @CELL and kept_high < 0.98")
    assert {arm for arm, verdict in found.items() if verdict == "interval below 98 %"} == set(low["arm"])
    assert found["teacher"] == "the reference" and "inconclusive" in found.values()


def test_drafts_stand_apart_from_the_arms(site):
    drafts = read_table(FOLDER / "statistics/drafts.csv").query("listed")
    for cell in data_of(site)["cells"]:
        rows = drafts[drafts["cell"] == cell["name"]]
        assert [one["value"][0] for one in cell["drafts"]] == list(rows["return"])
        assert all(one["name"] != "other" for one in cell["drafts"])


def test_a_planner_that_is_late_is_drawn_by_its_delay():
    from lib.study.stats.deadlines import summarise

    played, steps = delayed()
    found = {arm["arm"]: arm for arm in explorer.delayed(summarise("a-1m-1", played, steps, PERIOD), played)}
    arm = found["async+two-tower, 128×2, 2 late"]
    assert arm["cost"] == {"delay": [2.0, None, None]} and arm["kept"][0] == pytest.approx(0.99)
    assert arm["episodes"] == [[0, 95.0, 99.0, False], [1, 105.0, 99.0, False]] and not arm["hollow"]
    assert found["policy, at once"]["cost"]["delay"][0] == 0 and found["late, 64×2, 2 late"]["hollow"]
    assert [one[3] for one in found["late, 64×2, 2 late"]["episodes"]] == [True, True]


def test_a_summary_of_other_episodes_is_named():
    rows = read_table(FOLDER / "horizon/summary.csv").query("cell == @CELL")
    with pytest.raises(ResultError, match=r"has policy of reacher-easy-1m-1.*python paper/summary.py"):
        explorer.evaluated(rows, read_table(FOLDER / f"horizon/{CELL}.csv").query("arm != 'policy'"), {})


def test_short_and_bad_episodes_failed():
    played = episodes({"teacher": lambda seed: 100.0, "policy": lambda seed: [100.0, 49.0, 51.0][seed]}, range(3))
    played.loc[(played["arm"] == "policy") & (played["episode_seed"] == 0), "length"] = 499
    rows = played.drop_duplicates("arm").assign(cell="a-1m-1", kept=0.7, kept_low=0.5, kept_high=0.9)
    policy = explorer.evaluated(rows, played, {})[1]
    assert [one[3] for one in policy["episodes"]] == [True, True, False]
    assert policy["verdict"] == "interval below 98 %"


def test_tails_are_known_where_enough_steps_were_timed(monkeypatch):
    timed = [
        ("teacher", "step", 1, 90.0),
        ("teacher", "plan", 1, 95.0),
        ("policy", "step", 1, None),
        ("a", "step", 50, 2),
    ]
    table = pd.DataFrame(timed, columns=["arm", "part", "batch", "p99_ms"])
    monkeypatch.setattr(explorer, "read_table", lambda path: table)
    assert explorer.tails("paper", CELL)["step_p99_ms"].to_dict() == {"teacher": 90.0}
    monkeypatch.setattr(explorer, "read_table", lambda path: table.drop(columns="p99_ms"))
    assert len(explorer.tails("paper", CELL)) == 0


def test_of_two_formats_of_a_film_the_one_that_can_pause_is_shown_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    at_once, late = ({"arm": "late-hold", "planner": "64×2", "delay": delay} for delay in (None, 4))
    arms = {
        "cloned": {"words": "certified: a clone that never plans", "label": at_once | {"arm": "cloned"}},
        "64×2+late-hold-d4": {"words": "late plans (64×2)", "label": late},
        "late-hold-d1": {"words": "late plans (512×6)", "label": late | {"planner": "512×6", "delay": 1}},
    }
    for name in ("film.gif", "film.mp4", "film-late.gif", "film-lost.gif"):
        write_artefact(
            tmp_path / "paper" / name, lambda path: path.write_bytes(b"0"), cell="walker-run-1m-1", arms=arms
        )
    sidecar(tmp_path / "paper/film-lost.gif").unlink()
    panels = [
        {"words": "certified: a clone that never plans", "arm": "cloned"},
        {"words": "late plans (64×2), 4 decisions late", "arm": "late-hold, 64×2, 4 late"},
        {"words": "late plans (512×6), 1 decision late", "arm": None},  # which the cell does not have
    ]
    here = {"walker-run-1m-1": {"cloned", "late-hold, 64×2, 4 late", "late-hold, 128×2, 4 late"}}
    shown = {"cell": "walker-run-1m-1", "title": "walker-run (1m)", "panels": panels}
    films = explorer.films("paper", here)
    assert films == [{"file": "film-late.gif"} | shown, {"file": "film.mp4"} | shown]
    assert {panel["arm"] for panel in explorer.films("paper", {})[0]["panels"]} == {None}
    page, still = (web.templates({}).get_template("film.html").render(film=film) for film in reversed(films))
    assert "<video controls" in page and 'src="film.mp4"' in page
    assert "from left to right: certified: a clone that never plans; late plans (64×2), 4 decisions late; " in still


def test_a_film_knows_the_arms_of_the_study_of_delays_by_their_names_here():
    from lib.study.delays import label
    from lib.study.stats.deadlines import summarise

    played, steps = delayed()
    found = explorer.delayed(summarise("a-1m-1", played, steps, PERIOD), played)
    late = label(make_arm("128x2+async+two-tower-d2", PlannerConfig()))
    assert explorer.late_name(**late) in {arm["arm"] for arm in found}


# ------------------------------------------------------------------------------------------------------------- pages


def test_names_cannot_leave_their_place():
    text = web.embedded({"name": HOSTILE})
    assert not set("<>&") & set(text) and json.loads(text) == {"name": HOSTILE}
    page = web.templates({}).get_template("notebook.html")
    page = page.render(top="../", body="", profile="paper", title=HOSTILE, cell=HOSTILE, date="")
    assert "<img" not in page and "&lt;/script&gt;" in page


def test_the_front_page_counts_as_the_tables_do(site):
    page = re.sub(r"\s+", " ", (site / "index.html").read_text(encoding="utf-8"))
    tests = read_table(FOLDER / "statistics/comparisons.csv").query("role == 'teacher'")
    shown = tests.query("arm == 'budget-256×2' and p_holm < 0.05")
    assert f"it is shown to keep 98 % of the return on {len(shown)} of {tests['cell'].nunique()}." in page
    headline = web.told("paper")["headline"]["arm"]  # noqa: F841
    gated = read_table(FOLDER / "horizon/summary.csv").query("arm == @headline")
    assert f"{gated['speedup'].min():.0f} to {gated['speedup'].max():.0f} times shorter" in page
    assert f"The worst is {gated.loc[gated['kept'].idxmin(), 'task']}" in page
    for row in readme.table().splitlines()[2:7]:
        assert all(cell.strip().split("`")[-1] in page for cell in row.split("|"))
    assert "make demo" in page and "python -m lib.study.accelerate" in page


def test_a_notebook_is_shown_as_executed_or_said_not_to_be(site):
    run = (site / "notebooks/01_teacher.html").read_text(encoding="utf-8")
    assert "Executed on walker-run-1m-1 in the paper profile, 2026-11-29" in run
    assert "kept" in run and "as words" in run and "script" not in run.lower().replace("description", "")
    assert "Not executed" in (site / "notebooks/02_collect_data.html").read_text(encoding="utf-8")
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "How good is &lt;it&gt;?" in index and index.count("not executed here") == 9
    assert "Executed on x in the quick profile" in (site / "notebooks/11_drafts.html").read_text(encoding="utf-8")


def test_links_inside_the_site_lead_somewhere(site):
    for page in site.rglob("*.html"):
        for target in re.findall(r'\b(?:href|src|srcset)="([^"#]+)', page.read_text(encoding="utf-8")):
            if not target.startswith(("https:", "data:")):
                assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("page", [
    '<script src="https://x/a.js">', "<script>alert(1)</script>", "<iframe srcdoc=''>", '<img alt="" src="//x/a.png">',
    '<link rel="stylesheet" href="http://x/a.css">', "@import 'a.css';", "a { background: url(https://x/a.png) }",
    '<source srcset="https://x/a.png">', '<image xlink:href="http://x/a.png"/>',
])  # fmt: skip
def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path, page):
    (tmp_path / "a.html").write_text(page)
    with pytest.raises(web.SiteError, match="a.html would load something from elsewhere"):
        web.check(tmp_path)


def test_what_a_page_has_beside_it_or_links_to_is_no_load(tmp_path):
    page = '<script src="a.js"></script><script type="application/json" id="d">{}</script><img src="data:image/png,a">'
    (tmp_path / "a.html").write_text(page + '<a href="https://x.org">paper</a><svg xmlns="http://www.w3.org/2000/svg">')
    web.check(tmp_path)


def test_a_site_that_grew_too_large_is_refused_with_what_is_large(tmp_path, monkeypatch):
    (tmp_path / "film.gif").write_bytes(b"0" * 3_000_000)
    (tmp_path / "b.html").write_bytes(b"0" * 2_100_000)
    with pytest.raises(web.SiteError, match=r"5.1 MB, more than 5; largest: film.gif 3.0 MB, b.html 2.1 MB"):
        web.check(tmp_path)


def test_a_claim_that_no_longer_holds_is_quoted_and_the_old_site_stays(site, monkeypatch, capsys):
    monkeypatch.setattr(paths, "BUILD", site.parent)
    monkeypatch.setattr(web, "notebook_pages", lambda profile, place: [])
    claims = web.told("paper")
    claims["checked"]["clone-misses"] = {"holds": False, "found": "0 of 1 rows"}
    monkeypatch.setattr(web, "told", lambda profile: claims)
    before = (site / "index.html").stat().st_ino
    assert web.main() == 1
    assert capsys.readouterr().err == (
        "site: “On calibration episodes of reacher-easy even the clone misses the target in three of twenty.” no "
        "longer holds (claim clone-misses): 0 of 1 rows.\n"
    )
    assert (site / "index.html").stat().st_ino == before
    assert {f.name for f in site.parent.iterdir()} == {"paper", "quick", "site"}


def test_a_new_site_takes_the_place_of_the_old(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(web, "notebook_pages", lambda profile, place: [])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "left.html").write_text("of another edition")
    assert web.build() == tmp_path / "site"
    assert not (tmp_path / "site/left.html").exists() and (tmp_path / "site/index.html").is_file()
    assert [f.name for f in tmp_path.iterdir()] == ["site"]


def test_without_claims_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(web.SiteError, match=r"claims.json is not there.*python paper/claims.py --profile paper"):
        web.told("paper")


# ----------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `site-test`")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def tab(browser):
    """Opens a page, in light or dark; whatever it says on the console, or asks of a network, is an error."""
    wrong, contexts = [], []

    def stopped(request) -> bool:  # a browser reads no more of a film than it shows
        return (request.resource_type, request.failure) == ("media", "net::ERR_ABORTED")

    def open_page(file: Path, scheme: str = "light", width: int = 1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: stopped(request) or wrong.append(request.url))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def listed(page) -> dict[str, list[str]]:
    """The table of the arms that are shown, by arm."""
    rows = page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    return {row[0]: row[1:] for row in rows}


def drawn(page) -> set[str]:
    return set(page.eval_on_selector_all("#chart [data-arm]", "marks => marks.map(mark => mark.dataset.arm)"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_from_the_disk(site, tab, scheme):
    for file in (file for file in site.rglob("*.html")):
        page = tab(file, scheme, width=400)
        assert page.title() and page.locator("h1").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), file.name
        shades = page.evaluate("""() => ["color", "backgroundColor"].map(
            name => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number)[0])""")
        assert (shades[0] < 60 < 200 < shades[1]) if scheme == "light" else (shades[1] < 60 < 200 < shades[0])


@pytest.mark.slow
def test_the_explorer_shows_what_is_chosen_with_the_values_of_the_tables(site, tab):
    page = tab(site / "explorer.html")
    first = drawn(page)
    page.select_option("#cell", CELL)
    rows = read_table(FOLDER / "horizon/summary.csv").query("cell == @CELL").set_index("arm")
    found = listed(page)
    assert (
        set(found) == drawn(page) and found["64×2+gated-6"][1] != "" and "reacher-easy (1m)" in page.inner_text("#said")
    )
    for arm, cells in found.items():
        row = rows.loc[arm]
        ends = " [{:.1f}, {:.1f}]".format(100 * row["kept_low"] + 1e-9, 100 * row["kept_high"] + 1e-9)
        assert cells[1] == f"{100 * row['kept'] + 1e-9:.1f} %{ends}"
        assert float(cells[2].replace(",", "")) == pytest.approx(row["model_evaluations"] / 500, rel=5e-3)
        assert cells[3:5] == [str(row["episodes"]), str(row["failures"])]

    page.select_option("#axis", "step_ms")
    for arm, cells in listed(page).items():
        assert float(cells[2].replace(",", "")) == pytest.approx(rows.loc[arm, "step_ms"], rel=5e-3)
    axis = page.inner_text("#chart")
    assert "Mean control step (ms)" in axis

    # Higher is better, and further right is dearer.
    place = "mark => { const box = mark.querySelector('.halo').getBoundingClientRect(); return [box.x, box.y]; }"
    at = {arm: page.eval_on_selector(f'[data-arm="{arm}"]', place) for arm in ("policy", "budget-512×2", "teacher")}
    assert at["policy"][0] < at["budget-512×2"][0] < at["teacher"][0] and at["policy"][1] > at["teacher"][1] + 50
    page.check("#log")
    assert page.eval_on_selector('[data-arm="budget-512×2"]', place)[0] > at["budget-512×2"][0] + 50

    page.set_viewport_size({"width": 40, "height": 40})  # nothing has room, and nothing goes wrong
    page.set_viewport_size({"width": 1280, "height": 800})
    page.uncheck("input[value='open loop']")
    assert drawn(page) == {arm for arm in first if "open-loop" not in arm and arm in rows.index}
    page.click("#families button")
    assert drawn(page) == set(rows.index[rows["step_ms"].notna()])  # what was not timed has no place on this axis
    page.select_option("#axis", "model_evaluations")
    assert drawn(page) == set(rows.index)


@pytest.mark.slow
def test_a_click_and_enter_show_the_episodes_of_an_arm(site, tab):
    page = tab(site / "explorer.html")
    page.select_option("#cell", CELL)
    played = read_table(FOLDER / f"horizon/{CELL}.csv").set_index(["arm", "episode_seed"])["return"]

    def seen() -> dict[int, tuple[str, str]]:
        rows = page.eval_on_selector_all(
            "#detail tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
        )
        return {int(row[0]): (row[1], row[2]) for row in rows}

    def told(arm: str) -> dict[int, tuple[str, str]]:
        return {seed: (f"{played['teacher', seed]:.1f}", f"{value:.1f}") for seed, value in played[arm].items()}

    page.locator('[data-arm="open-loop-3"] .halo').click(force=True)
    assert page.inner_text("#detail h2") == "open-loop-3" and seen() == told("open-loop-3")
    assert page.locator("#episodes [data-seed]").count() == len(told("open-loop-3"))
    failed = read_table(FOLDER / "horizon/summary.csv").query("cell == @CELL and arm == 'open-loop-3'")["failures"]
    assert page.locator("#episodes .failed").count() == failed.iloc[0]

    # Tab enters the chart once, at the chosen mark; arrows go to the next, and Enter chooses it.
    page.focus("#zoom")
    while page.evaluate("!document.activeElement.dataset?.arm"):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.arm") == "open-loop-3"
    page.keyboard.press("ArrowRight")
    asked = page.evaluate("document.activeElement.dataset.arm")
    assert asked != "open-loop-3" and asked in page.inner_text("#tip") and "episodes" in page.inner_text("#tip")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h2") == asked and seen() == told(asked)
    assert page.evaluate("document.activeElement.dataset.arm") == asked
    assert page.get_attribute(f'[data-arm="{asked}"]', "aria-pressed") == "true"

    page.keyboard.press("Tab")  # past the episodes, which a table has for the keyboard
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"

    # A click between marks that cover each other is for the nearest.
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator('[data-arm="budget-64×1"] .halo').bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)
    assert page.inner_text("#detail h2") == "budget-64×1"

    page.click("#table button:text-is('policy')")
    assert page.inner_text("#detail h2") == "policy" and seen() == told("policy")


@pytest.mark.slow
def test_the_film_is_shown_beside_its_arms_alone(site, tab):
    """The committed film, and one of an arm that is late: of each all arms that the explorer has."""
    data = data_of(site)
    late = next(arm for arm in data["cells"][0]["arms"] if arm["arm"].endswith(", 4 late"))["arm"]
    panels = [{"words": "late plans, 4 decisions late", "arm": late}, {"words": "late plans", "arm": None}]
    data["films"].append(data["films"][0] | {"cell": data["cells"][0]["name"], "panels": panels})
    page = web.templates({}).get_template("explorer.html").render(top="", data=web.Markup(web.embedded(data)))
    (site / "filmed.html").write_text(page, encoding="utf-8")
    page = tab(site / "filmed.html")
    for film in data["films"]:
        page.select_option("#cell", film["cell"])
        arms = [panel["arm"] for panel in film["panels"] if panel["arm"]]
        assert arms
        for arm in arms:
            page.select_option("#axis", "delay" if arm == late else "model_evaluations")
            if page.locator("#families button").inner_text() == "all":
                page.click("#families button")
            page.click(f"#table button:text-is('{arm}')")
            assert page.locator("#detail :is(img, video)").first.get_attribute("src") == film["file"]
            words = page.locator("#detail p.note").all_inner_texts()
            assert any(all(panel["words"] in text for panel in film["panels"]) for text in words)
    page.select_option("#axis", "model_evaluations")
    page.click("#table button:text-is('policy')")
    assert page.locator("#detail :is(img, video)").count() == 0
    (site / "filmed.html").unlink()


@pytest.mark.slow
def test_families_that_only_the_axis_of_delays_has_are_on_there(site, tab):
    page = tab(site / "explorer.html")
    cell = next(cell for cell in data_of(site)["cells"] if cell["name"] == CELL)
    page.select_option("#cell", CELL)
    late = {arm["arm"]: arm["family"] for arm in cell["arms"] if "delay" in arm["cost"]}
    before = drawn(page)

    def on() -> set[str]:
        return set(page.eval_on_selector_all("#families input:checked", "boxes => boxes.map(box => box.value)"))

    at_first = on()
    page.select_option("#axis", "delay")
    assert drawn(page) == set(late) and any("4 late" in arm for arm in late) and set(late.values()) <= on()
    hand = late[next(arm for arm in late if "4 late" in arm)]
    page.uncheck(f"#families input[value='{hand}']")
    page.check("#families input[value='open loop']")
    left = {arm for arm, family in late.items() if family != hand}
    page.select_option("#axis", "model_evaluations")  # what was not switched by hand is as it was
    assert before <= drawn(page) and on() == (at_first | {"open loop"}) - {hand}
    page.select_option("#axis", "delay")
    assert drawn(page) == left and "open loop" in on()  # and what was stays


@pytest.mark.slow
def test_hostile_names_are_shown_as_they_are(site, tab):
    data = data_of(site)
    for cell in data["cells"]:
        cell["title"] = HOSTILE
        for arm in cell["arms"]:
            arm["arm"] = HOSTILE if arm["arm"] == "policy" else arm["arm"]
    page = web.templates({}).get_template("explorer.html").render(top="", data=web.Markup(web.embedded(data)))
    (site / "hostile.html").write_text(page, encoding="utf-8")
    page = tab(site / "hostile.html")
    assert HOSTILE in page.inner_text("#said") and HOSTILE in listed(page)
    page.click(f"#table tr:has-text({json.dumps(HOSTILE)}) button")
    assert page.inner_text("#detail h2") == HOSTILE and page.locator("img").count() == 0
