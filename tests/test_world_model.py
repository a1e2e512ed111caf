"""The networks: small functions against torch's own and slow loops, then structure, initialisation and ensemble."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.config import MODEL_SIZES, ConfigError, WorldModelConfig
from lib.world_model import (
    EnsembleLinear,
    WorldModel,
    dropout,
    layer_norm,
    mish,
    simnorm,
    symexp,
    symlog,
    total_variation,
    two_hot,
    two_hot_expectation,
)


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def small(seed=0, perturb=0.1, **changes):
    """A tiny model whose last layers are not zero."""
    torch.manual_seed(seed)
    settings = dict(obs_dim=5, action_dim=3, enc_dim=16, mlp_dim=24, latent_dim=16, num_enc_layers=2, num_q=4)
    wm = WorldModel(WorldModelConfig(**settings | changes))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(perturb * torch.randn_like(p))
    return wm.eval()


# --------------------------------------------------------------------------------------------------- small functions


def test_mish_is_torchs_mish_and_survives_large_inputs():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e4, -100.0, 88.0, 100.0, 1e4])]).requires_grad_()
    close(mish(x), F.mish(x))
    (ours,) = torch.autograd.grad(mish(x).sum(), x)
    (theirs,) = torch.autograd.grad(F.mish(x).sum(), x)
    close(ours, theirs, atol=1e-5)


def test_simnorm_is_a_softmax_over_groups():
    x = torch.cat([5 * torch.randn(6, 32), torch.full((1, 32), 1e4), -1e4 * torch.rand(1, 32)])
    close(simnorm(x), torch.cat([g.softmax(-1) for g in x.split(8, -1)], -1))
    close(simnorm(x, 4).view(-1, 8, 4).sum(-1), torch.ones(8, 8))
    assert simnorm(x.view(2, 4, 32)).shape == (2, 4, 32)


def test_symlog_and_symexp_are_inverses():
    x = torch.tensor([-1e4, -3.0, -1e-4, 0.0, 0.5, 200.0])
    close(symlog(x), torch.tensor([math.copysign(math.log(1 + abs(v)), v) for v in x.tolist()]))
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-4, atol=1e-7)


def slow_two_hot(value, bins=101, limit=10.0):
    x = min(max(math.copysign(math.log1p(abs(value)), value), -limit), limit)
    centres = np.linspace(-limit, limit, bins)
    code = np.zeros(bins)
    for i, centre in enumerate(centres):  # linear interpolation between the two neighbours
        code[i] = max(0.0, 1 - abs(x - centre) / (centres[1] - centres[0]))
    return torch.tensor(code, dtype=torch.float32)


@pytest.mark.parametrize("bins, limit", [(101, 10.0), (11, 2.0)])
def test_two_hot_is_interpolation_between_neighbouring_bins(bins, limit):
    edge = math.expm1(limit)
    values = torch.tensor([0.0, 0.3, -0.3, 1.0, 7.5, -1000.0, 2e4, 3e4, -1e9, 1e9, edge, -edge])
    code = two_hot(values, bins, limit)
    close(code, torch.stack([slow_two_hot(v, bins, limit) for v in values.tolist()]), atol=2e-5)
    close(code.sum(-1), torch.ones(len(values)))
    assert (code >= 0).all() and ((code > 0).sum(-1) <= 2).all()
    assert two_hot(values.view(3, 4), bins, limit).shape == (3, 4, bins)


def test_two_hot_expectation_inverts_the_code():
    values = torch.tensor([0.0, 0.7, -12.0, 431.0])
    bins = torch.linspace(-10, 10, 101)
    torch.testing.assert_close(symexp(two_hot(values) @ bins), values, rtol=1e-4, atol=1e-5)
    logits = torch.randn(3, 5, 101)
    slow = torch.stack([symexp((row.softmax(0) * bins).sum()) for row in logits.view(-1, 101)]).view(3, 5)
    torch.testing.assert_close(two_hot_expectation(logits), slow, rtol=1e-4, atol=1e-5)


def test_total_variation_is_a_distance_between_zero_and_one():
    a, b = simnorm(3 * torch.randn(50, 32)), simnorm(3 * torch.randn(50, 32))
    slow = torch.stack([(p - q).abs().view(4, 8).sum(1).mul(0.5).mean() for p, q in zip(a, b, strict=True)])
    close(total_variation(a, b), slow)
    assert (total_variation(a, a) == 0).all() and (total_variation(a, b) == total_variation(b, a)).all()
    assert (total_variation(a, b) > 0).all() and (total_variation(a, b) < 1).all()
    first, second = torch.eye(8)[0].repeat(4), torch.eye(8)[5].repeat(4)
    assert total_variation(first, second) == 1
    half = torch.cat([first[:16], second[:16]])
    assert total_variation(first, half) == 0.5


# ------------------------------------------------------------------------------------------------------ initialisation


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    wm = WorldModel.from_size("5m", obs_dim=24, action_dim=6)
    last = ("reward_head.2.weight", "q_heads.layers.2.weight", "target_q_heads.layers.2.weight")
    for name, p in wm.named_parameters():
        if name.endswith(("ln.weight", "ln_weight")):
            assert (p == 1).all(), name
        elif name.endswith("weight") and name not in last:
            assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean()) < 1e-3, name
        else:
            assert (p == 0).all(), name
    heads = wm.q_heads.layers[0].weight
    assert not torch.equal(heads[0], heads[1])  # an ensemble of equal heads would be one head
    for live, target in zip(wm.q_heads.parameters(), wm.target_q_heads.parameters(), strict=True):
        assert torch.equal(live, target) and live.data_ptr() != target.data_ptr()
    z = wm.encode(torch.randn(7, 24))
    close(wm.reward(z, torch.rand(7, 6)), torch.zeros(7))
    close(wm.q(z, torch.rand(7, 6)), torch.zeros(5, 7))


@pytest.mark.parametrize("size, millions", [("1m", 1), ("5m", 5), ("19m", 19), ("48m", 48), ("317m", 317)])
def test_sizes_have_about_as_many_parameters_as_their_names_say(size, millions):
    with torch.device("meta"):
        wm = WorldModel.from_size(size, obs_dim=39, action_dim=6)
    count = sum(p.numel() for name, p in wm.named_parameters() if not name.startswith("target")) / 1e6
    assert count == pytest.approx(millions, rel=0.25), count
    assert wm.config.enc_dim == MODEL_SIZES[size]["enc_dim"]


def test_unknown_sizes_are_refused():
    with pytest.raises(ConfigError, match="size='2m' is not known; use one of: 1m, 5m"):
        WorldModel.from_size("2m", 3, 1)


# ------------------------------------------------------------------------------------------------------------ networks


def slow_head(layers, k, x):
    """Head k of an ensemble as an MLP of its own, from torch's functions."""
    *hidden, last = layers
    for layer in hidden:
        x = F.layer_norm(F.linear(x, layer.weight[k], layer.bias[k]), (layer.bias.shape[1],))
        x = F.mish(x * layer.ln_weight[k] + layer.ln_bias[k])
    return F.linear(x, last.weight[k], last.bias[k])


def slow_mlp(layers, x, simplex=False):
    *hidden, last = layers
    for layer in hidden:
        x = F.mish(slow_norm(layer, F.linear(x, layer.weight, layer.bias)))
    x = F.linear(x, last.weight, last.bias)
    return slow_norm(last, x).unflatten(-1, (-1, 8)).softmax(-1).flatten(-2) if simplex else x


def slow_norm(layer, x):
    return F.layer_norm(x, (layer.out_features,), layer.ln.weight, layer.ln.bias)


def test_networks_equal_slow_twins():
    wm = small()
    obs, a = torch.randn(9, 5), 2 * torch.rand(9, 3) - 1
    z = wm.encode(obs)
    close(z, slow_mlp(wm.encoder, obs, simplex=True))
    za = torch.cat([z, a], -1)
    close(wm.next(z, a), slow_mlp(wm.dynamics, za, simplex=True))
    close(wm.reward_logits(z, a), slow_mlp(wm.reward_head, za), atol=1e-5)
    for target, heads in ((False, wm.q_heads), (True, wm.target_q_heads)):
        slow = torch.stack([slow_head(heads.layers, k, za) for k in range(4)])
        close(wm.q_logits(z, a, target=target), slow, atol=1e-5)
    mean, raw = slow_mlp(wm.pi, z).chunk(2, -1)
    close(wm.policy(z)[0], mean.tanh())
    close(wm.policy(z)[1], -10 + 6 * (raw.tanh() + 1), atol=1e-5)
    noise = torch.randn(9, 3)
    close(wm.policy_sample(z, noise), (mean + noise * wm.policy(z)[1].exp()).tanh())


def test_leading_dimensions_are_kept():
    wm = small()
    z, a = wm.encode(torch.randn(2, 3, 4, 5)), torch.rand(2, 3, 4, 3)
    assert z.shape == wm.next(z, a).shape == (2, 3, 4, 16)
    assert wm.reward(z, a).shape == (2, 3, 4) and wm.q(z, a).shape == (4, 2, 3, 4)
    assert wm.policy(z)[0].shape == wm.policy(z)[1].shape == (2, 3, 4, 3)
    close(wm.q(z, a)[:, 1, 2, 3], wm.q(z[1, 2, 3:], a[1, 2, 3:])[:, 0], atol=1e-5)
    close(z.unflatten(-1, (2, 8)).sum(-1), torch.ones(2, 3, 4, 2))


@pytest.mark.parametrize("target", [False, True])
def test_a_subset_of_heads_is_the_full_ensemble_indexed(target):
    wm = small()
    z, a = wm.encode(torch.randn(6, 5)), torch.rand(6, 3)
    for heads in ([1, 3], [3, 1], [2]):
        index = torch.tensor(heads)
        close(wm.q(z, a, target=target, heads=index), wm.q(z, a, target=target)[index], atol=1e-5)


def test_inputs_of_another_width_are_refused():
    wm = small()
    with pytest.raises(ValueError, match=r"takes observations 5 wide, got one of shape \(2, 4\)"):
        wm.encode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="takes actions 3 wide"):
        wm.q(torch.zeros(2, 16), torch.zeros(2, 6))


# ------------------------------------------------------------------------------------------------------------ ensemble


def test_the_ensemble_is_registered():
    wm = small()
    names = {n for n, _ in wm.named_parameters()}
    for prefix in ("q_heads", "target_q_heads"):
        wanted = {f"{prefix}.layers.{i}.{n}" for i in range(3) for n in ("weight", "bias")}
        assert wanted <= names and wanted <= set(wm.state_dict())
    assert all(p.requires_grad == (not n.startswith("target")) for n, p in wm.named_parameters())
    wm = wm.to(torch.float64)
    assert {p.dtype for n, p in wm.named_parameters() if "q_heads" in n} == {torch.float64}
    wm = wm.to("meta")
    assert wm.q_heads.layers[0].weight.device.type == wm.device.type == "meta"


def test_the_target_is_a_polyak_average_of_the_live_heads():
    wm = small(perturb=0.0)
    start = [p.clone() for p in wm.target_q_heads.parameters()]
    with torch.no_grad():  # the live heads move after construction; the target must follow *them*
        for p in wm.q_heads.parameters():
            p.add_(torch.randn_like(p))
    live = copy.deepcopy(list(wm.q_heads.parameters()))
    for _ in range(7):
        wm.update_target(0.1)
    targets, heads = wm.target_q_heads.parameters(), wm.q_heads.parameters()
    for before, now, goal, unchanged in zip(start, targets, live, heads, strict=True):
        close(now, goal + (before - goal) * 0.9**7, atol=1e-5)
        assert torch.equal(goal, unchanged)


def test_dropout_acts_in_training_on_the_first_q_layer_only():
    wm = small(q_dropout=0.5)
    assert [layer.dropout for layer in wm.q_heads.layers] == [0.5, 0.0, 0.0]
    z, a = torch.rand(64, 16), torch.rand(64, 3)
    quiet, target = wm.q(z, a), wm.q(z, a, target=True)
    wm.train()
    assert not torch.equal(wm.q(z, a), wm.q(z, a)) and not torch.equal(wm.q(z, a), quiet)
    assert torch.equal(wm.q(z, a, target=True), target) and not wm.target_q_heads.layers[0].training
    for part in (wm.next, wm.reward):
        assert torch.equal(part(z, a), part(z, a))
    wm.eval()
    assert torch.equal(wm.q(z, a), quiet)


def test_dropout_comes_before_the_norm():
    torch.manual_seed(0)
    layer = EnsembleLinear(1, 8, 400, dropout=0.5).train()
    torch.nn.init.normal_(layer.weight)
    out = layer(torch.randn(1, 8))
    # Dropped units are zero before the norm, so that they all come out as mish of one normalised value, not as zero.
    values, counts = out.detach().round(decimals=5).flatten().unique(return_counts=True)
    assert 150 < counts.max() < 250 and abs(values[counts.argmax()]) > 1e-4


def test_log_std_limits_hold():
    wm = small(log_std_min=-3.0, log_std_max=1.0, perturb=3.0)
    log_std = wm.policy(torch.rand(500, 16))[1]
    assert log_std.min() >= -3 and log_std.max() <= 1 and log_std.min() < -2 and log_std.max() > 0


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(3, 997, 101)  # not a multiple of four elements
    y = dropout(x, 0.01)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / x.numel()) ** 0.5)
    assert y.max().item() == pytest.approx(1 / 0.99, rel=1e-4) and y.mean().item() == pytest.approx(1, abs=1e-3)
    neighbours = ((y == 0).flatten()[:-1] & (y == 0).flatten()[1:]).float().mean().item()
    assert neighbours == pytest.approx(1e-4, abs=6e-5)  # the bits of one word are independent
    assert not torch.equal(dropout(x, 0.01), y)
    assert (dropout(x, 0.5) == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    x.requires_grad_()
    torch.manual_seed(0)
    dropout(x, 0.01).sum().backward()
    torch.testing.assert_close(x.grad, y)


@pytest.mark.parametrize("shape", [(16,), (3, 1, 16)])
def test_layer_norm_equals_torchs(shape, monkeypatch):
    x, weight, bias = torch.randn(3, 5, 16) * 4 + 2, torch.randn(shape), torch.randn(shape)
    expected = F.layer_norm(x, (16,)) * weight + bias
    torch.testing.assert_close(layer_norm(x, weight, bias), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layer_norm(x, weight, bias), expected)
