"""Every controller, the world model, and whatever a planner may run on fulfil their contracts."""

import dataclasses

import pytest
import torch

from lib.correctors import TemporalCorrector
from lib.distil.collect import Taught
from lib.gates import DriftGate
from lib.planner import MPPI
from lib.planning_networks import PlanningNetworks
from lib.policy import PolicyController
from lib.protocols import Controller, LatentModel, PlannerNetworks
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
