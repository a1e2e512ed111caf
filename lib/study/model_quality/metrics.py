"""Offline metrics of a world model, M1–M5: does it predict well, and does it rank well what a planner chooses from?

    seen = visit(oracle, RandomActions(oracle), seeds, 500)
    decoder = fit_decoder(wm, oracle.scored, seen[:-1], held_out=seen[-1:], steps=4000)
    row = model_metrics(wm, oracle, decoder, {"random": bank(seen, 150, k=10)}, candidates=150)

From states of a bank the simulator and the model are given the same actions:

M1 one-step error: ‖predicted − true successor‖₂, mean over the task's action set
M2 open-loop error after k steps of the actions that were executed, in the same norm
M3 action ranking: Kendall's τ_b between the scores of the true and of the predicted successor of each action
M4 candidate ranking: τ_b between true and predicted scores of the sequences that random shooting draws
M5 regret: how much less the sequence that the model chooses is worth than the best, in units of best − mean

M1 and M2 are what training minimises, M3 to M5 what a planner feels. A world model has no decoder, so one is fitted
after the fact and its held-out error reported; the names that end in `_latent` need none: errors between latents, and
the model's own value of them in place of the score. Symbols: S states, N sequences, H decisions, F features, L latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib.config import ConfigError
from lib.study.model_quality.oracle import Oracle, Scored, State
from lib.study.model_quality.search import SHOOTING, Learned, Search, draw, encode, even, streams, value, walk
from lib.study.stats.ranks import kendall
from lib.world_model import WorldModel, mlp

CHUNK = 16  # states whose sequences are looked at together
DECODER_WIDTH, DECODER_BATCH, DECODER_RATE = 256, 256, 1e-3


# ----------------------------------------------------------------------------------------------------- state banks


class RandomActions:
    """Uniform actions in [−1, 1], each episode from a stream of its own."""

    def __init__(self, oracle: Oracle):
        self.action_dim, self._streams = oracle.action_dim, []

    def reset(self, seeds: list[int]) -> None:
        self._streams = streams(seeds)

    def __call__(self, states: list[State]) -> np.ndarray:
        return np.stack([rng.uniform(-1, 1, self.action_dim) for rng in self._streams])


@dataclass
class Visited:
    """An episode in the simulator: states (T + 1), actions (T, A), rewards (T,) per decision."""

    states: list[State]
    actions: np.ndarray
    rewards: np.ndarray


def visit(oracle: Oracle, planner, seeds: list[int], decisions: int, what: str = "") -> list[Visited]:
    """An episode for each seed, as `planner` acts."""
    steps = list(walk(oracle, planner, seeds, decisions, what))
    return [
        Visited(
            [step.before[i] for step in steps] + [steps[-1].after[i]],
            np.stack([step.actions[i] for step in steps]),
            np.array([step.rewards[i].sum() for step in steps]),
        )
        for i in range(len(seeds))
    ]


@dataclass
class Bank:
    """S states, the k actions (S, k, A) that were executed from each, the features (S, k, F) after each of these, and
    the reward (S,) of the first."""

    states: list[State]
    actions: np.ndarray
    features: np.ndarray
    rewards: np.ndarray


def bank(episodes: list[Visited], count: int, k: int, seed: int = 0) -> Bank:
    """`count` different states of these episodes that have k decisions ahead, drawn with a seed.

    Raises `ConfigError` when there are fewer.
    """
    places = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode.actions) - k + 1)]
    if len(places) < count:
        raise ConfigError(
            f"states={count} cannot be drawn from {len(episodes)} episodes, which have {len(places)} states with "
            f"k={k} decisions ahead; ask for fewer states or a smaller k."
        )
    chosen = [places[i] for i in np.random.default_rng(seed).choice(len(places), count, replace=False)]
    return Bank(
        [episodes[e].states[t] for e, t in chosen],
        np.stack([episodes[e].actions[t : t + k] for e, t in chosen]),
        np.stack([[s.features for s in episodes[e].states[t + 1 : t + k + 1]] for e, t in chosen]),
        np.array([episodes[e].rewards[t] for e, t in chosen]),
    )


# --------------------------------------------------------------------------------------------------------- decoder


class Decoder(nn.Module):
    """From latents (…, L) to features (…, F), fitted after the fact. `error` is what it misses on held-out episodes:
    root mean square, in standard deviations of the features."""

    def __init__(self, latent_dim: int, features: int):
        super().__init__()
        self.net = mlp([latent_dim, DECODER_WIDTH, DECODER_WIDTH, features])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.zeros(features))
        self.register_buffer("error", torch.tensor(math.nan))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) * self.std + self.mean


def fit_decoder(
    wm: WorldModel, scored: Scored, episodes: list[Visited], held_out: list[Visited], steps: int, seed: int = 0
) -> Decoder:
    """Fit a decoder to encoded states of `episodes` by Adam on squared standardised errors; seeded."""

    def pairs(visited: list[Visited]) -> tuple[Tensor, Tensor]:
        features = np.stack([s.features for episode in visited for s in episode.states])
        with torch.no_grad():
            z = encode(wm, scored, features)
        return z, torch.from_numpy(features).float().to(wm.device)

    (z, features), (other_z, others) = pairs(episodes), pairs(held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(z.shape[-1], features.shape[-1]).to(wm.device)
    decoder.mean.copy_(features.mean(0))
    decoder.std.copy_(_scale(features.std(0)))
    optimiser = torch.optim.Adam(decoder.net.parameters(), DECODER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(z), (DECODER_BATCH,), generator=generator).to(wm.device)
        loss = ((decoder(z[rows]) - features[rows]) / decoder.std).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    decoder.eval().requires_grad_(False)
    decoder.error.copy_(((decoder(other_z) - others) / decoder.std).square().mean().sqrt())
    return decoder


def _scale(std):
    """Standard deviations to divide by: 1 for what does not vary."""
    where = torch.where if isinstance(std, Tensor) else np.where
    return where(std > 1e-6, std, 1.0)


# ------------------------------------------------------------------------------------------------------------ M1–M5


def l2(true, predicted, scale=1.0) -> np.ndarray:
    """‖predicted − true‖₂ over the last axis, each of its entries in units of `scale`. (…, F), (…, F) → (…)."""
    return np.linalg.norm((np.asarray(predicted) - np.asarray(true)) / scale, axis=-1)


def ranking(true, predicted) -> np.ndarray:
    """Kendall's τ_b of each state's scores (S, N), (S, N) → (S,); nan where they are constant on either side."""
    return kendall(true, predicted)


def regret(true, predicted) -> np.ndarray:
    """(best − chosen) / (best − mean) of the true scores, where the largest predicted score is chosen.

    (S, N), (S, N) → (S,): 0 for the best choice, 1 for one as good as chance; nan where all true scores are equal.
    """
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)
    best, mean = true.max(-1), true.mean(-1)
    chosen = np.take_along_axis(true, predicted.argmax(-1)[:, None], -1)[:, 0]
    varied = true.min(-1) < best
    return np.where(varied, (best - chosen) / np.where(varied, best - mean, 1), math.nan)


def model_metrics(
    wm: WorldModel,
    oracle: Oracle,
    decoder,
    banks: dict[str, Bank],
    candidates: int,
    actions_per_state: int = 0,
    search: Search = SHOOTING,
    seed: int = 0,
    model=None,
) -> dict:
    """One row of metrics of a world model: m1…m5 over the states of all banks, with a bank's name behind over its own.

    Beside them: `m1_z`, `m2_z` in standard deviations of the features in the first bank (the random one, which is the
    same for all cells of a task, so that the unit is), the `_latent` variants, `reward_error` (mean absolute error of
    the first executed action's reward) and `value_error` (of the value after k predicted steps, against the value of
    the true latent), and how many states were `_skipped` by M3 to M5 as a side was constant there. M4 and M5 use the
    first `candidates` states of a bank, M3 the first `actions_per_state` actions (0: all). `model` is the learned
    model, `Learned(wm, …, decoder)` unless it is given.
    """
    model = model or Learned(wm, oracle.scored, decoder)
    first = next(iter(banks.values())).features
    scale = _scale(first.reshape(-1, first.shape[-1]).std(0))
    values, row = {}, {}
    for name, one in banks.items():
        values[name] = _of_bank(wm, oracle, model, one, scale, candidates, actions_per_state, search, seed)
    for metric in next(iter(values.values())):
        parts = [v[metric] for v in values.values()]
        for suffix, part in [("", np.concatenate(parts)), *((f"_{name}", v[metric]) for name, v in values.items())]:
            known = ~np.isnan(part)
            row[metric + suffix] = float(part[known].mean()) if known.any() else None
            if metric[:2] in ("m3", "m4", "m5"):
                row[f"{metric}{suffix}_skipped"] = int((~known).sum())
    return row


@torch.no_grad()
def _of_bank(wm, oracle, model, one: Bank, scale, candidates: int, actions_per_state: int, search: Search, seed: int):
    """Every metric for each state of a bank, name → (S,)."""
    scored, found = oracle.scored, {}
    actions = scored.actions[: actions_per_state or None]
    singles = np.broadcast_to(actions[None, :, None], (len(one.states), len(actions), 1, actions.shape[1]))
    for start in range(0, len(one.states), CHUNK):
        rows = slice(start, start + CHUNK)
        true, predicted, z, z_predicted = _both(wm, oracle, model, one.states[rows], singles[rows])
        _add(found, "m1", l2(true, predicted).mean((1, 2)))
        _add(found, "m1_z", l2(true, predicted, scale).mean((1, 2)))
        _add(found, "m1_latent", (z_predicted - z).norm(dim=-1).mean((1, 2)).double().cpu().numpy())
        _add(found, "m3", ranking(scored.score(true)[..., 0], scored.score(predicted)[..., 0]))
        worth = [value(wm, x[:, :, 0]).double().cpu().numpy() for x in (z, z_predicted)]
        _add(found, "m3_latent", ranking(*worth))
    z_predicted = model.latents(one.states, one.actions[:, None])[:, 0, -1]
    z = encode(wm, scored, one.features[:, -1])
    after = model.imagine(one.states, one.actions[:, None])[:, 0, -1]
    found["m2"], found["m2_z"] = (l2(one.features[:, -1], after, s) for s in (1.0, scale))
    found["m2_latent"] = (z_predicted - z).norm(dim=-1).double().cpu().numpy()
    found["value_error"] = (value(wm, z_predicted) - value(wm, z)).abs().double().cpu().numpy()
    first = torch.from_numpy(one.actions[:, 0].astype(np.float32)).to(wm.device)
    here = encode(wm, scored, np.stack([s.features for s in one.states]))
    found["reward_error"] = np.abs(wm.reward(here, first).double().cpu().numpy() - one.rewards)
    states = one.states[:candidates]
    chance = even(len(states), search.horizon, len(scored.actions))
    picks = draw([np.random.default_rng([seed, i]) for i in range(len(states))], chance, search.samples)
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        true, predicted, z, z_predicted = _both(wm, oracle, model, states[rows], scored.actions[picks[rows]])
        scores = [scored.score(x).max(-1) for x in (true, predicted)]
        worth = [value(wm, x).amax(-1).double().cpu().numpy() for x in (z, z_predicted)]
        for suffix, pair in (("", scores), ("_latent", worth)):
            _add(found, f"m4{suffix}", ranking(*pair))
            _add(found, f"m5{suffix}", regret(*pair))
    return found


def _add(found: dict, name: str, values: np.ndarray) -> None:
    found[name] = np.concatenate([found.get(name, np.empty(0)), values])


def _both(wm, oracle, model, states, actions):
    """True and predicted features (S, N, H, F), and true and predicted latents (S, N, H, L)."""
    true = oracle.imagine(states, actions)
    return true, model.imagine(states, actions), encode(wm, oracle.scored, true), model.latents(states, actions)
