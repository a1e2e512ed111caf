"""Control against the clock: an environment that is stepped in wall-clock time, and a planner in the background.

    python -m lib.study.realtime_demo --task walker-run --rate 50 --seconds 20
    python -m lib.study.realtime_demo --task walker-run --planner 512x6 --slower 2 --out build/realtime.json

One decision is due in each period of the rate, or of the task's own, the physics time of a decision. The corrector of
the paper profile that has learnt from late plans is used where it is there, else the two-tower one. Then what a
simulated delay returns from the same start states: how old plans were when they were taken up, in the median.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from lib.config import ConfigError, PlannerConfig
from lib.environments import EnvironmentFailed, check_task, make_env
from lib.planner import MPPI, Plan
from lib.realtime import BackgroundController, RealTimeController
from lib.realtime.background import FURTHEST
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import machine, versions, write_json
from lib.rollout import rollout, start
from lib.study.arms import DELAY_AWARE, network_file
from lib.study.cells import Cell
from lib.study.delays import period_ms
from lib.study.speed.benchmark import _budget
from lib.weights.distilled import NetworkError, load_network
from lib.weights.native import CheckpointError, load_world_model, teacher_key

LONGEST = 86_400.0  # seconds
CORRECTORS = (DELAY_AWARE, "two_tower")  # the first that is there
COMPARED = 10  # episodes that are played with a simulated delay, too: that takes as long again
SHOWN = 8  # returns of single episodes
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


class SlowedPlanner(MPPI):
    """A planner as on a computer that is `factor` times slower: it sleeps for the rest. Notes the seconds of solves."""

    factor = 1.0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seconds: list[float] = []

    def __call__(self, *inputs) -> Plan:
        started = time.perf_counter() - self.compile_seconds
        plan = super().__call__(*inputs)
        took = time.perf_counter() - self.compile_seconds - started
        time.sleep((self.factor - 1) * took)
        self.seconds.append(self.factor * took)
        return plan


def own_period(task: str) -> float:
    """Seconds of physics in a decision of a task; `ConfigError` where the environment does not tell."""
    if math.isnan(period := period_ms(task) / 1e3):
        raise ConfigError(f"{task} does not tell how long its steps take; give --rate, decisions per second.")
    return period


def against_the_clock(
    controller: BackgroundController, env, seeds: Sequence[int], decisions: int, period: float, bar
) -> Iterator[dict]:
    """One row for each decision: its episode, reward, and the seconds from when it was due until it had an action,
    ready_s; late_s, how late the loop came to it; and the controller's records.

    A decision that is late by more than a period, for the simulator's sake, moves all that follow.
    """
    for episode, seed in enumerate(seeds):
        obs = torch.from_numpy(start(controller, [env], [seed]))
        gc.collect()
        due = time.perf_counter()
        for decision in range(min(env.decisions, decisions - episode * env.decisions)):
            time.sleep(max(due - time.perf_counter(), 0.0))
            seen = time.perf_counter()
            action, info = controller.act(obs)
            action = action[0].cpu().numpy()
            ready = time.perf_counter()
            after, reward, terminated, truncated, _ = env.step(action)
            obs = torch.from_numpy(after[None])
            row = {"episode": episode, "decision": decision, "reward": reward}
            yield row | {"ready_s": ready - due, "late_s": seen - due} | {k: v.item() for k, v in info.items()}
            bar.update()
            due = (due if seen - due <= period else seen) + period
            if terminated or truncated:
                break


def simulated(controller: RealTimeController, task: str, played: Sequence[tuple[int, int]], bar) -> list[float]:
    """The returns of episodes, each a seed and how many decisions of it."""
    returns = []
    for seed, decisions in played:
        returns.append(0.0)
        for step in rollout(controller, lambda s: make_env(task, s), [seed], decisions):
            returns[-1] += float(step.rewards.sum())
            bar.update()
    return returns


def demo(
    task: str = "walker-run",
    rate: float = 0.0,
    seconds: float = 20.0,
    planner: str = "512x6",
    slower: float = 1.0,
    size: str = "1m",
    seed: int = 1,
    draft: bool = False,
    out: Path | None = None,
) -> dict:
    """Play in wall-clock time for `seconds`, then the first episodes with a simulated delay; print what came of each.

    Args:
        task: a task that has a teacher.
        rate: decisions per second; 0 for the task's own, one each time that its physics has gone on by a decision.
        seconds: how long to play, whole episodes and a part of the last one.
        planner: samples x iterations.
        slower: the planner takes that many times as long.
        size: of the teacher.
        seed: of the teacher.
        draft: where no plan acts, the paper profile's draft does, and not the corrector on the prior's actions.
        out: a JSON file for the summary, written when the first half is over and again at the end; nothing is written
            without it.
    """
    for name, value, least, most in (
        ("rate", rate, 0, 10_000), ("seconds", seconds, 0.1, LONGEST), ("slower", slower, 1, 1e4),
    ):  # fmt: skip
        if not least <= value <= most:
            raise ConfigError(f"--{name} {value:g} must lie in {least:g}…{most:g}.")
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise ConfigError(f"--out {out} must be a JSON file, as in build/realtime.json.")
    config = PlannerConfig.budget(*_budget(planner))
    check_task(task)
    cell, period = Cell(task, size, seed), 1 / rate if rate else own_period(task)
    wm, teacher = load_world_model(str(cell), task=task), teacher_key(str(cell))
    if (decisions := round(seconds / period)) < 1:
        raise ConfigError(f"--seconds {seconds:g} is less than the {period:g} s of one decision.")
    parts = {}
    for part, names in (("corrector", CORRECTORS), ("fallback", ("distilled",) if draft else ())):
        files = [file for name in names if (file := network_file("paper", cell, name)).is_file()]
        parts[part] = load_network(files[0], teacher).to(wm.device) if files else None
    if draft and not parts["fallback"]:
        raise ConfigError(f"--draft: {cell} has no draft among the committed results; leave it out.")
    told = f"{' and '.join(p for p in parts if parts[p]) or 'no corrector'}".replace("fallback", "draft")
    print(f"{cell}: {1 / period:g} decisions a second, {planner} slowed by {slower:g}, {told}", file=sys.stderr)

    env, slowed = make_env(task), SlowedPlanner(wm, config)
    seeds = episode_seeds("latency", -(-decisions // env.decisions))
    with BackgroundController(slowed, period=period, **parts) as controller:
        controller.reset()  # compiles
        slowed.factor = slower
        slowed.seconds.clear()
        controller._took.clear()
        gc.freeze()
        gc.disable()
        try:
            with tqdm(total=decisions, desc="in real time", unit="decision", mininterval=0.5) as bar:
                rows = list(against_the_clock(controller, env, seeds, decisions, period, bar))
        finally:
            gc.enable()
            gc.unfreeze()
        failed = controller.error
    env.close()
    if failed:
        raise ConfigError(f"the planner failed, {type(failed).__name__}: {failed}")
    if not slowed.seconds:
        raise ConfigError(f"no plan was made in {seconds:g} s; play longer, or with a smaller --planner.")
    solve = np.array(slowed.seconds)
    summary = {"cell": str(cell), "rate": 1 / period, "planner": planner, "slower": slower}
    summary |= measured(rows, solve, period) | {"machine": machine(), "versions": versions()}
    told_of(summary, "in real time", {
        "return of each episode": listed(summary["returns"]),
        "reward of a decision": f"{summary['reward']:.3f}",
        "age of plans taken up, median": f"{summary['age_at_arrival']:g} decisions",
        "solve": f"{summary['solve_ms']:.0f} ms",
        "plans made, taken up, dropped": f"{len(solve)}, {summary['taken_up']}, {summary['dropped']}",
        "step, " + ", ".join(QUANTILES): ", ".join(f"{x:.2f}" for x in summary["step_ms"].values()) + " ms",
        "missed deadlines": f"{summary['missed']} of {len(rows):,}",
        "  of which the step was too long": f"{summary['missed_in_act']}",
        "  of which the loop came late": f"{summary['loop_late']}",
    }, out)  # fmt: skip

    late = summary["age_at_arrival"] if summary["taken_up"] else summary["solve_ms"] / 1e3 / period
    delay = min(math.ceil(late), FURTHEST)
    played = list(zip(seeds, summary["lengths"], strict=False))[:COMPARED]
    count, same = sum(length for _, length in played), sum(summary["returns"][: len(played)])
    with tqdm(total=count, desc=f"simulated, delay {delay}", unit="decision", mininterval=0.5) as bar:
        there = simulated(RealTimeController(MPPI(wm, config), delay=delay, **parts), task, played, bar)
    summary |= {"delay": delay, "episodes": played, "returns_simulated": there}
    summary |= {"reward_compared": same / count, "reward_simulated": sum(there) / count}
    told_of(summary, f"with a simulated delay of {delay}", {
        "return of each episode": listed(there),
        "reward of a decision": f"{summary['reward_simulated']:.3f}, in real time {summary['reward_compared']:.3f}",
    }, out)  # fmt: skip
    return summary


def measured(rows: list[dict], solve: np.ndarray, period: float) -> dict:
    """What is told of the rows of `against_the_clock` and the seconds of solves (n,)."""
    of = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    arrived = (of["late"] >= 0) & ~of["dropped"].astype(bool)
    episodes = [of["reward"][of["episode"] == i] for i in range(of["episode"].max() + 1)]
    return {
        "decisions": len(rows),
        "missed": int((of["ready_s"] > period).sum()),
        "missed_in_act": int((~of["deadline_met"].astype(bool)).sum()),
        "loop_late": int((of["late_s"] > period).sum()),
        "step_ms": {name: 1e3 * float(np.quantile(of["step_s"], q)) for name, q in QUANTILES.items()},
        "solve_ms": 1e3 * float(np.median(solve)),
        "solves": len(solve),
        "taken_up": int(arrived.sum()),
        "dropped": int(of["dropped"].sum()),
        "age_at_arrival": float(np.median(of["plan_age"][arrived])) if arrived.any() else math.nan,
        "lengths": [len(mine) for mine in episodes],
        "returns": [float(mine.sum()) for mine in episodes],
        "reward": float(of["reward"].mean()),
    }


def listed(returns: Sequence[float]) -> str:
    more = f"  and {len(returns) - SHOWN} more" if len(returns) > SHOWN else ""
    return "  ".join(f"{x:.1f}" for x in returns[:SHOWN]) + more


def told_of(summary: dict, title: str, lines: dict[str, str], out: Path | None) -> None:
    """Prints lines under a title, and writes what is known by now."""
    wide = max(map(len, lines))
    print(f"{title}\n" + "\n".join(f"  {name.ljust(wide)}  {said}" for name, said in lines.items()), flush=True)
    if out is not None:
        write_json(out, summary)


def main(arguments: list[str] | None = None) -> int:
    try:
        tyro.cli(demo, prog="python -m lib.study.realtime_demo", args=arguments)
    except (ConfigError, CheckpointError, NetworkError, EnvironmentFailed, ResultError) as error:
        print(f"realtime_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
