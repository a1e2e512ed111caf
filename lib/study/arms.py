"""The arms of the evaluation: every way to control, by name.

arm = make_arm("64x2+value-checked-6", PlannerConfig.standard(action_dim), {"threshold": 0.4})
controller = make_controller(arm, world_model, {"two_tower": corrector})

teacher, teacher-sample     replan at every step; execute the elites' mean, or a random elite (the official code does)
budget-NxI                  replan at every step with N samples × I iterations; behind that, in this order, may stand
  -hH -tT -eE -sS           the plan's horizon, the temperature, the number of elites, and the first standard deviation,
                            beyond which no later one goes: budget-64x2-h5, budget-512x6-t0.25-s1
policy, best-of-N           no planning: the prior's mean, or the best of N of its samples by the model's Q
open-loop-E                 execute E steps of a plan, beyond its end the prior's inside the model
hold-last-E, plan-ahead-E   the same, but beyond the plan's end hold its last action, or plan that far
plan-ahead+two-tower-E      plan that far, and a corrector at every depth ≥ 1
two-tower-E, temporal-E     a corrector at every depth ≥ 1
no-plan-E                   a corrector that sees the real latent alone (ablation)
trusted-E, trusted-gated-E  a corrector as far as it is trusted at each depth, and replan early by drift
gated-E, sensitive-E        a corrector, and replan early by drift, or where the drift changes the prior's action
gate-only-mismatch-E        no corrector, and replan early by drift: with the threshold of gated-E
gate-only-sensitivity-E     no corrector, and replan early as sensitive-E
value-only-E                the better of {plan, prior} by the model's Q, replan where neither holds up
value-checked-E             the best of {plan, corrected, prior}, replan where none holds up
ladder-E                    plan, corrected, value check, refine, replan: the cheapest that passes its check
distilled, cloned, prior+   a draft that never plans, see `lib.study.drafting`
draft+gated-E-rP            the draft acts, and the planner where a gate asks for it: it would at P % of the decisions
                            of the draft's own episodes (10 unless given); its plan is executed for E steps while it
                            holds; draft+doubt-E, draft+value-E and draft+mismatch-E have a gate by one score alone
clone+gated-E-rP            the same with the clone
late-dD, late-hold-dD       a planner that needs D decisions, for the state that is seen, which is gone by then: one
                            begins at each, or the last action is held until the next is there (see `lib.realtime`)
async-dD                    the same in the background, for where the world will be in D decisions, and executed there;
async+two-tower-dD,         with a corrector at every decision; with one that has learnt from late plans; with one and a
async+temporal-dD,          gate, which drops a plan that arrives too far from where the world is; with a draft that
async+delay-aware-dD,       acts, not the prior, where no plan does; or with the clone there, and the corrector that has
async+gated-dD,             learnt from late plans elsewhere
async+draft-dD, async+delay-aware+clone-dD
adarep-E, adarep-local-E    rivals as published, and in a second reading of what their texts leave open:
published-E, …-tuned-E      see `lib.study.rivals`

Any of those with an E or a D may stand on a smaller planner: `64x2+two-tower-3`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib.config import ConfigError, PlannerConfig, as_dict, one_of, quoted
from lib.correctors import (
    CORRECTORS,
    MAX_DEPTH,
    PublishedCorrector,
    StateCorrector,
    TemporalCorrector,
    Trusted,
    TwoTowerCorrector,
)
from lib.drafts import SCORES, Draft, DraftController, DraftGate, PriorDraft
from lib.gates import DriftGate, Gate, LadderGate, SensitivityGate, ValueGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.realtime import LateController, RealTimeController
from lib.records import paths
from lib.speculation import SpeculativeController
from lib.study.rivals import AdaptiveToleranceGate, DistanceGate, LocalToleranceGate, PublishedGate
from lib.world_model import WorldModel

# Larger numbers are slips of the keyboard: what they ask for would not fit into memory, or never end.
NUMBER, STEPS = "([1-9][0-9]{0,3})", f"({'|'.join(map(str, range(1, MAX_DEPTH + 1)))})"
DECIMAL = r"((?:0|[1-9][0-9]{0,2})(?:\.[0-9]{0,2}[1-9])?)"  # written in one way only
AXES = f"(?:-h{NUMBER})?(?:-t{DECIMAL})?(?:-e{NUMBER})?(?:-s{DECIMAL})?"
AXIS_FIELDS = {"horizon": int, "temperature": float, "elites": int, "max_std": float}  # of `AXES`, in that order
LABELS = ("scheme", "standard_planner")  # fields that only say what an arm is called: no episode depends on them


@dataclass(frozen=True)
class Arm:
    """One way to control. `planner=None` is the policy prior alone, or the best of `samples` draws from it.

    `corrector` names an architecture, empty for none; `threshold` and `levels` are the gate's, missing until it is
    calibrated. `scheme` is the kind of arm: one of `SCHEMES`, or what stands in a name without an execution horizon.
    `standard_planner` is whether it stands on the teacher's planner.
    """

    name: str
    planner: PlannerConfig | None
    execution_horizon: int = 1
    corrector: str = ""
    tail: str = "policy"
    gate: type[Gate] | None = None
    threshold: float | None = None
    levels: tuple[float, float] | None = None
    refiner: PlannerConfig | None = None
    samples: int = 0
    scheme: str = ""
    standard_planner: bool = False

    @property
    def columns(self) -> dict:
        """What tables of results say of the arm beside its name: plain values, None for what it does not have."""
        planner = {name: getattr(self.planner, name, None) for name in ("samples", "iterations", "horizon")}
        return {
            "scheme": self.scheme,
            "standard_planner": self.standard_planner,
            **{f"planner_{name}": value for name, value in planner.items()},
            "execution_horizon": self.execution_horizon,
            "corrector": self.corrector or None,
            "gate": self.gate and self.gate.kind,
            "tail": self.tail if self.execution_horizon > 1 else None,
        }

    @property
    def settings(self) -> dict:
        """The arm as plain values, which sidecars keep and `recorded` reads."""
        return as_dict(self) | {"gate": self.gate.kind if self.gate else ""}


@dataclass(frozen=True)
class TrustedArm(Arm):
    """An arm whose corrector acts as far as it is trusted at each depth; `trust` is missing until it is calibrated."""

    trust: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DraftArm(Arm):
    """An arm whose `corrector` is a draft; with a planner its gate asks by `scores`, at a share `rate` of decisions.
    `thresholds` are those of `DraftGate`, None for a score that is left out; missing until they are calibrated."""

    scores: tuple[str, ...] = ()
    rate: float = 0.0
    thresholds: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class DelayArm(Arm):
    """An arm whose planner needs `delay` decisions; `controller` is one of `CONTROLLERS`. Where its `corrector` is a
    draft, that acts where no plan does. Its execution horizon is the decisions for which a plan is executed."""

    delay: int = 0
    controller: str = "async"


@dataclass(frozen=True)
class BesideArm(DelayArm):
    """An arm whose plans are late, with a corrector while one acts, and a draft, `beside`, where none does."""

    beside: str = ""


CONTROLLERS = {"late": LateController, "async": RealTimeController}
DRAFTED = ("distilled", "cloned", "prior+")  # drafts, which are also arms that never plan
DELAY_AWARE = "delay_aware"  # the two-tower corrector that has learnt from late plans: see `lib.study.delay_training`
# Of draft+…-E and clone+…-E: the draft that acts, and the scores that its gate has.
CHECKED = {f"{acting}+gated": (draft, SCORES) for acting, draft in (("draft", "distilled"), ("clone", "cloned"))}
CHECKED |= {f"draft+{score}": ("distilled", (score,)) for score in SCORES}


def numbers_of(arm: Arm) -> tuple[str, ...]:
    """The fields of an arm that calibration has to find before it can act."""
    if isinstance(arm, DraftArm):
        return ("thresholds",) if arm.gate else ()
    return (arm.gate.numbers if arm.gate else ()) + (("trust",) if isinstance(arm, TrustedArm) else ())


# What arms with an execution horizon are made of: fields of theirs, their `kind`, and `select`, which of the elites'
# actions their planner executes.
_TWO_TOWER = {"corrector": TwoTowerCorrector.arch}
_PUBLISHED = {"corrector": PublishedCorrector.arch}
SCHEMES = {
    "open-loop": {},
    "hold-last": {"tail": "hold"},
    "plan-ahead": {"tail": "plan"},
    "plan-ahead+two-tower": _TWO_TOWER | {"tail": "plan"},
    "two-tower": _TWO_TOWER,
    "temporal": {"corrector": TemporalCorrector.arch},
    "no-plan": {"corrector": StateCorrector.arch},
    "trusted": _TWO_TOWER | {"kind": TrustedArm},
    "trusted-gated": _TWO_TOWER | {"kind": TrustedArm, "gate": DriftGate},
    "gate-only-mismatch": {"gate": DriftGate},
    "gate-only-sensitivity": {"gate": SensitivityGate},
    "gated": _TWO_TOWER | {"gate": DriftGate},
    "sensitive": _TWO_TOWER | {"gate": SensitivityGate},
    "value-only": {"gate": ValueGate},
    "value-checked": _TWO_TOWER | {"gate": ValueGate},
    "ladder": _TWO_TOWER | {"gate": LadderGate, "refiner": PlannerConfig.budget(32, 1, max_std=0.5)},
    "adarep": {"gate": AdaptiveToleranceGate},
    "adarep-local": {"gate": LocalToleranceGate},
    "published": _PUBLISHED | {"gate": PublishedGate, "select": "sample"},
    "published-tuned": _PUBLISHED | {"gate": DistanceGate},
}
# The same of arms with a delay, all of which are of one kind.
DELAYED = {
    "late": {"controller": "late"},
    "late-hold": {"controller": "late", "tail": "hold"},
    "async": {},
    "async+two-tower": _TWO_TOWER,
    "async+temporal": {"corrector": TemporalCorrector.arch},
    "async+delay-aware": {"corrector": DELAY_AWARE},
    "async+gated": _TWO_TOWER | {"gate": DriftGate},
    "async+draft": {"corrector": "distilled"},
    "async+delay-aware+clone": {"corrector": DELAY_AWARE, "beside": "cloned"},
}
LONGEST_DELAY = 12

ARM_COLUMNS = tuple(Arm("", None).columns)


def recorded(settings: dict) -> Arm:
    """The arm of a result's sidecar; what else the sidecar says is left out, and labels that it lacks are empty."""
    kinds = {"trust": TrustedArm, "thresholds": DraftArm, "beside": BesideArm, "delay": DelayArm}
    kind = next((kind for field, kind in kinds.items() if field in settings), Arm)
    fields = {f.name: settings[f.name] for f in dataclasses.fields(kind) if f.name in settings}
    for name in ("planner", "refiner"):
        fields[name] = fields[name] and PlannerConfig(**fields[name])
    gates = {gate.kind: gate for scheme in SCHEMES.values() if (gate := scheme.get("gate"))} | {"draft": DraftGate}
    gate = gates[one_of("gate", fields["gate"], gates)] if fields["gate"] else None
    numbers = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return kind(**fields | numbers | {"gate": gate})


def arm_name(name: str) -> str:
    """The name of an arm as results have it: with ×, which may be written x."""
    return re.sub(r"(\d)x(\d)", r"\1×\2", name)


def make_arm(name: str, standard: PlannerConfig, calibration: dict | None = None) -> Arm:
    """An arm by its name (see above). `standard` is the teacher's planner, in whose mode others run, too; `calibration`
    has the arm's `numbers_of`.

    Only here are names taken apart. Raises `ConfigError` that lists the forms for an unknown name.
    """
    name, budget = arm_name(name), functools.partial(PlannerConfig.budget, mode=standard.mode)
    if name == "policy":
        return Arm(name, None, scheme=name)
    if name == "teacher":
        return Arm(name, standard, scheme=name, standard_planner=True)
    if name == "teacher-sample":
        planner = dataclasses.replace(standard, action_selection="sample")
        return Arm(name, planner, scheme=name, standard_planner=True)
    if match := re.fullmatch(rf"best-of-{NUMBER}", name):
        return Arm(name, None, samples=int(match[1]), scheme="best-of")
    if match := re.fullmatch(f"budget-{NUMBER}×{NUMBER}{AXES}", name):
        samples, iterations, *axes = match.groups()
        settings = {field: of(text) for (field, of), text in zip(AXIS_FIELDS.items(), axes, strict=True) if text}
        # A scheme of its own: such a planner must not be taken for the one that the arms of 64x2+… stand on.
        scheme = "swept" if settings else "budget"
        return Arm(name, budget(int(samples), int(iterations), **settings), scheme=scheme)
    if name in DRAFTED:
        return DraftArm(name, None, corrector=name, scheme=name)
    checked = "|".join(map(re.escape, CHECKED))
    if match := re.fullmatch(rf"(?:{NUMBER}×{NUMBER}\+)?({checked})-{STEPS}(?:-r([1-9][0-9]?))?", name):
        samples, iterations, scheme, steps, percent = match.groups()
        planner = budget(int(samples), int(iterations)) if samples else standard
        planner = dataclasses.replace(planner, horizon=max(planner.horizon, int(steps)))
        draft, scores = CHECKED[scheme]
        about = {"scheme": scheme, "standard_planner": not samples, "scores": scores, "rate": int(percent or 10) / 100}
        arm = DraftArm(name, planner, int(steps), draft, "plan", DraftGate, **about)
        found = (calibration or {}).get("thresholds")
        return dataclasses.replace(arm, thresholds=found and tuple(found))
    if match := re.fullmatch(rf"(?:{NUMBER}×{NUMBER}\+)?({'|'.join(map(re.escape, SCHEMES))})-{STEPS}", name):
        samples, iterations, scheme, steps = match.groups()
        planner = budget(int(samples), int(iterations)) if samples else standard
        pieces = SCHEMES[scheme] | {"scheme": scheme, "standard_planner": not samples}
        kind, select = pieces.pop("kind", Arm), pieces.pop("select", planner.action_selection)
        planner = dataclasses.replace(planner, action_selection=select)
        if pieces.get("tail") == "plan":
            planner = dataclasses.replace(planner, horizon=max(planner.horizon, int(steps)))
        arm = kind(name, planner, int(steps), **pieces)
        found = {number: calibration.get(number) for number in numbers_of(arm)} if calibration else {}
        return dataclasses.replace(arm, **{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
    delays = "|".join(map(str, range(LONGEST_DELAY + 1)))
    if match := re.fullmatch(rf"(?:{NUMBER}×{NUMBER}\+)?({'|'.join(map(re.escape, DELAYED))})-d({delays})", name):
        samples, iterations, scheme, delay = match.groups()
        planner = budget(int(samples), int(iterations)) if samples else standard
        pieces = DELAYED[scheme] | {"scheme": scheme, "standard_planner": not samples, "delay": int(delay)}
        kind = BesideArm if "beside" in pieces else DelayArm
        arm = kind(name, planner, 1 if scheme == "late" else max(int(delay), 1), **pieces)
        return dataclasses.replace(arm, **{number: (calibration or {}).get(number) for number in numbers_of(arm)})
    raise ConfigError(
        f"arm {quoted(name)} is not known; write teacher, teacher-sample, policy, best-of-N, {', '.join(DRAFTED)}, "
        f"budget-NxI or budget-NxI-hH-tT-eE-sS, {', '.join(f'{scheme}-E-rP' for scheme in CHECKED)}, or one of "
        f"{', '.join(f'{scheme}-E' for scheme in SCHEMES)}, or {', '.join(f'{scheme}-dD' for scheme in DELAYED)}, with "
        f"numbers for E (at most {MAX_DEPTH}), D (0 to {LONGEST_DELAY}), P (at most 99), N and I (at most 9999); NxI+ "
        "before one with an E or a D puts it on a smaller planner."
    )


def network_file(profile: str, cell, name: str) -> Path:
    """Where a profile keeps the corrector of this architecture, or the draft of this name, of a cell."""
    folder = "drafts" if name in DRAFTED else "corrector"
    return paths.results(profile) / folder / f"{cell}-{name}.safetensors"


def network_class(name: str) -> type[nn.Module]:
    """What a network of this name is: one of the names of arms' correctors."""
    if name in DRAFTED:
        return PriorDraft if name == "prior+" else Draft
    return TwoTowerCorrector if name == DELAY_AWARE else CORRECTORS[name]


def networks_of(arm: Arm) -> list[str]:
    """The architecture of the corrector, and the draft, that an arm needs."""
    return list(filter(None, (arm.corrector, getattr(arm, "beside", ""))))


def correctors_of(names: list[str]) -> list[str]:
    """The architectures of correctors, and the drafts, that arms of these names need."""
    return list(dict.fromkeys(n for name in names for n in networks_of(make_arm(name, PlannerConfig()))))


def make_controller(arm: Arm, wm: WorldModel, correctors: dict[str, nn.Module], mode: str = "auto"):
    """The controller that acts as the arm says; `mode` is how it runs where it has no planner, which else has one.
    Raises `ConfigError` where one of its numbers is missing."""
    if arm.planner is None and not isinstance(arm, DraftArm):
        return PolicyController(wm, arm.samples, mode)
    for number in (number for number in numbers_of(arm) if getattr(arm, number) is None):
        raise ConfigError(f"arm {arm.name} has no {number} yet; calibrate it with lib.study.calibrate first.")
    corrector = correctors[arm.corrector] if arm.corrector else None
    if isinstance(arm, DraftArm):
        if arm.planner is None:
            return DraftController(wm, corrector, mode=mode)
        thresholds = (math.inf if number is None else number for number in arm.thresholds)
        gate = DraftGate(*thresholds).to(wm.device)
        return DraftController(wm, corrector, MPPI(wm, arm.planner), gate, arm.execution_horizon)
    if isinstance(arm, TrustedArm):
        corrector = Trusted(corrector, arm.trust).to(wm.device)
    gate = arm.gate(**{number: getattr(arm, number) for number in arm.gate.numbers}).to(wm.device) if arm.gate else None
    if isinstance(arm, DelayArm):
        pieces = {"delay": arm.delay, "fallback" if arm.corrector in DRAFTED else "corrector": corrector, "gate": gate}
        if isinstance(arm, BesideArm):
            pieces["fallback"] = correctors[arm.beside]
        if arm.controller == "late":
            pieces = {"delay": arm.delay, "hold": arm.tail == "hold"}
        return CONTROLLERS[arm.controller](MPPI(wm, arm.planner), **pieces)
    refiner = MPPI(wm, arm.refiner) if arm.refiner else None
    return SpeculativeController(MPPI(wm, arm.planner), corrector, gate, arm.execution_horizon, arm.tail, refiner)
