"""The whole road at smoke size, in a copy of the repository with one of the shipped teachers: `make all`, from the
teacher to the PDF, and what each notebook writes. Nothing here touches `data/`.

The copies' default profile is smoke, so that they also run the way JupyterLab's "Run all" does: from their own folder,
with the defaults, cell by cell.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from pypdf import PdfReader

from lib.config import ConfigError, WorldModelConfig
from lib.records import paths
from lib.records.paths import NOTEBOOKS, ROOT
from lib.records.seeds import SEED_BLOCKS
from lib.study.cells import Cell
from lib.study.profiles import PROFILES
from lib.weights.native import CheckpointError, save_world_model
from lib.world_model import WorldModel
from tests.bare import notebook_code, run_bare, run_notebook

CELL = "walker-walk-1m-1"
SMOKE = "data/results/smoke"
TEACHERS = paths.TEACHERS  # before any monkeypatching
NAMES = sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb"))
CARD = {"task": "walker-walk", "size": "1m", "seed": 1, "return_mean": 25.0, "return_std": 1.0, "returns": [24.0, 26.0],
        "decisions": 24, "frames": 48, "minutes": 1.0, "planner": {"samples": 512, "iterations": 6}}  # fmt: skip


def ship(name, folder=None):
    """A small random teacher, with a card and a curve, in `folder` or `data/teachers/`."""
    cell, weights = Cell.parse(name), (folder or paths.TEACHERS) / f"{name}.safetensors"
    weights.parent.mkdir(exist_ok=True)
    save_world_model(WorldModel(WorldModelConfig(24, 6, 16, 16, 16, 2, 2), cell.task), weights)
    weights.with_suffix(".json").write_text(json.dumps(CARD | {"size": cell.size, "seed": cell.seed}))
    weights.with_suffix(".csv").write_text("decision,frames,return,episodes,minutes\n24,48,25.0,2,1.0\n")
    return weights


class Copy:
    """A copy of all that `make all` needs, beside one of the shipped teachers, without snapshots; or what is there."""

    def __init__(self, root: Path):
        self.root = root
        if root.exists():
            return
        root.mkdir()
        for name in ("lib", "figures", "paper"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.gif", "*.mp4"))
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, root)
        (root / "notebooks").mkdir()
        for name in NAMES:
            text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
            text, count = re.subn(r'(profile: str = \\")quick(\\")', r"\1smoke\2", text)
            assert count == 1, f"{name} has no parameter profile with the default quick"
            (root / "notebooks" / f"{name}.ipynb").write_text(text, encoding="utf-8")
        (root / "data").mkdir()
        for name in ("official_returns", "expert_returns"):
            shutil.copy(ROOT / "data" / f"{name}.csv", root / "data")
        (root / "data" / "teachers").mkdir()
        for end in ("safetensors", "json", "csv"):
            shutil.copy(TEACHERS / f"{CELL}.{end}", root / "data" / "teachers")

    def call(self, *arguments, cwd=None):
        """`python …` that finds the copy's `lib`, from the copy's root unless `cwd` is given."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "PYTEST"))}
        environment |= {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        options = dict(cwd=cwd or self.root, env=environment, capture_output=True, text=True, timeout=900)
        return subprocess.run(command, **options)

    def run(self, name, cwd=None):
        """A notebook through papermill, as a user calls it."""
        source, target = (self.root / folder / f"{name}.ipynb" for folder in ("notebooks", "build"))
        target.parent.mkdir(exist_ok=True)
        return self.call("-m", "papermill", source, target, "-p", "profile", "smoke", cwd=cwd)

    def make(self, *arguments):
        """`make`; what it said."""
        command = ["make", f"PYTHON={sys.executable}", "PROFILE=smoke", *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    def table(self, path):
        return pd.read_csv(self.root / SMOKE / path)

    def sets(self):
        """The files of distillation sets."""
        return list((self.root / "data" / "cache" / "distillation").glob("*.safetensors"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("first") / "copy")


@pytest.fixture(scope="module")
def third(copy, tmp_path_factory):
    """03 before anything else was made, from a folder that has nothing to do with the repository."""
    return copy.run("03_train_corrector", cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def made(copy, third):
    """What `make all` said, which made everything; and the distillation sets that were there before."""
    if not shutil.which("make"):
        pytest.skip("needs make")
    sets = copy.sets()
    return copy.make(), sets


CELLS_OWN = (
    "teacher/{}.csv teacher/{}-card.csv distillation/{}.csv corrector/{}-two_tower.csv "
    "corrector/{}-two_tower-depth.csv corrector/{}-temporal.csv horizon/{}.csv horizon/{}-depth.csv "
    "horizon/{}-action-error.csv distilled/{}.csv "
    "perturbed/{}.csv deadlines/{}.csv deadlines/perturbed/{}.csv model_error/{}.csv accelerated/{}.csv "
    "decision_transformer/{}-expert-summary.csv"
)
ALL_CELLS = (
    "horizon/summary.csv planner/cpu.csv planner/cpu-step.csv planner/cpu-updates.csv planner/bfloat16.csv "
    "statistics/headline.csv certified/summary.csv deadlines/summary.csv deadlines/steps.csv offline/cells.csv"
)
RESULTS = [*CELLS_OWN.replace("{}", CELL).split(), *ALL_CELLS.split()]


@pytest.mark.parametrize("file", RESULTS)
def test_make_all_makes_every_result_and_says_of_what(copy, made, file):
    assert len(copy.table(file)) > 0
    assert json.loads((copy.root / SMOKE / f"{file}.meta.json").read_text())["run"]["key"]


def test_make_all_runs_every_notebook(copy, made):
    assert made[0].count("running notebooks/") == len(NAMES) == 11
    arms = json.loads((copy.root / SMOKE / "horizon/arms.json").read_text())[CELL]
    assert list(arms) == [name.replace("x", "×") for name in PROFILES["smoke"].arms]


def test_the_pdf_shows_the_numbers_of_this_run(copy, made):
    summary = copy.table("horizon/summary.csv").set_index("arm")
    pages = PdfReader(copy.root / "build/smoke/paper.pdf").pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "Planner calls per episode" in text and "This is the smoke profile" in text
    assert f" {100 * summary.loc['two-tower-3', 'kept']:.0f}% " in text
    assert "Milliseconds per solve" in text


def test_a_second_make_runs_nothing(copy, made):
    start = time.monotonic()
    said = copy.make()
    assert "running" not in said and said.count("unchanged") >= 30
    assert time.monotonic() - start < 60  # seconds: about one on an idle machine


def test_a_lost_summary_is_made_again_from_the_cells(copy, made):
    summary = copy.root / SMOKE / "horizon/summary.csv"
    before = summary.read_text()
    summary.unlink()
    said = copy.make()
    assert "running paper/summary.py" in said and "running notebooks/" not in said
    assert summary.read_text() == before


@pytest.fixture(scope="module")
def again(tmp_path_factory, copy, made):
    """A copy of the copy: what runs there changes no result here."""
    return Copy(shutil.copytree(copy.root, tmp_path_factory.mktemp("again") / "copy"))


def code_cells():
    notebooks = [json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")) for name in NAMES]
    return sum(cell["cell_type"] == "code" for notebook in notebooks for cell in notebook["cells"])


def test_run_all_goes_through_every_cell(again):
    """As JupyterLab runs them: each from its own folder, with its defaults; in one process, as kernels start slowly."""
    code = """
        import json, pathlib
        done = 0
        for file in sorted(pathlib.Path().glob("[0-9]*.ipynb")):
            scope = {"display": lambda shown: shown}
            for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code":
                    exec("".join(cell["source"]), scope)
                    done += 1
        print(done, "cells")
    """
    done = again.call("-c", textwrap.dedent(code), cwd=again.root / "notebooks")
    assert done.returncode == 0, done.stderr[-4000:]
    assert code_cells() > 20 and done.stdout.endswith(f"{code_cells()} cells\n")


@pytest.mark.slow
def test_run_all_goes_through_every_cell_in_kernels(again):
    """A cell that raises fails; outputs do not count (nbval)."""
    done = again.call(
        "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "-q", "notebooks", "--rootdir", again.root
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{code_cells()} passed" in done.stdout


COLUMNS = {
    f"corrector/{CELL}-two_tower.csv": "epoch split loss action_mse delta_abs",
    f"corrector/{CELL}-two_tower-depth.csv": "depth plan_mse corrector_mse policy_mse teacher_floor_mse samples",
    f"distillation/{CELL}.csv": "depth samples mismatch plan_mse policy_mse teacher_floor_mse",
    f"horizon/{CELL}.csv": """task size teacher_seed corrector_seed arm execution_horizon episode_seed return length
        planner_calls model_evaluations fallbacks corrector_calls delta_abs""",
    f"horizon/{CELL}-depth.csv": "arm episode_seed depth mismatch delta_abs reward count",
    f"model_error/{CELL}.csv": """source step mse mse_std mse_min mse_max tv cosine reward_mse batches episodes growth
        persistence_mse mean_latent_mse""",
    f"accelerated/{CELL}.csv": "arm admitted episodes return kept p evaluations median_ms p99_ms",
    "offline/cells.csv": """task size seed decisions m1 m2 m3 m4 m5 cpg cpg_low cpg_high verdict teacher_return kept_e3
        kept_e6""",
    f"decision_transformer/{CELL}-expert-1.csv": """updates minutes action_loss val_loss return_mean return_std
        normalised_score""",
    f"deadlines/{CELL}.csv": "arm planner delay episode_seed return plan_age action_change planner_calls",
    f"deadlines/perturbed/{CELL}.csv": "arm planner delay perturbation severity episode_seed return plan_age",
    "planner/cpu.csv": """size batch mode dtype solve_ms_p50 solve_ms_p95 gflops ceiling_gflops ratio_to_twin
        ratio_to_floor""",
}


@pytest.mark.parametrize("file", COLUMNS)
def test_tables_have_the_columns_that_are_read(copy, made, file):
    assert set(COLUMNS[file].split()) <= set(copy.table(file))


def test_03_makes_what_it_lacks_from_any_directory(copy, third):
    assert third.returncode == 0, third.stdout + third.stderr
    curve = copy.table(f"corrector/{CELL}-two_tower.csv")
    assert curve["split"].value_counts().to_dict() == {"train": 2, "validation": 2} and curve.notna().all(axis=None)
    errors = copy.table(f"corrector/{CELL}-two_tower-depth.csv")
    assert errors["depth"].tolist() == [1, 2] and errors["plan_mse"].gt(0).all()
    assert (copy.root / SMOKE / "corrector" / f"{CELL}-two_tower.safetensors").is_file()
    said = (copy.root / "build" / "03_train_corrector.ipynb").read_text(encoding="utf-8")
    assert f"making the distillation set of {CELL}, round 1" in said


def test_01_shows_the_shipped_teacher(copy, made):
    curve, shipped = copy.table(f"teacher/{CELL}.csv"), pd.read_csv(TEACHERS / f"{CELL}.csv")
    assert curve.equals(shipped[list(curve)]) and len(curve) > 3
    (card,) = copy.table(f"teacher/{CELL}-card.csv").to_dict("records")
    told = json.loads((TEACHERS / f"{CELL}.json").read_text())
    assert (card["decisions"], card["episodes"]) == (told["decisions"], len(told["returns"])) and card["samples"] == 512
    assert card["return_mean"] == pytest.approx(told["return_mean"])
    assert card["return_low"] < card["return_mean"] < 1000 and card["official_return"] == 962


def test_02_takes_the_set_that_03_made(copy, made):
    (file,) = made[1]  # one set, not one for each notebook; notebook 10 makes its own
    assert file in copy.sets()
    table = copy.table(f"distillation/{CELL}.csv")
    assert table["depth"].tolist() == [1, 2] and table["samples"].tolist() == [8, 8] and table["mismatch"].gt(0).all()


def test_04_compares_the_arms(copy, made):
    rows = copy.table(f"horizon/{CELL}.csv")
    names = [name.replace("x", "×") for name in PROFILES["smoke"].arms]
    assert rows["arm"].drop_duplicates().tolist() == names
    calls = rows.groupby("arm")["planner_calls"].sum()
    fixed = {"teacher": 24, "policy": 0, "open-loop-3": 8, "two-tower-3": 8, "temporal-3": 8}
    assert {name: calls[name] for name in fixed} == fixed and calls["gated-3"] >= 8
    times = copy.table(f"latency/{CELL}.csv")
    steps = times.query("part == 'step'").set_index(["batch", "arm"])
    in_parallel = list(PROFILES["smoke"].batch_arms)
    assert steps.index.tolist() == [(1, name) for name in names] + [(10, name) for name in in_parallel]
    assert (steps["mean_ms"] > 0).all() and len(in_parallel) < len(names)
    assert set(times["part"]) == {"step", "plan", "between", "env", "encode", "predict", "correct", "gate"}
    depths = copy.table(f"horizon/{CELL}-depth.csv")
    assert depths["count"].sum() == rows["length"].sum() == len(names) * 2 * 12


def test_05_measures_on_three_sources(copy, made):
    table = copy.table(f"model_error/{CELL}.csv")
    assert table["source"].unique().tolist() == ["teacher", "noisy", "random"]
    assert table.groupby("source")["step"].apply(list).map(lambda steps: steps == list(range(1, 13))).all()
    assert table["episodes"].eq(3).all() and table["mse"].gt(0).all() and table["starts"].eq(3).all()
    text = (copy.root / SMOKE / "model_error" / f"{CELL}_model_error.txt").read_text(encoding="utf-8")
    assert f"Open-loop model error of {CELL}, 1 to 12 steps ahead" in text and "random: 3 episodes" in text


def test_06_measures_the_cells_that_are_there(copy, made):
    (cell,) = copy.table("offline/cells.csv").to_dict("records")
    told = json.loads((TEACHERS / f"{CELL}.json").read_text())
    assert (cell["cell"], cell["decisions"]) == (CELL, told["decisions"])
    gaps = copy.table("offline/gaps.csv")
    assert gaps["planner"].tolist() == ["shooting", "cem"] and gaps["verdict"].tolist()[0] == cell["verdict"]
    assert (gaps["episodes"] + gaps["excluded"]).eq(2).all() and gaps["cpg"].between(-1, 1).all()
    first = min((TEACHERS / CELL).glob("*.safetensors"), key=lambda file: int(file.stem))  # smoke takes no more
    assert copy.table("offline/skipped.csv")["file"].tolist() == [f"data/teachers/{CELL}/{first.name}"]
    correlations = copy.table("offline/correlations.csv")
    assert correlations["n"].le(1).all() and correlations["spearman"].isna().all()  # of a single cell
    compared = copy.table("offline/differences.csv").set_index("metric")["n"]
    assert compared.le(1).all() and compared[["m3", "m4", "m5"]].eq(1).all() and "m5_latent" in compared


def test_07_learns_offline_and_asks_for_returns(copy, made):
    curve = copy.table(f"decision_transformer/{CELL}-expert-1.csv")
    assert curve["updates"].tolist() == [2, 4, 2, 4]
    assert curve["arm"].unique().tolist() == ["decision-transformer", "behaviour-cloning"]
    assert curve["val_loss"].gt(0).all() and curve["return_mean"].ge(0).all()
    rows = copy.table(f"decision_transformer/{CELL}-expert-summary.csv")
    arms = ["decision-transformer", "decision-transformer", "behaviour-cloning", "teacher", "policy"]
    assert rows["arm"].tolist() == arms and rows["asked"].tolist()[:2] == [0.5, 1.0] and set(rows["cell"]) == {CELL}
    learnt = rows[:3]
    assert learnt["planner_calls"].eq(0).all() and learnt["step_ms"].gt(0).all() and rows["kept"][3] == 1
    assert len(copy.table(f"decision_transformer/{CELL}-expert-episodes.csv")) == 2 * len(arms)


def test_08_measures_and_plays(copy, made):
    solves = copy.table("planner/cpu.csv")
    sizes = solves.groupby("dtype")["size"].apply(list).to_dict()
    assert sizes in ({"float32": ["1m", "5m"]}, dict.fromkeys(("float32", "bfloat16"), ["1m", "5m"]))  # by processor
    assert set(solves["mode"]) == {"eager"} and (solves["samples"] * solves["iterations"]).max() < 64
    assert solves["device"].str.contains(" × ").all() and solves["threads"].eq(1).all()
    assert {"encode", "correct", "re-roll", "mismatch"} < set(copy.table("planner/cpu-step.csv")["part"])
    updates = copy.table("planner/cpu-updates.csv")
    assert set(updates["part"]) == {"update", "decision"} and set(updates["learner"]) == {"eager", "official"}
    about = json.loads((copy.root / SMOKE / "planner" / "cpu.csv.meta.json").read_text())
    assert about["threads"] == 1 and about["load"] >= 0 and about["device"] == solves["device"][0]
    episodes = copy.table("planner/bfloat16.csv")
    assert list(episodes) == ["arm", "episode_seed", "return"]
    seeds = episodes.groupby("arm")["episode_seed"].apply(list).to_dict()
    first = SEED_BLOCKS["calibrate"]  # not what is reported
    assert seeds == {"float32": [first, first + 1], "bfloat16": [first, first + 1]}
    assert not (copy.root / SMOKE / "planner" / "cpu-memory.csv").exists()


def test_09_plays_every_arm_at_every_delay_and_times_it(copy, made):
    table, study = copy.table(f"deadlines/{CELL}.csv"), PROFILES["smoke"].delays
    assert set(table["arm"]) == {"every-step", *study.arms, *study.unplanned}
    played = table.dropna(subset="delay").groupby(["arm", "planner"])["delay"].unique().map(list)
    assert all(delays == ([0] if arm == "every-step" else [2]) for (arm, _), delays in played.items())
    assert {planner for _, planner in played.index} == {"16×1", "32×1"} and table["action_change"].gt(0).all()
    steps = copy.table(f"deadlines/{CELL}-steps.csv")
    assert set(steps.loc[steps["part"] == "solve", "arm"]) >= {"16×1+async-d8", "async+draft-d8", "late-hold-d8"}


def test_08_measures_where_only_torch_numpy_and_safetensors_are_installed(tmp_path):
    said = run_bare(
        "from pathlib import Path\nfrom lib.records import paths\n"
        f"paths.DATA = Path({str(tmp_path)!r})\n{notebook_code('08_planner_benchmark', profile='smoke')}"
    )
    assert said.count("is not installed") == 2  # no tables shown, no episodes
    assert "not measured solve 512 × 6, 1m" in said and "the products alone" in said
    made = sorted(p.name for p in (tmp_path / "results" / "smoke" / "planner").glob("*.csv"))
    assert made == ["cpu-step.csv", "cpu-updates.csv", "cpu.csv"]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Folders of its own for what runs here, with the official returns; the folder of its teacher results."""
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    paths.DATA.mkdir()
    for name in ("official_returns", "expert_returns"):
        shutil.copy(ROOT / "data" / f"{name}.csv", paths.DATA)
    return paths.results("smoke") / "teacher"


def test_01_trains_when_asked_to(elsewhere):
    run_notebook("01_teacher", profile="smoke", decisions=48)
    table = pd.read_csv(elsewhere / f"{CELL}.csv")
    assert {"decision", "frames", "return", "episodes", "minutes"} <= set(table)
    assert table["decision"].tolist()[-1] == 48 and (table["frames"] == 2 * table["decision"]).all()
    (card,) = pd.read_csv(elsewhere / f"{CELL}-card.csv").to_dict("records")
    assert (card["decisions"], card["frames"], card["samples"], card["collect_samples"]) == (48, 96, 32, 16)
    assert not paths.TEACHERS.exists()  # only lib.teachers.cli ships


def test_01_does_not_train_and_show_another_teacher_at_once(elsewhere):
    with pytest.raises(ConfigError, match="decisions=48 trains from scratch, without teacher='official/dog-run-1'"):
        run_notebook("01_teacher", profile="smoke", decisions=48, teacher="official/dog-run-1")


def test_01_measures_a_teacher_from_elsewhere_and_names_its_results_after_it(elsewhere, tmp_path, capsys):
    mine = ship(CELL).rename(tmp_path / "mine.safetensors")
    run_notebook("01_teacher", profile="smoke", teacher=str(mine))
    cell = str(Cell.of_teacher(str(mine), "walker-walk", 1))
    assert f"{mine} has no card: nothing is known of its training" in capsys.readouterr().out
    assert cell.startswith("mine-")
    assert [p.name for p in elsewhere.glob("*.csv")] == [f"{cell}-card.csv"]  # nothing under the shipped one's name
    (card,) = pd.read_csv(elsewhere / f"{cell}-card.csv").to_dict("records")
    assert card["episodes"] == 2 and 0 <= card["return_low"] <= card["return_mean"] and pd.isna(card["frames"])


def test_01_shows_every_size_that_is_shipped_and_says_which_are_not(elsewhere, capsys):
    for name in ("walker-walk-1m-1", "walker-walk-19m-1", "walker-walk-5m-2", "cheetah-run-48m-1"):
        ship(name)
    run_notebook("01_teacher", profile="smoke", model_size="all")
    left_out = "not shipped, so left out: walker-walk-5m-1, walker-walk-48m-1, walker-walk-317m-1\n"
    assert left_out in capsys.readouterr().out
    sizes = {p.name: pd.read_csv(p)["size"][0] for p in elsewhere.glob("*-card.csv")}
    assert sizes == {"walker-walk-19m-1-card.csv": "19m", "walker-walk-1m-1-card.csv": "1m"}


def test_01_says_when_no_size_is_shipped(elsewhere):
    ship("walker-walk-1m-1")
    message = "no teacher 'walker-walk-1m-2'.* the shipped teachers are walker-walk-1m-1"
    with pytest.raises(CheckpointError, match=message):
        run_notebook("01_teacher", profile="smoke", model_size="all", seed=2)


def test_a_size_that_is_not_shipped_is_a_sentence(copy, monkeypatch):
    monkeypatch.setattr(paths, "TEACHERS", copy.root / "data" / "teachers")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    with pytest.raises(CheckpointError) as error:
        run_notebook("03_train_corrector", model_size="5m", profile="smoke")
    sentence = str(error.value)
    assert "no teacher 'walker-walk-5m-1'" in sentence and f"shipped teachers are {CELL}" in sentence
    assert "python -m lib.teachers.cli" in sentence and "\n" not in sentence


def test_the_installed_lib_is_found_from_the_notebooks_folder():
    """What JupyterLab's kernel relies on, as it sets no PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import lib.records.paths; print(lib.records.paths.ROOT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT), done.stderr
