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

from lib.config import ConfigError, discount_for
from lib.environments import EnvironmentFailed, make_env
from lib.planner import MPPI
from lib.records.paths import ROOT
from lib.records.seeds import SEED_BLOCKS, episode_seeds
from lib.records.store import read_table
from lib.teachers import cli as teacher
from lib.teachers import training, training_state
from lib.teachers.config import SNAPSHOTS, TeacherConfig
from lib.teachers.distributed import ALONE
from lib.teachers.replay import EpisodeFileError, load_episodes, save_episodes
from lib.teachers.training import TrainingRun
from tests.teachers.tiny import CONFIG, OPTIONS, SETTINGS, TINY, card_of, equal, wait_for
from tests.tiny import Diverging, Shorter


def trained(folder, config=CONFIG, **changes):
    """A run in a folder, with other settings if given, after its training."""
    run = TrainingRun(dataclasses.replace(config, **changes), folder)
    run.train()
    return run


def test_a_run_counts_decisions_episodes_and_updates(whole, replay):
    folder, run, wm = whole
    assert (run.decisions, run.episodes) == (60, 6)
    assert run.updates == 20 + 40  # as many as the seed phase has decisions, then one for each
    assert sorted(int(p.stem) for p in folder.glob("snapshots/*")) == [30, 60]
    episodes = load_episodes(replay)
    assert [len(e) for e in episodes] == [10] * 6
    assert all(np.abs(e.actions).max() <= 1 for e in episodes)
    assert len(np.unique([e.obs[0] for e in episodes], axis=0)) == 6
    assert wm.q_heads.layers[-1].weight.abs().max() > 0


def test_the_learning_curve(whole):
    folder, run, _ = whole
    table = read_table(folder / "curve.csv")
    assert list(table) == ["decision", "frames", "return", "episodes", "minutes"]
    assert table["decision"].tolist() == [20, 40, 60] and table["frames"].tolist() == [40, 80, 120]
    assert table["return"].tolist() == [r["return"] for r in run.curve] and table["episodes"].tolist() == [2, 2, 2]
    minutes = [r["minutes"] for r in run.curve]
    assert minutes == sorted(minutes) and minutes[0] > 0


# --------------------------------------------------------------------------------------------------- kill and resume


def test_resume_equals_an_uninterrupted_run(whole, tmp_path):
    trained(tmp_path, decisions=30)
    run = TrainingRun(CONFIG, tmp_path)
    assert (run.decisions, run.episodes, run.updates) == (30, 3, 30)
    assert equal(run.train(), whole[2])
    # With two Q heads every pair is the same, so that the weights do not show whether this stream was restored.
    assert torch.equal(run.planner.head_stream.get_state(), whole[1].planner.head_stream.get_state())
    assert [r["return"] for r in run.curve] == [r["return"] for r in whole[1].curve]
    again = trained(tmp_path)  # a finished run stays as it is
    assert equal(again.learner.wm, whole[2]) and again.updates == 60


def test_a_killed_run_resumes_to_the_same_weights(whole, tmp_path):
    code = "from pathlib import Path; from lib.teachers.cli import TeacherConfig, TrainingRun\n"
    code += f"TrainingRun(TeacherConfig(**{SETTINGS}), Path({str(tmp_path)!r})).train()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "state.pt", process)
    time.sleep(0.2)  # into the middle of something
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = TrainingRun(CONFIG, tmp_path)
    assert 10 <= run.decisions <= 60 and run.decisions % 10 == 0
    assert equal(run.train(), whole[2])


def test_every_episode_is_written_once(whole, replay, tmp_path):
    files = [tmp_path / "replay" / f"{first:08}.safetensors" for first in range(6)]
    run = trained(tmp_path, decisions=30)
    written = {file: file.stat().st_mtime_ns for file in files[:3]}
    assert sorted((tmp_path / "replay").iterdir()) == files[:3]
    trained(tmp_path)
    assert sorted((tmp_path / "replay").iterdir()) == files
    assert {file: file.stat().st_mtime_ns for file in files[:3]} == written
    assert [e.obs[0].tolist() for e in load_episodes(files[2])] == [run.buffer.episodes()[2].obs[0].tolist()]
    save_episodes(tmp_path / "all.safetensors", whole[1].buffer.episodes())  # in one file, byte for byte
    joined = (tmp_path / replay.name).read_bytes()
    assert joined == replay.read_bytes() == (tmp_path / "all.safetensors").read_bytes()


def test_a_kill_between_episodes_and_state_loses_nothing(whole, tmp_path):
    trained(tmp_path, decisions=10)
    later = whole[0] / "replay" / "00000002.safetensors"
    for name in ("00000001", "00000005", ".00000001.12345678.tmp"):  # of later, or half written, and no state says so
        (tmp_path / "replay" / f"{name}.safetensors").write_bytes(later.read_bytes()[:200])
    run = TrainingRun(CONFIG, tmp_path)
    assert len(run.buffer) == run.decisions == 10 and equal(run.train(), whole[2])
    assert load_episodes(tmp_path / "replay" / "00000005.safetensors")


def test_a_replay_without_one_of_its_files_is_refused(tmp_path):
    trained(tmp_path, TINY, decisions=20)
    (tmp_path / "replay" / "00000000.safetensors").unlink()
    with pytest.raises(EpisodeFileError, match="00000000.safetensors is not a file of episodes"):
        TrainingRun(TINY, tmp_path)


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"batch_size": 5}, {"eval_every": 5}, {"task": "cartpole-balance"}])
def test_changed_settings_are_refused(whole, change):
    with pytest.raises(
        ConfigError, match=f"trained (with|on) another .*({next(iter(change))}|cartpole-balance).*remove"
    ):
        TrainingRun(dataclasses.replace(CONFIG, **change), whole[0])


def test_evaluation_and_saving_do_not_disturb_training(whole, tmp_path):
    run = trained(tmp_path, eval_every=10**6, save_every=10**6, snapshots=())
    assert equal(run.learner.wm, whole[2]) and run.curve == []


def test_a_state_of_an_earlier_version_is_refused(whole, tmp_path):
    state = torch.load(whole[0] / "state.pt", weights_only=True)
    del state["environment"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ConfigError, match=f"{tmp_path} is of an earlier version of this code; remove that folder"):
        TrainingRun(CONFIG, tmp_path)


def test_one_folder_trains_once_at_a_time(tmp_path):
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    lock = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ConfigError, match="another process is training in"):
            trained(tmp_path)
        other.stdin.close()
    assert not (tmp_path / "state.pt").exists()


def test_seeds_of_runs_differ(whole, tmp_path):
    other = trained(tmp_path, seed=2, decisions=10)
    assert not np.array_equal(other.buffer.episodes()[0].obs, whole[1].buffer.episodes()[0].obs)
    assert not equal(other.learner.wm, TrainingRun(CONFIG, tmp_path / "third").learner.wm)


# ------------------------------------------------------------------------------------------------------- environments


def test_environments_share_a_plan_and_every_decision_has_its_update(whole, tmp_path, monkeypatch):
    plans, solve = [], MPPI.__call__

    def noted(self, z, *arguments, **options):
        plans.append((len(z), self.wm.training))
        return solve(self, z, *arguments, **options)

    monkeypatch.setattr(MPPI, "__call__", noted)
    run = trained(tmp_path, TINY, envs=3)
    # Every plan is made in eval mode, those of evaluations with two episodes too, and every update in train mode.
    assert plans.count((3, False)) == 10 and set(plans) == {(3, False), (2, False)} and run.learner.wm.training
    assert (run.decisions, run.episodes) == (60, 6)
    assert run.updates == 30 + 30  # the first round ends after the seed phase, at 30, and is random to its end
    starts, single = ([e.obs[0].tolist() for e in each.buffer.episodes()] for each in (run, whole[1]))
    assert starts == single  # the same seeds in the same order
    assert len({tuple(e.actions[:, 0]) for e in run.buffer.episodes()}) == 6


def test_an_environment_that_ends_early_waits_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_env", lambda task, seed: Shorter(make_env(task, seed)))
    run = trained(tmp_path, TINY, envs=3, decisions=48, eval_every=1000)
    assert [len(e) for e in run.buffer.episodes()] == [4, 10, 10, 4, 10, 10]
    assert (run.decisions, run.updates) == (48, 24 + 24)


@pytest.mark.slow
def test_environments_in_processes_of_their_own(tmp_path):
    changes = dict(envs=2, decisions=40, eval_every=1000)
    here = trained(tmp_path / "here", TINY, **changes)
    there = trained(tmp_path / "there", TINY, env_processes=True, **changes)
    assert equal(there.learner.wm, here.learner.wm)
    there.envs.close()


@pytest.mark.parametrize("envs", [1, 3])
def test_where_the_simulator_diverges_an_episode_ends_and_training_goes_on(envs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "make_env", lambda task, seed: Diverging(make_env(task, seed)))
    config = dataclasses.replace(TINY, envs=envs, decisions=48, eval_every=1000)
    run = trained(tmp_path / "once", config)
    assert [len(e) for e in run.buffer.episodes()] == [3, 10, 10, 3, 10, 10]  # without the step that cannot be used
    assert (run.decisions, run.episodes, run.diverged, run.updates) == (48, 6, 2, 24 + 24)
    assert len({tuple(e.obs[0]) for e in run.buffer.episodes()}) == 6  # no start state twice
    said = f"the simulator diverged in 2 of {4 if envs == 1 else 6} episodes so far; what came before it is learnt from"
    assert said in capsys.readouterr().err
    trained(tmp_path / "twice", config, decisions=24)
    again = TrainingRun(config, tmp_path / "twice")
    assert again.diverged == 1 and equal(again.train(), run.learner.wm) and again.diverged == 2


def test_episodes_that_diverge_at_once_are_not_kept_but_counted(tmp_path, monkeypatch):
    class AtOnce(Diverging):
        def reset(self, *, seed=None, options=None):
            self.left = 1 if seed % 3 == 1 else 100
            return self.env.reset(seed=seed, options=options)

    monkeypatch.setattr(training, "make_env", lambda task, seed: AtOnce(make_env(task, seed)))
    run = trained(tmp_path, TINY, decisions=41, eval_every=1000)
    assert [len(e) for e in run.buffer.episodes()] == [10, 10, 10, 10]
    assert (run.decisions, run.episodes, run.diverged, len(run.owners)) == (42, 6, 2, 4)
    again = TrainingRun(run.config, tmp_path)
    assert (again.episodes, len(again.buffer)) == (6, 40)


@pytest.mark.slow
def test_a_simulator_that_diverges_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "make_env", lambda task, seed: Diverging(make_env(task, seed)))
    changes = dict(envs=3, decisions=48, eval_every=1000)
    here = trained(tmp_path / "here", TINY, **changes)
    there = trained(tmp_path / "there", TINY, env_processes=True, **changes)
    assert equal(there.learner.wm, here.learner.wm) and there.diverged == here.diverged == 2
    there.envs.close()


@pytest.mark.parametrize("envs", [1, 3])
def test_an_episodic_task_of_ones_own(envs, tmp_path):
    """The episodes of odd seeds end at their fifth decision, as the model soon knows."""
    falling = dataclasses.replace(TINY, task="tests.own_envs:Falling", episode_decisions=0, envs=envs, eval_every=1000)
    run = trained(tmp_path / "run", falling, episodic=True, decisions=900, seed_decisions=40, batch_size=32, lr=3e-3)
    episodes = run.buffer.episodes()
    assert {(len(e), e.terminated) for e in episodes} == {(5, True), (12, False)}
    wm = run.learner.wm.eval()
    assert run.config.name == "tests-own_envs--Falling-tiny-1" and wm.config.discount == discount_for(12) == 0.95
    with torch.no_grad():  # one step after any observation, and where the model goes from there
        for e in episodes:
            obs, actions = torch.from_numpy(e.obs), torch.from_numpy(e.actions)
            z, last = wm.encode(obs[:-1]), torch.arange(len(e)) == len(e) - 1
            for steps in range(3):
                z = wm.next(z[: len(e) - steps], actions[steps:])
                assert torch.equal(wm.termination(z) > 0.5, last[steps:] & e.terminated)
    again = TrainingRun(run.config, tmp_path / "run")
    assert [e.terminated for e in again.buffer.episodes()] == [e.terminated for e in episodes]
    with pytest.raises(ConfigError, match="Falling ends episodes before their time limit; train it with --episodic"):
        trained(tmp_path / "other", falling)


@pytest.mark.parametrize("envs", [1, 3])
def test_an_environment_that_raises_loses_its_episode_and_one_that_gives_nan_ends_the_run(
    envs, tmp_path, monkeypatch, capsys
):
    failing = dataclasses.replace(TINY, task="tests.own_envs:Failing", episode_decisions=6, envs=envs, eval_every=1000)
    seeds = iter([0, 1, 0, 3, 0, 0, *[0] * 99])
    monkeypatch.setattr(
        training, "episode_seeds", lambda purpose, count, seed, first=0: [next(seeds) for _ in range(count)]
    )
    run = trained(tmp_path / "raises", failing, decisions=36)
    assert [len(e) for e in run.buffer.episodes()][:4] == [6, 1, 6, 6] and run.diverged == 2
    said = capsys.readouterr().err
    assert "Failing, decision 1: RuntimeError: a cable broke; its episode ends there" in said
    assert "its reset with seed 3 raised RuntimeError: a cable broke; its episode ends there" in said
    monkeypatch.setattr(training, "episode_seeds", lambda purpose, count, seed, first=0: [2] * count)
    with pytest.raises(
        EnvironmentFailed, match="Failing, decision 1: its reward or observation is not finite; correct"
    ):
        trained(tmp_path / "nan", failing)


def test_what_a_waiting_environment_does_is_nobodys_episode(tmp_path, monkeypatch):
    """It begins again by itself, with whatever seed, and fails there."""
    starts = iter([[3, 1], [0, 0]])
    monkeypatch.setattr(training, "episode_seeds", lambda *_, **__: next(starts, [0, 0]))
    failing = dataclasses.replace(TINY, task="tests.own_envs:FailsAlone", episode_decisions=0, envs=2, eval_every=1000)
    run = trained(tmp_path, failing, decisions=14)
    assert sorted(len(e) for e in run.buffer.episodes()) == [4, 10] and run.diverged == 0


def test_a_run_is_not_resumed_where_the_environment_is_another(tmp_path, monkeypatch):
    run = trained(tmp_path, TINY, decisions=20)
    monkeypatch.setattr(training_state, "identity", lambda task: f"{task} of another kind")
    with pytest.raises(ConfigError, match="was trained on another cartpole-swingup; remove that folder"):
        TrainingRun(run.config, tmp_path)


@pytest.mark.parametrize("name", ["envs", "sync_freq", "batch_size", "decisions", "save_every"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"TeacherConfig.{name}=0 must be at least 1"):
        TeacherConfig(**{name: 0})


@pytest.mark.parametrize("seed", [-1, 100])
def test_a_seed_outside_its_block_is_refused_at_once(seed):
    with pytest.raises(ConfigError, match=f"TeacherConfig.seed={seed} must lie between 0 and 99"):
        TeacherConfig(seed=seed)


def test_micro_batches_make_one_step_for_so_many_decisions(tmp_path):
    run = trained(tmp_path, TINY, sync_freq=4, decisions=50, eval_every=1000)
    assert run.updates == 20 // 4 + 30 // 4 and run.owed == 2
    assert TrainingRun(dataclasses.replace(run.config, sync_freq=1), tmp_path).owed == 2


# -------------------------------------------------------------------------------------------------------- early stop


def test_training_stops_at_a_return_met_twice_in_a_row(tmp_path, monkeypatch):
    returns = iter([5, 10, 9, 10, 11, 3])

    def evaluate(run):
        run.curve.append({"decision": run.decisions, "return": next(returns)})

    monkeypatch.setattr(TrainingRun, "_evaluate", evaluate)
    config = dict(episode_decisions=5, seed_decisions=5, eval_every=5, decisions=30, stop_return=10)
    config = dataclasses.replace(TINY, **config)
    run = trained(tmp_path, config)
    assert [row["return"] for row in run.curve] == [5, 10, 9, 10, 11] and run.decisions == 25
    assert trained(tmp_path, config).decisions == 25  # it stays stopped
    assert run.stopped_early
    assert not TrainingRun(dataclasses.replace(config, stop_from=26), tmp_path).stopped_early
    assert trained(tmp_path, config, stop_return=None).decisions == 30


# ----------------------------------------------------------------------------------------------------------- offline


def test_offline_training_learns_from_a_replay_and_resumes(replay, tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "CHUNK", 4)
    once, twice = tmp_path / "once", tmp_path / "twice"
    run = TrainingRun(TINY, once)
    wm = run.train_offline([replay], 12)
    assert (run.updates, run.decisions, run.episodes, len(run.buffer)) == (12, 60, 6, 60)
    assert run.curve[-1]["updates"] == 12 and run.curve[-1]["decision"] == 60
    assert (once / replay.name).read_bytes() == replay.read_bytes()
    TrainingRun(TINY, twice).train_offline([replay], 5)
    again = TrainingRun(TINY, twice)
    assert again.updates == 5 and equal(again.train_offline([replay], 12), wm)

    online = trained(twice, TINY, decisions=70)  # and goes on by itself
    assert (online.decisions, online.episodes, online.updates) == (70, 7, 22)
    assert len({tuple(e.obs[0]) for e in online.buffer.episodes()}) == 7
    with pytest.raises(ConfigError, match="began with the replay .*train_buffer"):
        TrainingRun(TINY, once).train_offline([twice / replay.name], 20)


def test_a_killed_offline_run_says_how_far_it_got(replay, tmp_path, monkeypatch):
    update, made = TrainingRun._update, []

    def killed(self):
        made.append(update(self))
        if len(made) == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "_update", killed)
    config = dataclasses.replace(TINY, eval_every=1000)
    with pytest.raises(KeyboardInterrupt):
        TrainingRun(config, tmp_path).train_offline([replay], 40)
    again = TrainingRun(config, tmp_path)
    assert again.updates == again.offline["updates"] == 20  # saved at every tenth


def test_a_replay_that_does_not_fit_is_refused(whole, replay, tmp_path):
    with pytest.raises(ConfigError, match="began with its own episodes"):
        TrainingRun(CONFIG, whole[0]).train_offline([replay], 70)
    other = TrainingRun(dataclasses.replace(CONFIG, task="pendulum-swingup"), tmp_path)
    with pytest.raises(ConfigError, match=r"\[\(5, 1\)\] wide, but pendulum-swingup has \(3, 1\)"):
        other.train_offline([replay], 5)
    with pytest.raises(EpisodeFileError, match="nothing is not a file; give the train_buffer"):
        other.train_offline([tmp_path / "nothing"], 5)
    alike = TrainingRun(dataclasses.replace(CONFIG, task="cartpole-balance"), tmp_path)  # of the same widths
    with pytest.raises(ConfigError, match="holds rewards of cartpole-swingup, not of cartpole-balance"):
        alike.train_offline([replay], 5)
    assert not (tmp_path / "state.pt").exists()


def test_offline_from_the_command_line_says_so_on_the_card(replay, shelf, capsys):
    command = ["train", *OPTIONS, "--seed", "3", "--updates", "4"]
    assert teacher.main([*command, "--offline", str(replay)]) == 0
    card = card_of(shelf / "cartpole-swingup-1m-3")
    assert card["offline"]["files"] == [str(replay)] and card["offline"]["updates"] == card["updates"] == 4
    assert card["offline"]["decisions"] == card["decisions"] == 60 and not card["stopped_early"]
    assert "cartpole-swingup-1m-3: " in capsys.readouterr().out
    assert teacher.main(command) == 2
    assert "--offline and --updates go together" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- zoo


def test_the_zoo_resumes_what_is_unfinished_and_skips_the_rest(shelf, monkeypatch, capsys):
    shipped = (("a", 50_000, False, None), ("b", 20_000, False, None), ("c", 17_500, True, 700))
    shipped += (("d", 17_500, False, 700), ("e", 17_500, True, None), ("g", 17_500, True, 800))
    bars = {name: bar for name, *_, bar in shipped} | {"f": 700}
    monkeypatch.setattr(teacher, "ZOO", tuple(TeacherConfig(name, stop_return=bar) for name, bar in bars.items()))

    def keep(name, decisions, early, mean):
        (shelf / f"{name}.safetensors").touch()
        card = {"decisions": decisions, "stopped_early": early, "return_mean": mean, "returns": [mean]}
        (shelf / f"{name}.json").write_text(json.dumps(card))
        return card

    for name, decisions, early, _ in shipped:
        keep(f"{name}-1m-1", decisions, early, 750.0)
    lacking = [("b", None), ("d", 700), ("e", None), ("g", 800), ("f", 700)]
    assert [(c.task, c.stop_return) for c in teacher.lacking()] == lacking

    class Run:
        def __init__(self, config, ranks):
            self.config = config

        def train(self):
            print(f"trained {self.config.name}{'' if self.config.stop_return is None else ' until its bar'}")

    def ship(config):
        """All stop early below 700, unless they are trained to the end."""
        early = config.stop_return is not None
        return keep(config.name, 20_000 if early else 50_000, early, 690.0)

    monkeypatch.setattr(teacher, "TrainingRun", Run)
    monkeypatch.setattr(teacher, "ship", ship)
    teacher.zoo(ALONE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["the zoo lacks 5 of 7: b-1m-1, d-1m-1, e-1m-1, g-1m-1, f-1m-1", "trained b-1m-1"]
    assert lines[2:4] == ["b-1m-1: 690.0 over 1 episodes", "the zoo lacks 4 of 7: d-1m-1, e-1m-1, g-1m-1, f-1m-1"]
    below = "d-1m-1: 690.0 over 1 episodes, below its bar of 700"
    assert lines[4:8] == ["trained d-1m-1 until its bar", below, "trained d-1m-1", below]
    assert [line for line in lines if "trained g" in line] == ["trained g-1m-1"]  # its card was below the bar before
    assert lines[-1] == "the zoo lacks nothing" and not teacher.lacking()


def test_the_table_of_the_zoo():
    configs = teacher.ZOO
    assert len({c.name for c in configs}) == len(configs) == 14 and {c.size for c in configs} == {"1m"}
    assert configs[0].name == "walker-walk-1m-1" and configs[0].stop_return is None and configs[0].decisions == 50_000
    assert all(0 < c.stop_return < 1000 for c in configs[1:-2]) and [c.episodic for c in configs[-2:]] == [False, True]
    studied = [c for c in configs if c.task in SNAPSHOTS]
    assert all({s for s in SNAPSHOTS[c.task] if s <= max(c.stop_from, 20_000)} <= {*c.snapshots} for c in studied)


def test_the_official_constants(tmp_path):
    c = TeacherConfig()
    assert (c.batch_size, c.horizon, c.rho, c.grad_clip, c.tau, c.entropy_coef) == (256, 3, 0.5, 20, 0.01, 1e-4)
    assert (c.seed_decisions, c.decisions, c.episode_decisions, c.envs, c.sync_freq) == (2_500, 50_000, 0, 1, 1)
    assert TrainingRun(CONFIG, tmp_path).learner.wm.config.discount == pytest.approx(0.99)


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
