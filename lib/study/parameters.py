"""What each parameter of the notebooks may be, once for all of them.

    check_notebook("04_horizon_evaluation", globals())     # in the first cell, before anything is read or written
    check(profile=profile, seed=seed)                      # the same of some values

Names and types are those that the notebook's own parameters cell declares. Results do not depend on what stands here:
values are refused or stay as they are, but for an integer that stands for a float.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable

from lib.config import MODEL_SIZES, ConfigError, PlannerConfig, one_of, quoted
from lib.correctors import CORRECTORS, MAX_DEPTH
from lib.environments import EPISODE_DECISIONS, check_task, task_names
from lib.study.arms import make_arm
from lib.study.profiles import PROFILES
from lib.teachers.config import SMOKE_TRAINING, SNAPSHOTS, TeacherConfig
from lib.weights.native import resolve_device

KINDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
PAPERMILLS_OWN = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # which it adds when it is asked to
Rule = Callable[[str, object], object]  # of a parameter's name and value; raises `ConfigError`


# ----------------------------------------------------------------------------------------------------------- rules


def between(least: float, most: float, or_zero: bool = False) -> Rule:
    """Numbers from `least` to `most`; also 0, where that means as the profile says."""

    def rule(name: str, value) -> None:
        if not (least <= value <= most or or_zero and value == 0):
            zero = ", or 0 for what the profile says" if or_zero else ""
            raise ConfigError(f"{name}={quoted(value)} must lie between {least:,} and {most:,}{zero}.")

    return rule


def among(*allowed: str) -> Rule:
    return lambda name, value: one_of(name, value, allowed)


def anything(name: str, value) -> None:
    """Who loads a teacher says whether there is one, and who writes a folder whether it may."""


def task(name: str, value: str) -> None:
    if ":" in value or importlib.util.find_spec("dm_control"):  # timing the planner needs no simulator
        check_task(value)


def device(name: str, value: str) -> None:
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", value):
        raise ConfigError(f"{name}={quoted(value)} is not known; use auto, cpu or cuda[:N].")
    resolve_device(value)


def file(name: str, value: str) -> None:
    if value and not os.path.isfile(value):
        raise ConfigError(f"{name}={quoted(value)} is no file; give the path of one, or leave it out.")


def several(rule: Rule) -> Rule:
    """Text with commas, empty for what the profile says; the rule is for each part."""

    def of_each(name: str, value: str) -> None:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if value and not parts:
            raise ConfigError(f"{name}={quoted(value)} names nothing; leave it empty for what the profile says.")
        for part in parts:
            rule(name, part)

    return of_each


def buffer(name: str, value: str) -> None:
    from lib.study.model_quality.buffers import check_name

    check_name(value)


def environment(name: str, value: str) -> None:
    from lib.study.sequence.evaluate import MUJOCO

    if value not in ("", *MUJOCO) and ":" not in value:
        one_of(name, value, ["", *MUJOCO, *task_names()])
    elif ":" in value:
        check_task(value)


def dataset(name: str, value: str) -> None:
    from lib.study.sequence.datasets import check_name

    check_name(value)


EPISODES = between(0, 10_000)
RULES: dict[str, Rule] = {
    # of all notebooks
    "profile": lambda name, value: one_of(name, value, PROFILES),
    "task": task,
    "model_size": among(*MODEL_SIZES, "all"),
    "seed": between(0, 99),
    "teacher": anything,
    "device": device,
    # of some
    "episodes": EPISODES,
    "decisions": between(0, 10**8),
    "plan_horizon": between(1, MAX_DEPTH),
    "execution_horizon": between(0, MAX_DEPTH),
    "history_len": between(1, EPISODE_DECISIONS),
    "min_mismatch": between(0, 1),
    "max_samples": between(0, 10**9),
    "data": file,
    "corrector_type": among(*CORRECTORS, "both"),
    "epochs": between(0, 10**5),
    "batch_size": between(1, 10**6),
    "lambda_reg": between(0, 10**6),
    "rollout_weight": between(0, 10**6),
    "q_weighted": anything,
    "arms": several(lambda name, value: make_arm(value, PlannerConfig())),
    "threshold": between(0, 10**6),
    "buffer": several(buffer),
    "horizon": between(1, EPISODE_DECISIONS),
    "batches": between(1, 10**6),
    "noise": between(0, 10**6),
    "buffer_seed": between(0, 99),
    "states": between(0, 10**6),
    "actions_per_state": between(0, 10**6),
    "k": between(0, EPISODE_DECISIONS),
    "env": environment,
    "dataset": dataset,
    "checkpoint": file,
    "seconds": between(0, 86_400),
    "rate": between(0, 10**6),
    "keep": between(0, 1),
    "minutes": between(0, 10_000),
    "out": anything,
}
# Where a parameter means something else in one notebook.
OWN: dict[str, dict[str, Rule]] = {
    "02_collect_data": {"execution_horizon": between(2, MAX_DEPTH, or_zero=True)},  # of one step no state is labelled
    "04_horizon_evaluation": {"model_size": among(*MODEL_SIZES)},
    "06_offline_vs_downstream": {"task": among(*SNAPSHOTS, "all")},
    "07_decision_transformer": {"model_size": among(*MODEL_SIZES)},
    "09_deadlines": {"model_size": among(*MODEL_SIZES)},
    "10_your_own_teacher": {"model_size": among(*MODEL_SIZES), "device": among("cpu")},
    "11_drafts": {"model_size": among(*MODEL_SIZES)},
}


# ---------------------------------------------------------------------------------------------------------- checks


def check(**values) -> None:
    """`ConfigError`, one sentence, for the first of the values that a parameter of its name may not have."""
    for name, value in values.items():
        RULES[name](name, value)


def check_notebook(notebook: str, names: dict) -> None:
    """Refuse parameters that the notebook does not have, and values that are not allowed, of its global `names`.

    A float that was given as an integer becomes one. Raises `ConfigError` in one sentence.
    """
    declared = {name: getattr(kind, "__name__", kind) for name, kind in names.get("__annotations__", {}).items()}
    for name in injected(names.get("In", [])):
        one_of("parameter", name, declared)
    rules = {name: rule for name, rule in (RULES | OWN.get(notebook, {})).items() if name in declared and name in names}
    for name, rule in rules.items():
        check_type(name, names[name], declared[name], rule)
        rule(name, names[name])
        if declared[name] == "float":
            names[name] = float(names[name])
    together({name: names[name] for name in rules})


def injected(cells: list[str]) -> list[str]:
    """Names that papermill has set: it adds a cell of assignments, which has then run right before the last of `cells`.

    Whatever ran before that may be an earlier attempt of somebody in JupyterLab, and does not count.
    """
    added = [cell for cell in cells[-2:-1] if cell.startswith("# Parameters\n")]
    found = [name for cell in added for name in re.findall(r"^(\w+) = ", cell, re.MULTILINE)]
    return [name for name in found if name not in PAPERMILLS_OWN]


def check_type(name: str, value, kind: str, rule: Rule) -> None:
    if type(value).__name__ == kind or (kind == "float" and type(value) is int):
        return
    if kind == "str":
        rule(name, str(value))  # which may know what was meant
    hint = f", which papermill takes as it is after -r: -r {name} {value}" if kind == "str" else ""
    raise ConfigError(f"{name}={quoted(value)} must be {KINDS[kind]}{hint}.")


def together(values: dict) -> None:
    """What no parameter can tell alone."""
    if decisions := values.get("decisions"):
        if teacher := values["teacher"]:
            raise ConfigError(
                f"decisions={decisions} trains from scratch, without teacher={quoted(teacher)}; leave one out."
            )
        if values["model_size"] == "all":
            raise ConfigError(f"decisions={decisions} trains one size, and model_size=all is more; name one.")
        least = SMOKE_TRAINING["eval_every"] if values["profile"] == "smoke" else TeacherConfig.eval_every
        if decisions < least:
            raise ConfigError(f"decisions={decisions} ends before the first evaluation; take at least {least:,}, or 0.")
