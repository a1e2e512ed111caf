"""Training correctors on mappings that can be learnt, to errors that are known; losses against slow twins."""

import math

import pytest
import torch
from torch import nn

from lib.config import ConfigError
from lib.correctors import CORRECTORS, appended, masked, token
from lib.distil import train as corrector_training
from lib.distil.collect import collect
from lib.distil.states import DistillationError
from lib.distil.train import States, errors_by_depth, history_tokens, rollout_error, split_by_episode, value_weights
from lib.planner import MPPI
from tests.distil.sets import H, printed_by, set_of
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, tiny_model

every_arch = pytest.mark.parametrize("arch", CORRECTORS)


def random_set(episodes=8, decisions=40, horizon=5, seed=0):
    """States at depths 1…horizon of plans that are renewed every `horizon` + 1 decisions; the episodes go in step.

    Latents are exact in half precision. The labels mean nothing.
    """
    places = torch.cartesian_prod(torch.arange(decisions), torch.arange(episodes))
    decision, episode = places[places[:, 0] % (horizon + 1) > 0].unbind(1)
    data = set_of(len(decision), seed, decision=decision, episode=episode, depth=decision % (horizon + 1))
    data.z_real = (0.7 * data.z_pred.float() + 0.3 * data.z_real.float()).half()
    return data


def learnable_set(answer="drift", noise=0.0, seed=0, **sizes):
    """The teacher answers linearly: to the drift of the plan, to the drift before it, or to the state alone."""
    data = random_set(seed=seed, **sizes)
    g = torch.Generator().manual_seed(seed + 50)
    w = torch.randn(LATENT, ACTIONS, generator=torch.Generator().manual_seed(99))
    drift = data.z_real.float() - data.z_pred.float()
    if answer == "drift":
        data.a_teacher = data.a_plan + 3 * drift @ w
    elif answer == "earlier drift":
        before = data.history_index(2)[:, 0]
        data.a_teacher = data.a_plan + (before >= 0).unsqueeze(-1) * (3 * drift @ w)[before]
    else:
        data.a_teacher = data.a_policy + 2 * (data.z_real.float() - 1 / 8) @ w
    data.a_teacher = (data.a_teacher + noise * torch.randn(len(data), ACTIONS, generator=g)).clamp(-1, 1)
    return data


def train(data, arch="two_tower", wm=None, **options):
    training = corrector_training.CorrectorTraining(arch, **{"epochs": 8, "batch_size": 64, "lr": 3e-3} | options)
    return corrector_training.train_corrector(data, training, wm, progress=False)


def made(arch, seed=0, history_len=3):
    """A corrector that is random in every layer, in eval mode."""
    torch.manual_seed(seed)
    shape = {"history_len": history_len} if arch == "temporal" else {}
    corrector = CORRECTORS[arch](LATENT, ACTIONS, width=12, **shape)
    with torch.no_grad():
        for p in corrector.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    return corrector.eval().requires_grad_(False)


def states_of(data, corrector, rows=None):
    """The rows, or all, with the histories that the corrector reads."""
    index = data.history_index(corrector.history_len) if corrector.history_len else None
    return States.of(data, torch.arange(len(data)) if rows is None else rows, index)


def validation_error(trained):
    """Action MSE on the validation rows, all at once."""
    action = states_of(trained.validation, trained.corrector).corrected(trained.corrector)
    return (action - trained.validation.a_teacher).square().mean().item()


def validation_losses(trained):
    return [r["loss"] for r in trained.curve if r["split"] == "validation"]


def best_epoch(trained):
    return min((r for r in trained.curve if r["split"] == "validation"), key=lambda r: r["loss"])


# --------------------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("episodes", [2, 3, 10])
def test_an_episode_is_never_on_both_sides(episodes, seed):
    data = random_set(episodes, 7)
    training, validation = split_by_episode(data, seed=seed)
    assert (training ^ validation).all()
    assert not set(data.episode[training].tolist()) & set(data.episode[validation].tolist())
    assert len(data.episode[validation].unique()) == max(round(0.2 * episodes), 1)
    assert torch.equal(split_by_episode(data, seed=seed)[1], validation)


def test_the_seed_chooses_who_is_held_out_and_one_episode_cannot_be_split():
    data = random_set(10, 3)
    assert len({tuple(split_by_episode(data, seed=s)[1].tolist()) for s in range(6)}) > 1
    with pytest.raises(DistillationError, match="holds one episode of a planner; two are needed"):
        split_by_episode(random_set(1))


def test_every_source_of_plans_is_held_out():
    data = random_set(9, 4)
    data.source = (data.episode >= data.episode.unique()[6]).long()  # six episodes of one planner, three of another
    for seed in range(6):
        held = torch.stack([data.source, data.episode])[:, split_by_episode(data, seed=seed)[1]]
        assert held.unique(dim=1)[0].tolist() == [0, 1]  # one episode of each


# ------------------------------------------------------------------------------------------------------- history


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_the_history_of_a_row_is_what_the_controller_builds(length):
    """The slow twin: one episode after the other, pushing a token at each decision; nothing is cleared at a replan."""
    data = random_set(episodes=3, decisions=20)
    tokens = history_tokens(data, data.history_index(length))
    assert tokens.shape == (len(data), length, LATENT + ACTIONS + 1) and tokens.dtype == torch.float32
    for episode in range(3):
        history = torch.full((1, length, LATENT + ACTIONS + 1), 7.0)
        for decision in range(20):
            rows = ((data.episode == episode) & (data.decision == decision)).nonzero().flatten()
            if not len(rows):  # depth 0: what was predicted was the start of a new plan
                history = appended(history, torch.full((1, LATENT + ACTIONS + 1), 8.0))
                continue
            z_real, z_pred = data.z_real[rows].float(), data.z_pred[rows].float()
            history = appended(history, token(z_real, z_pred, data.a_plan[rows], data.depth[rows]))
            deployed, trained = masked(history, data.depth[rows]), masked(tokens[rows], data.depth[rows])
            assert torch.equal(deployed[0], trained[0]) and torch.equal(deployed[1], trained[1])
            assert (~trained[1]).sum() == min(length, data.depth[rows].item())


class Watched(nn.Module):
    """A temporal corrector that notes what it is given."""

    def __init__(self, corrector):
        super().__init__()
        self.corrector, self.given = corrector, []
        self.latent_dim, self.action_dim, self.history_len = LATENT, ACTIONS, corrector.history_len

    def forward(self, *given):
        self.given.append([x.clone() for x in given])
        return self.corrector(*given)


@pytest.mark.parametrize("length", [2, 4])
def test_training_reads_what_the_corrector_read_while_collecting(length):
    watched, wm = Watched(made("temporal", history_len=length)), tiny_model()
    data = collect(MPPI(wm, BUDGET), MPPI(wm, BUDGET), fresh_env(), [1, 2], 4, watched, beta=0.3, decisions=12)
    batch = States.of(data, torch.arange(len(data)), data.history_index(length))
    names = ("z_real", "z_pred", "a_plan", "a_policy", "depth")
    collected = [torch.cat(column) for column in zip(*watched.given, strict=True)]
    assert len(data) == len(collected[0]) > 12
    for name, column in zip(names, collected[:5], strict=True):
        assert torch.allclose(getattr(batch, name), column, atol=1e-3), name
    for trained, read in zip(masked(batch.history, data.depth), masked(collected[5], data.depth), strict=True):
        assert torch.allclose(trained.float(), read.float(), atol=1e-2)  # ten times what half precision rounds
    assert torch.allclose(batch.corrected(watched.corrector), watched.corrector(*collected), atol=0.05)


def test_states_that_were_filtered_out_are_padding():
    data = random_set()
    data = data.rows(~((data.depth == 2) & (data.episode == 0)))
    tokens = history_tokens(data, data.history_index(3))
    padding = masked(tokens, data.depth)[1]
    third = data.depth == 3
    assert padding[third & (data.episode == 0)].tolist()[0] == [True, True, False]
    assert padding[third & (data.episode == 1)].tolist()[0] == [False, False, False]


def test_a_batch_is_in_full_precision_and_its_rows_are_the_sets():
    data, rows = random_set(), torch.tensor([7, 3, 3])
    batch = States.of(data, rows)
    assert batch.history is None and batch.z_real.dtype == batch.z_pred.dtype == torch.float32
    for name in ("z_real", "z_pred", "a_plan", "a_policy", "a_teacher", "plan", "teacher_plan", "depth"):
        assert torch.equal(getattr(batch, name), getattr(data, name)[rows].to(getattr(batch, name).dtype))


# -------------------------------------------------------------------------------------------------------- losses


def slow_rollout(corrector, wm, data, row, length):
    """One row in the world model with one decision after the other, as the controller would go on from it."""
    z, z_pred = data.z_real[row].float()[None], data.z_pred[row].float()[None]
    past, i = [], row  # the tokens of this plan
    while i >= 0 and len(past) < length:
        past.insert(0, token(data.z_real[i].float(), data.z_pred[i].float(), data.a_plan[i], data.depth[i]))
        same = (data.episode == data.episode[i]) & (data.decision == data.decision[i] - 1)
        i = same.nonzero().flatten().item() if data.depth[i] > 1 else -1
    errors, a_plan, a_policy = [], data.a_plan[row][None], data.a_policy[row][None]
    for j in range(data.teacher_plan.shape[1]):
        depth = data.depth[row].item() + j
        if j:
            a_plan = data.plan[row, depth][None] if depth < data.plan.shape[1] else wm.policy(z_pred)[0]
            a_policy = wm.policy(z)[0]
            past.append(token(z, z_pred, a_plan, torch.tensor([depth]))[0])
        history = torch.zeros(1, max(length, 1), LATENT + ACTIONS + 1)
        for k, t in enumerate(reversed(past[-length:] if length else [])):
            history[0, -1 - k] = t
        action = corrector(z, z_pred, a_plan, a_policy, torch.tensor([depth]), history)
        errors.append((action[0] - data.teacher_plan[row, j]).square().mean().item())
        z, z_pred = wm.next(z, action), wm.next(z_pred, action)
    return sum(errors) / len(errors)


@every_arch
@pytest.mark.parametrize("steps", [1, H])
def test_the_rollout_error_is_that_of_a_slow_loop(arch, steps):
    data, wm, corrector = random_set(3, 14), tiny_model(), made(arch)
    data.teacher_plan = data.teacher_plan[:, :steps]
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:24]
    assert set(data.depth[rows].tolist()) == {1, 2, 3, 4, 5}  # within the plan, at its end and beyond
    batch = states_of(data, corrector, rows)
    error = rollout_error(corrector, wm, batch, batch.corrected(corrector))
    slow = torch.tensor([slow_rollout(corrector, wm, data, row, corrector.history_len) for row in rows.tolist()])
    assert error.shape == (24,) and slow.std() > 0.01
    assert torch.allclose(error, slow, atol=1e-5)


def test_later_steps_teach_the_first_action_through_the_model():
    data, wm = random_set(), tiny_model()
    batch = States.of(data, torch.arange(8))
    action = batch.a_plan.clone().requires_grad_()
    first = torch.autograd.grad((action - batch.teacher_plan[:, 0]).square().mean(-1).sum() / H, action)[0]
    whole = torch.autograd.grad(rollout_error(made("two_tower"), wm, batch, action).sum(), action)[0]
    assert ((whole - first).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize(
    ("lost", "clipped", "rel"),
    [
        ([0.0, -5.0, 0.001, 1.0, 2.0, 60.0], [0.1, 0.1, 0.1, 0.1, 2 / (63.001 / 6), 60 / (63.001 / 6)], 1e-5),
        ([1e-6] * 5 + [0.0], [1.2] * 5 + [0.1], 0.02),
        ([-1.0] * 6, [1.0] * 6, 0),  # the plan is nowhere worse
    ],
)
def test_value_weights_are_what_a_hand_computes(monkeypatch, lost, clipped, rel):
    data, wm = random_set(2, 4), tiny_model()  # six rows

    def values(z, a):
        heads = torch.tensor(lost) if torch.equal(a, data.a_teacher) else torch.zeros(6)
        return torch.stack([heads - 1, heads + 1])

    monkeypatch.setattr(wm, "q", values)
    wanted = [6 * c / sum(clipped) for c in clipped]
    assert value_weights(data, wm).tolist() == pytest.approx(wanted, rel=rel)


def test_value_weights_come_from_the_models_q(monkeypatch):
    data, wm = random_set(), tiny_model()
    monkeypatch.setattr(corrector_training, "CHUNK", 7)
    z = data.z_real.float()
    lost = (wm.q(z, data.a_teacher).mean(0) - wm.q(z, data.a_plan).mean(0)).clamp(min=0)
    clipped = (lost / lost.mean()).clamp(*corrector_training.WEIGHT_LIMITS)
    weights = value_weights(data, wm)
    assert torch.allclose(weights, clipped / clipped.mean(), rtol=1e-3) and weights.std() > 0.1
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(("arch", "answer"), [("two_tower", "drift"), ("temporal", "drift"), ("state", "state")])
def test_training_comes_near_the_floor_and_keeps_the_best_epoch(arch, answer):
    noise = 0.1
    trained = train(learnable_set(answer, noise, episodes=16), arch, epochs=40)
    held, error = trained.validation, validation_error(trained)
    start = held.a_policy if arch == "state" else held.a_plan
    before = (start - held.a_teacher).square().mean().item()
    assert before > 10 * noise**2 and error < 2.5 * noise**2
    losses = validation_losses(trained)
    assert error == pytest.approx(min(losses), rel=1e-4)
    epochs = [r["epoch"] for r in trained.curve if r["split"] == "train"]
    assert epochs == list(range(1, len(losses) + 1)) and len(trained.curve) == 2 * len(losses)
    assert not trained.corrector.training and not any(p.requires_grad for p in trained.corrector.parameters())
    assert trained.corrector.arch == arch


def test_only_the_temporal_corrector_can_answer_an_earlier_drift():
    data = learnable_set("earlier drift", episodes=16)
    temporal, two_tower = (validation_error(train(data, arch, epochs=30)) for arch in ("temporal", "two_tower"))
    assert temporal < 0.4 * two_tower


def test_without_anything_to_learn_the_best_epoch_is_not_the_last():
    trained = train(random_set(4), epochs=60, patience=5)
    losses = validation_losses(trained)
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 5 < 60
    assert validation_error(trained) == pytest.approx(losses[best], rel=1e-4)


def test_lambda_reg_shrinks_corrections_and_enters_the_loss():
    free, bound = train(learnable_set()), train(learnable_set(), lambda_reg=10.0)
    assert bound.curve[-1]["delta_abs"] < 0.3 * free.curve[-1]["delta_abs"]
    assert free.curve[-1]["loss"] == free.curve[-1]["action_mse"]
    assert bound.curve[-1]["loss"] > bound.curve[-1]["action_mse"]


@every_arch
def test_the_rollout_loss_enters_and_is_learnt(arch):
    data, wm = learnable_set(), tiny_model()
    data.teacher_plan = data.a_teacher.unsqueeze(1).expand(-1, H, -1).contiguous()
    plain, rolled = (train(data, arch, rollout_weight=w, wm=wm, history_len=2, epochs=6) for w in (0.0, 3.0))

    def rollout(trained):
        batch, corrector = states_of(trained.validation, trained.corrector), trained.corrector
        return rollout_error(corrector, wm, batch, batch.corrected(corrector)).mean().item()

    best = best_epoch(rolled)
    assert best["loss"] == pytest.approx(best["action_mse"] + 3 * rollout(rolled), rel=1e-4)
    assert rollout(rolled) < rollout(plain)
    assert all(p.grad is None for p in wm.parameters())


def test_a_world_model_that_is_not_frozen_is_left_as_it_was():
    wm = tiny_model().requires_grad_(True)
    before = [p.clone() for p in wm.parameters()]
    train(learnable_set(), rollout_weight=1.0, q_weighted=True, wm=wm, epochs=1)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(wm.parameters(), before, strict=True))


def test_rows_with_more_weight_are_learnt_better(monkeypatch):
    """The same state asks for two answers; the heavier one wins, and the errors in the curve stay plain."""
    data = learnable_set(episodes=6)
    first = data.decision % 2 == 0
    data.a_teacher = torch.where(first.unsqueeze(-1), 0.5, -0.5).expand(-1, ACTIONS).contiguous()
    weights = torch.where(first, 1.9, 0.1)
    monkeypatch.setattr(corrector_training, "value_weights", lambda data, wm: weights)
    data.z_real[:], data.z_pred[:], data.a_plan[:], data.a_policy[:] = data.z_real[0], data.z_pred[0], 0.0, 0.0
    data.depth[:] = 1
    weighted, plain = (train(data, q_weighted=q, wm=tiny_model(), epochs=20) for q in (True, False))
    answers = [States.of(data, torch.arange(1)).corrected(t.corrector).mean().item() for t in (weighted, plain)]
    heavy, light = weights[first].sum().item(), weights[~first].sum().item()
    assert answers[0] == pytest.approx(0.5 * (heavy - light) / (heavy + light), abs=0.1)
    assert answers[0] > answers[1] + 0.2
    best = best_epoch(weighted)
    assert validation_error(weighted) == pytest.approx(best["action_mse"], rel=1e-3)
    assert best["loss"] != best["action_mse"]


def test_a_history_is_the_temporal_correctors_and_not_longer_than_the_episodes():
    data = random_set(3)
    longest = int(data.decision.max()) + 1
    assert train(data, "temporal", epochs=1, history_len=longest).corrector.history_len == longest
    assert train(data, "two_tower", epochs=1, history_len=2).corrector.history_len == 0
    with pytest.raises(ConfigError, match=f"history_len={longest + 1} is longer than the longest episode, {longest}"):
        train(data, "temporal", epochs=1, history_len=longest + 1)


@every_arch
def test_seeds_are_honoured(arch):
    a, b, c = (train(learnable_set(), arch, epochs=2, seed=s) for s in (1, 1, 2))
    assert a.curve == b.curve != c.curve
    for x, y in zip(a.corrector.parameters(), b.corrector.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("error", "sentence", "options"),
    [
        (ConfigError, "arch='tow_tower' is not known.*two_tower", {"arch": "tow_tower"}),
        (DistillationError, "finite", {"lr": float("inf"), "epochs": 2}),
        (ConfigError, "need the world model; pass the teacher's", {"rollout_weight": 1.0}),
        (ConfigError, "need the world model; pass the teacher's", {"q_weighted": True}),
        (ConfigError, "latents of 16 and 2 actions, the world model 24 and 2", {"wm": tiny_model(latent_dim=24)}),
    ],
)
def test_training_that_cannot_work_says_so(error, sentence, options):
    with pytest.raises(error, match=sentence):
        train(random_set(), **options)


# -------------------------------------------------------------------------------------------------------- errors


def test_errors_by_depth_are_what_a_hand_computes():
    data = random_set(2, 3)
    data.depth = torch.tensor([1, 2, 2, 2])
    data.mismatch = torch.tensor([0.5, 0.1, 0.2, 0.3])
    data.a_teacher = torch.zeros(4, ACTIONS)
    data.a_plan = torch.tensor([[0.2, 0.0], [0.3, 0.3], [0.0, 0.3], [0.0, 0.0]])
    data.a_policy = torch.full((4, ACTIONS), 0.5)
    data.again_index, data.a_again = torch.tensor([2]), torch.tensor([[0.4, 0.0]])

    def halve(z_real, z_pred, a_plan, a_policy, depth, history):
        return a_plan / 2

    halve.history_len = 0
    first, second = errors_by_depth(data, halve)
    assert math.isnan(first.pop("teacher_floor_mse"))  # nothing was solved twice at depth 1
    wanted = {"depth": 1, "samples": 1, "mismatch": 0.5, "plan_mse": 0.02, "corrector_mse": 0.005, "policy_mse": 0.25}
    assert first == pytest.approx(wanted)
    wanted = {"depth": 2, "samples": 3, "mismatch": 0.2, "plan_mse": 0.045, "corrector_mse": 0.01125}
    assert second == pytest.approx(wanted | {"policy_mse": 0.25, "teacher_floor_mse": 0.04})
    assert "corrector_mse" not in errors_by_depth(data)[0]


@every_arch
def test_errors_by_depth_in_parts_are_those_of_row_after_row(monkeypatch, arch):
    monkeypatch.setattr(corrector_training, "CHUNK", 7)
    data, corrector = random_set(3, 20), made(arch)
    rows = torch.arange(len(data)).split(1)
    actions = torch.cat([states_of(data, corrector, row).corrected(corrector) for row in rows])
    for row in errors_by_depth(data, corrector):
        at = data.depth == row["depth"]
        assert row["samples"] == at.sum()
        assert row["corrector_mse"] == pytest.approx((actions - data.a_teacher)[at].square().mean().item(), rel=1e-4)
    assert [row["depth"] for row in errors_by_depth(data, corrector)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@every_arch
def test_100k_states_of_a_5m_teacher_train_within_a_gibibyte(arch):
    """All of the process, torch's own 300 MiB and the set's 200 included; in a process of its own."""
    (peak,) = printed_by(f"""
    import torch
    from lib.distil.train import CorrectorTraining, errors_by_depth, train_corrector
    from lib.distil.states import DistillationSet
    n, L, A, H, E = 100_000, 512, 6, 3, 5
    row = torch.arange(n)
    few = torch.rand(n, A) - 0.5
    plans = (torch.rand(n, H, A) - 0.5, torch.rand(n, H, A) - 0.5)
    z = [torch.full((n, L), 0.125, dtype=torch.float16) for _ in range(2)]
    data = DistillationSet(
        *z, few, few.clone(), plans[1][:, 0].clone(), *plans, 1 + row % E, torch.rand(n), row // 500,
        row % 500 + row % 500 // E, torch.zeros_like(row), row[:9000], few[:9000],
    )
    trained = train_corrector(data, CorrectorTraining({arch!r}, epochs=1, batch_size=1024), progress=False)
    errors_by_depth(data, trained.corrector)
    print(peak())
    """)
    assert 0.4 < peak < 1.0
