"""From a checkpoint to a folder in one command: what comes out, what is refused, and what if time is short."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from figures import film, report
from lib.bundle import BundleError, export, load_controller, read_about, save_controller
from lib.bundle.export import FORMAT
from lib.config import ConfigError, PlannerConfig
from lib.policy import PolicyController
from lib.realtime import BackgroundController
from lib.records import paths
from lib.records.seeds import SEED_BLOCKS
from lib.study import evaluate as evaluation
from lib.study.accelerate import NothingToKeep, accelerate, folder, playing, search
from lib.study.accelerate.__main__ import main
from lib.study.accelerate.plan import LEAST, MOST, SHARES, Clock, Costs, OutOfTime, Plan, measured
from lib.study.accelerate.trivial import nothing_learnt
from lib.study.arms import Arm, make_arm
from lib.study.evaluate import run_episodes
from lib.weights.native import CheckpointError, load_world_model, teacher_key
from tests import own_envs
from tests.bare import run_notebook
from tests.study.accelerate.made import TASK, teacher

pytestmark = pytest.mark.slow  # a run from a checkpoint to a folder takes a minute; make all has one of its own

PLANNER = PlannerConfig.budget(128, 2)
MINUTES = 9.0  # as said costs have it, whatever this machine's are: pieces that are small
COSTS = Costs(fixed=0.0, evaluation=2.1e-4, step=1e-3, update=0.6, compile=0.0, decisions=20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return teacher(tmp_path_factory.mktemp("teacher") / "guess.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache that the tests of this file share: pieces that are there are not made again."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        for name in ("DATA", "CACHE"):
            patch.setattr(paths, name, folder / name.lower())
        patch.setenv("CXX", "no-compiler")
        patch.setattr(search, "measured", functools.wraps(measured)(lambda *given: COSTS))  # it stands in a key
        yield folder


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Only the report of `made` is drawn, which comes before this: drawing takes longer than all else."""
    monkeypatch.setattr(folder, "draw", lambda place: (place / "report.html").write_text("drawn"))


@pytest.fixture(scope="module")
def made(home, weights, tmp_path_factory):
    """The folder of a run, and what was found."""
    return accelerate(str(weights), TASK, minutes=MINUTES, out=tmp_path_factory.mktemp("x") / "made", planner=PLANNER)


def test_the_folder_holds_a_controller_that_needs_no_study(made, weights):
    place, found = made
    assert sorted(p.name for p in place.iterdir()) == sorted(folder.NAMES)
    controller = load_controller(place, mode="eager")
    controller.reset()
    assert controller.act(np.zeros(2, np.float32))[0].shape == (1,)
    about = read_about(place)["about"]["accelerated"]
    assert about == json.loads(json.dumps(found)) and about["teacher_key"] == teacher_key(str(weights))
    mine = controller.wm.encoder.state_dict()
    assert all(torch.equal(v, mine[k]) for k, v in load_world_model(weights, TASK).encoder.state_dict().items())


def test_a_cheaper_candidate_is_picked_by_the_test_and_checked_on_fresh_episodes(made):
    place, found = made
    rows = pd.read_csv(place / "episodes.csv")
    assert not found["fallback"] and found["pick"] != "teacher" and found["check"]["verdict"] == "shown"
    by_block = rows.groupby("block")["episode_seed"].agg(["min", "max"]) // 1_000_000 * 1_000_000
    assert by_block.loc["certify"].eq(SEED_BLOCKS["certify"]).all()
    assert by_block.loc["check"].eq(SEED_BLOCKS["trial"]).all()
    tested = rows[(rows["block"] == "certify") & (rows["arm"] == found["pick"])]
    mine = {row["arm"]: row for row in found["candidates"]}[found["pick"]]
    assert mine["return"] == pytest.approx(tested["return"].mean()) and mine["episodes"] == len(tested) >= LEAST
    random, full = (rows.query("block == 'certify' and arm == @arm")["return"].mean() for arm in ("random", "teacher"))
    assert mine["kept"] == pytest.approx((mine["return"] - random) / (full - random))  # from a random policy's on
    cheaper = [r["evaluations"] for r in found["candidates"] if r["admitted"]]
    assert mine["evaluations"] == min(cheaper) < 20 * PLANNER.model_evaluations
    assert f"{found['pick']} is the cheapest that a test of {len(tested)} episodes shows to keep 98 %" in found["why"]
    assert f"the promise is {found['check']['verdict']}" in found["why"]


def test_the_report_is_one_page_with_charts_and_no_address(made):
    place, found = made
    page = (place / "report.html").read_text()
    assert found["pick"] in page and "vegaEmbed('#kept'" in page and "vegaEmbed('#times'" in page
    assert "src=" not in page.partition("<script>")[0] and "<link" not in page  # nothing is fetched
    assert page.count("<script>") == page.count("</script>") == 2 and len(page) < 2e6
    (data,) = [d["values"] for d in datasets(report.kept(found)) if "kept" in d["values"][0]]
    assert [round(row["kept"], 6) for row in data] == [round(100 * r["kept"], 6) for r in found["candidates"]]
    told = report.page(found | {"left_out": ["<b>"], "rate": 50.0}, b"GIF")
    assert "&lt;b&gt;" in told and "data:image/gif;base64,R0lG" in told and "50 decisions per second" in told


def test_a_repeated_command_plays_nothing_again_and_takes_the_place_of_its_folder(made, weights, monkeypatch):
    place, found = made
    never = functools.wraps(run_episodes)(lambda *given: pytest.fail("played again"))
    monkeypatch.setattr(evaluation, "run_episodes", never)
    again, same = accelerate(str(weights), TASK, minutes=MINUTES, out=place, planner=PLANNER)
    assert again == place and same["candidates"][0]["return"] == found["candidates"][0]["return"]
    assert same["plan"] == found["plan"] and same["pick"] == found["pick"]
    assert (place / "report.html").read_text() == "drawn" and len(list(place.parent.iterdir())) == 1


def test_no_clip_is_drawn_of_a_controller_that_would_take_long_or_of_another_simulator(made, monkeypatch):
    place, found = made
    asked = []
    monkeypatch.setattr(film, "gl_backend", lambda: asked.append("gl"))  # nothing draws
    times = {"slow": [400.0] * 101, "fast": [1.0] * 101}
    for pick, task in (("slow", "walker-walk"), ("fast", TASK), ("untimed", "walker-walk")):
        assert report.clip(place, found | {"pick": pick, "task": task, "times": times}) is None and not asked
    assert report.clip(place, found | {"pick": "fast", "task": "walker-walk", "times": times}) is None and asked == [
        "gl"
    ]


def datasets(chart):
    spec = chart.to_dict()
    return [{"values": values} for values in spec["datasets"].values()]


def test_a_deadline_leaves_out_what_is_too_slow_and_plans_in_the_background(home, weights, tmp_path, monkeypatch):
    ms = {"policy": [0.5], "cloned": [2.5], "teacher": [9.0], "budget-64×2": [3.0] * 99 + [2.0]}
    ms["budget-16×1"] = [2.1]
    quick = [0.3] * 99 + [9.0]
    monkeypatch.setattr(playing.Playing, "times", lambda self, arm, seconds, period: ms.get(arm.name, quick))
    out = tmp_path / "out"
    place, found = accelerate(str(weights), TASK, rate=500, keep=0.5, minutes=MINUTES, out=out, planner=PLANNER)
    tried = {row["arm"]: row for row in found["candidates"]}
    larger, name = "64×2+async+two-tower-d2", "16×1+async+two-tower-d2"
    assert found["right_sized"] == "budget-64×2" and {*tried} == {"teacher", larger, name, "policy"}
    assert tried[larger]["evaluations"] == 10 * 64 * 2 * 3  # one plan in two decisions, of three steps
    assert tried[name]["in_time"] == 0.99 and tried["teacher"]["in_time"] == 0
    for sentence in (
        "budget-64×2: 1 % of its steps take longer than 3 ms, and a decision has 2",
        "64×2+gated-6 and 64×2+two-tower-6: their plans take longer than the 2 ms of a decision",
        "64×2+clone+gated-3-r30: its plans take longer than the 2 ms of a decision",
        "cloned: 1 % of its steps take longer than 2.5 ms, and a decision has 2",
    ):
        assert sentence in found["left_out"]
    assert found["pick"] == name and found["delay"] == 2
    assert "It plans in the background: a plan acts 2 decisions after it was begun." in found["why"]
    assert "99.0 % of its steps meet the deadline of 2 ms." in found["why"]
    with load_controller(place, mode="eager") as controller:
        assert (type(controller), controller.period, controller.expected) == (BackgroundController, 0.002, 2)
    page = report.page(found, None)
    assert (
        "500 decisions per second, 2 ms each" in page
        and "The dashed line is the deadline, 2 ms:" in page
        and "<td>99.0%</td>" in page
    )


def test_a_rate_that_nothing_meets_is_refused(home, made, weights, tmp_path):
    sentence = "rate=100000 leaves 0.01 ms for a decision, and even the policy prior, without a plan, needs .* at most"
    with pytest.raises(ConfigError, match=sentence):
        accelerate(str(weights), TASK, rate=1e5, minutes=MINUTES, out=tmp_path / "out", planner=PLANNER)
    assert not (tmp_path / "out").exists()


def test_where_nothing_is_shown_the_folder_holds_the_full_planner(home, made, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(search.Search, "candidates", {"planners": ("budget-16×1",), "reuse": (), "drafts": ("policy",)})
    place, found = accelerate(str(weights), TASK, minutes=MINUTES, out=tmp_path / "out", planner=PLANNER)
    assert found["fallback"] and found["pick"] == "teacher" and not found["check"]
    assert found["why"] == "No candidate was shown to keep 98 % of the teacher's return, so the full planner stays."
    controller = load_controller(place, mode="eager")
    assert (controller.planner.config.samples, controller.execution_horizon) == (128, 1)
    assert [row["arm"] for row in found["candidates"]] == ["teacher", "budget-16×1", "policy"]


def test_too_few_minutes_say_how_many_it_takes(home, weights, tmp_path, monkeypatch):
    costs = Costs(0.0, 2e-4, 1e-3, 1e-2, 0.0, 20)  # 3 seconds of an episode of the teacher, 8 with all candidates'
    monkeypatch.setattr(search, "measured", functools.wraps(measured)(lambda *given: costs))
    _, found = accelerate(str(weights), TASK, keep=0.97, minutes=0.3, out=tmp_path / "out", planner=PLANNER)
    (left_out,) = found["left_out"]
    assert left_out.startswith("the test: it needs at least 10 episodes of the teacher and of each candidate")
    assert left_out.endswith("on this machine all in all about 3 minutes")
    assert found["why"] == "There was no time for a test, so the full planner stays."


def test_an_untrained_teacher_has_nothing_to_keep(home, tmp_path, capsys):
    untrained = teacher(tmp_path / "untrained.safetensors", updates=0)
    with pytest.raises(NothingToKeep, match="there is nothing to keep a share of; train it longer"):
        accelerate(str(untrained), TASK, minutes=MINUTES, out=tmp_path / "out", planner=PLANNER)
    assert not (tmp_path / "out").exists()
    _, found = accelerate(str(untrained), TASK, minutes=0.3, out=tmp_path / "few", planner=PLANNER)
    assert found["fallback"] and "there is nothing that is known to be worth keeping" in found["why"]


def test_a_teacher_that_is_not_told_from_doing_nothing_is_refused(made):
    trivial = {"random": np.array([1.0, 2, 1]), "still": np.array([9.0, 9, 9])}
    assert not nothing_learnt([8.0, 12.0, 8.5], trivial)  # few, and better on average
    many = {name: np.tile(returns, 4) for name, returns in trivial.items()}
    assert not nothing_learnt([18.0, 22.0, 18.5] * 4, many)
    doubt = nothing_learnt([2.0, 18.0, 8.5] * 4, many)
    assert "doing nothing 9, which a test of 12 episodes does not tell apart: there is nothing that" in doubt
    doubt = nothing_learnt([0.0], {"random": np.array([0.0]), "still": np.array([0.0])})
    assert (
        "over no more than 1 episode: there is nothing that" in doubt
    )  # one that missed is no reason to refuse a teacher
    many = {"random": np.ones(LEAST), "still": np.full(LEAST, 9.0)}
    with pytest.raises(NothingToKeep):
        nothing_learnt([8.0] * LEAST, many)


@pytest.mark.slow
def test_notebook_10_makes_a_folder_of_a_teacher_and_an_environment_of_ones_own(home, weights, tmp_path, capsys):
    given = {"task": TASK, "teacher": str(weights), "minutes": MINUTES, "out": str(tmp_path / "out")}
    run_notebook("10_your_own_teacher", profile="smoke", **given)
    said = capsys.readouterr().out
    assert all(name in said for name in folder.NAMES)
    (file,) = (paths.results("smoke") / "accelerated").glob("*.csv")
    found = read_about(tmp_path / "out")["about"]["accelerated"]
    table = pd.read_csv(file)
    assert table["arm"].tolist() == [row["arm"] for row in found["candidates"]] and table["arm"][0] == "teacher"
    assert table["evaluations"][0] == 12 * 96  # smoke's episodes, and its planner


def test_notebook_10_says_where_there_is_nothing_to_keep(home, tmp_path, capsys):
    untrained = teacher(tmp_path / "nothing.safetensors", updates=0)
    run_notebook("10_your_own_teacher", profile="smoke", task=TASK, teacher=str(untrained), minutes=MINUTES)
    assert "there is nothing to keep a share of" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------- what may fail, and time


@pytest.mark.slow
def test_an_environment_that_fails_now_and_then_is_tried_again(home, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(own_envs.NowAndThen, "steps", 2_700)
    monkeypatch.setattr(search.Search, "candidates", {"planners": ("budget-16×1",), "reuse": (), "drafts": ("policy",)})
    monkeypatch.setattr(search.Search, "learn", lambda self: None)
    task = "tests.own_envs:NowAndThen"
    _, found = accelerate(str(weights), task, minutes=MINUTES, out=tmp_path / "out", planner=PLANNER)
    said = capsys.readouterr().err
    assert "RuntimeError: a cable broke" in said and "These episodes are played one by one." in said
    assert len(found["candidates"]) > 1


def test_one_that_always_fails_ends_with_a_sentence(home, weights, tmp_path, capsys):
    words = [str(weights), "--env", "tests.own_envs:AlwaysFailing", "--minutes", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "RuntimeError: no power" in said and said.endswith("the same command goes on.")
    assert not (tmp_path / "out").exists()


def test_the_clock_learns_from_what_took_longer():
    clock = Clock(1)
    assert clock.fits(59) and not clock.fits(59, 5)
    clock.took(17, estimated=3)  # a compiler, perhaps
    assert 1.2 < clock.pace < 1.3
    clock.took(1_200, estimated=600)
    assert 1.9 < clock.pace < 2 and not clock.fits(32)
    clock.took(0, estimated=60)  # half of it
    assert 0.9 < clock.pace < 1


def test_no_block_begins_that_would_not_end_in_time(made, weights):
    stage = playing.Playing.on(
        evaluation.Stage(search.Cell("x", "1m", 1, "x"), "x", str(weights), load_world_model(weights, TASK), {}, 20),
        Clock(0.1), Costs(0.0, 1e-3, 0.0, 0.0, 0.0, 20), "eager",
    )  # fmt: skip
    with pytest.raises(OutOfTime, match="teacher would take 2.6 minutes"):
        stage.run(Arm("teacher", PLANNER), None, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "teacher")


def test_a_plan_keeps_to_its_seconds_and_says_what_would_be_needed():
    costs, standard = Costs(1e-3, 1e-6, 1e-4, 0.01, 0.0, 500), PlannerConfig.standard(6)  # 10 ms a solve
    arms = [make_arm(name, standard) for name in ("budget-64×2", "64×2+two-tower-6", "distilled", "policy")]
    plan = Plan.of(costs, standard, arms, 900, 0)
    each = costs.episode(Arm("teacher", standard)) + sum(costs.episode(arm) for arm in arms) + 2 * 500 * 1e-4
    assert costs.episode(Arm("teacher", standard)) == pytest.approx(500 * (0.0001 + 0.001 + 0.009216))
    solve = 1e-3 + 1e-6 * 256 * 2 * 3  # of the largest that may label
    learning = 10_000 * (1e-4 + 1.1 * solve) + 12 * 500 * (1e-4 + 1.25 * solve) + 1.5 * 100 * 0.8 * 10_000 / 256 * 0.01
    assert plan.seconds["label"] + plan.seconds["collect"] + plan.seconds["train"] == pytest.approx(learning)
    assert sum(plan.seconds.values()) == pytest.approx(sum(SHARES.values()) * 900)  # the test has what that leaves
    checked = costs.episode(Arm("teacher", standard)) + costs.episode(arms[0])
    assert (plan.certification, plan.check) == (MOST, int(plan.seconds["check"] / checked)) and plan.check > LEAST
    tight = Plan.of(costs, standard, arms, 300, 0)  # a check of the fewest episodes before more for the test
    assert tight.check == LEAST < tight.certification < MOST
    assert tight.certification * each + LEAST * checked <= tight.seconds["certify"] + tight.seconds["check"]
    few = Plan.of(costs, standard, arms, 120, 0)
    assert few.certification == few.check == 0 and few.needed == pytest.approx(10 * each / 0.48 / 60)
    assert Plan.of(costs, standard, arms, 60 * few.needed + 1, 0).certification == 10


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"keep": 1.2}, "keep=1.2 must lie between 0 and 1, as 0.98 for 98 %."),
        ({"keep": 0.0}, "keep=0.0 must lie"),
        ({"rate": -1.0}, "rate=-1.0 must be a number of decisions per second"),
        ({"rate": float("nan")}, "rate=nan must be"),
        ({"minutes": 0.0}, "minutes=0.0 must be above 0"),
        ({"task": "tests.own_envs:Endless"}, "has no time limit"),
        ({"task": "walker-wlak"}, "Did you mean walker-walk"),
    ],
)
def test_values_that_are_none_are_refused(home, weights, tmp_path, given, sentence):
    with pytest.raises(ConfigError) as error:
        accelerate(**{"teacher": str(weights), "task": TASK, "out": tmp_path / "out"} | given)
    assert sentence in str(error.value) and not (tmp_path / "out").exists()


def test_an_environment_of_other_widths_is_refused(home, weights, tmp_path):
    with pytest.raises(CheckpointError, match="takes 2 observations and 1 actions, but .*Limited has 3 and 1;"):
        accelerate(str(weights), "tests.own_envs:Limited", out=tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(home, weights, made, tmp_path):
    wm = load_world_model(weights, TASK)
    by_hand, notes, file, other = (tmp_path / name for name in ("by_hand", "notes", "file", "other"))
    save_controller(PolicyController(wm, mode="eager"), by_hand)
    notes.mkdir()
    (notes / "thesis.txt").write_text("all of it")
    file.write_text("text")
    found = made[1] | {"teacher_key": "another"}
    save_controller(PolicyController(wm, mode="eager"), other, {"accelerated": found})
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    said = {notes: "holds 'thesis.txt'", file: "is a file", by_hand: "is not this command's", other: "this teacher"}
    for place, sentence in said.items():
        with pytest.raises(ConfigError, match=sentence):
            accelerate(str(weights), TASK, out=place, minutes=MINUTES, planner=PLANNER)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.slow
def test_a_report_is_drawn_of_an_accelerated_controller_alone(weights, tmp_path):
    save_controller(PolicyController(load_world_model(weights, TASK), mode="eager"), tmp_path / "x")
    command = [sys.executable, "-m", "figures.report", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "says nothing of how its controller was found" in done.stderr.splitlines()[-1]


def test_an_export_of_ours_may_lie_in_a_folder_that_is_written_again(weights, tmp_path):
    place, found = tmp_path / "made", {"teacher_key": "key", "task": TASK}
    save_controller(PolicyController(load_world_model(weights, TASK), mode="eager"), place, {"accelerated": found})
    exported = place / "exported"
    exported.mkdir()
    (exported / "export.json").write_text(json.dumps({"format": FORMAT}))
    (exported / "step.pt2").touch()
    folder.check_place(place, "key", TASK)
    (exported / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigError, match="holds 'exported', so nothing is written there"):
        folder.check_place(place, "key", TASK)
    with pytest.raises(BundleError, match="is no earlier export, so nothing is written there"):
        export(place)
    assert (exported / "thesis.tex").read_text() == "all of it"


def test_a_place_that_cannot_be_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be made: File name too long; give another folder"):
        folder.check_place(tmp_path / ("x" * 300), "a", "walker-walk")
    with pytest.raises(ConfigError, match="cannot be written to; give another folder"):
        folder.check_place(Path("/proc"), "a", "walker-walk")


def test_a_folder_that_holds_hidden_files_is_left_alone(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".env").write_text("secret")
    with pytest.raises(ConfigError, match="holds '.env', so nothing is written there"):
        folder.check_place(tmp_path, "a", "walker-walk")
    assert (tmp_path / ".env").read_text() == "secret"


def test_an_earlier_result_is_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    place, rename = tmp_path / "made", folder.os.rename
    place.mkdir()
    (place / "episodes.csv").write_text("earlier")

    def refuse(source, target):
        if target == place and (source / "episodes.csv").read_text() != "earlier":
            raise OSError(18, "another device")
        rename(source, target)

    monkeypatch.setattr(folder.os, "rename", refuse)
    monkeypatch.setattr(folder, "check_place", lambda *about: None)
    monkeypatch.setattr(folder, "draw", lambda place: None)
    monkeypatch.setattr(folder, "save_controller", lambda controller, place, about: place.mkdir())
    with pytest.raises(folder.ResultError, match="cannot be written"):
        folder.write_folder(place, None, {"teacher_key": "a", "task": "b"}, pd.DataFrame({"new": [1]}))
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("episodes.csv", "earlier")]
