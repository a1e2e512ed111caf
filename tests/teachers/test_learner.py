"""The TD-MPC2 update against a slow twin: loops over time and heads, torch's own cross-entropy, step by step."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.compilation import why_not_compiled
from lib.teachers.config import TeacherConfig
from lib.teachers.learner import Learner, RunningScale, gaussian_log_prob, soft_cross_entropy
from lib.world_model import two_hot
from tests.teachers.tiny import A, B, H, random_batch, training_model

BATCH = random_batch()
MODEL = ("encoder", "dynamics", "reward_head", "q_heads")


def learner(seed=0, dropout=0.0, spread=1.0, **changes):
    settings = TeacherConfig(**{"batch_size": B, "horizon": H, "compile": False} | changes)
    return Learner(training_model(seed, dropout, spread, settings.episodic), settings)


def seeded_update(made, seed, data=BATCH):
    """An update that draws what `draws(seed)` says."""
    torch.manual_seed(seed)
    return made.update(data)


def parameters(model, part):
    return list(getattr(model, part).parameters())


def slow_model_loss(wm, c, data, noise, heads):
    """(loss, latents, parts), one time step and one head after the other."""
    with torch.no_grad():
        goals, targets = [], []
        for t in range(H):
            z = wm.encode(data.obs[t + 1])
            mean, log_std = wm.policy_parameters(z)
            action = torch.tanh(mean + noise[t] * log_std.exp())
            q = wm.q(z, action, target=True)
            ahead = wm.config.discount * torch.minimum(q[heads[0]], q[heads[1]])
            targets.append(data.rewards[t] + (torch.where(data.terminated[t] > 0, 0.0, ahead) if c.episodic else ahead))
            goals.append(z)
    consistency = reward = value = 0.0
    latents = [wm.encode(data.obs[0])]
    for t in range(H):
        z, a = latents[-1], data.actions[t]
        latents.append(wm.next(z, a))
        rows, share = (data.played[t] > 0, data.played[t].mean()) if c.episodic else (slice(None), 1.0)
        weight = c.rho**t * share / H  # the means are over the decisions that were played
        consistency += weight * F.mse_loss(latents[-1][rows], goals[t][rows])
        reward += weight * F.cross_entropy(wm.reward_logits(z, a)[rows], two_hot(data.rewards[t][rows]))
        for logits in wm.q_logits(z, a):
            value += weight * F.cross_entropy(logits[rows], two_hot(targets[t][rows])) / wm.config.num_q
    loss, parts = (
        20 * consistency + 0.1 * reward + 0.1 * value,
        dict(consistency=consistency, reward=reward, value=value),
    )
    if c.episodic:
        chance = torch.stack([wm.termination(z) for z in latents[1:]])
        surprise = -torch.where(data.terminated > 0, chance, 1 - chance).log()
        parts["termination"] = surprise[data.played > 0].sum() / data.played.numel()
        loss = loss + parts["termination"]
    return loss, torch.stack(latents), parts


def slow_policy_loss(pi_model, q_model, c, z, noise, heads, scale):
    """The mean over time of ρ^t (entropy coefficient · scaled log probability − Q / scale)."""
    total = 0.0
    for t in range(H + 1):
        mean, log_std = pi_model.policy_parameters(z[t])
        raw = mean + noise[t] * log_std.exp()
        action = raw.tanh()
        log_prob = A * torch.distributions.Normal(mean, log_std.exp()).log_prob(raw).sum(-1)
        log_prob = log_prob - torch.log(1 - action**2 + 1e-6).sum(-1)
        q = q_model.q(z[t], action)
        q = (q[heads[0]] + q[heads[1]]) / 2
        total = total + c.rho**t * (c.entropy_coef * log_prob - q / scale).mean() / (H + 1)
    return total


def draws(seed):
    """What one update draws from the global generator, in its order."""
    torch.manual_seed(seed)
    first, heads = torch.randn(H, B, A), torch.randperm(4)[:2]
    return first, heads, torch.randn(H + 1, B, A), torch.randperm(4)[:2]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------------------------------------- model loss


@pytest.mark.parametrize("episodic", [False, True])
def test_the_model_loss_and_its_gradients_equal_the_slow_twin(episodic):
    made, batch = learner(episodic=episodic), random_batch(episodic=episodic)
    noise, heads, *_ = draws(0)
    loss, z, parts = made.model_loss(batch, noise, heads)
    loss.backward()
    fast = gradients(made.wm)
    made.wm.zero_grad()
    slow_loss, slow_z, slow_parts = slow_model_loss(made.wm, made.config, batch, noise, heads)
    slow_loss.backward()
    torch.testing.assert_close(loss, slow_loss)
    torch.testing.assert_close(z, slow_z)
    assert parts.keys() == slow_parts.keys()
    for name, part in slow_parts.items():
        torch.testing.assert_close(parts[name], part)
        assert part > 0.005, name
    slow = gradients(made.wm)
    assert fast.keys() == slow.keys() and not any(n.startswith(("pi", "target")) for n in fast)
    for name, grad in slow.items():
        torch.testing.assert_close(fast[name], grad, rtol=1e-4, atol=1e-6)
    assert not z.requires_grad


def test_soft_cross_entropy_is_torchs_with_soft_targets():
    logits, target = torch.randn(6, 101), 100 * torch.randn(6)
    slow = F.cross_entropy(logits, two_hot(target), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, target, 10.0), slow)


# -------------------------------------------------------------------------------------------------------- policy loss


def test_gaussian_log_prob_is_torchs():
    mean, log_std, noise = torch.randn(4, 3), 0.3 * torch.randn(4, 3), torch.randn(4, 3)
    normal = torch.distributions.Normal(mean, log_std.exp())
    ours = gaussian_log_prob(noise, log_std)
    torch.testing.assert_close(ours, normal.log_prob(mean + noise * log_std.exp()).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entropy_coef", [1e-4, 0.5])
def test_the_policy_loss_and_its_gradient_equal_the_slow_twin(entropy_coef):
    made = learner(entropy_coef=entropy_coef)
    before = copy.deepcopy(made.wm)
    noise, heads, policy_noise, policy_heads = draws(7)
    _, z, _ = slow_model_loss(before, made.config, BATCH, noise, heads)
    losses = seeded_update(made, 7)
    after = made.wm  # its Q heads made their step before the policy's
    slow = slow_policy_loss(before, after, made.config, z.detach(), policy_noise, policy_heads, made.scale.value)
    assert losses["policy_loss"] == pytest.approx(slow.item(), rel=1e-4)
    expected = torch.autograd.grad(slow, list(before.pi.parameters()))
    for p, grad in zip(after.pi.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-6)


def test_the_scale_comes_from_the_values_of_the_first_step():
    made = learner(spread=4, tau=0.5)
    before = copy.deepcopy(made.wm)
    *_, policy_noise, policy_heads = draws(3)
    seeded_update(made, 3)
    z, expected = before.encode(BATCH.obs[0]), RunningScale(0.5)
    q = made.wm.q(z, before.policy_sample(z, policy_noise[0]), heads=policy_heads).mean(0)
    expected.update(q.detach())
    assert expected.value > 1.05
    assert made.scale.value.item() == pytest.approx(expected.value.item(), rel=1e-3)


@pytest.mark.parametrize("entropy_coef", [0.0, 100.0])
def test_the_policy_climbs_the_value_or_the_entropy(entropy_coef):
    made = learner(entropy_coef=entropy_coef, lr=0.0)  # a frozen model …
    made.policy_optimiser.param_groups[0]["lr"] = 3e-3  # … under a policy that learns
    with torch.no_grad():
        made.wm.pi[-1].bias[A:] = -0.6  # a narrow policy to start with: its mean is what it does
    z = made.wm.encode(BATCH.obs).detach()

    def look():
        mean, log_std = made.wm.policy(z)
        return made.wm.q(z, mean).mean().item(), log_std.mean().item()

    value, log_std = look()
    for _ in range(120):
        made.update(BATCH)
    if entropy_coef:
        assert look()[1] > log_std + 1
    else:
        assert look()[0] > value + 0.04  # out of the 0.06 that there are to gain


def test_q_heads_get_no_gradient_from_the_policy_loss():
    made = learner(grad_clip=1e9)
    noise, heads, *_ = draws(5)
    twin = copy.deepcopy(made.wm)
    slow_model_loss(twin, made.config, BATCH, noise, heads)[0].backward()
    seeded_update(made, 5)
    for part in MODEL:
        for ours, theirs in zip(parameters(made.wm, part), parameters(twin, part), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)
            assert ours.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in made.wm.target_q_heads.parameters())
    assert all(p.grad.abs().sum() > 0 for p in made.wm.pi.parameters())


# ---------------------------------------------------------------------------------------------------------- the steps


def test_every_network_but_the_target_is_optimised_and_the_encoder_slower():
    made = learner()
    optimised = {id(p) for o in (made.optimiser, made.policy_optimiser) for g in o.param_groups for p in g["params"]}
    for name, p in made.wm.named_parameters():
        assert (id(p) in optimised) == (not name.startswith("target")), name
    assert made.policy_optimiser.param_groups[0]["eps"] == 1e-5
    before = copy.deepcopy(made.wm)
    made.update(BATCH)

    def moved(part):  # Adam's first step is the learning rate times the gradient's sign
        pairs = zip(parameters(made.wm, part), parameters(before, part), strict=True)
        return max((new - old).abs().max().item() for new, old in pairs)

    assert moved("encoder") == pytest.approx(0.3 * 3e-4, rel=1e-2)
    for part in (*MODEL[1:], "pi"):
        assert moved(part) == pytest.approx(3e-4, rel=2e-2), part


def test_gradients_are_clipped_separately_for_model_and_policy():
    made = learner(grad_clip=1e-2)
    norm = made.update(BATCH)["grad_norm"]
    assert norm > 0.1  # what is reported is the norm before clipping

    def total(parameters):
        return torch.stack([p.grad.norm() for p in parameters]).norm().item()

    assert total(made._model_parameters) == pytest.approx(1e-2, rel=1e-2)
    assert total(made._policy_parameters) <= 1.001e-2
    loose = learner(grad_clip=1e9)
    norm = loose.update(BATCH)["grad_norm"]
    assert total(loose._model_parameters) == pytest.approx(norm, rel=1e-4)


def test_the_target_moves_by_tau_towards_the_updated_heads():
    made = learner(tau=0.25)
    before = copy.deepcopy(parameters(made.wm, "target_q_heads"))
    made.update(BATCH)
    moved, followed = parameters(made.wm, "target_q_heads"), parameters(made.wm, "q_heads")
    for old, new, live in zip(before, moved, followed, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * live)
        assert not torch.equal(old, new)


def test_the_running_scale_follows_numpys_percentiles():
    scale, expected = RunningScale(0.1), 1.0
    for seed in range(4):
        q = 10 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        scale.update(q)
        low, high = np.percentile(q.numpy(), [5, 95])
        expected += 0.1 * (max(high - low, 1.0) - expected)
        assert scale.value.item() == pytest.approx(expected, rel=1e-5)
    narrow = RunningScale(0.5)
    narrow.update(torch.full((3, 4), 2.0))
    assert narrow.value == 1.0


def test_updates_on_a_fixed_batch_reduce_the_loss():
    made = learner(dropout=0.01)
    history = [made.update(BATCH) for _ in range(80)]
    for part in ("loss", "consistency", "reward"):
        first, last = (np.mean([h[part] for h in chunk]) for chunk in (history[:5], history[-5:]))
        assert last < 0.9 * first, part
    assert all(np.isfinite(v) for h in history for v in h.values())


def test_training_mode_survives_an_update_and_state_round_trips():
    made = learner(dropout=0.01, spread=4, tau=0.5)
    made.update(BATCH)
    assert made.wm.training and not made.wm.target_q_heads.training and made.scale.value > 1.05
    other = learner(seed=9, dropout=0.01, tau=0.5)
    other.wm.load_state_dict(copy.deepcopy(made.wm.state_dict()))
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    assert seeded_update(made, 4) == seeded_update(other, 4)
    assert all(torch.equal(a, b) for a, b in zip(made.wm.parameters(), other.wm.parameters(), strict=True))


def test_a_planner_sees_every_weight_that_an_update_changed():
    """Fused Adam does not count its writes, and the planner packs its weights anew only when they were counted."""
    made = learner()
    before = {n: (p.clone(), p._version) for n, p in made.wm.named_parameters()}
    made.update(BATCH)
    changed = {n for n, p in made.wm.named_parameters() if not torch.equal(p, before[n][0])}
    assert len(changed) > 20 and all(made.wm.get_parameter(n)._version > before[n][1] for n in changed)


@pytest.mark.slow
def test_the_compiled_update_is_the_eager_one():
    """Real training compiles; where the compiler failed, it would go on eagerly without a word in the results."""
    if why_not_compiled(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    compiled, eager = learner(compile=True), learner()
    losses = [[seeded_update(each, seed, random_batch(seed)) for seed in (1, 2, 3)] for each in (compiled, eager)]
    assert compiled._model_loss._compiled and compiled._policy_terms._compiled  # neither fell back
    for mine, slow in zip(*losses, strict=True):
        assert mine == pytest.approx(slow, rel=1e-4, abs=1e-6)
    for (name, a), b in zip(compiled.wm.named_parameters(), eager.wm.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
