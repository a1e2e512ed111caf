"""Training end to end at the smallest size: resume, kill, evaluation, shipping."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lib import paths, teacher
from lib.checkpoints import load_world_model
from lib.config import SEED_BLOCKS, ConfigError, PlannerConfig, TeacherConfig, episode_seeds
from lib.paths import ROOT
from lib.planner import MPPI
from lib.replay import load_episodes
from lib.results import read_table
from lib.teacher import TrainingRun, play, ship

SETTINGS = dict(
    task="cartpole-swingup",
    decisions=60,
    episode_decisions=10,
    seed_decisions=20,
    batch_size=4,
    eval_every=20,
    save_every=10,
    snapshots=(30,),
    collect_samples=8,
    collect_iterations=1,
    eval_samples=8,
    eval_iterations=1,
    eval_episodes=2,
    card_episodes=2,
    compile=False,
)
CONFIG = TeacherConfig(**SETTINGS)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, its object and its final world model."""
    folder = tmp_path_factory.mktemp("whole")
    run = TrainingRun(CONFIG, folder)
    return folder, run, run.train()


def test_a_run_counts_decisions_episodes_and_updates(whole):
    folder, run, wm = whole
    assert (run.decisions, run.episodes) == (60, 6)
    assert run.updates == 20 + 40  # as many as the seed phase has decisions, then one for each
    assert [int(p.stem) for p in sorted(folder.glob("snapshots/*"), key=lambda p: int(p.stem))] == [30, 60]
    episodes = load_episodes(folder / "train_buffer.safetensors")
    assert [len(e) for e in episodes] == [10] * 6
    assert all(np.abs(e.actions).max() <= 1 for e in episodes)
    starts = np.array([e.obs[0] for e in episodes])
    assert len(np.unique(starts, axis=0)) == 6
    assert wm.q_heads.layers[-1].weight.abs().max() > 0


def test_every_plan_of_a_run_is_made_in_eval_mode(monkeypatch, tmp_path):
    modes, solve = [], MPPI.__call__
    monkeypatch.setattr(MPPI, "__call__", lambda self, *a, **k: modes.append(self.wm.training) or solve(self, *a, **k))
    run = TrainingRun(CONFIG, tmp_path)
    run.train()
    assert len(modes) >= 40 and not any(modes)
    assert run.learner.wm.training  # and every update in train mode


def test_the_learning_curve(whole):
    folder, run, _ = whole
    table = read_table(folder / "curve.csv")
    assert list(table) == ["decision", "frames", "return", "episodes", "minutes"]
    assert table["decision"].tolist() == [20, 40, 60] and table["frames"].tolist() == [40, 80, 120]
    assert table["return"].tolist() == [r["return"] for r in run.curve] and table["episodes"].tolist() == [2, 2, 2]
    minutes = [r["minutes"] for r in run.curve]
    assert minutes == sorted(minutes) and minutes[0] > 0


def test_resume_equals_an_uninterrupted_run(whole, tmp_path):
    TrainingRun(dataclasses.replace(CONFIG, decisions=30), tmp_path).train()
    run = TrainingRun(CONFIG, tmp_path)
    assert (run.decisions, run.episodes, run.updates) == (30, 3, 30)
    assert equal(run.train(), whole[2])
    # With two Q heads every pair is the same, so that the weights do not show whether this stream was restored.
    assert torch.equal(run.planner.head_stream.get_state(), whole[1].planner.head_stream.get_state())
    assert [r["return"] for r in run.curve] == [r["return"] for r in whole[1].curve]
    again = TrainingRun(CONFIG, tmp_path)  # a finished run stays as it is
    assert equal(again.train(), whole[2]) and again.updates == 60


def test_a_killed_run_resumes_to_the_same_weights(whole, tmp_path):
    code = (
        "import sys, pathlib; from lib.config import TeacherConfig; from lib.teacher import TrainingRun;"
        "import json; s = json.loads(sys.argv[1]); s['snapshots'] = tuple(s['snapshots']);"
        "TrainingRun(TeacherConfig(**s), pathlib.Path(sys.argv[2])).train()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(SETTINGS), str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # into the middle of something
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = TrainingRun(CONFIG, tmp_path)
    assert 10 <= run.decisions <= 60 and run.decisions % 10 == 0
    assert equal(run.train(), whole[2])


def test_a_kill_between_buffer_and_state_loses_nothing(whole, tmp_path):
    TrainingRun(dataclasses.replace(CONFIG, decisions=10), tmp_path).train()
    newer = (whole[0] / "train_buffer.safetensors").read_bytes()
    (tmp_path / "train_buffer.safetensors").write_bytes(newer)  # the buffer of later was written, the state was not
    run = TrainingRun(CONFIG, tmp_path)
    assert len(run.buffer) == run.decisions == 10 and equal(run.train(), whole[2])


CHANGES = [dict(lr=1e-3), dict(batch_size=5), dict(eval_every=5), dict(task="cartpole-balance")]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_settings_are_refused(whole, change):
    with pytest.raises(ConfigError, match=f"trained with another .*{next(iter(change))}.*remove that folder"):
        TrainingRun(dataclasses.replace(CONFIG, **change), whole[0])


def test_evaluation_and_saving_do_not_disturb_training(whole, tmp_path):
    quiet = dataclasses.replace(CONFIG, eval_every=10**6, save_every=10**6, snapshots=())
    run = TrainingRun(quiet, tmp_path)
    assert equal(run.train(), whole[2]) and run.curve == []


def test_seeds_of_runs_differ(whole, tmp_path):
    other = TrainingRun(dataclasses.replace(CONFIG, seed=2, decisions=10), tmp_path)
    other.train()
    assert not np.array_equal(other.buffer.episodes()[0].obs, whole[1].buffer.episodes()[0].obs)
    assert not equal(other.learner.wm, TrainingRun(CONFIG, tmp_path / "third").learner.wm)


# ------------------------------------------------------------------------------------------------------------ shipping


@pytest.fixture
def small_standard(monkeypatch):
    """The standard budget is what a card is measured with; here it is a tiny one."""
    monkeypatch.setattr(PlannerConfig, "standard", classmethod(lambda cls, action_dim, **_: cls.budget(16, 2)))


def test_ship_writes_weights_card_and_curve(whole, tmp_path, monkeypatch, small_standard):
    monkeypatch.setattr(paths, "TEACHERS", tmp_path)
    folder, run, wm = whole
    card = ship(CONFIG, folder)
    name = "cartpole-swingup-1m-1"
    assert json.loads((tmp_path / f"{name}.json").read_text()).items() >= card.items()
    assert {"task", "size", "seed", "decisions", "return_mean", "returns", "episode_seeds", "planner"} <= card.keys()
    assert (card["decisions"], card["frames"]) == (60, 120) and card["return_mean"] == np.mean(card["returns"])
    assert read_table(tmp_path / f"{name}.csv")["decision"].tolist() == [20, 40, 60]

    shipped = load_world_model(name)
    for key, value in shipped.state_dict().items():
        if not key.startswith("target"):
            assert torch.equal(value, wm.state_dict()[key].half().float()), key
    # The card's returns belong to exactly these weights.
    seeds = episode_seeds("card", 2, CONFIG.seed)
    episodes = play(MPPI(shipped, PlannerConfig.budget(16, 2)), CONFIG.task, seeds, CONFIG.episode_decisions)
    assert card["episode_seeds"] == seeds
    assert [float(e.rewards.sum()) for e in episodes] == pytest.approx(card["returns"], rel=1e-5)


def test_what_was_never_trained_cannot_be_shipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(paths, "TEACHERS", tmp_path)
    with pytest.raises(ConfigError, match="has no snapshot to ship; train first"):
        ship(CONFIG, tmp_path / "nothing")
    assert teacher.main(["ship", "--task", "pendulum-swingup", "--seed", "77"]) == 2
    assert "holds no trained state to ship; train first" in capsys.readouterr().err
    assert teacher.main(["--task", "walker-wakl"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_play_gives_each_seed_its_own_episode(whole):
    wm = whole[2].eval()
    c = PlannerConfig.budget(8, 1)
    together = play(MPPI(wm, c), CONFIG.task, [5, 6, 7], 10)
    assert [len(e) for e in together] == [10] * 3 and together[0].obs.shape == (11, 5)
    (alone,) = play(MPPI(wm, c), CONFIG.task, [6], 10)
    np.testing.assert_allclose(alone.obs, together[1].obs, rtol=1e-3, atol=1e-4)
    assert not np.array_equal(together[0].obs[0], together[1].obs[0])
    wm.train()


# --------------------------------------------------------------------------------------------------------------- seeds


def test_seeds_of_purposes_are_disjoint():
    blocks = {(p, s): set(episode_seeds(p, 500, s)) for p in SEED_BLOCKS for s in (0, 1, 2, 99)}
    for (a, seeds), (b, others) in itertools.combinations(blocks.items(), 2):
        assert not seeds & others, (a, b)
    assert episode_seeds("report", 3, 1, first=2) == episode_seeds("report", 5, 1)[2:]


def test_seeds_outside_their_block_are_refused():
    for purpose, count, seed, first in (("train", 1, 100, 0), ("card", 2, 0, 999_999), ("card", 1, -1, 0)):
        with pytest.raises(ConfigError, match="seed"):
            episode_seeds(purpose, count, seed, first)
    with pytest.raises(ConfigError, match="purpose='reports' is not known.*Did you mean report"):
        episode_seeds("reports", 1)
