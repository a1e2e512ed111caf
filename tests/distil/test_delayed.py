"""Labels on late plans: every column against a slow twin, who acts, what is kept, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from lib.distil import delayed as collection
from lib.distil.delayed import collect_delayed
from lib.distil.states import ROWS, DistillationError
from lib.planner import MPPI
from tests.realtime.twins import RealTimeTwin, distance
from tests.test_speculation import random_corrector
from tests.tiny import ACTIONS, BUDGET, fresh_env, tiny_model

SEEDS = [11, 12, 13]


def gather(env=None, decisions=14, seeds=SEEDS, labels=1, budget=BUDGET, **options):
    """As many labels as episodes with two of these seeds have, or more where they are asked for."""
    planner = MPPI(tiny_model(num_q=4), budget)
    return collect_delayed(planner, env or fresh_env(), seeds, labels, decisions=decisions, **options)


class TaughtTwin(RealTimeTwin):
    """The twin of the controller, one episode, which is taught. `rows` are what there is to record."""

    def __init__(self, seed, corrector, beta, delays, twice):
        planner = MPPI(tiny_model(num_q=4), BUDGET)
        super().__init__(planner, corrector, None, [], None, seed)
        self.given, self.beta, self.twice, self.rows, self.seed = delays, beta, twice, [], seed
        self.coin, self.stream = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed + 2**31)
        self.warm, self.looked = None, -1
        self.draw()

    def draw(self):
        self.delays.append(self.given[int(torch.randint(len(self.given), (1,), generator=self.generator))])

    def solve(self, z, steps):
        solved = super().solve(z, steps)
        self.draw()
        return solved

    def act(self, obs):
        if self.coming and self.coming["arrival"] == self.now:
            self.arrived = self.coming["plan"]
        return super().act(obs)

    def foreground(self, z, predicted, plan, age, history):
        action, depth, change, history = super().foreground(z, predicted, plan, age, history)
        if self.looked == self.now:  # what is imagined is not taught
            return action, depth, change, history
        self.looked = self.now
        self.planner.reset_streams(self.now)
        label = self.planner(z[None], self.warm, [self.stream])
        again = self.planner(z[None], self.warm, [self.stream]) if self.twice[self.now] else None
        self.warm = label.shifted(1)
        if plan is not None:
            prior = self.wm.policy(predicted[None])[0][0]
            row = {"z_real": z, "z_pred": predicted, "a_plan": plan[0] if plan else prior}
            row |= {"a_policy": self.wm.policy(z[None])[0][0], "a_teacher": label.actions[0, 0], "depth": min(age, 12)}
            row |= {
                "plan": torch.stack(self.arrived),
                "teacher_plan": label.actions[0],
                "mismatch": distance(z, predicted),
                "decision": self.now,
            }
            self.rows.append(row | {"episode": self.seed, "a_again": again and again.actions[0, 0]})
        return (label.actions[0, 0] if self.coin.random() < self.beta else action), depth, change, history


@pytest.mark.parametrize("delays", [(2,), (1, 4), (3, 1, 2, 7)])
@pytest.mark.parametrize(("beta", "corrected"), [(1.0, False), (0.4, True), (0.0, True)])
def test_every_column_is_what_a_slow_twin_finds(monkeypatch, beta, corrected, delays):
    monkeypatch.setattr(collection, "FLOOR_SHARE", 0.4)
    env, corrector, decisions = fresh_env(), random_corrector() if corrected else None, 14
    # All at once: rows that are solved beside others must not depend on them.
    states = gather(env, seeds=SEEDS, labels=3 * decisions - 20, corrector=corrector, beta=beta, delays=delays)
    coin, rows = np.random.default_rng(SEEDS[0]), {}
    twice = [coin.random() < 0.4 for _ in range(decisions)]
    for seed in SEEDS[:2]:
        twin, world = TaughtTwin(seed, corrector or Untrained(), beta, delays, twice), env("tiny")
        obs = world.reset(seed=seed)[0]
        for _ in range(decisions):
            with torch.no_grad():
                obs = world.step(twin.act(torch.from_numpy(obs))[0].numpy())[0]
        rows |= {(row["decision"], seed): row for row in twin.rows}
    found = states.rows(torch.isin(states.episode, torch.tensor(SEEDS[:2])))
    wanted = [rows[key] for key in sorted(rows)]
    assert len(found) == len(wanted) and len(states.depth.unique()) > 1
    for name in ROWS:
        if name != "source":
            expected = torch.stack([torch.as_tensor(row[name]) for row in wanted]).float()
            torch.testing.assert_close(getattr(found, name).float(), expected, rtol=0, atol=2e-3)
    again = [i for i, row in enumerate(wanted) if row["a_again"] is not None]
    assert found.again_index.tolist() == again and 0 < len(again) < len(wanted)
    torch.testing.assert_close(found.a_again, torch.stack([wanted[i]["a_again"] for i in again]), rtol=0, atol=1e-3)


class Untrained(torch.nn.Module):
    """Repairs nothing, so that the prior goes on in the model beyond a plan's end."""

    def forward(self, z, z_pred, a_plan, a_policy, depth, history=None):
        return a_plan


def test_plans_are_between_their_delay_and_twice_of_it_old_and_none_older_than_is_known():
    ages = gather(delays=(4,), decisions=16).depth
    assert ages.unique().tolist() == [4, 5, 6, 7]
    assert gather(delays=(9,), decisions=28).depth.unique().tolist() == [9, 10, 11, 12]


def test_without_a_corrector_labels_are_executed_and_with_one_its_actions_are():
    env = fresh_env()
    states = gather(env, beta=0.0)
    acted = {(seed, t): action for seed, t, action in env.steps}
    columns = states.episode.tolist(), states.decision.tolist(), states.a_teacher
    for seed, t, label in zip(*columns, strict=True):
        np.testing.assert_allclose(acted[seed, t], label, atol=1e-5)
    env, corrector = fresh_env(), random_corrector()
    states = gather(env, corrector=corrector, beta=0.0)
    acted = {(seed, t): action for seed, t, action in env.steps}
    inputs = states.z_real.float(), states.z_pred.float(), states.a_plan, states.a_policy, states.depth
    for seed, t, action in zip(states.episode.tolist(), states.decision.tolist(), corrector(*inputs), strict=True):
        np.testing.assert_allclose(acted[seed, t], action, atol=2e-2)  # latents are kept in half precision


def test_an_episode_that_ends_leaves_the_others_as_they_are():
    env = fresh_env()
    whole = gather(env, corrector=random_corrector(), beta=0.5)
    env.ends[12] = 6
    states = gather(env, labels=15, corrector=random_corrector(), beta=0.5)
    assert states.decision[states.episode == 12].max() == 5 and 13 in states.episode
    mine, before = states.a_teacher[states.episode == 11], whole.a_teacher[whole.episode == 11]
    torch.testing.assert_close(mine, before, rtol=0, atol=1e-3)
    assert states.a_plan.shape[1] == ACTIONS and states.source.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"delays": (0, 2)}, r"delays=\(0, 2\) must be at least 1"),
        ({"delays": ()}, r"delays=\(\) must be at least 1"),
        ({"budget": dataclasses.replace(BUDGET, action_selection="sample")}, 'give a planner with "mean" selection'),
        ({"seeds": SEEDS[:2], "labels": 40}, "2 seeds are too few for 40 labels of two episodes or more: they have 2"),
        ({"seeds": SEEDS[:1]}, "1 seeds are too few for 1 labels of two episodes or more"),
        ({"beta": 1.5}, "beta=1.5 is a probability"),
    ],
)
def test_what_cannot_be_collected_is_a_sentence(options, reason):
    with pytest.raises(DistillationError, match=reason):
        gather(**options)
