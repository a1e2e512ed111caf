"""The report reads the tables and nothing else: what is reached follows from them, what is not there is not known."""

import pytest

from lib.records.store import write_table
from lib.study.speed.targets import Target, breakdown, fastest, read_rows, targets


def solve(size, shape, mode, ms, twin=200.0, dtype="float32", batch=1, floor=50.0):
    row = {"size": size, "batch": batch, "samples": shape[0], "iterations": shape[1], "mode": mode, "dtype": dtype}
    row |= {"solve_ms_p50": ms, "floor_ms": floor, "ratio_to_floor": ms / floor, "ratio_to_twin": ms / twin}
    return row | {"share_of_ceiling": 0.6 * floor / ms, "twin_share_of_ceiling": 0.4}


@pytest.fixture
def solves(tmp_path):
    """Tables of a CPU in which every target is reached, but the ones of bfloat16."""
    path, standard = tmp_path / "cpu.csv", (512, 6)
    rows = [
        solve("1m", standard, "eager", 120.0),
        solve("1m", standard, "compiled", 40.0),
        solve("1m", standard, "compiled", 20.0, batch=8),
        solve("1m", (64, 2), "compiled", 6.0, floor=3.0),
        solve("5m", standard, "compiled", 40.0),
    ]
    write_table(path, rows, product_gflops={"float32": 150.0, "bfloat16": 30.0})
    parts = {"official step 512 × 6": 200.0, "step 64 × 2, planning": 8.0, "step 64 × 2, not planning": 1.0}
    write_table(tmp_path / "cpu-step.csv", [{"size": "1m", "part": k, "p50_ms": v} for k, v in parts.items()])
    learners = {"eager": 0.9, "compiled": 0.5, "official": 1.0}
    kept = {"size": "1m", "batch": 256, "part": "update"}
    updates = [kept | {"learner": k, "ratio_to_official": v} for k, v in learners.items()]
    write_table(tmp_path / "cpu-updates.csv", updates)
    write_table(tmp_path / "cpu-memory.csv", [{"samples": 64, "peak_gib": 2.0}, {"samples": 512, "peak_gib": 6.5}])
    return path


def by_words(solves, *words) -> Target:
    (found,) = [t for t in targets(solves) if all(word in t.what for word in words)]
    return found


def test_targets_follow_from_the_tables(solves):
    expected = {
        ("solve 512 × 6, 1m, float32", "official"): (5.0, True),
        ("solve 512 × 6, 5m, float32", "official"): (5.0, True),
        ("1m, float32, share of the ceiling",): (0.75, True),
        ("official manner itself", "5m"): (0.4, True),
        ("64 × 2, 1m, float32, against its matrix floor",): (2.0, True),
        ("control step with 64 × 2",): (25.0, True),
        ("update, 1m",): (2.0, True),
        ("update, 5m",): (None, None),
        ("317m",): (6.5, False),
    }
    for words, (value, reached) in expected.items():
        target = by_words(solves, *words)
        assert target.value == (value if value is None else pytest.approx(value)) and target.reached is reached, words
    assert by_words(solves, "solve 512 × 6, 1m, float32", "official").note == "compiled"
    memory = "not reached  memory of a 317m model that plans in bfloat16: 6.50 GiB, at most 6 GiB"
    assert memory in map(str, targets(solves))


def test_bfloat16_is_a_target_where_it_is_fast_and_else_says_why_not(solves):
    target = by_words(solves, "bfloat16, against")
    assert target.reached is None and "30 GFLOP/s against 150 in float32" in str(target)
    write_table(solves, [*read_rows(solves), solve("1m", (512, 6), "compiled", 50.0, dtype="bfloat16")])
    target = by_words(solves, "1m, bfloat16, against")
    assert target.value == pytest.approx(4.0) and target.reached


def test_a_slower_planner_misses_its_targets(solves):
    write_table(solves, [r | {"ratio_to_twin": 0.6, "share_of_ceiling": 0.5} for r in read_rows(solves)])
    for words in (("solve 512 × 6, 1m, float32", "official"), ("1m, float32, share",)):
        assert by_words(solves, *words).reached is False


def test_nothing_measured_is_neither_reached_nor_missed(tmp_path):
    found = targets(tmp_path / "cpu.csv")
    assert len(found) > 9 and all(t.reached is None and "not measured" in str(t) for t in found)
    assert breakdown(tmp_path / "cpu.csv") == []


def test_a_gpu_is_held_against_compiled_code_and_captured_steps(tmp_path):
    path = tmp_path / "nvidia-h200.csv"
    modes = {"eager": 30.0, "cudagraph": 2.0, "official-compiled": 4.0}
    write_table(path, [solve("1m", (512, 6), mode, ms) for mode, ms in modes.items()])
    parts = {"plan 512 × 6": 2.0, "step 512 × 6, not planning": 0.3}
    write_table(tmp_path / "nvidia-h200-step.csv", [{"size": "1m", "part": k, "p50_ms": v} for k, v in parts.items()])
    captured, step = targets(path)
    assert captured.value == pytest.approx(0.5) and captured.reached
    assert step.value == pytest.approx(0.15) and step.reached is False


def test_the_fastest_is_never_the_yardstick(tmp_path):
    rows = [solve("1m", (512, 6), mode, ms) for mode, ms in (("eager", 9.0), ("official-compiled", 1.0))]
    assert fastest(rows, size="1m")["mode"] == "eager" and fastest(rows, size="5m") is None


def test_a_breakdown_splits_a_solve_into_products_and_all_else(solves):
    lines = breakdown(solves)
    assert len(lines) == 3  # batch 1 only, one line for each size and budget
    assert lines[1] == (
        "1m, 64 × 2, float32, compiled: 6.0 ms, the products alone 3.0 ms (50 %, at 60 % of the ceiling), "
        "all else 3.0 ms (50 %)"
    )
