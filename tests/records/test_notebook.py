"""Parameters are checked before anything runs, and the committed notebooks keep the house rules."""

import ast
import errno
import json
import os
import pwd
from pathlib import Path

import pytest

from lib.records.notebook import RunError, at_home, execute, read_parameters, typed
from lib.records.paths import NOTEBOOKS
from lib.records.syntax import bound_names
from tests.records.tiny import write_notebook

HEAD = {"metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}}
HEAD |= {"nbformat": 4, "nbformat_minor": 5}
SHARED = {"profile", "task", "model_size", "seed", "teacher", "device"}


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", "int", 3),
        ("1_000", "int", 1000),
        ("-1", "int", -1),
        ("3", "float", 3.0),
        ("1e-3", "float", 0.001),
        ("true", "bool", True),
        ("False", "bool", False),
        ("007", "str", "007"),
    ],
)
def test_values_take_the_annotated_type(text, kind, value):
    result = typed(text, kind)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1e6", "int"), ("3.0", "int"), ("x", "float"), ("nan", "float"), ("1", "bool"), ("None", "int"), ("[]", "list")],
)
def test_values_of_another_type_are_refused(text, kind):
    with pytest.raises(ValueError):
        typed(text, kind)


def notebook(path, parameters):
    cell = {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}, "outputs": [], "id": "a"}
    path.write_text(json.dumps(HEAD | {"cells": [cell | {"execution_count": None}]}))
    return path


def test_parameters_have_annotations_or_the_types_of_their_defaults(tmp_path):
    text = "seed: int = 1  # RNG\nlr: float = 1\nname = 'a'\nflag = False\ny = 2 * 3"
    path = notebook(tmp_path / "a.ipynb", text)
    defaults = {"seed": 1, "lr": 1.0, "name": "a", "flag": False, "y": "2 * 3"}
    every, given = read_parameters(path, {})
    assert every == defaults and type(every["lr"]) is float and given == {}
    every, given = read_parameters(path, {"lr": "2", "name": "7", "flag": "true"})
    assert given == {"lr": 2.0, "name": "7", "flag": True} and every == defaults | given


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_parameters_are_those_that_papermill_sees(path):
    from papermill import inspect_notebook

    every, _ = read_parameters(path, {})
    theirs = inspect_notebook(str(path))
    assert list(every) == list(theirs)
    for name, about in theirs.items():
        assert every[name] == ast.literal_eval(about["default"])
        assert type(every[name]).__name__ == about["inferred_type_name"].strip("'\"")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sede": "1"}, r"has no parameter 'sede'; its parameters are: seed \(int\)\."),
        ({"seed": "1e6"}, r"Parameter seed of .*a\.ipynb must be int, not '1e6'"),
    ],
)
def test_wrong_parameters_are_one_sentence_and_exit_status_2(tmp_path, given, sentence):
    with pytest.raises(RunError, match=sentence) as raised:
        read_parameters(notebook(tmp_path / "a.ipynb", "seed: int = 1"), given)
    assert raised.value.code == 2


def test_a_file_that_is_no_notebook_is_one_sentence(tmp_path):
    (tmp_path / "a.ipynb").write_text("{")
    with pytest.raises(RunError, match="is not a notebook; restore it from git"):
        read_parameters(tmp_path / "a.ipynb", {})


def test_files_are_found_where_they_were_named(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/weights.txt").write_text("found")
    text = 'teacher: str = ""', "from pathlib import Path\nprint(Path(teacher).read_text())"
    write_notebook(tmp_path / "notebooks/a.ipynb", *text)
    monkeypatch.chdir(tmp_path / "here")
    execute(tmp_path / "notebooks/a.ipynb", tmp_path / "out/a.ipynb", {"teacher": "weights.txt"})
    printed = [c["outputs"] for c in json.loads((tmp_path / "out/a.ipynb").read_text())["cells"] if c.get("outputs")]
    assert [output["text"] for output in printed[0]] == [["found\n"]]


def test_a_disk_that_is_full_where_the_notebook_goes_is_one_sentence(tmp_path, monkeypatch):
    import papermill

    def no_space(*about, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(papermill, "execute_notebook", no_space)
    with pytest.raises(
        RunError, match=r"build/a\.ipynb cannot be written: there is no space left on the disk; make room"
    ):
        execute(tmp_path / "a.ipynb", tmp_path / "build/a.ipynb", {})


def test_who_has_no_home_is_lent_one(monkeypatch):
    def unknown(*about):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with at_home():
        assert Path.home().is_dir()
    assert "HOME" not in os.environ
    monkeypatch.setenv("HOME", "/somewhere")
    with at_home():
        assert os.environ["HOME"] == "/somewhere"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_keep_the_house_rules(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "strip it: make lint says how"
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len([line for line in lines if not line.strip().startswith("#")]) <= 150
    assert cells[0]["cell_type"] == "markdown", "a notebook opens with the question that it answers"
    declared = "".join(next(c for c in code if "parameters" in c["metadata"].get("tags", []))["source"])
    names = bound_names(ast.parse(declared).body)  # papermill knows no annotation with |, say, and leaves it out
    assert SHARED <= names == set(read_parameters(path, {})[0])
