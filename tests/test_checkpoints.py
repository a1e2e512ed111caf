"""Weights: official files against outputs of the official code, our own files, and everything that must be refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import checkpoints, official_weights
from lib.checkpoints import CheckpointError, load_world_model, save_world_model
from lib.config import PlannerConfig, WorldModelConfig
from lib.paths import ROOT
from lib.planner import MPPI
from lib.tasks import make_env, task_names
from lib.teacher import play
from lib.world_model import WorldModel, two_hot

FIXTURES = ROOT / "tests" / "fixtures"
REAL = ROOT.parent / "shared" / "fixtures" / "tdmpcopt_mt30_1m_fp16.pt"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="the trained mt30 model is not on this machine")
TINY_TASKS = {"walker-walk": (24, 6), "cartpole-swingup": (5, 1), "pendulum-spin": (3, 1)}


def golden(file, task=None):
    prefix = f"{task.replace('-', '_')}_" if task else ""
    return lambda key: torch.from_numpy(file[key if key in ("obs", "action") else prefix + key])


def assert_matches(wm, want, rtol=1e-5, atol=1e-5):
    """Every output of the model against the official one; padded dimensions of the policy are left out."""
    close = dict(rtol=rtol, atol=atol)
    z, a = wm.encode(want("obs")), want("action")
    torch.testing.assert_close(z, want("z"), **close)
    torch.testing.assert_close(wm.next(z, a), want("next_z"), **close)
    torch.testing.assert_close(wm.reward(z, a), want("reward")[..., 0], **close)
    torch.testing.assert_close(wm.q(z, a), want("q_values")[..., 0], **close)
    torch.testing.assert_close(wm.policy(z)[0], want("pi_mean")[:, : wm.action_dim], **close)
    return z, a


def tiny(name="new", edit=None, tmp_path=None, task_set="mt30"):
    """Path of a tiny official file, or of an edited copy of it."""
    path = FIXTURES / f"official_tiny_{task_set}_{name}.pt"
    if edit is None:
        return path
    state = torch.load(path, weights_only=True)["model"]
    edit(state)
    torch.save({"model": state}, tmp_path / "edited.pt")
    return tmp_path / "edited.pt"


# ---------------------------------------------------------------------------------------------------- official files


@pytest.mark.parametrize("layout", ["new", "old"])
def test_single_task_matches_the_official_code(layout):
    file = np.load(FIXTURES / "official_tiny_single_golden.npz")
    want, wm = golden(file), load_world_model(tiny(layout, task_set="single"))
    z, a = assert_matches(wm, want)
    torch.testing.assert_close(wm.q(z, a, target=True), want("q_target_values")[..., 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wm.policy(z)[1], want("pi_log_std"), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wm.q(z, a), wm.q(z, a, target=True), atol=1e-3)  # else the line above says nothing
    torch.testing.assert_close(two_hot(want("twohot_x")[:, 0]), want("twohot"), rtol=1e-5, atol=1e-5)
    assert (wm.config.obs_dim, wm.config.action_dim, wm.config.num_q, wm.config.mlp_dim) == (24, 6, 5, 32)
    assert not wm.training and not any(p.requires_grad for p in wm.parameters())


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_multi_task_matches_the_official_code(layout, task):
    file = np.load(FIXTURES / "official_tiny_mt30_golden.npz")
    want, wm = golden(file, task), load_world_model(tiny(layout), task=task)
    z, a = assert_matches(wm, want)
    torch.testing.assert_close(wm.q(z, a, target=True), want("q_target_values")[..., 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wm.policy(z)[1], want("pi_log_std")[:, : wm.action_dim], rtol=1e-5, atol=1e-5)
    assert (wm.native_obs_dim, wm.native_action_dim) == TINY_TASKS[task] and wm.task == task


@needs_real
@pytest.mark.parametrize("task", ["walker-walk", "reacher-easy", "cartpole-swingup", "finger-turn-easy"])
def test_trained_model_matches_the_official_code(task):
    file = np.load(REAL.with_name("tdmpcopt_mt30_1m_golden.npz"))
    wm = load_world_model(REAL, task=task)
    # The policy is saturated: the official float32 outputs are themselves 3e-5 away from float64 ones.
    assert_matches(wm, golden(file, task), rtol=1e-5, atol=1e-4)
    assert wm.encode(golden(file, task)("obs")).dtype == torch.float32


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize("task", ["reacher-easy", "finger-turn-easy"])
def test_trained_model_plays(task):
    """Most start states: the weights fail from a few of them (reacher-easy, seed 0), with the standard budget too."""
    planner = MPPI(load_world_model(REAL, task=task), PlannerConfig.budget(64, 2))
    returns = [e.rewards.sum() for e in play(planner, task, seeds=list(range(5)))]
    assert np.median(returns) >= 900


def test_padding_with_zeros_changes_nothing():
    wm = load_world_model(tiny(), task="cartpole-swingup")
    obs, action = torch.randn(4, 5), torch.rand(4, 1)
    padded_obs, padded = torch.cat([obs, torch.zeros(4, 19)], 1), torch.cat([action, torch.zeros(4, 5)], 1)
    z = wm.encode(obs)
    assert torch.equal(z, wm.encode(padded_obs)) and torch.equal(wm.next(z, action), wm.next(z, padded))
    assert torch.equal(wm.q(z, action), wm.q(z, padded)) and torch.equal(wm.reward(z, action), wm.reward(z, padded))
    assert wm.policy(z)[0].shape == wm.policy_sample(z, torch.randn(4, 1)).shape == (4, 1)
    for width in (4, 6, 23, 25):
        with pytest.raises(ValueError, match="observations 5 wide, or 24 wide with padding"):
            wm.encode(torch.zeros(2, width))
    with pytest.raises(ValueError, match="actions 1 wide"):
        wm.next(z, torch.zeros(4, 2))


def test_task_embeddings_longer_than_one_are_rescaled():
    state = official_weights.read(tiny())
    rows = state["_task_emb.weight"]

    def bias(norm):
        scaled = state | {"_task_emb.weight": rows * norm / rows.norm(dim=1, keepdim=True)}
        return official_weights.convert(scaled, tiny(), "fish-swim")[1]["pi.0.bias"]

    torch.testing.assert_close(bias(3.0), bias(1.0), rtol=0, atol=1e-6)
    assert (bias(0.5) - bias(1.0)).abs().max() > 1e-3


def test_action_masks_are_rebuilt_from_the_task_list():
    file = np.load(FIXTURES / "official_tiny_mt30_golden.npz")
    assert official_weights.MT30 == file["tasks"].tolist()
    for task, dim in zip(file["tasks"].tolist(), file["action_dims"].tolist(), strict=True):
        assert load_world_model(tiny("new"), task=task).native_action_dim == dim  # the file's own masks
        if not task.startswith("reacher-three"):  # three joints; the made-up masks of the fixture say two
            assert load_world_model(tiny("old"), task=task).native_action_dim == dim


def test_the_dimension_table_agrees_with_the_simulator():
    for task in set(official_weights.MT30) & set(task_names()):
        env = make_env(task, 0)
        dimensions = (env.observation_space.shape[0], env.action_space.shape[0])
        assert official_weights.task_dimensions(task) == dimensions, task
    assert len(official_weights.MT80) == 80 == len(set(official_weights.MT80))
    assert official_weights.task_dimensions("mw-reach-wall") == (39, 4)
    assert official_weights.task_dimensions("reacher-three-hard") == (8, 3)


def test_discount_follows_the_episode_length():
    assert load_world_model(tiny(), task="walker-walk").config.discount == pytest.approx(0.99)


def test_a_task_must_be_named_and_known():
    with pytest.raises(CheckpointError, match="30 tasks; pass task= one of: walker-stand, .*, pendulum-spin"):
        load_world_model(tiny())
    with pytest.raises(CheckpointError, match=r"official_tiny_mt30_new.*Did you mean walker-walk"):
        load_world_model(tiny(), task="walker-wakl")
    with pytest.raises(CheckpointError, match="24 observations and 6 actions, but cartpole-swingup has 5 and 1"):
        load_world_model(tiny(task_set="single"), task="cartpole-swingup")
    assert load_world_model(tiny(task_set="single"), task="walker-run").task == "walker-run"


EDITS = {
    "missing": (lambda s: s.pop("_dynamics.1.ln.bias"), "no tensor '_dynamics.1.ln.bias'"),
    "missing q": (lambda s: s.pop("_target_Qs_params.1.bias"), "no tensor '_target_Qs_params.1.bias'"),
    "missing encoder layer": (lambda s: s.pop("_encoder.state.0.weight"), "no tensor '_encoder.state.1?0?.weight'"),
    "extra": (lambda s: s.update({"_critic.weight": torch.zeros(2)}), "a tensor '_critic.weight'"),
    "ill-shaped": (lambda s: s.update({"_pi.1.weight": torch.ones(32, 31)}), r"'_pi.1.weight' has shape \(32, 31\)"),
    "too flat": (lambda s: s.update({"_Qs.params.2.weight": torch.ones(3)}), r"'_Qs.params.2.weight' has shape \(3,\)"),
    "integers": (lambda s: s.update({"_pi.0.bias": torch.zeros(32, dtype=torch.int8)}), "'_pi.0.bias' is torch.int8"),
    "nan": (lambda s: s["_pi.1.weight"].fill_(torch.nan), "'_pi.1.weight' holds values that are not finite"),
    "not a tensor": (lambda s: s.update({"_pi.1.weight": [1.0]}), "'_pi.1.weight' is a list"),
    "pixels": (lambda s: s.update({"_encoder.rgb.2.weight": torch.zeros(3)}), "pixel encoder"),
    "masks": (lambda s: s["_action_masks"].copy_(s["_action_masks"].flip(1)), "'_action_masks' is not 30 rows"),
    "task count": (lambda s: s.update({"_task_emb.weight": torch.zeros(7, 96)}), "'_task_emb.weight' has 7 tasks"),
}


@pytest.mark.parametrize("name", EDITS)
def test_wrong_official_files_are_refused_with_file_and_key(name, tmp_path):
    edit, message = EDITS[name]
    with pytest.raises(CheckpointError, match=f"edited.pt.*{message}"):
        load_world_model(tiny("new", edit, tmp_path), task="walker-walk")


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"model": {"_pi.0.weight": Payload(tmp_path / "ran")}}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=f"{name}.*(refused|cannot be read)"):
            load_world_model(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = tiny().read_bytes()
    contents = {"cut.pt": whole[: len(whole) // 2], "empty.pt": b"", "text.pt": b"hello", "half.safetensors": b"\x10"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name in (*contents, "list.pt", "nothing.pt", "foreign.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_world_model(tmp_path / name)
    with pytest.raises(CheckpointError, match="there is no teacher 'no-such'"):
        load_world_model("no-such")


# --------------------------------------------------------------------------------------------------------- our files


def small_model(**changes):
    torch.manual_seed(3)
    wm = WorldModel(WorldModelConfig(5, 2, enc_dim=16, mlp_dim=16, latent_dim=16, num_enc_layers=2, num_q=2, **changes))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return wm


def test_round_trip_is_exact_and_half_is_close(tmp_path):
    wm = small_model(discount=0.95)
    save_world_model(wm, tmp_path / "full.safetensors")
    save_world_model(wm, tmp_path / "half.safetensors", half=True, targets=False)
    full, half = (load_world_model(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert full.config == half.config == wm.config and not full.training
    for key, value in wm.state_dict().items():
        assert torch.equal(full.state_dict()[key], value), key
        assert half.state_dict()[key].dtype == torch.float32
    assert torch.equal(half.pi[0].weight, wm.pi[0].weight.half().float())
    assert torch.equal(half.target_q_heads.layers[0].weight, half.q_heads.layers[0].weight)  # targets were left out
    assert (tmp_path / "half.safetensors").stat().st_size < 0.5 * (tmp_path / "full.safetensors").stat().st_size


def test_a_bound_model_keeps_its_task_and_padding(tmp_path):
    wm, path = load_world_model(tiny(), task="cartpole-swingup"), tmp_path / "bound.safetensors"
    save_world_model(wm, path)
    again, obs = load_world_model(path), torch.randn(3, 5)
    assert again.task == "cartpole-swingup" and torch.equal(again.encode(obs), wm.encode(obs))
    assert (again.native_obs_dim, again.native_action_dim) == (5, 1)
    with pytest.raises(CheckpointError, match="holds weights for cartpole-swingup, not for walker-walk"):
        load_world_model(path, task="walker-walk")


def test_shipped_names_come_before_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.paths, "TEACHERS", tmp_path)
    save_world_model(small_model(), tmp_path / "walker-walk-1m-1.safetensors")
    assert checkpoints.shipped_teachers() == ["walker-walk-1m-1"]
    assert load_world_model("walker-walk-1m-1").action_dim == 2
    with pytest.raises(CheckpointError, match="shipped teachers are walker-walk-1m-1"):
        load_world_model("walker-walk-1m-2")


def test_wrong_files_of_ours_are_refused_with_file_and_key(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_world_model(small_model(), path)
    tensors, about = load_file(path), {"format": checkpoints.FORMAT, "task": ""}
    config = json.dumps(about | {"config": WorldModelConfig(5, 2, 16, 16, 16, 2, 2).__dict__})
    cases = [
        (tensors | {"pi.0.bias": torch.full((16,), torch.inf)}, config, "'pi.0.bias' holds values that are not finite"),
        (tensors | {"pi.0.bias": torch.zeros(15)}, config, "'pi.0.bias' has shape"),
        ({k: v for k, v in tensors.items() if k != "pi.0.bias"}, config, "no tensor 'pi.0.bias'"),
        (tensors | {"pi.9.bias": torch.zeros(1)}, config, "'pi.9.bias' that this model does not know"),
        (tensors, json.dumps(about | {"config": {"obs_dim": 5}}), "'config' cannot be used"),
        (tensors, json.dumps({"format": "other/1"}), "of format 'other/1'"),
        (tensors, "{", "'config' cannot be used"),
    ]
    for content, settings, message in cases:
        save_file(content, path, metadata={"world_model": settings})
        with pytest.raises(CheckpointError, match=f"ours.safetensors.*{message}"):
            load_world_model(path)
