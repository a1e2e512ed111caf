"""The whole: from a checkpoint to a folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.config import PlannerConfig
from lib.study.accelerate.conclusion import conclusion
from lib.study.accelerate.deadline import check_rate, find_delays
from lib.study.accelerate.folder import check_place, write_folder
from lib.study.accelerate.search import Search
from lib.study.stats.certification import KEEP


def accelerate(
    teacher: str,
    task: str,
    rate: float = 0.0,
    keep: float = KEEP,
    minutes: float = 30.0,
    out: str | Path = "",
    decisions: int = 0,
    planner: PlannerConfig | None = None,
) -> tuple[Path, dict]:
    """The folder that was written, and what was found, which `read_about` finds in it.

    teacher: a name or a file of weights; task: as of `make_env`; rate: decisions per second (0: no deadline); keep: the
    share of the teacher's return; `decisions` cut episodes short, and `planner` is the teacher's if not the standard
    one. Raises `ConfigError` for values that are not allowed, and a folder that holds something else, `NothingToKeep`
    for a teacher that has learnt nothing, `CheckpointError` for weights that are not the environment's, and
    `EnvironmentFailed` where it does again and again.
    """
    search = Search(teacher, task, rate, keep, minutes, decisions, planner)
    folder = Path(out or f"build/{search.cell}")
    check_place(folder, search.key, task)
    search.prepare()
    check_rate(search)
    find_delays(search)
    with search.or_left_out("calibration, and what is learnt"):
        search.right_size()
        if search.plan.certification:
            search.learn()
    table, episodes = search.choose()
    found, more = conclusion(search, table, episodes)
    search.clock.say(f"writing {folder}")
    return write_folder(folder, search.controller(found["pick"]), found, pd.concat([episodes, more])), found
