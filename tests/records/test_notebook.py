"""Parameters are checked before anything runs, and the committed notebooks keep the house rules."""

import json

import pytest

from lib.records.notebook import RunError, read_notebook, split_parameters, typed
from lib.records.paths import NOTEBOOKS

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
        ("None", "float | None", None),
        ("2", "float | None", 2.0),
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


def test_split_parameters_reads_annotations_defaults_and_the_rest():
    declared, rest = split_parameters("seed: int = 1  # RNG\nlr: float = 1\nname = 'a'\nx = 2 * 3\nimport os", "here")
    assert declared == {"seed": ("int", 1), "lr": ("float", 1.0), "name": ("str", "a"), "x": ("str", "2 * 3")}
    assert rest == "import os"


def test_a_file_that_is_no_notebook_is_one_sentence(tmp_path):
    (tmp_path / "a.ipynb").write_text("{")
    with pytest.raises(RunError, match="is not a notebook"):
        read_notebook(tmp_path / "a.ipynb", {})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_keep_the_house_rules(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "strip it: make lint says how"
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len([line for line in lines if not line.strip().startswith("#")]) <= 150
    assert cells[0]["cell_type"] == "markdown", "a notebook opens with the question that it answers"
    parameters, _, _ = read_notebook(path, {})
    assert SHARED <= set(parameters)
