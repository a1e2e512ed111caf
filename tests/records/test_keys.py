"""Keys change with settings and with what files say, and with nothing else; their code half is test_fingerprint's."""

from dataclasses import dataclass

import numpy as np
import pytest

from lib.records.fingerprint import fingerprint
from lib.records.keys import ResultError, combine, content_hash, file_hash, key_of, rest_of, shown
from lib.records.paths import ROOT


def test_combine_ignores_the_order_of_keys_and_nothing_else():
    assert combine({"a": 1, "b": 2.5}) == combine({"b": 2.5, "a": 1})
    assert combine("a", "b") != combine("b", "a") != combine("ab")
    with pytest.raises(ResultError, match="object"):
        combine(object())


def test_combine_takes_dataclasses_paths_sets_and_numbers_of_numpy_by_what_they_say():
    @dataclass
    class Budget:
        samples: int = 512

    assert combine(Budget(), ROOT / "lib", {2, 1}, np.float64(0.5)) == combine({"samples": 512}, "lib", [1, 2], 0.5)


def test_a_key_is_of_code_and_of_the_rest():
    key = key_of([combine], "settings", 3)
    assert key == f"{fingerprint(combine)}-{combine('settings', 3)}"
    assert rest_of(key) == rest_of(key_of([rest_of], "settings", 3)) != rest_of(key_of([combine], "settings", 4))
    assert key_of([combine, rest_of], 1) == key_of([rest_of, combine], 1) != key_of([combine], 1)


def test_paths_are_shown_from_the_repository_on():
    assert shown(ROOT / "data" / ".." / "lib") == "lib"
    assert shown(ROOT.parent / "elsewhere").startswith("/")


@pytest.mark.parametrize("column", ["minutes", "seconds", "solve_ms", "p50_minutes", "total_seconds", "steps_per_s"])
def test_timing_columns_do_not_count(tmp_path, column):
    hashes = set()
    for index, time in enumerate(("1.5", "2.5")):
        (tmp_path / f"{index}.csv").write_text(f"arm,{column},return\nteacher,{time},900\n")
        hashes.add(content_hash(tmp_path / f"{index}.csv"))
    assert len(hashes) == 1


def test_every_other_column_counts(tmp_path):
    a, b, c = (tmp_path / f"{name}.csv" for name in "abc")
    a.write_text("arm,milliseconds_ms_count\nteacher,1\n")
    b.write_text("arm,milliseconds_ms_count\nteacher,2\n")
    c.write_bytes(a.read_bytes().replace(b"\n", b"\r\n"))
    assert content_hash(a) != content_hash(b)
    assert content_hash(a) == content_hash(c)


def test_other_files_count_by_their_bytes(tmp_path):
    (tmp_path / "a.json").write_text('{"minutes": 1}')
    (tmp_path / "b.json").write_text('{"minutes": 2}')
    assert content_hash(tmp_path / "a.json") == file_hash(tmp_path / "a.json") != content_hash(tmp_path / "b.json")
