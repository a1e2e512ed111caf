"""What is learnt from the right-sized planner, in pieces that are kept: labels, a draft, a corrector, thresholds."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

from lib.config import PlannerConfig, as_dict
from lib.distil.labels import LabelledStates
from lib.distil.states import DistillationSet
from lib.distil.train import CorrectorTraining, split_by_episode, train_corrector
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import name_of
from lib.records.store import cached
from lib.study.accelerate.plan import EPOCHS, MOST_EPISODES, MOST_LABELS, TRAININGS, Clock, Costs, OutOfTime, Plan
from lib.study.accelerate.playing import again, in_mode
from lib.study.calibrate import ensure_calibration
from lib.study.cells import Cell, Settings
from lib.study.distillation import SHARD_EPISODES, distillation_set
from lib.study.drafting import COLLECTED_BY, TAUGHT_BY, labelled_states, rounds_of, trained, training_of
from lib.study.evaluate import Stage
from lib.study.profiles import PROFILES, DraftStudy
from lib.weights.distilled import save_network
from lib.weights.native import teacher_key

NAME = "accelerate"  # of the profile that its pieces are made under, and of their folder in the cache
ARCH = "two_tower"
DRAFT = "cloned"  # in the paper it keeps no less than drafts that were taught on states of their own
ROUNDS, LEAST_EPOCHS = 4, 5
ROUND_TRIES = 6  # of labels of so many episodes, any of which may fail


def settings_for(cell: Cell, teacher: str, planner: PlannerConfig, mode: str, decisions: int) -> Settings:
    """As the quick profile has it, but that the right-sized planner collects and labels everything."""
    profile = dataclasses.replace(
        PROFILES["quick"], name=NAME, planner=in_mode(planner, mode), rounds=1, decisions=decisions
    )
    return Settings(profile, (cell,), teacher, "cpu")


def draft(settings: Settings, plan: Plan, costs: Costs, clock: Clock) -> Path:
    """A clone of as many of the planner's actions as fit; they are collected in rounds, so that who is killed loses one
    at most. Raises `OutOfTime` where those of two episodes do not fit."""
    cell, planner, decisions = settings.cell, settings.profile.planner, costs.decisions
    each = costs.step + 1.1 * costs.solve(planner)  # a tenth is labelled again
    labels = min(int(plan.seconds["label"] / each), max(MOST_LABELS, 2 * decisions))
    rounds = min(ROUNDS, labels // (2 * decisions))
    if not rounds:
        raise OutOfTime(f"the labels of two episodes would take {2 * decisions * each / 60:.1f} minutes")
    updates = max(round(0.8 * labels / 256), 1)  # of an epoch
    epochs = min(max(int(plan.seconds["train"] / (TRAININGS * updates * costs.update)), LEAST_EPOCHS), EPOCHS)
    study = DraftStudy((labels // rounds,) * rounds, (), epochs=epochs)

    def with_rounds(number: int) -> Settings:
        drafts = dataclasses.replace(study, labels=study.labels[:number])
        return dataclasses.replace(settings, profile=dataclasses.replace(settings.profile, drafts=drafts))

    for number in range(1, rounds + 1):
        lacking = not rounds_of(with_rounds(number), cell, DRAFT)[-1].path.is_file()
        if lacking:
            _begin(clock, f"labels, round {number} of {rounds}", study.labels[0] * each)
        begin = time.monotonic()
        files = again(functools.partial(labelled_states, with_rounds(number), cell, DRAFT), ROUND_TRIES)
        if lacking:  # what was there says nothing of the pace
            clock.took(time.monotonic() - begin, study.labels[0] * each)
    made = with_rounds(rounds)
    key = key_of((*COLLECTED_BY, *TAUGHT_BY), [rest_of(r.key) for r in rounds_of(made, cell, DRAFT)],
                 as_dict(training_of(study)))  # fmt: skip

    def make(path: Path) -> None:
        clock.say(f"a draft, distilled from {labels:,} labels")
        save_network(trained(made, cell, DRAFT, LabelledStates.load(*files)).draft, path, teacher_key(settings.teacher))

    return cached(_file(cell, DRAFT, key), key, make, f"the draft of {cell}")


def corrector(settings: Settings, plan: Plan, costs: Costs, clock: Clock) -> tuple[Path, DistillationSet, str]:
    """A corrector of as many episodes as fit, their held-out states, and the key of these. Raises `OutOfTime`."""
    cell = settings.cell
    each = costs.decisions * (costs.step + 1.25 * costs.solve(settings.profile.planner))  # label or plan, some twice
    episodes = min(int(plan.seconds["collect"] / each) // SHARD_EPISODES * SHARD_EPISODES, MOST_EPISODES)
    if not episodes:
        raise OutOfTime(f"the states of two episodes would take {2 * each / 60:.1f} minutes")
    updates = max(round(0.8 * episodes * costs.decisions / 256), 1)
    epochs = min(max(int(plan.seconds["train"] / (2 * updates * costs.update)), LEAST_EPOCHS), EPOCHS)
    profile = dataclasses.replace(settings.profile, collect_episodes=episodes, epochs=epochs)
    settings = dataclasses.replace(settings, profile=profile)
    _begin(clock, f"states where plans are old, {episodes} episodes", episodes * each)
    data, set_key = again(functools.partial(distillation_set, settings, cell), ROUND_TRIES)
    training, wm_key = CorrectorTraining(ARCH, epochs), teacher_key(settings.teacher)
    key = key_of((train_corrector,), rest_of(set_key), as_dict(training))

    def make(path: Path) -> None:
        clock.say(f"a corrector, distilled from {len(data):,} states")
        save_network(train_corrector(data, training).corrector, path, wm_key)

    file = cached(_file(cell, ARCH, key), key, make, f"the corrector of {cell}")
    return file, data.rows(split_by_episode(data)[1]), set_key


def thresholds(
    stage: Stage, names: list[str], held_out: DistillationSet | None, key: str, standard: PlannerConfig, clock: Clock
) -> dict[str, dict]:
    """Arm → the numbers of its gate, told on held-out and calibration episodes."""
    clock.say("thresholds of gates")
    return again(
        lambda: ensure_calibration(
            stage, names, lambda: held_out, key, _file(stage.cell, "calibration", key, ".json"), standard, 2
        )
    )


def _begin(clock: Clock, what: str, seconds: float) -> None:
    if not clock.fits(seconds):
        raise OutOfTime(f"{what} would take {seconds * clock.pace / 60:.1f} minutes")
    clock.say(what)


def _file(cell: Cell, what: str, key: str, suffix: str = ".safetensors") -> Path:
    return paths.CACHE / NAME / f"{cell}-{what}-{name_of(key)}{suffix}"
