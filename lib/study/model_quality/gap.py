"""The Counterfactual Planning Gap: what a planner gains when it may look into the simulator rather than its model.

    matched = Matched("shooting", SHOOTING)
    true = episodes(matched, oracle, seeds, 500)
    mine = episodes(matched, oracle, seeds, 500, learned=LearnedModel(wm, decoder, key))
    row = gap(true, mine)                    # cpg, its intervals, McNemar's p, a verdict, and returns beside it

CPG is the success rate with the oracle minus that with the learned model: same planner, score, budget, start states and
random numbers. A large gap says that the model is what limits the planner; none, with poor success on both sides, that
the planner is. Episodes are kept in blocks, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import bdtr, ndtri
from torch import nn

from lib.config import ConfigError, PlannerConfig
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import name_of
from lib.records.store import cached, write_json
from lib.study.model_quality.oracle import Oracle
from lib.study.model_quality.search import (
    Encoded,
    Learned,
    MppiPlanner,
    Search,
    SearchPlanner,
    by_score,
    by_value,
    play_oracle,
)
from lib.study.stats.intervals import bootstrap_ci, paired_difference
from lib.world_model import WorldModel

BLOCK = 4  # episodes that run together and are kept together
NEVER, ALWAYS = 0.05, 0.95  # success rates that count as none and as all
BOTTLENECK, OUTPERFORMS = "MODEL BOTTLENECK", "LEARNED OUTPERFORMS"
PLANNER, AS_GOOD, OPEN = "PLANNER BOTTLENECK", "AS GOOD AS ORACLE", "INCONCLUSIVE"


# -------------------------------------------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class LearnedModel:
    """A world model, its decoder, and what stands for both in keys."""

    wm: WorldModel
    decoder: nn.Module
    key: str


@dataclass(frozen=True)
class Matched:
    """A planner that is given to both models: a search over the task's action set, or MPPI.

    A search scores states as the task does, or `by_value` of the model's own heads, which needs no decoder; MPPI always
    uses the heads. Where heads score, the oracle's episodes too are those of one world model.
    """

    name: str
    search: Search | None = None
    mppi: PlannerConfig | None = None
    by_value: bool = False

    @property
    def uses_heads(self) -> bool:
        return self.by_value or self.mppi is not None

    def planner(self, oracle: Oracle, learned: LearnedModel | None, true: bool):
        """The planner with the simulator (`true`), or with the learned model."""
        if learned is None and (self.uses_heads or not true):
            raise ConfigError(f"planner {self.name} needs a world model here; give a learned model.")
        scored = oracle.scored
        if self.mppi:
            return MppiPlanner(learned.wm, scored, self.mppi, oracle if true else None)
        if self.by_value:
            model = Encoded(learned.wm, oracle) if true else Learned(learned.wm, scored)
            return SearchPlanner(scored, by_value(learned.wm, model), self.search)
        model = oracle if true else Learned(learned.wm, scored, learned.decoder)
        return SearchPlanner(scored, by_score(scored, model), self.search)


def episodes(
    matched: Matched,
    oracle: Oracle,
    seeds: list[int],
    decisions: int,
    learned: LearnedModel | None = None,
    true: bool = False,
    what: str = "",
) -> list[dict]:
    """What `play_oracle` says of each seed, with the learned model, or with the simulator where `true` is set or
    there is no learned model. Kept under `data/cache/offline/`."""
    true = true or learned is None
    whose = rest_of(learned.key) if learned and (matched.uses_heads or not true) else None
    planner, rows = None, []
    for first in range(0, len(seeds), BLOCK):
        block = seeds[first : first + BLOCK]
        key = key_of(
            [play_oracle, Oracle, Matched, WorldModel], oracle.task, _settings(matched), true, whose, block, decisions
        )
        path = paths.CACHE / "offline" / f"{oracle.task}-{matched.name}-{name_of(key)}.json"
        label = f"{what or oracle.task} {matched.name} with {'the simulator' if true else 'the model'}"
        bar = f"{label} {first + len(block)}/{len(seeds)}"

        def make(file: Path, block=block, bar=bar) -> None:
            nonlocal planner
            planner = planner or matched.planner(oracle, learned, true)
            write_json(file, play_oracle(oracle, planner, block, decisions, bar))

        rows += json.loads(cached(path, key, make, f"{len(block)} episodes of {label}").read_text(encoding="utf-8"))
    return rows


def _settings(matched: Matched) -> list:
    """All that a planner's choices depend on; `mode` is only how they are computed."""
    budget = matched.mppi and {k: v for k, v in vars(matched.mppi).items() if k != "mode"}
    return [matched.search, budget, matched.by_value]


# ------------------------------------------------------------------------------------------------------ statistics


def agresti_caffo(successes: int, n: int, others: int, m: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two probabilities, from `successes` of n and `others` of m.

    Wald's with one success and one failure more on each side (Agresti and Caffo 2000), which is good from few episodes
    on; that they are pairs is not made use of.
    """
    p, q = (successes + 1) / (n + 2), (others + 1) / (m + 2)
    half = float(ndtri((1 + level) / 2)) * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    return max(p - q - half, -1.0), min(p - q + half, 1.0)


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided p of McNemar's test, for the numbers of pairs in which only one or only the other succeeded."""
    return min(1.0, 2 * float(bdtr(min(one, other), one + other, 0.5))) if one + other else 1.0


def verdict(low: float, high: float, oracle_rate: float, learned_rate: float) -> str:
    """What an interval of the gap and the two success rates say, the first that holds."""
    if low > 0:
        return BOTTLENECK
    if high < 0:
        return OUTPERFORMS
    if max(oracle_rate, learned_rate) <= NEVER:
        return PLANNER
    if min(oracle_rate, learned_rate) >= ALWAYS:
        return AS_GOOD
    return OPEN


def _mean(x, axis: int):
    return x.mean(axis)


def gap(true: list[dict], learned: list[dict], level: float = 0.95) -> dict:
    """CPG from the rows of `play_oracle` with the oracle and with the learned model, for the same seeds.

    `cpg_low`…`cpg_high` is Agresti and Caffo's interval, which the verdict goes by: it has a width also where all
    episodes agree. `paired_low`…`paired_high` is the bootstrap over pairs, `p_mcnemar` the exact test. `return_gap` is
    the same difference of mean rewards per frame, between −1 and 1, with its paired bootstrap. `episodes` does not
    count the `excluded` ones, which succeed at their start; with none left there is no gap.
    """
    if [row["episode_seed"] for row in true] != [row["episode_seed"] for row in learned]:
        raise ConfigError("the oracle and the model were not played from the same start states; play the missing ones.")
    pairs = [(a, b) for a, b in zip(true, learned, strict=True) if not a["excluded"]]
    row = {"episodes": len(pairs), "excluded": len(true) - len(pairs), "verdict": OPEN}
    if not pairs:
        return row
    won, kept = (np.array([[p[key] for p in pair] for pair in pairs], float).T for key in ("success", "return"))
    n, (first, second) = len(pairs), won.sum(1).astype(int).tolist()
    row |= {"oracle_success": first / n, "learned_success": second / n, "cpg": (first - second) / n}
    row["cpg_low"], row["cpg_high"] = agresti_caffo(first, n, second, n, level)
    # Percentiles: many resamples of a few zeros and ones have no spread, which the studentised interval cannot use.
    row["paired_low"], row["paired_high"] = bootstrap_ci(won[0] - won[1], _mean, level)
    row["p_mcnemar"] = mcnemar(int((won[0] > won[1]).sum()), int((won[0] < won[1]).sum()))
    row["verdict"] = verdict(row["cpg_low"], row["cpg_high"], first / n, second / n)
    row |= {"oracle_return": float(kept[0].mean()), "learned_return": float(kept[1].mean())}
    names = ("return_gap", "return_gap_low", "return_gap_high")
    return row | dict(zip(names, paired_difference(*kept, level=level), strict=True))
