"""Rows that have keys of their own: which of a cell's arms are as they would come out today.

    for row in rows("paper", "walker-walk-1m-1"):
        print(row.name, row.why or "fresh")

`lib.records` asks here for the rows of notebooks 04 and 09, of perturbed worlds and of certified choices: an arm more,
or a gate that one arm uses, is a reason to play that arm, and no other.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from lib.correctors import CORRECTORS
from lib.records import paths
from lib.records.jobs import Row
from lib.records.ledger import same
from lib.records.store import intact, read_sidecar, read_table
from lib.study.arms import DELAY_AWARE, DRAFTED, arm_name, make_arm, network_file, numbers_of, recorded
from lib.study.calibrate import UNCALIBRATED, calibration_file, calibration_key
from lib.study.cells import Cell, Settings
from lib.study.delay_training import delay_aware_key
from lib.study.delays import arms_of, available, changed_arms, deadlines_file, gates_file, label, places
from lib.study.distillation import distillation_key
from lib.study.evaluate import Stage, arm_key
from lib.study.perturb import perturbed_file, read_deviations, std_file, worlds
from lib.study.profiles import PROFILES


def rows(profile: str, cell: str) -> list[Row]:
    """The arms that the profile plays on the cell, and the numbers of their gates."""
    settings, files = _networks(profile, cell)
    stage = Stage.of(settings.cell, profile, corrector_files=files, decisions=settings.decisions(settings.cell.task))
    standard = settings.planner(stage.wm.action_dim)
    table = paths.results(profile) / "horizon" / f"{cell}.csv"
    file = calibration_file(profile, cell)
    calibrated = json.loads(file.read_text(encoding="utf-8")) if intact(file) else {}
    kept = read_sidecar(table).get("arms", {}) if intact(table) else {}
    played = read_table(table)["arm"].value_counts()
    counts = settings.profile.counts(cell)
    learnt, found = distillation_key(settings, settings.cell), []
    for name, count in ((arm_name(name), count) for name, count in counts.items()):
        bare = make_arm(name, standard, UNCALIBRATED)
        if numbers := numbers_of(bare):
            then = calibrated.get(name, {}).get("key", "")
            now = calibration_key(stage, bare, learnt, settings.profile.calibrate_episodes)
            why = _why(then, now, 1, 1) if then else f"has no {numbers[0]} yet"
            found.append(Row(f"the gate of {name}", file, then, now, why))
            if not then:
                found.append(Row(f"arm {name}", table, "", now, "was never played"))
                continue
        arm = make_arm(name, standard, calibrated.get(name))
        now = arm_key(arm, stage.cell, stage.teacher, files.get(arm.corrector), stage.decisions)
        then = kept.get(name, {}).get("key", "")
        found.append(Row(f"arm {name}", table, then, now, _why(then, now, played.get(name, 0), count)))
    return [
        row if not row.why else Row(row.name, row.file, row.kept, row.now, f"{row.name} {row.why}") for row in found
    ]


def perturbed(profile: str, cell: str) -> list[Row]:
    """The profile's arms in each perturbed world of the cell."""
    settings, files = _networks(profile, cell)
    stage = Stage.of(settings.cell, profile, corrector_files=files, decisions=settings.decisions(settings.cell.task))
    table, own = perturbed_file(profile, cell), settings.profile
    numbers = calibration_file(profile, cell)
    calibrated = json.loads(numbers.read_text(encoding="utf-8")) if intact(numbers) else {}
    kept = read_sidecar(table).get("keys", {}) if intact(table) else {}
    std = read_deviations(std_file(profile, cell)) if intact(std_file(profile, cell)) else None
    rows, found = read_table(table), []
    severity = rows["severity"].map("-{:.12g}".format, na_action="ignore").fillna("")
    played = (rows["perturbation"] + severity + " " + rows["arm"]).value_counts()
    for world, place in worlds(stage, own.perturbations, std).items():
        for name in map(arm_name, own.perturbing(cell)):
            now = place.key(make_arm(name, settings.planner(stage.wm.action_dim), calibrated.get(name)))
            then, count = kept.get(world, {}).get(name, ""), played.get(f"{world} {name}", 0)
            why = _why(then, now, count, own.perturb_episodes)
            found.append(Row(f"{world} arm {name}", table, then, now, why and f"{world} arm {name} {why}"))
    return found


def deadlines(profile: str, cell: str) -> list[Row]:
    """The profile's arms at each delay, in the teacher's world and in changed ones, and the numbers of their gates.

    A row's name ends in the arm as tables have it, by which an audit finds what it has replayed.
    """
    settings, files = _networks(profile, cell)
    study, has = settings.profile.delays, available(settings.profile, cell)
    studied = cell in settings.profile.study_cells
    decisions = min(settings.decisions(settings.cell.task), study.decisions)
    stage = Stage.of(settings.cell, profile, corrector_files=files, decisions=decisions)
    standard, file, found = settings.planner(stage.wm.action_dim), gates_file(profile, cell), []
    calibrated = json.loads(file.read_text(encoding="utf-8")) if intact(file) else {}
    if DELAY_AWARE in has:
        name, network = f"the corrector {DELAY_AWARE}", network_file(profile, settings.cell, DELAY_AWARE)
        now = delay_aware_key(settings, settings.cell)
        if not intact(network):  # what acts with it has no key either
            return [Row(name, network, "", now, f"{name} was never made")]
        then = read_sidecar(network).get("network_key", "")
        found.append((name, network, then, now, "" if same(then, now) else "would learn other labels today"))
    wanted, names = study.study_episodes if studied else study.episodes, arms_of(study, has, studied)
    for bare in (make_arm(name, standard, UNCALIBRATED) for name in names):
        if numbers_of(bare):
            now = calibration_key(stage, bare, "", settings.profile.calibrate_episodes)
            then = calibrated.get(bare.name, {}).get("key", "")
            found.append((f"the gate of {bare.name}", file, then, now, _why(then, now, 1, 1)))
    changed = places(stage, study.perturbations) if study.perturbations else {}
    for where, played_there in ((places(stage), names), (changed, changed_arms(study, has, studied))):
        table = deadlines_file(profile, cell, where is changed)
        kept = read_sidecar(table).get("keys", {}) if intact(table) else {}
        played = read_table(table) if kept else None
        arms = [make_arm(name, standard, calibrated.get(name)) for name in played_there]
        for (world, place), arm in itertools.product(where.items(), arms):
            then, now = kept.get(world, {}).get(arm.name, ""), place.key(arm)
            count = len(place.rows_of(arm, played)) if then else 0
            about = label(arm)
            on = f"{about['planner']} d{about['delay']} " if arm.planner else ""
            name = f"{world} {on}arm {about['arm']}"
            found.append((name, table, then, now, _why(then, now, count, wanted)))
    return [Row(name, file, then, now, why and f"{name} {why}") for name, file, then, now, why in found]


def learnt(profile: str, cell: str) -> list[Row]:
    """The distillation set that each corrector of the cell learnt."""
    settings, files = _networks(profile, cell)
    now, found = distillation_key(settings, settings.cell), []
    for arch, file in ((name, file) for name, file in files.items() if name in CORRECTORS):
        then = read_sidecar(file).get("distillation_key", "") if intact(file) else ""
        why = "" if same(then, now) else f"{arch} learnt states that other code, settings or weights would collect"
        found.append(Row(f"the states that {arch} learnt", file, then, now, why))
    return found


def certified(profile: str, cell: str) -> list[Row]:
    """The arms that the cell's certification played, as they were then."""
    settings, files = _networks(profile, cell)
    table, found = paths.results(profile) / "certified" / f"{cell}.csv", []
    kept = read_sidecar(table).get("arms", {}) if intact(table) else {}
    teacher, decisions = settings.teacher_name(settings.cell), settings.decisions(settings.cell.task)
    for name, about in kept.items():
        arm, then = recorded(about), about["key"]
        now = arm_key(arm, settings.cell, teacher, files.get(arm.corrector), decisions)
        why = _why(then, now, 1, 1)
        found.append(Row(f"arm {name}", table, then, now, why and f"arm {name} {why}"))
    return found


def _networks(profile: str, cell: str) -> tuple[Settings, dict[str, Path]]:
    """The cell's settings, and the files of its networks: the profile's correctors, and whatever else is there."""
    settings = Settings(PROFILES[profile], (Cell.parse(cell),), "", "cpu")
    files = {name: network_file(profile, settings.cell, name) for name in (*CORRECTORS, *DRAFTED, DELAY_AWARE)}
    return settings, {n: file for n, file in files.items() if n in settings.profile.correctors or file.is_file()}


def _why(kept: str, now: str, played: int, wanted: int) -> str:
    if not kept:
        return "was never played"
    if not same(kept, now):
        return "was made by other code, settings or weights"
    return "" if played >= wanted else f"has {played} of {wanted} episodes"
