"""The PDF follows the result files: same files, same bytes; a changed number shows; a false claim stops the build."""

import importlib.util
import itertools
import json
import re
import shutil
import tomllib

import pandas as pd
import pytest
from pypdf import PdfReader

from lib.records import paths
from lib.records.store import read_table, sidecar, write_table
from lib.study.cards import card_row
from lib.study.claims import write_claims
from lib.study.stats.comparisons import compare, cost_ends
from lib.study.stats.intervals import summarise
from tests.tiny_results import episodes

ROOT, SOURCE, COMMITTED = paths.ROOT, paths.PAPER, paths.results("paper")  # before any monkeypatching
FIGURES = paths.figures("paper")
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><text x="9" y="50">figure</text></svg>'
RETURNS = {"teacher": 900, "policy": 380, "budget-64×2": 890, "open-loop-3": 745, "two-tower-3": 835}
CELL, OTHER = "walker-walk-1m-1", "cup-catch-1m-1"
RESULTS = "data/results/paper"


def load_build():
    spec = importlib.util.spec_from_file_location("paper_build", SOURCE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load_build()

# -------------------------------------------------------------------------------------------- a repository of results


def empty_repository(root, monkeypatch):
    """A repository with the paper's sources alone; `results` fills it."""
    shutil.copytree(SOURCE, root / "paper", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("PAPER", "DATA", "BUILD", "FIGURES"):
        monkeypatch.setattr(paths, name, root / name.lower())
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "TEACHERS", root / "data" / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    empty_repository(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def published(tree):
    """The committed results under the paper profile: links, which what is written replaces; and one figure in place of
    each of the committed ones, whose marks take seconds to read back."""
    for file in (file for end in ("csv", "json") for file in COMMITTED.rglob(f"*.{end}")):
        link = tree / file.relative_to(ROOT)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    paths.figures("paper").mkdir(parents=True)
    for file in FIGURES.glob("*.svg"):
        (paths.figures("paper") / file.name).write_text(FIGURE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The text of the paper of the committed results."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = tmp_path_factory.mktemp("plain")
        empty_repository(root, monkeypatch)
        published.__wrapped__(root)
        return text_of()


def results(profile="quick", count=6, returns=RETURNS) -> None:
    """Small synthetic result files of one cell."""
    rows = episodes({arm: lambda seed, value=value: value + 3.0 * (seed % 4) for arm, value in returns.items()},
                    range(count))  # fmt: skip
    folder, figures = paths.results(profile), paths.figures(profile)
    summary = summarise(rows).merge(cost_ends(rows)).assign(step_ms=None, steps_per_s=None, cell=CELL)
    write_table(folder / "horizon" / "summary.csv", summary)
    write_table(folder / "statistics" / "comparisons.csv", compare(rows).assign(cell=CELL))
    card = dict(task="walker-walk", size="1m", seed=1, return_mean=905.0, returns=[880.0, 930.0], decisions=15_000,
                frames=30_000, collect_samples=128, collect_iterations=2, planner={"samples": 512, "iterations": 6},
                config={"eval_episodes": 3, "eval_samples": 96, "eval_iterations": 4})  # fmt: skip
    write_table(paths.DATA / "official_returns.csv", [{"task": "walker-walk", "frames": 100_000, "return": 1000.0}])
    write_table(paths.DATA / "expert_returns.csv", [{"task": "gym:Hop-v5", "return": 4000.0}])
    write_table(folder / "teacher" / f"{CELL}-card.csv", [card_row(card)])
    figures.mkdir(parents=True, exist_ok=True)
    for name in ("pareto", "returns"):
        (figures / f"{name}.svg").write_text(FIGURE)
    write_claims(profile)


def edit(file: str, change, profile="paper") -> None:
    """Write what `change` makes of a table of results over it."""
    path = paths.results(profile) / file
    table = change(read_table(path))
    path.unlink()
    write_table(path, table)


def change(arm: str, profile="paper", cell=CELL, **columns) -> None:
    """Set columns of an arm in the summary."""

    def changed(table):
        for column, value in columns.items():
            table.loc[(table["arm"] == arm) & (table["cell"] == cell), column] = value
        return table

    edit("horizon/summary.csv", changed, profile)


def shown(arm: str, p: float, cell=CELL) -> None:
    """Set the corrected p-value that an arm is non-inferior to the teacher."""

    def changed(table):
        mine = (table["arm"] == arm) & (table["role"] == "teacher") & (table["cell"] == cell)
        assert mine.sum() == 1
        return table.assign(p_holm=table["p_holm"].mask(mine, p))

    edit("statistics/comparisons.csv", changed)


# -------------------------------------------------------------------------------------------------- reading the PDF


def text_of(profile="paper") -> str:
    """The PDF's text on one line, with hyphenated words joined, but for names that have a hyphen. What the tables show
    is found anew before, where there are any."""
    if (paths.results(profile) / "horizon" / "summary.csv").is_file():
        write_claims(profile)
    pages = PdfReader(paper.build(profile)).pages
    joined = re.sub(r"-\n", "", "\n".join(page.extract_text() for page in pages))
    for name in ("walker-walk", "cup-catch", "open-loop", "two-tower", "plan-ahead", "gate-only"):
        joined = joined.replace(name.replace("-", ""), name)
    return " ".join(joined.split())


def assert_says(text: str, *said) -> None:
    """`said`: words, in which … stands for anything (a float may stand in a sentence); words after ¬, which must not be
    said; or words and how often."""
    for words in said:
        if isinstance(words, tuple):
            assert text.count(words[0]) == words[1], words
        elif words[0] == "¬":
            assert words[1:] not in text, words
        else:
            assert re.search(".*".join(map(re.escape, words.split("…"))), text), words


def bold(page: int) -> set[str]:
    """What is bold in the tables of a page of the last PDF, by the font of each piece of text."""
    found = set()

    def visit(text, matrix, transform, font, size):
        if text.strip() and font and "Bold" in font["/BaseFont"] and size == 8:
            found.add(text.strip())

    PdfReader(paths.executed("paper") / "paper.pdf").pages[page].extract_text(visitor_text=visit)
    return found


# -------------------------------------------------------------------------------------------------------- the report


def test_the_report_of_another_profile_says_what_was_run(tree):
    results()
    assert_says(
        text_of("quick"), "report of the quick profile", "This is the quick profile.",
        "of at most 200 decisions, where the standard planner is 128 × 3.", "walker-walk 1m 15,000 905",
        "budget-64×2 894 99% 167 –", "policy 384 42% 0 –", "figures/pareto.py", "¬Conclusion",
    )  # fmt: skip
    change("policy", "quick", step_ms=0.149, return_mean=391.0)
    assert "policy 391 42% 0 0.15" in text_of("quick")


def test_nothing_at_all_still_builds_in_the_quick_profile(tree):
    assert "report of the quick profile" in text_of("quick")


# --------------------------------------------------------------------------------------------------------- the paper


def committed(file: str) -> pd.DataFrame:
    return read_table(COMMITTED / file)


def test_the_paper_has_every_arm_and_every_teacher(plain):
    title = "A Network That Imitates a Learned Planner Nearly Replaces It, Until the World Changes"
    assert_says(plain, title, "¬This is the", "Conclusion", "References")
    summary = committed("horizon/summary.csv")
    for row in summary[~summary["arm"].str.contains("[+-]")].itertuples():  # other names are broken between lines
        assert f"{row.arm} {fixed(row.return_mean)} [{fixed(row.return_low)}, " in plain, (row.cell, row.arm)
    for file in (COMMITTED / "teacher").glob("*-card.csv"):
        card = read_table(file).iloc[0]
        assert f"{card['size']} {card['seed']} {card['decisions']:,} {card['frames']:,} " in plain, file.name


def test_the_abstract_is_short_and_needs_no_paper(plain):
    end = "Rare failures may have gone unseen."  # its last sentence
    abstract = plain.split("Abstract. ")[1].split(end)[0] + end
    assert len(abstract.split()) <= 150
    assert len(re.findall(r"(?<![-\w])\d", abstract)) <= 5
    assert not re.search(r"\bcell|@|×|`|\w\+\w|distilled-|-d\d", abstract)


def fixed(number: float) -> str:
    """As the paper has whole numbers."""
    whole = int(abs(number) + 0.5)
    return f"{whole:,}" if whole >= 10_000 else str(whole)


def test_the_paper_has_the_numbers_of_its_tables(plain):
    kept = committed("horizon/summary.csv").query("cell == 'walker-walk-1m-1'").set_index("arm")["kept"]
    arms = ("policy", "prior+", "distilled", "cloned", "128×2+draft+gated-3-r30")
    assert f"walker-walk {' '.join(f'{100 * kept[arm]:.1f}' for arm in arms)}" in plain  # none of them fell
    depth = committed("corrector/reacher-easy-1m-1-two_tower-depth.csv").iloc[0]
    assert f"{depth['plan_mse']:.4f} {depth['corrector_mse']:.4f}" in plain
    power = committed("statistics/power.csv").set_index(["cell", "arm", "effect"])
    needed = [f"{power['episodes_needed'][CELL, 'policy', effect]:.0f}" for effect in (0.01, 0.02, 0.05)]
    assert f"policy 50 {power['difference_std'][CELL, 'policy', 0.01]:.1f} {' '.join(needed)}" in plain
    solve = committed("planner/cpu.csv").query("size == '1m' and samples == 512 and batch == 1 and dtype == 'float32'")
    fastest = solve.sort_values("solve_ms_p50").iloc[0]
    assert f"{1 / fastest['ratio_to_twin']:.1f} times (1m)" in plain
    coverage = committed("statistics/coverage.csv")
    assert f"over {fixed(coverage['repeats'].iloc[0])} simulated samples" in plain


FOLLOWS = {
    "a return": [lambda: change("policy", return_mean=123.4), "policy 123 ["],
    "a draft": [
        lambda: change("prior+", kept=0.1234, failures=7.0), "12.37"],  # with a superscript
    "how many are shown to keep it": [
        lambda: shown("budget-256×2", 0.01, "cheetah-run-1m-1"), "budget-256×2 is shown to keep 98% on 6 of 7"],
    "the corrector's errors": [
        lambda: edit(f"corrector/{CELL}-two_tower-depth.csv", lambda t: t.assign(policy_mse=1.2345)), "1.2345"],
    "the planner's times": [
        lambda: edit("planner/cpu.csv", lambda t: t.assign(ratio_to_twin=0.2)), "5.0 times (1m) and 5.0 times (5m)"],
    "deadlines": [
        lambda: edit("deadlines/summary.csv", lambda t: t.assign(slower_95=t["slower_95"].mask(
            t["arm"] == "cloned", 123.4), slower_95_low=t["slower_95_low"].mask(t["arm"] == "cloned", 4.56))),
        "cloned – – 123 (4.6)"],
    "the real thread": [
        lambda: edit("realtime/summary.csv", lambda t: t.assign(missed=77)), "77 of 30,000 deadlines were missed"],
}  # fmt: skip


@pytest.mark.parametrize("changed", FOLLOWS)
def test_the_paper_follows(published, plain, changed):
    change, *said = FOLLOWS[changed]
    assert said[0] not in plain
    change()
    assert_says(text_of(), *said)


def test_the_method_follows_the_constants_of_the_code(published, monkeypatch):
    monkeypatch.setattr(paper, "CALLS_PER_PLAN", 1.7)
    assert "at most 1.7 planner calls" in text_of()


def test_a_claim_that_a_result_no_longer_bears_out_stops_the_build_and_is_quoted(published):
    for cell in ("walker-walk-1m-1", "cup-catch-1m-1"):
        shown("budget-256×2", 0.4, cell)
    with pytest.raises(paper.PaperError) as error:
        text_of()
    quoted, found = str(error.value).split(" no longer holds (claim smaller-planners): ")
    assert quoted.startswith("“On most of our agents a planner") and quoted.endswith("”")
    assert re.fullmatch(r"p_holm < 0.05 holds of 3 of 7 rows .* wanted: >= 5 of 7\.", found)


def test_every_claim_is_made_and_every_sentence_has_one():
    made = set(re.findall(r'#claim\("([\w-]+)"\)', "".join(file.read_text() for file in SOURCE.glob("*.typ"))))
    assert made == set(tomllib.loads((SOURCE / "claims.toml").read_text()))


def test_what_is_shown_to_keep_enough_is_bold(published):
    shown("budget-512×2", 0.4)
    text_of()
    pages = PdfReader(paths.executed("paper") / "paper.pdf").pages
    page = next(i for i, p in enumerate(pages) if re.search(r"walker-?walk \(1m\): \d", p.extract_text()))
    summary = committed("horizon/summary.csv").query("cell == @CELL").set_index("arm")
    ends = {arm: "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * summary.loc[arm, ["kept", "kept_low", "kept_high"]]))
            for arm in ("budget-512×2", "budget-128×2", "policy")}  # fmt: skip
    found = bold(page)
    assert ends["budget-128×2"] in found and not {ends["budget-512×2"], ends["policy"]} & found


# ------------------------------------------------------------------------------------------------------- what is amiss

AMISS = {
    "a number": [lambda: change("two-tower-3", kept_low=None),
                 rf"kept_low .*two-tower-3 in {RESULTS}/horizon/summary\.csv"],
    "a shipped teacher's number": [
        lambda: edit(f"teacher/{CELL}-card.csv", lambda t: t.assign(collect_samples=None)),
        f"column collect_samples in {RESULTS}/teacher/{CELL}-card.csv"],
    "a timing": [lambda: edit("planner/cpu.csv", lambda table: table[table["size"] != "5m"]),
                 f"ratio_to_twin for 5m, 512 × 6, float32, batch 1 in {RESULTS}/"],
    **{name: [lambda name=name: (paths.ROOT / RESULTS / f"{name}.csv").unlink(), re.escape(f"{RESULTS}/{name}.csv")]
       for name in ("horizon/summary", "statistics/coverage", "statistics/aggregate", "statistics/drafts",
                    f"corrector/{CELL}-two_tower-depth", "planner/cpu-memory")},
    **{name: [lambda name=name: (paths.figures("paper") / f"{name}.svg").unlink(), f"figures/paper/{name}.svg"]
       for name in ("choices", "teachers", "pareto-cells", "depth")},
    "claims": [lambda: (paths.results("paper") / "statistics" / "claims.json").unlink(), "statistics/claims.json"],
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", AMISS.values(), ids=AMISS)
def test_what_is_missing_is_an_error_in_the_paper_profile(published, spoil, message):
    spoil()
    with pytest.raises(paper.PaperError, match=message) as error:
        paper.build("paper")
    assert "\n" not in str(error.value)  # one sentence
    assert not (paths.executed("paper") / "paper.pdf").exists()


def test_what_killed_writers_left_is_not_read_and_a_damaged_sidecar_is_none(tree):
    results()
    before, text = paper.result_files("quick"), text_of("quick")
    for name in (f"model_error/.{CELL}.deadbeef.tmp.csv", f"teacher/.{CELL}.deadbeef.tmp-card.csv", ".x/a.csv"):
        (paths.results("quick") / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.results("quick") / name).touch()
    (paths.figures("quick") / ".pareto.deadbeef.tmp.svg").touch()
    assert paper.result_files("quick") == before and text_of("quick") == text
    machines = [file for file in before if sidecar(paths.ROOT / file).is_file()]
    for file, damage in zip(machines, itertools.cycle(["[1]", '"x"', "null", '{"machine": 1}']), strict=False):
        sidecar(paths.ROOT / file).write_text(damage)
    assert machines and text_of("quick") == text


def test_a_folder_that_cannot_be_written_to_is_a_line_without_a_trace(published, monkeypatch, capsys):
    def refuse(*about, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paper, "compiled", lambda source, inputs: b"%PDF")
    monkeypatch.setattr("os.fsync", refuse)
    assert paper.main(["--profile", "paper"]) == 1
    message = capsys.readouterr().err
    assert "build/paper/paper.pdf cannot be written: there is no space left on the disk; make room" in message
    assert message.startswith("paper: ") and message.count("\n") == 1


def test_an_error_is_a_line_without_a_trace(published, capsys):
    (paths.figures("paper") / "pareto.svg").unlink()
    assert paper.main(["--profile", "paper"]) == 1
    message = capsys.readouterr().err
    assert "figures/paper/pareto.svg" in message and message.count("\n") == 1


def test_stale_results_are_listed(tree, capsys):
    results()
    stale, line = paths.executed("quick") / "stale.txt", "data/results/quick/horizon/walker-walk-1m-1.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text(f"{line} (lib/planner.py changed)\n\n")
    assert paper.main(["--profile", "quick"]) == 0
    assert f"stale: {line} (lib/planner.py changed)" in capsys.readouterr().err
    assert_says(text_of("quick"), "Stale results in this document", "lib/planner.py changed")
    stale.unlink()
    assert "Stale results" not in text_of("quick")


def test_unknown_profile(tree, capsys):
    with pytest.raises(ValueError, match="quick"):
        paper.build("quik")
    assert paper.main(["--profile", "../quick"]) == 1
    assert "paper: profile='../quick' cannot be part of a file's name" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- typesetting


def test_two_builds_are_byte_identical(published):
    for file in FIGURES.glob("*.svg"):
        shutil.copy(file, paths.figures("paper"))
    first = paper.build("paper").read_bytes()
    assert first == paper.build("paper").read_bytes()
    assert b"CreationDate" not in first and not list(paths.executed("paper").glob(".*"))


def test_a_page_is_made_shorter_where_typst_fails_by_itself(tree, monkeypatch):
    results()
    real, asked, failing = paper.typst.compile, [], {"0", "1"}

    class Failure(paper.typst.TypstError):
        message = "internal error: parent group"
        diagnostic = "error: internal error: parent group"

    def compile(*args, sys_inputs, **options):
        asked.append(sys_inputs["shorter"])
        if asked[-1] in failing:
            raise Failure
        return real(*args, sys_inputs=sys_inputs, **options)

    monkeypatch.setattr(paper.typst, "compile", compile)
    assert "report of the quick profile" in text_of("quick") and asked == ["0", "1", "2"]
    failing |= set(map(str, paper.SHORTER))
    with pytest.raises(paper.PaperError, match="^error: internal error: parent group$"):
        paper.build("quick")


def test_citations_exist_and_none_is_left_over():
    body = "".join(file.read_text() for file in SOURCE.glob("*.typ"))
    labels = set(re.findall(r"<([\w-]+)>", body))
    cited = set(re.findall(r"(?<![\w/])@([A-Za-z][\w-]*)", body)) - labels
    entries = set(re.findall(r"^@\w+\{([^,]+),", (SOURCE / "refs.bib").read_text(), re.MULTILINE))
    assert cited == entries


READS = r"\b(arm|optional|number|get|float|average|over-all|card|gain-side)\([^()]*\)"


@pytest.mark.parametrize(
    "decision",
    [
        rf"{READS}\s*[<>]=?",  # one result compared with another one or with a number
        rf"(?<!=)[<>]=?\s*{READS}",
        r"sorted\(key:[^)]*=> \(?-?(arm|optional|get|average|shown-on)\(",  # the best of several
        r"p_holm|p_non_inferior|p_permutation\"\) *[<>]",  # tests
        r"(split|contains)\(\"\+\"|starts-with\(\"(budget|gate|64)|two-tower\", \"temporal\"",  # names of arms
    ],
)
def test_no_decision_about_a_result_is_taken_in_typst(decision):
    for file in SOURCE.glob("*.typ"):
        found = re.search(decision, re.sub(r"(?m)//.*$", "", file.read_text()))
        assert not found, f"{file.name} has {found[0]!r}: a decision belongs in lib/study/stats/claims.py"


def test_numbers_are_formatted_with_fixed_digits(tree):
    (tree / "paper" / "numbers.typ").write_text(
        '#import "style.typ": fixed\n'
        "#metadata((fixed(455.0, digits: 1), fixed(-0.04, digits: 1), fixed(-2.5, digits: 2), fixed(1539072),"
        " fixed(9216), fixed(0.0005, digits: 4), fixed(0.996, digits: 2), fixed(0))) <x>"
    )
    found = json.loads(paper.typst.query(tree / "paper" / "numbers.typ", "<x>", field="value", one=True, root=tree))
    assert found == ["455.0", "0.0", "−2.50", "1,539,072", "9216", "0.0005", "1.00", "0"]
