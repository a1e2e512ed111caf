"""MPPI against a slow twin written from the paper's algorithm, and against the optimum of a linear-quadratic system."""

import gc
import math
import os
import tempfile
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib import compilation
from lib.compilation import Compiled, say_once
from lib.config import ConfigError, WorldModelConfig
from lib.planner import MPPI, Plan, PlannerConfig, _evaluate, _step
from lib.planning_networks import PlanningNetworks
from lib.records.paths import ROOT
from lib.weights.native import load_world_model
from lib.world_model import WorldModel
from tests.tiny import streams

PARTS = ("actions", "mean", "std", "latents", "value")
FIXTURES = ROOT / "tests" / "fixtures"
TINY_MT30 = FIXTURES / "official_tiny_mt30_new.pt"


def random_model(action_dim=6, seed=0):
    """A small model with random last layers: fresh ones are zero, and every plan would be worth the same."""
    torch.manual_seed(seed)
    wm = WorldModel(WorldModelConfig(7, action_dim, 16, 24, 32, 2, 4, discount=0.9))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return wm.eval().requires_grad_(False)


def model(kind):
    if kind.startswith("single"):
        return random_model(int(kind.split("-")[1]))
    if kind == "episodic":
        return load_world_model(FIXTURES / "official_tiny_episodic_new.pt")
    return load_world_model(TINY_MT30, task=kind)


def config(**changes):
    settings = dict(samples=40, iterations=3, elites=8, policy_samples=6, horizon=3, mode="eager")
    return PlannerConfig(**settings | changes)


def latents(wm, batch, seed=1):
    return wm.encode(torch.randn(batch, wm.native_obs_dim, generator=torch.Generator().manual_seed(seed)))


# ------------------------------------------------------------------------------------------------------ the slow twin


def reference(wm, c, z0, warm_start, noise, row, gaps=None):
    """MPPI for one latent z0 (L,), as in the paper's algorithm box. Returns (actions, mean, std, latents, value).

    `gaps` takes note of how much more the last elite is worth than the next sample, in each iteration.
    """
    gamma = wm.config.discount

    def prior(z, eps):  # z (n, L), eps (n, A)
        mean, log_std = wm.policy_parameters(z)
        return torch.tanh(mean + torch.exp(log_std) * eps)

    # Sample policy trajectories.
    z, prior_actions = z0.repeat(c.policy_samples, 1), []
    for t in range(c.horizon):
        prior_actions.append(prior(z, noise.prior[row, t]))
        z = wm.next(z, prior_actions[-1])
    mean = torch.zeros(c.horizon, wm.action_dim) if warm_start is None else warm_start[row].clone()
    std = c.max_std * torch.ones(c.horizon, wm.action_dim)
    for i in range(c.iterations):
        # Sample N − P action sequences around the mean; the policy's come first.
        sequences = [[prior_actions[t][n] for t in range(c.horizon)] for n in range(c.policy_samples)]
        for n in range(c.samples - c.policy_samples):
            sequences.append([(mean[t] + std[t] * noise.samples[i, row, t, n]).clamp(-1, 1) for t in range(c.horizon)])
        # Estimate their returns.
        returns, dead, z = torch.zeros(c.samples), torch.zeros(c.samples), z0.repeat(c.samples, 1)
        for t in range(c.horizon):
            a = torch.stack([s[t] for s in sequences])
            returns += gamma**t * (1 - dead) * wm.reward(z, a)
            z = wm.next(z, a)
            if wm.config.episodic:
                dead = torch.clip(dead + (wm.termination(z) > 0.5).float(), max=1.0)
        q = wm.q(z, prior(z, noise.terminal[i, row]))
        first, second = noise.heads[i].tolist()
        returns += gamma**c.horizon * (1 - dead) * (q[first] + q[second]) / 2
        # The elites, best first, and their weights.
        order = sorted(range(c.samples), key=lambda n: -returns[n].item())
        elites = order[: c.elites]
        if gaps is not None and c.elites < c.samples:
            gaps.append((returns[elites[-1]] - returns[order[c.elites]]).item())
        weights = [math.exp(c.temperature * (returns[n] - returns[elites[0]]).item()) for n in elites]
        weights = [w / sum(weights) for w in weights]
        for t in range(c.horizon):
            mean[t] = sum(w * sequences[n][t] for w, n in zip(weights, elites, strict=True))
            variance = sum(w * (sequences[n][t] - mean[t]) ** 2 for w, n in zip(weights, elites, strict=True))
            std[t] = variance.sqrt().clamp(c.min_std, c.max_std)
    if c.action_selection == "mean":
        actions = mean.clone()
    else:
        scores = [math.log(w) + noise.choice[row, e].item() for e, w in enumerate(weights)]
        actions = torch.stack(sequences[elites[scores.index(max(scores))]])
    zs, value, alive = [z0], 0.0, True
    for t in range(c.horizon):
        value += gamma**t * alive * wm.reward(zs[-1][None], actions[t][None])[0]
        zs.append(wm.next(zs[-1][None], actions[t][None])[0])
        alive = alive and not (wm.config.episodic and wm.termination(zs[-1]) > 0.5)
    value += gamma**c.horizon * alive * wm.q(zs[-1][None], wm.policy(zs[-1][None])[0])[:, 0].mean()
    return actions, mean, std, torch.stack(zs), value


def assert_same(plan, row, other, other_row, rtol):
    """Rows of two plans agree in every part."""
    for name in PARTS:
        a, b = getattr(plan, name)[row], getattr(other, name)[other_row]
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def untied(wm, c, z, warm, planner):
    """The first noise with which no last elite ties with the next sample, and the slow twin's results of its rows.

    Where they tie to within rounding, which differs between processors, either choice is right.
    """
    for seed in range(7, 17):
        noise, gaps = planner.draw_noise(len(z), torch.Generator().manual_seed(seed)), []
        slow = [reference(wm, c, z[row], warm, noise, row, gaps) for row in range(len(z))]
        if min(gaps) > 1e-4:
            return noise, slow
    raise AssertionError("every draw has a tie")


@pytest.mark.parametrize("selection", ["mean", "sample"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["single-1", "single-6", "single-21", "walker-walk", "cartpole-swingup", "episodic"])
def test_equals_the_slow_twin(kind, batch, selection):
    wm, c = model(kind), config(action_selection=selection)
    planner, z = MPPI(wm, c), latents(model(kind), batch)
    for warm in (None, 0.5 * torch.randn(batch, 3, wm.action_dim, generator=torch.Generator().manual_seed(5))):
        kept = None if warm is None else warm.clone()
        noise, slow = untied(wm, c, z, warm, planner)
        plan = planner(z, warm, noise=noise)
        assert warm is None or torch.equal(warm, kept)  # the caller's warm start is not written to
        for row in range(batch):
            assert_same(plan, row, Plan(*slow[row]), ..., 1e-5)
        assert plan.actions.abs().max() <= 1 and plan.mean.std() > 0


def test_a_sample_that_ends_has_the_reward_of_that_step_and_nothing_behind_it():
    """The official planner's sums, for its own random weights: half of these samples end within three steps."""
    wm, file = model("episodic"), np.load(FIXTURES / "official_tiny_episodic_golden.npz")
    z, actions, rewards, alive, last = (
        torch.from_numpy(file[name]) for name in ("z", "actions", "plan_rewards", "plan_alive", "plan_last_z")
    )
    nets = PlanningNetworks(wm)
    z, total, living = nets.enter(z).unsqueeze(1), 0.0, ()
    for t in range(3):
        total, living, z = _step(nets, 0.99**t, z, actions[t].unsqueeze(1), total, living)
    torch.testing.assert_close(total, rewards.view(-1, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(living[0], alive.float().view(-1, 1)) and 0.2 < alive.float().mean() < 0.8
    torch.testing.assert_close(nets.leave(z)[:, 0], last, rtol=1e-5, atol=1e-5)
    after = nets.q(z, nets.policy(z)[0].tanh(), None)
    plan = actions.transpose(0, 1)
    value = _evaluate(nets, 0.99, nets.enter(torch.from_numpy(file["z"])).unsqueeze(1), plan)[1]
    torch.testing.assert_close(value, (total + 0.99**3 * living[0] * after)[:, 0], rtol=1e-5, atol=1e-5)


def test_ends_are_where_termination_is_likelier_than_not():
    wm = model("episodic")
    z = latents(wm, 200).view(20, 10, -1)
    ends = PlanningNetworks(wm).ends(PlanningNetworks(wm).enter(z))
    assert torch.equal(ends, wm.termination(z) > 0.5) and 0.05 < ends.float().mean() < 0.95
    assert random_model().termination(torch.zeros(2, 32)) is None


@pytest.mark.parametrize(
    "changes, batch, rows",
    [({"policy_samples": 0}, 2, (0, 1)), ({"policy_samples": 40}, 2, (0, 1)), ({"horizon": 1}, 2, (0, 1)),
     ({"iterations": 1}, 2, (0, 1)), ({"elites": 40}, 2, (0, 1)), ({}, 32, (0, 7, 31))],
)  # fmt: skip
def test_equals_the_slow_twin_at_the_edges_of_the_budget_and_in_a_large_batch(changes, batch, rows):
    wm, c = random_model(2), config(**changes)
    planner, z = MPPI(wm, c), latents(wm, batch)
    noise = planner.draw_noise(batch, torch.Generator().manual_seed(4))
    plan = planner(z, noise=noise)
    for row in rows:
        torch.testing.assert_close(plan.mean[row], reference(wm, c, z[row], None, noise, row)[1], rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- batches and noise


def test_a_row_does_not_depend_on_its_neighbours():
    wm = random_model(3)
    z = latents(wm, 5)
    warm = 0.3 * torch.randn(5, 3, 3)
    together = MPPI(wm, config())(z, warm, streams(*range(5)))
    for row in range(5):
        alone = MPPI(wm, config())(z[row : row + 1], warm[row : row + 1], streams(row))
        assert_same(together, row, alone, 0, 1e-4)
    others = torch.cat([z[:1], latents(wm, 4, seed=9)])
    shuffled = MPPI(wm, config())(others, warm, streams(0, 11, 12, 13, 14))
    torch.testing.assert_close(shuffled.mean[0], together.mean[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shuffled.mean[1], together.mean[1], atol=1e-3)


def test_the_noise_is_standard_normal_and_heads_are_pairs():
    planner = MPPI(random_model(2), config(samples=200, policy_samples=24, elites=64, iterations=40))
    noise = planner.draw_noise(3, torch.Generator().manual_seed(0))
    for name, shape in {"samples": (40, 3, 3, 176, 2), "prior": (3, 3, 24, 2), "terminal": (40, 3, 200, 2)}.items():
        draw = getattr(noise, name)
        error = 4 / math.sqrt(draw.numel())  # four standard errors
        assert draw.shape == shape and abs(draw.mean()) < error and abs(draw.std() - 1) < error, name
    assert noise.heads.shape == (40, 2) and (noise.heads[:, 0] != noise.heads[:, 1]).all()
    assert {frozenset(pair) for pair in noise.heads.tolist()} == {frozenset((a, b)) for a in range(4) for b in range(a)}
    assert noise.choice.shape == (3, 64) and noise.choice.mean().item() == pytest.approx(0.577, abs=0.3)  # Gumbel
    with pytest.raises(ConfigError, match="2 generators were given for a batch of 3"):
        planner.draw_noise(3, streams(1, 2))


def test_head_pairs_have_a_stream_of_their_own():
    a, b = MPPI(random_model(2), config()), MPPI(random_model(2), config())
    torch.manual_seed(1)
    first = a.draw_noise(1, torch.Generator().manual_seed(0)).heads
    torch.manual_seed(2)
    assert torch.equal(first, b.draw_noise(4).heads)  # neither the global seed nor the batch matters
    second = a.draw_noise(1).heads
    a.reset_streams()
    assert torch.equal(a.draw_noise(1).heads, first) and not torch.equal(first, second)


def test_elites_are_executed_by_their_weight():
    wm, settings = random_model(1), dict(samples=8, elites=4, policy_samples=0, iterations=1, temperature=40.0)
    planner, sampler = MPPI(wm, config(**settings)), MPPI(wm, config(**settings, action_selection="sample"))
    z = latents(wm, 1).expand(4000, -1)
    noise = planner.draw_noise(1, torch.Generator().manual_seed(3))
    wide = planner.draw_noise(4000, torch.Generator().manual_seed(4))
    wide.samples[:], wide.terminal[:] = noise.samples, noise.terminal
    wide.heads = noise.heads
    expected = planner(z[:1], noise=noise)
    drawn = sampler(z, noise=wide)
    assert len(drawn.actions.flatten(1).unique(dim=0)) > 1
    torch.testing.assert_close(drawn.actions.mean(0), expected.mean[0], rtol=0, atol=0.05)


# --------------------------------------------------------------------------------------------------------- warm start


def test_shifted_moves_the_mean_by_the_steps_executed():
    mean = torch.arange(1.0, 13).view(2, 3, 2)
    plan = Plan(*[mean] * 5)
    for steps in (0, 1, 2, 3, 9):
        kept = mean[:, steps:]
        assert torch.equal(plan.shifted(steps), torch.cat([kept, torch.zeros(2, 3 - kept.shape[1], 2)], 1))
    per_row = plan.shifted(torch.tensor([2, 0]))
    assert torch.equal(per_row[0], plan.shifted(2)[0]) and torch.equal(per_row[1], mean[1])


def test_the_warm_start_is_the_mean_of_the_first_iteration():
    wm = random_model(2)
    planner = MPPI(wm, config(policy_samples=0, iterations=1))
    noise, z, warm = planner.draw_noise(2), latents(wm, 2), torch.rand(2, 3, 2) - 0.5
    noise.samples.zero_()  # every sample is then the mean itself
    plan, cold, zero = (planner(z, start, noise=noise) for start in (warm, None, torch.zeros(2, 3, 2)))
    torch.testing.assert_close(plan.mean, warm)
    assert torch.equal(plan.std, torch.full_like(warm, 0.05)) and (cold.mean == 0).all()
    torch.testing.assert_close(zero.mean, cold.mean)


# ----------------------------------------------------------------------------------------------------- counts, errors


def test_every_row_of_every_call_is_counted():
    wm = random_model(1)
    planner = MPPI(wm, config())
    planner(latents(wm, 3)), planner(latents(wm, 1))
    assert planner.solves == 4
    assert planner.config.model_evaluations == 40 * 3 * 3
    assert PlannerConfig.standard(6).model_evaluations == 512 * 6 * 3
    assert PlannerConfig.standard(21).iterations == 8


def test_non_finite_inputs_are_refused():
    wm = random_model(1)
    planner, z = MPPI(wm, config()), latents(wm, 2)
    not_finite, wrong_shape = (
        "non-finite latent or warm start",
        r"of shape \(2, 2, 1\) was given; it must be \(2, 3, 1\)",
    )
    for latent, warm_start, message in (
        (z.index_fill(1, torch.tensor(3), torch.nan), None, not_finite),
        (z, torch.full((2, 3, 1), torch.inf), not_finite),
        (z, torch.zeros(2, 2, 1), f"a warm start {wrong_shape}"),
    ):
        with pytest.raises(ValueError, match=message):
            planner(latent, warm_start)
    assert planner.solves == 0


def test_planners_are_freed_without_the_garbage_collector():
    """Each holds a copy of the weights, and an evaluation makes one for every arm."""
    wm = random_model(1)
    planner = MPPI(wm, config())
    planner(latents(wm, 1))
    networks = weakref.ref(planner.networks)
    gc.disable()
    try:
        del planner
        assert networks() is None
    finally:
        gc.enable()


class PartlyBroken(PlanningNetworks):
    """Networks whose reward is NaN for some actions."""

    def broken(self, a):
        return a[..., 0] > 0

    def step(self, z, a):
        return torch.where(self.broken(a), torch.nan, 5.0), super().step(z, a)[1]


def test_a_sample_without_a_value_counts_as_worthless():
    """As in the official code: a NaN value becomes 0, so that one bad sample cannot spoil a plan."""
    wm, c = random_model(1), config(policy_samples=0, samples=200, iterations=6)
    plan = MPPI(wm, c, PartlyBroken(wm))(latents(wm, 2))
    assert torch.isfinite(plan.mean).all() and (plan.mean < 0).all() and torch.isfinite(plan.value).all()


def test_a_plan_without_a_value_is_refused(monkeypatch):
    wm = random_model(1)
    monkeypatch.setattr(PartlyBroken, "broken", lambda self, a: a[..., 0] < 2)
    with pytest.raises(ValueError, match="a value that is not finite"):
        MPPI(wm, config(), PartlyBroken(wm))(latents(wm, 2))


WEIGHTS = ["encoder.0.weight", "dynamics.1.bias", "reward_head.2.weight", "q_heads.layers.0.weight"]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_whenever_they_turn_so(name, bad):
    wm = random_model(2)
    planner, z = MPPI(wm, config()), latents(wm, 1)
    planner(z)
    with torch.no_grad():
        wm.get_parameter(name).view(-1)[3] = bad
    for asked in (lambda: planner(z), lambda: MPPI(wm, config())):
        with pytest.raises(ValueError, match=f"not finite in {name}"):
            asked()
    assert planner.solves == 1


@pytest.mark.parametrize(
    "changes, message",
    [({"samples": 0}, "samples=0 must be at least 1"), ({"horizon": 0}, "horizon=0 must be at least 1"),
     ({"iterations": -1}, "iterations=-1"), ({"elites": 41}, "elites=41 exceeds samples=40"),
     ({"policy_samples": 41}, "policy_samples=41 must lie in 0…samples=40"),
     ({"samples": 40_000}, "samples=40000 must be at most 32,768"), ({"horizon": 501}, "must be at most 500"),
     ({"temperature": 0.0}, "temperature=0.0 must be positive"), ({"temperature": math.nan}, "temperature=nan must be"),
     ({"temperature": math.inf}, "temperature=inf must be"), ({"max_std": math.inf}, "0 < min_std ≤ max_std, not 0.05"),
     ({"min_std": 0.0}, "0 < min_std ≤ max_std"), ({"min_std": 3.0}, "0 < min_std ≤ max_std"),
     ({"action_selection": "best"}, "action_selection='best' is not known; use one of: mean, sample")],
)  # fmt: skip
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_small_budgets_keep_the_official_proportions():
    c = PlannerConfig.budget(64, 2)
    assert (c.samples, c.iterations, c.elites, c.policy_samples) == (64, 2, 8, 16)
    assert PlannerConfig.budget(512, 6) == PlannerConfig.standard(6)
    assert PlannerConfig.budget(4, 1).elites == 1


# ---------------------------------------------------------------------------------------- a system with a known optimum


class LinearQuadratic:
    """z' = Az + Ba, reward −(zᵀQz + aᵀRa), and the exact value of the optimal linear policy behind the horizon.

    It is both the world model and, with a sample axis in every shape, the planner's networks.
    """

    def __init__(self, gamma=0.95):
        self.A = torch.tensor([[1.0, 0.2], [0.0, 1.0]])
        self.B = torch.tensor([[0.02], [0.2]])
        self.Q, self.R = torch.diag(torch.tensor([10.0, 1.0])), torch.tensor([[1.0]])
        P = torch.zeros(2, 2)
        for _ in range(2000):  # the discounted Riccati equation, by iteration to its fixed point
            gain = torch.linalg.solve(self.R + gamma * self.B.T @ P @ self.B, gamma * self.B.T @ P @ self.A)
            P = self.Q + gamma * self.A.T @ P @ (self.A - self.B @ gain)
        self.P, self.gain = P, gain
        self.config = SimpleNamespace(discount=gamma, num_q=2)
        self.action_dim, self.device, self.num_q = 1, torch.device("cpu"), 2

    def refresh(self):
        """Nothing is packed."""

    def enter(self, z):
        return z

    leave = enter

    def next(self, z, a):
        return z @ self.A.T + a @ self.B.T

    def reward(self, z, a):
        return -((z @ self.Q * z).sum(-1) + (a @ self.R * a).sum(-1))

    def step(self, z, a):
        return self.reward(z, a), self.next(z, a)

    def ends(self, z):
        """No episode ends early."""

    def q(self, z, a, heads):
        after = self.next(z, a)
        return self.reward(z, a) - self.config.discount * (after @ self.P * after).sum(-1)

    def policy(self, z):
        """The optimal action, unsquashed as the planner expects it, and hardly any spread."""
        return self.control(z).clamp(-0.999, 0.999).atanh(), torch.full_like(z[..., :1], -20.0)

    def control(self, z):
        return -z @ self.gain.T

    def optimal_value(self, z):
        return -(z @ self.P * z).sum(-1)


def test_a_linear_quadratic_system_is_controlled_optimally():
    system = LinearQuadratic()
    z = torch.tensor([[0.3, 0.0], [-0.35, 0.1], [0.0, 0.4]])
    best = system.optimal_value(z)
    assert system.control(z).abs().max() < 1  # else the bounds on actions would bind, and LQR not be the optimum
    c = config(samples=512, iterations=12, elites=32, policy_samples=0, temperature=20.0, min_std=0.01)
    plan = MPPI(system, c, system)(z, generator=torch.Generator().manual_seed(0))
    assert (plan.value <= best + 1e-4).all()  # nothing is better than the optimum
    assert (plan.value >= best * 1.02).all()  # values are negative: within 2 %
    torch.testing.assert_close(plan.actions[:, 0], system.control(z), rtol=0, atol=0.05)
    idle = _evaluate(system, system.config.discount, z.unsqueeze(1), torch.zeros(3, 3, 1))[1]
    assert (idle < best * 1.1).all()  # so that 2 % means something
    # Closed loop, replanning with the warm start moved by one step, costs what LQR costs.
    planner, warm, total = MPPI(system, c, system), None, torch.zeros(3)
    state = z
    for t in range(40):
        plan = planner(state, warm, torch.Generator().manual_seed(t))
        total += system.config.discount**t * system.reward(state, plan.actions[:, 0])
        state, warm = system.next(state, plan.actions[:, 0]), plan.shifted(1)
    total += system.config.discount**40 * system.optimal_value(state)
    assert (total >= best * 1.02).all() and (total <= best + 1e-4).all()


# -------------------------------------------------------------------------------------------------- modes and dtypes


def test_changed_weights_change_the_plan():
    """A planner follows a model in training, and one whose weights are loaded anew, without being told."""
    wm = random_model(2)
    planner, z = MPPI(wm, config()), latents(wm, 1)
    noise = planner.draw_noise(1, torch.Generator().manual_seed(0))
    before = planner(z, noise=noise)
    assert torch.equal(planner(z, noise=noise).mean, before.mean)
    other = random_model(2, seed=5)
    wm.load_state_dict(other.state_dict())
    after = planner(z, noise=noise)
    assert not torch.allclose(after.mean, before.mean, atol=1e-3)
    torch.testing.assert_close(after.mean, MPPI(other, config())(z, noise=noise).mean)
    wm.load_state_dict(random_model(2, seed=6).state_dict(), assign=True)
    assert not torch.allclose(planner(z, noise=noise).mean, after.mean, atol=1e-3)


def test_bfloat16_stays_close_and_float32_outside():
    """Matrix products in bfloat16 carry 8 bits: values agree to about one percent of their range over the samples."""
    wm = random_model(3)
    z = latents(wm, 2)
    fine, coarse = MPPI(wm, config()), MPPI(wm, config(dtype="bfloat16"))
    noise = fine.draw_noise(2, torch.Generator().manual_seed(0))
    a, b = fine(z, noise=noise), coarse(z, noise=noise)
    for name in PARTS:
        assert getattr(b, name).dtype == torch.float32, name
    actions = torch.rand(1, 3, 200, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    values = [
        torch.stack([_evaluate(p.networks, 0.9, p.networks.enter(z[:1])[:, None], x)[1] for x in actions.unbind(2)])
        for p in (fine, coarse)
    ]
    spread = values[0].std()
    assert 0 < (values[0] - values[1]).abs().max() < 0.1 * spread
    assert (a.latents[:, 1] - b.latents[:, 1]).abs().max() < 0.02


def test_modes_are_resolved_by_device_and_compiler(monkeypatch, capsys):
    wm = random_model(1)
    with pytest.raises(ConfigError, match="mode='cudagraph' needs a CUDA device, but the world model is on cpu"):
        MPPI(wm, config(mode="cudagraph"))
    large = dict(samples=64, elites=8, iterations=6, mode="auto")
    assert MPPI(wm, config(**large)).mode == "compiled"
    assert MPPI(wm, config(**large | {"samples": 8, "policy_samples": 2})).mode == "eager"  # not worth half a minute
    monkeypatch.setenv("CXX", "no-such-compiler")
    say_once.cache_clear()
    planner = MPPI(wm, config(**large))
    assert planner.mode == "eager" and "no C++ compiler was found" in capsys.readouterr().err
    MPPI(wm, config(**large))
    assert capsys.readouterr().err == ""  # said once


def test_a_failing_compiler_costs_a_line_and_no_plan(monkeypatch, capsys):
    """An inductor that raises (a missing header, an unsupported operator) leaves the eager planner."""

    def fail(*inputs):
        raise RuntimeError("CppCompileError: math.h is missing\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    say_once.cache_clear()
    wm = random_model(3)
    z, planner, eager = latents(wm, 2), MPPI(wm, config(mode="compiled")), MPPI(wm, config())
    noise = eager.draw_noise(2, torch.Generator().manual_seed(0))
    assert torch.equal(planner(z, noise=noise).mean, eager(z, noise=noise).mean)
    planner(z)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "going on without it (CppCompileError: math.h is missing)" in err


def test_an_error_of_the_function_itself_does_not_end_compilation(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    product = Compiled(lambda x, y: x @ y, "product")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        product(torch.ones(2, 3), torch.ones(2, 2))
    assert product._compiled is not None


def test_compiled_code_is_kept_in_the_folder_for_it_or_in_one_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_CACHE", str(tmp_path))
    for folder, kept in ((None, "inductor"), (tmp_path / "mine", "mine"), (None, "mine")):
        compilation.keep_compiled_code(folder)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / kept)


def test_where_no_compiled_code_can_be_kept_planning_says_so_once(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("a folder cannot be made below a file")
    folder, wm = str(tmp_path / "file" / "cache"), random_model(3)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
    say_once.cache_clear()
    for mode, said in (
        ("auto", f"planner: no compiled code can be kept in {folder!r}; going on uncompiled, which is slower\n"),
        ("compiled", f"going on without it (no compiled code can be kept in {folder!r})\n"),
    ):
        for _ in range(2):
            MPPI(wm, config(samples=64, elites=8, iterations=6, mode=mode))(latents(wm, 2))
        err = capsys.readouterr().err
        assert err.endswith(said) and err.count("\n") == 1


@pytest.mark.parametrize("needed", ["cache", "temporary", "environment"])
def test_a_folder_that_the_compiler_cannot_be_told_of_costs_one_clear_line(needed, monkeypatch, tmp_path, capsys):
    """In any mode: planning goes on uncompiled."""
    odd, wm = str(tmp_path / "o'neil"), random_model(3)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", odd if needed == "cache" else str(tmp_path))
    if needed == "temporary":
        monkeypatch.setattr(tempfile, "tempdir", odd)
    if needed == "environment":
        monkeypatch.setattr(torch, "__path__", [odd])
    say_once.cache_clear()
    line = f"{odd!r} has a space, quote or backslash, which torch's calls of the compiler cannot take"
    for _ in range(2):
        assert MPPI(wm, config(samples=64, elites=8, iterations=6, mode="auto")).mode == "eager"
    assert capsys.readouterr().err == f"planner: {line}; going on uncompiled, which is slower\n"

    def fail(*inputs):
        raise RuntimeError("CppCompileError: C++ compile error")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    planner = MPPI(wm, config(mode="compiled"))
    planner(latents(wm, 2)), planner(latents(wm, 2))
    said = capsys.readouterr().err
    assert said == f"planner: compilation is not possible here, going on without it ({line})\n"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_the_compiled_planner_equals_the_eager_one(batch):
    wm = random_model(3)
    eager, compiled = (MPPI(wm, config(mode=mode)) for mode in ("eager", "compiled"))
    z, noise = latents(wm, batch), eager.draw_noise(batch, torch.Generator().manual_seed(0))
    slow, fast = eager(z, noise=noise), compiled(z, noise=noise)
    assert compiled.mode == "compiled" and compiled.compile_seconds > 0
    for name in ("mean", "value", "latents"):
        torch.testing.assert_close(getattr(slow, name), getattr(fast, name), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_solve_equals_the_eager_one():
    wm = random_model(3).to("cuda")
    z = latents(random_model(3), 2).to("cuda")
    eager, captured = MPPI(wm, config()), MPPI(wm, config(mode="cudagraph"))
    for seed in range(2):  # the second replays what the first captured
        noise = eager.draw_noise(2, torch.Generator("cuda").manual_seed(seed))
        torch.testing.assert_close(captured(z, noise=noise).mean, eager(z, noise=noise).mean, rtol=1e-3, atol=1e-3)
