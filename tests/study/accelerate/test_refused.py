"""Bad input to the command: one sentence on stderr, a status that says so, and nothing written."""

import functools

import pytest

from lib.bundle import save_controller
from lib.policy import PolicyController
from lib.records import paths
from lib.study.accelerate import playing, search
from lib.study.accelerate.__main__ import main
from lib.study.accelerate.plan import Costs, measured
from lib.weights.native import load_world_model
from tests.study.accelerate.made import TASK, teacher

COSTS = Costs(fixed=0.0, evaluation=1e-6, step=1e-5, update=1e-3, compile=0.0, decisions=20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return teacher(tmp_path_factory.mktemp("teacher") / "untrained.safetensors", updates=0)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(search, "measured", functools.wraps(measured)(lambda *given: COSTS))
    monkeypatch.setattr(playing.Playing, "times", lambda self, arm, seconds, period: [2.0] * 50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {  # words of the command: its status and its sentence
    "--keep 1.2": (2, "keep=1.2 must lie between 0 and 1, as 0.98 for 98 %."),
    "--rate -5": (2, "rate=-5.0 must be a number of decisions per second, or 0 for no deadline."),
    "--rate 1000": (2, "rate=1000 leaves 1 ms for a decision, and even the policy prior, without a plan, needs 2 ms "
                    "here; ask for at most 500 decisions per second."),
    "--minutes 0": (2, "minutes=0.0 must be above 0, and at most 10,000."),
    "--env tests.own_envs:Limited": (2, "2 observations and 1 actions, but tests.own_envs:Limited has 3 and 1; give "
                                     "the environment that it was trained on."),
    "--env walker-wlak": (2, "Did you mean walker-walk or"),
    "--env tests.own_envs:Endless": (2, "has no time limit"),
    "--out taken": (2, "out='taken' holds 'thesis.tex', so nothing is written there; give a new folder."),
    "--out file": (2, "out='file' is a file; give a folder that is new or empty."),
    "--out file/new": (2, "/file cannot be written to; give another folder."),
    "--out by-hand": (2, "holds a controller that is not this command's for this teacher and environment"),
    "--out new": (1, "there is nothing to keep a share of; train it longer"),  # it has learnt nothing
}  # fmt: skip


PLAYED = [pytest.param(words, marks=pytest.mark.slow) if words == "--out new" else words for words in REFUSED]


@pytest.mark.parametrize("words", PLAYED)
def test_one_sentence_and_nothing_written(words, place, weights, capsys):
    (place / "taken").mkdir()
    (place / "taken" / "thesis.tex").write_text("all of it")
    (place / "file").write_text("text")
    save_controller(PolicyController(load_world_model(weights, TASK), mode="eager"), place / "by-hand")
    before = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    given = f"{weights} --minutes 3 --out new {'' if '--env' in words else f'--env {TASK}'}".split()
    status, sentence = REFUSED[words]
    assert main([*given, *words.split()]) == status
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("accelerate: ") and sentence in said and said[-1] in ".?"
    after = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    assert {path: data for path, data in after.items() if "cache" not in path.parts} == before


def test_a_teacher_of_another_task_is_refused(place, capsys):
    assert main(["walker-walk-1m-1", "--env", "walker-run", "--out", "new"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("holds weights for walker-walk, not for walker-run.") and not (place / "new").exists()
