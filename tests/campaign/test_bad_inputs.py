"""Bad inputs, tried as a user would: each ends with one clear sentence and a status that is not 0, and writes nothing.

The same values stand in fast tests beside what refuses them; here they go through the real commands.
"""

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from lib.config import PlannerConfig
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.records.paths import ROOT
from lib.speculation import SpeculativeController
from lib.weights.native import CheckpointError, load_world_model
from tests.tiny import BUDGET, OBS, tiny_model

pytestmark = pytest.mark.slow
TEACHER = ROOT / "data/teachers/cartpole-swingup-1m-1.safetensors"

PARAMETERS = {  # notebook: values, and a word of the sentence that each gets
    "01_teacher": [
        ("profile ../../x", "profile"), ("profile ''", "profile"), ("task walker-wlak", "Did you mean walker-walk"),
        ("model_size 5M", "Did you mean 5m"), ("model_size 5", "Did you mean 5m"), ("seed -1", "seed"),
        ("seed one", "seed"), ("sed 2", "Did you mean seed"), ("device 0", "device"), ("device cuda", "cuda"),
        ("decisions 10", "decisions"), ("decisions -5", "decisions"), ("teacher 123", "teacher"),
    ],
    "02_collect_data": [("execution_horizon 13", "execution_horizon"), ("episodes -1", "episodes")],
    "03_train_corrector": [
        ("corrector_type towers", "corrector_type"), ("lambda_reg -1", "lambda_reg"), ("epochs many", "epochs"),
        ("batch_size 0", "batch_size"), ("data nowhere.safetensors", "data"), ("history_len 0", "history_len"),
    ],
    "04_horizon_evaluation": [
        ("episodes -1", "episodes"), ("arms ,", "arms"), ("arms teacher,two-towers-3", "two-towers-3"),
        ("arms budget-999999999x1", "budget"), ("execution_horizon 99", "execution_horizon"),
        ("threshold nan", "threshold"),
        ("teacher ../../../etc/passwd", "passwd"), (f"teacher {'x' * 5000}", "teacher"),
    ],
    "05_model_error": [("horizon 0", "horizon"), ("buffer ../x", "buffer")],
    "06_offline_vs_downstream": [("task acrobot-swingup", "task"), ("states -3", "states")],
    "07_decision_transformer": [
        ("episodes -1", "episodes"), ("env Hopper", "env"), ("checkpoint no.safetensors", "checkpoint")
    ],
    "08_planner_benchmark": [("seconds -1", "seconds"), ("device tpu", "device")],
    "09_deadlines": [("episodes -1", "episodes"), ("model_size all", "model_size"), ("seed 100", "seed")],
    "10_your_own_teacher": [("keep 1.2", "keep"), ("device cuda", "device"), ("minutes -1", "minutes")],
    "11_drafts": [("episodes -1", "episodes"), ("model_size all", "model_size")],
}  # fmt: skip

COMMANDS = {  # words of the command line after python -m, and a word of the sentence
    "lib.records.run run --profile ../x": "profile",
    "lib.records.run run --profile qick": "Did you mean quick",
    "lib.records.run run --cells ../../x-1m-1": "cell",
    "lib.records.run run --cells walker-walk-2m-1": "cell",
    "lib.records.run run --only horizonn": "Did you mean horizon",
    "lib.records.run status --profile paper --cells walker": "cell",
    "lib.records.audit --stages nothing": "stage",
    "lib.records.audit --rows 0": "rows",
    "lib.study.verify --profile nowhere": "profile",
    "lib.teachers.cli train --task walker-wlak": "Did you mean walker-walk",
    "lib.teachers.cli train --task lqr-lqr-2-1": "bounds",
    "lib.teachers.cli train --size 2m": "size",
    "lib.teachers.cli train --decisions 0": "decisions",
    "lib.teachers.cli train --batch-size -1": "batch_size",
    "lib.teachers.cli train --seed 100": "seed",
    "lib.teachers.cli train --seed 42 --offline no.safetensors --updates 10": "no.safetensors",
    "lib.teachers.cli ship --task walker-walk --seed 77": "train first",
    "lib.weights.cli info no-such-teacher": "no-such-teacher",
    "lib.weights.cli list --manifest nowhere.json": "nowhere.json",
    "lib.study.accelerate walker-walk-1m-1 --env walker-walk --keep 1.2": "keep",
    "lib.study.accelerate walker-walk-1m-1 --env walker-walk --minutes 0": "minutes",
    "lib.study.accelerate walker-walk-1m-1 --env cheetah-run": "walker-walk",
    "lib.study.accelerate walker-walk-1m-1 --env walker-walk --out data": "data",
    "lib.study.accelerate no-such --env walker-walk": "no-such",
    "figures.film --profile paper --cell ../x": "cell",
}


def everything():
    """Name and time of every file that a run could write."""
    folders = [ROOT / "data", ROOT / "build", ROOT / "figures"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {str(file): file.stat().st_mtime_ns for file in files if "__pycache__" not in file.parts}


def ends_with_a_sentence(command, word, tmp_path, prefix=""):
    before = everything()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SPECULATIVE_TDMPC2_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    # What the library of the command lines says itself stands in a frame.
    framed = " ".join(line.strip("│ ") for line in done.stderr.splitlines() if line.startswith("│"))
    said = [line for line in done.stderr.splitlines() if line.strip()]
    said = [framed] if framed else said
    assert done.returncode not in (0, -9, -11) and said, done
    assert word in said[-1] and re.search(prefix, said[-1]), said[-3:]
    assert len(said[-1]) < 1500
    assert prefix or "Traceback" not in done.stderr, said
    assert everything() == before


@pytest.mark.parametrize(("notebook", "given", "word"), [(n, g, w) for n, all_ in PARAMETERS.items() for g, w in all_])
def test_a_parameter(notebook, given, word, tmp_path):
    name, value = given.split(" ", 1)
    command = ["papermill", f"notebooks/{notebook}.ipynb", str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    ends_with_a_sentence([*command, "-p", name, value.strip("'")], word, tmp_path, prefix=r"^(lib\.\w+\.)*\w+Error: ")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_line(words, tmp_path):
    ends_with_a_sentence(words.split(), COMMANDS[words], tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def weights(change):
    """The bytes of an official file after `change` of its tensors, or of what `change` returns."""

    def write(path):
        state = torch.load(ROOT / "tests/fixtures/official_tiny_single_new.pt", weights_only=True)["model"]
        given = change(state)
        torch.save({"model": state} if given is None else given, path)

    return write


def raw(data: bytes):
    return lambda path: path.write_bytes(data)


FILES = {
    "empty.pt": raw(b""),
    "empty.safetensors": raw(b""),
    "page.pt": raw(b"<!DOCTYPE html><html><head><title>Not found</title></head></html>"),
    "page.safetensors": raw(b"<html><body>Sign in</body></html>"),
    "pointer.pt": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
    "pointer.safetensors": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
    "cut.safetensors": lambda path: path.write_bytes(TEACHER.read_bytes()[:5000]),
    "huge-header.safetensors": raw((2**62).to_bytes(8, "little") + b"{}"),
    "pickle.pt": raw(pickle.dumps({"model": {}})),
    "evil.pt": weights(lambda state: {"model": Evil()}),
    "list.pt": weights(lambda state: [1, 2, 3]),
    "nothing.pt": weights(lambda state: {"model": {}}),
    "missing.pt": weights(lambda state: state.pop("_pi.0.weight") is None or None),
    "extra.pt": weights(lambda state: state.update(extra=torch.zeros(3))),
    "nan.pt": weights(lambda state: state["_pi.0.weight"].fill_(torch.nan) is None or None),
    "integers.pt": weights(lambda state: state.update({"_pi.0.weight": state["_pi.0.weight"].long()})),
    "shape.pt": weights(lambda state: state.update({"_pi.0.weight": state["_pi.0.weight"][:, :-1]})),
    "pixels.pt": weights(lambda state: state.update({"_encoder.rgb.0.weight": torch.zeros(3, 3)})),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FILES[name](tmp_path / name)
    with pytest.raises(CheckpointError) as refused:
        load_world_model(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 600
    assert not (tmp_path / "evil-was-here").exists()


SIDECARS = {"list": "[1]", "text": '"x"', "number": "3", "null": "null", "cut": '{"sha256": "ab', "deep": "[" * 5000,
            "run": '{"run": 5}', "key": '{"run": {"key": null, "components": []}}', "bytes": "\ud800"}  # fmt: skip


@pytest.mark.parametrize("name", SIDECARS)
def test_a_damaged_record_is_stale_and_nothing_else(name, tmp_path):
    from tests.records.tiny import CELL, Repo

    repo = Repo.write(tmp_path / "repo")
    assert repo("run").returncode == 0
    text = SIDECARS[name]
    (repo.root / f"{repo.one}.meta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    status = repo.status()
    assert status[repo.one] != "fresh" and status[repo.timed] == "fresh" and CELL in repo.one
    assert repo("run").returncode == 0 and set(repo.status().values()) == {"fresh"}


MANIFESTS = {"page": "<html>", "list": "[]", "number": '{"a": 3}', "no-url": '{"a": {"sha256": "00"}}',
             "many": json.dumps({"a": {"url": "https://x/{n}", "each": [[f"{i}" for i in range(1000)]] * 3}}),
             "file": '{"a": {"url": "file:///etc/passwd"}}'}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest(name, tmp_path):
    path = tmp_path / f"{name}.json"
    path.write_text(MANIFESTS[name])
    ends_with_a_sentence(["lib.weights.cli", "list", "--manifest", str(path)], f"{name}.json", tmp_path)


OBSERVATIONS = {
    "nan": np.full((2, OBS), np.nan), "infinite": np.full((2, OBS), np.inf), "huge": np.full((2, OBS), 1e30),
    "wide": np.zeros((2, OBS + 1)), "narrow": np.zeros((2, OBS - 1)), "deep": np.zeros((2, 1, OBS)),
    "rows": np.zeros((3, OBS)), "number": 3.0, "text": "observation", "ragged": [[1.0], [1.0, 2.0]],
    "complex": np.zeros((2, OBS), complex), "empty": np.zeros((0, OBS)), "none": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["speculative", "policy"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_an_observation(name, kind):
    wm = tiny_model()
    controller = PolicyController(wm) if kind == "policy" else SpeculativeController(MPPI(wm, BUDGET))
    controller.reset(batch_size=2)
    try:
        actions, _ = controller.act(OBSERVATIONS[name])
        assert name == "huge" and torch.isfinite(actions).all()  # some networks bear it
    except ValueError as error:
        assert "\n" not in str(error) and "weights" not in str(error)
    actions, _ = controller.act(np.zeros((2, OBS)))  # and the episode can go on
    assert torch.isfinite(actions).all()


SETTINGS = [dict(samples=0), dict(samples=10**9), dict(iterations=0), dict(horizon=-1), dict(elites=600),
            dict(elites=0), dict(policy_samples=-1), dict(temperature=0.0), dict(temperature=float("nan")),
            dict(min_std=0.0), dict(max_std=float("inf")), dict(min_std=3.0), dict(mode="fast"),
            dict(dtype="int8")]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_setting_of_the_planner(settings):
    with pytest.raises(ValueError) as refused:
        PlannerConfig(**settings)
    assert next(iter(settings)) in str(refused.value) and "\n" not in str(refused.value)
