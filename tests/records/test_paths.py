"""Names that become paths: what may, what may not, and what is made of any other text."""

import pytest

from lib.config import MODEL_SIZES, ConfigError
from lib.records import paths
from lib.records.jobs import Scope, cell_parameters, profile

WAYS_OUT = [
    "../../x",
    "..",
    ".",
    "",
    "/",
    "/etc",
    "a/b",
    "a\\b",
    "a.b",
    "-a",
    "a-",
    "a b",
    "a\n",
    "a\0",
    "ä",
    "x" * 101,
]


@pytest.mark.parametrize("folder", [paths.results, paths.executed, paths.figures])
@pytest.mark.parametrize("name", WAYS_OUT)
def test_no_profile_leads_out_of_its_folder(folder, name):
    with pytest.raises(
        ConfigError, match="^profile=.* cannot be part of a file's name; use letters, digits and dashes"
    ):
        folder(name)
    assert folder("audit").name == "audit" and folder("audit").is_relative_to(paths.ROOT)


@pytest.mark.parametrize("name", [*WAYS_OUT, "../../x-1m-1", "walker-walk", "walker-walk-2m-1", "walker-walk-1m-01",
                                  "walker-walk-1m-100", "walker-walk-1m--1", "-1m-1", "walker-walk-1M-1", "a b-1m-1",
                                  "walker-walk-1m-١", "walker-walk-1m-1\n", "x" * 100 + "-1m-1"])  # fmt: skip
def test_what_is_no_cell_is_refused_before_there_are_jobs(name):
    sentence = "is not a cell; write <task>-<size>-<seed>, as in walker-walk-1m-1, with a size of 1m, 5m"
    for refuses in (paths.cell_parts, lambda cell: Scope.of(profile("smoke"), (cell,))):
        with pytest.raises(ConfigError, match=sentence) as raised:
            refuses(name)
        assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_a_cell_has_a_task_a_size_and_a_seed(size):
    assert paths.cell_parts(f"cup-catch-{size}-0") == ("cup-catch", size, 0)
    assert paths.cell_parts(f"a-1m-1-{size}-99") == ("a-1m-1", size, 99)
    assert cell_parameters("a.ipynb", f"tiny-{size}-7") == {"task": "tiny", "model_size": size, "seed": "7"}


@pytest.mark.parametrize(
    ("text", "name"),
    [("mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"), ("hopper_medium-v2", "hopper_medium-v2"),
     ("../..", "unnamed"), ("über/weights v1.2", "ber-weights-v1-2"), ("--a--", "a"), ("x" * 300, "x" * 100),
     ("", "unnamed")],
)  # fmt: skip
def test_any_text_has_a_part_that_is_a_name(text, name):
    assert paths.part(text) == name == paths.named("label", name)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("walker-walk", "walker-walk"),
        ("gym:HalfCheetah-v5", "gym--HalfCheetah-v5"),
        ("gym:ALE/Pong-v5", "gym--ALE---Pong-v5"),
        ("gym:my_robots:Reach-v2", "gym--my_robots----Reach-v2"),
        ("my.own.module:make", "my-own-module--make"),
    ],
)
def test_a_task_of_any_kind_is_part_of_a_files_name_and_comes_back(task, name):
    assert (paths.file_name(task), paths.task_of(name)) == (name, task)
    assert paths.cell_parts(f"{name}-1m-3") == (task, "1m", 3)


@pytest.mark.parametrize(
    "task", ["gym:A---B-v0", "gym:A--B-v0", "gym:a.b-v0", "a:b.c", "../x", "a:..", "", "gym:" + 100 * "x"]
)
def test_a_task_without_such_a_name_is_refused_as_it_was_given(task):
    with pytest.raises(ConfigError, match="cannot be part of a file's name"):
        paths.file_name(task)
