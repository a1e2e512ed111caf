"""Which offline metric tells how a world model will plan: a snapshot of a training run, measured and played.

    bench = Bench(snapshot, "quick", study.sizes)
    row, gaps = bench.rows()
    rows, gaps, skipped = measure_cells(study)      # of all cells

Rows are measured, or taken from result files whose keys say that they would come out again. Whatever is costly is kept
under a key of its own, part by part: a killed run goes on where it was, and a change in one part leaves the others.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

from lib.planner import MPPI
from lib.records import paths
from lib.records.jobs import Row
from lib.records.keys import key_of, keyed, shown
from lib.records.ledger import name_of, renamed, same
from lib.records.seeds import episode_seeds
from lib.records.store import cached, intact, read_table, write_json
from lib.study.arms import make_arm
from lib.study.evaluate import Stage
from lib.study.model_quality.gap import LearnedModel, Matched, episodes, gap
from lib.study.model_quality.metrics import Decoder, RandomActions, Visited, bank, fit_decoder, model_metrics, visit
from lib.study.model_quality.oracle import Oracle
from lib.study.model_quality.search import MppiPlanner, Search
from lib.study.model_quality.snapshots import CHEAP, SEEDS, Snapshot, Study, study_cells, study_seeds
from lib.study.profiles import PROFILES, OfflineStudy
from lib.study.stats.intervals import bootstrap_ci, kept_return
from lib.weights.native import load_world_model, resolve_device, size_of, teacher_key
from lib.world_model import WorldModel

KEPT_AT = (3, 6)  # execution horizons
MAIN = "shooting"  # the planner whose gap is `cpg`


# ------------------------------------------------------------------------------------------------- one cell's parts


@cache
def _oracle(task: str) -> Oracle:
    return Oracle(task)


@dataclass
class Bench:
    """One cell with what it takes to measure it: its weights, the task's simulator, and the profile's sizes."""

    snapshot: Snapshot
    profile: str
    sizes: OfflineStudy
    device: str = "cpu"

    @cached_property
    def oracle(self) -> Oracle:
        return _oracle(self.snapshot.cell.task)

    @cached_property
    def wm(self):
        return load_world_model(self.snapshot.source, self.snapshot.cell.task, resolve_device(self.device))

    @cached_property
    def player(self) -> MppiPlanner:
        """The teacher's planner, for on-policy states."""
        return MppiPlanner(self.wm, self.oracle.scored, self.sizes.planner)

    @property
    def shooting(self) -> Search:
        return Search(self.sizes.samples, self.sizes.horizon)

    @property
    def cem(self) -> Search:
        s = self.sizes
        return Search(s.cem_samples, s.horizon, s.cem_iterations, s.cem_elites)

    @cached_property
    def weights(self) -> str:
        return teacher_key(self.snapshot.source)

    @property
    def about(self) -> dict:
        """What names a row."""
        snapshot = self.snapshot
        about = {"cell": str(snapshot.label), "task": snapshot.cell.task, "size": size_of(self.wm.config)}
        return about | {"seed": snapshot.cell.seed, "decisions": snapshot.decisions}

    def _file(self, what: str, key: str, suffix: str) -> Path:
        return paths.CACHE / "offline" / f"{self.snapshot.label}-{what}-{name_of(key)}{suffix}"

    def _key(self, *about) -> str:
        s = self.sizes
        settings = [s.bank_episodes, s.bank_decisions, s.decoder_steps, keyed(s.planner)]
        roots = (visit, bank, fit_decoder, model_metrics, Oracle, WorldModel, MppiPlanner, RandomActions)
        return key_of(roots, self.snapshot.cell.task, self.weights, settings, SEEDS, *about)

    def _visits(self, purpose: str) -> dict[str, list[Visited]]:
        s, visits = self.sizes, {}
        for name, planner in (("random", RandomActions(self.oracle)), ("on-policy", self.player)):
            seeds = study_seeds(f"{purpose}, {name}", s.bank_episodes)
            what = f"{self.snapshot.label} {purpose}, {name}"
            visits[name] = visit(self.oracle, planner, seeds, s.bank_decisions, what)
        return visits

    @cached_property
    def decoder(self) -> Decoder:
        """The cell's decoder, kept; the last episode of each kind is held out."""
        key = self._key("decoder")

        def make(path: Path) -> None:
            visits = self._visits("decoder").values()
            fitted, held_out = ([e for v in visits for e in v[part]] for part in (slice(-1), slice(-1, None)))
            decoder = fit_decoder(self.wm, self.oracle.scored, fitted, held_out, self.sizes.decoder_steps)
            save_file(decoder.state_dict(), path)

        file = cached(self._file("decoder", key, ".safetensors"), key, make, f"the decoder of {self.snapshot.label}")
        tensors = load_file(file)
        decoder = Decoder(self.wm.latent_dim, len(tensors["mean"]))
        decoder.load_state_dict(tensors)
        return decoder.eval().requires_grad_(False).to(self.wm.device)

    def metrics(self) -> dict:
        """M1–M5 of the cell, kept."""
        s = self.sizes
        key = self._key("metrics", s.states, s.candidates, s.actions_per_state, s.k, self.shooting)

        def make(path: Path) -> None:
            banks = {k.replace("-", "_"): bank(v, s.states, s.k) for k, v in self._visits("bank").items()}
            row = model_metrics(
                self.wm, self.oracle, self.decoder, banks, s.candidates, s.actions_per_state, self.shooting
            )
            write_json(path, row | {"decoder_error": self.decoder.error.item()})

        file = cached(self._file("metrics", key, ".json"), key, make, f"the metrics of {self.snapshot.label}")
        return json.loads(file.read_text(encoding="utf-8"))

    def matched(self) -> list[tuple[Matched, int]]:
        """The planners of the gap, and the start states that each plays from."""
        s = self.sizes
        found = [(Matched(MAIN, self.shooting), s.shooting_episodes), (Matched("cem", self.cem), s.cem_episodes)]
        if self.snapshot.cell.task in CHEAP:
            found.append((Matched("shooting-latent", self.shooting, by_value=True), s.latent_episodes))
            found.append((Matched("mppi", mppi=s.mppi), s.mppi_episodes))
        return [(matched, count) for matched, count in found if count]

    def gaps(self) -> list[dict]:
        """The planning gap with each planner: one row each. The oracle's episodes are shared by a task's cells."""
        learned = LearnedModel(self.wm, self.decoder, self._key("decoder"))
        rows = []
        for matched, count in self.matched():
            seeds, what = study_seeds("starts", count), str(self.snapshot.label)
            given = self.oracle, seeds, self.sizes.decisions
            true = episodes(matched, *given, learned if matched.uses_heads else None, True, what)
            mine = episodes(matched, *given, learned, False, what)
            rows.append({"planner": matched.name} | gap(true, mine))
        return rows

    def downstream(self) -> dict:
        """What the teacher's planner returns, and what of it is kept when its plans are executed open loop."""
        s = self.sizes
        stage = Stage(self.snapshot.label, self.profile, self.snapshot.source, self.wm, {}, s.arm_decisions)
        seeds = episode_seeds("report" if self.profile == "paper" else "trial", s.arm_episodes)
        budget = f"{s.planner.samples}x{s.planner.iterations}"

        def returns(name: str) -> list[float]:
            return [row["return"] for row in stage.play(make_arm(name, s.planner), seeds)[0].episodes]

        teacher = returns(f"budget-{budget}")
        row = {"teacher_return": float(np.mean(teacher))}
        row["teacher_return_low"], row["teacher_return_high"] = bootstrap_ci(teacher)
        for steps in KEPT_AT:
            kept = kept_return(returns(f"{budget}+open-loop-{steps}"), teacher)
            names = (f"kept_e{steps}", f"kept_e{steps}_low", f"kept_e{steps}_high")
            row |= dict(zip(names, kept, strict=True))
        return row

    def rows(self) -> tuple[dict, list[dict]]:
        """The cell's row, and one per planner of the gap; `cpg` is that of random shooting by the task's score."""
        about, key, metrics, gaps = self.about, self.key(), self.metrics(), self.gaps()
        (main,) = [row for row in gaps if row["planner"] == MAIN]
        names = {"cpg": "cpg", "cpg_low": "cpg_low", "cpg_high": "cpg_high", "verdict": "verdict"}
        names |= {f"cpg_return{end}": f"return_gap{end}" for end in ("", "_low", "_high")}
        row = about | metrics | {name: main.get(theirs) for name, theirs in names.items()} | self.downstream()
        return row | {"weights": self.weights, "key": key}, [about | found | {"key": key} for found in gaps]

    def key(self) -> str:
        return row_key(self.weights, self.snapshot.cell.task, self.sizes)


def row_key(weights: str, task: str, sizes: OfflineStudy) -> str:
    """Everything that a cell's rows depend on."""
    work = dataclasses.replace(sizes, tasks=(), seeds=(), snapshots=0)  # which cells there are beside it
    return key_of([Bench, WorldModel, MPPI], weights, work, SEEDS, task in CHEAP)


def rows(profile: str, _cell: str = "") -> list[Row]:
    """The rows of a profile's cells with their keys, those whose weights are not here among them."""
    file, sizes, found = paths.results(profile) / "offline" / "cells.csv", PROFILES[profile].offline, []
    for row in read_table(file).to_dict("records"):
        now = row_key(row["weights"], row["task"], sizes)
        why = "" if same(row["key"], now) else f"{row['cell']} was measured by other code or settings"
        found.append(Row(f"row {row['cell']}", file, row["key"], now, why))
    return found


# ------------------------------------------------------------------------------------------------------- all cells

Record = tuple[dict, list[dict]]  # a cell's row, and one per planner of the gap


def measure_cells(study: Study) -> tuple[list[dict], list[dict], list[str]]:
    """One row per cell, one row per cell and planner of the gap, and the files of cells with neither weights nor rows.

    Cells that the profile's result files have under the same key are taken from there, also those that were not asked
    for now. So are those whose weights are not here, see `_of_absent`: one run of each task is shipped, and the rows of
    others were measured where they had been trained.
    """
    known, taken, strange = recorded(study.profile), {}, set()
    others = [snapshot for snapshot in study_cells(study.sizes)[0] if snapshot not in study.cells]
    for number, snapshot in enumerate([*others, *study.cells], 1 - len(others)):
        bench = Bench(snapshot, study.profile, study.sizes, study.device)
        key = name_of(bench.key())
        if key not in known:
            strange.add(str(snapshot.cell))
        if key in taken or key not in known and snapshot in others:
            continue
        if key in known:  # perhaps as a file of any name, when it was measured
            row, of_it = known[key]
            taken[key] = row | bench.about, [gap | bench.about for gap in of_it]
        else:
            print(f"cell {number} of {len(study.cells)}: {snapshot.label}", flush=True)
            taken[key] = bench.rows()
    here = {_point(row) for row, _ in taken.values()}
    absent = {key: (row, gaps) for key, (row, gaps) in known.items() if _point(row) not in here}
    taken |= _of_absent(absent, study, strange)
    have = {_point(row) for row, _ in taken.values()}
    missing = [snapshot for snapshot in study.skipped if (str(snapshot.cell), snapshot.decisions) not in have]
    skipped = [shown(paths.TEACHERS / f"{snapshot.name}.safetensors") for snapshot in missing]
    return [row for row, _ in taken.values()], [gap for _, gaps in taken.values() for gap in gaps], skipped


def _of_absent(known: dict[str, Record], study: Study, strange: set[str]) -> dict[str, Record]:
    """The records of the study's runs whose weights are not here and would give the same keys today.

    Snapshots of two runs must not pass for those of one: where a run has weights here that were not measured
    (`strange`), its other records are dropped. Says which are.
    """
    kept, dropped = {}, []
    for key, (row, gaps) in known.items():
        match = paths.CELL.fullmatch(_point(row)[0])
        if not match or match[1] not in study.sizes.tasks or int(match[3]) not in study.sizes.seeds:
            continue  # of a teacher from elsewhere
        weights = row.get("weights")
        if weights and name_of(row_key(weights, match[1], study.sizes)) == key and match[0] not in strange:
            kept[key] = row, gaps
        else:
            dropped.append(row["cell"])
    if dropped:
        print(
            f"dropped, as other code or settings measured them, or they are of another run than the weights that are "
            f"here: {', '.join(dropped)}",
            flush=True,
        )
    return kept


def _point(row: dict) -> tuple[str, int | None]:
    """(run, decisions of training) of a row: its cell is named after the run, and after both before the run's end."""
    decisions = None if row["decisions"] is None else int(row["decisions"])  # a table with an empty one has floats
    return row["cell"].removesuffix(f"-{decisions}"), decisions


def recorded(profile: str) -> dict[str, Record]:
    """Name of the key → row and gaps of the cells in a profile's result files."""
    tables = []
    for name in ("cells", "gaps"):
        file = paths.results(profile) / "offline" / f"{name}.csv"
        table = read_table(file) if intact(file) else pd.DataFrame(columns=["key"])  # not when edited by hand
        tables.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    found = {row["key"]: (row, [gap for gap in tables[1] if gap["key"] == row["key"]]) for row in tables[0]}
    found = {renamed(key): rows for key, rows in found.items() if rows[1]}
    return {name_of(key): rows for key, rows in found.items() if "-" in key}
