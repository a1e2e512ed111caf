"""The numbers of each arm, from episodes that no corrector learnt from and that are not reported.

    numbers = gate_numbers(settings, stage, ["gated-6"], standard)      # {"gated-6": {"threshold": …, …}}

A threshold, and how far a corrector is trusted at each depth, come from the held-out states of the cell's distillation
set (`lib.distil.thresholds`). The ladder has three numbers that depend on each other: they are chosen by playing on
start states of their own, and so are those of drafts' gates, and of gates on plans that arrive late.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lib.config import ConfigError, PlannerConfig
from lib.correctors import CORRECTORS, Trusted
from lib.distil.states import DistillationSet
from lib.distil.thresholds import calibrate, trust_by_depth
from lib.distil.train import split_by_episode
from lib.drafts import SCORES, DraftController, DraftGate
from lib.environments import make_env
from lib.gates import LadderGate
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import key_of, rest_of, shown
from lib.records.ledger import same
from lib.records.seeds import episode_seeds
from lib.records.store import intact, read_sidecar, write_artefact
from lib.rollout import rollout
from lib.study.arms import Arm, DelayArm, DraftArm, TrustedArm, arm_name, make_arm, make_controller, numbers_of
from lib.study.cells import Settings
from lib.study.distillation import COLLECTED_BY, distillation_key, distillation_set
from lib.study.evaluate import Stage, arm_key, arm_roots

CALLS_PER_PLAN = 1.5  # planner calls wanted of a gated arm for every E decisions
# What the ladder is chosen from: quantiles of the mismatch up to which the plan, and its correction, are trusted; and
# planner calls, or refinements, for every E decisions.
LADDER_LEVELS = ((0.05, 0.25), (0.15, 0.75))
LADDER_CALLS = (1.25, 2.0)
NO_LEVELS = (0.0, 0.0)  # a ladder that trusts neither plan nor correction unchecked
UNCALIBRATED = {"threshold": torch.inf, "levels": NO_LEVELS, "trust": (), "thresholds": (None,) * len(SCORES)}
WANTED = 0.98  # of the teacher's return, for the ladder
GATED_AT = 2  # decisions that plans take while the gate on arriving ones is calibrated, whatever the arm's own delay
DROPPED = 0.1  # share of them that it would drop there


# ------------------------------------------------------------------------------------------------------- the ladder


def calibrate_ladder(
    stage: Stage, arm: Arm, data: DistillationSet, episodes: int, standard: PlannerConfig, wanted: float = WANTED
) -> dict:
    """The ladder's three numbers together: of a grid, those with the fewest model evaluations per decision whose mean
    return is at least `wanted` × the teacher's, on the calibration start states; if none is, those of the best return.

    The levels of mismatch are quantiles of the held-out states'; thresholds are those of wanted call rates.
    """
    seeds = episode_seeds("calibrate", episodes, stage.cell.seed)
    teacher = np.mean([r["return"] for r in stage.play(Arm("teacher", standard), seeds)[0].episodes])
    if teacher <= 0:
        raise ConfigError(
            f"the teacher of {stage.cell} returns {teacher:.3g} on average; no share of that can be kept."
        )
    corrector, steps, tried = stage.correctors.get(arm.corrector), _steps(arm, data), []
    for trusted, calls in itertools.product(LADDER_LEVELS, LADDER_CALLS):
        levels = tuple(float(data.mismatch.quantile(q)) for q in trusted)
        gate = arm.gate(levels=levels)
        numbers = calibrate(gate, stage.wm, data, corrector, steps, call_rate=calls / steps)
        rows = stage.play(replace(arm, threshold=numbers["threshold"], levels=levels), seeds)[0].episodes
        found = {name: float(np.sum([r[name] for r in rows])) for name in ("return", "length", "model_evaluations")}
        tried.append(
            numbers
            | {"levels": list(levels), "kept": found["return"] / len(rows) / teacher}
            | {"evaluations_per_decision": found["model_evaluations"] / found["length"]}
        )
    good = [t for t in tried if t["kept"] >= wanted]
    chosen = min(good, key=lambda t: t["evaluations_per_decision"]) if good else max(tried, key=lambda t: t["kept"])
    return chosen | {"wanted": wanted, "tried": tried, "episode_seeds": seeds}


# ------------------------------------------------------------------------------------------------------- drafts


def draft_thresholds(stage: Stage, arm: DraftArm, episodes: int) -> dict:
    """The thresholds of a draft's gate at which it would ask at `arm.rate` of the decisions, from episodes of the draft
    alone on calibration start states; None for scores that the arm's gate leaves out.

    With several scores each has the same share of decisions above its threshold.
    """
    seeds = episode_seeds("calibrate", episodes, stage.cell.seed)
    draft, gate = stage.correctors[arm.corrector], DraftGate(looks=arm.scores).to(stage.wm.device)
    unasked = DraftController(stage.wm, draft, MPPI(stage.wm, arm.planner), gate)
    what, envs = f"{stage.cell} scores of {arm.corrector}", partial(make_env, stage.cell.task)
    steps = [step.info for step in rollout(unasked, envs, seeds, stage.decisions, what)]
    scores = np.array([np.concatenate([info[name] for info in steps]) for name in arm.scores])  # (scores, n)
    if not np.isfinite(scores).all():
        raise ConfigError(
            f"the scores of {arm.name} are not finite; check the weights of the teacher and of the draft."
        )
    below = scores.argsort(1).argsort(1) / scores.shape[1]  # the share of decisions with a lower score
    level = np.quantile(below.max(0), 1 - arm.rate)
    found = dict(zip(arm.scores, np.quantile(scores, level, axis=1).tolist(), strict=True))
    asked = (scores > np.array(list(found.values()))[:, None]).any(0).mean()
    thresholds = [found.get(name) for name in SCORES]
    return {"thresholds": thresholds, "asked": float(asked), "decisions": scores.shape[1], "episode_seeds": seeds}


# ------------------------------------------------------------------------------------------- plans that arrive late


def arrival_threshold(stage: Stage, arm: DelayArm, episodes: int) -> dict:
    """The threshold above which the gate of a `DelayArm` would drop a share `DROPPED` of the plans that arrive, from
    calibration episodes with a delay of `GATED_AT` decisions in which it drops none.

    One for all delays: a plan is no better for having been expected to be bad. Raises `ConfigError` where none arrives.
    """
    seeds = episode_seeds("calibrate", episodes, stage.cell.seed)
    controller = make_controller(_undropped(arm), stage.wm, stage.correctors)
    what, envs = f"{stage.cell} plans that arrive at {arm.name}", partial(make_env, stage.cell.task)
    steps = [step.info for step in rollout(controller, envs, seeds, stage.decisions, what)]
    scores = np.concatenate([info["score"][info["plan_age"] == GATED_AT] for info in steps])
    if not scores.size or not np.isfinite(scores).all():
        raise ConfigError(
            f"{arm.name}: no plan arrived in {len(seeds)} episodes of {stage.cell}, or none where its score is finite; "
            "play longer episodes, or check the teacher's weights."
        )
    threshold = float(np.quantile(scores, 1 - DROPPED))
    return {"threshold": threshold, "delay": GATED_AT, "plans": scores.size, "episode_seeds": seeds}


def _undropped(arm: DelayArm) -> DelayArm:
    """The arm that the thresholds of all delays come from."""
    return replace(arm, name="", delay=GATED_AT, execution_horizon=GATED_AT, threshold=np.inf)


PLAYED = {DraftArm: draft_thresholds, DelayArm: arrival_threshold}  # kind of arm → whose episodes give its numbers

# ------------------------------------------------------------------------------------------- kept beside the corrector


def calibration_file(profile: str, cell) -> Path:
    """Where a profile keeps the numbers of a cell's gates."""
    return paths.results(profile) / "corrector" / f"{cell}-calibration.json"


def gate_numbers(
    settings: Settings,
    stage: Stage,
    names: list[str],
    standard: PlannerConfig,
    threshold: float | None = None,
    path: Path | None = None,
) -> dict[str, dict]:
    """Arm → its numbers, for those of the named arms that have any: what the profile's calibration of the cell says (or
    another file, `path`), which is made where it is lacking, and `threshold` for all of them instead if it is given."""
    given = {} if threshold is None else {"threshold": threshold, "levels": NO_LEVELS}
    found = {name: given for name in _calibrated(names, standard)}
    lacking = [name for name in found if not set(numbers_of(make_arm(name, standard))) <= given.keys()]
    if given and not lacking:
        return found
    path = path or calibration_file(settings.profile.name, stage.cell)
    key = distillation_key(settings, stage.cell)
    for arch, file in stage.corrector_files.items():
        if arch in CORRECTORS and not same(read_sidecar(file).get("distillation_key"), key):
            raise ConfigError(
                f"{shown(file)} was trained on another distillation set, so that it is not known which episodes it has "
                "not seen; train it again with 03_train_corrector, or give a threshold."
            )

    def held_out() -> DistillationSet:
        data, _ = distillation_set(settings, stage.cell)
        return data.rows(split_by_episode(data)[1])

    episodes = settings.profile.calibrate_episodes
    if lacking:
        made = ensure_calibration(stage, lacking, held_out, key, path, standard, episodes)
        found |= {name: numbers | given for name, numbers in made.items()}
    return found


def ensure_calibration(
    stage: Stage,
    names: list[str],
    held_out: Callable[[], DistillationSet],
    held_out_key: str,
    path: Path,
    standard: PlannerConfig,
    episodes: int,
) -> dict[str, dict]:
    """Arm → its numbers, for those of the named arms that have any; kept in `path`, made where lacking.

    An arm's numbers are made anew when its corrector, the teacher, the held-out states (`held_out_key`) or the code
    have changed; `held_out()` is only called then. `episodes` are played for each entry of the ladder's grid.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if intact(path) else {}
    data = None

    def save() -> None:
        text = json.dumps(kept, indent=1)
        write_artefact(path, lambda temporary: temporary.write_text(text), held_out_key=held_out_key)

    for name in _calibrated(names, standard):
        arm = make_arm(name, standard, UNCALIBRATED)
        key = calibration_key(stage, arm, held_out_key, episodes)
        if same(kept.get(name, {}).get("key"), key):
            continue
        if made := PLAYED.get(type(arm)):
            alike = next((numbers for numbers in kept.values() if same(numbers.get("key"), key)), None)
            kept[name] = alike or made(stage, arm, episodes) | {"key": key}
            save()
            continue
        data = held_out() if data is None else data
        part = _of_its_planner(data, arm.planner != standard)
        if arm.gate is LadderGate:
            numbers = calibrate_ladder(stage, arm, part, episodes, standard)
        else:
            corrector, steps, numbers = stage.correctors.get(arm.corrector), _steps(arm, part), {}
            if isinstance(arm, TrustedArm):
                numbers = trust_by_depth(part, corrector, arm.execution_horizon, stage.wm.device)
                corrector = Trusted(corrector, numbers["trust"]).to(stage.wm.device)
            if arm.gate:
                rate = CALLS_PER_PLAN / steps
                numbers |= calibrate(arm.gate(), stage.wm, part, corrector, steps, call_rate=rate)
        kept[name] = numbers | {"key": key}
        save()
    save()  # also when nothing was lacking: a file that is written in a run is vouched for by that run
    return {name: kept[name] for name in _calibrated(names, standard)}


def calibration_key(stage: Stage, arm: Arm, held_out_key: str, episodes: int) -> str:
    """All that an arm's numbers depend on; `arm` has none yet."""
    one = _undropped(arm) if isinstance(arm, DelayArm) else arm
    played = arm_key(one, stage.cell, stage.teacher, stage.corrector_files.get(arm.corrector), stage.decisions)
    if made := PLAYED.get(type(arm)):  # which learns nothing from the held-out states of correctors
        wanted = [GATED_AT, DROPPED] if isinstance(arm, DelayArm) else []
        return key_of((*arm_roots(arm), made), rest_of(played), episodes, *wanted)
    wanted = [CALLS_PER_PLAN, LADDER_LEVELS, LADDER_CALLS, WANTED, episodes if arm.gate is LadderGate else None]
    roots = (*arm_roots(arm), *COLLECTED_BY, calibrate_ladder, calibrate)
    roots += (trust_by_depth,) if isinstance(arm, TrustedArm) else ()
    return key_of(roots, rest_of(played), rest_of(held_out_key), wanted)


def _calibrated(names: list[str], standard: PlannerConfig) -> list[str]:
    return [name for name in map(arm_name, names) if numbers_of(make_arm(name, standard))]


def _steps(arm: Arm, data: DistillationSet) -> int:
    """The arm's execution horizon, or that of the states if theirs is shorter: deeper ones are then judged alike."""
    return min(arm.execution_horizon, int(data.depth.max()) + 1)


def _of_its_planner(data: DistillationSet, right_sized: bool) -> DistillationSet:
    """The states that were reached with plans of the arm's own kind of planner, if there are any."""
    mine = data.source == int(right_sized)
    return data.rows(mine) if mine.any() else data
