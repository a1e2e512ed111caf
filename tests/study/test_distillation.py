"""Artefacts of the distillation that are made once: shards of a set, and correctors with their tables."""

import dataclasses
import functools

import pytest
import torch

from lib.config import ConfigError, as_dict
from lib.distil.states import DistillationError, DistillationSet
from lib.distil.train import CorrectorTraining
from lib.records import paths
from lib.records.store import read_sidecar, read_table
from lib.study import distillation
from lib.study.cells import resolve
from lib.study.distillation import (
    RIGHT_SIZED,
    ROUND_EPISODES,
    SHARD_EPISODES,
    cells_with_teacher,
    distillation_set,
    ensure_corrector,
    make_corrector,
)
from lib.study.profiles import PROFILES, Profile
from lib.weights.distilled import load_network
from lib.weights.native import CheckpointError, save_world_model, teacher_key
from tests.tiny import fresh_env, tiny_model


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with one random teacher, free environments, and a note of each collection and training.

    A collection is noted as its episodes, counted from the first seed of the cell; a training as its number of rows.
    """
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setattr(distillation, "make_env", fresh_env())
    paths.TEACHERS.mkdir()
    ship(0)
    done = []
    collect, train_corrector = distillation.collect, distillation.train_corrector

    @functools.wraps(collect)  # keys are of the code that it stands for
    def noted_collect(planner, labeller, envs, seeds, *arguments, **options):
        done.append(tuple(s - 301_000_000 for s in seeds))
        return collect(planner, labeller, envs, seeds, *arguments, **options)

    @functools.wraps(train_corrector)
    def noted_training(data, *arguments, **options):
        done.append(len(data))
        return train_corrector(data, *arguments, **options, progress=False)

    monkeypatch.setattr(distillation, "collect", noted_collect)
    monkeypatch.setattr(distillation, "train_corrector", noted_training)
    return done


def ship(seed):
    save_world_model(tiny_model(seed=seed), paths.TEACHERS / "tiny-task-1m-1.safetensors")


def settings(**changes):
    """The smoke profile with changes."""
    chosen = resolve("smoke", "tiny-task", "1m", 1, "", "cpu")
    return dataclasses.replace(chosen, profile=dataclasses.replace(PROFILES["smoke"], **changes))


def fetch(chosen, **options):
    return distillation_set(chosen, chosen.cell, **options)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.columns().values(), b.columns().values(), strict=True))


def shards():
    return sorted((paths.CACHE / "distillation").glob("*.safetensors"))


LATER = ROUND_EPISODES  # the first episode of the second round

# --------------------------------------------------------------------------------------------------------- the shards


def test_a_set_is_collected_once_in_shards_of_both_planners(home, monkeypatch):
    data, key = fetch(settings(), episodes=5)
    assert home == [(0, 1), (2, 3), (4,)] and SHARD_EPISODES == 2
    assert len(data) == 5 * 8 and data.depth.unique().tolist() == [1, 2]
    sources = {e - 301_000_000: s for e, s in zip(data.episode.tolist(), data.source.tolist(), strict=True)}
    assert sources == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0}
    again, same = fetch(settings(), episodes=5)
    assert len(home) == 3 and same == key and equal(data, again)
    order = [read_sidecar(p)["source"] for p in shards()]
    assert sorted(order) == ["right-sized", "standard", "standard"]


def test_more_episodes_only_collect_the_missing_shards(home):
    two, key = fetch(settings())
    six, other = fetch(settings(), episodes=6)
    assert home == [(0, 1), (2, 3), (4, 5)] and key != other
    assert equal(six.rows(torch.arange(len(six)) < len(two)), two)
    four, _ = fetch(settings(), episodes=4)
    assert len(home) == 3 and equal(six.rows(torch.arange(len(six)) < len(four)), four)


def test_a_killed_collection_goes_on_at_the_next_shard(home, monkeypatch):
    collect = distillation.collect

    @functools.wraps(collect)
    def killed(planner, labeller, envs, seeds, *arguments, **options):
        if home == [(0, 1)]:
            raise KeyboardInterrupt
        return collect(planner, labeller, envs, seeds, *arguments, **options)

    monkeypatch.setattr(distillation, "collect", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(settings(), episodes=6)
    assert home == [(0, 1)] and len(shards()) == 1
    monkeypatch.setattr(distillation, "collect", collect)
    resumed, key = fetch(settings(), episodes=6)
    assert home == [(0, 1), (2, 3), (4, 5)]
    for path in shards():
        path.unlink()
    straight, same = fetch(settings(), episodes=6)
    assert len(home) == 6 and same == key and equal(resumed, straight)


def test_the_other_shards_follow_a_right_sized_planner(home, monkeypatch):
    """At smoke size both planners are the profile's own; without a profile's planner they are 512 × 6 and 64 × 2."""
    used = []

    @functools.wraps(distillation.collect)
    def noted(planner, labeller, envs, seeds, execution_horizon, *arguments, **options):
        for solver in (planner, labeller):
            used.append((solver.config.samples, solver.config.iterations, solver.config.horizon))
        used.append((options["source"], execution_horizon))
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "collect", noted)
    monkeypatch.setattr(distillation, "SHARD_EPISODES", 1)
    with pytest.raises(KeyboardInterrupt):
        fetch(settings())
    assert used == [(SMALL.samples, 1, 3), (SMALL.samples, 1, 3), (0, 3)]
    del used[:]
    monkeypatch.setattr(distillation, "cached", lambda path, key, make, *rest, **about: make_first(make))

    def make_first(make):
        with pytest.raises(KeyboardInterrupt):
            make("nowhere")
        return "nowhere"

    monkeypatch.setattr(DistillationSet, "load", lambda *files: files)
    fetch(settings(planner=None, collect_horizon=6), plan_horizon=2)
    assert used == [(512, 6, 2), (512, 6, 2), (0, 6), (*RIGHT_SIZED, 2), (512, 6, 2), (1, 6)] and RIGHT_SIZED == (64, 2)


SMALL = PROFILES["smoke"].planner
EAGER = dict(planner=dataclasses.replace(SMALL, mode="eager"), epochs=7, eval_episodes=9)


@pytest.mark.parametrize(
    ("teacher", "profile", "options", "times"),
    [(5, {}, {}, 2), (0, {}, {"execution_horizon": 2}, 2), (0, {"collect_horizon": 4}, {}, 2),
     (0, {}, {"plan_horizon": 2}, 2), (0, {"decisions": 9}, {}, 2),
     (0, {"planner": dataclasses.replace(SMALL, samples=24)}, {}, 2), (0, EAGER, {}, 1)],
    ids=["another teacher", "a shorter horizon", "the profile's horizon", "shorter plans", "shorter episodes",
         "fewer samples", "but not for how the planner is computed and later epochs"],
)  # fmt: skip
def test_a_change_collects_again(home, teacher, profile, options, times):
    _, key = fetch(settings())
    ship(teacher)
    for _ in range(2):
        _, other = fetch(settings(**profile), **options)
        assert home == [(0, 1)] * times and (key != other) == (times == 2)
    fetch(settings())
    assert len(home) == times


def test_the_horizon_is_the_profiles_unless_it_is_given(home):
    _, key = fetch(settings(collect_horizon=4))
    data, same = fetch(settings(), execution_horizon=4)
    assert key == same and data.depth.unique().tolist() == [1, 2, 3] and data.about["execution_horizon"] == 4


def test_a_file_says_where_it_comes_from(home):
    data, _ = fetch(settings(), episodes=4)
    first, second = (DistillationSet.load(path).about for path in shards())
    assert {first["source"], second["source"]} == {"standard", "right-sized"}
    planner = {k: v for k, v in dataclasses.asdict(SMALL).items() if k != "mode"}
    for about in (first, second, data.about):
        assert about["task"] == "tiny-task" and about["teacher"] == "tiny-task-1m-1" and about["labeller"] == planner
        assert about["teacher_key"] == teacher_key("tiny-task-1m-1") and about["execution_horizon"] == 3
    assert first["planner"] == planner and "source" not in data.about
    assert read_sidecar(shards()[0]).items() >= first.items()


def test_later_rounds_use_the_corrector_of_the_rounds_before(home, monkeypatch):
    one, _ = fetch(settings(), episodes=4)
    data, key = fetch(settings(rounds=3), episodes=4)
    second, third = ([(first, first + 1), (first + 2, first + 3)] for first in (LATER, 2 * LATER))
    assert home == [(0, 1), (2, 3), 32, *second, 64, *third]  # trained once a round, on all rows there are
    assert len(data) == 3 * len(one) and torch.equal(data.z_real[: len(one)], one.z_real)
    del home[:]
    assert fetch(settings(rounds=3), episodes=4)[1] == key and home == []  # neither collects nor trains
    (paths.CACHE / "distillation" / shards_of(2)[1]).unlink()
    again, _ = fetch(settings(rounds=3), episodes=4)
    assert home == [32, second[1]] and equal(again, data)
    del home[:]
    fetch(settings(rounds=2, epochs=3), episodes=4)  # another corrector acts in round 2
    assert home == [32, *second]


def shards_of(number):
    """Names of the files of a round, standard planner first."""
    about = {p.name: read_sidecar(p) for p in shards()}
    found = [name for name, facts in about.items() if facts["round"] == number]
    return sorted(found, key=lambda name: about[name]["source"], reverse=True)


def test_later_rounds_do_act_with_that_corrector(home, monkeypatch):
    actors = []
    collect = distillation.collect

    @functools.wraps(collect)
    def noted(planner, labeller, envs, seeds, execution_horizon, corrector, **options):
        actors.append(corrector)
        return collect(planner, labeller, envs, seeds, execution_horizon, corrector, **options)

    monkeypatch.setattr(distillation, "collect", noted)
    fetch(settings(rounds=2), episodes=4)
    assert actors[:2] == [None, None] and actors[2] is actors[3] and actors[2].arch == "two_tower"
    assert not actors[2].training


def test_a_damaged_shard_is_collected_again_and_the_others_are_kept(home):
    fetch(settings(), episodes=4)
    (file,) = (p for p in shards() if read_sidecar(p)["source"] == "right-sized")
    file.write_bytes(file.read_bytes()[:-9])
    fetch(settings(), episodes=4)
    assert home == [(0, 1), (2, 3), (2, 3)]


@pytest.mark.parametrize("episodes", [-1, ROUND_EPISODES + 1])
def test_a_number_of_episodes_that_no_round_can_have_is_refused(home, episodes):
    with pytest.raises(ConfigError, match=f"episodes={episodes} must be between 1 and {ROUND_EPISODES}"):
        fetch(settings(), episodes=episodes)


# --------------------------------------------------------------------------------------------------------- correctors


@pytest.fixture
def made(home):
    """Settings, their set and its key."""
    chosen = settings()
    return chosen, *fetch(chosen)


def test_a_corrector_is_written_with_its_tables(made):
    chosen, data, key = made
    trained, errors = make_corrector(chosen, chosen.cell, data, key, CorrectorTraining(epochs=2))
    stem = paths.results("smoke") / "corrector" / "tiny-task-1m-1-two_tower"
    assert read_table(f"{stem}.csv").to_dict("records") == trained.curve
    assert list(read_table(f"{stem}-depth.csv")["depth"]) == [r["depth"] for r in errors] == [1, 2]
    back = load_network(stem.with_suffix(".safetensors"), teacher_key("tiny-task-1m-1"))
    assert all(torch.equal(v, trained.corrector.state_dict()[k]) for k, v in back.state_dict().items())
    about = read_sidecar(stem.with_suffix(".safetensors"))
    assert about["distillation_key"] == key and about["samples"] == len(data) and about["training"]["epochs"] == 2


@pytest.mark.parametrize("arch", ["two_tower", "temporal", "state"])
def test_every_corrector_is_made_with_losses_that_need_the_world_model(made, arch):
    chosen, data, key = made
    training = CorrectorTraining(arch, epochs=1, rollout_weight=0.5, q_weighted=True)
    trained, errors = make_corrector(chosen, chosen.cell, data, key, training)
    assert trained.corrector.arch == arch and all(r["corrector_mse"] >= 0 for r in errors)
    about = read_sidecar(paths.results("smoke") / "corrector" / f"tiny-task-1m-1-{arch}.csv")
    assert about["training"] == as_dict(training)


def test_labels_of_another_teacher_are_refused(made):
    chosen, data, key = made
    ship(5)
    with pytest.raises(DistillationError, match="labelled by another tiny-task-1m-1 .* 02_collect_data"):
        make_corrector(chosen, chosen.cell, data, key, CorrectorTraining(epochs=1))


def test_a_lacking_corrector_is_made_and_a_present_one_is_kept(home):
    chosen = settings()
    path = ensure_corrector(chosen, chosen.cell, "two_tower")
    assert home == [(0, 1), 16]
    before = path.read_bytes()
    assert ensure_corrector(chosen, chosen.cell, "two_tower") == path and home == [(0, 1), 16]
    path.write_bytes(before[:-9])
    ensure_corrector(chosen, chosen.cell, "two_tower")
    assert home == [(0, 1), 16, 16] and path.read_bytes() == before
    ship(5)
    ensure_corrector(chosen, chosen.cell, "two_tower")
    assert len(home) == 5
    load_network(path, teacher_key("tiny-task-1m-1"))


# ------------------------------------------------------------------------------------------------- cells and profiles


def test_cells_without_a_teacher_are_left_out_and_named(home, capsys):
    every = resolve("smoke", "tiny-task", "all", 1, "", "cpu")
    assert [str(c) for c in cells_with_teacher(every)] == ["tiny-task-1m-1"]
    said = capsys.readouterr().out
    assert "tiny-task-5m-1" in said and "tiny-task-317m-1" in said and "tiny-task-1m-1" not in said
    with pytest.raises(CheckpointError, match="none of the teachers.*tiny-task-1m-2, tiny-task-5m-2"):
        cells_with_teacher(resolve("smoke", "tiny-task", "all", 2, "", "cpu"))
    one = resolve("smoke", "tiny-task", "5m", 1, "", "cpu")  # loading its teacher says what is wrong
    assert cells_with_teacher(one) == list(one.cells) and not capsys.readouterr().out


def test_every_profile_has_an_episode_to_hold_out_and_depths_to_correct():
    assert all(isinstance(p, Profile) and p.collect_episodes >= 2 and p.collect_horizon >= 3 for p in PROFILES.values())
    for name in ("quick", "paper"):  # plans of both planners
        assert PROFILES[name].collect_episodes >= 2 * SHARD_EPISODES
