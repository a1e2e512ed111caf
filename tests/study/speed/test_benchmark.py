"""The benchmark: what it counts, how it times, what it writes, and that it runs on a machine with next to nothing."""

import csv
import dataclasses
import json
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.config import MODEL_SIZES, ConfigError, PlannerConfig, WorldModelConfig
from lib.planner import MPPI
from lib.study.profiles import PROFILES, SpeedStudy
from lib.study.speed import benchmark, matrix_products, timing
from lib.study.speed import step as benchmark_step
from lib.study.speed.matrix_products import ceiling_products, flops, matrix_floor, solve_products, twin_products
from lib.study.speed.official_manner import OfficialPlanner
from lib.study.speed.timing import device_name, random_model, slug, timed
from tests.bare import run_bare

TINY = dict(enc_dim=8, mlp_dim=16, latent_dim=16, num_enc_layers=2, num_q=3)
COLUMNS = (
    "size,batch,samples,iterations,mode,dtype,solve_ms_p50,solve_ms_p95,solves_per_s,gflops,ceiling_gflops,"
    "share_of_ceiling,floor_ms,ratio_to_floor,twin_ms_p50,twin_ms_p95,twin_share_of_ceiling,ratio_to_twin,compile_s,rounds,device"
).split(",")


SMALL = dict(sizes=["tiny"], batches=[1], budgets=[(8, 1)], seconds=0, rounds=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODEL_SIZES, "tiny", TINY)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------------ products


def test_one_iteration_of_one_step_counted_by_hand():
    c = WorldModelConfig(5, 2, 8, 16, 24, 2, num_q=3, num_bins=11, action_padding=4)
    p = PlannerConfig(horizon=1, samples=10, iterations=1, elites=2, policy_samples=4)
    batch, step_rest, pi = 3, 16 * 16 + 16 * 16 + 16 * 24 + 16 * 11, 24 * 16 + 16 * 16 + 16 * 4
    q = (24 + 2) * 16 + 16 * 16 + 16 * 11
    once = batch * 24 * 32
    prior = batch * pi + batch * 4 * (2 * 32 + step_rest) + batch * 4 * pi
    iteration = batch * 6 * (2 * 32 + step_rest + pi) + batch * 10 * 2 * q
    end = batch * ((24 + 2) * 32 + step_rest + pi + 3 * q)
    assert flops(solve_products(c, p, batch)) == 2 * (once + prior + iteration + end)
    # The twin keeps the padding, evaluates every sample and head, and stops at the mean.
    q, step = (24 + 6) * 16 + 16 * 16 + 16 * 11, 2 * (30 * 16 + 16 * 16) + 16 * 24 + 16 * 11
    assert flops(twin_products(c, p, batch)) == 2 * batch * (4 * pi + 10 * (step + pi + 3 * q))


def test_each_further_iteration_costs_the_same_and_policy_samples_nothing():
    c = WorldModelConfig.from_size("5m", 24, 6)

    def cost(iterations, policy_samples=24):
        return flops(solve_products(c, PlannerConfig(iterations=iterations, policy_samples=policy_samples)))

    assert cost(3) - cost(2) == cost(2) - cost(1) > cost(1) / 2
    q = 2 * 24 * 2 * ((512 + 6) * 512 + 512 * 512 + 512 * 101)  # the drawn heads read them anew in every iteration
    without = PlannerConfig(samples=488, policy_samples=0, iterations=1)
    more = flops(solve_products(c, PlannerConfig(samples=488, policy_samples=0, iterations=2)))
    assert cost(2) - cost(1) == more - flops(solve_products(c, without)) + q
    assert not [x for x in solve_products(c, without) if x.m == 24]


@pytest.mark.parametrize("batch, policy_samples", [(1, 16), (3, 16), (2, 0)])
def test_the_planner_and_the_twin_multiply_what_is_counted(batch, policy_samples):
    wm = random_model("1m").eval().requires_grad_(False)
    p = PlannerConfig.budget(64, 2, policy_samples=policy_samples, mode="eager")
    z = wm.encode(torch.randn(batch, 24))
    assert counted(lambda: OfficialPlanner(wm, p)(z)) == flops(twin_products(wm.config, p, batch))
    # The planner may pad its bins to the width of a vector register: one percent.
    assert counted(lambda: MPPI(wm, p)(z)) == pytest.approx(flops(solve_products(wm.config, p, batch)), rel=0.02)


def test_the_floor_runs_these_products_and_the_ceiling_large_ones():
    c = WorldModelConfig(5, 2, **TINY)
    products = solve_products(c, PlannerConfig.budget(16, 2), 2)
    floor = matrix_floor(products, torch.float32)
    floor()
    assert counted(floor) == flops(products)
    left, weight = matrix_products.Product("a", 2, 3, 4, 5), matrix_products.Product("b", 1, 7, 8, 9)
    assert counted(matrix_floor([left, weight, left], torch.float32)) == 2 * (2 * 2 * 3 * 4 * 5 + 7 * 8 * 9)
    assert {(x.m, x.k, x.n) for products in ceiling_products() for x in products} >= {(512, 512, 512), (2048, 512, 512)}


def test_the_rate_of_a_ceiling_is_that_of_its_best_product():
    times = {("ceiling", "float32", i): np.array([1.0, 2.0, 9.0]) for i in range(len(ceiling_products()))}
    best = max(flops(x) for x in ceiling_products())
    assert benchmark.ceiling_of(times, "float32", "cpu") == pytest.approx(best / 2e-3 / 1e9)
    assert benchmark.matrix_ceiling(seconds=0.05) > 0.1


# ------------------------------------------------------------------------------------------------------------- timing


def test_functions_take_turns_after_the_warm_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timed(functions, seconds=0, rounds=4, warm_up=1)
    assert calls == list("abc") * 5
    assert set(times) == set("abc") and all(x.shape == (4,) and (x > 0).all() for x in times.values())


def test_times_are_milliseconds_and_go_on_for_the_seconds_asked_for():
    start = time.perf_counter()
    times = timed({"sleep": lambda: time.sleep(0.004), "nothing": lambda: None}, seconds=0.1, rounds=1, warm_up=0)
    assert time.perf_counter() - start > 0.1 and len(times["sleep"]) > 5
    assert (times["sleep"] >= 4).all() and np.median(times["nothing"]) < 1
    assert timing.summary(np.arange(1.0, 102)) == {"p50_ms": 51.0, "p95_ms": 96.0}


def test_what_does_not_fit_into_memory_is_left_out_and_said(capsys):
    def too_large():
        raise torch.OutOfMemoryError("no")

    functions, first = timing.started({"large": lambda: too_large, "small": lambda: lambda: time.sleep(0.002)}, "cpu")
    assert list(functions) == list(first) == ["small"] and first["small"] >= 0.002
    assert "large does not fit into memory and is left out" in capsys.readouterr().err


def test_a_random_model_has_no_ties():
    wm = random_model("tiny")
    z, a = wm.encode(torch.randn(8, 24)), torch.rand(8, 6)
    assert wm.training and len(wm.reward(z, a).unique()) == 8 and (wm.q(z, a).std(1) > 0).all()
    assert torch.equal(wm.q(z, a, target=True), wm.eval().q(z, a))  # no dropout in the target heads
    assert "float32" in timing.fast_dtypes("cpu")


# -------------------------------------------------------------------------------------------------------------- tables


def test_solves_have_their_columns_and_the_ratios_follow_from_the_times():
    sizes = ["tiny", WorldModelConfig(5, 2, **TINY)]
    given = dict(sizes=sizes, batches=[1, 2], budgets=[(16, 2), (8, 1)], modes=["eager"], dtypes=["float32"])
    rows = benchmark.benchmark_solves(**given, seconds=0, rounds=3)
    wanted = [(size, batch, samples) for size in ("tiny", "custom") for batch in (1, 2) for samples in (16, 8)]
    assert [(r["size"], r["batch"], r["samples"]) for r in rows] == wanted
    for row in rows:
        assert list(row) == COLUMNS
        ms = row["solve_ms_p50"]
        obs_dim, action_dim = (24, 6) if row["size"] == "tiny" else (5, 2)
        p, c = PlannerConfig.budget(row["samples"], row["iterations"]), WorldModelConfig(obs_dim, action_dim, **TINY)
        work, twin = (flops(f(c, p, row["batch"])) for f in (solve_products, twin_products))
        assert 0 < ms <= row["solve_ms_p95"] and row["rounds"] == 3 and row["compile_s"] > 0
        assert row["solves_per_s"] == pytest.approx(1e3 * row["batch"] / ms)
        assert row["gflops"] == pytest.approx(work / ms / 1e6)
        assert row["share_of_ceiling"] == pytest.approx(row["gflops"] / row["ceiling_gflops"])
        assert row["ratio_to_floor"] == pytest.approx(ms / row["floor_ms"])
        assert row["ratio_to_twin"] == pytest.approx(ms / row["twin_ms_p50"])
        share = twin / row["twin_ms_p50"] / 1e6 / row["ceiling_gflops"]
        assert row["twin_share_of_ceiling"] == pytest.approx(share)


def test_bfloat16_is_measured_against_its_own_floor_and_ceiling_and_the_float32_twin():
    (row,) = benchmark.benchmark_solves(modes=["eager"], dtypes=["bfloat16"], **SMALL)
    assert row["dtype"] == "bfloat16" and row["twin_share_of_ceiling"] > 0
    assert row["share_of_ceiling"] == pytest.approx(row["gflops"] / row["ceiling_gflops"])


def test_compiled_modes_are_left_out_where_there_is_no_compiler(monkeypatch, capsys):
    modes = ["eager", "compiled", "cudagraph", "official-compiled"]
    assert benchmark._possible(modes, "cpu") == modes
    monkeypatch.setattr(benchmark, "why_not_compiled", lambda device: f"no compiler for {device}")
    assert benchmark._possible(modes, "cpu") == ["eager", "cudagraph"]
    assert "no compiler for cpu; compiled modes are left out" in capsys.readouterr().err


def test_a_planner_that_fell_back_to_eager_is_no_compiled_row(monkeypatch, capsys):
    def fails(*inputs):
        raise RuntimeError("a header is missing")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    rows = benchmark.benchmark_solves(modes=["compiled", "eager"], dtypes=["float32"], **SMALL)
    assert [row["mode"] for row in rows] == ["eager"]
    assert "('compiled', 'float32') was not compiled and is left out" in capsys.readouterr().err


def test_a_step_is_split_into_its_parts():
    rows = benchmark.benchmark_step(size="tiny", mode="eager", small=(8, 1), standard=(16, 2), seconds=0, rounds=9)
    by_part = {row["part"]: row for row in rows}
    assert set(by_part) == {
        *("encode", "mismatch", "correct", "re-roll", "plan 8 × 1", "plan 16 × 2", "official step 16 × 2"),
        *(f"step {shape}, {what}" for shape in ("8 × 1", "16 × 2") for what in ("planning", "not planning")),
    }
    base = by_part["official step 16 × 2"]["p50_ms"]
    for part, row in by_part.items():
        assert row["p50_ms"] <= row["p95_ms"] and row["ratio_to_official"] == pytest.approx(row["p50_ms"] / base)
        assert row["rounds"] == (9 if part.startswith("step") else 18)
    assert by_part["step 16 × 2, not planning"]["p50_ms"] < by_part["step 16 × 2, planning"]["p50_ms"]


def test_the_official_step_plans_anew_from_the_moved_mean(monkeypatch):
    wm, warm_starts = random_model("tiny").eval().requires_grad_(False), []

    class Noted(OfficialPlanner):
        def __call__(self, z, warm_start=None, noise=None):
            warm_starts.append(warm_start)
            self.last = super().__call__(z, warm_start, noise)
            return self.last

    made = []
    monkeypatch.setattr(benchmark_step, "OfficialPlanner", lambda *a: made.append(Noted(*a)) or made[0])
    step = benchmark_step.official_step(wm, torch.randn(1, 24), 16, 2)
    step()
    mean = made[0].last[1]
    action = step()
    assert torch.equal(warm_starts[0], torch.zeros(1, 3, 6))
    assert torch.equal(warm_starts[1], torch.cat([mean[:, 1:], torch.zeros(1, 1, 6)], 1)) and mean.abs().sum() > 0
    assert torch.equal(action, made[0].last[0][:, 0])


def test_updates_and_decisions_are_timed_against_the_official_manner():
    rows = benchmark.benchmark_updates(
        sizes=["tiny"], batch_size=8, mode="eager", compile=False, collect=(8, 1), standard=(16, 2), seconds=0, rounds=9
    )
    table = {(row["part"], row["learner"]): row for row in rows}
    assert set(table) == {(part, kind) for part in ("update", "decision") for kind in ("eager", "official")}
    for (part, kind), row in table.items():
        assert row["per_s"] == pytest.approx(1e3 / row["p50_ms"])
        assert row["ratio_to_official"] == pytest.approx(row["p50_ms"] / table[part, "official"]["p50_ms"])
        if part == "decision":
            assert row["p50_ms"] > table["update", kind]["p50_ms"]


def test_the_memory_of_one_plan_is_that_of_a_process_of_its_own(monkeypatch):
    ballast = torch.ones(2**27)  # half a GiB here must not count there
    assert 0.05 < benchmark_step.memory_317m(16, 1, size="1m") < 0.45
    assert ballast[0] == 1
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="the 1m model could not plan in a process of its own"):
        benchmark_step.memory_317m(16, 1, size="1m")


# --------------------------------------------------------------------------------------------------------------- scope


def test_smoke_compiles_nothing_and_quick_is_small():
    smoke, quick, paper = (PROFILES[name].speed for name in ("smoke", "quick", "paper"))
    assert smoke.modes == ("eager",) and smoke.mode == "eager" and smoke.seconds == 0
    assert max(n * i for n, i in (*smoke.budgets, smoke.small, smoke.standard, smoke.collect)) < 64
    assert quick.batches == (1,) and quick.update_sizes == ("1m",) and not quick.memory and not quick.episodes
    assert paper.memory and paper.episodes >= 30 and paper.batches is None  # 1 and 8, and 64 at 1m


def test_a_scope_is_narrowed_to_a_size():
    scope = PROFILES["quick"].speed
    assert scope.narrowed("all") == scope
    one = scope.narrowed("5m", 0.5)
    assert one.sizes == one.step_sizes == one.update_sizes == ("5m",) and one.seconds == 0.5
    assert one.budgets == scope.budgets and scope.narrowed("5m").seconds == scope.seconds


def test_tables_are_named_after_the_device(monkeypatch):
    assert slug("cpu") == "cpu" and " × " in device_name("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (x)")
    assert slug("cuda") == "nvidia-h200-x" and device_name("cuda:0") == "NVIDIA H200 (x)"


# -------------------------------------------------------------------------------------------------------- command line


def test_runs_where_only_torch_numpy_and_safetensors_are_installed(tmp_path):
    run_bare(f"""
    from lib.config import MODEL_SIZES
    MODEL_SIZES["tiny"] = {TINY!r}
    from lib.study.speed.benchmark import main
    main("--sizes tiny --batches 1 2 --budgets 16x2 --modes eager --dtypes float32 --mode eager --seconds 0 --rounds 2 "
         "--parts solves step --out {tmp_path}/planner.csv".split())
    """)
    with (tmp_path / "planner.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, "threads"] and [r["batch"] for r in rows] == ["1", "2"]
    assert float(rows[0]["gflops"]) > 0
    about = json.loads((tmp_path / "planner.csv.meta.json").read_text())
    assert about["device"] == rows[0]["device"] == device_name("cpu") and about["machine"].startswith(about["device"])
    assert about["threads"] == int(rows[0]["threads"]) >= 1 and about["rounds"] == 2 and about["load"] >= 0
    assert "torch" in about["versions"] and all(rate > 0 for rate in about["product_gflops"].values())
    with (tmp_path / "planner-step.csv").open() as file:
        assert {"size", "part", "p50_ms", "p95_ms"} <= set(next(csv.DictReader(file)))


@pytest.mark.parametrize(
    "options, message",
    [
        ("--budgets 512", "budget '512' is not known; write samples x iterations"),
        ("--budgets 512x0", "iterations=0 must be at least 1"),
        ("--parts solve", "part='solve' is not known"),
        ("--profile qick", "profile='qick' is not known"),
        ("--device tpu", "device"),
        ("--device cuda:99", "device='cuda:99' is not here: torch finds"),
        ("--sizes 7m --parts solves", "size='7m' is not known"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path):
    with pytest.raises((ConfigError, RuntimeError), match=message):
        benchmark.main([*options.split(), "--out", str(tmp_path / "planner.csv"), "--seconds", "0"])
    assert not list(tmp_path.iterdir())


def test_a_table_that_the_same_code_made_at_the_same_scope_is_kept(tmp_path, capsys):
    small = {"small": (16, 1), "standard": (32, 1), "mode": "eager", "seconds": 0.0, "rounds": 2}
    scope = SpeedStudy(step_sizes=("tiny",), **small)

    def measured(scope):
        path = benchmark.measure_part("step", tmp_path / "cpu.csv", "cpu", scope)
        return path, path.read_bytes(), "kept" in capsys.readouterr().err

    path, first, kept = measured(scope)
    assert path.name == "cpu-step.csv" and not kept
    assert measured(scope) == (path, first, True)
    assert measured(dataclasses.replace(scope, rounds=3))[1] != first  # another scope
    path.write_bytes(first + b"x")
    assert not measured(scope)[1].endswith(b"x")  # edited by hand
