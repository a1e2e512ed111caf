"""The distillation set: bookkeeping of its rows, what is recorded, and where the labels come from."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ACTIONS, BUDGET, LATENT, fresh_env, latents, tiny_model

from lib import collection
from lib.collection import DistillationError, DistillationSet, collect
from lib.correctors import TwoTowerCorrector
from lib.planner import MPPI, shift

SEEDS = [11, 12, 13]


def random_set(n=40, episodes=4, twice=13, seed=0):
    """Row i is marked: its label is i in both dimensions, the second solve of it i + 0.5."""
    g = torch.Generator().manual_seed(seed)
    mark = torch.arange(n, dtype=torch.float32)[:, None].expand(n, ACTIONS).contiguous()
    again = torch.randperm(n, generator=g)[:twice].sort().values
    return DistillationSet(
        z_real=latents(n, seed + 1),
        z_pred=latents(n, seed + 2),
        a_plan=torch.rand(n, ACTIONS, generator=g),
        a_policy=torch.rand(n, ACTIONS, generator=g),
        a_teacher=mark,
        depth=torch.randint(1, 3, (n,), generator=g),
        mismatch=torch.rand(n, generator=g),
        episode=torch.arange(n) % episodes,
        decision=torch.arange(n),
        again_index=again,
        a_again=mark[again] + 0.5,
    )


def assert_consistent(data):
    """Every second solve still belongs to the row that was solved twice."""
    assert data.again_index.shape == (len(data.a_again),) and (data.again_index < len(data)).all()
    assert torch.equal(data.a_again, data.a_teacher[data.again_index] + 0.5)
    assert all(len(v) == len(data) for k, v in vars(data).items() if "again" not in k)


# ---------------------------------------------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize("seed", range(20))
def test_choosing_rows_keeps_second_solves_with_their_rows(seed):
    data = random_set(seed=seed)
    keep = torch.rand(len(data), generator=torch.Generator().manual_seed(seed)) < seed / 19
    part = data.rows(keep)
    assert_consistent(part)
    kept = keep.nonzero().flatten()
    assert torch.equal(part.a_teacher[:, 0].long(), kept) and torch.equal(part.z_real, data.z_real[kept])
    assert set(part.a_again[:, 0].int().tolist()) == set(data.again_index.tolist()) & set(kept.tolist())


def test_joining_keeps_second_solves_with_their_rows():
    parts = [random_set(n, twice=m, seed=n) for n, m in ((40, 13), (7, 0), (9, 9))]
    whole = DistillationSet.joined(parts)
    assert_consistent(whole)
    assert len(whole) == 56 and len(whole.again_index) == 22
    assert torch.equal(whole.mismatch, torch.cat([p.mismatch for p in parts]))
    back = whole.rows(torch.arange(56) >= 47)  # the last part
    assert all(torch.equal(getattr(back, k), getattr(parts[2], k)) for k in vars(back))


@pytest.mark.parametrize("least", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("most", [0, 1, 3, 7, 1000])
def test_filtering_by_mismatch_and_number(least, most):
    data = random_set(n=50)
    part = data.filtered(least, most)
    assert_consistent(part)
    able = int((data.mismatch >= least).sum())
    assert len(part) == (min(able, most) if most else able) and part.mismatch.min() >= least
    if most and able > most > 1:  # spread over the whole collection, not its beginning
        allowed = (data.mismatch >= least).nonzero().flatten()
        assert part.decision[0] == allowed[0] and part.decision[-1] == allowed[-1]


def test_filtering_everything_away_is_an_error():
    with pytest.raises(DistillationError, match="no state has a mismatch of 2; the largest is 0.9"):
        random_set().filtered(2)


def test_the_floor_is_half_the_mean_squared_difference():
    data = random_set()
    assert data.floor_mse() == pytest.approx(0.5 * 0.5**2)
    data.again_index, data.a_again = torch.tensor([3, 5]), torch.tensor([[3.0, 5.0], [5.0, 4.0]])
    assert data.floor_mse() == pytest.approx(0.5 * (0 + 4 + 0 + 1) / 4)
    assert np.isnan(data.rows(data.a_teacher[:, 0] > 10).floor_mse())


def test_the_floor_is_what_knowing_the_mean_label_would_cost():
    g = torch.Generator().manual_seed(0)
    data = random_set(20_000, twice=20_000)
    data.a_teacher, data.a_again = (0.2 * torch.randn(20_000, ACTIONS, generator=g) for _ in range(2))
    assert data.floor_mse() == pytest.approx(data.a_teacher.square().mean().item(), rel=0.03)


def test_a_saved_set_comes_back(tmp_path):
    data = random_set()
    data.save(tmp_path / "d.safetensors")
    back = DistillationSet.load(tmp_path / "d.safetensors")
    assert all(torch.equal(getattr(back, k), getattr(data, k)) for k in vars(data))


@pytest.mark.parametrize("how", ["cut short", "gone", "column gone", "column more", "empty", "nan", "short column"])
def test_an_unusable_set_is_refused_with_one_sentence(tmp_path, how):
    path, data = tmp_path / "d.safetensors", random_set()
    data.save(path)
    tensors = load_file(path)
    match how:
        case "cut short":
            path.write_bytes(path.read_bytes()[:-100])
        case "gone":
            path.unlink()
        case "column gone":
            save_file({k: v for k, v in tensors.items() if k != "depth"}, path)
        case "column more":
            save_file(tensors | {"reward": tensors["mismatch"] + 1}, path)
        case "empty":
            data.rows(data.depth > 99).save(path)
        case "nan":
            tensors["a_plan"][3, 0] = torch.nan
            save_file(tensors, path)
        case "short column":
            save_file(tensors | {"a_plan": tensors["a_plan"][:-1]}, path)
    with pytest.raises(DistillationError) as error:
        DistillationSet.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- collecting


class NotingPlanner(MPPI):
    """MPPI that notes every call, the states of the random streams before it, and the plan."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def __call__(self, z, warm_start=None, generator=None, noise=None):
        states = [g.get_state() for g in generator]
        plan = super().__call__(z, warm_start, generator, noise)
        self.calls.append((z, warm_start, states, plan))
        return plan


@pytest.fixture
def env(monkeypatch):
    made = fresh_env()
    monkeypatch.setattr(collection, "make_env", made)
    return made


def gather(horizon=3, decisions=10, **options):
    planner = NotingPlanner(tiny_model(), BUDGET)
    return collect(planner, "tiny", SEEDS, horizon, decisions=decisions, **options), planner


def random_corrector():
    torch.manual_seed(0)
    made = TwoTowerCorrector(LATENT, ACTIONS)
    torch.nn.init.normal_(made.update_head.weight, std=0.2)
    return made.eval()


@pytest.mark.parametrize("horizon", [2, 3, 5])
def test_every_state_between_two_plans_is_recorded(env, horizon):
    data, planner = gather(horizon)
    expected = [(t, t % horizon, s) for t in range(10) if t % horizon for s in SEEDS]
    assert list(zip(data.decision.tolist(), data.depth.tolist(), data.episode.tolist(), strict=True)) == expected
    assert (data.mismatch > 0).all() and (data.mismatch <= 1).all() and data.a_teacher.abs().max() <= 1
    torch.testing.assert_close(data.a_policy, planner.wm.policy(data.z_real)[0])
    assert [s for s, _ in env.starts] == SEEDS


def test_labels_are_what_a_replan_would_have_done(env):
    data, planner = gather(decisions=8, beta=0.0)
    recorded = 0
    for z, warm, states, plan in planner.calls:
        at = torch.isin(data.z_real, z).all(1).nonzero().flatten()  # empty for a replan
        if not len(at):
            last = plan
            continue
        assert torch.equal(data.z_real[at], z)
        assert torch.equal(warm, shift(last.mean, data.depth[at]))
        streams = [torch.Generator() for _ in states]
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)
        label = MPPI(planner.wm, BUDGET)(z, warm, streams).actions[:, 0]  # num_q = 2: both heads are always drawn
        torch.testing.assert_close(label, plan.actions[:, 0])
        first = torch.equal(data.a_teacher[at], plan.actions[:, 0])
        again = torch.isin(data.again_index, at)
        assert first or torch.equal(data.a_again[again], plan.actions[:, 0])
        recorded += first
    assert recorded == 5  # decisions 1, 2, 4, 5, 7


def test_second_solves_are_independent_and_their_share_is_kept(env):
    data, planner = gather(2, decisions=80)
    share = len(data.again_index) / len(data)
    assert 0.1 < share < 0.45 and 0 < data.floor_mse() < 1
    assert planner.solves == len(SEEDS) * (40 + 40) + len(data.again_index)
    assert ((data.a_teacher[data.again_index] - data.a_again).abs().amax(1) > 0).all()


def test_labels_do_not_share_noise_with_the_plans(env):
    _, planner = gather(2, decisions=2)
    (_, _, planning, _), (_, _, labelling, _) = planner.calls[:2]
    fresh = [torch.Generator().manual_seed(s).get_state() for s in SEEDS]
    assert all(torch.equal(p, f) for p, f in zip(planning, fresh, strict=True))
    assert not any(torch.equal(a, b) for a in labelling for b in fresh)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("corrected", [False, True])
def test_beta_says_who_acts(env, beta, corrected):
    corrector = random_corrector() if corrected else None
    data, _ = gather(corrector=corrector, beta=beta)
    executed = {(seed, decision): action for seed, decision, action in env.steps}
    done = torch.tensor(
        np.array([executed[k] for k in zip(data.episode.tolist(), data.decision.tolist(), strict=True)])
    )
    own = corrector(data.z_real, data.z_pred, data.a_plan, data.depth) if corrected else data.a_plan
    torch.testing.assert_close(done, data.a_teacher if beta else own, rtol=0, atol=1e-5)
    assert (data.a_teacher - own).abs().amax(1).min() > 1e-4  # the two differ everywhere


def test_the_prediction_follows_the_label_that_was_executed(env):
    data, planner = gather(beta=1.0)
    deep = data.depth == 2
    before = data.rows(data.depth == 1)
    later = data.rows(deep & (data.decision < 9))
    followed = planner.wm.next(before.z_pred, before.a_teacher)[: len(later)]
    torch.testing.assert_close(later.z_pred, followed)


def test_an_episode_that_ends_leaves_the_others_as_they_are(env):
    whole, _ = gather(beta=0.0)
    env.ends[12] = 5
    data, _ = gather(beta=0.0)
    assert data.decision[data.episode == 12].max() == 4 and data.decision[data.episode == 13].max() == 8
    for seed in (11, 13):
        a, b = data.rows(data.episode == seed), whole.rows(whole.episode == seed)
        torch.testing.assert_close(a.z_real, b.z_real, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.a_teacher, b.a_teacher, rtol=0, atol=1e-3)
    env.ends |= {11: 4, 13: 5}
    assert gather()[0].decision.max() == 4


def test_seeds_are_honoured(env):
    (a, _), (b, _) = gather(), gather()
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in vars(a))


def test_replanning_at_every_step_leaves_nothing_to_collect(env):
    with pytest.raises(DistillationError, match="nothing to collect: 10 decisions with execution horizon 1"):
        gather(1)
