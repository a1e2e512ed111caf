"""Training correctors on a mapping that can be learnt, and artefacts that are made once."""

import dataclasses

import pytest
import torch
from tiny import ACTIONS, LATENT, fresh_env, latents, tiny_model

from lib import collection, distillation, paths
from lib.checkpoints import save_world_model, teacher_key
from lib.collection import DistillationError, DistillationSet
from lib.config import PROFILES, ConfigError, Profile, resolve
from lib.correctors import load_corrector
from lib.distillation import (
    distillation_set,
    ensure_corrector,
    errors_by_depth,
    make_corrector,
    split_by_episode,
    train_corrector,
)
from lib.results import read_sidecar, read_table


def learnable_set(episodes=8, each=40, noise=0.0, seed=0):
    """The teacher answers drift linearly: a_teacher = clamp(a_plan + 4 (z_real − z_pred) W)."""
    n, g = episodes * each, torch.Generator().manual_seed(seed)
    z_pred, other = latents(n, seed + 1), latents(n, seed + 2)
    z_real = 0.7 * z_pred + 0.3 * other
    a_plan = (2 * torch.randn(n, ACTIONS, generator=g)).clamp(-1, 1)
    w = torch.randn(LATENT, ACTIONS, generator=torch.Generator().manual_seed(99))
    a_teacher = a_plan + 4 * (z_real - z_pred) @ w + noise * torch.randn(n, ACTIONS, generator=g)
    return DistillationSet(
        z_real=z_real,
        z_pred=z_pred,
        a_plan=a_plan,
        a_policy=torch.zeros(n, ACTIONS),
        a_teacher=a_teacher.clamp(-1, 1),
        depth=1 + torch.arange(n) % 2,
        mismatch=torch.rand(n, generator=g),
        episode=torch.arange(n) // each,
        decision=torch.arange(n) % each,
        again_index=torch.zeros(0, dtype=torch.int64),
        a_again=torch.zeros(0, ACTIONS),
    )


def train(data, **options):
    return train_corrector(data, **{"epochs": 8, "batch_size": 64, "lr": 3e-3, "progress": False} | options)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("episodes", [2, 3, 10])
def test_an_episode_is_never_on_both_sides(episodes, seed):
    data = learnable_set(episodes, 7)
    training, validation = split_by_episode(data, seed=seed)
    assert (training ^ validation).all()
    assert not set(data.episode[training].tolist()) & set(data.episode[validation].tolist())
    assert len(data.episode[validation].unique()) == max(round(0.2 * episodes), 1)
    assert torch.equal(split_by_episode(data, seed=seed)[1], validation)


def test_the_seed_chooses_who_is_held_out():
    data = learnable_set(10, 3)
    assert len({tuple(split_by_episode(data, seed=s)[1].tolist()) for s in range(6)}) > 1


def test_one_episode_cannot_be_split():
    with pytest.raises(DistillationError, match="holds 1 episode; two are needed"):
        split_by_episode(learnable_set(1))


def test_training_learns_and_keeps_the_best_epoch():
    trained = train(learnable_set(16), epochs=40)
    held = trained.validation
    plan = (held.a_plan - held.a_teacher).square().mean()
    corrected = trained.corrector(held.z_real, held.z_pred, held.a_plan, held.depth)
    error = (corrected - held.a_teacher).square().mean().item()
    assert error < 0.3 * plan
    curve = [r for r in trained.curve if r["split"] == "validation"]
    assert error == pytest.approx(min(r["action_mse"] for r in curve), rel=1e-4)
    assert [r["epoch"] for r in curve] == list(range(1, len(curve) + 1)) and len(trained.curve) == 2 * len(curve)
    assert not trained.corrector.training


def test_without_anything_to_learn_the_best_epoch_is_not_the_last():
    data = learnable_set(4)
    data.a_teacher = 2 * torch.rand(len(data), ACTIONS) - 1
    trained = train(data, epochs=60, patience=5)
    loss = [r["loss"] for r in trained.curve if r["split"] == "validation"]
    best = loss.index(min(loss))
    assert len(loss) == best + 1 + 5 < 60
    held = trained.validation
    corrected = trained.corrector(held.z_real, held.z_pred, held.a_plan, held.depth)
    assert (corrected - held.a_teacher).square().mean().item() == pytest.approx(loss[best], rel=1e-4)


def test_lambda_reg_shrinks_corrections_and_enters_the_loss():
    free, bound = train(learnable_set()), train(learnable_set(), lambda_reg=10.0)
    assert bound.curve[-1]["delta_abs"] < 0.3 * free.curve[-1]["delta_abs"]
    assert (
        free.curve[-1]["loss"] == free.curve[-1]["action_mse"]
        and bound.curve[-1]["loss"] > bound.curve[-1]["action_mse"]
    )


def test_seeds_are_honoured():
    a, b, c = (train(learnable_set(), epochs=2, seed=s) for s in (1, 1, 2))
    assert a.curve == b.curve != c.curve
    for x, y in zip(a.corrector.parameters(), b.corrector.parameters(), strict=True):
        assert torch.equal(x, y)


def test_training_that_cannot_work_says_so():
    with pytest.raises(ConfigError, match="arch='tow_tower' is not known.*two_tower"):
        train(learnable_set(), arch="tow_tower")
    with pytest.raises(DistillationError, match="finite"):
        train(learnable_set(), lr=float("inf"), epochs=2)


def test_errors_by_depth_are_what_a_hand_computes():
    data = learnable_set(2, 2)
    data.depth = torch.tensor([1, 2, 2, 2])
    data.mismatch = torch.tensor([0.5, 0.1, 0.2, 0.3])
    data.a_teacher = torch.zeros(4, ACTIONS)
    data.a_plan = torch.tensor([[0.2, 0.0], [0.3, 0.3], [0.0, 0.3], [0.0, 0.0]])
    data.a_policy = torch.full((4, ACTIONS), 0.5)
    data.again_index, data.a_again = torch.tensor([2]), torch.tensor([[0.4, 0.0]])

    def halve(z_real, z_pred, a_plan, depth):
        return a_plan / 2

    first, second = errors_by_depth(data, halve)
    assert {k: pytest.approx(v) for k, v in first.items() if k != "teacher_floor_mse"} == {
        "depth": 1, "samples": 1, "mismatch": 0.5, "plan_mse": 0.02, "corrector_mse": 0.005, "policy_mse": 0.25,
    }  # fmt: skip
    assert first["teacher_floor_mse"] != first["teacher_floor_mse"]  # nothing was solved twice at depth 1
    assert {k: pytest.approx(v) for k, v in second.items()} == {
        "depth": 2, "samples": 3, "mismatch": 0.2, "plan_mse": 0.045, "corrector_mse": 0.01125, "policy_mse": 0.25,
        "teacher_floor_mse": 0.04,
    }  # fmt: skip
    assert "corrector_mse" not in errors_by_depth(data)[0]


# ------------------------------------------------------------------------------------------------- kept artefacts


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with one random teacher, free environments, and a count of the collections and trainings."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "TEACHERS", tmp_path / "teachers")
    monkeypatch.setattr(collection, "make_env", fresh_env())
    (tmp_path / "teachers").mkdir()
    save_world_model(tiny_model(), tmp_path / "teachers" / "tiny-task-1m-1.safetensors")
    calls = []

    def noted(name):
        real = getattr(distillation, name)

        def wrapped(*arguments, **options):
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(distillation, name, wrapped)

    noted("collect"), noted("train_corrector")
    return calls


def settings(**changes):
    """The smoke profile with changes."""
    chosen = resolve("smoke", "tiny-task", "1m", 1, "", "cpu")
    return dataclasses.replace(chosen, profile=dataclasses.replace(PROFILES["smoke"], **changes))


def fetch(chosen, **options):
    return distillation_set(chosen, chosen.cell, **options)


def test_a_set_is_collected_once(home):
    data, key = fetch(settings())
    assert len(data) == 2 * 8 and home == ["collect"]
    again, same = fetch(settings())
    assert home == ["collect"] and same == key
    assert all(torch.equal(getattr(data, k), getattr(again, k)) for k in vars(data))


@pytest.mark.parametrize(
    ("profile", "options"),
    [({}, {"episodes": 3}), ({}, {"execution_horizon": 2}), ({}, {"plan_horizon": 2}), ({"decisions": 9}, {}),
     ({"collect_episodes": 3}, {}), ({"planner": dataclasses.replace(PROFILES["smoke"].planner, samples=24)}, {})],
)  # fmt: skip
def test_a_changed_setting_collects_again(home, profile, options):
    _, key = fetch(settings())
    data, other = fetch(settings(**profile), **options)
    assert home == ["collect"] * 2 and key != other
    fetch(settings(**profile), **options), fetch(settings())
    assert home == ["collect"] * 2
    if profile or "episodes" in options:
        assert len(data.episode.unique()) == options.get("episodes", profile.get("collect_episodes", 2))


def test_another_teacher_collects_again(home):
    fetch(settings())
    save_world_model(tiny_model(seed=5), paths.TEACHERS / "tiny-task-1m-1.safetensors")
    fetch(settings())
    assert home == ["collect"] * 2


def test_how_the_planner_is_computed_and_later_epochs_do_not_matter(home):
    fetch(settings())
    planner = dataclasses.replace(PROFILES["smoke"].planner, mode="eager")
    fetch(settings(planner=planner, epochs=7, eval_episodes=9))
    assert home == ["collect"]


def test_later_rounds_use_the_corrector_of_the_round_before(home):
    one, _ = fetch(settings())
    data, key = fetch(settings(rounds=2))
    assert home == ["collect", "train_corrector", "collect"]
    assert len(data) == 2 * len(one) and torch.equal(data.z_real[: len(one)], one.z_real)
    assert len(data.episode.unique()) == 4
    del home[:]
    assert fetch(settings(rounds=2))[1] == key and home == []  # neither collects nor trains
    fetch(settings(rounds=2, epochs=3))  # another corrector acts in round 2
    assert sorted(home) == ["collect", "train_corrector"]


def test_a_damaged_set_is_collected_again(home):
    fetch(settings())
    (file,) = (paths.CACHE / "distillation").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    fetch(settings())
    assert home == ["collect"] * 2


def test_a_corrector_is_written_with_its_tables(home):
    chosen = settings()
    data, key = fetch(chosen)
    trained, errors = make_corrector(chosen, chosen.cell, "two_tower", data, key, epochs=2, progress=False)
    folder = paths.results("smoke") / "corrector"
    curve = read_table(folder / "tiny-task-1m-1-two_tower.csv")
    assert curve.to_dict("records") == trained.curve
    assert (
        list(read_table(folder / "tiny-task-1m-1-two_tower-depth.csv")["depth"])
        == [r["depth"] for r in errors]
        == [1, 2]
    )
    back = load_corrector(folder / "tiny-task-1m-1-two_tower.safetensors", teacher_key("tiny-task-1m-1"))
    assert all(torch.equal(v, trained.corrector.state_dict()[k]) for k, v in back.state_dict().items())
    about = read_sidecar(folder / "tiny-task-1m-1-two_tower.safetensors")
    assert about["distillation_key"] == key and about["samples"] == len(data) and about["training"]["epochs"] == 2


def test_a_lacking_corrector_is_made_and_a_present_one_is_kept(home):
    chosen = settings()
    path = ensure_corrector(chosen, chosen.cell, "two_tower")
    assert home == ["collect", "train_corrector"]
    before = path.read_bytes()
    assert ensure_corrector(chosen, chosen.cell, "two_tower") == path and home == ["collect", "train_corrector"]
    path.write_bytes(before[:-9])
    ensure_corrector(chosen, chosen.cell, "two_tower")
    assert home == ["collect", "train_corrector", "train_corrector"] and path.read_bytes() == before
    save_world_model(tiny_model(seed=5), paths.TEACHERS / "tiny-task-1m-1.safetensors")
    ensure_corrector(chosen, chosen.cell, "two_tower")
    assert len(home) == 5
    load_corrector(path, teacher_key("tiny-task-1m-1"))


def test_every_profile_has_an_episode_to_hold_out():
    assert all(isinstance(p, Profile) and p.collect_episodes >= 2 for p in PROFILES.values())
