"""Weights in the official TD-MPC2 formats, mapped to a world model of this project (facts: nicklashansen/tdmpc2, MIT).

    config, tensors = convert(read(path), path, task="reacher-easy")

The official code has had two key layouts for its Q heads, and models of one task or of many. A multi-task model appends
an embedding of the task to what each network reads. For one fixed task that is a constant input, so binding a model to
a task *folds* it: the embedding's columns of each first layer, times the embedding, become part of that layer's bias.
What is left is a single-task model whose layers take padded observations and actions, exact up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib.config import ConfigError, WorldModelConfig, discount_for, one_of
from lib.weights.formats import CheckpointError, check_archive, unwrapped

CONVERSION = 1  # raise it when the same file becomes another model: what was made with that is then made again

# ----------------------------------------------------------------------------------------------------- task lists

# Order is the task index of the weights. 19 tasks of the suite, then 11 that the TD-MPC2 authors made.
MT30 = (
    "walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup "
    "cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin "
    "finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards walker-run-backwards "
    "cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump hopper-hop-backwards reacher-three-easy "
    "reacher-three-hard cup-spin pendulum-spin"
).split()
MT80 = MT30 + [  # and the 50 of Meta-World
    f"mw-{name}"
    for name in (
        "assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall "
        "coffee-button coffee-pull coffee-push dial-turn disassemble door-open door-close drawer-close drawer-open "
        "faucet-open "
        "faucet-close hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull peg-insert-side "
        "peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side plate-slide-back "
        "plate-slide-back-side push-back push push-wall reach reach-wall shelf-place soccer stick-push stick-pull "
        "sweep-into sweep window-open window-close bin-picking box-close door-lock door-unlock hand-insert"
    ).split()
]
TASK_SETS = {len(tasks): tasks for tasks in (MT30, MT80)}
SINGLE = (  # tasks that only single-task weights know: with MT30, the 39 of DMControl
    "dog-run dog-stand dog-trot dog-walk humanoid-run humanoid-stand humanoid-walk quadruped-run quadruped-walk"
).split()

# (observation, action) dimensions by the longest prefix of the task's name. The three-link reacher has three joints, so
# three actions and 3 + 2 + 3 observations: angles, vector to the target, velocities.
DIMENSIONS = {
    "acrobot": (6, 1), "cartpole": (5, 1), "cheetah": (17, 6), "cup": (8, 2), "dog": (223, 38), "finger-spin": (9, 2),
    "finger-turn": (12, 2), "fish-swim": (24, 5), "hopper": (15, 4), "humanoid": (67, 21), "mw": (39, 4),
    "pendulum": (3, 1), "quadruped": (78, 12), "reacher": (6, 2), "reacher-three": (8, 3), "walker": (24, 6),
}  # fmt: skip


def task_dimensions(task: str) -> tuple[int, int]:
    """Native (observation, action) dimensions of a task of MT80 or SINGLE."""
    return DIMENSIONS[max((p for p in DIMENSIONS if f"{task}-".startswith(f"{p}-")), key=len)]


# -------------------------------------------------------------------------------------------------------- reading

EMBEDDING = "_task_emb.weight"
PARTS = {"_encoder.state": "encoder", "_dynamics": "dynamics", "_reward": "reward_head", "_pi": "pi"}
PARTS["_termination"] = "termination_head"  # of agents for tasks whose episodes can end early
LAYER = ("weight", "bias", "ln.weight", "ln.bias")
Q_NEW = re.compile(r"(_Qs\.params|_target_Qs_params)\.(\d+)\.(weight|bias|ln\.weight|ln\.bias)")
Q_OLD = re.compile(r"(_Qs|_target_Qs)\.params\.(\d+)")
# Aliases of the live heads, placeholder modules and tensordict bookkeeping: none holds weights of its own.
BOOKKEEPING = re.compile(r"_detach_Qs.*|_(target_)?Qs\.module\..*|_target_Qs\.params\.\d\.\D.*|.*__(batch_size|device)")
BUFFERS = ("_action_masks", "log_std_min", "log_std_dif")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of an official `.pt` file; `CheckpointError` for anything but plain tensors in plain containers.

    Only `weights_only` loading is used: a file that would have to run code to be read is refused, not run.
    """
    check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors and plain containers; refused, as it could run code: save a state dict."
        ) from None
    except Exception as error:  # torch raises many types for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a torch file: {reason}") from None
    if isinstance(state, Mapping):  # under "model" the official code saves it, under "state_dict" Lightning
        state = next((state[k] for k in ("model", "state_dict") if isinstance(state.get(k), Mapping)), state)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f'{path} holds no {{"model": state_dict}}, which is what the official code saves.')
    state = unwrapped({str(key): value for key, value in state.items()}, path)
    state = {key: value for key, value in state.items() if not BOOKKEEPING.fullmatch(key)}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor.")
        _check_plain(key, value, path)
    return state


def _check_plain(key: str, value: Tensor, path: Path) -> None:
    """`CheckpointError` unless the tensor is dense, on the CPU and backed by as many bytes as it says."""
    if value.is_quantized:
        raise CheckpointError(f"{path}: {key!r} is quantised ({value.dtype}); save it as floating point first.")
    if value.layout is not torch.strided or value.is_nested or value.device.type != "cpu":
        kind = "nested" if value.is_nested else f"{value.layout} on {value.device.type}".removeprefix("torch.")
        raise CheckpointError(f"{path}: {key!r} is not a plain tensor ({kind}); save it as a dense one first.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {key!r} declares {value.numel():,} numbers but does not hold as many.")


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple], path: Path) -> None:
    """`CheckpointError` for the first key that is missing, extra, ill-shaped, not a float or not finite in float32."""
    for key in sorted(shapes.keys() - tensors.keys()):
        raise CheckpointError(f"{path} has no tensor {key!r}.")
    for key in sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{path} has a tensor {key!r} that this model does not know.")
    for key, value in tensors.items():
        if tuple(value.shape) != tuple(shapes[key]):
            raise CheckpointError(f"{path}: {key!r} has shape {tuple(value.shape)}, expected {tuple(shapes[key])}.")
        if value.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {key!r} is {value.dtype}; save weights as floating point of 16 to 64 bits.")
        if not torch.isfinite(value.float()).all():
            raise CheckpointError(f"{path}: {key!r} holds values that are not finite in float32.")


def _layers(prefix: str, dims: list[int], normed_last: bool, heads: tuple = ()) -> dict[str, tuple]:
    """Names and shapes of one network in the new layout."""
    shapes = {}
    for i, (a, b) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        normed = normed_last or i < len(dims) - 2
        for name, shape in zip(LAYER if normed else LAYER[:2], ((b, a), (b,), (b,), (b,)), strict=False):
            shapes[f"{prefix}.{i}.{name}"] = (*heads, *shape)
    return shapes


# ----------------------------------------------------------------------------------------------------- converting


def infer(state: Mapping[str, Tensor], path: Path) -> tuple[WorldModelConfig, int, int]:
    """Configuration with full (padded) widths, number of tasks and width of their embedding (0, 0 for one task).

    Every dimension is inferred from the tensors and checked against all others. Raises `CheckpointError`.
    """
    if any(k.startswith("_encoder.rgb.") for k in state):
        raise CheckpointError(f"{path} has a pixel encoder ('_encoder.rgb'); only state observations are supported.")
    if "_dynamics.0.0.weight" in state:
        raise CheckpointError(
            f"{path} has the layout from before the release of TD-MPC2 ('_dynamics.0.0.weight'), which is not "
            "supported; use the weights of another seed."
        )

    def size(key: str, axis: int) -> int:
        if key not in state:
            raise CheckpointError(f"{path} has no tensor {key!r}; it is not an official TD-MPC2 model.")
        if not -state[key].dim() <= axis < state[key].dim():
            raise CheckpointError(f"{path}: {key!r} has shape {tuple(state[key].shape)}, too few dimensions.")
        return state[key].shape[axis]

    old = "_Qs.params.0" in state
    last_q = "_Qs.params.8" if old else "_Qs.params.2.weight"
    encoder_layers = max(sum(bool(re.fullmatch(r"_encoder\.state\.\d+\.weight", k)) for k in state), 2)
    num_q, num_bins = size(last_q, 0), size(last_q, 1)
    enc_dim, latent = size("_encoder.state.0.weight", 0), size(f"_encoder.state.{encoder_layers - 1}.weight", 0)
    mlp_dim, actions = size("_dynamics.0.weight", 0), size("_pi.2.weight", 0) // 2
    num_tasks, task_dim = (size(EMBEDDING, 0), size(EMBEDDING, 1)) if EMBEDDING in state else (0, 0)
    obs = size("_encoder.state.0.weight", 1) - task_dim
    if obs < 1 or actions < 1 or num_q < 2 or num_bins < 2 or latent < 8 or latent % 8 or enc_dim < 1 or mlp_dim < 1:
        raise CheckpointError(
            f"{path}: {obs} observations, {actions} actions, widths {enc_dim} and {mlp_dim}, latent {latent}, {num_q} "
            f"Q heads and {num_bins} bins are not the dimensions of a TD-MPC2 model."
        )

    z, hidden = latent + task_dim, [mlp_dim, mlp_dim]
    shapes = _layers("_encoder.state", [obs + task_dim, *[enc_dim] * (encoder_layers - 1), latent], True)
    shapes |= _layers("_dynamics", [z + actions, *hidden, latent], True)
    shapes |= _layers("_reward", [z + actions, *hidden, num_bins], False)
    shapes |= _layers("_pi", [z, *hidden, 2 * actions], False)
    if episodic := any(k.startswith("_termination.") for k in state):
        shapes |= _layers("_termination", [z, *hidden, 1], False)
    for prefix in ("_Qs.params", "_target_Qs.params" if old else "_target_Qs_params"):
        q = _layers(prefix, [z + actions, *hidden, num_bins], False, (num_q,))
        # The old layout numbers the tensors of all layers in one sequence.
        shapes |= {f"{prefix}.{i}": shape for i, shape in enumerate(q.values())} if old else q
    if EMBEDDING in state:
        shapes[EMBEDDING] = (num_tasks, task_dim)
    check_tensors({k: v for k, v in state.items() if k not in BUFFERS}, shapes, path)
    if EMBEDDING in state and (num_tasks not in TASK_SETS or not task_dim):
        known = " or ".join(map(str, TASK_SETS))
        raise CheckpointError(
            f"{path}: {EMBEDDING!r} has {num_tasks} tasks in {task_dim} columns; known task sets have {known} tasks."
        )
    low, span = _scalar(state, "log_std_min", -10.0, path), _scalar(state, "log_std_dif", 12.0, path)
    if span <= 0:
        raise CheckpointError(f"{path}: 'log_std_dif' is {span}, but it has to be positive.")
    config = WorldModelConfig(
        obs_dim=obs,
        action_dim=actions,
        enc_dim=enc_dim,
        mlp_dim=mlp_dim,
        latent_dim=latent,
        num_enc_layers=encoder_layers,
        num_q=num_q,
        num_bins=num_bins,
        log_std_min=low,
        log_std_max=low + span,
        episodic=episodic,
    )
    return config, num_tasks, task_dim


def convert(
    state: Mapping[str, Tensor], path: Path, task: str | None = None
) -> tuple[WorldModelConfig, dict[str, Tensor]]:
    """Configuration and float32 tensors under this project's names, for weights of one task or bound to `task`.

    Raises `CheckpointError` for what `infer` refuses, and for a task that is missing, unknown or of other dimensions.
    """
    full, num_tasks, task_dim = infer(state, path)
    obs, actions = full.obs_dim, full.action_dim
    tensors = {_our_name(k): v.float() for k, v in state.items() if k != EMBEDDING and k not in BUFFERS}
    native_obs, native_actions = obs, actions
    if task_dim:
        tasks, dims = _tasks_and_dims(num_tasks, state.get("_action_masks"), obs, actions, path)
        index = tasks.index(_choose(task, tasks, path))
        native_obs, native_actions = dims[index]
        if task in MT30 and native_actions != (true := task_dimensions(task)[1]):
            raise CheckpointError(
                f"{path}: '_action_masks' gives {task} {native_actions} actions, but its simulator takes {true}; "
                "these weights are of another body, or damaged."
            )
        _fold(tensors, state[EMBEDDING][index].double(), obs, full.latent_dim)
        rows = torch.arange(2 * actions).view(2, actions)[:, :native_actions].flatten()  # means, then log-stds
        tensors["pi.2.weight"], tensors["pi.2.bias"] = tensors["pi.2.weight"][rows], tensors["pi.2.bias"][rows]
    elif task in (*MT80, *SINGLE) and task_dimensions(task) != (obs, actions):
        theirs = "{} and {}".format(*task_dimensions(task))
        raise CheckpointError(f"{path} takes {obs} observations and {actions} actions, but {task} has {theirs}.")
    config = dataclasses.replace(
        full,
        obs_dim=native_obs,
        action_dim=native_actions,
        obs_padding=obs - native_obs,
        action_padding=actions - native_actions,
        discount=discount_for(100 if task and task.startswith("mw-") else 500),  # decisions of an episode
    )
    return config, tensors


def _scalar(state: Mapping[str, Tensor], key: str, default: float, path: Path) -> float:
    """A one-number buffer, or its official value where older files lack it."""
    value = state.get(key, torch.tensor(default))
    if value.numel() != 1 or value.is_complex() or not math.isfinite(value.item()):
        raise CheckpointError(f"{path}: {key!r} is {value.dtype} of shape {tuple(value.shape)}, not one finite number.")
    return float(value)


def _our_name(key: str) -> str:
    """The name of an official tensor in `WorldModel`."""
    if match := Q_OLD.fullmatch(key):
        heads, rest = match[1], f"{int(match[2]) // 4}.{LAYER[int(match[2]) % 4]}"
    elif match := Q_NEW.fullmatch(key):
        heads, rest = match[1], f"{match[2]}.{match[3]}"
    else:
        part, layer, name = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", key).groups()
        return f"{PARTS[part]}.{layer}.{name}"
    heads = "target_q_heads" if heads.startswith("_target") else "q_heads"
    return f"{heads}.layers.{rest.replace('ln.', 'ln_')}"


def _tasks_and_dims(count: int, masks: Tensor | None, obs: int, actions: int, path: Path) -> tuple[list, list]:
    """The task list of a multi-task model and each task's native dimensions; the file's own action masks come first."""
    tasks = TASK_SETS[count]
    dims = [task_dimensions(t) for t in tasks]
    if masks is not None:
        whole = tuple(masks.shape) == (count, actions) and masks.dtype in FLOATS
        ones = (masks > 0).sum(-1) if whole else []
        if not whole or not torch.equal(masks, (torch.arange(actions) < ones.unsqueeze(-1)).to(masks)):
            raise CheckpointError(f"{path}: '_action_masks' is not {count} rows of {actions} ones followed by zeros.")
        dims = [(o, int(n)) for (o, _), n in zip(dims, ones, strict=True)]
    for task, (o, a) in zip(tasks, dims, strict=True):
        if o > obs or not 0 < a <= actions:
            raise CheckpointError(f"{path} takes {obs} observations and {actions} actions, but {task} has {o} and {a}.")
    return tasks, dims


def _choose(task: str | None, tasks: list[str], path: Path) -> str:
    if task is None:
        raise CheckpointError(f"{path} knows {len(tasks)} tasks; pass task= one of: {', '.join(tasks)}.")
    try:
        return one_of("task", task, tasks)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _fold(tensors: dict[str, Tensor], embedding: Tensor, obs: int, latent: int) -> None:
    """Move a task embedding (T,) from the first layers' inputs into their biases, in place."""
    embedding = embedding / max(float(embedding.norm()), 1.0)  # rows longer than 1 are rescaled when looked up
    starts = {"encoder.0": obs, "dynamics.0": latent, "reward_head.0": latent, "pi.0": latent}
    starts |= {"q_heads.layers.0": latent, "target_q_heads.layers.0": latent}
    starts |= {"termination_head.0": latent} if "termination_head.0.weight" in tensors else {}
    for layer, start in starts.items():
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        columns = weight[..., start : start + len(embedding)].double()
        tensors[f"{layer}.bias"] = (bias.double() + columns @ embedding).float()
        tensors[f"{layer}.weight"] = torch.cat([weight[..., :start], weight[..., start + len(embedding) :]], -1)
