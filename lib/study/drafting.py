"""The drafts of a cell and their rivals at equal labels, made where they are lacking, and what they cost and return.

    file = ensure_draft(settings, cell, "distilled")       # or "cloned", "prior+"
    rows = learning_curve(settings, cell, episodes=20)     # after each round of labels: errors, returns

- `distilled` learns in rounds (DAgger): the first has the labeller's own episodes, later ones the draft's so far;
- `cloned` has as many labels, all of them of the labeller's own episodes;
- `prior+` is TD-MPC2's prior after as many more policy updates on the states of `distilled`, which need no labels.

Labels are those of a right-sized planner. Files of states are kept by what they depend on.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.config import ConfigError, PlannerConfig, as_dict, one_of
from lib.distil.draft_training import DraftTraining, TrainedDraft, draft_errors, split_states, train_draft
from lib.distil.labels import FORMAT, LabelledStates, collect_labels
from lib.drafts import Draft, DraftController, PriorDraft
from lib.environments import identity, make_env
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import name_of, same
from lib.records.seeds import episode_seeds
from lib.records.store import cached, intact, known, write_artefact
from lib.rollout import rollout
from lib.study.arms import DRAFTED, network_file
from lib.study.cells import Cell, Settings
from lib.study.profiles import DraftStudy
from lib.teachers.config import TeacherConfig
from lib.teachers.controllers import ReplanningController
from lib.teachers.learner import Learner
from lib.weights.distilled import save_network
from lib.weights.native import load_world_model, teacher_key
from lib.world_model import WorldModel

FIRST_SEED, ROUND_SEEDS = 500_000, 10_000  # of the block of collection: those before are the corrector's
COLLECTED_BY = (collect_labels, make_env, MPPI, WorldModel)
TAUGHT_BY = (train_draft, Draft)


@dataclass(frozen=True)
class Round:
    """One file of labelled states, the facts that it keeps beside its columns, and its key."""

    path: Path
    key: str
    seeds: list[int]
    labels: int
    facts: dict


def training_of(study: DraftStudy, seed: int = 0, modes: int = 0) -> DraftTraining:
    """How the profile's drafts are trained; `modes` 0 are the profile's."""
    return DraftTraining(epochs=study.epochs, members=study.members, modes=modes or study.modes, seed=seed)


def rounds_of(settings: Settings, cell: Cell, kind: str, extended: bool = False) -> list[Round]:
    """The files of a kind's labels, round after round; nothing is collected. `extended`: those of the longer curve
    too. Later rounds of `distilled` depend on all before."""
    study, teacher = settings.profile.drafts, settings.teacher_name(cell)
    if study.betas[:1] != (1.0,):
        raise ConfigError(f"betas={study.betas} must begin with 1: before the first round there is no draft.")
    wm = load_world_model(teacher, task=cell.task)
    labeller, standard = (_budget(config) for config in _planners(settings, wm))
    decisions, found = settings.decisions(cell.task), []
    for number, labels in enumerate([*study.labels, *(study.more_labels if extended else ())], 1):
        acting = kind != "cloned" and number > 1
        first = FIRST_SEED + (number - 1) * ROUND_SEEDS
        seeds = episode_seeds("collect", ROUND_SEEDS, cell.seed, first=first)
        facts = {
            "task": cell.task, "teacher_key": teacher_key(teacher), "labeller": labeller, "standard": standard,
            "round": number, "beta": _beta(study, number) if acting else 1.0, "decisions": decisions,
        } | ({"environment": identity(cell.task)} if ":" in cell.task else {})  # fmt: skip
        before = [[rest_of(r.key) for r in found], as_dict(training_of(study))] if acting else []
        key = key_of((*COLLECTED_BY, *(TAUGHT_BY if acting else ())), FORMAT, facts, before, [seeds[0], labels])
        path = paths.CACHE / "labels" / f"{cell}-{name_of(key)}.safetensors"
        found.append(Round(path, key, seeds, labels, facts))
    return found


def labelled_states(settings: Settings, cell: Cell, kind: str, extended: bool = False) -> list[Path]:
    """The files of labels, of which those lacking are collected."""
    study, teacher = settings.profile.drafts, settings.teacher_name(cell)
    rounds = rounds_of(settings, cell, kind, extended)

    @functools.cache
    def planners() -> tuple[MPPI, MPPI]:
        wm = load_world_model(teacher, task=cell.task, device=settings.device)
        labeller, standard = _planners(settings, wm)
        return MPPI(wm, labeller), MPPI(wm, standard)

    def make(temporary: Path, number: int) -> None:
        one, draft = rounds[number], None
        if one.facts["beta"] < 1:
            states = LabelledStates.load(*(r.path for r in rounds[:number]))
            draft = train_draft(states, training_of(study)).draft.to(settings.device)
        what = f"{cell} {kind}, round {number + 1}/{len(rounds)}"
        envs = functools.partial(make_env, cell.task)
        states = collect_labels(
            *planners(),
            envs,
            one.seeds,
            one.labels,
            draft,
            *(one.facts[name] for name in ("beta", "decisions", "round")),
            what,
        )
        states.about |= one.facts | {"teacher": teacher}
        states.save(temporary)

    for number, one in enumerate(rounds):
        what = f"round {number + 1}/{len(rounds)} of the labels of {cell}"
        cached(one.path, one.key, functools.partial(make, number=number), what, **one.facts, teacher=teacher)
    return [r.path for r in rounds]


def _planners(settings: Settings, wm: WorldModel) -> tuple[PlannerConfig, PlannerConfig]:
    """Who labels, and the standard planner that labels a tenth once more."""
    standard = settings.planner(wm.action_dim)
    small = settings.profile.planner or PlannerConfig.budget(*settings.profile.drafts.labeller)
    return small, standard


def _budget(config: PlannerConfig) -> dict:
    """A planner as it is keyed: how its algorithm is executed does not matter."""
    return {k: v for k, v in as_dict(config).items() if k != "mode"}


def _beta(study: DraftStudy, number: int) -> float:
    """The share of labels that are executed in a round; 0 after those that the profile names."""
    return study.betas[number - 1] if number <= len(study.betas) else 0.0


# ------------------------------------------------------------------------------------------------------------ drafts


def ensure_draft(settings: Settings, cell: Cell, kind: str) -> Path:
    """The profile's draft of a cell; made where it is lacking, or of another teacher, other labels or other code."""
    one_of("draft", kind, DRAFTED)
    path = network_file(settings.profile.name, cell, kind)
    teacher = teacher_key(settings.teacher_name(cell))
    rounds, training = rounds_of(settings, cell, kind), as_dict(training_of(settings.profile.drafts))
    roots = (*COLLECTED_BY, *((learnt_on, PriorDraft) if kind == "prior+" else TAUGHT_BY))
    key = key_of(roots, kind, [rest_of(r.key) for r in rounds], training)
    if intact(path) and same(known(path).get("draft_key"), key):
        return path
    draft = trained(settings, cell, kind, LabelledStates.load(*labelled_states(settings, cell, kind))).draft
    return write_artefact(path, lambda temporary: save_network(draft, temporary, teacher), draft_key=key)


def trained(
    settings: Settings, cell: Cell, kind: str, states: LabelledStates, seed: int = 0, modes: int = 0
) -> TrainedDraft:
    """A draft of a kind from labelled states, with the weights that its file will hold: rounded to half precision."""
    training = training_of(settings.profile.drafts, seed, modes)
    if kind != "prior+":
        made = train_draft(states, training)
    else:
        learnt, held_out = split_states(states)
        wm = load_world_model(settings.teacher_name(cell), task=cell.task)
        updates = training.epochs * math.ceil(int(learnt.sum()) / training.batch_size)
        draft = learnt_on(wm, states.rows(learnt), updates, training.batch_size, seed)
        made = TrainedDraft(draft, [], states.rows(held_out))
    made.draft.half().float()
    return made


def learnt_on(wm: WorldModel, states: LabelledStates, updates: int, batch_size: int, seed: int = 0) -> PriorDraft:
    """The prior after more policy updates on these states: the teacher's own rule, its Q as it is."""
    torch.manual_seed(seed)
    wm = copy.deepcopy(wm).requires_grad_(True)
    learner = Learner(wm, TeacherConfig(compile=False))
    for _ in range(updates):
        rows = torch.randint(len(states), (batch_size,))
        learner.update_policy([states.z[rows].float().unsqueeze(0)])
    hidden = wm.pi[0].weight.shape[0]
    draft = PriorDraft(wm.latent_dim, wm.action_dim, hidden)
    draft.pi.load_state_dict(wm.pi.state_dict())
    return draft.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------- the learning curve

CURVE = (
    "draft", "modes", "seed", "round", "labels", "label_minutes", "held_out_mse", "policy_mse", "floor", "to_standard",
    "episode_seed", "return",
)  # fmt: skip


def learning_curve(
    settings: Settings, cell: Cell, kind: str, episodes: int, seed: int = 0, modes: int = 0, last: bool = False,
    extended: bool = False,
) -> list[dict]:  # fmt: skip
    """Rows of `CURVE`, one per round and calibration episode: what a draft of all labels up to that round errs on its
    held-out episodes, and returns.

    `modes` are other ones than the profile's, `last` is for the last round alone, `extended` for more rounds.
    """
    files = labelled_states(settings, cell, kind, extended)
    wm = load_world_model(settings.teacher_name(cell), task=cell.task, device=settings.device)
    seeds, rows, minutes = episode_seeds("calibrate", episodes, cell.seed), [], 0.0
    for number, file in enumerate(files, 1):
        minutes += LabelledStates.load(file).about["label_minutes"]
        if last and number < len(files):
            continue
        states = LabelledStates.load(*files[:number])
        made = trained(settings, cell, kind, states, seed, modes)
        errors = draft_errors(made.held_out, made.draft)
        # Eager, as compiling each of many drafts takes longer than they play.
        controller = DraftController(wm, made.draft.to(settings.device), mode="eager")
        returns = played(controller, cell, seeds, settings.decisions(cell.task))
        about = (kind, getattr(made.draft, "modes", None), seed, number, len(states), minutes, *errors.values())
        rows += [dict(zip(CURVE, (*about, *one), strict=True)) for one in zip(seeds, returns, strict=True)]
    return rows


def references(settings: Settings, cell: Cell, episodes: int) -> list[dict]:
    """Rows of `CURVE` of who needs no draft on the same start states: `labeller`, at every step, and the `policy`."""
    wm = load_world_model(settings.teacher_name(cell), task=cell.task, device=settings.device)
    seeds, rows = episode_seeds("calibrate", episodes, cell.seed), []
    acting = {"labeller": ReplanningController(MPPI(wm, _planners(settings, wm)[0])), "policy": PolicyController(wm)}
    for name, controller in acting.items():
        returns = played(controller, cell, seeds, settings.decisions(cell.task))
        of = dict.fromkeys(CURVE) | {"draft": name}
        rows += [of | {"episode_seed": s, "return": value} for s, value in zip(seeds, returns, strict=True)]
    return rows


def played(controller, cell: Cell, seeds: list[int], decisions: int) -> list[float]:
    """The return of each episode with these seeds."""
    returns = np.zeros(len(seeds))
    for step in rollout(controller, functools.partial(make_env, cell.task), seeds, decisions):
        returns[step.rows] += step.rewards
    return returns.tolist()
