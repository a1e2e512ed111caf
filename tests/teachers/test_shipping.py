"""What a run ships, what is shipped here, and how a run goes on from what it shipped when its folder is lost."""

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import MODEL_SIZES, ConfigError, PlannerConfig
from lib.environments import make_env
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import file_hash
from lib.records.paths import ROOT
from lib.records.seeds import episode_seeds
from lib.records.store import read_table
from lib.teachers import cli as teacher
from lib.teachers import shipping
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import load_episodes, record
from lib.teachers.shipping import ship
from lib.teachers.training import TrainingRun
from lib.weights import names as registry
from lib.weights.native import load_world_model, size_of
from tests.teachers.tiny import CONFIG, OPTIONS, SIZE, TINY, card_of, equal


def test_a_studied_run_ships_its_snapshots_by_name(whole, shelf, monkeypatch, capsys):
    for studied in ({}, {(CONFIG.task, CONFIG.size, CONFIG.seed): (20, 60)}):
        monkeypatch.setattr(shipping, "STUDIED", studied)
        ship(CONFIG, whole[0])
        assert not (shelf / CONFIG.name).exists()
    monkeypatch.setattr(shipping, "STUDIED", {key: (20, 30, 60) for key in studied})
    ship(CONFIG, whole[0])
    assert f"{CONFIG.name}: its rounds left no snapshot at decision 20\n" in capsys.readouterr().err
    (file,) = shelf.glob("*/*.safetensors")
    assert file == shelf / CONFIG.name / "30.safetensors"  # that of decision 60 is the teacher
    early = load_world_model(f"{CONFIG.name}/30")
    assert equal(early, load_world_model(whole[0] / "snapshots" / "30.safetensors"))
    assert not equal(early, load_world_model(CONFIG.name))
    entry = registry.find(f"{CONFIG.name}/30")
    assert (entry.path, entry.sha256, entry.task) == (file, file_hash(file), CONFIG.task)


def test_ship_writes_weights_card_and_curve(whole, shelf):
    folder, _, wm = whole
    card, name = ship(CONFIG, folder), "cartpole-swingup-1m-1"
    assert card_of(shelf / name).items() >= card.items()
    assert {"task", "size", "seed", "decisions", "return_mean", "returns", "episode_seeds", "planner"} <= card.keys()
    assert (card["diverged"], card["lengths"]) == (0, [10, 10])
    assert (card["decisions"], card["frames"]) == (60, 120) and card["return_mean"] == np.mean(card["returns"])
    assert read_table(shelf / f"{name}.csv")["decision"].tolist() == [20, 40, 60]

    assert registry.find(name).sha256 == file_hash(shelf / f"{name}.safetensors")
    shipped = load_world_model(name)
    for key, value in shipped.state_dict().items():
        if not key.startswith("target"):
            assert torch.equal(value, wm.state_dict()[key].half().float()), key
    # The card's returns belong to exactly these weights.
    seeds = episode_seeds("card", 2, CONFIG.seed)
    controller = ReplanningController(MPPI(shipped, PlannerConfig.budget(16, 2)))
    episodes = record(controller, functools.partial(make_env, CONFIG.task), seeds, CONFIG.episode_decisions)
    assert card["episode_seeds"] == seeds
    assert [float(e.rewards.sum()) for e in episodes] == pytest.approx(card["returns"], rel=1e-5)


def test_a_run_is_shipped_as_far_as_it_has_got(shelf, monkeypatch):
    play, rounds = TrainingRun._round, []

    def killed(self, bar):
        rounds.append(self.decisions)
        if len(rounds) == 5:
            raise KeyboardInterrupt
        return play(self, bar)

    monkeypatch.setattr(TrainingRun, "_round", killed)
    assert teacher.main(["train", *OPTIONS]) == 130
    folder = paths.CACHE / "training" / CONFIG.name
    assert not (folder / "train_buffer.safetensors").exists()
    assert teacher.main(["ship", *OPTIONS]) == 0
    assert card_of(shelf / CONFIG.name)["decisions"] == 40
    assert [len(e) for e in load_episodes(folder / "train_buffer.safetensors")] == [10] * 4


def test_another_runs_teacher_is_not_replaced_unasked(whole, shelf, capsys):
    command, file = ["train", *OPTIONS, "--decisions"], shelf / f"{CONFIG.name}.safetensors"
    ship(CONFIG, whole[0])
    other = file_hash(file)
    assert teacher.main([*command, "20"]) == 2
    error = capsys.readouterr().err
    assert f"{CONFIG.name}.safetensors is a teacher that this run did not train; give another --seed" in error
    assert not paths.CACHE.exists()  # nothing was trained in vain
    assert teacher.main([*command, "20", "--replace"]) == 0
    own = file_hash(file)
    assert teacher.main([*command, "30"]) == 0  # goes on with what is its own
    assert len({other, own, file_hash(file)}) == 3
    ship(CONFIG, whole[0])
    (shelf / CONFIG.name).mkdir()
    (shelf / CONFIG.name / "30.safetensors").touch()
    assert teacher.main([*command, "30", "--replace"]) == 2
    assert f"{CONFIG.name} has snapshots of the run that is shipped; remove that folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        teacher.main(["zoo", "--envs", "4"])  # its teachers have settings of their own
    assert "--envs (applied to python -m lib.teachers.cli zoo)" in capsys.readouterr().err


def test_what_was_never_trained_cannot_be_shipped(shelf, tmp_path, capsys):
    with pytest.raises(ConfigError, match="has no snapshot to ship; train first"):
        ship(CONFIG, tmp_path / "nothing")
    assert teacher.main(["ship", "--task", "pendulum-swingup", "--seed", "77"]) == 2
    assert "holds no trained state to ship; train first" in capsys.readouterr().err
    assert teacher.main(["train", "--task", "walker-wakl"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def tracked() -> list[Path]:
    """The weights that are shipped, in data/teachers/: those trained here do not count, and git knows which."""
    if not (ROOT / ".git").exists():
        pytest.skip("only git knows which teachers are shipped")
    command = ["git", "ls-files", "*.safetensors"]
    names = subprocess.run(command, cwd=paths.TEACHERS, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in names.split()]


def test_what_is_shipped_is_listed_and_small_enough():
    files = tracked()
    assert {*files} <= {Path(entry.file) for entry in registry.entries().values() if entry.file}
    assert sum((paths.TEACHERS / file).stat().st_size for file in files) < 80 * 10**6
    measured = read_table(paths.results("paper") / "offline" / "cells.csv")  # those too whose weights made room
    for (task, size, seed), decisions in shipping.STUDIED.items():
        cell = f"{task}-{size}-{seed}"
        early = {int(file.stem) for file in files if file.parts[0] == cell}
        end = card_of(paths.TEACHERS / cell)["decisions"]
        rows = measured[measured["cell"].str.startswith(f"{cell}-")]
        assert early <= {*decisions} and {*decisions} - {end} <= early | {*rows["decisions"]}


def test_shipped_teachers_meet_their_bars_and_load():
    bars = {c.name: c.stop_return for c in teacher.ZOO} | {"walker-walk-1m-1": 866}
    bars |= {"gym--HalfCheetah-v5-1m-1": 2_000, "gym--Hopper-v5-1m-1": 150}  # what these runs reached
    shipped = [file.stem for file in tracked() if len(file.parts) == 1]
    assert {*shipped} >= {"walker-walk-5m-1", *(name for name in bars if name.endswith("-1"))}
    for name in shipped:
        card, wm = card_of(paths.TEACHERS / name), load_world_model(name)
        assert (wm.task, size_of(wm.config)) == (card["task"], card["size"]) and name.startswith(
            paths.file_name(card["task"])
        )
        assert len(card["returns"]) == 10 and card["return_mean"] == pytest.approx(np.mean(card["returns"]))
        assert card["return_mean"] >= bars.get(name, 866)
        assert (card["planner"]["samples"], card["planner"]["iterations"]) == (512, 6)
        assert read_table(paths.TEACHERS / f"{name}.csv")["decision"].iloc[-1] <= card["decisions"]
        assert (card["offline"] is not None) == (name[-4:-2] == "5m")


# ------------------------------------------------------------------------------------------------ a folder that is lost

GOES_ON = ["train", *OPTIONS, "--size", "tiny", "--decisions", "120", "--from-shipped", "20"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a run of 60 decisions."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODEL_SIZES, "tiny", SIZE)
        TrainingRun(TINY, folder).train()
    return folder


@pytest.fixture
def lost(small, shelf):
    """The card of that run, which was shipped, and whose folder is not where it would go on."""
    return ship(TINY, small)


def test_a_run_goes_on_from_what_it_shipped(lost, shelf, monkeypatch):
    """Its planner fills the replay, in episodes of its own; then every decision has its update again."""
    acts, seen, before = TrainingRun._act, [], load_world_model(TINY.name)

    def acting(self, obs, warm):
        seen.append((self.decisions, self.updates, equal(self.learner.wm, before), warm is not None))
        return acts(self, obs, warm)

    monkeypatch.setattr(TrainingRun, "_act", acting)
    curve = read_table(shelf / f"{TINY.name}.csv")
    sha256 = file_hash(shelf / f"{TINY.name}.safetensors")
    assert teacher.main(GOES_ON) == 0
    card = card_of(shelf / TINY.name)
    assert (lost["decisions"], lost["updates"], lost["episodes"], lost["continued"]) == (60, 60, 6, [])
    assert (card["decisions"], card["updates"], card["episodes"]) == (120, 120, 12)
    assert card["continued"] == [{"decisions": 60, "sha256": sha256, "played": 20}]
    assert card["minutes"] > lost["minutes"]
    assert [d for d, *_ in seen] == [*range(60, 120)]
    assert all(u == 60 and same for d, u, same, _ in seen if d < 80)
    assert [u for d, u, *_ in seen if d >= 80] == [*range(80, 120)]
    assert not any(same for d, _, same, _ in seen if d >= 80)
    assert any(warm for *_, warm in seen)  # of plans, as no random action has
    grown = read_table(shelf / f"{TINY.name}.csv")
    assert grown["decision"].tolist() == [20, 40, 60, 80, 100, 120] and grown[:3].equals(curve)

    played = load_episodes(paths.CACHE / "training" / TINY.name / "train_buffer.safetensors")
    starts = [make_env(TINY.task, TINY.seed).reset(seed=s)[0] for s in episode_seeds("train", 6, TINY.seed, first=6)]
    assert [len(e) for e in played] == [10] * 6  # what it played itself, from start states of its own
    assert all(np.array_equal(e.obs[0], start) for e, start in zip(played, starts, strict=True))


def test_a_run_that_went_on_and_was_killed_ends_as_if_it_had_not_been(lost, shelf, monkeypatch):
    files = {path: path.read_bytes() for path in shelf.rglob("*") if path.is_file()}
    assert teacher.main(GOES_ON) == 0
    whole, play = load_world_model(TINY.name), TrainingRun._round
    shutil.rmtree(paths.CACHE)
    for path, content in files.items():
        path.write_bytes(content)
    for end in (70, 100):  # while it only plays, and after that

        def killed(self, bar, end=end):
            if self.decisions == end:
                raise KeyboardInterrupt
            return play(self, bar)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "_round", killed)
            assert teacher.main(GOES_ON) == 130
    assert teacher.main(GOES_ON) == 0
    assert equal(load_world_model(TINY.name), whole)


def test_the_running_scale_and_the_targets_are_those_of_the_weights(lost, tmp_path):
    run = TrainingRun(TINY, tmp_path)
    shipping.go_on(run, 10)
    assert run.learner.scale.value.item() == pytest.approx(lost["scale"]) and lost["scale"] >= 1
    assert equal(run.learner.wm.target_q_heads, run.learner.wm.q_heads)
    assert not run.learner.optimiser.state
    other = TrainingRun(TINY, tmp_path / "fresh")  # of the same seed: its random actions are not met again
    assert not torch.equal(torch.rand(4), (torch.manual_seed(TINY.seed), torch.rand(4))[1])
    assert run.buffer.rng.bit_generator.state != other.buffer.rng.bit_generator.state


def test_what_a_run_cannot_go_on_from_is_refused_in_a_sentence(lost, shelf, capsys):
    def refused(*changes):
        assert teacher.main([*GOES_ON, *changes]) == 2
        assert not paths.CACHE.exists()
        return capsys.readouterr().err

    assert "takes a number of decisions, at least 1" in refused("--from-shipped", "0")
    assert "was trained with another batch_size; give the settings of its card" in refused("--batch-size", "8")
    assert f"{TINY.name[:-1]}2.safetensors is shipped, with its card; train" in refused("--seed", "2")
    file = shelf / f"{TINY.name}.json"
    card = file.read_text()
    file.write_text(card.replace('"scale"', '"scales"'))
    assert f"{file.name} is no card of a teacher, it lacks scale" in refused()
    file.write_text(card)
    weights = (shelf / f"{TINY.name}.safetensors").read_bytes()
    (shelf / f"{TINY.name}.safetensors").write_bytes(weights[:-8])
    assert f"{TINY.name}.safetensors" in refused()
    (shelf / f"{TINY.name}.safetensors").write_bytes(weights)
    assert teacher.main([*GOES_ON[:-2]]) == 2  # and without being told it begins nothing in another's place
    assert "a teacher that this run did not train" in capsys.readouterr().err
    assert teacher.main(GOES_ON) == 0
    assert teacher.main([*GOES_ON, "--decisions", "140"]) == 2
    assert "holds the run itself; without --from-shipped it goes on from there" in capsys.readouterr().err
    assert teacher.main([*GOES_ON[:-2], "--decisions", "140"]) == 0
