"""Folders; cells and settings: results of a teacher from elsewhere never stand under the name of a shipped one."""

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from lib import config
from lib.config import MODEL_SIZES, ConfigError, compiled_folder, data_folder, is_plain
from lib.study.cells import Cell, resolve

DEFAULTS = dict(profile="quick", task="walker-walk", model_size="1m", seed=1, teacher="", device="cpu")


def settings(**changes):
    return resolve(**DEFAULTS | changes)


# ------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No folder is named, and nobody has a home; the temporary folder is `tmp_path / "tmp"`."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "SPECULATIVE_TDMPC2_CACHE", "SPECULATIVE_TDMPC2_TEACHERS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tmp" / f"speculative-tdmpc2-{os.getuid()}"


@pytest.mark.parametrize(
    ("platform", "below"), [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")]
)
def test_compiled_code_is_kept_in_the_users_cache(platform, below, nowhere, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", str(tmp_path / "home")))
    assert compiled_folder() == tmp_path / "home" / below / "speculative-tdmpc2" / "inductor"
    variable = "LOCALAPPDATA" if platform == "win32" else "XDG_CACHE_HOME"
    monkeypatch.setenv(variable, "relative")  # which says nothing
    assert compiled_folder().is_relative_to(tmp_path / "home")
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert compiled_folder() == tmp_path / "mine" / "speculative-tdmpc2" / "inductor"
    monkeypatch.setenv("SPECULATIVE_TDMPC2_CACHE", str(tmp_path / "named"))
    assert compiled_folder() == tmp_path / "named" / "inductor"
    assert data_folder("cache") == tmp_path / "named" and not (tmp_path / "relative").exists()


def test_without_a_home_it_is_kept_in_the_temporary_folder(nowhere, monkeypatch, tmp_path):
    assert compiled_folder() == nowhere / "inductor" and nowhere.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "~").exists()
    (tmp_path / "file").write_text("a folder cannot be made below a file")
    for folder in (tmp_path / "file" / "cache", tmp_path / "o'neil", tmp_path / "a b", tmp_path / 'a"b'):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.setenv("SPECULATIVE_TDMPC2_CACHE", str(folder))
        assert compiled_folder() == nowhere / "inductor"


def test_what_is_downloaded_without_a_repository_goes_to_the_same_places(nowhere, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "site-packages" / "lib" / "config.py"))
    assert data_folder("cache") == nowhere / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "o'neil"))  # no compiler is told of it
    assert data_folder("teachers") == tmp_path / "o'neil" / "speculative-tdmpc2" / "teachers"


def test_nobody_elses_folder_is_taken(nowhere, monkeypatch):
    """What is kept is run: another user could have left it there."""
    nowhere.mkdir()
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((0o40777, 0, 0, 0, os.getuid() + 1, *[0] * 5)))
    taken = compiled_folder().parent
    assert taken != nowhere and taken.parent == nowhere.parent and compiled_folder().parent == taken


def test_command_lines_hold_plain_paths_as_they_are():
    assert all(map(is_plain, ("/tmp/a", "/tmp/ä;$(x)&", Path("/tmp/%s{}"))))
    assert not any(map(is_plain, ("/o'neil", "/a b", '/a"b', "/a\\b", "/a\tb", "")))


# --------------------------------------------------------------------------------------------------- cells, settings


def test_a_cell_is_read_as_it_is_written():
    cell = Cell.parse("cartpole-swingup-19m-12")
    assert (cell.task, cell.size, cell.seed, str(cell)) == ("cartpole-swingup", "19m", 12, "cartpole-swingup-19m-12")
    for text in ("official-walker-walk-1", "walker-walk-1m", "a/b-1m-1"):
        with pytest.raises(ConfigError, match="is not a cell; write <task>-<size>-<seed>"):
            Cell.parse(text)


@pytest.mark.parametrize(
    "changes, cell",
    [
        ({"model_size": "5m", "seed": 3}, Cell("walker-walk", "5m", 3)),
        ({"teacher": "walker-walk-1m-1"}, Cell("walker-walk", "1m", 1)),
        ({"teacher": "walker-walk-5m-2"}, Cell("walker-walk", "5m", 2)),  # whatever size was asked for
        ({"teacher": "official/walker-walk-1", "seed": 4}, Cell("walker-walk", "?", 4, "official-walker-walk-1")),
        ({"teacher": "official/mt30-5m"}, Cell("walker-walk", "5m", 1, "official-mt30-5m-walker-walk")),
        ({"teacher": "official/mt30-5m", "task": "reacher-easy"},
         Cell("reacher-easy", "5m", 1, "official-mt30-5m-reacher-easy")),
    ],
)  # fmt: skip
def test_results_have_the_name_of_their_teacher(changes, cell):
    given = settings(**changes)
    assert given.cell == cell and str(cell) == (cell.name or f"{cell.task}-{cell.size}-{cell.seed}")
    assert given.teacher_name(cell) == changes.get("teacher", str(cell))


def test_a_teacher_of_another_task_does_not_take_over_its_cell():
    cell = settings(teacher="cheetah-run-1m-1").cell
    assert cell.task == "walker-walk" and str(cell) not in ("cheetah-run-1m-1", "walker-walk-1m-1")


def test_files_are_told_apart_by_their_content(tmp_path):
    files = [tmp_path / name / "walker-walk-1m-1.safetensors" for name in ("a", "b", "c")]
    for file, content in zip(files, (b"one", b"two", b"one"), strict=True):
        file.parent.mkdir()
        file.write_bytes(content)
    names = [str(settings(teacher=str(file)).cell) for file in files]
    digits = [hashlib.sha256(content).hexdigest()[:8] for content in (b"one", b"two")]
    assert names == [f"walker-walk-1m-1-{d}" for d in (*digits, digits[0])]
    reacher = settings(teacher=str(files[0]), task="reacher-easy").cell
    assert str(reacher) == f"walker-walk-1m-1-{digits[0]}-reacher-easy" and reacher.task == "reacher-easy"


ODD_NAMES = ["../../etc/passwd", "/", "..", "a/../b", "über/weights v1.2", "walker-walk/1m/1", "a/walker-walk-1m-1"]


@pytest.mark.parametrize("teacher", [*ODD_NAMES, "xxx", "a\\b:c"])
def test_names_are_safe_in_a_file_name(teacher):
    name = str(settings(teacher=teacher).cell)
    assert re.fullmatch("[A-Za-z0-9_-]+", name) and name[0] != "-" and "--" not in name
    with pytest.raises(ConfigError, match="is not a cell"):
        Cell.parse(name)
    assert "walker-walk" in name


def test_no_two_teachers_share_a_name(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"weights")
    given = ["", "official/walker-walk-1", "official/walker-walk-2", "official/mt30-1m", "official/mt30-5m",
             "walker-walk-1m-2", "cheetah-run-1m-1", str(tmp_path / "w.pt")]  # fmt: skip
    assert len({str(settings(teacher=teacher).cell) for teacher in given}) == len(given)


def test_all_sizes_are_cells_of_their_own_and_do_not_go_with_a_teacher():
    given = settings(model_size="all")
    assert [cell.size for cell in given.cells] == list(MODEL_SIZES)
    with pytest.raises(ConfigError, match="use one of: 1m, 5m"):
        _ = given.cell
    with pytest.raises(ConfigError, match="teacher='official/dog-run-1' has one size"):
        settings(model_size="all", teacher="official/dog-run-1")


@pytest.mark.parametrize(
    "change, words",
    [({"profile": "qick"}, "Did you mean quick"), ({"model_size": "2m"}, "model_size='2m'"),
     ({"seed": -1}, "seed=-1 must lie between 0 and 99"),
     ({"device": "gpu"}, "use auto, cpu or cuda"), ({"task": "../x"}, "task='../x' cannot be part of a file's name"),
     ({"task": ""}, "task='' cannot be part"), ({"teacher": "x" * 101}, "is no file, and too long for the name of a")],
)  # fmt: skip
def test_a_wrong_value_is_a_sentence(change, words):
    with pytest.raises(ConfigError, match=words):
        settings(**change)
