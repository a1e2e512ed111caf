"""What is exported acts as the controller does, from Python and from C++."""

import functools
import importlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils import cpp_extension

from lib.bundle import BundleError, export, load_controller, save_controller
from lib.bundle.export import _SOLVES, _STEPS, NOISE, _start
from lib.config import PlannerConfig
from lib.records.paths import ROOT
from tests.bundle.made import CONTROLLERS, speculative
from tests.tiny import OBS, streams

made = importlib.import_module("lib.bundle.export")  # `lib.bundle.export` is the function
DECISIONS = 14
EXPORTED = [name for name in CONTROLLERS if name != "refined" and not name.startswith("real time")]


def observations():
    """Still at first, so that plans go on, then all over the place."""
    torch.manual_seed(5)
    return torch.randn(1, 1, OBS) + torch.cat([0.02 * torch.randn(6, 1, OBS), torch.randn(DECISIONS - 6, 1, OBS)])


def played(controller):
    """Its actions (T, 1, A) and, by decision, the random numbers that it drew, those of a decision without any zero."""
    drawn, planner = {}, getattr(controller, "planner", None)
    if planner:
        draw = planner.draw_noise

        @functools.wraps(draw)
        def noted(batch, generator=None):
            drawn[t] = draw(batch, generator)
            return drawn[t]

        planner.draw_noise = noted
    controller.reset(1, streams(7))
    actions = []
    for t, obs in enumerate(observations()):  # noqa: B007 - `noted` reads it
        actions.append(controller.act(obs)[0])
    if planner:
        some = next(iter(drawn.values()))
        noise = [
            torch.stack([getattr(drawn[t], name) if t in drawn else getattr(some, name) * 0 for t in range(DECISIONS)])
            for name in NOISE
        ]
    elif samples := getattr(controller, "samples", 0):
        (stream,) = streams(7)
        noise = [torch.stack([torch.randn(1, samples, actions[0].shape[1], generator=stream) for _ in actions])]
    else:
        noise = []
    return torch.stack(actions), noise, sorted(drawn)


@torch.no_grad()
def played_by(step, solve, state, noise, drawn=None):
    """The actions of exported functions, as a host calls them; `drawn` gets the decisions that were planned."""
    actions = []
    for t, obs in enumerate(observations()):
        inputs = [obs, *state]
        action, asks, sound, *after = step(*inputs, *([] if solve else [x[t] for x in noise]))
        if asks:
            drawn is None or drawn.append(t)
            action, asks, sound, *after = solve(*inputs, *(x[t] for x in noise))
            assert not asks
        assert sound and sound.shape == asks.shape == (1,)
        assert [x.shape for x in after] == [x.shape for x in state]
        actions.append(action)
        state = after
    return torch.stack(actions)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_functions_that_are_exported_act_as_the_controller(name):
    """Before they are compiled, which takes minutes."""
    controller, asked = CONTROLLERS[name](), []
    actions, noise, drawn = played(controller)
    solve = _SOLVES[type(controller)](controller) if getattr(controller, "planner", None) else None
    got = played_by(_STEPS[type(controller)](controller), solve, _start(controller)[1], noise, asked)
    torch.testing.assert_close(got, actions, rtol=0, atol=1e-5)
    assert asked == drawn
    if name in ("value", "draft and planner"):
        assert 2 < len(drawn) < DECISIONS - 2  # else nothing is compared of what goes on between plans


def test_an_observation_that_is_not_finite_has_no_sound_action():
    controller = CONTROLLERS["value"]()
    _, noise, _ = played(controller)
    state, nowhere = _start(controller)[1], torch.full((1, OBS), torch.nan)
    assert not _STEPS[type(controller)](controller)(nowhere, *state)[2]
    assert not _SOLVES[type(controller)](controller)(nowhere, *state, *(x[0] for x in noise))[2]


@pytest.mark.parametrize("controller", [
    CONTROLLERS["refined"], lambda: speculative(budget=PlannerConfig.budget(8, 1, mode="eager", dtype="bfloat16")),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused(tmp_path, controller):
    save_controller(controller(), tmp_path / "c")
    with pytest.raises(BundleError, match="c: a refiner and bfloat16 cannot be exported; save a controller without"):
        export(tmp_path / "c")


def test_what_begins_solves_ahead_of_time_is_not_exported(tmp_path):
    save_controller(CONTROLLERS["real time"](), tmp_path / "c")
    with pytest.raises(BundleError, match="c: a RealTimeController cannot be exported; it begins solves ahead of time"):
        export(tmp_path / "c")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, monkeypatch):
    save_controller(CONTROLLERS["policy"](), tmp_path / "c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(BundleError, match="mine is no earlier export, so nothing is written there; give a new or"):
        export(tmp_path / "c", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BundleError, match="c cannot be exported here: no C.. compiler was found."):
        export(tmp_path / "c")
    with pytest.raises(BundleError, match="nowhere is no controller's folder"):
        export(tmp_path / "nowhere")


def test_an_earlier_export_is_replaced_as_a_whole_or_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "_compiled", lambda function, inputs, path, options: path.write_text("compiled"))
    save_controller(CONTROLLERS["value"](), tmp_path / "c")
    (tmp_path / "out").mkdir()
    first = export(tmp_path / "c", tmp_path / "out")
    names = {"export.json", "solve.pt2", "start.pt", "step.pt2"}
    assert {path.name for path in first.iterdir()} == names
    save_controller(CONTROLLERS["policy"](), tmp_path / "c")

    def broken(function, inputs, path, options):
        raise RuntimeError("the compiler has a bug")

    with monkeypatch.context() as patch, pytest.raises(BundleError, match="exported to .*out: the compiler has a bug."):
        patch.setattr(made, "_compiled", broken)
        export(tmp_path / "c", tmp_path / "out")
    assert {path.name for path in first.iterdir()} == names
    export(tmp_path / "c", tmp_path / "out")
    assert {path.name for path in first.iterdir()} == names - {"solve.pt2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "out"]


# ------------------------------------------------------------------------------------------------------ compiled


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example in C++, built; None where there is no compiler."""
    if not shutil.which("g++"):
        return None
    built = tmp_path_factory.mktemp("cpp") / "controller"
    command = ["g++", "-std=c++20", "-O0", str(ROOT / "tests" / "cpp" / "controller.cpp"), "-o", str(built)]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{folder}" for folder in cpp_extension.include_paths()]
    for folder in cpp_extension.library_paths():
        command += [f"-L{folder}", f"-Wl,-rpath,{folder}"]
    done = subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the example is built with g++")
@pytest.mark.parametrize("name", ["value", "draft and planner", "policy samples", "policy"])
def test_packages_act_as_the_controller(tmp_path, program, name):
    folder = tmp_path / "controller"
    save_controller(CONTROLLERS[name](), folder)
    actions, noise, drawn = played(load_controller(folder))
    exported = export(folder)
    assert exported == folder / "exported"
    about = json.loads((exported / "export.json").read_text())
    load = torch._inductor.aoti_load_package
    solve = load(str(exported / "solve.pt2")) if "solve" in about else None
    assert bool(solve) == bool(drawn)
    shapes = [*about["solve" if solve else "step"].values()]
    assert shapes == [[*x.shape[1:]] for x in noise]
    state = torch.load(exported / "start.pt", weights_only=True)
    got = played_by(load(str(exported / "step.pt2")), solve, state, noise)
    torch.testing.assert_close(got, actions, rtol=0, atol=1e-5)
    if program is None or (noise and not solve):
        return  # the example gives its random numbers to the planner
    torch.save([observations(), *noise], tmp_path / "given.pt")
    command = [str(program), str(exported), str(tmp_path / "given.pt"), str(tmp_path / "actions.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "actions.pt", weights_only=True)
    torch.testing.assert_close(got, actions, rtol=0, atol=1e-5)
