"""A controller's decisions as packages that run without Python, for one episode at a time on a CPU.

    folder = export("build/my-controller")              # …/exported: step.pt2, solve.pt2, start.pt, export.json

Two functions of tensors, compiled ahead of time (AOTInductor), and the same for every kind of controller:

    action, asks, sound, *state = step(obs, *state)              # a decision without a plan
    action, asks, sound, *state = solve(obs, *state, *noise)     # where `asks` is true: the same decision with one

obs (1, obs_dim); action (1, A); asks and sound (1,) bool: whether the planner is needed, and whether the action is
finite. The state of an episode begins as the tensors of `start.pt`. Random numbers are drawn outside: `export.json` has
the shapes of `noise`, and of what the policy prior's samples need in `step`; `heads` are two different Q heads for each
iteration, `choice` is Gumbel noise, everything else standard normal. `tests/cpp/controller.cpp` is such a program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.bundle.folder import SETTINGS, load_controller
from lib.bundle.parts import BundleError
from lib.compilation import CPU_OPTIONS, STEP_OPTIONS, why_not_compiled
from lib.drafts import DraftController
from lib.files import held, remove, temporary, unwritable
from lib.planner import shift
from lib.policy import PolicyController
from lib.speculation import SpeculativeController
from lib.weights.names import file_hash

FORMAT = "speculative-tdmpc2/exported/1"
ABOUT = "export.json"
NOISE = ("samples", "prior", "terminal", "heads", "choice")


def export(folder: str | Path, out: str | Path | None = None) -> Path:
    """Compile the decisions of a saved controller into `out`, by default the folder's `exported`; where they are.

    An earlier export is replaced as a whole. The code is for this machine's kind of processor. Raises `BundleError`
    when the folder holds no controller, one of another kind, or one with a refiner or a planner in bfloat16; when
    nothing can be compiled here; and when `out` holds anything else, or cannot be written. A controller that is saved
    anew has to be exported anew: `export.json` has the sha256 of the `controller.json` that was.
    """
    folder = Path(folder)
    out = Path(out or folder / "exported").resolve()
    controller = load_controller(folder, mode="eager")  # whose functions are plain ones
    if out.exists() and not is_export(out) and not (out.is_dir() and not held(out)):
        raise BundleError(f"{out} is no earlier export, so nothing is written there; give a new or empty folder.")
    planner = getattr(controller, "planner", None)
    if type(controller) not in _STEPS:
        raise BundleError(
            f"{folder}: a {type(controller).__name__} cannot be exported; it begins solves ahead of time."
        )
    if getattr(controller, "refiner", None) or (planner and planner.config.dtype != "float32"):
        raise BundleError(f"{folder}: a refiner and bfloat16 cannot be exported; save a controller without them.")
    if reason := why_not_compiled(torch.device("cpu")):
        raise BundleError(f"{folder} cannot be exported here: {reason}.")
    names, state = _start(controller)
    obs = torch.zeros(1, controller.wm.native_obs_dim)
    functions = {"step": (_STEPS[type(controller)](controller), _step_noise(controller), STEP_OPTIONS)}
    if planner:
        noise = vars(planner.draw_noise(1, torch.Generator().manual_seed(0)))
        functions["solve"] = (_SOLVES[type(controller)](controller), {name: noise[name] for name in NOISE}, CPU_OPTIONS)
    about = {"format": FORMAT, "controller": file_hash(folder / SETTINGS), "state": names}
    try:
        with temporary(out) as place:
            place.mkdir()
            for name, (function, noise, options) in functions.items():
                given = (obs, *state, *noise.values())
                _compiled(_Function(function, controller), given, place / f"{name}.pt2", options)
                about[name] = {k: [*v.shape] for k, v in noise.items()}
            torch.save(list(state), place / "start.pt")
            (place / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            if out.exists():
                remove(out)
            os.replace(place, out)
    except (RuntimeError, OSError) as error:
        why = unwritable(error, out / ABOUT) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{folder} cannot be exported to {out}: {why.rstrip('.')}.") from error
    return out


def is_export(folder: Path) -> bool:
    """Whether a folder holds what `export` writes, and nothing else."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about["format"] == FORMAT and {*held(folder)} <= {"step.pt2", "solve.pt2", "start.pt", ABOUT}
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Function(nn.Module):
    """A function with what it reads; `torch.export` takes modules."""

    def __init__(self, function: Callable, controller):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(part for part in vars(controller).values() if isinstance(part, nn.Module))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*inputs))


@torch.no_grad()
def _compiled(function: nn.Module, inputs: tuple[Tensor, ...], path: Path, options: dict) -> None:
    from torch._inductor import aoti_compile_and_package

    program = torch.export.export(function, inputs, strict=False)
    options = {name: value for name, value in options.items() if name != "cpp_wrapper"}  # it always is, here
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


# ------------------------------------------------------------------------- controllers as functions of their state


def _start(controller) -> tuple[list[str], tuple[Tensor, ...]]:
    """The names of the tensors that a controller keeps from one decision to the next, and how they are at first."""
    controller.reset(1)
    if isinstance(controller, SpeculativeController):
        state = {k: v for k, v in vars(controller._state).items() if v is not None}
    elif isinstance(controller, DraftController) and controller.planner:
        state = {name: getattr(controller, f"_{name}") for name in _DRAFT_STATE}
    else:
        state = {}
    return list(state), tuple(v.clone() for v in state.values())


_DRAFT_STATE = ("plan", "age", "held", "from", "executed", "predicted")


def _sound(obs: Tensor, action: Tensor) -> Tensor:
    return (torch.isfinite(obs).all() & torch.isfinite(action).all()).view(1)


def _step_noise(controller) -> dict[str, Tensor]:
    samples = getattr(controller, "samples", 0)
    return {"samples": torch.zeros(1, samples, controller.wm.action_dim)} if samples else {}


def _policy_step(controller: PolicyController) -> Callable:
    def step(obs, noise=None):
        action, sound, *_ = controller._act(obs, noise)
        return action, torch.zeros(1, dtype=torch.bool), sound.view(1)

    return step


def _speculative_step(controller: SpeculativeController) -> Callable:
    gate, horizon = controller.gate, controller.execution_horizon

    def step(obs, plan, mean, depth, z_pred, executed, history=None):
        seen = controller._look(obs, plan, z_pred, executed, depth, history)
        asks = depth >= horizon
        if gate is not None:
            asks = asks | (seen.score > gate.threshold)
        state = (plan, mean, depth + 1, seen.z_pred, seen.action, seen.history)
        return seen.action, asks, seen.sound.view(1), *(x for x in state if x is not None)

    return step


def _speculative_solve(controller: SpeculativeController) -> Callable:
    planner = controller.planner

    def solve(obs, plan, mean, depth, z_pred, executed, *rest):
        history, noise = rest[: -len(NOISE)], rest[-len(NOISE) :]
        z = controller.wm.encode(obs)
        actions, mean, *_ = planner._solve(z, shift(mean, depth), *noise)
        first, never = actions[:, 0], torch.zeros_like(depth).bool()
        return first, never, _sound(obs, actions), actions, mean, torch.ones_like(depth), z, first, *history

    return solve


def _draft_step(controller: DraftController) -> Callable:
    gate, horizon = controller.gate, controller.execution_horizon

    def alone(obs):
        nothing = torch.zeros(1, controller.wm.latent_dim), torch.zeros(1, controller.wm.action_dim)
        _, action, _, sound = controller._look(obs, *nothing, torch.zeros(1, dtype=torch.bool))
        return action, torch.zeros(1, dtype=torch.bool), sound.view(1)

    def step(obs, plan, age, held, before, executed, predicted):
        z, drafted, scores, sound = controller._look(obs, before, executed, predicted)
        holds = held & (age < horizon) & ~(scores[:, 2] > gate.thresholds[2])
        planned = _planned(plan, age.masked_fill(~holds, 0))
        action = torch.where(holds.unsqueeze(-1), planned, drafted)
        state = plan, (age + 1).clamp(max=plan.shape[1]), holds, z, action, torch.ones_like(held)
        return action, ~holds & gate(scores), sound.view(1), *state

    return step if controller.planner else alone


def _draft_solve(controller: DraftController) -> Callable:
    wm, draft, planner = controller.wm, controller.draft, controller.planner

    def solve(obs, plan, age, held, before, executed, predicted, *noise):
        z, horizon, start = wm.encode(obs), plan.shape[1], []
        ahead = z
        for step in range(horizon):  # as `DraftController` starts its planner
            left = _planned(plan, (age + step).clamp(max=horizon - 1))
            drafted = draft(ahead, wm.policy(ahead)[0])[0]
            start.append(torch.where((age + step < horizon).unsqueeze(-1), left, drafted))
            ahead = wm.next(ahead, start[-1])
        actions, *_ = planner._solve(z, torch.stack(start, 1), *noise)
        first, always = actions[:, 0], torch.ones_like(held)
        return first, ~always, _sound(obs, actions), actions, torch.ones_like(age), always, z, first, always

    return solve


def _planned(plan: Tensor, index: Tensor) -> Tensor:
    """The actions (1, A) of a plan (1, H, A) at a step (1,)."""
    return plan.gather(1, index.view(-1, 1, 1).expand(-1, 1, plan.shape[2])).squeeze(1)


_STEPS: dict[type, Callable[..., Callable]] = {
    PolicyController: _policy_step,
    SpeculativeController: _speculative_step,
    DraftController: _draft_step,
}
_SOLVES: dict[type, Callable[[SpeculativeController | DraftController], Callable]] = {
    SpeculativeController: _speculative_solve,
    DraftController: _draft_solve,
}
