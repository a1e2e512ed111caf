"""The gates against slow loops, and what the controller does with them: thresholds, refining, arms by name."""

import dataclasses
import math

import pytest
import torch

from lib.config import ConfigError, PlannerConfig
from lib.gates import DriftGate, Gate, LadderGate, Look, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.speculation import SpeculativeController
from lib.world_model import total_variation
from tests.test_speculation import NotingPlanner, PushCorrector, observations, play
from tests.tiny import ACTIONS, BUDGET, LATENT, LatentModel, latents, streams, tiny_model

ROWS = 40
SMALL = PlannerConfig.budget(8, 1, mode="eager")
GATES = [
    DriftGate,
    lambda threshold: DriftGate(threshold, "l2"),
    SensitivityGate,
    lambda threshold: SensitivityGate(threshold, "value"),
    ValueGate,
    lambda threshold: LadderGate(threshold, (0.1, 0.4)),
]


def look_of(wm, seed=0, rows=ROWS):
    """Unrelated latents and actions, and what a controller would know of them."""
    generator = torch.Generator().manual_seed(seed)
    z, z_pred = latents(rows, seed + 1), latents(rows, seed + 2)
    a_plan, corrected = (2 * torch.rand(2, rows, ACTIONS, generator=generator) - 1).unbind()
    return Look(z, z_pred, total_variation(z, z_pred), a_plan, wm.policy(z)[0], corrected)


# ----------------------------------------------------------------------------------------------------------- scores


def test_drift_is_total_variation_or_l2_distance():
    wm = tiny_model()
    look = look_of(wm)
    for row in range(5):
        p, q = look.z[row].tolist(), look.z_pred[row].tolist()
        simplices = [0.5 * sum(abs(p[i + j] - q[i + j]) for j in range(8)) for i in range(0, LATENT, 8)]
        action, score, _ = DriftGate()(wm, look)
        assert score[row].item() == pytest.approx(sum(simplices) / len(simplices), abs=1e-6)
        assert torch.equal(action, look.corrected)
        assert DriftGate(measure="l2").score(wm, look)[row].item() == pytest.approx(math.dist(p, q), abs=1e-6)


def test_sensitivity_is_mismatch_times_the_finite_difference_along_the_drift():
    wm = tiny_model(num_q=3)
    look = look_of(wm)
    for row, mismatch in enumerate(look.mismatch[:5].tolist()):
        at, expected = look.z[row : row + 1], look.z_pred[row : row + 1]
        a, b = wm.policy(at)[0], wm.policy(expected)[0]
        changes = {
            "action": sum(abs(x - y) for x, y in zip(a[0].tolist(), b[0].tolist(), strict=True)) / ACTIONS,
            "value": abs(wm.q(at, a).mean().item() - wm.q(expected, b).mean().item()),
        }
        for of, change in changes.items():
            sensitivity = change / mismatch
            score = SensitivityGate(of=of).score(wm, look)[row].item()
            assert score == pytest.approx(mismatch * sensitivity, abs=1e-5)


def test_the_value_gate_takes_the_best_candidate_and_compares_it_with_the_promise():
    wm = tiny_model(num_q=3)
    look = look_of(wm)
    action, score, promised = ValueGate()(wm, look)
    chosen = set()
    for row in range(ROWS):
        at = look.z[row : row + 1]
        candidates = [c[row : row + 1] for c in (look.a_plan, look.corrected, look.a_policy)]
        values = [wm.q(at, c).mean().item() for c in candidates]
        best = max(range(3), key=values.__getitem__)
        promise = wm.q(look.z_pred[row : row + 1], candidates[0]).mean().item()
        assert torch.equal(action[row], candidates[best][0])
        assert score[row].item() == pytest.approx(promise - values[best], abs=1e-4)
        assert promised[row].item() == pytest.approx(promise, abs=1e-4)
        chosen.add(best)
    assert chosen == {0, 1, 2}  # or nothing was tested


def test_the_ladder_takes_the_cheapest_rung_that_passes():
    wm = tiny_model()
    look = look_of(wm)
    low, high = look.mismatch.quantile(torch.tensor([0.3, 0.6])).tolist()
    action, score, _ = LadderGate(levels=(low, high))(wm, look)
    best, value_score, _ = ValueGate()(wm, look)
    for row, drift in enumerate(look.mismatch.tolist()):
        if drift <= low:
            expected = look.a_plan[row], -math.inf
        elif drift <= high:
            expected = look.corrected[row], -math.inf
        else:
            expected = best[row], value_score[row].item()
        assert torch.equal(action[row], expected[0]) and score[row].item() == expected[1]


def test_thresholds_are_arguments_and_buffers():
    for make in GATES:
        gate = make(0.25)
        assert isinstance(gate, Gate) and gate.threshold.item() == 0.25
    assert LadderGate(1.0, (0.1, 0.2)).levels.tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ConfigError, match="measure='l1'"):
        DriftGate(measure="l1")
    with pytest.raises(ConfigError, match="of='reward'"):
        SensitivityGate(of="reward")


@pytest.mark.parametrize("make", GATES)
def test_a_gate_traces_as_one_graph_and_new_thresholds_do_not_compile_again(make):
    traces_as_one_graph(make)


def traces_as_one_graph(make, **tolerance):
    wm = tiny_model()
    gate, look, graphs = make(torch.inf), look_of(wm), []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda look: gate(wm, look), fullgraph=True, backend=counting)
    with torch.no_grad():
        for threshold in (0.5, 0.1):
            gate.threshold.fill_(threshold)
            for ours, plain in zip(compiled(look), gate(wm, look), strict=True):
                torch.testing.assert_close(ours, plain, **tolerance)
    assert len(graphs) == 1


# -------------------------------------------------------------------------------------------------- in the controller


def test_a_threshold_decides_and_infinity_never_replans():
    wm, obs = tiny_model(), observations(12, 3)
    never, always, without = (
        play(SpeculativeController(MPPI(wm, BUDGET), None, gate, 4), obs)[1]
        for gate in (DriftGate(), DriftGate(-1.0), None)
    )
    assert not never["fallback"].any() and not never["refined"].any()
    scores = never["score"][~never["score"].isnan()]
    assert torch.equal(scores, never["mismatch"][~never["mismatch"].isnan()])
    assert always["planner_called"].all() and torch.equal(always["fallback"].sum(0), torch.tensor([11, 11, 11]))
    assert without["score"].isnan().all()


class AllOrNothing(ValueGate):
    """Lets no step pass, executes the corrected action otherwise, and says what plans have promised."""

    promises: list[float]

    def forward(self, wm, look):
        return look.corrected, torch.full_like(look.mismatch, 5.0), torch.tensor(self.promises)


def test_what_fails_its_check_is_refined_and_replanned_only_if_that_does_not_hold_up():
    wm = tiny_model()
    planner = NotingPlanner(wm, BUDGET)
    refiner = NotingPlanner(wm, dataclasses.replace(SMALL, max_std=0.5))
    gate = AllOrNothing(1.0)
    gate.promises = [-1e6, 1e6]  # the first row's refined plan is worth more than that, the second's is not
    controller = SpeculativeController(planner, PushCorrector(), gate, 4, refiner=refiner)
    controller.reset(2, streams(0, 1))
    obs = observations(2, 2)
    controller.act(obs[0])
    before = controller.plan.clone()
    step = controller.propose(obs[1])
    assert step.refined.tolist() == [True, False] and step.planner_called.tolist() == [False, True]
    assert step.fallback.tolist() == [False, True] and step.depth.tolist() == [0, 0]
    assert step.mismatch.isnan().all() and step.score.isnan().all()
    (z, mean, refined), (_, _, first), (z_again, warm, solved) = refiner.calls[0], *planner.calls
    assert len(refiner.calls) == 1 and torch.equal(z, step.z) and torch.equal(z_again, step.z[1:])
    assert torch.equal(warm, first.shifted(1)[1:])
    assert torch.equal(step.action, torch.stack([refined.actions[0, 0], solved.actions[0, 0]]))
    assert torch.equal(controller.plan, torch.stack([refined.actions[0], solved.actions[0]]))
    # What is refined: the corrected action, the rest of the plan, and the prior where the plan has no more.
    chosen = (before[:, 1] + 0.3).clamp(-1, 1)
    after = wm.next(wm.next(step.z, chosen), before[:, 2])
    torch.testing.assert_close(mean, torch.stack([chosen, before[:, 2], wm.policy(after)[0]], 1))
    controller.commit(step.action)
    assert controller.warm_start()[0, 0].equal(refined.mean[0, 1])


def test_a_refined_plan_is_judged_as_the_gate_judges_actions():
    """By Q of its first action, against the promise less the threshold, whichever side the margin is on."""
    wm = tiny_model(num_q=3)
    gate = AllOrNothing(0.5)
    controller = SpeculativeController(MPPI(wm, BUDGET), None, gate, 4, refiner=MPPI(wm, SMALL))

    def second_step(promise):
        gate.promises = [promise]
        controller.reset(1, streams(3))  # the refiner's noise is the same every time
        for obs in observations(2, 1):
            step = controller.propose(obs)
            controller.commit(step.action)
        return step

    refined = second_step(-1e6)
    value = wm.q(refined.z, refined.action).mean().item()
    for margin, holds in ((-0.01, True), (0.01, False)):
        step = second_step(value + 0.5 + margin)
        assert step.refined.item() == holds and step.planner_called.item() != holds


@pytest.mark.parametrize(
    "gate, refiner",
    [(None, SMALL), (DriftGate(0.1), SMALL), (ValueGate(0.1), dataclasses.replace(SMALL, horizon=5))],
)
def test_a_refiner_that_cannot_be_used_is_refused(gate, refiner):
    wm = tiny_model()
    with pytest.raises(ConfigError, match="a refiner needs a gate that checks values"):
        SpeculativeController(MPPI(wm, BUDGET), None, gate, refiner=MPPI(wm, refiner))


def test_nothing_is_refined_when_the_model_is_the_world():
    """Nothing drifts, so the promise is kept to the last digit that a float holds."""
    wm = tiny_model(kind=LatentModel)
    controller = SpeculativeController(MPPI(wm, BUDGET), None, ValueGate(1e-3), 6, refiner=MPPI(wm, SMALL))
    controller.reset(2, streams(0, 1))
    z = latents(2)
    for t in range(13):
        action, info = controller.act(z)
        z = wm.next(z, action)
        assert info["planner_called"].tolist() == [t % 6 == 0] * 2 and not info["refined"].any()


def test_best_of_n_is_the_sample_with_the_highest_value_and_rows_ignore_each_other():
    wm, obs = tiny_model(num_q=3), observations(1, 3)[0]
    controller = PolicyController(wm, samples=7, mode="eager")
    controller.reset(3, streams(4, 5, 6))
    action, info = controller.act(obs)
    assert not info["planner_called"].any() and not info["refined"].any()
    for row, seed in enumerate((4, 5, 6)):
        z, noise = wm.encode(obs[row : row + 1]), torch.randn(7, ACTIONS, generator=streams(seed)[0])
        draws = [wm.policy_sample(z, n[None]) for n in noise]
        best = max(draws, key=lambda a: wm.q(z, a).mean().item())
        torch.testing.assert_close(action[row], best[0])
    controller.reset(3, streams(4, 5, 6))
    controller.keep([1])
    torch.testing.assert_close(controller.act(obs[1:2])[0][0], action[1])
