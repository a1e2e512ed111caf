"""Matched planners on a line, where the best action is known, and in the simulator; and the statistics of the gap."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from lib.config import ConfigError, PlannerConfig, WorldModelConfig
from lib.study.model_quality import gap as planning_gap
from lib.study.model_quality import search as searches
from lib.study.model_quality.gap import LearnedModel, Matched, agresti_caffo, episodes, gap, mcnemar, verdict
from lib.study.model_quality.oracle import Oracle, Scored, State
from lib.study.model_quality.search import Search, SearchPlanner, by_score, encode, play_oracle, value
from lib.world_model import WorldModel
from tests.tiny import LatentModel, tiny_model

SMALL = Search(samples=8, horizon=4)
SMALL_CEM = Search(samples=6, horizon=4, iterations=3, elites=2)


# ---------------------------------------------------------------------------------------------- a line, by closed form


class Line:
    """x ← x + a/8; the reward of a frame is x, cut to [0, 1]; a success is x ≥ 0.6. Seed s starts at s/8."""

    task = "line"
    scored = Scored(1, np.array([[-1.0], [0.0], [1.0]]), 0.6, None, lambda features: features[..., 0])

    def __init__(self, drift=1.0):
        self.drift = drift  # −1: a model that has the sign of actions wrong
        self.x = np.zeros(1)

    def reset(self, seed):
        self.x = np.array([seed / 8])
        return self.save()

    def save(self):
        return State(self.x.copy(), np.zeros((0, 6)), self.x.copy())

    def set(self, state):
        self.x = state.integration.copy()

    def reward(self):
        return float(np.clip(self.x[0], 0, 1))

    def step(self, action):
        before, self.x = self.reward(), self.x + self.drift * action / 8
        return np.array([before, self.reward()])

    def imagine(self, states, actions):
        start = np.stack([s.features for s in states])[:, None, None]
        return start + self.drift * actions.cumsum(2) / 8


def on_the_line(model, search):
    return SearchPlanner(Line.scored, by_score(Line.scored, model), search)


@pytest.mark.parametrize("search", [Search(samples=60, horizon=2), Search(samples=20, horizon=2, iterations=3)])
def test_a_search_finds_the_best_action_by_its_model(search):
    oracle = Line()
    for drift, wanted in ((1.0, 1.0), (-1.0, -1.0)):
        steps = list(searches.walk(oracle, on_the_line(Line(drift), search), [0, 2], 3))
        assert all((step.actions == wanted).all() for step in steps)
    assert [s.features[0] for s in steps[-1].after] == [-3 / 8, -1 / 8]  # in the oracle, not in the model


def test_episodes_in_closed_form():
    """From 1/8 the fourth decision reaches 5/8 ≥ 0.6; a start at 5/8 is a success already."""
    rows = play_oracle(Line(), on_the_line(Line(), Search(samples=60, horizon=2)), [1, 5, 0], decisions=5)
    assert rows[1] == {"episode_seed": 5, "excluded": True, "success": None, "touched": None, "return": None}
    assert (rows[0]["success"], rows[0]["touched"]) == (True, 7)  # the second frame of the fourth decision
    path = np.arange(1, 7) / 8  # x before the first decision, …, after the last
    assert rows[0]["return"] == pytest.approx((path[:-1] + path[1:]).mean() / 2)
    assert (rows[2]["success"], rows[2]["touched"]) == (True, 9)
    never = play_oracle(Line(), on_the_line(Line(-1.0), Search(samples=60, horizon=2)), [1, 5], 5)
    assert (never[0]["success"], never[0]["touched"]) == (False, None) and never[1]["excluded"]
    found = gap(rows[:2], never)
    assert (found["episodes"], found["excluded"], found["cpg"]) == (1, 1, 1.0)
    assert found["oracle_return"] > found["learned_return"]
    assert play_oracle(Line(), on_the_line(Line(), SMALL), [5, 6], 2)[1]["excluded"]  # all excluded: nothing is played


WEIGHTS = np.random.default_rng(0).normal(size=8)


def worth(states, actions):
    """Of whole sequences: an arbitrary, smooth function of them that depends on the state."""
    x = np.stack([s.features for s in states])[:, None]
    return np.sin(3 * actions[..., 0] @ WEIGHTS[: actions.shape[2]] + x[..., 0])


def slow_search(state, rng, actions, judge, c):
    """One episode's decision, sequence by sequence."""
    chance = [[1 / len(actions)] * len(actions) for _ in range(c.horizon)]
    best, first = -np.inf, None
    for _ in range(c.iterations):
        uniform, tried = rng.random((c.samples, c.horizon)), []
        for row in uniform:
            picks = []
            for u, p in zip(row, chance, strict=True):
                upto = list(itertools.accumulate(p))
                picks.append(next((i for i in range(len(p) - 1) if u < upto[i]), len(p) - 1))
            score = judge([state], np.array([[actions[picks]]]))[0, 0]
            tried.append((score, picks))
            if score > best:
                best, first = score, picks[0]
        elites = [picks for _, picks in sorted(tried, key=lambda t: -t[0])[: c.elites]]
        for t in range(c.horizon):
            counts = [sum(picks[t] == i for picks in elites) for i in range(len(actions))]
            chance[t] = [(n + 1 / len(actions)) / (len(elites) + 1) for n in counts]
    return actions[first]


@pytest.mark.parametrize("search", [SMALL, SMALL_CEM, Search(samples=5, horizon=8, iterations=4, elites=9)])
def test_searches_agree_with_their_slow_twin(search):
    scored = dataclasses.replace(Line.scored, actions=np.linspace(-1, 1, 7)[:, None])
    planner = SearchPlanner(scored, worth, search)
    seeds = [3, 11, 12]
    planner.reset(seeds)
    twins = [np.random.default_rng(seed) for seed in seeds]
    states = [State(np.zeros(1), np.zeros((0, 6)), x) for x in np.random.default_rng(0).normal(size=(3, 1))]
    for _ in range(3):
        slow = [slow_search(s, rng, scored.actions, worth, search) for s, rng in zip(states, twins, strict=True)]
        np.testing.assert_array_equal(planner(states), slow)


def test_an_episode_does_not_depend_on_its_neighbours():
    alone = play_oracle(Line(), on_the_line(Line(), SMALL), [2], 3)
    assert play_oracle(Line(), on_the_line(Line(), SMALL), [0, 2, 1], 3)[1] == alone[0]


def test_more_iterations_find_more():
    scored = dataclasses.replace(Line.scored, actions=np.linspace(-1, 1, 9)[:, None])

    def judge(states, actions):
        return actions[..., 0].sum(-1)  # best: 1, 1, 1, …

    def reached(search):
        planner = SearchPlanner(scored, judge, search)
        planner.reset(list(range(20)))
        return planner([State(np.zeros(1), np.zeros((0, 6)), np.zeros(1))] * 20).mean()

    assert reached(dataclasses.replace(searches.CEM, horizon=6)) > reached(Search(samples=24, horizon=6)) + 0.1
    assert searches.SHOOTING == Search(50, 15, 1) and searches.CEM == Search(24, 15, 3, 6)  # what the study uses


# ------------------------------------------------------------------------------------------------- in the simulator


def starts(oracle, *seeds):
    states = []
    for seed in seeds:
        oracle.reset(seed)
        oracle.step(np.full(oracle.action_dim, 0.3))
        states.append(oracle.save())
    return states


def test_a_perfect_model_has_no_gap(oracle):
    """A model that steps another simulator, decision by decision: the planner acts as with the oracle, to the bit."""

    class Stepped:
        other = Oracle("cartpole-swingup")

        def imagine(self, states, actions):
            seen = []
            for state, sequences in zip(states, actions, strict=True):
                for sequence in sequences:
                    self.other.set(state)
                    for action in sequence:
                        self.other.step(action)
                        seen.append(self.other.save().features)
            return np.reshape(seen, (*actions.shape[:3], -1))

    rows = []
    for model in (oracle, Stepped()):
        planner = SearchPlanner(oracle.scored, by_score(oracle.scored, model), SMALL_CEM)
        rows.append(play_oracle(oracle, planner, [0, 1], 4))
    assert rows[0] == rows[1] and rows[0][0]["return"] > 0
    found = gap(*rows)
    assert (found["cpg"], found["return_gap"], found["p_mcnemar"]) == (0, 0, 1)
    assert found["verdict"] == planning_gap.PLANNER  # nobody swings up in four decisions


def test_what_the_learned_model_sees_is_what_its_networks_say(oracle, wm):
    states = starts(oracle, 1, 2)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 1))
    decoder = torch.nn.Linear(wm.latent_dim, 5)
    model = searches.Learned(wm, oracle.scored, decoder)
    z, seen, judged = model.latents(states, actions), model.imagine(states, actions), searches.by_value(wm, model)
    for i, n in itertools.product(range(2), range(3)):
        latent = wm.encode(torch.tensor(states[i].features[:5], dtype=torch.float32))
        values = []
        for t in range(4):
            latent = wm.next(latent, torch.tensor(actions[i, n, t], dtype=torch.float32))
            torch.testing.assert_close(z[i, n, t], latent)
            np.testing.assert_allclose(seen[i, n, t], decoder(latent).detach().numpy(), atol=1e-5)
            values.append(wm.q(latent[None], wm.policy(latent[None])[0]).mean().item())
        assert judged(states, actions)[i, n] == pytest.approx(max(values), rel=1e-4)
    true = searches.Encoded(wm, oracle).latents(states, actions)
    torch.testing.assert_close(true, encode(wm, oracle.scored, oracle.imagine(states, actions)))
    assert value(wm, true).shape == (2, 3, 4)


def test_mppi_with_the_oracle_steps_the_simulator_and_asks_the_heads(oracle, wm):
    states = starts(oracle, 1, 2)
    networks = searches.OracleNetworks(wm, oracle)
    networks.begin(states)
    obs = torch.tensor(np.stack([s.features for s in states]), dtype=torch.float32)
    z = networks.enter(wm.encode(obs)).unsqueeze(1)
    actions = 2 * torch.rand(2, 2, 3, 1, generator=torch.Generator().manual_seed(0)) - 1  # (B, H, N, A)
    rewards = []
    for t in range(2):
        reward, z = networks.step(z, actions[:, t])
        rewards.append(reward)
    for i, n in itertools.product(range(2), range(3)):
        oracle.set(states[i])
        for t in range(2):
            latent = encode(wm, oracle.scored, oracle.save().features)
            assert rewards[t][i, n].item() == pytest.approx(wm.reward(latent, actions[i, t, n]).item(), abs=1e-5)
            oracle.step(actions[i, t, n].numpy())
        torch.testing.assert_close(
            networks.leave(z)[i, n], encode(wm, oracle.scored, oracle.save().features), atol=1e-6, rtol=1e-5
        )
    mean, log_std = networks.policy(z)
    torch.testing.assert_close(mean.tanh(), wm.policy(z[..., :-1])[0])
    torch.testing.assert_close(networks.q(z, mean.tanh(), None), value(wm, z[..., :-1]))
    one = torch.tensor([1, 0])[:1]
    torch.testing.assert_close(networks.q(z, mean.tanh(), one), wm.q(z[..., :-1], mean.tanh(), heads=one).mean(0))


def test_every_planner_plays_with_either_model(oracle, wm, home):
    learned = LearnedModel(wm, torch.nn.Linear(wm.latent_dim, 5), "code-weights")
    for matched in (
        Matched("shooting", SMALL),
        Matched("cem", SMALL_CEM),
        Matched("shooting-latent", SMALL, by_value=True),
        Matched("mppi", mppi=PlannerConfig.budget(16, 2, mode="eager")),
    ):
        given = oracle, [0, 1], 3
        true, mine = (episodes(matched, *given, learned, which) for which in (True, False))
        assert true != mine and all(0 < row["return"] < 0.2 for row in true + mine), matched.name
        assert gap(true, mine)["episodes"] == 2


class Dreamt:
    """An oracle whose simulator is the world model itself; its observations are its latents."""

    def __init__(self, wm):
        self.wm, self.scored = wm, Scored(wm.latent_dim, np.zeros((1, wm.action_dim)), 1, None, None)

    def physics_of(self, states):
        return np.stack([s.features for s in states])

    def advance(self, physics, warm, actions):
        z = torch.from_numpy(physics).float()
        return self.wm.next(z, torch.from_numpy(actions[:, 0]).float()).double().numpy()[:, None], physics[:, None]

    def features(self, physics, sensors, geometry):
        return physics


def test_mppi_plans_the_same_where_the_model_is_perfect():
    torch.manual_seed(0)
    wm = tiny_model(kind=LatentModel)
    z = wm.next(torch.rand(3, 16), torch.zeros(3, 2)).double().numpy()
    states = [State(np.zeros(1), np.zeros((0, 6)), row) for row in z]
    config = PlannerConfig.budget(16, 2, mode="eager")
    oracle = Dreamt(wm)
    true, learned = (searches.MppiPlanner(wm, oracle.scored, config, o) for o in (oracle, None))
    for planner in (true, learned):
        planner.reset([4, 5, 6])
    for _ in range(3):  # warm starts, too
        np.testing.assert_allclose(true(states), learned(states), atol=2e-4)
    learned.reset([4, 5, 7])
    assert not np.allclose(true(states), learned(states), atol=1e-2)


# ------------------------------------------------------------------------------------------------------- statistics


def test_agresti_caffo_by_hand():
    # 7 of 10 and 2 of 10: p = 8/12, q = 3/12, error = √(8/12 · 4/12 / 12 + 3/12 · 9/12 / 12) = 0.184780
    assert agresti_caffo(7, 10, 2, 10) == pytest.approx((0.4166667 - 0.3621623, 0.4166667 + 0.3621623), abs=1e-6)
    # 20 of 20 and 20 of 20: ±1.959964 √(2 · 21/22 · 1/22 / 22)
    assert agresti_caffo(20, 20, 20, 20) == pytest.approx((-0.1230945, 0.1230945), abs=1e-6)
    low, high = agresti_caffo(1, 4, 3, 8, level=0.9)
    assert (-high, -low) == pytest.approx(agresti_caffo(3, 8, 1, 4, level=0.9))
    assert agresti_caffo(1, 1, 0, 1)[1] <= 1


def test_mcnemar_is_the_binomial_test():
    for one, other in itertools.product(range(6), repeat=2):
        exact = stats.binomtest(one, one + other).pvalue if one + other else 1.0
        assert mcnemar(one, other) == pytest.approx(exact)


def test_verdicts_in_their_order():
    assert verdict(0.01, 0.5, 0.04, 0.01) == planning_gap.BOTTLENECK  # before the rates are looked at
    assert verdict(-0.5, -0.01, 1, 1) == planning_gap.OUTPERFORMS
    assert verdict(-0.1, 0.1, 0.05, 0.05) == planning_gap.PLANNER
    assert verdict(-0.1, 0.1, 0.95, 1) == planning_gap.AS_GOOD
    assert verdict(-0.1, 0.1, 0.5, 0.5) == verdict(0, 0.1, 0.05, 0.06) == planning_gap.OPEN


def rows(successes, returns=None, seeds=None, excluded=()):
    returns = returns or [float(s) for s in successes]
    seeds = seeds or range(len(successes))
    return [
        {"episode_seed": e, "excluded": e in excluded, "success": None if e in excluded else bool(s), "return": r}
        for e, s, r in zip(seeds, successes, returns, strict=True)
    ]


def test_a_gap_counts_pairs():
    true, mine = rows([1] * 8 + [0, 1, 1]), rows([1, 1] + [0] * 7 + [1, 0], excluded=())
    found = gap(true, mine)
    assert (found["oracle_success"], found["learned_success"]) == (10 / 11, 3 / 11)
    assert found["cpg"] == pytest.approx(7 / 11) and found["p_mcnemar"] == mcnemar(7, 0)
    assert (found["cpg_low"], found["cpg_high"]) == agresti_caffo(10, 11, 3, 11)
    assert found["verdict"] == planning_gap.BOTTLENECK
    assert found["paired_low"] < found["cpg"] < found["paired_high"] and found["return_gap"] == found["cpg"]
    assert gap(mine, true)["verdict"] == planning_gap.OUTPERFORMS
    few = gap(rows([1] * 8), rows([1] * 7 + [0]))  # one pair of eight differs
    assert few["paired_low"] == 0 and 0.25 <= few["paired_high"] <= 0.5
    left = gap(rows([1] * 11, excluded=[0, 3]), rows([0] * 11, excluded=[0, 3]))
    assert (left["episodes"], left["excluded"], left["cpg"]) == (9, 2, 1.0)


def test_a_gap_of_nothing_and_of_other_starts():
    nothing = rows([None] * 2, [None] * 2, excluded=[0, 1])
    assert gap(nothing, nothing) == {"episodes": 0, "excluded": 2, "verdict": planning_gap.OPEN}
    with pytest.raises(ConfigError, match="not played from the same start states"):
        gap(rows([1, 1]), rows([1, 1], seeds=[0, 2]))


# ----------------------------------------------------------------------------------------------------- kept episodes


@pytest.fixture
def played(home, monkeypatch):
    """The blocks of seeds that are really played."""
    monkeypatch.setattr(planning_gap, "BLOCK", 2)
    blocks = []

    @functools.wraps(play_oracle)  # keys are of the code that it stands for
    def noted(oracle, planner, seeds, decisions, what):
        blocks.append(seeds)
        if 13 in seeds:
            raise KeyboardInterrupt
        return rows([1] * len(seeds), seeds=seeds)

    monkeypatch.setattr(planning_gap, "play_oracle", noted)
    return blocks


def learned_model(key="weights"):
    return LearnedModel(WorldModel(WorldModelConfig(1, 1, 16, 16, 16, 2, 2)), None, f"code-{key}")


def test_episodes_are_kept_by_block_and_only_missing_ones_are_played(played):
    matched, oracle = Matched("shooting", SMALL), Line()
    first = episodes(matched, oracle, [1, 2, 3, 4], 9)
    assert played == [[1, 2], [3, 4]] and [row["episode_seed"] for row in first] == [1, 2, 3, 4]
    with pytest.raises(KeyboardInterrupt):
        episodes(matched, oracle, [1, 2, 3, 4, 5, 6, 13], 9)
    assert episodes(matched, oracle, [1, 2, 3, 4, 5, 6], 9)[:4] == first
    assert played[2:] == [[5, 6], [13]]  # the killed run's finished block is not played again


def test_keys_tell_apart_what_differs_and_nothing_else(played):
    cem, latent = Matched("shooting", SMALL_CEM), Matched("shooting", SMALL, by_value=True)
    matched, mppi = Matched("shooting", SMALL), Matched("mppi", mppi=PlannerConfig.budget(16, 1, mode="eager"))
    runs = [(matched, 9), (matched, 8), (cem, 9), (matched, 9, learned_model()), (matched, 9, learned_model("other"))]
    runs += [(latent, 9, learned_model(key), True) for key in ("weights", "other")] + [(mppi, 9, learned_model())]
    # The oracle's episodes by the task's score are the same for every learned model, and `mode` is not a budget.
    same = [(matched, 9, learned_model("third"), True)]
    same += [(Matched("mppi", mppi=PlannerConfig.budget(16, 1, mode="auto")), 9, learned_model())]
    for given in (runs, runs, same):
        for planner, *others in given:
            episodes(planner, Line(), [1], *others)
        assert len(played) == len(runs)


def test_heads_need_a_model():
    with pytest.raises(ConfigError, match="planner mppi needs a world model"):
        Matched("mppi", mppi=PlannerConfig()).planner(Line(), None, True)
