"""Correctors start as the identity, stay in bounds, read what they should and no more."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from lib.config import ConfigError
from lib.correctors import (
    CORRECTORS,
    MAX_DEPTH,
    PublishedCorrector,
    StateCorrector,
    TemporalCorrector,
    Trusted,
    TwoTowerCorrector,
    appended,
    masked,
    token,
)
from lib.planner import MPPI
from lib.speculation import SpeculativeController
from tests.tiny import ACTIONS, BUDGET, LATENT, latents, tiny_model

K = 3
TOKEN = LATENT + ACTIONS + 1
every_arch = pytest.mark.parametrize("arch", CORRECTORS)
# The published one keeps none of these promises: it does not start as the plan, has no dropout, and reaches not all.
every_arch_of_ours = pytest.mark.parametrize("arch", [arch for arch in CORRECTORS if arch != "published"])
NAMES = ("z_real", "z_pred", "a_plan", "a_policy", "depth", "history")
READS = {"two_tower": NAMES[:-1], "temporal": NAMES, "state": NAMES[:1]}  # for what it adds to its start
STARTS = {"two_tower": 2, "temporal": 2, "state": 3}  # the input that is the action it starts from


def inputs(batch=64, seed=0):
    """Latents, actions with some at their bounds, depths 1…6, and a history that is full of old tokens."""
    g = torch.Generator().manual_seed(seed)
    a_plan, a_policy = (3 * torch.randn(2, batch, ACTIONS, generator=g)).clamp(-1, 1)
    z_real, z_pred = latents(batch, seed + 1), latents(batch, seed + 2)
    depth = torch.randint(1, 7, (batch,), generator=g)
    old = [token(latents(batch, seed + 3 + k), z_pred, a_plan, depth) for k in range(K - 1)]
    history = torch.stack([*old, token(z_real, z_pred, a_plan, depth)], 1)
    return z_real, z_pred, a_plan, a_policy, depth, history


def steady(made):
    """The corrector without dropout."""
    for module in made.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.p = module.dropout = 0.0
    return made


def fresh(arch="two_tower", seed=0, **sizes):
    """An untrained corrector."""
    torch.manual_seed(seed)
    shape = {"latent_dim": LATENT, "action_dim": ACTIONS, "width": 12}
    shape |= {"history_len": K} if arch == "temporal" else {}
    return CORRECTORS[arch](**shape | sizes).eval()


def corrector(arch="two_tower", seed=0, scale=1.0, **sizes):
    """A corrector that is random in every layer."""
    made = fresh(arch, seed, **sizes)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * torch.randn_like(p))
    return made


# ---------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("seed", range(3))
@every_arch_of_ours
def test_an_untrained_corrector_executes_what_it_starts_from_exactly(arch, seed):
    given = inputs(seed=seed)
    assert torch.equal(fresh(arch, seed)(*given), given[STARTS[arch]])


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@every_arch_of_ours
def test_actions_stay_within_their_bounds(arch, scale):
    given, made = inputs(), corrector(arch, scale=scale)
    with torch.no_grad():  # half open: at such scales it would be shut for some seeds
        made.gate_head.weight.zero_(), made.gate_head.bias.zero_()
    action = made(*given)
    assert torch.isfinite(action).all() and action.abs().max() <= 1
    assert (action - given[STARTS[arch]]).abs().max() > 0.5  # it does act


@every_arch_of_ours
def test_any_action_can_be_reached_from_any_other(arch):
    made, given = corrector(arch), list(inputs())
    with torch.no_grad():
        for head, bias in ((made.update_head, -50.0), (made.gate_head, 50.0)):
            head.weight.zero_(), head.bias.fill_(bias)
    given[2] = given[3] = torch.ones_like(given[2])
    assert torch.equal(made(*given), -given[2])


@pytest.mark.parametrize("name", NAMES)
@every_arch_of_ours
def test_a_corrector_reads_what_it_should_and_nothing_else(arch, name):
    given, other = list(inputs()), list(inputs(seed=10))
    given[4], other[4] = torch.full_like(given[4], K), torch.full_like(given[4], K + 1)  # all of the history counts
    for actions in (2, 3):
        given[actions], other[actions] = 0.1 * given[actions], 0.1 * other[actions]
    made, which, start = corrector(arch), NAMES.index(name), STARTS[arch]
    with torch.no_grad():
        made.update_head.weight.mul_(0.05), made.update_head.bias.zero_()  # far from the bounds, where nothing shows
        before = made(*given) - given[start]
        given[which] = other[which]
        moved = (made(*given) - given[start] - before).abs().max()
    assert moved > 1e-3 if name in READS[arch] else moved < 1e-6


def test_the_state_corrector_makes_the_plan_irrelevant():
    made, given = corrector("state"), inputs()
    other = [torch.rand_like(x.float()) for x in given]
    assert torch.equal(made(*given), made(given[0], other[1], other[2], given[3], other[4], None))


@pytest.mark.parametrize("seed", range(3))
@every_arch_of_ours
def test_it_can_overfit_a_tiny_set(arch, seed):
    """Also where a plan lies at its bound: a clamp without gradient gets stuck there (error 0.1)."""
    given, target = inputs(8, seed), 1.8 * torch.rand(8, ACTIONS) - 0.9
    made = steady(fresh(arch, seed, width=96).train())
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(150):
        loss = (made(*given) - target).square().mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert (made.eval()(*given) - target).square().mean() < 1e-3


# ------------------------------------------------------------------------------------------------------- history


def test_a_token_is_what_a_hand_computes():
    made = token(torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.5]), torch.tensor([0.7]), torch.tensor(3))
    assert torch.allclose(made, torch.tensor([2.5, -2.5, 0.7, 3 / MAX_DEPTH]))
    z = torch.rand(2, 5, LATENT)
    assert token(z, z, torch.rand(2, 5, ACTIONS), torch.ones(2, 5, dtype=torch.int64)).shape == (2, 5, TOKEN)


def test_appended_drops_the_oldest():
    history = torch.arange(12.0).view(2, 3, 2)
    expected = [[[2, 3], [4, 5], [-1, -1]], [[8, 9], [10, 11], [-1, -1]]]
    assert appended(history, -torch.ones(2, 2)).tolist() == expected


@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_masked_keeps_the_tokens_of_this_plan(length):
    """The slow twin: entry by entry, from the definition."""
    depth = torch.arange(-1, 9)
    history = torch.randn(len(depth), length, TOKEN)
    history[::3, length // 2, -1] = 0  # a state that was not recorded
    kept, padding = masked(history, depth)
    for b, k in enumerate(depth.tolist()):
        for i in range(length):
            valid = length - i <= min(k, length) and history[b, i, -1] != 0
            assert padding[b, i] == (not valid)
            assert torch.equal(kept[b, i], history[b, i] if valid else torch.zeros(TOKEN))


@pytest.mark.parametrize("junk", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("depth", range(K + 2))
def test_leftovers_of_an_older_plan_cannot_matter(depth, junk):
    made, given = corrector("temporal"), list(inputs())
    given[4] = torch.full_like(given[4], depth)
    before = made(*given)
    stale = max(K - depth, 0)
    given[5][:, :stale] = junk
    assert torch.equal(made(*given), before) and torch.isfinite(before).all()
    if depth:
        given[5][:, stale] += 1.0
        assert not torch.allclose(made(*given), before, atol=1e-3)  # the oldest token that counts does count


def test_padding_is_as_if_it_were_not_there():
    """A history of two tokens in a corrector of four: the same as in one that only ever had two."""
    long, given = corrector("temporal", history_len=4), list(inputs())
    short = corrector("temporal", history_len=2)
    weights = long.state_dict()
    weights["age"] = weights["age"][2:]
    short.load_state_dict(weights)
    given[4] = torch.full_like(given[4], 2)
    two = given[5][:, 1:]
    padded = torch.cat([torch.full_like(two, 9.0), two], 1)
    assert torch.allclose(long(*given[:5], padded), short(*given[:5], two), atol=1e-5)


def test_tokens_are_told_apart_by_their_age():
    made, given = corrector("temporal"), list(inputs())
    given[4] = torch.full_like(given[4], K)
    given[5][..., -1] = 0.5  # the depths do not tell
    assert (made(*given[:5], given[5].flip(1)) - made(*given)).abs().max() > 1e-3


@every_arch
def test_rows_do_not_matter_to_each_other(arch):
    made, given = corrector(arch, scale=0.3), inputs()
    one_by_one = torch.cat([made(*(x[b : b + 1] for x in given)) for b in range(len(given[0]))])
    assert torch.allclose(made(*given), one_by_one, atol=1e-5)


@every_arch_of_ours
def test_training_and_acting_compute_the_same(arch):
    """In eval mode without gradients torch has a kernel of its own for most Transformers."""
    made, given = corrector(arch), inputs()
    with torch.no_grad():
        acting = made(*given)
    assert torch.allclose(acting, steady(made.train())(*given), atol=1e-5)


@every_arch_of_ours
def test_dropout_acts_in_training_alone(arch):
    made, given = corrector(arch), inputs()
    assert torch.equal(made(*given), made(*given))
    assert not torch.equal(made.train()(*given), made(*given))


@every_arch
def test_a_corrector_is_one_graph_for_all_batches(arch):
    torch._dynamo.reset()
    made, counter = corrector(arch, scale=0.3).requires_grad_(False), CompileCounter()  # an eager backend
    compiled = torch.compile(made, fullgraph=True, backend=counter, dynamic=True)
    for batch in (5, 7, 23):  # none is another size too: equal sizes are taken to be one
        given = inputs(batch, seed=batch)
        with torch.no_grad():
            assert torch.allclose(compiled(*given), made(*given), atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("sizes", [{"width": 10}, {"history_len": 0}])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ConfigError, match="width that 3 divides and a history_len of at least 1"):
        fresh("temporal", **sizes)


def test_only_the_temporal_corrector_reads_a_history():
    assert [TwoTowerCorrector(8, 1).history_len, StateCorrector(8, 1).history_len] == [0, 0]
    assert TemporalCorrector(8, 1).history_len == 4 and fresh("temporal").history_len == K


# ------------------------------------------------------------------------------------------ published, and trusted


def test_the_published_corrector_against_its_formula_row_by_row():
    made, given = corrector("published", scale=0.3), inputs()
    w = made.state_dict()

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def layers(name, x):
        hidden = linear(f"{name}.0", x)
        return linear(f"{name}.2", hidden * hidden.sigmoid())

    action, raw = made(*given), made.train()(*given)
    for row in range(0, len(given[0]), 7):
        z_real, z_pred, a_plan = (x[row] for x in given[:3])
        read = (z_real, z_pred, z_real - z_pred, a_plan)
        features = [layers(f"towers.{number}", x) for number, x in enumerate(read)]
        gate = layers("gate", torch.cat(features)).sigmoid()
        fused = gate * layers("update", torch.cat(features)) + (1 - gate) * features[3]
        wanted = a_plan + linear("head", fused).tanh()
        torch.testing.assert_close(raw[row], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(action[row], wanted.clamp(-1, 1), rtol=0, atol=1e-5)
    assert raw.abs().max() > 1.2 and action.abs().max() == 1  # the clamp is for acting alone
    other = [torch.rand_like(x.float()) for x in given[3:]]
    assert torch.equal(
        made(*given[:3], *other), raw
    )  # neither the prior's action, nor the depth, nor a history is read


def test_the_published_corrector_is_as_large_as_it_was_published():
    sizes = PublishedCorrector(512, 21)
    assert sum(p.numel() for p in sizes.parameters()) == pytest.approx(1.32e6, rel=0.01) and sizes.width == 256


@pytest.mark.parametrize("arch", ["two_tower", "temporal"])
@pytest.mark.parametrize("trust", [(), (0.0, 1.0), (0.3, 0.0, 0.9), (1.0,) * (MAX_DEPTH + 3)])
def test_a_corrector_is_trusted_as_far_as_its_depth_says(arch, trust):
    made, given = corrector(arch), list(inputs())
    given[4] = torch.arange(64) % (MAX_DEPTH + 1)
    trusted = Trusted(made, trust)
    assert (trusted.latent_dim, trusted.action_dim, trusted.history_len) == (LATENT, ACTIONS, made.history_len)
    action, whole = trusted(*given), made(*given)
    for row, depth in enumerate(given[4].tolist()):
        share = 0.0 if depth == 0 or not trust else trust[min(depth, len(trust)) - 1]
        wanted = given[2][row] + share * (whole[row] - given[2][row])
        if share in (0, 1):
            assert torch.equal(action[row], whole[row] if share else given[2][row])
        torch.testing.assert_close(action[row], wanted)
    assert not torch.allclose(whole, given[2], atol=1e-2)


@pytest.mark.parametrize("sizes", [{"latent_dim": LATENT + 8}, {"action_dim": ACTIONS + 1}])
@every_arch
def test_a_corrector_of_another_size_is_refused(arch, sizes):
    with pytest.raises(ConfigError, match="train one for this teacher"):
        SpeculativeController(MPPI(tiny_model(), BUDGET), corrector(arch, **sizes))
