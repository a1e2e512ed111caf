"""Result files are whole or absent, say how they came about, and read back exactly."""

import ast
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib.files import files
from lib.records import keys, ledger, paths
from lib.records import store as results
from lib.records.keys import ResultError
from lib.records.paths import ROOT
from tests.records.tiny import mounted, needs_mounts


def test_a_table_reads_back_exactly_and_missing_stays_missing(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    values = [0.1 + 0.2, 1e-300, np.float32(0.1), math.nan, None, math.inf]
    results.write_table(path, [{"arm": "None", "x": value, "n": 3} for value in values] + [{"arm": "NA", "flag": True}])
    table = results.read_table(path)
    assert table["x"].tolist()[:3] == [0.1 + 0.2, 1e-300, float(np.float32(0.1))]
    assert table["x"].isna().tolist() == [False] * 3 + [True, True, False, True]
    assert table["arm"].tolist() == ["None"] * 6 + ["NA"]
    assert path.read_text().splitlines()[4] == "None,,3,"
    assert path.read_text().splitlines()[-1] == "NA,,,True"


def test_a_data_frame_is_written_like_rows(tmp_path):
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [0.1, float("nan")]})
    results.write_table(tmp_path / "a.csv", frame)
    assert (tmp_path / "a.csv").read_text() == "a,b\n1,0.1\n,\n"


def test_the_sidecar_holds_provenance_and_the_hash(tmp_path):
    @dataclass
    class Budget:
        samples: int = 512

    path = results.write_table(tmp_path / "a.csv", [{"a": 1}], seed=3, planner=Budget(), at=ROOT / "lib", n=np.int64(4))
    facts = results.read_sidecar(path)
    assert (facts["seed"], facts["planner"], facts["at"], facts["n"]) == (3, {"samples": 512}, "lib", 4)
    assert facts["sha256"] == keys.file_hash(path) and results.intact(path)
    assert facts["versions"]["python"].startswith("3.") and facts["machine"] and facts["written"].endswith("Z")
    path.write_text("a\n2\n")
    assert not results.intact(path)


def test_a_sidecar_is_never_edited(tmp_path):
    path = results.write_table(tmp_path / "a.csv", [{"a": 1}], seed=3)
    before = results.sidecar(path).read_bytes()
    with pytest.raises(ResultError, match=r"a\.csv\.meta\.json was written with its result and is not edited"):
        results.describe(path, seed=4)
    assert results.sidecar(path).read_bytes() == before
    results.write_table(path, [{"a": 1}], seed=4)  # the same rows once more are another result
    assert results.read_sidecar(path)["seed"] == 4


def test_only_the_store_writes_sidecars():
    """Whoever names them is listed; a file more here is one to read with care."""
    sources = [f for folder in ("lib", "figures", "paper", "notebooks") for f in (ROOT / folder).rglob("*")]
    named = {f.relative_to(ROOT).as_posix() for f in sources if f.suffix in (".py", ".ipynb") and names_sidecars(f)}
    assert named == {
        "lib/records/store.py",
        "lib/records/run.py",  # puts them back after a failed run
        "lib/records/jobs.py",  # inputs
        "lib/records/graph.py",  # the same
        "lib/records/audit.py",  # leaves them out
        "lib/weights/names.py",  # its records of downloads: no results
    }


def names_sidecars(file: Path) -> bool:
    if file.suffix == ".ipynb":
        return "meta.json" in file.read_text() or " sidecar" in file.read_text()
    nodes = list(ast.walk(ast.parse(file.read_text())))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return any("meta.json" in text for text in texts) or any(ast.unparse(f).split(".")[-1] == "sidecar" for f in called)


def test_the_sidecar_names_the_commit_and_whether_the_code_is_that(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    found = []

    def commit():
        results.commit.cache_clear()
        return results.commit()

    def git(*words):
        options = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("A = 1\n")
    try:
        assert commit() == ""
        git("init", "-q")
        git("add", ".")
        git("commit", "-qm", "one")
        head = git("rev-parse", "HEAD").stdout.strip()
        (tmp_path / "words.md").write_text("not code")
        found.append(commit())
        path = results.write_table(tmp_path / "a.csv", [{"a": 1}])
        (tmp_path / "lib" / "a.py").write_text("A = 2\n")
        found.append(commit())
    finally:
        results.commit.cache_clear()
    assert found == [head, f"{head}+"] and results.read_sidecar(path)["commit"] == head


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_file_is_committed_as_it_is_or_not_at_all(tmp_path):
    def git(*words):
        options = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "é folder").mkdir()
    file, other = tmp_path / "é folder" / "a.csv", tmp_path / "b.csv"
    file.write_text("1")
    assert results.committed(file) == results.committed(tmp_path / "none" / "a") == ""  # no repository, no folder
    git("init", "-q")
    assert results.committed(file) == ""
    git("add", ".")
    assert results.committed(file) == ""
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")
    other.write_text("2")
    assert results.committed(file) == first and results.committed(other) == ""
    (tmp_path / ".gitignore").write_text("b.csv")
    git("add", ".")
    git("commit", "-qm", "two")
    assert results.committed(file) == first and results.committed(other) == ""  # ignored: nobody else has it
    file.write_text("3")
    assert results.committed(file) == ""


def test_the_record_of_a_run_is_in_the_sidecars_of_its_results_alone(tmp_path, monkeypatch):
    wanted, other = tmp_path / "a.csv", tmp_path / "b.csv"
    record = {"outs": [keys.shown(wanted)], "record": {"stage": "one", "key": "a-1"}, "started": 0}
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setenv(results.RUN, str(tmp_path / "run.json"))
    for path in (wanted, other):
        results.write_table(path, [{"a": 1}], run={"stage": "another"})
    assert results.read_sidecar(wanted)["run"].keys() == {"stage", "key", "minutes"}
    assert results.read_sidecar(other)["run"] == {"stage": "another"}
    monkeypatch.setenv(results.RUN, str(tmp_path / "gone.json"))
    assert "run" not in results.read_sidecar(results.write_table(wanted, [{"a": 2}]))


def test_errors_name_the_file_and_the_way_out(tmp_path):
    missing = ROOT / "data" / "results" / "quick" / "horizon" / "no-such-1m-1.csv"
    with pytest.raises(
        ResultError, match=r"horizon/no-such-1m-1.csv does not exist.*make all PROFILE=quick.*04_horizon"
    ):
        results.read_table(missing)
    with pytest.raises(ResultError, match="meta.json"):
        results.read_sidecar(missing)
    with pytest.raises(ResultError, match="No rows"):
        results.write_table(tmp_path / "a.csv", [])
    with pytest.raises(ResultError, match=r"'x' .*list"):
        results.write_table(tmp_path / "a.csv", [{"x": [1]}])
    with pytest.raises(ResultError, match="Nothing was written"):
        results.write_artefact(tmp_path / "a.bin", lambda path: None)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.bin"
    results.write_artefact(path, lambda temporary: temporary.write_bytes(b"old"), seed=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(temporary: Path):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        results.write_artefact(path, fail, seed=2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_reader_keeps_the_whole_old_file_while_it_is_replaced(tmp_path):
    path = tmp_path / "a.csv"
    results.write_table(path, [{"a": 1}])
    with path.open() as reader:
        results.write_table(path, [{"a": 2}])
        assert reader.read() == "a\n1\n"
    assert path.read_text() == "a\n2\n"


def test_a_writer_killed_half_way_leaves_the_old_file_and_does_not_stop_the_next(tmp_path):
    path = tmp_path / "a.csv"
    results.write_table(path, [{"a": 1}])
    old = path.read_bytes()
    script = (
        "import sys, time\nfrom lib.records.store import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path, path.open('w') as file:\n"
        "    file.write('a\\n'); file.flush(); print('half', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert path.read_bytes() == old and results.intact(path)
    assert len(list(tmp_path.iterdir())) == 3  # and what the killed one had written until then
    results.write_table(path, [{"a": 2}])
    assert results.read_table(path)["a"].tolist() == [2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.csv.meta.json"]


# ---------------------------------------------------------------------------------------- where nothing can be written


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence_that_names_the_file_and_the_old_one_stays(tmp_path, monkeypatch):
    path = results.write_table(tmp_path / "a.csv", [{"a": 1}])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    sentence = r"a\.csv cannot be written: there is no space left on the disk; make room, then run this again\.$"
    with monkeypatch.context() as patched, pytest.raises(ResultError, match=sentence):
        patched.setattr(os, "fsync", no_space)
        results.write_table(path, [{"a": 2}])

    def library(temporary: Path):  # torch and safetensors have errors of their own
        temporary.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        results.write_artefact(path, library)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(ResultError, match=sentence):
        results.write_artefact(path, library)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_elsewhere_is_not_blamed_on_the_file(tmp_path):
    def elsewhere(temporary: Path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/else")

    with pytest.raises(OSError, match="/somewhere/else"):
        results.write_artefact(tmp_path / "a.csv", elsewhere)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch, number):
    def refuse(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    sentence = (
        rf"deep/a\.csv cannot be written: {tmp_path} is read-only, or not this user's to write to; work in a copy"
    )
    with pytest.raises(ResultError, match=sentence):
        results.write_table(tmp_path / "deep" / "a.csv", [{"a": 1}])


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "build").write_text("no folder")
    with pytest.raises(
        ResultError, match=rf"a\.txt cannot be written: (File exists|Not a directory): {tmp_path}/build"
    ):
        results.write_text(tmp_path / "build" / "a.txt", "words")


WRITE = """
import sys
import numpy as np
from lib.records.keys import ResultError
from lib.records.store import write_artefact, write_table
from pathlib import Path
path, library = Path(sys.argv[1]) / "a.bin", sys.argv[2]
if library == "torch":
    import torch
    write = lambda place: torch.save(torch.zeros(10**5), place)
elif library == "safetensors":
    from safetensors.numpy import save_file
    write = lambda place: save_file({"a": np.zeros(10**5)}, place)
elif library == "numpy":
    write = lambda place: np.zeros(10**5).tofile(place)
else:
    write = lambda place: place.write_bytes(bytes(10**6))
try:
    write_artefact(path, write)
except ResultError as error:
    print(error)
"""


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("library", ["plain", "numpy", "safetensors", "torch"])
def test_a_disk_that_is_really_full(tmp_path, library):
    start = mounted("-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path))
    command = [*start, sys.executable, "-c", WRITE, str(tmp_path), library]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/a.bin cannot be written: there is no space left on the disk"), (
        done.stderr
    )


@needs_mounts
@pytest.mark.slow
def test_a_folder_that_is_really_read_only(tmp_path):
    start = mounted("-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path))
    command = [*start, sys.executable, "-c", WRITE, str(tmp_path), "plain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/a.bin cannot be written: {tmp_path} is read-only, or not"), done.stderr


# ---------------------------------------------------------------------------------------------------- damaged sidecars


@pytest.mark.parametrize(
    "text",
    ["[1]", '"x"', "7", "null", "true", "{", "[" * 100_000, '{"sha256": 5}', '{"run": null}', '{"run": [1]}',
     '{"run": {"components": "x"}}', '{"run": {"components": {"parameters": [1]}}}', '{"run": {"minutes": "long"}}',
     '{"arms": [1]}', '{"arms": {"teacher": null}}', '{"key": 1}', '{"written": 2026}', '{"commit": null}',
     '{"product_gflops": {"float32": "fast"}}'],
)  # fmt: skip
def test_a_sidecar_of_another_shape_is_none(tmp_path, text):
    path = results.write_table(tmp_path / "a.csv", [{"a": 1}])
    results.sidecar(path).write_text(text)
    with pytest.raises(ResultError, match=r"a\.csv\.meta\.json is (not JSON|damaged, .+); delete it, then run"):
        results.read_sidecar(path)
    assert results.known(path) == {} and not results.intact(path) and results.commit_of(path) == ""
    made = []
    results.cached(path, "a-1", lambda place: made.append(place.write_text("a\n2\n")), "a test set")
    assert made and results.intact(path)


def test_what_a_reader_needs_of_a_sidecar_is_asked_for(tmp_path):
    path = results.write_table(tmp_path / "a.csv", [{"a": 1}], arms={"teacher": {}})
    assert results.read_sidecar(path, "arms")["arms"] == {"teacher": {}}
    with pytest.raises(ResultError, match=r"a\.csv\.meta\.json names no teacher and no task; delete it, then run"):
        results.read_sidecar(path, "arms", "teacher", "task")


def test_committed_sidecars_are_of_today_s_shape():
    committed = [path for path in files(paths.DATA / "results", "**/*") if results.sidecar(path).is_file()]
    assert len(committed) > 100 and all(results.read_sidecar(path)["sha256"] for path in committed)


def test_cached_makes_once_per_key_and_again_when_damaged(tmp_path, capsys):
    path, made = tmp_path / "set.bin", []

    def make(temporary: Path):
        made.append(1)
        temporary.write_bytes(b"content")

    for key in ("one-1", "one-1", "two-1"):
        assert results.cached(path, key, make, "a test set", episodes=3) == path
    assert len(made) == 2 and results.read_sidecar(path)["episodes"] == 3
    path.write_bytes(b"by hand")
    results.cached(path, "two-1", make, "a test set")
    assert len(made) == 3 and path.read_bytes() == b"content"
    assert capsys.readouterr().err.count("making a test set") == 3


def test_cached_takes_what_code_has_made_that_was_shown_to_be_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    path, made = tmp_path / "set.bin", []
    make = lambda temporary: made.append(temporary.write_bytes(b"content"))  # noqa: E731
    results.cached(path, "old-1", make, "a test set")
    before = results.sidecar(path).read_bytes()
    ledger.append({"kind": "audit", "old": "old", "new": "new", "equal": True})
    ledger.append({"kind": "audit", "old": "old", "new": "worse", "equal": False})
    results.cached(path, "new-1", make, "a test set")
    assert len(made) == 1 and results.sidecar(path).read_bytes() == before
    for key in ("new-2", "worse-2"):
        results.cached(path, key, make, "a test set")
    assert len(made) == 3


def test_the_runner_starts_without_heavy_imports():
    heavy = "{'numpy', 'pandas', 'torch', 'papermill'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", f"import sys, lib.records.run; sys.exit(bool({heavy}))"], cwd=ROOT, check=True
    )
