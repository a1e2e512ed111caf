"""What `notebooks/08_planner_benchmark.ipynb` measures; runs where only torch, numpy and safetensors are installed.

    python -m lib.study.speed.benchmark --device cuda --out data/results/paper/planner/h200.csv  # the paper profile's
    python -m lib.study.speed.benchmark --device cpu --out planner.csv --profile quick              # minutes
    python -m lib.study.speed.benchmark --device cpu --out planner.csv --sizes 1m 5m --batches 1 8 --parts solves
    python -m lib.study.speed.benchmark --device cpu --out planner.csv --parts memory               # planner-memory.csv

A solve is timed in the same rounds as three yardsticks: the twin (`lib.study.speed.official_manner`: the same plan in
the manner of the official code, float32 and eager), the matrix floor (only the products that a solve needs, in the
solve's dtype) and the ceiling (large plain products in that dtype). Every `ratio_to_…` is the solve's median time
divided by the yardstick's: small is good. `gflops` are the floor's operations by the solve's time, whatever work the
solve really did; only the twin, eager or compiled, is credited with the operations of its own manner.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.compilation import why_not_compiled
from lib.config import ConfigError, PlannerConfig, WorldModelConfig, one_of
from lib.planner import MPPI
from lib.records.keys import combine, shown
from lib.records.store import intact, read_sidecar, write_table
from lib.study.profiles import BUDGETS, PROFILES, SpeedStudy
from lib.study.speed.matrix_products import ceiling_products, flops, matrix_floor, solve_products, twin_products
from lib.study.speed.official_manner import OfficialPlanner
from lib.study.speed.step import benchmark_memory, benchmark_step, benchmark_updates
from lib.study.speed.timing import (
    budget,
    device_name,
    fast_dtypes,
    forget_compiled,
    load_before,
    random_model,
    started,
    summary,
    timed,
)
from lib.weights.native import resolve_device
from lib.world_model import WorldModel

SIZES = {"cpu": ("1m", "5m"), "cuda": ("1m", "5m", "19m", "48m", "317m")}
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 64, 512)}
# "official-compiled" is the twin under torch.compile(mode="reduce-overhead"), as the official code runs on a GPU.
MODES = {"cpu": ("eager", "compiled"), "cuda": ("eager", "compiled", "cudagraph", "official-compiled")}
PARTS = ("solves", "step", "updates", "memory")


# ------------------------------------------------------------------------------------------------------------- ceiling


def ceiling_runs(dtypes: Iterable[str], device: str) -> dict[Hashable, Callable]:
    """The functions of a ceiling, to be timed beside others."""
    lists = list(enumerate(ceiling_products(device)))
    return {("ceiling", d, i): matrix_floor(x, getattr(torch, d), device) for d in dtypes for i, x in lists}


def ceiling_of(times: dict[Hashable, np.ndarray], dtype: str, device: str) -> float:
    """GFLOP/s of the best of a ceiling's functions."""
    lists = enumerate(ceiling_products(device))
    return max(flops(x) / 1e6 / float(np.median(times["ceiling", dtype, i])) for i, x in lists)


def matrix_ceiling(dtype: str = "float32", device: str = "cpu", seconds: float = 1.0) -> float:
    """GFLOP/s of plain matrix products, the best over a few shapes."""
    return ceiling_of(timed(ceiling_runs([dtype], device), seconds, device=device), dtype, device)


# -------------------------------------------------------------------------------------------------------------- solves


def benchmark_solves(
    device: str = "cpu",
    sizes: Sequence[str | WorldModelConfig] | None = None,
    batches: Sequence[int] | None = None,
    budgets: Sequence[tuple[int, int]] = BUDGETS,
    modes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    seconds: float = 10.0,
    rounds: int = 5,
) -> list[dict]:
    """One row per size × batch × budget × mode × dtype, see the columns below.

    None takes the device's own list (see `SIZES`, `BATCHES`, `MODES`, `fast_dtypes`; on a CPU 1m also at batch 64).
    `seconds` and `rounds` are for each size × batch × budget; see `lib.study.speed.timing.timed`.
    """
    kind = one_of("device", torch.device(device).type, SIZES)
    modes, dtypes = _possible(modes or MODES[kind], device), dtypes or fast_dtypes(device)
    rows = []
    for size in sizes or SIZES[kind]:
        wm = random_model(size, device).eval().requires_grad_(False)
        extra = (64,) if batches is None and (kind, size) == ("cpu", "1m") else ()
        for batch in (*(batches or BATCHES[kind]), *extra):
            for samples, iterations in budgets:
                name = size if isinstance(size, str) else "custom"
                print(f"benchmark: solve, {name}, batch {batch}, {samples} × {iterations}", file=sys.stderr, flush=True)
                cell = {"size": name, "batch": batch, "samples": samples, "iterations": iterations}
                made = _solves(wm, batch, samples, iterations, modes, dtypes, device, seconds, rounds)
                rows += [cell | row | {"device": device} for row in made]
    return rows


def _possible(modes: Sequence[str], device: str) -> list[str]:
    """The modes without those that need a compiler, where there is none."""
    reason = why_not_compiled(torch.device(device))
    kept = [mode for mode in modes if not (reason and "compiled" in mode)]
    if len(kept) < len(modes):
        print(f"benchmark: {reason}; compiled modes are left out", file=sys.stderr)
    return kept


def _makers(
    wm: WorldModel, z: Tensor, warm: Tensor, samples: int, iterations: int, modes: Sequence[str], dtypes: Sequence[str]
) -> dict[Hashable, Callable[[], Callable]]:
    """("mode", dtype) -> what makes the function that solves so; ("twin",) -> the yardstick."""

    def twin(compile: bool = False):
        return partial(OfficialPlanner(wm, budget(samples, iterations), compile), z, warm)

    def ours(mode, dtype):
        generator = torch.Generator(z.device).manual_seed(0)  # without one, noise is drawn on the CPU
        return partial(MPPI(wm, budget(samples, iterations, mode, dtype)), z, warm, generator)

    makers = {("twin",): twin}
    for mode in modes:
        if mode == "official-compiled":
            makers[mode, "float32"] = partial(twin, True)
        else:
            makers |= {(mode, dtype): partial(ours, mode, dtype) for dtype in dtypes}
    return makers


def _solves(wm, batch, samples, iterations, modes, dtypes, device, seconds, rounds) -> list[dict]:
    """The rows of one size × batch × budget, all timed in the same rounds."""
    forget_compiled()
    p = budget(samples, iterations)
    z = wm.encode(torch.randn(batch, wm.config.obs_dim, device=device))
    warm = 0.3 * torch.randn(batch, p.horizon, wm.action_dim, device=device)
    work, twin_work = solve_products(wm.config, p, batch), twin_products(wm.config, p, batch)

    makers = _makers(wm, z, warm, samples, iterations, modes, dtypes)
    solves = [name for name in makers if name != ("twin",)]
    for dtype in dtypes:
        makers["floor", dtype] = partial(matrix_floor, work, getattr(torch, dtype), device)
    runs, first = started(makers, device)
    for name in [x for x in runs if x[0] == "compiled" and not runs[x].func.compile_seconds]:
        print(f"benchmark: {name} was not compiled and is left out", file=sys.stderr)
        del runs[name]
    times = timed(runs | ceiling_runs({"float32", *dtypes}, device), seconds, rounds, device)

    def median(name):
        return float(np.median(times[name])) if name in times else None

    def ratio(a, b):
        return a / b if a is not None and b is not None else None

    def gflops(operations, ms):
        return ratio(operations / 1e6, ms)

    twin_ms, rows = median(("twin",)), []
    twin_p95 = summary(times["twin",])["p95_ms"] if ("twin",) in times else None
    for mode, dtype in [name for name in solves if name in times]:
        ms, floor_ms, ceiling = median((mode, dtype)), median(("floor", dtype)), ceiling_of(times, dtype, device)
        rate = gflops(flops(twin_work if mode == "official-compiled" else work), ms)
        about = summary(times[mode, dtype])
        rows.append(
            {
                "mode": mode,
                "dtype": dtype,
                "solve_ms_p50": about["p50_ms"],
                "solve_ms_p95": about["p95_ms"],
                "solves_per_s": 1e3 * batch / ms,  # rows, not calls
                "gflops": rate,
                "ceiling_gflops": ceiling,
                "share_of_ceiling": rate / ceiling,
                "floor_ms": floor_ms,
                "ratio_to_floor": ratio(ms, floor_ms),
                "twin_ms_p50": twin_ms,
                "twin_ms_p95": twin_p95,
                "twin_share_of_ceiling": ratio(gflops(flops(twin_work), twin_ms), ceiling_of(times, "float32", device)),
                "ratio_to_twin": ratio(ms, twin_ms),
                "compile_s": first[mode, dtype],  # the first call, whatever it had to prepare
                "rounds": len(times[mode, dtype]),
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------------- whole tables


def measure_part(
    part: str, out: Path, device: str = "cpu", scope: SpeedStudy = PROFILES["paper"].speed, precision: str = "high"
) -> Path:
    """Measure one of `PARTS` and return its table: solves go to `out`, others beside it, as in `…-step.csv`.

    A table that the same code made at the same scope on such a device is kept; delete it to measure anew. The official
    training script sets `precision` "high" (TF32 on a GPU); both sides get the same.
    """
    path = out if one_of("part", part, PARTS) == "solves" else out.with_stem(f"{out.stem}-{part}")
    columns = {"device": device_name(device), "threads": torch.get_num_threads()}
    key = combine(part, dataclasses.asdict(scope), columns, precision)
    if intact(path) and read_sidecar(path).get("measured") == key:
        print(f"benchmark: kept {shown(path)}, measured before by the same code", file=sys.stderr)
        return path
    load, length = load_before(), {"seconds": scope.seconds, "rounds": scope.rounds}
    kind = one_of("device", torch.device(device).type, SIZES)
    if kind == "cuda":
        torch.set_float32_matmul_precision(precision)
    budgets, extra = {"small": scope.small, "standard": scope.standard}, {}
    if part == "solves":
        which = scope.sizes, scope.batches, scope.budgets, scope.modes, scope.dtypes
        rows = benchmark_solves(device, *which, **length)
        rates = {dtype: matrix_ceiling(dtype, device, min(scope.seconds, 1.0)) for dtype in ("float32", "bfloat16")}
        extra = {"product_gflops": rates}
    elif part == "step":
        length["rounds"] *= 2  # cheap, and every other step does not plan
        rows = [r for size in scope.step_sizes for r in benchmark_step(device, size, scope.mode, **budgets, **length)]
    elif part == "updates":
        options = {"collect": scope.collect, "standard": scope.standard, "compile": scope.mode != "eager"}
        rows = benchmark_updates(device, scope.update_sizes, scope.update_batch, scope.mode, **options, **length)
    else:
        rows = benchmark_memory(scope.memory)
    precision = torch.get_float32_matmul_precision()
    facts = columns | {"load": load, "precision": precision, "measured": key}
    return write_table(path, [r | columns for r in rows], **facts, **length, **extra)


# -------------------------------------------------------------------------------------------------------- command line


def _budget(text: str) -> tuple[int, int]:
    try:
        samples, iterations = map(int, text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ConfigError(f"budget {text!r} is not known; write samples x iterations, as in 512x6.") from None
    PlannerConfig.budget(samples, iterations)  # raises for impossible ones
    return samples, iterations


def main(arguments: list[str] | None = None) -> None:
    """Measure and write `--out` (solves) and, beside it, `…-step.csv`, `…-updates.csv` and `…-memory.csv`."""
    parser = argparse.ArgumentParser(prog="python -m lib.study.speed.benchmark", description="Measure the planner.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, required=True, help="CSV of the solves; names of the others follow it")
    parser.add_argument("--profile", default="paper", help="how much is measured: smoke, quick or paper; or rather:")
    parser.add_argument("--sizes", nargs="+", help="model sizes (default: what suits the device)")
    parser.add_argument("--batches", nargs="+", type=int, help="latents per solve")
    parser.add_argument("--budgets", nargs="+", help="samples x iterations, as in 512x6, of solves and memory")
    parser.add_argument("--modes", nargs="+", help="eager, compiled, cudagraph, official-compiled")
    parser.add_argument("--dtypes", nargs="+", help="float32, bfloat16")
    parser.add_argument("--mode", help="the planner's mode in step and updates")
    parser.add_argument("--parts", nargs="+", help=f"{', '.join(PARTS)} (default: all, memory on a CPU only)")
    parser.add_argument("--seconds", type=float, help="of each group of functions")
    parser.add_argument("--rounds", type=int, help="at least, of each group")
    parser.add_argument("--precision", default="high", help="of float32 products on a GPU: highest or high")
    given = parser.parse_args(arguments)
    device, scope = resolve_device(given.device), PROFILES[one_of("profile", given.profile, PROFILES)].speed
    names = ("sizes", "batches", "modes", "dtypes", "mode", "seconds", "rounds")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.budgets:
        changes["budgets"] = changes["memory"] = tuple(map(_budget, given.budgets))
    if given.sizes:
        changes["step_sizes"] = changes["update_sizes"] = given.sizes
    scope = dataclasses.replace(scope, **changes)
    parts = given.parts or [part for part in PARTS if part != "memory" or (scope.memory and device == "cpu")]
    for part in [one_of("part", part, PARTS) for part in parts]:
        print(measure_part(part, given.out, device, scope, given.precision))


if __name__ == "__main__":
    main()
