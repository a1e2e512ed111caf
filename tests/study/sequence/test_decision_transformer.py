"""Decision Transformer and behaviour cloning: what they may see, learn and return, and how they resume."""

import dataclasses
import functools
import json
import math
import shutil
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import ConfigError, WorldModelConfig
from lib.environments import make_env
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import read_sidecar, read_table, write_json, write_table
from lib.rollout import rollout
from lib.study import claims
from lib.study.cells import resolve
from lib.study.profiles import PROFILES, SequenceStudy
from lib.study.sequence import evaluate as offline_evaluation
from lib.study.sequence import train as offline_training
from lib.study.sequence.behaviour_cloning import BehaviourCloning
from lib.study.sequence.datasets import load_dataset
from lib.study.sequence.decision_transformer import DecisionTransformer, Shape
from lib.study.sequence.evaluate import check_fits, evaluate_policy, evaluated, make_task, normalised_score, trained
from lib.study.sequence.train import POLICIES, OfflineTraining, load_policy, save_policy, train
from lib.study.sequence.windows import OfflineDataError, Trajectory, TrajectorySet, Windows, return_scale
from lib.teachers.controllers import RandomController
from lib.weights.native import CheckpointError, save_world_model
from lib.world_model import WorldModel
from tests.bare import run_notebook
from tests.figures.test_charts import load_figure, pareto, pdf_text, summary
from tests.study.sequence.test_datasets import SpacedEnv, flat, some, trajectories, write
from tests.test_paper import paper as build
from tests.tiny import ACTIONS, OBS, fresh_env

SMALL = dict(context=4, width=16, layers=2, return_scale=10.0)
SHORT = OfflineTraining(updates=6, warm_up=3, lr=1e-2, batch_size=8, evaluate_every=2)
figure = load_figure("decision_transformer")
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def random_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = DecisionTransformer(Shape(OBS, ACTIONS, **SMALL | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.obs_mean.normal_()
    model.obs_std.uniform_(0.5, 2)
    return model.eval()


def random_inputs(batch=3, length=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    obs, actions = torch.randn(batch, length, OBS, generator=g), torch.rand(batch, length, ACTIONS, generator=g)
    return [obs, actions, 10 * torch.rand(batch, length, generator=g), torch.arange(length).expand(batch, length)]


def first_action(policy, obs, target=1.0):
    controller = policy.controller(target)
    controller.reset(len(obs))
    return controller.act(obs)[0]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small networks wherever they are made for data, and a cache of the test's own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    for policy, sizes in zip(POLICIES.values(), (SMALL, dict(context=4, width=16)), strict=True):
        real = policy.of.__func__
        of = classmethod(lambda cls, data, real=real, sizes=sizes, **changes: real(cls, data, **sizes | changes))
        monkeypatch.setattr(policy, "of", of)


# --------------------------------------------------------------------------------------------------- what it sees


@pytest.mark.parametrize("t", range(6))
def test_a_prediction_sees_what_came_before_it_and_not_its_own_action(t):
    model, inputs = random_model(), random_inputs()
    before = model(*inputs)

    def moved(which, at):
        changed = [x.clone() for x in inputs]
        changed[which][:, at] += 1
        return (model(*changed) - before).abs().amax((0, 2)) > 1e-6  # (K,)

    for which, first in ((0, t), (1, t + 1), (2, t)):  # observation, action, return to go: an action is seen after it
        assert moved(which, t).tolist() == [at >= first for at in range(6)]


def test_what_stands_behind_a_decision_does_not_matter_so_padding_needs_no_mask():
    model, (obs, actions, returns, timesteps) = random_model(), random_inputs()
    short = model(obs[:, :3], actions[:, :3], returns[:, :3], timesteps[:, :3])
    torch.testing.assert_close(model(obs, actions, returns, timesteps)[:, :3], short, rtol=0, atol=1e-5)


def test_time_counts_and_is_held_at_its_end():
    model, inputs = random_model(max_decisions=10), random_inputs()
    later = model(*inputs[:3], inputs[3] + 2)
    assert not torch.allclose(model(*inputs), later, atol=1e-4)
    torch.testing.assert_close(model(*inputs[:3], inputs[3] + 50), model(*inputs[:3], inputs[3] * 0 + 9))


def test_the_model_is_the_published_one():
    shape = Shape(17, 6)
    assert (shape.layers, shape.width, shape.heads, shape.context, shape.dropout) == (3, 128, 1, 20, 0.1)
    config = DecisionTransformer(shape).transformer.config
    assert (config.n_layer, config.hidden_size, config.n_head) == (3, 128, 1) and config.action_tanh
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    training = OfflineTraining()
    assert (training.updates, training.warm_up, training.lr, training.weight_decay) == (10_000, 500, 1e-4, 1e-4)
    assert (training.batch_size, training.grad_clip) == (64, 0.25) and OfflineTraining.of(SequenceStudy()) == training
    paper = PROFILES["paper"].sequence
    assert (paper.seeds, OfflineTraining.of(paper).batch_size) == (3, 64) and 1.0 in paper.asked
    assert PROFILES["smoke"].sequence.updates < PROFILES["quick"].sequence.updates < paper.updates


@every_policy
def test_the_loss_is_the_squared_error_of_what_counts(policy):
    """The slow twin: number by number."""
    torch.manual_seed(0)
    data = some(2, 7, 3)
    model = policy.of(data).eval().requires_grad_(False)
    batch = Windows(data.trajectories, 4).starting_at(np.array([0, 1, 5, 9, 11]))
    seen = (batch.obs, batch.actions, batch.returns_to_go, batch.timesteps)
    predicted = model(*seen) if policy is DecisionTransformer else model(batch.obs)
    counted = [(b, k) for b in range(5) for k in range(4) if batch.mask[b, k]]
    errors = [float(predicted[b, k, a] - batch.actions[b, k, a]) ** 2 for b, k in counted for a in range(ACTIONS)]
    assert len(errors) < 5 * 4 * ACTIONS and model.loss(batch).item() == pytest.approx(np.mean(errors), rel=1e-5)


@every_policy
def test_observations_are_normalised_by_the_data_and_this_is_kept_with_the_weights(policy, tmp_path):
    data = some(40, 30)
    for t in data.trajectories:
        t.obs[:] = 5 + 3 * t.obs
        t.obs[:, 2] = 7.0  # never varies
    model = policy.of(data).eval()
    obs = torch.from_numpy(np.concatenate([t.obs for t in data.trajectories]))
    scaled = model.normalised(obs)
    varies = [0, 1, 3, 4]
    torch.testing.assert_close(scaled.mean(0)[varies], torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.std(0, correction=0)[varies], torch.ones(4))
    assert scaled[:, 2].abs().max() < 1e-2 and model.normalised(obs + 0.01)[:, 2].max() < 11
    save_policy(model, tmp_path / "p.safetensors", {"env": "walker-walk"})
    loaded, about = load_policy(tmp_path / "p.safetensors")
    assert about == {"env": "walker-walk"} and type(loaded) is policy and loaded.shape == model.shape
    assert torch.equal(first_action(model, obs[:4]), first_action(loaded, obs[:4])) and not loaded.training


@every_policy
def test_a_file_that_is_no_policy_is_refused_in_a_sentence(policy, tmp_path):
    model, path = policy.of(some(4, 5)), tmp_path / "p.safetensors"

    def refused(sentence):
        with pytest.raises(CheckpointError, match=sentence):
            load_policy(path)

    refused("p.safetensors is not a whole safetensors file")
    save_policy(model, path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    refused("is not a whole safetensors file")
    save_world_model(WorldModel(WorldModelConfig(OBS, ACTIONS, 16, 16, 16, 2, 2)), path)
    refused("is no policy of this project")
    model.obs_mean[0] = math.nan
    save_policy(model, path, {})
    refused("obs_mean.* holds values that are not finite")
    model.obs_mean[0] = 0
    model.shape = dataclasses.replace(model.shape, obs_dim=OBS + 1)
    save_policy(model, path, {})
    refused("has shape")


# -------------------------------------------------------------------------------------------------------- acting


def slow_actions(model, obs, actions, rewards, target):
    """One episode's last action, from all that was seen and done so far: obs (t, …), actions and rewards (t − 1, …)."""
    n = len(obs)
    to_go = [target - float(np.sum(rewards[:k])) for k in range(n)]
    first = max(n - model.shape.context, 0)
    given = torch.tensor(np.array([*actions, np.zeros(ACTIONS)])[first:], dtype=torch.float32)
    seen = torch.tensor(np.array(obs[first:]), dtype=torch.float32)
    times = torch.arange(first, n)
    with torch.no_grad():
        return model(seen[None], given[None], torch.tensor(to_go[first:])[None].float(), times[None])[0, -1].numpy()


def test_episodes_in_a_batch_are_what_each_is_alone():
    """Against the slow twin; one of the three ends early, so that the others change their rows."""
    model = random_model()
    wanted, ends = [5.0, 20.0, -3.0], [9, 4, 9]
    random = np.random.default_rng(0)
    observations, rewards = random.normal(size=(3, 9, OBS)).astype(np.float32), random.normal(size=(3, 9))
    controller = model.controller(torch.tensor(wanted))
    controller.reset(3)
    rows, done = [0, 1, 2], [[], [], []]
    for t in range(9):
        action, info = controller.act(torch.from_numpy(observations[rows, t]))
        assert info == {}
        for row, i in enumerate(rows):
            twin = slow_actions(model, observations[i, : t + 1], done[i], rewards[i, :t], wanted[i])
            np.testing.assert_allclose(action[row].numpy(), twin, atol=1e-5)
            done[i].append(action[row].numpy())
        controller.observe(rewards[rows, t])
        still = [row for row, i in enumerate(rows) if t + 1 < ends[i]]
        if still and len(still) < len(rows):
            controller.keep(still)
            rows = [rows[row] for row in still]
    assert [len(d) for d in done] == ends
    with pytest.raises(ConfigError, match="3 returns are asked for in 2 episodes"):
        controller.reset(2)


def test_one_target_is_for_all_and_a_controller_starts_anew():
    model, obs = random_model(), torch.randn(2, OBS)
    one, many = model.controller(4.0), model.controller(torch.tensor([4.0, 4.0]))
    first = []
    for controller in (one, many, one):
        controller.reset(2)
        first.append(controller.act(obs)[0])
        controller.observe(np.ones(2))
        controller.act(obs)
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])


@every_policy
def test_an_observation_that_is_not_finite_is_an_error(policy):
    with pytest.raises(ValueError, match="not finite"):
        first_action(policy.of(some(4, 5)), torch.full((1, OBS), math.nan))


# ------------------------------------------------------------------------------------------------------ training


def two_styles(n=24, length=12):
    """Half of the episodes do 0.6 and are rewarded, half do −0.6 and are not; what is observed says nothing."""
    made = []
    for i, t in enumerate(trajectories(*[length] * n)):
        sign = 1 if i % 2 else -1
        made.append(Trajectory(t.obs, np.full_like(t.actions, 0.6 * sign), np.full_like(t.rewards, float(sign > 0))))
    return TrajectorySet("two styles", made)


def test_it_does_what_earned_the_return_that_is_asked_for_and_its_rival_cannot(tmp_path):
    training = OfflineTraining(updates=80, warm_up=5, lr=1e-2, batch_size=16, evaluate_every=40)
    data, did = two_styles(), {}
    for policy in POLICIES.values():
        model, curve = train(policy, data, training, 1, tmp_path / policy.arm)
        for target in (0.0, 12.0):
            did[policy.arm, target] = first_action(model, torch.randn(20, OBS), target).mean().item()
    assert did["decision-transformer", 12.0] > 0.4 and did["decision-transformer", 0.0] < -0.4
    assert abs(did["behaviour-cloning", 12.0]) < 0.4  # between the two
    assert curve[-1]["val_loss"] > 0.2


def weights(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


def told(curve):
    return [{k: v for k, v in row.items() if k != "minutes"} for row in curve]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("rewards", "scale"),
    [
        ([0.25, 0.5], 1.0),
        ([0.002, 0.001], 0.01),
        ([400.0, 550.0], 1000.0),
        ([100.5] * 9, 1000.0),
        ([0.1] * 10_000, 1000.0),  # the best there is in DMControl, whose sum is not quite 1000
        ([500.0, 600.0], 10_000.0),
        ([-30.0, -40.0], 100.0),
        ([9.0, -9.0, 0.5], 10.0),  # -8.5 is left after the first reward
        ([0.0, 0.0], 1.0),
    ],
)
def test_returns_are_divided_by_what_the_data_has(rewards, scale):
    data = [Trajectory(t.obs, t.actions, np.float32(rewards)) for t in trajectories(len(rewards), len(rewards))]
    found = return_scale(TrajectorySet("some", data))
    assert found == scale
    for task, known in {"walker-walk": 1000.0, "gym:Hopper-v5": scale}.items():  # the suite's is known beforehand
        assert return_scale(TrajectorySet("some", data, {"card": {"task": task}})) == known
    assert max(np.abs(t.returns_to_go).max() for t in data) / found <= 1 + 1e-6


@pytest.mark.parametrize(("unit", "scale"), [(1e-3, 0.01), (1.0, 10.0), (100.0, 1000.0)])
def test_a_model_sees_returns_in_units_of_their_scale(unit, scale, tmp_path, monkeypatch):
    rewards = np.full(4, unit, np.float32)  # returns of 4 units
    data = TrajectorySet("some", [Trajectory(t.obs, t.actions, rewards) for t in trajectories(4, 4, 4)])
    policy, _ = train(DecisionTransformer, data, SHORT, 1, tmp_path)
    assert policy.shape.return_scale == scale
    seen, inner = [], policy.transformer.forward
    monkeypatch.setattr(
        policy.transformer, "forward", lambda **given: seen.append(given["returns_to_go"]) or inner(**given)
    )
    policy.loss(Windows(data.trajectories, policy.shape.context).starting_at(np.array([0])))
    assert seen[0].flatten()[:4].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])


@every_policy
@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(policy, kill_at, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_training, "SAVE_SECONDS", 0)
    data = some(*range(5, 15))
    whole, curve = train(policy, data, SHORT, 1, tmp_path / "whole")
    assert [row["updates"] for row in curve] == [2, 4, 6]
    real = offline_training._Run.update

    def update(run):
        if run.updates == kill_at:
            raise Killed
        real(run)

    with monkeypatch.context() as patch:
        patch.setattr(offline_training._Run, "update", update)
        with pytest.raises(Killed):
            train(policy, data, SHORT, 1, tmp_path / "killed")
    torch.manual_seed(99)  # what else the process draws does not matter
    resumed, after = train(policy, data, SHORT, 1, tmp_path / "killed")
    assert told(after) == told(curve) and torch.equal(weights(whole), weights(resumed))
    assert read_table(tmp_path / "killed" / "curve.csv")["updates"].tolist() == [2, 4, 6]

    monkeypatch.setattr(offline_training._Run, "update", None)  # a run that is over is not trained
    assert torch.equal(weights(train(policy, data, SHORT, 1, tmp_path / "killed")[0]), weights(whole))


def test_the_seed_decides_and_not_that_returns_are_watched(tmp_path):
    def returns(model):
        torch.rand(3)  # an environment may draw
        return {}

    data, given = some(*range(5, 15)), ((1, None), (1, returns), (2, None))
    runs = [train(DecisionTransformer, data, SHORT, s, tmp_path / str(i), play) for i, (s, play) in enumerate(given)]
    (plain, curve), (watched, other), (another, _) = runs
    assert torch.equal(weights(plain), weights(watched)) and told(curve) == told(other)  # to the last update
    assert not torch.allclose(weights(plain), weights(another))


def test_weights_are_chosen_by_validation_loss_and_never_by_returns(tmp_path, monkeypatch):
    data, losses, seen = some(*range(5, 15)), iter([3.0, 1.0, 2.0]), []
    monkeypatch.setattr(offline_training._Run, "validation_loss", lambda run: next(losses))

    def returns(model):
        seen.append(weights(model).clone())
        return {"return_mean": [0.0, -5.0, 100.0][len(seen) - 1]}

    model, curve = train(BehaviourCloning, data, SHORT, 1, tmp_path, returns)
    assert torch.equal(weights(model), seen[1]) and not torch.equal(seen[1], seen[2])
    assert list(curve[0]) == ["updates", "minutes", "action_loss", "val_loss", "return_mean"]


def test_validation_loss_is_that_of_all_held_out_decisions(tmp_path, monkeypatch):
    monkeypatch.setattr(offline_training, "CHUNK", 3)
    data = some(*range(5, 25))
    run = offline_training._Run(BehaviourCloning, data, SHORT, 1, "cpu")
    _, held = data.split(0.1, 1)
    run.model.eval()
    errors = [(run.model(torch.from_numpy(t.obs)) - torch.from_numpy(t.actions)).square() for t in held.trajectories]
    assert run.validation_loss() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)
    assert len(run.windows) + len(run.held) == data.decisions


def test_the_rate_of_learning_warms_up_and_stays():
    run = offline_training._Run(BehaviourCloning, some(5, 6), SHORT, 1, "cpu")
    rates = []
    for _ in range(5):
        rates.append(run.optimiser.param_groups[0]["lr"])
        run.update()
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-2])


def test_training_that_cannot_work_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="OfflineTraining.updates=0 must be at least 1"):
        OfflineTraining(updates=0)
    monkeypatch.setattr(offline_training._Run, "validation_loss", lambda run: math.nan)
    with pytest.raises(OfflineDataError, match="no validation loss of 6 updates is finite"):
        train(BehaviourCloning, some(5, 6), SHORT, 1, tmp_path)


def test_a_trained_policy_is_kept_for_its_data_settings_and_seed():
    data, other, faster = some(5, 6, 7), some(5, 6, 8), dataclasses.replace(SHORT, lr=0.1)
    for given in ((data, SHORT, 1), (data, SHORT, 1), (other, SHORT, 1), (data, SHORT, 2), (data, faster, 1)):
        trained(BehaviourCloning, *given)
    assert len(list((paths.CACHE / "decision_transformer").iterdir())) == 4


def test_a_curve_is_kept_for_what_was_played_on_the_way(tiny_task):
    data, curves = some(5, 6), []
    for seeds in ([1, 2], [3, 4], [1, 2]):
        watch = {"env": "tiny-task", "target": 3.0, "seeds": seeds, "decisions": 5}
        curves.append([row["return_mean"] for row in trained(BehaviourCloning, data, SHORT, 1, watch)[1]])
    assert curves[0] == curves[2] != curves[1] and np.isfinite(curves).all()


@every_policy
def test_what_was_played_is_not_played_again(policy, tiny_task, monkeypatch):
    model, real, calls = policy.of(some(5, 6)).eval(), evaluate_policy, []
    noted = functools.wraps(real)(lambda *a: calls.append(a) or real(*a))  # keys are of the code that it stands for
    monkeypatch.setattr(offline_evaluation, "evaluate_policy", noted)
    wanted = {1.0: 4.0} if policy is DecisionTransformer else None
    first, again = (evaluated(model, "tiny-task", [1, 2], 5, wanted) for _ in range(2))
    pd.testing.assert_frame_equal(pd.DataFrame(first), pd.DataFrame(real(model, "tiny-task", [1, 2], 5, wanted)))
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(first))
    assert len(calls) == 1
    evaluated(model, "tiny-task", [1, 3], 5, wanted)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    evaluated(model, "tiny-task", [1, 2], 5, wanted)
    assert len(calls) == 3


# ---------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture
def tiny_task(monkeypatch):
    made = type("NotedEnv", (fresh_env(), SpacedEnv), {})
    monkeypatch.setattr(offline_evaluation, "make_env", made)
    return made


def test_returns_are_those_of_single_episodes(tiny_task, monkeypatch):
    """The slow twin plays one episode after the other; blocks of rows are smaller than what is asked for."""
    monkeypatch.setattr(offline_evaluation, "ROWS", 4)
    tiny_task.ends[21] = 3
    model, seeds, asked = random_model(), [20, 21, 22], {0.5: 4.0, 1.0: 9.0}
    rows = evaluate_policy(model, "tiny-task", seeds, 7, asked)
    assert [(r["asked"], r["target_return"], r["episode_seed"]) for r in rows] == [
        (share, target, seed) for share, target in asked.items() for seed in seeds
    ]
    for row in rows:
        env = tiny_task("tiny-task")
        obs, actions, rewards = [env.reset(seed=row["episode_seed"])[0]], [], []
        for _ in range(row["length"]):
            actions.append(slow_actions(model, obs, actions, rewards, row["target_return"]))
            o, reward, *_ = env.step(actions[-1])
            obs.append(o), rewards.append(reward)
        assert row["return"] == pytest.approx(sum(rewards), rel=1e-3)
        assert row["length"] == (3 if row["episode_seed"] == 21 else 7)
        assert (row["arm"], row["planner_calls"], row["model_evaluations"]) == ("decision-transformer", 0, 0)


def test_an_episode_that_diverges_keeps_its_return_and_the_others_their_targets(tiny_task):
    model, seeds, asked = random_model(), [20, 21, 22], {1.0: 9.0}
    whole = evaluate_policy(model, "tiny-task", seeds, 7, asked)
    tiny_task.breaks = {21: 4, 20: 1}
    rows = evaluate_policy(model, "tiny-task", seeds, 7, asked)
    assert [row["length"] for row in rows] == [0, 3, 7] and rows[0]["return"] == 0
    assert rows[2]["return"] == pytest.approx(whole[2]["return"], rel=1e-3)
    tiny_task.breaks, tiny_task.ends[21] = {}, 3
    assert rows[1]["return"] == pytest.approx(
        evaluate_policy(model, "tiny-task", [21], 7, asked)[0]["return"], rel=1e-3
    )


def test_who_cannot_be_asked_is_not(tiny_task):
    model = BehaviourCloning.of(some(5, 6))
    rows = evaluate_policy(model, "tiny-task", [1, 2], 5)
    assert [r["asked"] for r in rows] == [None, None] and np.isfinite([r["return"] for r in rows]).all()
    shown = offline_evaluation.curve_returns(model, "tiny-task", 3.0, [1, 2], 5)
    returns = [r["return"] for r in rows]
    assert shown["return_mean"] == pytest.approx(np.mean(returns))
    assert shown["return_std"] == pytest.approx(np.std(returns, ddof=1))
    assert shown["normalised_score"] == pytest.approx(np.mean(returns) / 10)


def test_scores_are_those_of_d4rl():
    published = {"halfcheetah": (-280.178953, 12135), "walker2d": (1.629008, 4592.3), "hopper": (-20.272305, 3234.3)}
    for env, (low, high) in published.items():
        np.testing.assert_allclose(normalised_score(env, [low, high, (low + high) / 2]), [0, 100, 50])
    assert offline_evaluation.REFERENCES.keys() == offline_evaluation.MUJOCO.keys() == published.keys()
    assert offline_evaluation.DMCONTROL_REFERENCE == (0, 1000)
    assert normalised_score("walker-walk", 931.0) == pytest.approx(93.1)
    assert offline_evaluation.targets(800.0, "walker-walk", (0.5, 1.0, 1.25)) == {0.5: 400, 1.0: 800, 1.25: 1000}
    assert offline_evaluation.targets(-100.0, "halfcheetah", (0.5,))[0.5] == pytest.approx((-280.178953 - 100) / 2)


@pytest.mark.parametrize("env", ["hopper", "halfcheetah", "walker2d", "walker-walk", "cartpole-swingup"])
def test_mujoco_and_dmcontrol_both_run(env):
    task = make_task(env)
    widths = task.observation_space.shape[0], task.action_space.shape[0]
    torch.manual_seed(0)
    model = DecisionTransformer(Shape(*widths, **SMALL))
    check_fits(model, env)
    rows = evaluate_policy(model, env, [1, 2], 5, {1.0: 100.0})
    assert [r["length"] for r in rows] == [5, 5] and len({r["return"] for r in rows}) == 2
    again = evaluate_policy(model, env, [1, 2], 5, {1.0: 100.0})
    assert [r["return"] for r in again] == [r["return"] for r in rows]
    assert task.action_space.high.max() == 1 and task.action_space.low.min() == -1
    whole = 500 if "-" in env else 1000
    assert [offline_evaluation.episode_length(env, *cut) for cut in ((), (12,))] == [whole, 12]


def test_a_task_that_is_unknown_or_of_other_widths_is_a_sentence():
    with pytest.raises(ConfigError, match="task='hoper' is not known.* Did you mean hopper"):
        make_task("hoper")
    with pytest.raises(ConfigError, match="task='lqr-lqr-2-1' is not offered: its actions have no bounds"):
        make_task("lqr-lqr-2-1")
    wide = "some has 5 observations and 2 actions, but hopper has 11 and 3; say with -p env"
    with pytest.raises(ConfigError, match=wide):
        check_fits(some(4, 5), "hopper")
    with pytest.raises(ConfigError, match="the checkpoint has 5 observations"):
        check_fits(random_model(), "hopper")


def test_steps_are_timed_with_a_full_context(tiny_task):
    model = random_model()
    seen, real = [], model.forward
    model.forward = lambda obs, *rest: seen.append(obs.shape[:2]) or real(obs, *rest)
    rows = offline_evaluation.step_times({"a": model, "b": BehaviourCloning.of(some(5, 6))}, "tiny-task", 6)
    assert [r["arm"] for r in rows] == ["a", "b"] and set(seen[-6:]) == {(1, 4)} and len(seen) == 4 + 6
    assert all(0 < r["p50_ms"] <= r["p95_ms"] and r["calls_per_decision"] == 0 and r["part"] == "step" for r in rows)


def test_a_summary_is_what_one_works_out_by_hand():
    def rows(arm, returns, asked=None, seed=None, first=1):
        about = {"arm": arm, "asked": asked, "target_return": asked and 100 * asked, "training_seed": seed, "length": 5}
        about |= {"planner_calls": 0 if seed else 5, "model_evaluations": 0, "execution_horizon": 1}
        return [about | {"episode_seed": first + i, "return": r} for i, r in enumerate(returns)]

    table = pd.DataFrame(
        rows("decision-transformer", [50.0, 70.0], 1.0, 1)
        + rows("decision-transformer", [90.0, 110.0], 1.0, 2)
        + rows("decision-transformer", [10.0, 20.0], 0.5, 1)
        + rows("behaviour-cloning", [30.0, 50.0], seed=1)
        + rows("teacher", [100.0, 100.0])
    )
    done = offline_evaluation.summarise_offline(table, "walker-walk").set_index(["arm", "asked"])
    assert len(done) == 4
    full = done.loc[("decision-transformer", 1.0)]
    assert (full["return_mean"], full["normalised_score"], full["training_seeds"], full["episodes"]) == (80, 8, 2, 2)
    assert (full["return_low"], full["return_high"]) == (60, 100)  # over two seeds, whose means these are
    assert full["kept"] == pytest.approx(0.8) and full["kept_low"] == pytest.approx(0.7)  # over episodes: 70 and 90
    half, cloned = done.loc[("decision-transformer", 0.5)], done.xs("behaviour-cloning").iloc[0]
    assert (half["return_low"], half["return_high"], half["target_return"]) == (10, 20, 50)  # over episodes
    assert (cloned["return_mean"], cloned["kept"], cloned["planner_calls"]) == (40, pytest.approx(0.4), 0)
    assert done.xs("teacher").iloc[0][["planner_calls", "kept"]].tolist() == [5, 1]
    alone = offline_evaluation.summarise_offline(table[table["arm"] != "teacher"], "walker-walk")
    assert len(alone) == 3 and alone["kept"].isna().all()


# ---------------------------------------------------------------------------------------- the figure and notebook


def results(folder, task="walker-walk", dataset="1m-1-expert", seeds=(1, 2, 3)):
    about, random = {"task": task, "dataset": dataset}, np.random.default_rng(0)
    for seed in seeds:
        points = [(arm, u) for arm in POLICIES for u in (100, 200, 300, 400)]
        rows = [{"arm": arm, "updates": u, "val_loss": 1 / u + 0.1 * seed} for arm, u in points]
        rows = [about | row | {"seed": seed, "return_mean": random.uniform(0, 900)} for row in rows]
        write_table(folder / f"{task}-{dataset}-{seed}.csv", rows)
    asks = [("decision-transformer", s, 900 * s) for s in (0.5, 1.0)]
    asks += [(arm, None, None) for arm in ("behaviour-cloning", "teacher", "budget-64×2", "policy")]
    returns = {"return_mean": 500.0, "return_low": 450.0, "return_high": 560.0}
    returns |= dict.fromkeys(("kept", "kept_low", "kept_high"))  # as where there is no teacher
    rows = [about | {"arm": arm, "asked": share, "target_return": target} | returns for arm, share, target in asks]
    write_table(folder / f"{task}-{dataset}-summary.csv", rows)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Folders of its own, and nothing is compiled, which would take longer than what is tested."""
    monkeypatch.setenv("CXX", "no-compiler")
    for name in ("DATA", "FIGURES", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    return paths.results("smoke") / "decision_transformer"


def test_the_figure_is_drawn_from_the_tables(elsewhere):
    with pytest.raises(ResultError, match="holds no learning curve"):
        figure.main(["--profile", "smoke"])
    results(elsewhere)
    results(elsewhere, task="cartpole-swingup", seeds=(1,))
    figure.main(["--profile", "smoke", "--window", "1"])
    drawn = sorted(p.name for p in paths.figures("smoke").iterdir())
    assert drawn == [f"decision_transformer.{s}" for s in ("pdf", "png", "svg")]
    text = pdf_text(paths.figures("smoke") / "decision_transformer.pdf")
    words = ["Return asked for", "Return achieved", "Validation loss", "walker-walk, 1m-1-expert", "cartpole-swingup"]
    assert [word for word in [*words, *(name for name, _, _ in figure.ARMS.values())] if word not in text] == []


def test_curves_are_smoothed_and_averaged_over_seeds(elsewhere):
    results(elsewhere)
    _, curves = figure.read("smoke")
    values = np.random.default_rng(0).normal(size=7)
    slow = [np.mean(values[max(i - 1, 0) : i + 2]) for i in range(7)]
    np.testing.assert_allclose(figure.smoothed(pd.Series(values), 3), slow)
    rows = figure.learning(curves, "val_loss", 1).set_index(["arm", "updates"])
    one = rows.loc[("decision-transformer", 200)]
    assert one[["mean", "low", "high"]].tolist() == pytest.approx([1 / 200 + 0.2, 1 / 200 + 0.1, 1 / 200 + 0.3])
    smooth = figure.learning(curves, "val_loss", 3).set_index(["arm", "updates"])
    assert smooth.loc[("decision-transformer", 100), "mean"] == pytest.approx((1 / 100 + 1 / 200) / 2 + 0.2)
    assert figure.learning(curves[curves["seed"] == 1], "val_loss", 1)["low"].isna().all()


def test_the_map_of_returns_and_costs_has_them_beside_the_arms_of_the_cell(elsewhere):
    table = summary()
    write_table(elsewhere.parent / "horizon" / "summary.csv", table)
    assert pareto.read("smoke")["arm"].tolist() == table["arm"].tolist()
    results(elsewhere)
    file = elsewhere / "walker-walk-1m-1-expert-summary.csv"
    more = {"cell": "walker-walk-1m-1", "size": "1m", "teacher_seed": 1, "execution_horizon": 1.0, "planner_calls": 0.0}
    more |= {"model_evaluations": 0.0, "step_ms": 9.0, "kept": 0.5, "kept_low": 0.4, "kept_high": 0.6}
    write_table(file, read_table(file).assign(**more))
    both = pareto.read("smoke")
    assert both["arm"].tolist()[len(table) :] == ["decision-transformer", "behaviour-cloning"]  # as asked for the best
    assert list(both) == list(table) and both["kept"].tolist()[-2:] == [0.5, 0.5]
    looks = [tuple(pareto.look(arm).values()) for _, arm in both.iterrows()]
    assert looks[-1] != looks[-2] and not set(looks[-2:]) & set(looks[:-2])
    pareto.main(["--profile", "smoke"])
    text = pdf_text(paths.FIGURES / "smoke" / "pareto.pdf")
    assert "Decision Transformer" in text and "behaviour cloning" in text


def section(root, profile):
    """The text of the paper's section alone."""
    if not (root / "paper").is_dir():
        shutil.copytree(paths.PAPER, root / "paper", ignore=shutil.ignore_patterns("__pycache__"))
    body = '#set heading(numbering: "1.1")\n= Experimental protocol <protocol>\n#include "decision_transformer.typ"\n'
    (root / "paper" / "alone.typ").write_text(body + '#bibliography("refs.bib")\n')
    write_table(paths.results(profile) / "horizon" / "summary.csv", summary())  # style.typ reads it
    figure = paths.figures(profile) / "decision_transformer.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"></svg>')
    concluded = paths.results(profile) / "statistics" / "claims.json"
    concluded.parent.mkdir(exist_ok=True)
    write_json(concluded, {"sequence": dict(claims._sequences(paths.results(profile) / "decision_transformer"))})
    files = [p.relative_to(root).as_posix() for p in (*paths.results(profile).rglob("*.csv"), figure, concluded)]
    given = {"profile": profile, "files": json.dumps(files), "settings": json.dumps(build.method(profile))}
    (root / "alone.pdf").write_bytes(build.typst.compile(root / "paper" / "alone.typ", root=root, sys_inputs=given))
    return pdf_text(root / "alone.pdf")


def test_the_words_of_the_paper_follow_the_numbers(elsewhere, tmp_path):
    assert "is not in this profile" in section(tmp_path, "quick")
    folder = paths.results("paper") / "decision_transformer"
    results(folder)
    results(folder, task="hopper", dataset="hopper_medium-v2")  # of no teacher: the text holds for none of it
    file = folder / "walker-walk-1m-1-expert-summary.csv"

    def told(cloned, kept, low_ask):
        table = read_table(file).assign(kept=0.9, kept_low=kept - 0.01, kept_high=kept + 0.01, step_ms=9.27)
        for rows, mean in ((table["arm"] == "behaviour-cloning", cloned), (table["asked"] == 0.5, low_ask)):
            table.loc[rows, ["return_mean", "return_low", "return_high"]] = mean, mean - 20, mean + 20
        write_table(file, table)
        return section(tmp_path, "paper")

    text = told(300, 0.5, 100)
    assert "returns 500 [450, 560], 90.0% of its teacher; behaviour cloning returns 300 [280, 320]" in text
    assert "above behaviour cloning’s, and the interval of what it keeps lies below 98%" in text and "9.3" in text
    assert "Asked for 450 and for 900 it returns 100 and 500: it does more when more is asked" in text
    assert "hopper" not in text and f"{PROFILES['paper'].sequence.updates} updates" in text
    text = told(700, 0.995, 500)
    assert "below behaviour cloning’s, and the interval of what it keeps lies above 98%" in text
    assert "makes no difference" in text
    assert "not told apart" in (text := told(500, 0.98, 900)) and "keeps lies on both sides of 98%" in text
    assert "it does less when more is asked" in text
    assert "above behaviour cloning" not in section(tmp_path, "quick")


def run_07(**given):
    run_notebook("07_decision_transformer", profile="smoke", **given)


def test_07_trains_evaluates_and_evaluates_a_checkpoint_alone(elsewhere):
    paths.TEACHERS.mkdir()
    weights_file = paths.TEACHERS / "walker-walk-1m-1.safetensors"
    save_world_model(WorldModel(WorldModelConfig(24, 6, 16, 16, 16, 2, 2)), weights_file)
    run_07()
    name = "walker-walk-1m-1-expert"
    curve = read_table(elsewhere / f"{name}-1.csv")
    wanted = ["updates", "minutes", "action_loss", "val_loss", "return_mean", "return_std", "normalised_score"]
    assert list(curve)[4:] == wanted and curve["updates"].tolist() == [2, 4, 2, 4]
    rows = read_table(elsewhere / f"{name}-episodes.csv")
    assert rows.groupby("arm", sort=False)["return"].count().to_dict() == {
        "decision-transformer": 4, "behaviour-cloning": 2, "teacher": 2, "policy": 2,
    }  # fmt: skip
    first = episode_seeds("trial", 1)[0]
    assert rows.groupby("arm")["episode_seed"].apply(set).map({first, first + 1}.__eq__).all()
    summary = read_table(elsewhere / f"{name}-summary.csv").set_index("arm")
    assert summary.loc["teacher", "kept"] == 1 and summary.loc["behaviour-cloning", "planner_calls"] == 0
    assert (summary.loc["decision-transformer", "step_ms"] > 0).all() and set(summary["cell"]) == {"walker-walk-1m-1"}
    about = read_sidecar(elsewhere / f"{name}-summary.csv")
    assert about["card"]["kind"] == "expert" and about["training"]["updates"] == 4
    (kept,) = (paths.CACHE / "decision_transformer").glob("*decision-transformer-1.safetensors")
    assert json.loads(json.dumps(load_policy(kept)[1]))["env"] == "walker-walk"
    run_07(checkpoint=str(kept), episodes=1)
    alone = read_table(elsewhere / f"walker-walk-checkpoint-{kept.stem}-episodes.csv")
    mine = rows[(rows["arm"] == "decision-transformer") & (rows["episode_seed"] == first)]
    theirs = alone[alone["arm"] == "decision-transformer"]
    np.testing.assert_allclose(theirs["return"], mine["return"], rtol=1e-3)


def test_07_takes_a_d4rl_file_of_a_mujoco_task(elsewhere, tmp_path):
    random = np.random.default_rng(0)
    data = [Trajectory(*(x.astype(np.float32) for x in (random.normal(size=(n, 11)), random.uniform(-1, 1, (n, 3)),
            random.uniform(size=n)))) for n in (30, 40, 25)]  # fmt: skip
    run_07(env="hopper", dataset=str(write(tmp_path / "hopper_medium-v2.hdf5", flat(data, ["terminals"] * 3))))
    summary = read_table(elsewhere / "hopper-hopper_medium-v2-summary.csv")
    assert summary[["size", "teacher_seed"]].isna().all(axis=None)  # no teacher of ours
    assert summary["arm"].unique().tolist() == list(POLICIES) and summary["kept"].isna().all()
    assert summary["normalised_score"].notna().all()


@pytest.mark.slow
def test_two_minutes_of_training_on_expert_data_beat_random_actions_by_far(monkeypatch):
    """On the shipped teacher of walker-walk; its episodes are recorded first where they are not yet."""
    monkeypatch.undo()  # networks of their own size
    settings = resolve("quick", "walker-walk", "1m", 1, "", "cpu")
    data = load_dataset("expert", settings, settings.cell, PROFILES["quick"].sequence.dataset_episodes)
    quick = dataclasses.replace(PROFILES["quick"].sequence, updates=400, evaluate_every=100)
    begin = time.process_time()  # and not the clock: other processes may be about
    policy, _ = trained(DecisionTransformer, data, OfflineTraining.of(quick), 1)
    minutes = (time.process_time() - begin) / 60
    seeds = episode_seeds("trial", 5)
    best = float(data.returns.max())
    learnt = [r["return"] for r in evaluate_policy(policy, "walker-walk", seeds, 500, {1.0: best}, "trained")]
    at_random = np.zeros(5)
    for step in rollout(RandomController(6), partial(make_env, "walker-walk"), seeds, 500):
        at_random[step.rows] += step.rewards
    print(f"trained {np.mean(learnt):.0f}, random {at_random.mean():.0f}, data {data.returns.mean():.0f}")
    assert minutes < 10
    assert np.mean(learnt) > 3 * at_random.mean() and np.mean(learnt) > at_random.mean() + 100
