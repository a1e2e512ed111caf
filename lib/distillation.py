"""Distilling the replanning teacher into a corrector: the artefacts that are kept, and made when they are lacking.

    data, key = distillation_set(settings, cell)                       # collected once, then read from the cache
    trained, errors = make_corrector(settings, cell, "two_tower", data, key, epochs=60)

A distillation set is collected in shards of a few episodes, each a file with a key of its own under
`data/cache/distillation/`: a run that was killed goes on at the next shard, and more episodes only add shards. Plans of
the standard and of a right-sized planner take turns, so that a corrector knows the plans of both.
"""

from __future__ import annotations

import functools
from pathlib import Path

from torch import nn

from lib import paths
from lib.checkpoints import CheckpointError, load_world_model, shipped_teachers, teacher_key
from lib.collection import collect
from lib.config import Cell, ConfigError, PlannerConfig, Settings, as_dict, episode_seeds
from lib.corrector_training import TrainedCorrector, errors_by_depth, train_corrector
from lib.correctors import CorrectorError, load_corrector, save_corrector
from lib.distillation_set import LAYOUT, SOURCES, DistillationError, DistillationSet
from lib.planner import MPPI
from lib.results import SETTINGS_MODULES, cached, combine, module_key, write_artefact, write_table
from lib.world_model import WorldModel

SHARD_EPISODES = 2  # collected together in one batch; few, so that a set of four episodes has plans of both planners
ROUND_EPISODES = 10_000  # seeds that each round may use: more episodes of one never reach the seeds of the next
RIGHT_SIZED = (64, 2)  # samples and iterations of the planner whose plans every other shard follows
ACTING = "two_tower"  # the corrector that acts from the second round on

# What is not in the shards' keys as code: correctors and the layout of a set are keyed by themselves, and nothing that
# is collected passes a gate.
ELSEWHERE = (*SETTINGS_MODULES, "lib.correctors", "lib.gates", "lib.distillation_set")


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
            f"none of the teachers asked for is shipped ({lacking}); train one with `python -m lib.teacher`."
        )
    if lacking:
        print(f"left out, as no teacher of theirs is shipped: {lacking}")
    return found


# ----------------------------------------------------------------------------------------------- the distillation set


def distillation_set(
    settings: Settings, cell: Cell, episodes: int = 0, plan_horizon: int = 3, execution_horizon: int = 0
) -> tuple[DistillationSet, str]:
    """The distillation set of a cell and its key; `episodes` of each round, and `execution_horizon`, 0 = the profile's.

    Shards that are lacking are collected. Raises `ConfigError` for a number of episodes that no round can have.
    """
    teacher, profile = settings.teacher_name(cell), settings.profile
    episodes = episodes or profile.collect_episodes
    if not 1 <= episodes <= ROUND_EPISODES:
        raise ConfigError(f"episodes={episodes} must be between 1 and {ROUND_EPISODES}, or 0 for the profile's number.")
    wm = load_world_model(teacher, task=cell.task, device=settings.device)
    standard = settings.planner(wm.action_dim, horizon=plan_horizon)
    small = PlannerConfig.budget(*RIGHT_SIZED, horizon=plan_horizon) if profile.planner is None else standard
    budgets = dict(zip(SOURCES, (standard, small), strict=True))
    planner = functools.cache(lambda config: MPPI(wm, config))  # what is compiled or captured serves all shards
    facts = {
        "task": cell.task,
        "teacher_key": teacher_key(teacher),
        "labeller": _budget(standard),
        "execution_horizon": execution_horizon or profile.collect_horizon,
        "decisions": profile.decisions,
    }

    def make(temporary: Path, seeds: list[int], source: int, corrector, about: dict, what: str) -> None:
        horizon, config = about["execution_horizon"], budgets[SOURCES[source]]
        solvers = planner(config), planner(standard)
        data = collect(
            *solvers, cell.task, seeds, horizon, corrector(), decisions=profile.decisions, source=source, what=what
        )
        data.about = about
        data.save(temporary)

    code = module_key("lib.collection", without=ELSEWHERE)
    training_code = module_key("lib.corrector_training", without=SETTINGS_MODULES)
    files: list[Path] = []
    keys: list[str] = []
    for number in range(1, profile.rounds + 1):
        # Trained only if a shard is lacking, and then once for all of them.
        corrector = functools.cache(functools.partial(_acting_corrector, tuple(files), profile.epochs, wm))
        acting = combine(keys, ACTING, profile.epochs, training_code) if files else ""
        all_seeds = episode_seeds("collect", episodes, cell.seed, first=(number - 1) * ROUND_EPISODES)
        shards = [all_seeds[first : first + SHARD_EPISODES] for first in range(0, episodes, SHARD_EPISODES)]
        for shard, seeds in enumerate(shards):
            source = shard % len(SOURCES)
            facts |= {"planner": _budget(budgets[SOURCES[source]]), "source": SOURCES[source], "round": number}
            key = combine(code, LAYOUT, facts, acting, seeds)
            what = f"{cell}, round {number}/{profile.rounds}, shard {shard + 1}/{len(shards)}"
            path = paths.CACHE / "distillation" / f"{cell}-{key[:16]}.safetensors"
            about = facts | {"teacher": teacher}
            made = functools.partial(make, seeds=seeds, source=source, corrector=corrector, about=about, what=what)
            files.append(cached(path, key, made, f"the distillation set of {what}", **about))
            keys.append(key)
    return DistillationSet.load(*files), combine(keys)


def _budget(config: PlannerConfig) -> dict:
    """A planner as it is keyed: how its algorithm is executed does not matter."""
    return {k: v for k, v in as_dict(config).items() if k != "mode"}


def _acting_corrector(files: tuple[Path, ...], epochs: int, wm: WorldModel) -> nn.Module | None:
    """What acts after the rounds of `files`; None in the first round, where plans are executed as they are."""
    if not files:
        return None
    return train_corrector(DistillationSet.load(*files), ACTING, epochs=epochs, wm=wm).corrector.to(wm.device)


# --------------------------------------------------------------------------------------------------------- correctors


def corrector_path(settings: Settings, cell: Cell, arch: str) -> Path:
    """Where a profile's corrector of a cell is kept."""
    return paths.results(settings.profile.name) / "corrector" / f"{cell}-{arch}.safetensors"


def make_corrector(
    settings: Settings, cell: Cell, arch: str, data: DistillationSet, key: str, **training
) -> tuple[TrainedCorrector, list[dict]]:
    """Train a corrector and write its learning curve, errors by depth, and weights. Returns it and the errors.

    `training` goes to `train_corrector`, with the teacher's world model. Raises `DistillationError` for a set that is
    labelled by another teacher.
    """
    name = settings.teacher_name(cell)
    teacher = teacher_key(name)
    if data.about.get("teacher_key", teacher) != teacher:
        raise DistillationError(
            f"the distillation set is labelled by another {data.about.get('teacher', 'teacher')} than today's {name}; "
            "collect one with 02_collect_data."
        )
    wm = load_world_model(name, task=cell.task, device=settings.device)
    trained = train_corrector(data, arch, **training, wm=wm)
    errors = errors_by_depth(trained.validation, trained.corrector)
    path = corrector_path(settings, cell, arch)
    about = {"distillation_key": key, "samples": len(data), "training": training}
    write_table(path.with_suffix(".csv"), trained.curve, **about)
    write_table(path.with_name(f"{path.stem}-depth.csv"), errors, **about)
    write_artefact(path, lambda temporary: save_corrector(trained.corrector, temporary, teacher), **about)
    return trained, errors


def ensure_corrector(settings: Settings, cell: Cell, arch: str) -> Path:
    """The profile's corrector of a cell; made as the profile says when it is lacking or of another teacher."""
    path = corrector_path(settings, cell, arch)
    try:
        load_corrector(path, teacher_key(settings.teacher_name(cell)))
    except CorrectorError:
        data, key = distillation_set(settings, cell)
        make_corrector(settings, cell, arch, data, key, epochs=settings.profile.epochs)
    return path
