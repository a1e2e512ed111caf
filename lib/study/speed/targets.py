"""Which targets of the planner are reached and what holds a solve back, from `lib.study.speed.benchmark`'s tables.

    for target in targets(results("quick") / "planner" / "cpu.csv"):
        print(target)
    print("\\n".join(breakdown(results("quick") / "planner" / "cpu.csv")))

Only the standard library is needed. What was not measured is said to be so, and never counts as reached or missed.
"""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass
from pathlib import Path

from lib.records.keys import ResultError
from lib.records.store import read_sidecar
from lib.study.profiles import BUDGETS

STANDARD, SMALL = BUDGETS


@dataclass(frozen=True)
class Target:
    """A number that was aimed at; `value` is None where it was not measured."""

    what: str
    value: float | None
    bound: float
    at_least: bool = True  # or at most
    unit: str = " ×"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        verdict = {None: "not measured", True: "reached", False: "not reached"}[self.reached]
        value = "" if self.value is None else f"{self.value:.2f}{self.unit}, "
        limit = f"{'at least' if self.at_least else 'at most'} {self.bound:g}{self.unit}"
        return f"{verdict:<12} {self.what}: {value}{limit}" + (f" ({self.note})" if self.note else "")


def read_rows(path: Path) -> list[dict]:
    """A table as dicts of numbers, strings and None; no rows where it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> float | str | None:
    with contextlib.suppress(ValueError):
        return float(text)
    return text or None


def fastest(rows: list[dict], **where) -> dict | None:
    """The fastest mode of ours among the solves at batch 1 in float32, or what else `where` says."""
    where = {"batch": 1, "dtype": "float32"} | where
    found = [r for r in rows if all(r[name] == value for name, value in where.items())]
    ours = [r for r in found if "mode" in where or r["mode"] != "official-compiled"]
    return min(ours, key=lambda r: r["solve_ms_p50"], default=None)


def _at(size: str, shape: tuple[int, int], **more) -> dict:
    return {"size": size, "samples": shape[0], "iterations": shape[1], **more}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _column(row: dict | None, name: str) -> float | None:
    return row and row[name]


def targets(solves: Path) -> list[Target]:
    """All targets of the device whose solves are in this table; its other tables lie beside it."""
    rows = read_rows(solves)
    step, updates, memory = (
        read_rows(solves.with_stem(f"{solves.stem}-{part}")) for part in ("step", "updates", "memory")
    )
    if any(r["mode"] in ("cudagraph", "official-compiled") for r in rows):
        return _on_a_gpu(rows, step)
    standard, small = ("{} × {}".format(*shape) for shape in (STANDARD, SMALL))
    ours = {size: fastest(rows, **_at(size, STANDARD)) for size in ("1m", "5m")}
    made = []
    for size, bound in (("1m", 2.1), ("5m", 2.4)):
        speed_up = _ratio(1, _column(ours[size], "ratio_to_twin"))
        note = _column(ours[size], "mode") or ""
        made.append(
            Target(f"solve {standard}, {size}, float32, against the official manner", speed_up, bound, note=note)
        )
    made += _bfloat16(solves, rows, standard)
    for size, row in ours.items():
        share = _column(row, "share_of_ceiling")
        made.append(Target(f"solve {standard}, {size}, float32, share of the ceiling", share, 0.7, unit=""))
    for size, row in ours.items():
        share = _column(row, "twin_share_of_ceiling")
        made.append(
            Target(f"the official manner itself, {standard}, {size}, share of the ceiling", share, 0.3, unit="")
        )
    few = _column(fastest(rows, **_at("1m", SMALL)), "ratio_to_floor")
    made.append(Target(f"solve {small}, 1m, float32, against its matrix floor", few, 2.5, at_least=False))
    parts = {r["part"]: r["p50_ms"] for r in step if r["size"] == "1m"}
    whole = _ratio(parts.get(f"official step {standard}"), parts.get(f"step {small}, planning"))
    made.append(Target(f"control step with {small}, 1m, against one with {standard} in the official manner", whole, 12))
    for size in ("1m", "5m"):
        ratios = {
            r["learner"]: r["ratio_to_official"]
            for r in updates
            if (r["size"], r["part"], r["batch"]) == (size, "update", 256) and r["learner"] != "official"
        }
        best = min(ratios, key=ratios.get, default=None)
        update = _ratio(1, ratios.get(best))
        made.append(Target(f"update, {size}, against the official manner", update, 1.6, note=best or ""))
    most = max((r["peak_gib"] for r in memory), default=None)
    made.append(Target("memory of a 317m model that plans in bfloat16", most, 6, at_least=False, unit=" GiB"))
    return made


def _bfloat16(solves: Path, rows: list[dict], standard: str) -> list[Target]:
    """Targets of the solves in bfloat16, or why there are none."""
    what = "solve {}, {}, bfloat16, against the official manner in float32"
    made = []
    for size in ("1m", "5m"):
        row = fastest(rows, **_at(size, STANDARD, dtype="bfloat16"))
        if row:
            made.append(Target(what.format(standard, size), _ratio(1, row["ratio_to_twin"]), 3.5, note=row["mode"]))
    if made:
        return made
    rates, note = {}, ""
    with contextlib.suppress(ResultError):
        rates = read_sidecar(solves).get("product_gflops", {})
    if {"bfloat16", "float32"} == rates.keys() and rates["bfloat16"] < rates["float32"]:
        note = "no fast bfloat16 here: products at {bfloat16:.0f} GFLOP/s against {float32:.0f} in float32".format(
            **rates
        )
    return [Target(what.format(standard, "1m and 5m"), None, 3.5, note=note)]


def _on_a_gpu(rows: list[dict], step: list[dict]) -> list[Target]:
    """Captured planning against the compiled official manner, and against a captured step that does not plan."""
    made, standard = [], "{} × {}".format(*STANDARD)
    for size in dict.fromkeys(r["size"] for r in rows):
        captured, twin = (fastest(rows, **_at(size, STANDARD, mode=m)) for m in ("cudagraph", "official-compiled"))
        ratio = _ratio(_column(captured, "solve_ms_p50"), _column(twin, "solve_ms_p50"))
        what = f"captured solve {standard}, {size}, against the official manner compiled"
        made.append(Target(what, ratio, 1.0, at_least=False))
    for size in dict.fromkeys(r["size"] for r in step):
        parts = {r["part"]: r["p50_ms"] for r in step if r["size"] == size}
        ratio = _ratio(parts.get(f"step {standard}, not planning"), parts.get(f"plan {standard}"))
        made.append(Target(f"step without planning, {size}, against a solve {standard}", ratio, 0.1, at_least=False))
    return made


def breakdown(solves: Path) -> list[str]:
    """A line for each solve at batch 1: its matrix products alone, and all else that it spends its time on."""
    rows, lines = read_rows(solves), []
    for key in dict.fromkeys((r["size"], r["samples"], r["iterations"], r["dtype"]) for r in rows):
        best = fastest(rows, **dict(zip(("size", "samples", "iterations", "dtype"), key, strict=True)))
        if best is None or best["floor_ms"] is None:
            continue
        size, samples, iterations, dtype = key
        ms, floor = best["solve_ms_p50"], best["floor_ms"]
        share = best["share_of_ceiling"] * best["ratio_to_floor"]  # of the products, were there nothing else
        lines.append(
            f"{size}, {samples:.0f} × {iterations:.0f}, {dtype}, {best['mode']}: {ms:.1f} ms, the products alone "
            f"{floor:.1f} ms ({100 * floor / ms:.0f} %, at {100 * share:.0f} % of the ceiling), all else "
            f"{ms - floor:.1f} ms ({100 - 100 * floor / ms:.0f} %)"
        )
    return lines
