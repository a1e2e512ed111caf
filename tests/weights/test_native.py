"""Weights: official files against outputs of the official code, our own files, and everything that must be refused."""

import dataclasses
import json
import pickle
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lib.config import ConfigError, PlannerConfig, discount_for
from lib.environments import EPISODE_DECISIONS, make_env, task_names
from lib.planner import MPPI
from lib.records.paths import ROOT
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import record
from lib.weights import native as checkpoints
from lib.weights import official as official_weights
from lib.weights.native import CheckpointError, load_world_model, resolve_device, save_world_model
from lib.world_model import two_hot
from tests.tiny import tiny_model

FIXTURES = ROOT / "tests" / "fixtures"
REAL = ROOT.parent / "shared" / "fixtures" / "tdmpcopt_mt30_1m_fp16.pt"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="the trained mt30 model is not on this machine")
# The tasks that are compared with the official code, and their dimensions; None: the single-task model.
TINY_TASKS = {None: (24, 6), "walker-walk": (24, 6), "cartpole-swingup": (5, 1), "pendulum-spin": (3, 1)}


def golden(file, task=None):
    prefix = f"{task.replace('-', '_')}_" if task else ""
    return lambda key: torch.from_numpy(file[key if key in ("obs", "action") else prefix + key])


assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def assert_matches(wm, want, policy_atol=1e-5):
    """Every output of the model against the official one; padded dimensions of the policy are left out."""
    z, a = wm.encode(want("obs")), want("action")
    assert_close(z, want("z"))
    assert_close(wm.next(z, a), want("next_z"))
    assert_close(wm.reward(z, a), want("reward")[..., 0])
    assert_close(wm.q(z, a), want("q_values")[..., 0])
    assert_close(wm.policy(z)[0], want("pi_mean")[:, : wm.action_dim], atol=policy_atol)
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


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_outputs_match_those_of_the_official_code(layout, task):
    task_set = "mt30" if task else "single"
    file = np.load(FIXTURES / f"official_tiny_{task_set}_golden.npz")
    want, wm = golden(file, task), load_world_model(tiny(layout, task_set=task_set), task=task)
    z, a = assert_matches(wm, want)
    target = wm.q(z, a, target=True)
    assert_close(target, want("q_target_values")[..., 0])
    assert not torch.allclose(wm.q(z, a), target, atol=1e-3)  # else the line above says nothing
    assert_close(wm.policy(z)[1], want("pi_log_std")[:, : wm.action_dim])
    if not task:
        assert_close(two_hot(want("twohot_x")[:, 0]), want("twohot"))
    assert (wm.native_obs_dim, wm.action_dim) == TINY_TASKS[task] and wm.task == task
    assert (wm.config.num_q, wm.config.mlp_dim) == (2 if task else 5, 32)
    assert not wm.training and not any(p.requires_grad for p in wm.parameters())


def test_outputs_of_an_episodic_agent_match_those_of_the_official_code():
    wm, want = (
        load_world_model(tiny(task_set="episodic")),
        golden(np.load(FIXTURES / "official_tiny_episodic_golden.npz")),
    )
    z, a = wm.encode(want("obs")), want("actions")[0]
    assert_close(z, want("z"))
    assert_close(wm.next(z, a), want("next_z"))
    assert_close(wm.reward(z, a), want("reward")[..., 0])
    assert_close(wm.q(z, a), want("q_values")[..., 0])
    assert_close(wm.termination_logit(z), want("termination_logit")[..., 0])
    assert_close(wm.termination(z), want("termination")[..., 0])


def test_an_agent_of_another_environment_has_the_discount_of_its_episodes_or_is_refused():
    path = tiny(task_set="episodic")
    assert load_world_model(path, task="gym:Hopper-v5").config.discount == discount_for(1000) == 0.995
    sentence = "takes 11 observations and 3 actions, but gym:HalfCheetah-v5 has 17 and 6; give the environment"
    with pytest.raises(CheckpointError, match=sentence):
        load_world_model(path, task="gym:HalfCheetah-v5")


def test_the_termination_head_of_many_tasks_reads_the_task(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def with_head(state):
        dims = [32 + 96, 32, 32, 1]
        for key, shape in official_weights._layers("_termination", dims, False).items():
            state[key] = torch.randn(shape, generator=generator)

    path = tiny(edit=with_head, tmp_path=tmp_path)
    wm, state = load_world_model(path, task="walker-walk"), torch.load(path, weights_only=True)["model"]
    z, task = torch.rand(5, 32, generator=generator), state["_task_emb.weight"][1]
    x = torch.cat([z, (task / max(task.norm(), 1.0)).expand(5, -1)], -1)
    for i in range(2):
        part = {name: state[f"_termination.{i}.{name}"] for name in ("weight", "bias", "ln.weight", "ln.bias")}
        x = F.linear(x, part["weight"], part["bias"])
        x = F.mish(F.layer_norm(x, x.shape[-1:], part["ln.weight"], part["ln.bias"]))
    x = F.linear(x, state["_termination.2.weight"], state["_termination.2.bias"])
    assert_close(wm.termination_logit(z), x[:, 0])


@needs_real
@pytest.mark.parametrize("task", ["walker-walk", "reacher-easy", "cartpole-swingup", "finger-turn-easy"])
def test_trained_model_matches_the_official_code(task):
    file = np.load(REAL.with_name("tdmpcopt_mt30_1m_golden.npz"))
    wm = load_world_model(REAL, task=task)
    # Means reach 79 before they are squashed: on walker-walk the official float32 ones are 3e-5 from float64 ones.
    assert_matches(wm, golden(file, task), policy_atol=5e-5 if task == "walker-walk" else 1e-5)
    assert wm.encode(golden(file, task)("obs")).dtype == torch.float32


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize("task", ["reacher-easy", "finger-turn-easy"])
def test_trained_model_plays(task):
    """Most start states: the weights fail from a few of them (reacher-easy, seed 0), with the standard budget too."""
    planner = MPPI(load_world_model(REAL, task=task), PlannerConfig.budget(64, 2))
    episodes = record(ReplanningController(planner), partial(make_env, task), range(5), EPISODE_DECISIONS)
    returns = [e.rewards.sum() for e in episodes]
    assert np.median(returns) >= 900


def official_state(tasks, task_dim, layers, obs=39, actions=6, enc=24, mlp=40, latent=16, heads=3, bins=11):
    """A random official state dict in the new layout, of widths that all differ."""
    z, dims, state = latent + task_dim, official_weights._layers, {}
    shapes = dims("_encoder.state", [obs + task_dim, *[enc] * (layers - 1), latent], True)
    shapes |= dims("_dynamics", [z + actions, mlp, mlp, latent], True)
    shapes |= dims("_reward", [z + actions, mlp, mlp, bins], False)
    shapes |= dims("_pi", [z, mlp, mlp, 2 * actions], False)
    for prefix in ("_Qs.params", "_target_Qs_params"):
        shapes |= dims(prefix, [z + actions, mlp, mlp, bins], False, (heads,))
    generator = torch.Generator().manual_seed(0)
    for key, shape in shapes.items():
        state[key] = torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if key.endswith("weight") else 1)
    if tasks:
        state["_task_emb.weight"] = torch.randn(len(tasks), task_dim, generator=generator)  # rows far longer than 1
    return state


def official_forward(state, prefix, x, last=None):
    """A network as the official code runs it, the task's embedding among its inputs. (B, in) -> (B, out)."""
    names = [f"{prefix}.{i}" for i in range(9) if f"{prefix}.{i}.weight" in state]
    for name in names:
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        if f"{name}.ln.weight" in state:
            x = F.layer_norm(x, x.shape[-1:], state[f"{name}.ln.weight"], state[f"{name}.ln.bias"])
            simplices = last == "simnorm" and name == names[-1]
            x = x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2) if simplices else F.mish(x)
    return x


@pytest.mark.parametrize(
    ("task_set", "task_dim", "layers"), [("MT80", 96, 5), ("MT80", 64, 3), ("MT30", 64, 4), ("MT30", 7, 2)]
)
def test_every_task_set_and_task_width_matches_the_unfolded_forward(task_set, task_dim, layers, tmp_path):
    tasks = getattr(official_weights, task_set)
    state = official_state(tasks, task_dim, layers)
    torch.save({"model": state}, tmp_path / "many.pt")
    for task in ("walker-run", "cup-spin", tasks[-1]):
        wm = load_world_model(tmp_path / "many.pt", task=task)
        obs_dim, action_dim = official_weights.task_dimensions(task)
        assert (wm.native_obs_dim, wm.action_dim, wm.latent_dim) == (obs_dim, action_dim, 16)
        assert wm.config.discount == pytest.approx(0.95 if task.startswith("mw-") else 0.99)
        obs, action = torch.randn(5, obs_dim), torch.rand(5, action_dim)
        row = state["_task_emb.weight"][tasks.index(task)]
        embedding = (row / max(row.norm(), 1.0)).expand(5, -1)
        padded = F.pad(obs, (0, 39 - obs_dim))
        z = official_forward(state, "_encoder.state", torch.cat([padded, embedding], -1), "simnorm")
        za = torch.cat([z, embedding, F.pad(action, (0, 6 - action_dim))], -1)
        assert_close(wm.encode(obs), z)
        assert_close(wm.next(z, action), official_forward(state, "_dynamics", za, "simnorm"))
        assert_close(wm.reward_logits(z, action), official_forward(state, "_reward", za))
        mean = official_forward(state, "_pi", torch.cat([z, embedding], -1))[:, :action_dim]
        assert_close(wm.policy_parameters(z)[0], mean)
        for target, prefix in ((False, "_Qs.params"), (True, "_target_Qs_params")):
            for head in range(3):
                one = {k: v[head] if k.startswith(prefix) else v for k, v in state.items()}
                assert_close(wm.q_logits(z, action, target)[head], official_forward(one, prefix, za))


def test_single_task_weights_of_larger_bodies_load_and_must_fit():
    for task in ("dog-run", "humanoid-walk", "quadruped-walk"):
        obs, actions = official_weights.task_dimensions(task)
        state = official_state([], 0, 2, obs=obs, actions=actions)
        config, _ = official_weights.convert(state, tiny(), task)
        assert (config.obs_dim, config.action_dim, config.obs_padding, config.action_padding) == (obs, actions, 0, 0)
        with pytest.raises(CheckpointError, match=f"takes {obs} observations and {actions} actions, but walker-run"):
            official_weights.convert(state, tiny(), "walker-run")
        with pytest.raises(CheckpointError, match=f"24 observations and 6 actions, but {task} has {obs} and {actions}"):
            load_world_model(tiny(task_set="single"), task=task)


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
    new, old = official_weights.read(tiny("new")), official_weights.read(tiny("old"))
    for task, dim in zip(file["tasks"].tolist(), file["action_dims"].tolist(), strict=True):
        if not task.startswith("reacher-three"):  # see test_the_three_link_reacher_has_three_actions
            assert official_weights.convert(new, tiny("new"), task)[0].action_dim == dim  # the file's own masks
            assert official_weights.convert(old, tiny("old"), task)[0].action_dim == dim


def test_the_three_link_reacher_has_three_actions():
    """The masks of the random fixture go by domain and say two, which its simulator is not; the table is right."""
    assert official_weights.task_dimensions("reacher-three-easy") == (3 + 2 + 3, 3)
    assert load_world_model(tiny("old"), task="reacher-three-easy").action_dim == 3  # no masks in the file
    with pytest.raises(CheckpointError, match="gives reacher-three-easy 2 actions, but its simulator takes 3"):
        load_world_model(tiny("new"), task="reacher-three-easy")
    masks = [[1, 1, 1, 0, 0, 0] if "three" in task else [1, 1, 0, 0, 0, 0] for task in official_weights.MT30]
    state = official_weights.read(tiny("new")) | {"_action_masks": torch.tensor(masks).float()}
    assert official_weights.convert(state, tiny("new"), "reacher-three-hard")[0].action_dim == 3


def test_masks_of_another_body_than_the_simulators_are_refused(tmp_path):
    """Of a task that has a simulator here, and only of the one that is asked for."""

    def shorten(state):
        state["_action_masks"][official_weights.MT30.index("cheetah-run"), 4:] = 0

    path = tiny("new", shorten, tmp_path)
    with pytest.raises(CheckpointError, match="edited.pt: '_action_masks' gives cheetah-run 4 actions, .* takes 6"):
        load_world_model(path, task="cheetah-run")
    assert load_world_model(path, task="walker-run").action_dim == 6


def test_the_dimension_table_agrees_with_the_simulator():
    for task in {*official_weights.MT30, "dog-run", "humanoid-run", "quadruped-run"} & set(task_names()):
        env = make_env(task, 0)
        dimensions = (env.observation_space.shape[0], env.action_space.shape[0])
        assert official_weights.task_dimensions(task) == dimensions, task
    assert len(official_weights.MT80) == 80 == len(set(official_weights.MT80))
    assert official_weights.task_dimensions("mw-reach-wall") == (39, 4)
    assert official_weights.task_dimensions("reacher-three-hard") == (8, 3)


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
    "nan": (lambda s: s["_pi.1.weight"].fill_(torch.nan), "'_pi.1.weight' holds values that are not finite"),
    "overflow": (
        lambda s: s.update({"_pi.1.bias": torch.ones(32).double() * 1e300}),
        "'_pi.1.bias' .*not finite in float32",
    ),
    "not a tensor": (lambda s: s.update({"_pi.1.weight": [1.0]}), "'_pi.1.weight' is a list"),
    "pixels": (lambda s: s.update({"_encoder.rgb.2.weight": torch.zeros(3)}), "pixel encoder"),
    "masks": (lambda s: s["_action_masks"].copy_(s["_action_masks"].flip(1)), "'_action_masks' is not 30 rows"),
    "mask type": (lambda s: s.update({"_action_masks": s["_action_masks"] + 0j}), "'_action_masks' is not 30 rows"),
    "task count": (lambda s: s.update({"_task_emb.weight": torch.zeros(7, 96)}), "'_task_emb.weight' has 7 tasks"),
    "log std": (lambda s: s.update({"log_std_min": torch.tensor(torch.nan)}), "'log_std_min' is .*not one finite"),
    "log std span": (lambda s: s.update({"log_std_dif": torch.tensor(0)}), "'log_std_dif' is 0.0, but it has to be"),
    "before release": (lambda s: s.update({"_dynamics.0.0.weight": torch.ones(2)}), "from before the release"),
}
# Kinds of tensors that are no weights, whatever they hold: key '_pi.1.weight', (32, 32), becomes one of these.
KINDS = {
    "int8": (lambda w: w.to(torch.int8), "is torch.int8; save weights as floating point"),
    "float8": (lambda w: w.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn; save weights as floating point"),
    "bool": (lambda w: w > 0, "is torch.bool"),
    "complex": (lambda w: w + 0j, "is torch.complex64"),
    "sparse": (lambda w: w.to_sparse(), r"is not a plain tensor \(sparse_coo on cpu\)"),
    "meta": (lambda w: w.to("meta"), r"is not a plain tensor \(strided on meta\)"),
    "quantised": (lambda w: torch.quantize_per_tensor(w.clone(), 0.1, 0, torch.qint8), "is quantised"),
    "repeated": (lambda w: torch.ones(1, 1).expand(32, 32), "declares 1,024 numbers but does not hold as many"),
    "enormous": (lambda w: torch.ones(1, 1).expand(10**6, 10**6), "declares 1,000,000,000,000 numbers"),
}


@pytest.mark.parametrize("name", EDITS)
def test_wrong_official_files_are_refused_with_file_and_key(name, tmp_path):
    edit, message = EDITS[name]
    with pytest.raises(CheckpointError, match=f"edited.pt.*{message}"):
        load_world_model(tiny("new", edit, tmp_path), task="walker-walk")


@pytest.mark.filterwarnings("ignore:.*quantize")  # torch is about to drop quantised tensors
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_plain_weights_are_refused_with_their_key(kind, tmp_path):
    change, message = KINDS[kind]
    path = tiny("new", lambda s: s.update({"_pi.1.weight": change(s["_pi.1.weight"])}), tmp_path)
    with pytest.raises(CheckpointError, match=f"edited.pt: '_pi.1.weight' {message}"):
        load_world_model(path, task="walker-walk")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_cast(dtype, tmp_path):
    def cast(state):
        state.update({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})

    exact, wm = (load_world_model(p, task="walker-walk") for p in (tiny(), tiny("new", cast, tmp_path)))
    assert all(value.dtype == torch.float32 for value in wm.state_dict().values())
    torch.testing.assert_close(wm.pi[1].weight, exact.pi[1].weight, rtol=0.01, atol=0.0)


def rezipped(path, compression=zipfile.ZIP_STORED, edit=lambda name, data: data):
    """The archive of the tiny single-task model written again, with `edit(name, bytes)` in place of each member."""
    with zipfile.ZipFile(tiny(task_set="single")) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return path


def test_archives_cannot_hold_or_declare_more_than_their_bytes(tmp_path):
    def grow(name, data):
        return data + bytes(10**7) if name.endswith("pkl") else data

    def declare(name, data):  # the pickled shape (32, 32) of a tensor becomes (2²⁰, 32): 128 MB, held in 4 kB
        assert not name.endswith("pkl") or b"K K \x86" in data
        return data.replace(b"K K \x86", b"J\x00\x00\x10\x00K \x86", 1) if name.endswith("pkl") else data

    bomb = rezipped(tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED, grow)
    assert bomb.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="bomb.pt is a compressed or overlapping archive"):
        load_world_model(bomb)
    with pytest.raises(CheckpointError, match="huge.pt cannot be read as a torch file"):
        load_world_model(rezipped(tmp_path / "huge.pt", edit=declare))
    assert load_world_model(rezipped(tmp_path / "same.pt")).action_dim == 6
    legacy = tmp_path / "legacy.pt"
    torch.save(torch.load(tiny(), weights_only=True), legacy, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="legacy.pt is a torch file from before version 1.6; load it and"):
        load_world_model(legacy, task="walker-walk")


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
    for name in ("x" * 5000, "a\0b", "../" * 2000):
        with pytest.raises(CheckpointError, match="there is no teacher '") as error:
            load_world_model(name)
        assert len(str(error.value)) < 2000


def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match="^device='cuda:2' is not here: torch finds 2 GPUs; use auto or cpu.$"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="^device='cuda' is not here: torch finds no GPUs; use auto or cpu.$"):
        load_world_model("walker-walk-1m-1", device="cuda")


FOREIGN = {  # what people take for weights: bytes, and what they are called
    "page": (b"\n<!DOCTYPE html>\n<html lang='en'>", "is a saved web page; download the file itself"),
    "old page": (b"\xef\xbb\xbf<HTML><head>", "is a saved web page"),
    "denied": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is a saved web page"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "is a git-lfs pointer.*lfs pull",
    ),
    "message": (
        b'{"error": "Repository not found"}',
        r"is a text that begins with '\{\\?\"error.*download the file itself",
    ),
    "pickle": (pickle.dumps({"pi.0.bias": [0.0]}), "is a pickle that torch did not write; refused"),
    "packed": (b"\x1f\x8b\x08\x00 ...", "is packed with gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n ...", "is an HDF5 file"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_that_hold_no_weights_are_called_what_they_are(kind, ending, tmp_path):
    content, message = FOREIGN[kind]
    path = tmp_path / f"file.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"file\.{ending} {message}") as caught:
        load_world_model(path)
    assert "\n" not in str(caught.value)


def test_archives_are_called_what_they_are(tmp_path):
    np.savez(tmp_path / "arrays.npz", pi=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as program:  # as torch.jit.save writes them
        for part in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            program.writestr(f"program/{part}", b"")
    save_world_model(tiny_model(), tmp_path / "ours.safetensors")
    for name, source, message in (
        ("arrays.pt", tmp_path / "arrays.npz", "a zip archive that torch did not write: it holds 'pi.npy' and no data"),
        ("script.pt", tmp_path / "program.pt", "a TorchScript program; refused"),
        ("named.safetensors", tiny(), "a zip archive, as torch writes them; give its name the ending .pt"),
        ("named.pt", tmp_path / "ours.safetensors", "a safetensors file; give its name that ending"),
    ):
        (tmp_path / name).write_bytes(source.read_bytes())
        with pytest.raises(CheckpointError, match=f"{name} is {message}"):
            load_world_model(tmp_path / name)
    (tmp_path / "cut.pt").write_bytes(tiny().read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut.pt is a zip archive that is cut short or damaged"):
        load_world_model(tmp_path / "cut.pt")


# ------------------------------------------------------------------------------------ what wrappers do to the names

WRAPPED = ["_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod."]


def same_weights(a, b):
    return a.config == b.config and all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_wrapped_official_weights_are_the_bare_ones(layout, prefix, tmp_path, capsys):
    """Under "model", under Lightning's "state_dict", and bare; what is no weight is still left out."""
    state = torch.load(tiny(layout), weights_only=True)["model"]
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    whole = load_world_model(tiny(layout), task="walker-walk")
    lightning = {"state_dict": wrapped, "epoch": 3, "optimizer_states": [{"state": {}}]}
    for name, content in {"model": {"model": wrapped}, "lightning": lightning, "bare": wrapped}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        for _ in range(2):
            assert same_weights(load_world_model(tmp_path / f"{name}.pt", task="walker-walk"), whole)
        said = f"{name}.pt: '{prefix}' before the names of its tensors is a wrapper's and left out\n"
        err = capsys.readouterr().err
        assert err.endswith(said) and err.count("\n") == 1


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrapped_weights_of_ours_are_the_bare_ones(prefix, tmp_path, capsys):
    wm, path = tiny_model(), tmp_path / "ours.safetensors"
    save_world_model(wm, path, targets=False)
    save_file({f"{prefix}{k}": v for k, v in load_file(path).items()}, path, metadata={"world_model": told()})
    again = load_world_model(path)
    assert torch.equal(again.pi[0].weight, wm.pi[0].weight) and f"'{prefix}' before" in capsys.readouterr().err
    assert torch.equal(again.target_q_heads.layers[0].weight, wm.q_heads.layers[0].weight)  # targets were left out


def test_a_compiled_model_is_saved_and_loaded(tmp_path):
    wm = tiny_model()
    save_world_model(torch.compile(wm), tmp_path / "compiled.safetensors")
    assert same_weights(load_world_model(tmp_path / "compiled.safetensors"), wm)


def test_two_models_in_one_file_are_refused(tmp_path):
    path = tiny("new", lambda s: s.update({"module._pi.1.bias": s["_pi.1.bias"]}), tmp_path)
    with pytest.raises(CheckpointError, match="edited.pt has '_pi.1.bias' twice, once as 'module._pi.1.bias'"):
        load_world_model(path, task="walker-walk")


# --------------------------------------------------------------------------------------------------------- our files


def test_round_trip_is_exact_and_half_is_close(tmp_path):
    wm = tiny_model()
    wm.config = dataclasses.replace(wm.config, discount=0.95)
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
    assert (again.native_obs_dim, again.action_dim) == (5, 1)
    with pytest.raises(CheckpointError, match="holds weights for cartpole-swingup, not for walker-walk"):
        load_world_model(path, task="walker-walk")


def test_shipped_names_come_before_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(tmp_path))
    save_world_model(tiny_model(), tmp_path / "walker-walk-1m-1.safetensors")
    assert checkpoints.shipped_teachers() == ["walker-walk-1m-1"]
    assert load_world_model("walker-walk-1m-1").action_dim == 2
    with pytest.raises(CheckpointError, match="shipped teachers are walker-walk-1m-1"):
        load_world_model("walker-walk-1m-2")


def told(**changes):
    about = {"format": checkpoints.FORMAT, "task": "", "config": vars(tiny_model().config) | changes}
    return json.dumps(about)


IMPOSSIBLE = [("obs_dim", "5"), ("obs_dim", -5), ("mlp_dim", 10**9), ("num_enc_layers", 10**5), ("simnorm_dim", 3)]
IMPOSSIBLE += [("latent_dim", True), ("discount", float("nan"))]
OURS = {  # tensors that are replaced or (None) taken out, settings, message
    "infinite": ({"pi.0.bias": torch.full((16,), torch.inf)}, told(), "'pi.0.bias' holds values that are not finite"),
    "ill-shaped": ({"pi.0.bias": torch.zeros(15)}, told(), "'pi.0.bias' has shape"),
    "missing": ({"pi.0.bias": None}, told(), "no tensor 'pi.0.bias'"),
    "extra": ({"pi.9.bias": torch.zeros(1)}, told(), "'pi.9.bias' that this model does not know"),
    "float8": ({"pi.0.bias": torch.zeros(16).to(torch.float8_e4m3fn)}, told(), "'pi.0.bias' is torch.float8_e4m3"),
    "int8": ({"pi.0.bias": torch.zeros(16, dtype=torch.int8)}, told(), "'pi.0.bias' is torch.int8"),
    "few settings": ({}, json.dumps(json.loads(told()) | {"config": {"obs_dim": 5}}), "'config' cannot be used"),
    "no settings": ({}, json.dumps({"format": checkpoints.FORMAT}), "'config' cannot be used"),
    "other format": ({}, json.dumps({"format": "other/1"}), "of format 'other/1'"),
    "cut short": ({}, "{", "'config' cannot be used"),
    "deep": ({}, "[" * 100_000, "'config' cannot be used"),
    # What is declared is compared before any of it is made: layers 2¹⁹ wide would take terabytes.
    "wide": ({}, told(enc_dim=2**19, mlp_dim=2**19), "has shape"),
    **{f"{k}={v}": ({}, told(**{k: v}), f"'config' cannot be used: .*{k}") for k, v in IMPOSSIBLE},
}


@pytest.mark.parametrize("name", OURS)
def test_wrong_files_of_ours_are_refused_with_file_and_key(name, tmp_path):
    (changes, about, message), path = OURS[name], tmp_path / "ours.safetensors"
    save_world_model(tiny_model(), path)
    tensors = {k: v for k, v in (load_file(path) | changes).items() if v is not None}
    save_file(tensors, path, metadata={"world_model": about})
    with pytest.raises(CheckpointError, match=f"ours.safetensors.*{message}"):
        load_world_model(path)


def test_safetensors_of_unknown_or_untrue_headers_are_refused(tmp_path):
    for name, entry in {
        "type": {"dtype": "Q3", "shape": [4], "data_offsets": [0, 4]},
        "beyond": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]},
        "shape": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]},
    }.items():
        header = json.dumps({"x": entry}).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(CheckpointError, match=f"{name}.safetensors is not a whole safetensors file"):
            load_world_model(tmp_path / f"{name}.safetensors")
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="long.safetensors is not a whole safetensors file"):
        load_world_model(tmp_path / "long.safetensors")
