"""Distilling the replanning teacher into a corrector: the artefacts that are kept, and made when they are lacking.

    data, key = distillation_set(settings, cell)                       # collected once, then read from the cache
    trained, errors = make_corrector(settings, cell, data, key, CorrectorTraining(epochs=60))

A distillation set is collected in shards of a few episodes, each a file with a key of its own under
`data/cache/distillation/`: a run that was killed goes on at the next shard, and more episodes of the first round only
add shards (later rounds follow a corrector that has seen all before). Plans of the standard and of a right-sized
planner take turns, so that a corrector knows the plans of both.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.correctors import CORRECTORS
from lib.distil.collect import collect
from lib.distil.states import LAYOUT, SOURCES, DistillationError, DistillationSet
from lib.distil.train import CorrectorTraining, TrainedCorrector, errors_by_depth, train_corrector
from lib.environments import identity, make_env
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import key_of, keyed, rest_of
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import cached, write_artefact, write_table
from lib.speculation import SpeculativeController
from lib.study.arms import network_file
from lib.study.cells import Cell, Settings
from lib.weights.distilled import NetworkError, load_network, save_network
from lib.weights.native import CheckpointError, load_world_model, shipped_teachers, teacher_key
from lib.world_model import WorldModel

SHARD_EPISODES = 2  # collected together in one batch; few, so that a set of four episodes has plans of both planners
ROUND_EPISODES = 10_000  # seeds that each round may use: more episodes of one never reach the seeds of the next
RIGHT_SIZED = (64, 2)  # samples and iterations of the planner whose plans every other shard follows
ACTING = "two_tower"  # the corrector that acts from the second round on

# What is not in the shards' keys as code: correctors and the layout of a set are keyed by themselves, and nothing that
# is collected passes a gate.
COLLECTED_BY = (collect, SpeculativeController, MPPI, WorldModel)


def cells_with_teacher(settings: Settings) -> list[Cell]:
    """The cells whose teacher is there; says which are not when several were asked for.

    Raises `CheckpointError` when several were asked for and none is there.
    """
    if len(settings.cells) == 1:  # whoever loads its teacher says what is wrong with it
        return list(settings.cells)
    shipped = shipped_teachers()
    found = [cell for cell in settings.cells if str(cell) in shipped]
    lacking = ", ".join(str(cell) for cell in settings.cells if cell not in found)
    if not found:
        raise CheckpointError(
            f"none of the teachers asked for is shipped ({lacking}); train one with `python -m lib.teachers.cli`."
        )
    if lacking:
        print(f"left out, as no teacher of theirs is shipped: {lacking}")
    return found


# ----------------------------------------------------------------------------------------------- the distillation set


@dataclass(frozen=True)
class Shard:
    """One file of a set: its seeds, the facts that it keeps beside its columns, and the key of all that."""

    path: Path
    key: str
    seeds: list[int]
    facts: dict
    what: str


def distillation_set(
    settings: Settings, cell: Cell, episodes: int = 0, plan_horizon: int = 3, execution_horizon: int = 0
) -> tuple[DistillationSet, str]:
    """The distillation set of a cell and its key; `episodes` of each round, and `execution_horizon`, 0 = the profile's.

    Shards that are lacking are collected. Raises `ConfigError` for a number of episodes that no round can have.
    """
    profile, teacher = settings.profile, settings.teacher_name(cell)
    wm = load_world_model(teacher, task=cell.task, device=settings.device)
    budgets = _budgets(settings, wm.action_dim, plan_horizon)
    shards = _shards(settings, cell, budgets, episodes, execution_horizon)
    planner = functools.cache(lambda config: MPPI(wm, config))  # what is compiled or captured serves all shards
    # Trained only if a shard of a later round is lacking, and then once for all of them.
    acting = functools.cache(lambda files: _acting_corrector(files, profile.epochs, wm))

    def make(temporary: Path, shard: Shard) -> None:
        about, standard = shard.facts, planner(budgets[SOURCES[0]])
        before = tuple(s.path for s in shards if s.facts["round"] < about["round"])
        data = collect(
            planner(budgets[about["source"]]),
            standard,
            functools.partial(make_env, cell.task),
            shard.seeds,
            about["execution_horizon"],
            acting(before) if before else None,
            decisions=settings.decisions(cell.task),
            source=SOURCES.index(about["source"]),
            what=shard.what,
        )
        data.about = about | {"teacher": teacher}
        data.save(temporary)

    for shard in shards:
        made, what = functools.partial(make, shard=shard), f"the distillation set of {shard.what}"
        cached(shard.path, shard.key, made, what, **shard.facts, teacher=teacher)
    return DistillationSet.load(*(s.path for s in shards)), _key_of_set(shards)


def distillation_key(settings: Settings, cell: Cell) -> str:
    """The key of the profile's distillation set of a cell; nothing is collected."""
    wm = load_world_model(settings.teacher_name(cell), task=cell.task)
    return _key_of_set(_shards(settings, cell, _budgets(settings, wm.action_dim)))


def _key_of_set(shards: list[Shard]) -> str:
    return key_of((*COLLECTED_BY, train_corrector, CORRECTORS[ACTING]), [rest_of(shard.key) for shard in shards])


def _budgets(settings: Settings, action_dim: int, plan_horizon: int = 3) -> dict[str, PlannerConfig]:
    """The planners of the sources: the teacher's own, which also labels, and a right-sized one."""
    standard = settings.planner(action_dim, horizon=plan_horizon)
    small = PlannerConfig.budget(*RIGHT_SIZED, horizon=plan_horizon) if settings.profile.planner is None else standard
    return dict(zip(SOURCES, (standard, small), strict=True))


def _shards(
    settings: Settings, cell: Cell, budgets: dict[str, PlannerConfig], episodes: int = 0, execution_horizon: int = 0
) -> list[Shard]:
    """The files of a set, round after round. A shard's key names all that it depends on; those of later rounds also
    depend on all files of the rounds before."""
    profile = settings.profile
    episodes = episodes or profile.collect_episodes
    if not 1 <= episodes <= ROUND_EPISODES:
        raise ConfigError(f"episodes={episodes} must be between 1 and {ROUND_EPISODES}, or 0 for the profile's number.")
    found: list[Shard] = []
    for number in range(1, profile.rounds + 1):
        acting = [[rest_of(s.key) for s in found], ACTING, profile.epochs] if found else []
        roots = (*COLLECTED_BY, train_corrector, CORRECTORS[ACTING]) if found else COLLECTED_BY
        all_seeds = episode_seeds("collect", episodes, cell.seed, first=(number - 1) * ROUND_EPISODES)
        parts = [all_seeds[first : first + SHARD_EPISODES] for first in range(0, episodes, SHARD_EPISODES)]
        for part, seeds in enumerate(parts):
            source = SOURCES[part % len(SOURCES)]
            facts = {
                "task": cell.task,
                "teacher_key": teacher_key(settings.teacher_name(cell)),
                "labeller": keyed(budgets[SOURCES[0]]),
                "planner": keyed(budgets[source]),
                "source": source,
                "round": number,
                "execution_horizon": execution_horizon or profile.collect_horizon,
                "decisions": settings.decisions(cell.task),
            } | ({"environment": identity(cell.task)} if ":" in cell.task else {})
            key = key_of(roots, LAYOUT, facts, acting, seeds)
            path = paths.CACHE / "distillation" / f"{cell}-{name_of(key)}.safetensors"
            what = f"{cell}, round {number}/{profile.rounds}, shard {part + 1}/{len(parts)}"
            found.append(Shard(path, key, seeds, facts, what))
    return found


def _acting_corrector(files: tuple[Path, ...], epochs: int, wm: WorldModel) -> nn.Module:
    """What acts after the rounds of `files`."""
    return train_corrector(DistillationSet.load(*files), CorrectorTraining(ACTING, epochs), wm).corrector.to(wm.device)


# --------------------------------------------------------------------------------------------------------- correctors


def make_corrector(
    settings: Settings, cell: Cell, data: DistillationSet, key: str, training: CorrectorTraining
) -> tuple[TrainedCorrector, list[dict]]:
    """Train a corrector and write its learning curve, errors by depth, and weights. Returns it and the errors.

    Raises `DistillationError` for a set that is labelled by another teacher.
    """
    name = settings.teacher_name(cell)
    teacher = teacher_key(name)
    if data.about.get("teacher_key", teacher) != teacher:
        raise DistillationError(
            f"the distillation set is labelled by another {data.about.get('teacher', 'teacher')} than today's {name}; "
            "collect one with 02_collect_data."
        )
    wm = load_world_model(name, task=cell.task, device=settings.device)
    trained = train_corrector(data, training, wm)
    errors = errors_by_depth(trained.validation, trained.corrector)
    path = network_file(settings.profile.name, cell, training.arch)
    about = {"distillation_key": key, "samples": len(data), "training": as_dict(training)}
    write_table(path.with_suffix(".csv"), trained.curve, **about)
    write_table(path.with_name(f"{path.stem}-depth.csv"), errors, **about)
    write_artefact(path, lambda temporary: save_network(trained.corrector, temporary, teacher), **about)
    return trained, errors


def ensure_corrector(settings: Settings, cell: Cell, arch: str) -> Path:
    """The profile's corrector of a cell; made as the profile says when it is lacking or of another teacher."""
    path = network_file(settings.profile.name, cell, arch)
    try:
        load_network(path, teacher_key(settings.teacher_name(cell)))
    except NetworkError:
        data, key = distillation_set(settings, cell)
        make_corrector(settings, cell, data, key, CorrectorTraining(arch, settings.profile.epochs))
    return path
