"""Files are listed in one place, which sees nothing half-written; what killed writers left goes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib import files as own
from lib.files import files, numbered, temporary
from lib.records.paths import ROOT

LEFT = ".walker-walk-1m-1.deadbeef.tmp.csv"


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def test_what_begins_with_a_dot_is_no_file_of_ours(tmp_path):
    write(tmp_path, "b.csv", "a.csv", LEFT, ".left/c.csv", "deep/d.csv", "deep/.d.tmp.csv", "deep/.left/e.csv")
    (tmp_path / "folder.csv").mkdir()
    assert [p.name for p in files(tmp_path, "*.csv")] == ["a.csv", "b.csv"]
    assert [p.name for p in files(tmp_path, "**/*.csv")] == ["a.csv", "b.csv", "d.csv"]
    assert files(tmp_path / "nowhere", "*.csv") == []


def test_a_repository_below_a_folder_with_a_dot_has_files(tmp_path):
    write(tmp_path / ".hidden/repository", "a.csv")
    assert len(files(tmp_path / ".hidden/repository", "*.csv")) == 1


def test_snapshots_are_what_a_number_names(tmp_path):
    names = ("100.safetensors", "24.safetensors", ".24.deadbeef.tmp.safetensors", "best.safetensors", "²4.safetensors")
    write(tmp_path, *names, "7.csv")
    assert list(numbered(tmp_path)) == [24, 100] and numbered(tmp_path)[24] == tmp_path / "24.safetensors"


def listings(file: Path) -> list[str]:
    """The calls of a file that list folders."""
    text = file.read_text()
    if file.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {"glob", "rglob", "iglob", "iterdir", "listdir", "scandir"}
    return sorted(
        ast.unparse(f) for f in calls if ast.unparse(f).split(".")[-1] in names or ast.unparse(f) == "os.walk"
    )


def test_nobody_else_lists_folders():
    sources = [f for folder in ("lib", "figures", "paper", "notebooks") for f in (ROOT / folder).rglob("*")]
    sources = [f for f in sources if f.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in f.parts]
    found = {f.relative_to(ROOT).as_posix(): calls for f in sources if (calls := listings(f))}
    audit = found.pop("lib/records/audit.py")
    assert audit == ["Path(tempfile.gettempdir()).glob"]  # its own worktrees
    assert found == {"lib/files.py": ["Path(folder).glob", "os.scandir", "os.scandir"]}


# -------------------------------------------------------------------------------------------------------- temporaries


def test_a_temporary_path_is_beside_the_file_unseen_and_gone_at_the_end(tmp_path):
    with temporary(tmp_path / "deep/a.csv") as place:
        place.write_text("half")
        assert place.parent == tmp_path / "deep" and place.suffix == ".csv" and f"-{os.getpid()}-" in place.name
        assert files(tmp_path, "**/*") == []
    with pytest.raises(KeyError), temporary(tmp_path / "deep/set") as place:
        write(place, "data/a.h5")
        raise KeyError
    assert os.listdir(tmp_path / "deep") == []


def test_what_a_dead_writer_left_goes_at_the_next_write_and_all_else_stays(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    stays = ["a.csv", LEFT, f".a.{own._here()}-{os.getpid()}-00000000.tmp.csv"]  # a result, another edition's, our own
    stays += [f".a.0123ab-{gone.pid}-00000000.tmp.csv", ".bashrc"]  # another machine's, somebody's
    write(
        tmp_path, *stays, *(f".a.b.{own._here()}-{gone.pid}-0000000{i}.tmp{end}" for i, end in enumerate(("", ".csv")))
    )
    write(tmp_path / f".set.{own._here()}-{gone.pid}-00000000.tmp", "data/a.h5")
    with temporary(tmp_path / "b.csv"):
        assert sorted(os.listdir(tmp_path)) == sorted(stays)


def test_a_folder_that_cannot_be_tidied_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KeyError, match="the first"), temporary(tmp_path / "a.csv") as place:
        place.write_text("half")
        raise KeyError("the first")


def test_a_process_of_somebody_else_is_alive(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    assert own.alive(os.getpid())
    monkeypatch.setattr(os, "kill", refuse)
    assert own.alive(1)
