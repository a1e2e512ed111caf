"""What a controller is made of, as plain values and tensors, and made from them again.

    about, tensors = taken_apart(controller)
    controller = put_together(about, tensors, "cpu")        # `BundleError` for whatever is not of these kinds

What is read here may come from anybody, so that every name is looked up in a list of this file, every value is of the
type that its field has, and networks are built without memory until their tensors are known to fit.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.config import LARGEST, PlannerConfig, WorldModelConfig, one_of
from lib.correctors import CORRECTORS, MAX_DEPTH, Trusted
from lib.drafts import DRAFTS, SCORES, DraftController, DraftGate
from lib.gates import DriftGate, LadderGate, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.planning_networks import PlanningNetworks
from lib.policy import PolicyController
from lib.realtime import BackgroundController, RealTimeController
from lib.speculation import SpeculativeController
from lib.weights.native import check_config, resolve_device
from lib.weights.official import check_tensors
from lib.world_model import WorldModel

# Kind -> class, and which of its arguments are settings besides its parts. The lists are closed: a folder names nothing
# else.
CONTROLLERS = {
    "speculative": (SpeculativeController, {"execution_horizon": int, "tail": str}),
    "draft": (DraftController, {"execution_horizon": int, "mode": str}),
    "policy": (PolicyController, {"samples": int, "mode": str}),
    "realtime": (RealTimeController, {"delay": list}),
    "background": (BackgroundController, {"period": float, "expected": int}),
}
GATES = {
    DriftGate.kind: (DriftGate, {"measure": str}),
    SensitivityGate.kind: (SensitivityGate, {"of": str}),
    ValueGate.kind: (ValueGate, {}),
    LadderGate.kind: (LadderGate, {}),
    DraftGate.kind: (DraftGate, {"looks": list}),
}
NETWORKS = {"corrector": CORRECTORS, "draft": DRAFTS, "fallback": DRAFTS}
PARTS = {  # of each kind of controller, with the world model; False: a part that it may lack
    "speculative": {"planner": True, "refiner": False, "corrector": False, "gate": False},
    "draft": {"planner": False, "draft": True, "gate": False},
    "policy": {},
    "realtime": {"planner": True, "corrector": False, "gate": False, "fallback": False},
    "background": {"planner": True, "corrector": False, "gate": False, "fallback": False},
}
UNSAID = {  # settings that a controller may have as None, which a folder cannot
    "delay": "a delay that a function draws cannot be saved; give a number of decisions, or several.",
    "period": "a controller that plans in the background cannot be saved without its period; give it in seconds.",
    "expected": "one that plans in the background cannot be saved without the decisions expected of a plan; give them.",
}


class BundleError(RuntimeError):
    """A controller's folder cannot be read, written or exported; the message says which, why, and what to do."""


def checksum(wm: WorldModel) -> str:
    """sha256 of a world model's tensors, by name, without the target heads, which nothing that acts reads."""
    return _checksum(_tensors(wm, "world_model"), "world_model")


def _checksum(tensors: Mapping[str, Tensor], prefix: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(f"{prefix}.")):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------- taking apart


def taken_apart(controller) -> tuple[dict, dict[str, Tensor]]:
    """A controller as plain values for JSON, and its tensors on the CPU by `part.name`.

    `BundleError` for a controller or a part of a class that is not in the lists, for weights that are not float32 or
    not finite, and for networks in training mode.
    """
    kind = _kind_of(controller, {kind: made for kind, (made, _) in CONTROLLERS.items()}, "controller")
    wm, parts = controller.wm, {part: getattr(controller, part) for part in PARTS[kind]}
    _kind_of(wm, {"": WorldModel}, "world model")
    tensors = _tensors(wm, "world_model")
    about = {"kind": kind, "world_model": {"config": dataclasses.asdict(wm.config), "task": wm.task or ""}}
    about |= {"teacher": _checksum(tensors, "world_model")}
    for part, made in parts.items():
        about[part] = made and _DESCRIBED[part](made, wm)
        if isinstance(made, nn.Module):
            tensors |= _tensors(made.corrector if type(made) is Trusted else made, part)
    if "planner" not in PARTS[kind] or not controller.planner:
        # How it is run, where no planner says so: a function by itself was not asked to be compiled, or could not be.
        run = controller._act if kind == "policy" else controller._look
        mode = "eager" if isinstance(run, functools.partial) else "auto"
    else:
        mode = controller.planner.config.mode
    settings = {"mode": mode} | {k: getattr(controller, k) for k in CONTROLLERS[kind][1] if k != "mode"}
    about["settings"] = {name: settings[name] for name in CONTROLLERS[kind][1]}
    for unsaid in (UNSAID[name] for name in UNSAID if settings.get(name, 0) is None):
        raise BundleError(unsaid)
    _check_depths(about)
    return about, tensors


def _kind_of(made, kinds: Mapping[str, type], what: str) -> str:
    """Which of these classes it is, itself and no subclass, whose code a folder could not hold."""
    for kind, known in kinds.items():
        if type(made) is known:
            return kind
    names = ", ".join(known.__name__ for known in kinds.values())
    raise BundleError(f"a {what} of class {type(made).__name__} cannot be saved as a folder; use one of: {names}.")


def _tensors(module: nn.Module, part: str) -> dict[str, Tensor]:
    """The tensors of a part. A gate's are thresholds, of which infinity is one."""
    if module.training and part != "gate":
        raise BundleError(f"the {part} is in training mode, and would act otherwise once loaded; call its eval().")
    tensors = {f"{part}.{k}": v.detach().cpu() for k, v in module.state_dict().items() if "target_q_heads." not in k}
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise BundleError(f"{name} is {value.dtype}; a folder holds float32: call float() on the {part}.")
        if value.isnan().any() or (part != "gate" and not value.isfinite().all()):
            raise BundleError(f"{name} holds values that are not finite; nothing was written.")
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def _planner_told(planner: MPPI, wm: WorldModel) -> dict:
    _kind_of(planner, {"": MPPI}, "planner")
    _kind_of(planner.networks, {"": PlanningNetworks}, "planner's networks")
    if planner.wm is not wm:
        raise BundleError("a planner has another world model than the controller; a folder holds one.")
    return dataclasses.asdict(planner.config)


def _network_told(role: str, network: nn.Module, wm: WorldModel) -> dict:
    trust = {}
    if type(network) is Trusted:
        trust, network = {"trust": network.trust[1:].tolist()}, network.corrector
    return {"arch": _kind_of(network, NETWORKS[role], role), "shape": network.shape} | trust


def _gate_told(gate: nn.Module, wm: WorldModel) -> dict:
    kind = _kind_of(gate, {kind: made for kind, (made, _) in GATES.items()}, "gate")
    settings = {name: of(getattr(gate, name)) for name, of in GATES[kind][1].items()}
    return {"kind": kind, "settings": settings, "thresholds": _thresholds(gate.state_dict())}


def _thresholds(tensors: Mapping[str, Tensor]) -> dict:
    """A gate's numbers as JSON has them, which knows no infinity."""

    def plain(value):
        if isinstance(value, list):
            return [plain(x) for x in value]
        return value if math.isfinite(value) else str(value)

    return {name: plain(value.tolist()) for name, value in tensors.items()}


_DESCRIBED = {
    "planner": _planner_told,
    "refiner": _planner_told,
    "corrector": functools.partial(_network_told, "corrector"),
    "draft": functools.partial(_network_told, "draft"),
    "fallback": functools.partial(_network_told, "fallback"),
    "gate": _gate_told,
}

# -------------------------------------------------------------------------------------------------- putting together


def put_together(about: dict, tensors: Mapping[str, Tensor], device: str, mode: str | None = None):
    """The controller that `taken_apart` has made these values and tensors of, on a device.

    `mode` is how its functions are run, in place of what the values say (see `PlannerConfig`). Raises `BundleError`,
    `ConfigError` or `CheckpointError` for values of which no controller can be made, with what is wrong alone.
    """
    kind = one_of("kind", about.get("kind"), CONTROLLERS)
    needed = ("kind", "world_model", "teacher", "settings", *PARTS[kind])
    _exactly(about, "controller.json", dict.fromkeys(needed, object))
    for part in sorted({name.partition(".")[0] for name in tensors} - {"world_model", *PARTS[kind]}):
        raise BundleError(f"its tensors are of a part {part!r}, which a {kind} controller does not have")
    device = resolve_device(device)
    wm = _world_model(about["world_model"], tensors)
    if about["teacher"] != _checksum(tensors, "world_model"):
        raise BundleError("its world model is not the one of the checksum 'teacher'")
    wm.to(device)
    made = {}
    for part, required in PARTS[kind].items():
        own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{part}.")}
        if about[part] is None and (required or own):
            raise BundleError(f"{part!r} is missing in controller.json")
        if about[part] is None:
            made[part] = None
        elif part in ("planner", "refiner"):
            made[part] = MPPI(wm, _planner_config(about[part], part, mode))
        else:
            made[part] = (_gate if part == "gate" else functools.partial(_network, part))(about[part], own).to(device)
    of, types = CONTROLLERS[kind]
    settings = _exactly(about["settings"], "settings", types)
    for name, most in {"execution_horizon": LARGEST["horizon"], "samples": LARGEST["samples"]}.items():
        if not 0 <= settings.get(name, 0) <= most:
            raise BundleError(f"{name}={settings[name]} must lie in 0…{most}")
    if "mode" in settings:
        settings["mode"] = one_of("mode", mode or settings["mode"], ("auto", "eager", "compiled", "cudagraph"))
    _check_gate(kind, about.get("gate"))
    _check_depths(about)
    return of(**({} if PARTS[kind].get("planner") else {"wm": wm}), **made, **settings)


def _exactly(values, where: str, types: Mapping[str, type]) -> dict:
    """A copy of `values` if it is an object of these names, each of its type: no bool is an int, but an int a float."""
    if not isinstance(values, dict):
        raise BundleError(f"{where} must be an object, not {type(values).__name__}")
    for name in sorted(types.keys() ^ values.keys()):
        raise BundleError(f"{where} has {'no' if name in types else 'an unknown'} {name[:100]!r}")
    for name, of in types.items():
        value = values[name]
        if of is not object and type(value) is not of and not (of is float and type(value) is int):
            raise BundleError(f"{where} has {name}={str(value)[:100]!r}, which is no {of.__name__}")
        if of is float and not (abs(value) < 2**100):  # an int of any size, infinity or NaN
            raise BundleError(f"{where} has {name}={str(value)[:100]}, which is not finite, or too large")
    return dict(values)


def _fields(config: type) -> dict[str, type]:
    types = {"int": int, "float": float, "bool": bool, "str": str}
    return {field.name: types[field.type] for field in dataclasses.fields(config)}


def _filled(network: nn.Module, tensors: Mapping[str, Tensor], part: str) -> nn.Module:
    """A network that was built without memory, with these tensors, and as it acts."""
    check_tensors(tensors, {k: v.shape for k, v in network.state_dict().items()}, part)
    network.to_empty(device="cpu").load_state_dict(tensors)  # copies, laid out in memory as in any other network
    return network.eval().requires_grad_(False)


def _world_model(told, tensors: Mapping[str, Tensor]) -> WorldModel:
    told = _exactly(told, "world_model", {"config": dict, "task": str})
    config = WorldModelConfig(**_exactly(told["config"], "world_model.config", _fields(WorldModelConfig)))
    own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith("world_model.")}
    try:
        check_config(config, len(own))
        if len(own.get("q_heads.layers.0.bias", ())) != config.num_q:  # it would take minutes to build some heads more
            raise ValueError(f"num_q={config.num_q} is not what its tensors have")
        with torch.device("meta"):  # shapes without memory: the file may declare any
            wm = WorldModel(config, told["task"] or None)
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"world_model.config cannot be used: {' '.join(str(error).split())}") from None
    own |= {f"target_{k}": v for k, v in own.items() if k.startswith("q_heads.")}
    return _filled(wm, own, "the world model")


def _planner_config(told, part: str, mode: str | None) -> PlannerConfig:
    config = PlannerConfig(**_exactly(told, part, _fields(PlannerConfig)))
    return dataclasses.replace(config, mode=mode) if mode else config


def _network(role: str, told, tensors: Mapping[str, Tensor]) -> nn.Module:
    names = ("arch", "shape", *(["trust"] if isinstance(told, dict) and "trust" in told else []))
    told = _exactly(told, role, dict.fromkeys(names, object))
    kind = NETWORKS[role][one_of(f"{role}.arch", told["arch"], NETWORKS[role])]
    if not isinstance(told["shape"], dict) or not all(type(n) is int and 0 < n < 2**20 for n in told["shape"].values()):
        raise BundleError(f"{role}.shape must be an object of whole numbers above 0")
    try:
        with torch.device("meta"):
            network = kind(**told["shape"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # no argument of it, or no size
        raise BundleError(f"{role}.shape cannot be used: {' '.join(str(error).split())}") from None
    network = _filled(network, tensors, f"the {role}")
    if "trust" not in told:
        return network
    trust = told["trust"]
    sound = isinstance(trust, list) and len(trust) <= MAX_DEPTH
    if role != "corrector" or not sound or not all(type(share) is float and 0 <= share <= 1 for share in trust):
        raise BundleError(f"{role}.trust must be a list of a corrector's shares from 0.0 to 1.0, {MAX_DEPTH} at most")
    return Trusted(network, tuple(trust)).eval()


def _gate(told, tensors: Mapping[str, Tensor]) -> nn.Module:
    told = _exactly(told, "gate", {"kind": object, "settings": object, "thresholds": object})
    kind, types = GATES[one_of("gate.kind", told["kind"], GATES)]
    settings = _exactly(told["settings"], "gate.settings", types)
    if "looks" in settings:
        settings["looks"] = tuple(one_of("gate.looks", name, SCORES) for name in settings["looks"])
    gate = kind(**settings)
    check_tensors({k: v.nan_to_num(0.0) if not v.isnan().any() else v for k, v in tensors.items()},
                  {k: v.shape for k, v in gate.state_dict().items()}, "the gate")  # fmt: skip
    if _thresholds(tensors) != told["thresholds"]:
        raise BundleError("gate.thresholds are not those of weights.safetensors; change the gate's, and save it again")
    gate.load_state_dict(tensors)
    return gate.eval()


def _check_gate(kind: str, told: dict | None) -> None:
    """A gate of drafts judges drafts, and no other does."""
    if told and (told["kind"] == DraftGate.kind) != (kind == "draft"):
        raise BundleError(f"a {kind} controller cannot have a gate of kind {told['kind']!r}")


def _check_depths(about: dict) -> None:
    """A corrector that is trusted by depth knows depths up to `MAX_DEPTH`."""
    horizon = about["settings"].get("execution_horizon", 0)
    if "trust" in (about.get("corrector") or {}) and horizon > MAX_DEPTH:
        raise BundleError(f"execution_horizon={horizon} exceeds the depths that its corrector knows, {MAX_DEPTH}.")
