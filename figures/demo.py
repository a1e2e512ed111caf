"""A minute with a teacher and the controller that a test admitted in its place: `make demo`.

    python -m figures.demo [--decisions 500] [--out build/demo.gif]

One episode from a start state that no result reports: what the controller returns, how often it asks the planner, and
how many milliseconds it takes to act, beside the teacher's. The teacher is timed for a few decisions, as an episode
takes it minutes; its return is its card's mean. Nothing is compiled. Where a GL library draws there is a film.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from figures.film import gl_backend, panel_of, pick_of, save_gif
from lib.config import ConfigError, PlannerConfig
from lib.environments import EPISODE_DECISIONS, make_env
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.seeds import episode_seeds
from lib.records.store import write_artefact
from lib.rollout import rollout
from lib.study.accelerate.playing import Timed
from lib.study.arms import Arm, make_arm, make_controller, network_file
from lib.weights.distilled import NetworkError, load_network
from lib.weights.native import CheckpointError, load_world_model, teacher_key
from lib.world_model import WorldModel

CERTIFIED = ("cheetah-run-1m-1", "walker-run-1m-1")  # cells, the one with the cheapest pick first
TEACHER_DECISIONS, TEACHER_SECONDS = 30, 12.0  # as many of them as that allows
FILM_DECISIONS = 200


def chosen(profile: str = "paper") -> tuple[str, Arm]:
    """The first of `CERTIFIED` that was, and its pick (`lib.study.certify`). Raises `ResultError` if none was."""
    for cell in CERTIFIED:
        if (paths.results(profile) / "certified" / f"{cell}.csv").is_file():
            return cell, pick_of(cell, profile)
    raise ResultError(f"no certified controller of {', '.join(CERTIFIED)} is here; restore data/ from git.")


def controllers(cell: str, arm: Arm, wm: WorldModel, profile: str = "paper") -> tuple:
    """What acts as the arm says, and the teacher, neither compiled."""
    networks = {}
    if arm.corrector:
        networks[arm.corrector] = load_network(network_file(profile, cell, arm.corrector), teacher_key(cell))
    standard = dataclasses.replace(PlannerConfig.standard(wm.action_dim), mode="eager")
    teacher = make_controller(make_arm("teacher", standard), wm, {})
    planner = arm.planner and dataclasses.replace(arm.planner, mode="eager")
    return make_controller(dataclasses.replace(arm, planner=planner), wm, networks, "eager"), teacher


def played(controller, task: str, seed: int, decisions: int, what: str, seconds: float = math.inf) -> dict[str, float]:
    """Of an episode, or what of it can be played in so many seconds: return, planner_calls, length, and the mean
    step_ms without the first answer, which takes longer."""
    timed, total, calls, started = Timed(controller), 0.0, 0, time.monotonic()
    for step in rollout(timed, [make_env(task, seed)], [seed], decisions, what):
        total += float(step.rewards[0])
        calls += int(step.info["planner_called"][0])
        if time.monotonic() - started > seconds:
            break
    taken = timed.times[1:] or timed.times
    return {"return": total, "planner_calls": calls, "length": len(timed.times), "step_ms": sum(taken) / len(taken)}


def line(name: str, returned: str, calls: str, step_ms: float) -> str:
    return f"{name:32} {returned:>22} {calls:>16} {step_ms:>10.2f}"


def demonstrate(decisions: int, out: Path | None) -> str:
    """Play, and give what came of it as lines; the film goes to `out`, unless that is None."""
    if not 2 <= decisions <= EPISODE_DECISIONS:
        raise ConfigError(f"decisions={decisions} must be between 2 and {EPISODE_DECISIONS}, a whole episode.")
    cell, arm = chosen()
    task, wm, seed = paths.cell_parts(cell)[0], load_world_model(cell), episode_seeds("trial", 1)[0]
    controller, teacher = controllers(cell, arm, wm)
    mine = played(controller, task, seed, decisions, arm.name)
    theirs = played(teacher, task, seed, min(decisions, TEACHER_DECISIONS), "teacher", TEACHER_SECONDS)
    card = json.loads((paths.TEACHERS / f"{cell}.json").read_text(encoding="utf-8"))
    lines = [
        f"{cell}: {arm.name} acts, which a test admitted; the teacher plans with {teacher.planner.config.samples} × "
        f"{teacher.planner.config.iterations} at every step; nothing is compiled",
        f"{'':32} {'return':>22} {'planner calls':>16} {'ms a step':>10}",
        line(arm.name, f"{mine['return']:.0f}", f"{mine['planner_calls']} of {mine['length']}", mine["step_ms"]),
        line("teacher", f"{card['return_mean']:.0f} (its card)", f"{decisions} of {decisions}", theirs["step_ms"]),
        f"The teacher's steps are {theirs['step_ms'] / mine['step_ms']:.0f} times as long, of {theirs['length']} that "
        f"were timed; its return is the mean of {len(card['returns'])} whole episodes.",
    ]
    if out is not None:
        frames, seconds, _ = panel_of(arm, controller, task, seed, min(decisions, FILM_DECISIONS))
        about = {"cell": cell, "arm": arm.name, "episode_seed": seed}
        write_artefact(out, lambda path: save_gif(frames, path, seconds), **about)
        lines.append(f"film: {shown(out)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Demo:
    """An episode of a controller that a test admitted, beside its teacher."""

    decisions: int = EPISODE_DECISIONS
    out: Path = paths.BUILD / "demo.gif"  # the film, where a GL library draws


def main(arguments: list[str] | None = None) -> int:
    given = tyro.cli(Demo, prog="python -m figures.demo", args=arguments)
    backend = gl_backend()
    os.environ["MUJOCO_GL"] = backend or "disable"  # before an environment is made
    try:
        print(demonstrate(given.decisions, given.out if backend else None))
    except (ConfigError, CheckpointError, NetworkError, ResultError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    if backend is None:
        print("film: left out, as no GL library draws here; install libegl1 or libosmesa6.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
