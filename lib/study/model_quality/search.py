"""Planners that take either a learned model or the simulator, and differ in nothing else.

    oracle = Oracle("cartpole-swingup")
    true = SearchPlanner(oracle.scored, by_score(oracle.scored, oracle), SHOOTING)
    learned = SearchPlanner(oracle.scored, by_score(oracle.scored, Learned(wm, oracle.scored, decoder)), SHOOTING)
    rows = play_oracle(oracle, true, seeds, decisions=500)     # one per episode

Random shooting and the cross-entropy method choose among the task's action set; a sequence is as good as the best state
that it leads to. A state's score is the task's own (`by_score`, which needs a decoder for the learned model), or the
value that the world model's heads give its latent (`by_value`, which needs none). MPPI is TD-MPC2's own planner: with
an oracle, its reward, Q and policy heads are given the encoded true states. Each episode has random streams of its own,
so both kinds of model see the same random numbers. Symbols: S states, N sequences, H decisions, A action dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.config import PlannerConfig
from lib.planner import MPPI
from lib.study.model_quality.oracle import Oracle, Scored, State
from lib.world_model import WorldModel

Judge = Callable[[list[State], np.ndarray], np.ndarray]  # states, actions (S, N, H, A) → how good (S, N)


# ---------------------------------------------------------------------------------------------------- the two models


def encode(wm: WorldModel, scored: Scored, features: np.ndarray) -> Tensor:
    """Latents (…, L) of what is seen, features (…, F)."""
    return wm.encode(torch.from_numpy(features[..., : scored.obs_dim].astype(np.float32)).to(wm.device))


class Learned:
    """What a world model predicts: latents, and through `decoder`, latents (…, L) → features (…, F), what is seen."""

    def __init__(self, wm: WorldModel, scored: Scored, decoder: Callable[[Tensor], Tensor] | None = None):
        self.wm, self.scored, self.decoder = wm, scored, decoder

    @torch.no_grad()
    def latents(self, states: list[State], actions: np.ndarray) -> Tensor:
        """Predicted latents (S, N, H, L) after each decision of actions (S, N, H, A)."""
        a = torch.from_numpy(actions.astype(np.float32)).to(self.wm.device)
        z = encode(self.wm, self.scored, np.stack([s.features for s in states]))
        z, path = z.unsqueeze(1).expand(-1, a.shape[1], -1), []
        for t in range(a.shape[2]):
            z = self.wm.next(z, a[:, :, t])
            path.append(z)
        return torch.stack(path, 2)

    @torch.no_grad()
    def imagine(self, states: list[State], actions: np.ndarray) -> np.ndarray:
        """Predicted features (S, N, H, F), as `Oracle.imagine` has the true ones."""
        return self.decoder(self.latents(states, actions)).double().cpu().numpy()


class Encoded:
    """What the simulator does, as the world model's encoder sees it."""

    def __init__(self, wm: WorldModel, oracle: Oracle):
        self.wm, self.oracle = wm, oracle

    @torch.no_grad()
    def latents(self, states: list[State], actions: np.ndarray) -> Tensor:
        """True latents (S, N, H, L) after each decision of actions (S, N, H, A)."""
        return encode(self.wm, self.oracle.scored, self.oracle.imagine(states, actions))


@torch.no_grad()
def value(wm: WorldModel, z: Tensor) -> Tensor:
    """The model's value of latents (…, L): the mean of its Q heads at the prior's action (…)."""
    return wm.q(z, wm.policy(z)[0]).mean(0)


def by_score(scored: Scored, model: Oracle | Learned) -> Judge:
    """Sequences by the best task score among the states that `model` sees ahead."""
    return lambda states, actions: scored.score(model.imagine(states, actions)).max(-1)


def by_value(wm: WorldModel, model: Learned | Encoded) -> Judge:
    """Sequences by the best value among the latents that `model` sees ahead.

    The value stands in for the score: a reward head would not do, as reacher's reward is 0 nearly everywhere.
    """
    return lambda states, actions: value(wm, model.latents(states, actions)).amax(-1).double().cpu().numpy()


# -------------------------------------------------------------------------------------------------------- planners


@dataclass(frozen=True)
class Search:
    """Random shooting (one iteration), or the cross-entropy method over independent choices at each decision."""

    samples: int = 50
    horizon: int = 15
    iterations: int = 1
    elites: int = 6


SHOOTING, CEM = Search(), Search(samples=24, iterations=3)


def streams(seeds: list[int]) -> list[np.random.Generator]:
    """A random stream for each episode."""
    return [np.random.default_rng(seed) for seed in seeds]


def draw(rngs: list[np.random.Generator], chance: np.ndarray, samples: int) -> np.ndarray:
    """Indices (S, N, H) into the action set, drawn with chances (S, H, n), each row from its own stream."""
    uniform = np.stack([rng.random((samples, chance.shape[1])) for rng in rngs])
    return (uniform[..., None] >= chance.cumsum(-1)[:, None, :, :-1]).sum(-1)


def even(states: int, horizon: int, actions: int) -> np.ndarray:
    """The same chance for every action, (S, H, n)."""
    return np.full((states, horizon, actions), 1 / actions)


class SearchPlanner:
    """Plans at every decision from scratch and executes the first action of the best sequence that it has tried.

    The cross-entropy method draws each decision's action from the choices of the elites, and one elite more that is
    spread over all actions, so that no action is ever ruled out.
    """

    def __init__(self, scored: Scored, judge: Judge, search: Search):
        self.actions, self.judge, self.search, self._streams = scored.actions, judge, search, []

    def reset(self, seeds: list[int]) -> None:
        """Start an episode for each seed."""
        self._streams = streams(seeds)

    def __call__(self, states: list[State]) -> np.ndarray:
        """Actions (S, A) for the episodes' states."""
        c, count, rows = self.search, len(self.actions), np.arange(len(states))
        chance = even(len(states), c.horizon, count)
        best, chosen = np.full(len(states), -np.inf), np.zeros(len(states), int)
        for _ in range(c.iterations):
            picks = draw(self._streams, chance, c.samples)  # (S, N, H)
            worth = self.judge(states, self.actions[picks])
            order = np.argsort(-worth, axis=1, kind="stable")
            better = worth[rows, order[:, 0]] > best
            best = np.where(better, worth[rows, order[:, 0]], best)
            chosen = np.where(better, picks[rows, order[:, 0], 0], chosen)
            elites = picks[rows[:, None], order[:, : c.elites]]  # (S, E, H)
            times = (elites[..., None] == np.arange(count)).sum(1)  # (S, H, n)
            chance = (times + 1 / count) / (elites.shape[1] + 1)
        return self.actions[chosen]


class MppiPlanner:
    """TD-MPC2's planner, at every decision, warm-started; in the latent space, or with the simulator's own dynamics."""

    def __init__(self, wm: WorldModel, scored: Scored, config: PlannerConfig, oracle: Oracle | None = None):
        self.wm, self.scored = wm, scored
        self._true = OracleNetworks(wm, oracle) if oracle else None
        # The simulator can be neither compiled nor captured.
        self.mppi = MPPI(wm, dataclasses.replace(config, mode="eager") if oracle else config, self._true)

    def reset(self, seeds: list[int]) -> None:
        """Start an episode for each seed."""
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._warm, self._decision = None, 0

    def __call__(self, states: list[State]) -> np.ndarray:
        """Actions (S, A) for the episodes' states."""
        if self._true:
            self._true.begin(states)
        with torch.no_grad():
            z = encode(self.wm, self.scored, np.stack([s.features for s in states]))
        self.mppi.reset_streams(self._decision)  # both models draw the same Q heads
        plan = self.mppi(z, self._warm, self._generators)
        self._warm, self._decision = plan.shifted(1), self._decision + 1
        return plan.actions[:, 0].double().cpu().numpy()


class OracleNetworks:
    """A planner's networks (see `lib.planning_networks`) with the simulator in place of the latent dynamics.

    Behind each latent stands the number of the simulator's state that it encodes; the states are kept in a table. Each
    decision starts the constraint solver cold, so states agree with stepping to the solver's tolerance, not to the bit.
    """

    def __init__(self, wm: WorldModel, oracle: Oracle):
        self.wm, self.oracle = wm, oracle

    def begin(self, states: list[State]) -> None:
        """The states that the rows of the next solve start from."""
        self._table = self.oracle.physics_of(states)  # (states so far, P)
        self._geometry = np.stack([s.geometry for s in states])

    def refresh(self) -> None:
        """Nothing is packed."""

    def enter(self, z: Tensor) -> Tensor:
        """Latents (S, L) with the numbers of their states behind, (S, L + 1)."""
        return torch.cat([z, torch.arange(len(z), device=z.device, dtype=z.dtype).unsqueeze(1)], 1)

    def leave(self, z: Tensor) -> Tensor:
        """The inverse of `enter`."""
        return z[..., :-1]

    def step(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The head's reward (S, N) of actions a (S, N, A) at z (S, N or 1, L + 1), and where they truly lead."""
        z = z.expand(-1, a.shape[1], -1)
        before = self._table[z[..., -1].long().flatten().cpu().numpy()]
        after, sensors = self.oracle.advance(before, None, a.flatten(0, 1).unsqueeze(1).double().cpu().numpy())
        features = self.oracle.features(after[:, 0], sensors[:, 0], self._geometry.repeat(a.shape[1], axis=0))
        number = torch.arange(len(self._table), len(self._table) + len(after), device=z.device, dtype=z.dtype)
        self._table = np.concatenate([self._table, after[:, 0]])
        latent = encode(self.wm, self.oracle.scored, features)
        reached = torch.cat([latent, number.unsqueeze(1)], 1).view(*a.shape[:-1], -1)
        return self.wm.reward(self.leave(z), a), reached

    def ends(self, z: Tensor) -> Tensor | None:
        """Where the model's termination head has the episode end at z (S, N, L + 1) -> (S, N); None without one."""
        return self.wm.termination_logit(self.leave(z)) > 0 if self.wm.config.episodic else None

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before squashing and log standard deviation of the prior, both (S, N, A)."""
        return self.wm.policy_parameters(self.leave(z))

    def q(self, z: Tensor, a: Tensor, heads: Tensor | None) -> Tensor:
        """Mean over the Q heads (k,), None for all, of the value of actions a (S, N, A) -> (S, N)."""
        return self.wm.q(self.leave(z), a, heads=heads).mean(0)


# -------------------------------------------------------------------------------------------------------- episodes


@dataclass
class Decisions:
    """One decision of S episodes: the states before and after, the actions (S, A), the frames' rewards (S, 2)."""

    before: list[State]
    actions: np.ndarray
    rewards: np.ndarray
    after: list[State]


def walk(oracle: Oracle, planner, seeds: list[int], decisions: int, what: str = "") -> Iterator[Decisions]:
    """An episode for each seed, decision by decision, in one simulator that goes from state to state.

    `planner` has `reset(seeds)` and gives actions (S, A) for a list of states.
    """
    planner.reset(seeds)
    states = [oracle.reset(seed) for seed in seeds]
    for _ in tqdm(range(decisions), desc=what, unit="decision", disable=not what, mininterval=2):
        actions, rewards, after = planner(states), [], []
        for state, action in zip(states, actions, strict=True):
            oracle.set(state)
            rewards.append(oracle.step(action))
            after.append(oracle.save())
        yield Decisions(states, actions, np.array(rewards), after)
        states = after


def play_oracle(oracle: Oracle, planner, seeds: list[int], decisions: int, what: str = "") -> list[dict]:
    """One row per episode: `episode_seed`, whether it is `excluded` as its start is a success already, and else whether
    it was a `success`, the frame of its first touch (`touched`, None if never), and its `return`, the mean reward of
    all frames, between 0 and 1."""
    least, excluded = oracle.scored.success, set()
    for seed in seeds:
        oracle.reset(seed)
        if oracle.reward() >= least:
            excluded.add(seed)
    played = [seed for seed in seeds if seed not in excluded]
    steps = [step.rewards for step in walk(oracle, planner, played, decisions, what)] if played else []
    rewards = dict(zip(played, np.concatenate(steps, 1), strict=True)) if played else {}  # of each episode, (frames,)
    rows = []
    for seed in seeds:
        row = {"episode_seed": seed, "excluded": seed in excluded, "success": None, "touched": None, "return": None}
        if seed in rewards:
            hits = np.flatnonzero(rewards[seed] >= least)
            row |= {"success": bool(len(hits)), "touched": int(hits[0]) if len(hits) else None}
            row["return"] = float(rewards[seed].mean())
        rows.append(row)
    return rows
