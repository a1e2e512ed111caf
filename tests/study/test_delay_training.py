"""The corrector of late plans: labels in rounds that are collected once, and what is made anew and what is not."""

import dataclasses
import functools

import pytest

from lib.config import ConfigError
from lib.correctors import TwoTowerCorrector
from lib.records import paths
from lib.records.fingerprint import Code
from lib.records.store import read_table
from lib.study import delay_training, drafting
from lib.study.arms import DELAY_AWARE, make_arm
from lib.study.cells import resolve
from lib.study.delay_training import delay_aware_key, ensure_delay_aware, late_states, rounds_of
from lib.study.networks import ensure_network
from lib.study.profiles import PROFILES, DelayStudy
from lib.weights.distilled import load_network
from lib.weights.native import save_world_model, teacher_key
from tests.study.test_drafting import STUDY
from tests.tiny import fresh_env, tiny_model


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with one random teacher, free environments, and a note of the collections."""
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setattr(delay_training, "make_env", fresh_env())
    paths.TEACHERS.mkdir()
    ship(0)
    done, collect, train = [], delay_training.collect_delayed, delay_training.train_corrector

    @functools.wraps(collect)  # keys are of the code that it stands for
    def noted_collect(planner, envs, seeds, labels, corrector, beta, delays, *rest):
        done.append((labels, corrector is not None, beta, delays))
        return collect(planner, envs, seeds, labels, corrector, beta, delays, *rest)

    @functools.wraps(train)
    def quietly(data, training):
        done.append(len(data))
        return train(data, training, progress=False)

    monkeypatch.setattr(delay_training, "collect_delayed", noted_collect)
    monkeypatch.setattr(delay_training, "train_corrector", quietly)
    return done


def ship(seed):
    save_world_model(tiny_model(seed=seed), paths.TEACHERS / "tiny-task-1m-1.safetensors")


def settings(trained_delays=(1, 2), **changes):
    chosen = resolve("smoke", "tiny-task", "1m", 1, "", "cpu")
    studies = {"drafts": dataclasses.replace(STUDY, **changes), "delays": DelayStudy(trained_delays=trained_delays)}
    return dataclasses.replace(chosen, profile=dataclasses.replace(PROFILES["smoke"], epochs=2, **studies))


def test_it_learns_in_rounds_and_is_made_once(home):
    chosen = settings()
    path = ensure_network(chosen, chosen.cell, DELAY_AWARE)
    first, before, second, after = home
    assert first == (24, False, 1.0, [1, 2]) and second == (24, True, 0.5, [1, 2])
    assert 24 <= before < after == len(late_states(chosen, chosen.cell))
    assert path == paths.DATA / "results/smoke/corrector/tiny-task-1m-1-delay_aware.safetensors"
    assert isinstance(load_network(path, teacher_key("tiny-task-1m-1")), TwoTowerCorrector)
    errors = read_table(path.with_name("tiny-task-1m-1-delay_aware-depth.csv"))
    assert errors["depth"].tolist() == [1, 2, 3] and errors["samples"].sum() < after  # of held-out episodes alone
    assert (errors[["plan_mse", "corrector_mse", "policy_mse"]] > 0).all(None)
    assert ensure_delay_aware(chosen, chosen.cell) == path and len(home) == 4
    assert make_arm("async+delay-aware-d3", PROFILES["smoke"].planner).corrector == DELAY_AWARE


@pytest.mark.parametrize("change", ["teacher", "delays", "labels", "damage", "table"])
def test_what_it_was_made_of_makes_it_anew(home, change):
    chosen = settings()
    path = ensure_delay_aware(chosen, chosen.cell)
    key = delay_aware_key(chosen, chosen.cell)
    if change == "teacher":
        ship(1)
    elif change == "table":
        path.with_name(f"{path.stem}-depth.csv").unlink()
    elif change == "damage":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        chosen = settings(trained_delays=(3,)) if change == "delays" else settings(labels=(24, 26))
    ensure_delay_aware(chosen, chosen.cell)
    assert (delay_aware_key(chosen, chosen.cell) == key) == (change in ("damage", "table"))
    assert path.with_name(f"{path.stem}-depth.csv").is_file() and load_network(path, teacher_key("tiny-task-1m-1"))
    collected = [note for note in home[4:] if isinstance(note, tuple)]
    assert len(collected) == {"teacher": 2, "delays": 2, "labels": 1, "damage": 0, "table": 0}[change]


def test_its_key_is_of_the_world_model_too():
    names = {str(target) for target in Code(paths.ROOT).reached(*delay_training.COLLECTED_BY)}
    assert any("lib.world_model" in name and "WorldModel" in name for name in names)


def test_its_seeds_are_of_the_block_of_collection_and_no_other_rounds_are(home):
    chosen = settings()
    mine = [set(one.seeds) for one in rounds_of(chosen, chosen.cell)]
    drafts = [set(one.seeds) for one in drafting.rounds_of(chosen, chosen.cell, "distilled")]
    assert not mine[0] & mine[1] and not any(a & b for a in mine for b in drafts)
    for rounds in (rounds_of, lambda chosen, cell: drafting.rounds_of(chosen, cell, "cloned")):
        with pytest.raises(ConfigError, match="betas=.* must begin with 1"):
            rounds(settings(betas=(0.5,)), chosen.cell)
