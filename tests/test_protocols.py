"""Every controller, the world model, and whatever a planner may run on fulfil their contracts."""

import dataclasses

import numpy as np
import pytest
import torch

from lib.config import ConfigError
from lib.correctors import TemporalCorrector
from lib.distil.collect import Taught
from lib.gates import DriftGate
from lib.planner import MPPI
from lib.planning_networks import PlanningNetworks
from lib.policy import PolicyController
from lib.protocols import Controller, LatentModel, PlannerNetworks, rows_of
from lib.realtime import LateController, RealTimeController
from lib.speculation import SpeculativeController
from lib.study.model_quality.search import OracleNetworks
from lib.study.sequence.behaviour_cloning import BehaviourCloning
from lib.study.sequence.behaviour_cloning import Shape as CloningShape
from lib.study.sequence.decision_transformer import DecisionTransformer
from lib.study.sequence.decision_transformer import Shape as TransformerShape
from lib.teachers.controllers import RandomController, ReplanningController
from tests.test_planner import LinearQuadratic
from tests.tiny import ACTIONS, BUDGET, LATENT, OBS, latents, streams, tiny_model

CONTROLLERS = {
    "policy": lambda wm: PolicyController(wm, mode="eager"),
    "best of 4": lambda wm: PolicyController(wm, 4, mode="eager"),
    "open loop": lambda wm: SpeculativeController(MPPI(wm, BUDGET)),
    "speculative": lambda wm: SpeculativeController(
        MPPI(wm, BUDGET), TemporalCorrector(LATENT, ACTIONS).eval(), DriftGate(0.4), 5
    ),
    "taught": lambda wm: Taught(SpeculativeController(MPPI(wm, BUDGET)), MPPI(wm, BUDGET), [1, 2, 3], 0.5),
    "in the background": lambda wm: RealTimeController(
        MPPI(wm, BUDGET), TemporalCorrector(LATENT, ACTIONS).eval(), DriftGate(0.4), (2, 0, 1)
    ),
    "late": lambda wm: LateController(MPPI(wm, BUDGET), (1, 0, 2)),
    "replanning": lambda wm: ReplanningController(MPPI(wm, BUDGET)),
    "exploring": lambda wm: ReplanningController(MPPI(wm, BUDGET), exploration=1.0),
    "random": lambda wm: RandomController(ACTIONS),
    "cloning": lambda wm: BehaviourCloning(CloningShape(OBS, ACTIONS)).controller(0.0),
    "transformer": lambda wm: DecisionTransformer(TransformerShape(OBS, ACTIONS)).controller(3.0),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_acts_for_a_batch_and_for_what_is_left_of_it(name):
    controller = CONTROLLERS[name](tiny_model())
    assert isinstance(controller, Controller)
    for _ in range(2):  # a new start forgets the batch before
        controller.reset(3, streams(1, 2, 3))
        rows = 3
        for decision in range(5):
            actions, info = controller.act(torch.randn(rows, OBS))
            assert actions.shape == (rows, ACTIONS) and actions.abs().max() <= 1
            assert all(value.shape == (rows,) for value in info.values())
            if decision == 2:
                controller.keep([0, 2])
                rows = 2


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_plays_an_episode_again(name):
    """With more heads than are drawn, a planner has a stream of its own, which has to begin anew."""
    controller, obs, played = CONTROLLERS[name](tiny_model(num_q=5)), torch.randn(6, 3, OBS), []
    for _ in range(2):
        controller.reset(3, streams(1, 2, 3))
        played.append(torch.stack([controller.act(o)[0] for o in obs]))
    assert torch.equal(*played)


# ------------------------------------------------------------------------------------------------- what `act` takes

HALVES = torch.tensor([[0.5, -1.0, 2.0, 0.0, 3.0], [1.0, 4.0, -2.5, 0.25, 0.0], [-8.0, 0.5, 1.5, 1.0, 2.0]])
WHOLE = HALVES.round()
TAKEN = {  # of these numbers, which are the same in every type
    "float64": (HALVES, HALVES.double()),
    "float16": (HALVES, HALVES.half()),
    "bfloat16": (HALVES, HALVES.bfloat16()),
    "integers": (WHOLE, WHOLE.long()),
    "array": (HALVES, HALVES.numpy()),
    "array of float64": (HALVES, HALVES.double().numpy()),
    "array of integers": (WHOLE, WHOLE.numpy().astype(np.int8)),
    "array from the back": (HALVES, HALVES.numpy()[::-1].copy()[::-1]),
    "array that is read only": (HALVES, np.broadcast_to(HALVES.numpy(), (3, OBS))),
    "array of another byte order": (HALVES, HALVES.numpy().astype(">f4")),
    "lists": (HALVES, HALVES.tolist()),
    "tuple of arrays": (HALVES, tuple(HALVES.numpy())),
    "list of tensors": (HALVES, list(HALVES)),
}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_takes_observations_as_people_have_them(name, kind):
    controller, played = CONTROLLERS[name](tiny_model()), []
    for obs in TAKEN[kind]:
        controller.reset(3, streams(1, 2, 3))
        played.append([controller.act(obs)[0] for _ in range(2)])
    assert torch.equal(torch.stack(played[0]), torch.stack(played[1]))


def test_what_is_ready_is_taken_as_it_is():
    obs = torch.zeros(3, OBS)
    assert rows_of(obs, 3, "cpu", OBS)[0] is obs and rows_of(obs.numpy(), 3, "cpu")[0] is not obs


@pytest.mark.parametrize("name", CONTROLLERS)
def test_one_observation_without_a_batch_gets_one_action(name):
    """And the records of one: a batch of one, but for its dimension."""
    controller = CONTROLLERS[name](tiny_model())
    if name == "taught":
        controller.seeds = [1]
    played = []
    for obs in (HALVES[:1], HALVES[0].numpy()):
        controller.reset(1, streams(1))
        played.append([controller.act(obs) for _ in range(2)])
    for (actions, records), (action, record) in zip(*played, strict=True):
        assert action.shape == (ACTIONS,) and torch.equal(action, actions[0])
        assert record.keys() == records.keys()
        for key, value in record.items():
            assert value.shape == () and torch.equal(value.nan_to_num(-1.0), records[key][0].nan_to_num(-1.0))


REFUSED = {  # of three episodes
    "cube": (torch.zeros(2, 3, OBS), r"act\(\) takes .*, not shape \(2, 3, 5\) and dtype torch.float32"),
    "number": (0.5, r"act\(\) takes .*, not shape \(\) and dtype float64"),
    "too few": (np.zeros((2, OBS)), r"2 observations for 3 .*\(2, 5\) and dtype float64; call reset\(batch_size=2\)"),
    "one alone": (torch.zeros(OBS), r"1 observation for 3 episodes, of shape \(5,\) .*; call reset\(batch_size=1\)"),
    "complex": (torch.zeros(3, OBS) + 0j, r"real numbers, not a Tensor of shape \(3, 5\) and dtype torch.complex64"),
    "words": (np.full((3, OBS), "x"), r"real numbers, not a ndarray of shape \(3, 5\) and dtype <U1"),
    "nothing": ([None] * 3, r"real numbers, not a list of shape \(3,\) and dtype object"),
    "dict": ({"position": np.zeros(OBS)}, r"real numbers, not a dict of shape \(\) and dtype object"),
    "ragged": ([[1.0], [1.0, 2.0], [0.0]], "real numbers; this list is none: setting an array element"),
    "ragged tensors": ([torch.zeros(n) for n in (2, 3, 2)], "this list is none: stack expects each tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", CONTROLLERS)
def test_other_observations_are_refused_in_a_sentence(name, kind):
    controller, (obs, message) = CONTROLLERS[name](tiny_model()), REFUSED[kind]
    controller.reset(3, streams(1, 2, 3))
    with pytest.raises(ValueError, match=message) as caught:
        controller.act(obs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_what_was_not_reset_or_is_of_another_width_is_refused(name):
    controller = CONTROLLERS[name](tiny_model())
    with pytest.raises(ValueError, match=r"1 observation for 0 episodes.*; call reset\(batch_size=1\) first"):
        controller.act(torch.zeros(OBS))
    if name not in ("cloning", "transformer"):  # which draw nothing
        with pytest.raises(ConfigError, match="1 generators were given for 2 episodes"):
            controller.reset(2, streams(1))
    controller.reset(3, streams(1, 2, 3))
    if name != "random":  # which looks at none
        with pytest.raises(ValueError, match=r"takes observations 5 wide.*shape \(3, 7\)"):
            controller.act(torch.zeros(3, 7))


UNSOUND = {
    1e300: "are not finite in float32",
    torch.nan: "are not finite",
    1e30: r"reach 1e\+30, where networks overflow",
}


@pytest.mark.parametrize("value", UNSOUND)
@pytest.mark.parametrize("name", CONTROLLERS)
def test_what_no_network_can_take_is_not_blamed_on_weights(name, value):
    controller, obs = CONTROLLERS[name](tiny_model()), HALVES.double()
    obs[1, 2] = value
    controller.reset(3, streams(1, 2, 3))
    if name == "random" or (value == 1e30 and name == "cloning"):
        assert controller.act(obs)[0].isfinite().all()  # it looks at none, or has no norm that overflows
        return
    with pytest.raises(ValueError, match=rf"observations of rows \[1\] {UNSOUND[value]}"):
        controller.act(obs)


# ------------------------------------------------------------------------------------------- models and planners


def test_the_world_model_is_a_latent_model():
    wm, z, a = tiny_model(num_q=3), latents(4), torch.zeros(4, ACTIONS)
    assert isinstance(wm, LatentModel)
    assert wm.encode(torch.zeros(4, OBS)).shape == wm.next(z, a).shape == (4, LATENT)
    assert wm.reward(z, a).shape == (4,) and wm.q(z, a).shape == wm.q(z, a, target=True).shape == (3, 4)
    assert wm.q(z, a, heads=torch.tensor([0, 2])).shape == (2, 4)
    assert [x.shape for x in wm.policy(z)] == [(4, ACTIONS)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_planner_runs_on_are_planner_networks(dtype):
    wm = tiny_model(num_q=3)
    nets, z, a = PlanningNetworks(wm, dtype), latents(4), torch.zeros(4, 7, ACTIONS)
    assert all(isinstance(made, PlannerNetworks) for made in (nets, OracleNetworks(wm, None), LinearQuadratic()))
    nets.refresh()
    start = nets.enter(z).unsqueeze(1)
    reward, after = nets.step(start, a)
    assert torch.equal(nets.leave(start[:, 0]), z) and reward.shape == (4, 7) and after.shape == (4, 7, LATENT)
    assert [x.shape for x in nets.policy(after)] == [(4, 7, ACTIONS)] * 2
    assert nets.q(after, a, None).shape == nets.q(after, a, torch.tensor([0, 2])).shape == (4, 7)


def test_a_planner_takes_networks_that_are_none_of_ours():
    system = LinearQuadratic()
    config = dataclasses.replace(BUDGET, horizon=2)
    assert MPPI(system, config, system)(torch.ones(3, 2)).actions.shape == (3, 2, 1)
