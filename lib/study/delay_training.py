"""The corrector of a cell that is trained for plans which come late; made where it is lacking.

    file = ensure_delay_aware(settings, cell)          # corrector/<cell>-delay_aware.safetensors

A two-tower corrector that learns from as many labels of the same planner as the drafts, in as many rounds, with the
delays that the profile names: one corrector for all delays, those that it has not seen among them. How far it is from
the labels at each age of a plan stands beside it, in `corrector/<cell>-delay_aware-depth.csv`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from torch import nn

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.correctors import TwoTowerCorrector
from lib.distil.delayed import collect_delayed
from lib.distil.states import LAYOUT, DistillationSet
from lib.distil.train import CorrectorTraining, errors_by_depth, train_corrector
from lib.environments import identity, make_env
from lib.planner import MPPI
from lib.realtime import RealTimeController
from lib.records import paths
from lib.records.keys import key_of, keyed, rest_of
from lib.records.ledger import name_of, same
from lib.records.seeds import episode_seeds
from lib.records.store import cached, intact, known, write_artefact, write_table
from lib.study.arms import DELAY_AWARE, network_file
from lib.study.cells import Cell, Settings
from lib.study.drafting import ROUND_SEEDS, Round
from lib.weights.distilled import save_network
from lib.weights.native import load_world_model, teacher_key
from lib.world_model import WorldModel

FIRST_SEED = 700_000  # of the block of collection: those before are the corrector's and the drafts'
COLLECTED_BY = (collect_delayed, make_env, RealTimeController, MPPI, WorldModel)
TAUGHT_BY = (train_corrector, TwoTowerCorrector)


def training_of(settings: Settings) -> CorrectorTraining:
    return CorrectorTraining(TwoTowerCorrector.arch, settings.profile.epochs)


def labeller_of(settings: Settings) -> PlannerConfig:
    """The planner that is late, and labels: the one that labels for drafts."""
    return settings.profile.planner or PlannerConfig.budget(*settings.profile.drafts.labeller)


def rounds_of(settings: Settings, cell: Cell) -> list[Round]:
    """The files of labels, round after round; nothing is collected. Later rounds depend on all before."""
    study, teacher, found = settings.profile.drafts, settings.teacher_name(cell), []
    if study.betas[:1] != (1.0,):
        raise ConfigError(f"betas={study.betas} must begin with 1: before the first round there is no corrector.")
    for number, labels in enumerate(study.labels, 1):
        seeds = episode_seeds("collect", ROUND_SEEDS, cell.seed, first=FIRST_SEED + (number - 1) * ROUND_SEEDS)
        facts = {
            "task": cell.task,
            "teacher_key": teacher_key(teacher),
            "labeller": keyed(labeller_of(settings)),
            "round": number,
            "beta": study.betas[number - 1] if number <= len(study.betas) else 0.0,
            "delays": list(settings.profile.delays.trained_delays),
            "decisions": settings.decisions(cell.task),
        } | ({"environment": identity(cell.task)} if ":" in cell.task else {})
        before = [[rest_of(r.key) for r in found], as_dict(training_of(settings))] if found else []
        roots = (*COLLECTED_BY, *(TAUGHT_BY if found else ()))
        key = key_of(roots, LAYOUT, facts, before, [seeds[0], labels])
        path = paths.CACHE / "labels" / f"{cell}-late-{name_of(key)}.safetensors"
        found.append(Round(path, key, seeds, labels, facts))
    return found


def late_states(settings: Settings, cell: Cell) -> DistillationSet:
    """The labelled states of all rounds, of which those lacking are collected."""
    teacher, rounds = settings.teacher_name(cell), rounds_of(settings, cell)

    @functools.cache
    def planner() -> MPPI:
        wm = load_world_model(teacher, task=cell.task, device=settings.device)
        return MPPI(wm, labeller_of(settings))

    def corrector(number: int) -> nn.Module | None:
        if not number:
            return None
        states = DistillationSet.load(*(r.path for r in rounds[:number]))
        return train_corrector(states, training_of(settings)).corrector.to(settings.device)

    def make(temporary: Path, number: int) -> None:
        one = rounds[number]
        beta, delays, decisions = (one.facts[name] for name in ("beta", "delays", "decisions"))
        envs, what = functools.partial(make_env, cell.task), f"{cell} late plans, round {number + 1}/{len(rounds)}"
        data = collect_delayed(planner(), envs, one.seeds, one.labels, corrector(number), beta, delays, decisions, what)
        data.about = one.facts | {"teacher": teacher}
        data.save(temporary)

    for number, one in enumerate(rounds):
        what = f"round {number + 1}/{len(rounds)} of the late plans of {cell}"
        cached(one.path, one.key, functools.partial(make, number=number), what, **one.facts, teacher=teacher)
    return DistillationSet.load(*(r.path for r in rounds))


def delay_aware_key(settings: Settings, cell: Cell) -> str:
    """What the cell's corrector depends on; nothing is made."""
    before = [rest_of(r.key) for r in rounds_of(settings, cell)]
    return key_of((*COLLECTED_BY, *TAUGHT_BY), DELAY_AWARE, before, as_dict(training_of(settings)))


def ensure_delay_aware(settings: Settings, cell: Cell, name: str = DELAY_AWARE) -> Path:
    """The profile's corrector for late plans; made where it is lacking, or of another teacher, other labels or code."""
    path, key = network_file(settings.profile.name, cell, name), delay_aware_key(settings, cell)
    table = path.with_name(f"{path.stem}-depth.csv")
    if all(intact(file) and same(known(file).get("network_key"), key) for file in (path, table)):
        return path
    trained = train_corrector(late_states(settings, cell), training_of(settings))
    errors = errors_by_depth(trained.validation, trained.corrector)
    write_table(table, errors, network_key=key)
    teacher = teacher_key(settings.teacher_name(cell))
    return write_artefact(path, lambda file: save_network(trained.corrector, file, teacher), network_key=key)
