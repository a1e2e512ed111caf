"""The step as one package: as the function itself, kept for later runs, and shorter than torch.compile's."""

import dataclasses
import functools
import time

import pytest
import torch

from lib.gates import DriftGate
from lib.realtime import BackgroundController, packaged
from lib.realtime.packaged import packaged as made
from lib.weights.native import load_world_model
from tests.realtime.test_background import Released, play
from tests.realtime.test_delayed import random_temporal
from tests.test_speculation import observations
from tests.tiny import BUDGET, tiny_model


def double(x, nothing, y):
    return x * 2, nothing, x + y


def test_what_cannot_be_compiled_is_left_as_it_is(monkeypatch, capfd):
    one = torch.ones(1)  # one tensor as two inputs, which need not be equal later
    monkeypatch.setattr(packaged, "_loaded", lambda program, tensors: lambda given: program.module()(*given))
    step = made(double, [], (one, None, one))
    first, nothing, last = step(one * 3, None, one)
    assert first == 6 and nothing is None and last == 4

    def broken(program, tensors):
        raise RuntimeError("the compiler has a bug\nhere")

    monkeypatch.setattr(packaged, "_loaded", broken)
    assert made(double, [], (one, None, one)) is None
    line = "its step cannot be compiled ahead of time, going on without it (the compiler has a bug)"
    assert line in capfd.readouterr().err
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert made(double, [], (one, None, one)) is None
    assert "controller: no C++ compiler was found; its steps go on as they are" in capfd.readouterr().err


def test_compiled_code_is_given_rows_without_gaps_as_its_example_was(monkeypatch):
    given = []
    monkeypatch.setattr(packaged, "_loaded", lambda program, tensors: lambda inputs: given.extend(inputs) or inputs)
    wide = torch.arange(8.0).reshape(2, 4)
    step = made(double, [], (wide[:, ::2], None, wide[:, 1::2]))
    step(wide[:, ::2], None, wide[:, 1::2])
    assert [x.tolist() for x in given] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert all(x.is_contiguous() for x in given)


@pytest.mark.slow
def test_the_package_acts_as_the_eager_controller_and_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECULATIVE_TDMPC2_CACHE", str(tmp_path / "cache"))
    obs, corrector, steps = observations(14, 1), random_temporal(), tmp_path / "cache" / "inductor" / "steps"
    played = []
    for mode in ("compiled", "eager", "compiled"):
        planner = Released(tiny_model(num_q=4), dataclasses.replace(BUDGET, mode=mode))
        with BackgroundController(planner, corrector, DriftGate(0.45), expected=2) as controller:
            played.append(play(controller, obs, [2] * 14))
            assert (controller._alone is not None) == (mode == "compiled")
            planner.permits.release(100)
        assert len(list(steps.iterdir())) == 1  # no other, and nothing half-written
    (actions, info), (wanted, records), (again, _) = played
    torch.testing.assert_close(actions, wanted, rtol=1e-4, atol=1e-4)
    for name in ("planner_called", "fallback", "depth", "dropped", "late"):
        assert torch.equal(info[name], records[name])
    assert torch.equal(again, actions) and info["dropped"].any() and not info["dropped"].all()
    function = functools.partial(lambda wm, z: (wm.policy(z)[0],), tiny_model(seed=1))
    made(function, [function.args[0]], (torch.full((1, 16), 1 / 8),))  # of other weights, and another function
    assert len(list(steps.iterdir())) == 2


@pytest.mark.slow
def test_a_step_is_shorter_than_by_torch_compile_and_no_longer_than_a_few_of_its_products():
    """In turns, and by the shortest of many: other processes only ever add."""
    wm, obs = load_world_model("walker-run-1m-1"), torch.zeros(1, 24)
    planner = Released(wm, dataclasses.replace(BUDGET, mode="compiled"))
    with BackgroundController(planner) as controller:
        controller.reset()
        controller.act(obs)  # a solve is on its way, and stays there
        s, never = controller._state, torch.tensor([False])
        given = (obs, s.z_pred, s.plan, s.position, s.depth, s.known, never, s.history)
        weights = [
            p.t().contiguous() for net in (wm.encoder, wm.dynamics, wm.pi) for p in net.parameters() if p.dim() > 1
        ]
        rows = [torch.zeros(1, len(w)) for w in weights]
        functions = {
            "products": lambda: [torch.mm(row, w) for row, w in zip(rows, weights, strict=True)],
            "torch.compile": lambda: controller._decide(*given),
            "package": lambda: controller._alone(*given),
            "act": lambda: controller.act(obs),
        }
        shortest = dict.fromkeys(functions, float("inf"))
        with torch.no_grad():
            for turn in range(60):
                for name, function in functions.items():
                    for _ in range(20):
                        started = time.perf_counter()
                        function()
                        took = time.perf_counter() - started
                        shortest[name] = min(shortest[name], took) if turn else shortest[name]
        planner.permits.release(100)
    assert shortest["package"] < 0.7 * shortest["torch.compile"], shortest
    assert shortest["act"] < 4 * shortest["products"], shortest
