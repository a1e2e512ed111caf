"""The gates of the rivals against slow loops; what their arms do is in test_arms."""

import math

import pytest
import torch

from lib.study.rivals import AdaptiveToleranceGate, DistanceGate, LocalToleranceGate, PublishedGate
from tests.test_gates import look_of, traces_as_one_graph
from tests.tiny import tiny_model


def test_the_adaptive_tolerance_is_the_deviation_times_how_much_the_dynamics_carry_of_it():
    wm = tiny_model()
    look = look_of(wm)
    score = AdaptiveToleranceGate().score(wm, look)
    for row in range(8):
        z, z_pred, a_plan = (x[row : row + 1] for x in (look.z, look.z_pred, look.a_plan))
        deviation = math.dist(z[0].tolist(), z_pred[0].tolist())
        ahead = math.dist(wm.next(z, a_plan)[0].tolist(), wm.next(z_pred, a_plan)[0].tolist())
        assert score[row].item() == pytest.approx(deviation * (ahead / deviation), abs=1e-5)
    assert score.std() > 1e-3


def test_its_local_reading_is_the_derivative_along_the_deviation():
    wm = tiny_model()
    look = look_of(wm)
    score = LocalToleranceGate().score(wm, look)
    for row in range(8):
        z, z_pred, a_plan = look.z[row], look.z_pred[row], look.a_plan[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda z, a=a_plan: wm.next(z[None], a)[0], z_pred)
        assert score[row].item() == pytest.approx((jacobian @ (z - z_pred)).norm().item(), rel=0.03, abs=1e-3)
    whole = AdaptiveToleranceGate().score(wm, look)
    assert (score / whole - 1).abs().max() > 0.1  # the readings differ


def test_where_nothing_has_drifted_nothing_is_asked():
    wm = tiny_model()
    look = look_of(wm)._replace(z_pred=look_of(wm).z)
    for gate in (AdaptiveToleranceGate(), LocalToleranceGate()):
        action, score, _ = gate(wm, look)
        assert not score.any() and torch.equal(action, look.corrected)


def test_the_published_threshold_is_half_a_unit_of_distance_and_no_number_to_find():
    wm = tiny_model()
    look = look_of(wm)
    gate = PublishedGate()
    assert gate.threshold.item() == 0.5 and gate.numbers == () and DistanceGate.numbers == ("threshold",)
    distance = torch.tensor([math.dist(p, q) for p, q in zip(look.z.tolist(), look.z_pred.tolist(), strict=True)])
    torch.testing.assert_close(gate.score(wm, look), distance)
    torch.testing.assert_close(DistanceGate(0.1).score(wm, look), distance)


@pytest.mark.parametrize("make", [AdaptiveToleranceGate, LocalToleranceGate, DistanceGate])
def test_a_gate_traces_as_one_graph_and_new_thresholds_do_not_compile_again(make):
    traces_as_one_graph(make, rtol=0, atol=1e-4)  # a difference of latents that are nearly the same
