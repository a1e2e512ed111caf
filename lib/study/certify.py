"""A certified choice for a cell: the cheapest ways to control of which a test shows that they keep 98 % of the teacher.

    file = write_certified(settings, cell)        # data/results/<profile>/certified/<cell>.csv

The profile names chains of arms, the same for all cells, each in an order that is fixed beforehand, what plans most
first: `planners` ask a planner at every step, `reuse` executes plans over several steps, `drafts` act and are checked,
`clone` never plans. Candidates of a chain are played one after the other on start states that nothing else ever sees,
until the first one fails (`lib.study.stats.certification`). Of the admitted ones the cheapest is the chain's pick; the
teacher itself is always admitted. Picks are then checked on as many fresh episodes.

**What is kept is measured from a floor**, a rule of the task: tasks of DMControl have rewards of at least 0, and their
floor is 0; those of any other simulator may have negative returns, and their floor is what a random policy returns on
average over the same start states. Everywhere, a teacher that returns no more than a random policy is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pandas as pd

from lib.config import ConfigError, PlannerConfig
from lib.environments import identity, make_env
from lib.records import paths
from lib.records.keys import file_hash, key_of, plain, shown
from lib.records.ledger import name_of, same
from lib.records.seeds import episode_seeds
from lib.records.store import cached, committed, intact, known, read_table, write_json, write_table
from lib.rollout import rollout
from lib.study.arms import arm_name, correctors_of, make_arm
from lib.study.calibrate import UNCALIBRATED, calibration_file, calibration_key, gate_numbers
from lib.study.cells import Cell, Settings
from lib.study.distillation import distillation_key
from lib.study.evaluate import BLOCK, Stage
from lib.study.networks import ensure_network
from lib.study.stats.certification import (
    ALPHA,
    KEEP,
    above,
    falls,
    fixed_sequence,
    keeps_less,
    kept_above,
)
from lib.study.stats.intervals import share_limit
from lib.teachers.controllers import RandomController
from lib.weights import names as listed
from lib.weights.native import teacher_path

TEACHER, RANDOM, ALL = "teacher", "random", "all"
# Of the fresh block, the first seed that picks are checked on: those before it stand in tables that candidates were
# named after.
FRESH = 1_000
COLUMNS = ["arm", "episode_seed", "return", "length", "planner_calls", "model_evaluations", "refinements"]
EPISODES = "-episodes"  # the end of the name of a cell's table of episodes
NETWORK = ".safetensors"
LISTS = Path(__file__).with_name("profiles.toml")


# ----------------------------------------------------------------------------------------------------- the choice


def certify(
    stage: Stage,
    chains: dict[str, tuple[str, ...]],
    planner: PlannerConfig,
    calibration: dict[str, dict],
    count: int,
    keep: float = KEEP,
    fits: Callable[[str, str], bool] = lambda name, block: True,
    first: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Choose for a cell: what was tried, all episodes, and what was found beside (`floor`, `picks`, `arms`).

    chains: name → arms, safest first, also of those without any, as all share the level; `planner` is the teacher's;
    `calibration` has the gates' numbers by arm; `count` episodes are played of each arm. Where `fits` says that an arm
    is not to be played in a block of seeds, its chain ends before it, or it is not checked. `first` is where the seeds
    begin in their blocks, for who tests once more.
    Rows of the first table: chain, position, candidate, tried; of a tried one
    `episodes`, `kept` (a share of the teacher's), `p`, `admitted`, `evaluations` of the model per episode, `falls` and
    the upper end of the interval of their share, `falls_high`. Rows of the second are episodes of a `block` of seeds.

    Raises `ConfigError` for a teacher that returns no more than a random policy.
    """
    fresh = "report" if stage.profile == "paper" else "trial"
    seeds = {
        "certify": episode_seeds("certify", count, first=first),
        fresh: episode_seeds(fresh, count, first=FRESH + first),
    }
    played, configurations = {}, {}

    def play(name: str, block: str = "certify") -> pd.DataFrame:
        if (block, name) not in played:
            arm = make_arm(name, planner, calibration.get(name))
            tables, key = stage.play(arm, seeds[block])
            played[block, name] = pd.DataFrame(tables.episodes)[COLUMNS]
            configurations[name] = arm.settings | {"key": key, "decisions": stage.decisions}
        return played[block, name]

    played["certify", RANDOM] = random = random_episodes(stage, seeds["certify"])
    teacher, floor = play(TEACHER), floor_of(stage.cell.task, random)
    above(teacher["return"], random["return"].mean(), f"a random policy's return on {stage.cell}")
    rows = []
    for chain, candidates in chains.items():
        p_values, going = [], True
        for position, name in enumerate([TEACHER, *(n for n in map(arm_name, candidates) if n != TEACHER)]):
            row = {"chain": chain, "position": position, "candidate": name, "tried": False, "admitted": False}
            if going := going and (name == TEACHER or fits(name, "certify")):
                row["tried"], mine = True, play(name)
                if name != TEACHER:
                    p_values.append(keeps_less(mine["return"], teacher["return"], floor, keep))
                    row["p"], going = p_values[-1], fixed_sequence(p_values, ALPHA / len(chains))[-1]
                fallen = falls(mine, teacher, floor)
                row |= {
                    "admitted": going,
                    "episodes": len(mine),
                    "kept": kept_above(mine["return"], teacher["return"], floor).value,
                    "evaluations": float(mine["model_evaluations"].mean()),
                    "falls": fallen,
                    "falls_high": share_limit(fallen, len(mine)),
                }
            rows.append(row)
    columns = ["chain", "position", "candidate", "tried", "episodes", "kept", "p", "admitted", "evaluations"]
    table = pd.DataFrame(rows, columns=[*columns, "falls", "falls_high"]).astype(
        {"episodes": "Int64", "falls": "Int64"}
    )
    picked = picks(table)
    for name in dict.fromkeys([TEACHER, *picked.values()]):
        if fits(name, fresh):
            play(name, fresh)
    episodes = pd.concat([rows.assign(block=block, arm=name) for (block, name), rows in played.items()])
    episodes = episodes[["block", *COLUMNS]].astype(dict.fromkeys(COLUMNS[-3:], "Int64"))  # a random policy has none
    return table, episodes, {"floor": floor, "picks": picked, "arms": configurations}


def picks(table: pd.DataFrame) -> dict[str, str]:
    """Chain → the cheapest of its admitted candidates by model evaluations, the later one where they are equal; `all`:
    the cheapest of all chains. The level is that of all that is admitted, so that any rule may pick."""
    admitted = table[table["admitted"]].iloc[::-1].sort_values("evaluations", kind="stable")
    cheapest = admitted.groupby("chain")["candidate"].first()
    return {chain: cheapest[chain] for chain in dict.fromkeys(table["chain"])} | {ALL: admitted["candidate"].iloc[0]}


def floor_of(task: str, random: pd.DataFrame) -> float:
    """The return that a share is measured from: 0 for tasks of DMControl, else the mean of a random policy's."""
    return float(random["return"].mean()) if ":" in task else 0.0


def random_episodes(stage: Stage, seeds: list[int]) -> pd.DataFrame:
    """The return and length of a random policy's episodes with these seeds; played once."""
    task, decisions = stage.cell.task, stage.decisions
    others = [identity(task)] if ":" in task else []
    key = key_of((random_returns, RandomController), task, decisions, seeds, stage.wm.action_dim, *others)

    def make(path: Path) -> None:
        write_json(path, random_returns(RandomController(stage.wm.action_dim), task, seeds, decisions))

    store = paths.CACHE / "random" / f"{name_of(key)}.json"
    rows = json.loads(cached(store, key, make, f"random episodes of {stage.cell}").read_text(encoding="utf-8"))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def random_returns(controller: RandomController, task: str, seeds: list[int], decisions: int) -> list[dict]:
    """A row for each seed: episode_seed, return, length."""
    rows = [{"episode_seed": seed, "return": 0.0, "length": 0} for seed in seeds]
    for first in range(0, len(seeds), BLOCK):
        for step in rollout(controller, partial(make_env, task), seeds[first : first + BLOCK], decisions):
            for row, reward in zip(step.rows, step.rewards, strict=True):
                rows[first + row]["return"] += float(reward)
                rows[first + row]["length"] += 1
    return rows


# ---------------------------------------------------------------------------------------------------- as a result


def write_certified(settings: Settings, cell: Cell) -> Path:
    """Certify a cell as the profile says; writes `certified/<cell>.csv` and `<cell>-episodes.csv`, returns the first.

    Correctors and thresholds that are lacking are made first. Under the paper profile nothing is played before the
    lists of candidates, the weights and the thresholds are committed: `ConfigError` names those that are not. A table
    that is made again of the same play names the commits that the one before it named.
    """
    profile, study = settings.profile, settings.profile.certification
    candidates = [arm_name(name) for chain in study.chains.values() for name in chain]
    correctors = {arch: ensure_network(settings, cell, arch) for arch in correctors_of(candidates)}
    teacher, decisions = settings.teacher_name(cell), settings.decisions(cell.task)
    stage = Stage.of(cell, profile.name, teacher, correctors, decisions, settings.device)
    planner = settings.planner(stage.wm.action_dim)
    calibration = thresholds(settings, stage, candidates, planner)
    numbers = [calibration_file(profile.name, cell)] if calibration else []
    used = fixed([LISTS, *correctors.values(), *numbers], teacher, cell, profile.name == "paper")
    count = next(count for pattern, count in study.episodes if fnmatchcase(str(cell), pattern))
    table, episodes, found = certify(stage, study.chains, planner, calibration, count)
    about = {"teacher": teacher, "task": cell.task, "level": ALPHA, "keep": KEEP, "chains": study.chains}
    about |= {"used": used} | found
    file = paths.results(profile.name) / "certified" / f"{cell}.csv"
    if same_play(file, episodes, about):
        about["used"] = known(file)["used"]
    write_table(file.with_name(f"{cell}{EPISODES}.csv"), episodes, **about)
    return write_table(file, table, **about)  # last: it says that the cell is certified


def same_play(file: Path, episodes: pd.DataFrame, about: dict) -> bool:
    """Whether the certificate `file` is of these episodes, chains and networks: code, other cells of the lists and
    other arms' thresholds may have changed since, and what it was fixed by before its play stays what it was."""
    told = file.with_name(f"{file.stem}{EPISODES}.csv")
    if not (intact(file) and intact(told)):
        return False
    before, now = known(file), json.loads(json.dumps(about, default=plain))
    networks = [
        {name: facts["sha256"] for name, facts in one["used"].items() if name.endswith(NETWORK)}
        for one in (before, now)
    ]
    kinds = {"block": str, "arm": str, "episode_seed": int, "return": float}
    rows = [
        list(table[[*kinds]].astype(kinds).itertuples(index=False, name=None)) for table in (read_table(told), episodes)
    ]
    return networks[0] == networks[1] and before["chains"] == now["chains"] and rows[0] == rows[1]


def thresholds(settings: Settings, stage: Stage, candidates: list[str], planner: PlannerConfig) -> dict[str, dict]:
    """Arm → its gate's numbers, for those that have a gate: as they are kept, and made only where one is lacking, as a
    file that is written again would not be the committed one."""
    gated = {name: arm for name in candidates if (arm := make_arm(name, planner, UNCALIBRATED)).gate}
    file = calibration_file(settings.profile.name, stage.cell)
    kept = json.loads(file.read_text(encoding="utf-8")) if intact(file) else {}
    learnt = distillation_key(settings, stage.cell) if gated else ""
    for name, arm in gated.items():
        key = calibration_key(stage, arm, learnt, settings.profile.calibrate_episodes)
        if not same(kept.get(name, {}).get("key"), key):
            return gate_numbers(settings, stage, list(gated), planner)
    return {name: kept[name] for name in gated}


def fixed(used: list[Path], teacher: str, cell: Cell, needed: bool) -> dict[str, dict]:
    """File → its sha256 and the commit that has it, of what a choice depends on, the teacher's weights among it.

    Raises `ConfigError` where a commit is `needed` and git does not have a file as it is. Weights from elsewhere are
    fixed by the checksum that they are listed with.
    """
    weights, entry = teacher_path(teacher), listed.find(teacher)
    about = {shown(file): {"sha256": file_hash(file), "commit": committed(file)} for file in [*used, weights]}
    pinned = shown(weights) if entry and entry.url and entry.sha256 == file_hash(weights) else ""
    lacking = [name for name, facts in about.items() if not facts["commit"] and name != pinned]
    if needed and lacking:
        raise ConfigError(
            f"{', '.join(lacking)}: not committed as of now; what {cell} is certified with must be fixed before its "
            "episodes are played, so commit it first."
        )
    return about
