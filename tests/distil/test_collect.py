"""Collecting: every column against a slow twin, labels against the planners' own calls, who acts, and who is left."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.correctors import TwoTowerCorrector
from lib.distil import collect as collection
from lib.distil.collect import collect
from lib.distil.states import COLUMNS, DistillationError
from lib.planner import MPPI, PlannerConfig, shift
from lib.world_model import total_variation
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, streams, tiny_model

SEEDS = [11, 12, 13]
SMALL = PlannerConfig.budget(8, 1, mode="eager")


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
def env():
    return fresh_env()


def gather(env, horizon=3, decisions=10, budget=BUDGET, labelling=BUDGET, **options):
    """The set, and the planner and the labeller that made it."""
    wm = tiny_model()
    planner, labeller = NotingPlanner(wm, budget), NotingPlanner(wm, labelling)
    return collect(planner, labeller, env, SEEDS, horizon, decisions=decisions, **options), planner, labeller


def random_corrector():
    torch.manual_seed(0)
    made = TwoTowerCorrector(LATENT, ACTIONS)
    torch.nn.init.normal_(made.update_head.weight, std=0.2)
    return made.eval()


# ---------------------------------------------------------------------------------------------------- every column


def slow_rows(env, wm, budget, horizon, decisions, corrector, beta, source):
    """The same rollouts one episode at a time, without a controller: (decision, seed) -> the columns of that row."""
    coin, again, teach = np.random.default_rng(SEEDS[0]), {}, {}
    for t in range(decisions):
        if t % horizon:
            again[t] = coin.random() < collection.FLOOR_SHARE
            teach[t] = coin.random(len(SEEDS)) < beta
    rows = {}
    for i, seed in enumerate(SEEDS):
        planner, labeller = MPPI(wm, budget), MPPI(wm, BUDGET)
        planning, labelling = streams(seed), streams(seed + 2**31)
        world = env("tiny")
        obs, mean = world.reset(seed=seed)[0], torch.zeros(1, budget.horizon, ACTIONS)
        for t in range(decisions):
            z, k = wm.encode(torch.from_numpy(obs)[None]), t % horizon
            if k == 0:
                solved = planner(z, shift(mean, horizon), planning)
                plan, mean, z_pred, executed = solved.actions, solved.mean, z, solved.actions[:, 0]
            else:
                z_pred = wm.next(z_pred, executed)
                a_plan = plan[:, k] if k < plan.shape[1] else wm.policy(z_pred)[0]
                a_policy, depth = wm.policy(z)[0], torch.tensor([k])
                executed = a_plan if corrector is None else corrector(z, z_pred, a_plan, a_policy, depth)
                label = labeller(z, shift(mean, k), labelling).actions
                second = labeller(z, shift(mean, k), labelling).actions[:, 0] if again[t] else None
                executed = label[:, 0] if teach[t][i] else executed
                rows[t, seed] = dict(
                    z_real=z, z_pred=z_pred, a_plan=a_plan, a_policy=a_policy, a_teacher=label[:, 0], plan=plan,
                    teacher_plan=label, depth=depth, mismatch=total_variation(z, z_pred, 8), a_again=second,
                    episode=torch.tensor([seed]), decision=torch.tensor([t]), source=torch.tensor([source]),
                )  # fmt: skip
            obs = world.step(executed[0].numpy())[0]
    return [rows[key] for key in sorted(rows)]  # by decision, then by episode: the order of a collection in lockstep


@pytest.mark.parametrize("horizon", [2, 3, 5])  # 5: beyond the plan's horizon of 3
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("source", [0, 1])
def test_every_column_is_what_a_slow_twin_finds(env, monkeypatch, horizon, corrected, source):
    monkeypatch.setattr(collection, "FLOOR_SHARE", 0.4)
    budget, corrector = (BUDGET, SMALL)[source], random_corrector() if corrected else None
    data, planner, _ = gather(env, horizon, 11, budget, corrector=corrector, beta=0.3, source=source)
    with torch.no_grad():
        rows = slow_rows(env, planner.wm, budget, horizon, 11, corrector, 0.3, source)
    assert len(data) == len(rows) == len(SEEDS) * sum(t % horizon > 0 for t in range(11))
    for name, column in data.columns().items():
        assert column.dtype == getattr(torch, COLUMNS[name][0])
        if name not in ("again_index", "a_again"):
            tolerance = 0 if column.dtype == torch.int64 else 2e-3 if column.dtype == torch.float16 else 1e-3
            expected = torch.cat([row[name] for row in rows]).to(column.dtype)
            torch.testing.assert_close(column, expected, rtol=0, atol=tolerance)
    twice = [i for i, row in enumerate(rows) if row["a_again"] is not None]
    assert data.again_index.tolist() == twice and 0 < len(twice) < len(data)
    torch.testing.assert_close(data.a_again, torch.cat([rows[i]["a_again"] for i in twice]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("horizon", [2, 3, 6])
def test_every_state_between_two_plans_is_recorded_in_lockstep(env, horizon):
    data, planner, _ = gather(env, horizon)
    expected = [(t, t % horizon, s) for t in range(10) if t % horizon for s in SEEDS]
    assert list(zip(data.decision.tolist(), data.depth.tolist(), data.episode.tolist(), strict=True)) == expected
    assert (data.mismatch > 0).all() and (data.mismatch <= 1).all() and data.a_teacher.abs().max() <= 1
    assert [s for s, _ in env.starts] == SEEDS
    history = data.history_index(6)
    assert torch.equal((history >= 0).sum(1), data.depth)  # a plan at depth k has k states
    for row, depth in zip(history, data.depth.tolist(), strict=True):
        assert data.depth[row[6 - depth :]].tolist() == list(range(1, depth + 1))
        assert all(torch.equal(p, data.plan[row[-1]]) for p in data.plan[row[6 - depth :]])


# ---------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("budget", [BUDGET, SMALL])
def test_labels_are_what_the_labeller_would_have_replanned(env, budget):
    data, planner, labeller = gather(env, 4, 12, budget, beta=0.0)
    replans, solves, row = list(planner.calls), list(labeller.calls), 0
    assert len(replans) == 3
    while row < len(data):
        at = torch.arange(row, row + len(SEEDS))
        z, warm, states, plan = solves.pop(0)
        assert torch.equal(data.z_real[at], z.half()) and torch.equal(data.teacher_plan[at], plan.actions)
        last = replans[int(data.decision[row]) // 4][-1]
        assert torch.equal(warm, shift(last.mean, data.depth[at])) and torch.equal(data.plan[at], last.actions)
        noise = [torch.Generator() for _ in states]
        for stream, state in zip(noise, states, strict=True):
            stream.set_state(state)
        label = MPPI(labeller.wm, BUDGET)(z, warm, noise).actions  # num_q = 2: both heads are always drawn
        torch.testing.assert_close(label, data.teacher_plan[at])
        assert torch.equal(data.a_teacher[at], data.teacher_plan[at][:, 0])
        if torch.isin(at, data.again_index).any():
            _, warm_again, states_again, plan = solves.pop(0)
            assert torch.equal(data.a_again[torch.isin(data.again_index, at)], plan.actions[:, 0])
            assert torch.equal(warm_again, warm)
            assert not any(torch.equal(a, b) for a, b in zip(states, states_again, strict=True))
        row += len(SEEDS)
    assert not solves


def test_second_solves_are_independent_and_their_share_is_kept(env, monkeypatch):
    data, planner, labeller = gather(env, 2, decisions=400)
    share = len(data.again_index) / len(data)
    assert 0.04 < share < 0.18 and 0 < data.floor_mse() < 1
    assert planner.solves == len(SEEDS) * 200 and labeller.solves == len(data) + len(data.again_index)
    assert ((data.a_teacher[data.again_index] - data.a_again).abs().amax(1) > 0).all()
    monkeypatch.setattr(collection, "FLOOR_SHARE", 0.0)
    assert np.isnan(gather(env, 2)[0].floor_mse())


def test_labels_do_not_share_noise_with_the_plans(env):
    _, planner, labeller = gather(env, 2, decisions=2)
    fresh = [torch.Generator().manual_seed(s).get_state() for s in SEEDS]
    assert all(torch.equal(p, f) for p, f in zip(planner.calls[0][2], fresh, strict=True))
    assert not any(torch.equal(a, b) for a in labeller.calls[0][2] for b in fresh)


# --------------------------------------------------------------------------------------------- who acts, who is left


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("corrected", [False, True])
def test_beta_says_who_acts(env, beta, corrected):
    corrector = random_corrector() if corrected else None
    data, *_ = gather(env, corrector=corrector, beta=beta)
    executed = {(seed, decision): action for seed, decision, action in env.steps}
    labelled = zip(data.episode.tolist(), data.decision.tolist(), strict=True)
    done = torch.tensor(np.array([executed[place] for place in labelled]))
    own = data.a_plan
    if corrected:
        own = corrector(data.z_real.float(), data.z_pred.float(), data.a_plan, data.a_policy, data.depth)
    torch.testing.assert_close(done, data.a_teacher if beta else own, rtol=0, atol=1e-2 if corrected else 1e-5)
    assert (data.a_teacher - own).abs().amax(1).median() > 2e-2  # else it would not matter who acts


def test_an_episode_that_ends_leaves_the_others_as_they_are(env):
    whole, *_ = gather(env, beta=0.0)
    env.ends[12] = 5
    data, *_ = gather(env, beta=0.0)
    assert data.decision[data.episode == 12].max() == 4 and data.decision[data.episode == 13].max() == 8
    for seed in (11, 13):
        a, b = data.rows(data.episode == seed), whole.rows(whole.episode == seed)
        for name, tolerance in dict(z_real=2e-3, a_teacher=1e-3, plan=1e-3, teacher_plan=1e-3, decision=0).items():
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=tolerance)
    env.ends |= {11: 4, 13: 5}
    assert gather(env)[0].decision.max() == 4


def test_a_simulator_that_diverges_ends_its_episode_alone(env):
    """The last state that was seen is kept with its label: it is what came of its action that cannot be used."""
    whole, *_ = gather(env, beta=0.0)
    env.breaks[12] = 5
    data, *_ = gather(env, beta=0.0)
    assert data.decision[data.episode == 12].max() == 4 and data.decision[data.episode == 13].max() == 8
    for seed in SEEDS:
        a = data.rows(data.episode == seed)
        b = whole.rows((whole.episode == seed) & (whole.decision <= a.decision.max()))
        for name, tolerance in dict(z_real=2e-3, a_teacher=1e-3, plan=1e-3, teacher_plan=1e-3, decision=0).items():
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=tolerance)


def test_the_result_does_not_depend_on_what_was_solved_before(env):
    """With more heads than are drawn, the planners' own streams matter too."""
    wm = tiny_model(num_q=5)
    planner, labeller, used = MPPI(wm, SMALL), MPPI(wm, BUDGET), []
    for seeds in ([1, 2], SEEDS, SEEDS):
        used.append(collect(planner, labeller, env, seeds, 3, decisions=8))
    fresh = collect(MPPI(wm, SMALL), MPPI(wm, BUDGET), env, SEEDS, 3, decisions=8)
    for a, b, c in zip(*(d.columns().values() for d in (used[1], used[2], fresh)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labelling": replace(BUDGET, horizon=2)}, "plans 3 steps and the labeller 2"),
        ({"labelling": replace(BUDGET, action_selection="sample")}, 'give a labeller with "mean" selection'),
        ({"horizon": 1}, "execution_horizon=1 leaves no step to label"),
        ({"source": 2}, "source=2 is not a position"),
    ],
)
def test_what_cannot_be_collected_is_a_sentence(env, options, reason):
    with pytest.raises(DistillationError, match=reason):
        gather(env, **options)
    with pytest.raises(DistillationError, match="different world models"):
        collect(MPPI(tiny_model(), BUDGET), MPPI(tiny_model(), BUDGET), env, SEEDS)
