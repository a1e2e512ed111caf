"""Parameters of notebooks: a wrong one is a sentence in the first cell, and nothing has been written by then."""

import ast
import json
import math

import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from lib.config import ConfigError
from lib.records import paths
from lib.records.jobs import Scope
from lib.records.notebook import read_parameters
from lib.records.paths import NOTEBOOKS
from lib.records.pipeline import jobs
from lib.study.parameters import OWN, RULES, check, check_notebook
from lib.study.profiles import PROFILES

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))
TEACHER, COLLECT, TRAIN, EVALUATE, ERROR, OFFLINE, LEARN, SPEED, *_ = NAMES


def code(notebook):
    """The sources of a notebook's code cells, the parameters first."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def names(notebook, **given):
    """The global names when the first cell begins."""
    found = {}
    exec(code(notebook)[0], found)
    return found | given


@pytest.mark.parametrize("notebook", NAMES)
def test_a_notebook_checks_all_its_parameters_before_it_does_anything(notebook):
    declared = set(names(notebook)["__annotations__"])
    assert declared <= RULES.keys() and OWN.get(notebook, {}).keys() <= declared
    statements = ast.parse(code(notebook)[1]).body
    first = next(s for s in statements if not isinstance(s, (ast.Import, ast.ImportFrom, ast.Try)))
    assert ast.unparse(first) == f"check_notebook('{notebook}', globals())"


def test_every_rule_is_of_a_parameter():
    assert RULES.keys() == {name for notebook in NAMES for name in names(notebook)["__annotations__"]}
    assert OWN.keys() <= set(NAMES)


@pytest.mark.parametrize("notebook", NAMES)
def test_defaults_pass_and_stay_as_they_are(notebook):
    before = names(notebook)
    after = dict(before)
    check_notebook(notebook, after)
    assert after == before


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_pipeline_asks_for_passes(profile):
    seen = 0
    for job in jobs(Scope.of(PROFILES[profile])):
        if job.source.suffix == ".ipynb":
            check_notebook(job.source.stem, names(job.source.stem, **read_parameters(job.source, job.parameters)[0]))
            seen += 1
    assert seen >= len(NAMES)


def test_an_integer_stands_for_a_float_and_nothing_else_changes():
    given = names(TRAIN, lambda_reg=1)
    check_notebook(TRAIN, given)
    assert given["lambda_reg"] == 1.0 and type(given["lambda_reg"]) is float
    check(seed=99, arms="budget-64x2, open-loop-12 ,policy,", device="cpu", seconds=0.5, teacher="anyone")


LONG = "x" * 5_000
WRONG = [
    (EVALUATE, {"episodes": -1}, "episodes=-1 must lie between 0 and 10,000."),
    (EVALUATE, {"episodes": 10**9}, "episodes=1000000000 must lie between 0 and 10,000."),
    (EVALUATE, {"episodes": 1e3}, "episodes=1000.0 must be a whole number."),
    (EVALUATE, {"arms": ","}, "arms=',' names nothing; leave it empty"),
    (EVALUATE, {"arms": "policy,open-lop-3"}, "arm 'open-lop-3' is not known; write teacher"),
    (EVALUATE, {"arms": "budget-999999999x1"}, "arm 'budget-999999999×1' is not known.* N and I .at most 9999."),
    (EVALUATE, {"arms": "budget-64x9999"}, "PlannerConfig.iterations=9999 must be at most 1,000."),
    (EVALUATE, {"arms": "open-loop-13"}, "arm 'open-loop-13' is not known.* E .at most 12."),
    (EVALUATE, {"arms": 5}, "arm '5' is not known"),
    (EVALUATE, {"arms": LONG}, "arm 'xxx.*…x*' is not known"),
    (EVALUATE, {"execution_horizon": 13}, "execution_horizon=13 must lie between 0 and 12."),
    (EVALUATE, {"threshold": -0.1}, "threshold=-0.1 must lie between 0 and 1,000,000."),
    (EVALUATE, {"threshold": math.nan}, "threshold=nan must lie between"),
    (EVALUATE, {"threshold": math.inf}, "threshold=inf must lie between"),
    (EVALUATE, {"threshold": 10**400}, "threshold=10000.* must lie between"),
    (EVALUATE, {"threshold": "low"}, "threshold='low' must be a number."),
    (EVALUATE, {"model_size": "all"}, "model_size='all' is not known; use one of: 1m, 5m, 19m, 48m, 317m."),
    (EVALUATE, {"model_size": "5M"}, "model_size='5M' is not known.* Did you mean 5m?"),
    (EVALUATE, {"model_size": 5}, "model_size='5' is not known.* Did you mean 5m?"),
    (EVALUATE, {"profile": "../../x"}, "profile='../../x' is not known; use one of: smoke, quick, paper."),
    (EVALUATE, {"profile": ""}, "profile='' is not known"),
    (EVALUATE, {"profile": 3}, "profile='3' is not known"),
    (EVALUATE, {"task": "../../x"}, "task='../../x' is not known"),
    (EVALUATE, {"task": "walker-wakl"}, "task='walker-wakl' is not known.* Did you mean walker-walk"),
    (EVALUATE, {"task": None}, "task='None' is not known"),
    (EVALUATE, {"seed": "one"}, "seed='one' must be a whole number."),
    (EVALUATE, {"seed": True}, "seed=True must be a whole number."),
    (EVALUATE, {"seed": -1}, "seed=-1 must lie between 0 and 99."),
    (EVALUATE, {"teacher": 123}, "teacher=123 must be text, which papermill takes as it is after -r: -r teacher 123."),
    (EVALUATE, {"teacher": LONG}, "teacher='xxx.*…x*' is no file, and too long for the name of a teacher."),
    (EVALUATE, {"device": 0}, "device='0' is not known; use auto, cpu or cuda"),
    (EVALUATE, {"device": "gpu"}, "device='gpu' is not known; use auto, cpu or cuda"),
    (EVALUATE, {"device": "cuda"}, "device='cuda' is not here: torch finds no GPUs; use auto or cpu."),
    (TEACHER, {"decisions": 10}, "decisions=10 ends before the first evaluation; take at least 2,500, or 0."),
    (TEACHER, {"decisions": 23, "profile": "smoke"}, "decisions=23 ends .* at least 24, or 0."),
    (TEACHER, {"decisions": -5}, "decisions=-5 must lie between 0 and"),
    (TEACHER, {"decisions": 5_000, "model_size": "all"}, "decisions=5000 trains one size"),
    (TEACHER, {"model_size": "all", "teacher": "official/dog-run-1"}, "teacher='official/dog-run-1' has one size"),
    (COLLECT, {"execution_horizon": 1}, "execution_horizon=1 must lie between 2 and 12, or 0 for what the profile"),
    (COLLECT, {"plan_horizon": 0}, "plan_horizon=0 must lie between 1 and 12."),
    (COLLECT, {"min_mismatch": 1.5}, "min_mismatch=1.5 must lie between 0 and 1."),
    (COLLECT, {"max_samples": -1}, "max_samples=-1 must lie between 0 and"),
    (TRAIN, {"lambda_reg": -1}, "lambda_reg=-1 must lie between 0 and 1,000,000."),
    (TRAIN, {"rollout_weight": math.inf}, "rollout_weight=inf must lie between"),
    (TRAIN, {"batch_size": 0}, "batch_size=0 must lie between 1 and"),
    (TRAIN, {"epochs": -1}, "epochs=-1 must lie between 0 and"),
    (TRAIN, {"history_len": 0}, "history_len=0 must lie between 1 and 500."),
    (TRAIN, {"q_weighted": "yes"}, "q_weighted='yes' must be true or false."),
    (TRAIN, {"corrector_type": "two-tower"}, "corrector_type='two-tower' is not known.* Did you mean two_tower"),
    (TRAIN, {"data": "/nowhere/set.safetensors"}, "data='/nowhere/set.safetensors' is no file"),
    (ERROR, {"noise": -0.1}, "noise=-0.1 must lie between 0 and"),
    (ERROR, {"horizon": 0}, "horizon=0 must lie between 1 and 500."),
    (ERROR, {"batches": 0}, "batches=0 must lie between 1 and"),
    (ERROR, {"buffer_seed": -1}, "buffer_seed=-1 must lie between 0 and 99."),
    (ERROR, {"buffer": "teacher,nowhere"}, "buffer='nowhere' is no file, and none of: teacher, noisy"),
    (OFFLINE, {"states": -1}, "states=-1 must lie between 0 and"),
    (OFFLINE, {"k": 501}, "k=501 must lie between 0 and 500."),
    (OFFLINE, {"task": "cup-catch"}, "task='cup-catch' is not known; use one of: cartpole-swingup, .*, all."),
    (OFFLINE, {"teacher": "official/walker-walk-1"}, "teacher='official/walker-walk-1' plays one task"),
    (LEARN, {"episodes": -1}, "episodes=-1 must lie between 0 and 10,000."),
    (LEARN, {"env": "hoper"}, "env='hoper' is not known.* Did you mean hopper"),
    (LEARN, {"dataset": "experts"}, "dataset='experts' is not known; use one of expert, medium"),
    (LEARN, {"dataset": LONG + "-v0"}, "dataset='xxx.*' is not known"),
    (LEARN, {"checkpoint": "/nowhere.safetensors"}, "checkpoint='/nowhere.safetensors' is no file"),
    (SPEED, {"seconds": -1}, "seconds=-1 must lie between 0 and 86,400."),
    (SPEED, {"device": "cuda:3"}, "device='cuda:3' is not here"),
]


@pytest.mark.parametrize(("notebook", "given", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_a_sentence_before_anything_is_written(notebook, given, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for name in ("DATA", "CACHE", "TEACHERS", "BUILD"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    with pytest.raises(ConfigError, match=sentence) as raised:
        exec(code(notebook)[1], names(notebook, **given))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1_500
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ misspelt names


@pytest.fixture
def cells(monkeypatch):
    """Runs cells as a kernel does, and says what the last of them raised."""
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "showtraceback", lambda *about, **more: None)
    checked = f'from lib.study.parameters import check_notebook\ncheck_notebook("{EVALUATE}", globals())'

    def run(*sources):
        for source in sources:
            found = shell.run_cell(source, store_history=True)
        return found.error_in_exec

    run.declared, run.checked = code(EVALUATE)[0], checked
    yield run
    shell.history_manager.end_session()


def parameterised(**given):
    """The sources of 04's first code cells once papermill has added one."""
    notebook = load_notebook_node(str(NOTEBOOKS / f"{EVALUATE}.ipynb"))
    found = [c.source for c in parameterize_notebook(notebook, given).cells if c.cell_type == "code"]
    assert found[0] == code(EVALUATE)[0] and found[2] == code(EVALUATE)[1]
    return found[:2]


def test_a_misspelt_name_is_refused(cells):
    error = cells(*parameterised(seed=2, episods=3, arms="policy"), cells.checked)
    assert isinstance(error, ConfigError)
    assert str(error).startswith("parameter='episods' is not known; use one of: profile, task, model_size, seed, ")
    assert str(error).endswith(". Did you mean episodes?")


def test_names_that_the_notebook_has_and_papermills_own_are_not(cells):
    given = parameterised(PAPERMILL_INPUT_PATH="a.ipynb", PAPERMILL_OUTPUT_PATH="b.ipynb", seed=2, threshold=0.5)
    assert cells(*given, cells.checked) is None


def test_running_cells_again_in_jupyterlab_refuses_nothing(cells):
    assert cells(cells.declared, "sed = 2", cells.checked) is None  # somebody's own name
    assert cells(cells.declared, "# Parameters\nsed = 2", cells.checked) is not None
    assert cells(cells.declared, "# Parameters\nseed = 2", cells.checked) is None  # mended
    assert cells(cells.checked) is None and cells("x: int = 3", cells.declared, cells.checked, cells.checked) is None
    assert cells(cells.declared, "# Parameters\n2 +", cells.checked) is None


@pytest.mark.slow
def test_papermill_alone_is_refused_too_and_only_its_own_file_is_written(tmp_path):
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="parameter='sed' is not known.* Did you mean seed"):
        papermill.execute_notebook(
            NOTEBOOKS / f"{EVALUATE}.ipynb", out, {"sed": 2, "profile": "smoke"}, kernel_name="python3",
            progress_bar=False, cwd=tmp_path,
        )  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["out.ipynb"]
