"""Does planning in bfloat16 cost return? Paired episodes with one planner in both dtypes.

    rows = paired_returns(Cell("walker-walk", "1m", 1), episodes=60, budget=(64, 2))
    print(verdict(rows))

Both start from the same states and draw the same noise, so that only rounding differs at first; what follows from it
differs as episodes of a chaotic system do, which is why many are needed. bfloat16 counts as good enough when the
one-sided 95 % bound of the mean paired difference lies above −1 % of the mean return in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from lib.config import PlannerConfig
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import cached, write_json
from lib.study.arms import Arm, make_controller
from lib.study.cells import Cell
from lib.study.evaluate import BLOCK, arm_key, arm_roots, run_episodes
from lib.study.stats.intervals import paired_difference
from lib.weights.native import load_world_model

DTYPES = ("float32", "bfloat16")
MARGIN = 0.01  # of the mean return in float32


def paired_returns(
    cell: Cell,
    episodes: int,
    budget: tuple[int, int],
    decisions: int = 500,
    teacher: str = "",
    device: str = "cpu",
    mode: str = "auto",
) -> list[dict]:
    """One row (arm, episode_seed, return) per dtype and episode, on seeds that are never reported.

    `budget` is samples × iterations. Episodes that were run before under the same code and weights are not run again.
    """
    teacher = teacher or str(cell)
    wm, seeds, rows = load_world_model(teacher, task=cell.task, device=device), episode_seeds("calibrate", episodes), []
    for dtype in DTYPES:
        arm = Arm(dtype, PlannerConfig.budget(*budget, mode=mode, dtype=dtype))

        def play(path, arm=arm):
            made, controller = [], make_controller(arm, wm, {})
            for block in (seeds[i : i + BLOCK] for i in range(0, len(seeds), BLOCK)):
                what = f"{cell} {arm.name} {len(made) + len(block)}/{len(seeds)}"
                made += run_episodes(arm, controller, cell.task, block, decisions, what).episodes
            write_json(path, [{name: row[name] for name in ("arm", "episode_seed", "return")} for row in made])

        key = key_of(arm_roots(arm), rest_of(arm_key(arm, cell, teacher, None, decisions)), seeds)
        file = cached(paths.CACHE / "rollouts" / f"{name_of(key)}.json", key, play, f"{episodes} episodes in {dtype}")
        rows += json.loads(file.read_text(encoding="utf-8"))
    return rows


@dataclass(frozen=True)
class Verdict:
    """The mean paired difference bfloat16 − float32, its lower bound (nan for one episode), and float32's mean."""

    episodes: int
    difference: float
    bound: float
    reference: float

    @property
    def good_enough(self) -> bool:
        return bool(self.bound > -MARGIN * self.reference)

    def __str__(self) -> str:
        return (
            f"{self.episodes} paired episodes: bfloat16 changes the return of {self.reference:.1f} by "
            f"{self.difference:+.1f}; with 95 % confidence by no less than {self.bound:+.1f}, where "
            f"{-MARGIN * self.reference:+.1f} is allowed: {'' if self.good_enough else 'not '}shown to be good enough"
        )


def verdict(rows: list[dict]) -> Verdict:
    """What the rows of `paired_returns` say."""
    returns = {dtype: {r["episode_seed"]: r["return"] for r in rows if r["arm"] == dtype} for dtype in DTYPES}
    exact = np.array(list(returns["float32"].values()))
    half = np.array([returns["bfloat16"][seed] for seed in returns["float32"]])
    difference = paired_difference(half, exact, level=0.9)  # its lower end is the one-sided 95 % bound
    return Verdict(len(exact), difference.value, difference.low, float(exact.mean()))
